// Which pairs of a partial tile attend, as bits that a kernel reads instead of evaluating the mask? One bit per pair,
// in an order of the caller's choice.
#pragma once

#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <span>
#include <vector>

namespace cpflex {

/// The bits of one row set. Partial tile t, counted in the order of the runs, owns words
/// [t * wordsPerTile, (t + 1) * wordsPerTile); bit i of the tile is bit i % 32 of its word i / 32. Pairs beyond the
/// mask's lengths are 0.
struct TileKeepWords {
  int32_t rowSet = 0; ///< whose partial tiles these are
  std::vector<uint32_t> words;
  std::vector<int64_t> firstTileOfRow; ///< [numQTiles + 1]: the partial tiles before each row of tiles
};

/// The bits of all partial tiles of a mask. Two predicates with unlike pairs may share a row set, so the bits are found
/// by (b, h).
struct KeepWords {
  int64_t wordsPerTile = 0;
  std::vector<int32_t> partOf; ///< [batch * heads], index into parts of (b, h) at b * heads + h
  std::vector<TileKeepWords> parts;
};

/// Evaluates the partial tiles of `mask`. `order` holds, for each bit, the pair row * tileKV + column of the tile; it
/// is a permutation of [0, tileQ * tileKV), or empty for rows one after the other. `tape`, `bindings` and `options` are
/// those given to buildBlockMask. OutOfMemory when the words would take more than `maxBytes`.
StatusOr<KeepWords> keepWords(const BlockMask &mask, const Tape &tape, const Bindings &bindings,
                              const BlockMaskOptions &options, std::span<const int32_t> order,
                              int64_t maxBytes = int64_t(1) << 33);

/// The order in which the threads of tensor-core kernels hold the scores of a tile: 16 rows per warp, lane l has rows l
/// / 4 and l / 4 + 8 and, of every 8 columns, 2 * (l % 4) and the one after it; the bits of a thread lie side by side,
/// warps in order, then lanes. InvalidArgument unless tileQ is a multiple of 16 and tileKV one of 8.
StatusOr<std::vector<int32_t>> accumulatorOrder(int64_t tileQ, int64_t tileKV);

/// Tiles held as the transposed product K Q^T, as backward kernels do: accumulatorOrder of tileKV x tileQ, each entry
/// led to the pair of the tile.
StatusOr<std::vector<int32_t>> transposedAccumulatorOrder(int64_t tileQ, int64_t tileKV);

} // namespace cpflex
