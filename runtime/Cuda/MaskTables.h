// A BlockMask as the flat arrays that kernels walk (MaskArgument and WorkArgument), on the host: cut to a kernel's
// tiles, transposed for the kernels that walk queries, with the rows of tiles ordered longest first.
#pragma once

#include "runtime/contract/BlockMask.h"
#include "runtime/contract/KernelArguments.h"
#include "runtime/contract/TileConfig.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// The mask with q and kv exchanged: row r of the result holds the q tiles that attend to kv tile r. Costs time in the
/// number of runs and of tiles at which the class changes from one row of tiles to the next.
BlockMask transposed(const BlockMask &mask);

/// The mask over other tiles. A tile that covers tiles of one class only keeps it; one that covers several, or part of
/// a partial one, is partial with residual 0: exact for any sizes, and free of new partial tiles where the new sizes
/// divide the old.
BlockMask withTiles(const BlockMask &mask, int64_t tileQ, int64_t tileKV);

/// The arrays behind MaskArgument and WorkArgument for one kernel.
struct MaskTables {
  std::vector<int32_t> rowBegin; ///< per row set numRows + 1 indices into runs
  std::vector<RunArgument> runs;
  std::vector<int32_t> rowSetOf; ///< [batch * heads]
  std::vector<int32_t> rowOrder; ///< rows of kernel tiles, longest first
  /// MaskArgument::wordsOf; [batch * heads] pairs of which the first numWordSets have words of their own; and tiles
  /// with words of all of them together: all empty or 0 where no kernel decides tiles ahead, or they are too many.
  std::vector<int32_t> wordsOf, wordPairs;
  int32_t numWordSets = 0;
  int64_t numWordTiles = 0;
  int32_t numRows = 0;
  int32_t rowTilesPerMaskTile = 1;
  int32_t colTilesPerMaskTile = 1;
  int64_t longestRow = 0;   ///< kernel tiles of the longest row
  int64_t tilesPerHead = 0; ///< kernel tiles of all rows, on average over batch and heads
  /// QuerySumsArgument::walksDown, where sums are shared: which walk lets rows wait least for the row before them.
  bool walksDown = true;
};

/// Which dimension the rows of tiles of a kernel run along.
enum class KernelRows { Q, KV };
constexpr KernelRows kernelRows(KernelRole role) { return runsAlongKV(role) ? KernelRows::KV : KernelRows::Q; }

/// For which pairs of a batch row and a head the bits of partial tiles are kept, and how many tiles at most; with more
/// there are none.
struct WordSets {
  bool perBatch = true, perHead = true;
  int64_t maxTiles = 0;
};

/// Whether the rows of a kernel along kv add up dQ together, as those of one that sharesSums() do. Only these read
/// RunArgument::isLastPart and MaskTables::walksDown; the runs of others are not cut where the former changes.
enum class QuerySums { None, Shared };

/// The tables of a kernel with tiles of tileQ x tileKV for `batch` rows and `heads` query heads. A mask with batch or
/// heads 1 serves all. Tiles of the mask that are no multiples of the kernel's are cut anew with withTiles().
MaskTables maskTables(const BlockMask &mask, KernelRows rows, int tileQ, int tileKV, int64_t batch, int64_t heads,
                      const WordSets &words = {}, QuerySums sums = QuerySums::None);

/// Whether any tile is partial, so that a kernel needs the program's mask.
bool hasPartialTiles(const BlockMask &mask);

} // namespace cpflex
