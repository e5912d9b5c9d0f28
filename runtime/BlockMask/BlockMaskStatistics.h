// What does a BlockMask contain? Tile counts, memory, exact pair counts and the rows and columns
// without partners.
#pragma once

#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Range.h"

#include <cstdint>
#include <string>
#include <vector>

namespace cpflex {

/// Tiles by class, summed over the distinct (b, h).
struct TileCounts {
  int64_t empty = 0, full = 0, partial = 0;
  friend bool operator==(const TileCounts &, const TileCounts &) = default;
};

/// Tile counts of all distinct row sets.
TileCounts countTiles(const BlockMask &mask);

/// Tile counts of one row set.
TileCounts countTiles(const BlockMask &mask, const TileRows &rows);

/// Bytes that the mask stores (one orientation): runs, row offsets and the table of row sets.
int64_t sizeInBytes(const BlockMask &mask);

/// Pairs of one distinct predicate over (q, kv). Rows and columns are local. Two predicates with
/// unlike pairs may share a row set.
struct RowSetPairs {
  int32_t rowSet = 0;    ///< whose tiles these are
  int64_t batchHead = 0; ///< the first b * heads + h that has them
  int64_t allowed = 0;
  std::vector<Range> rowsWithoutKeys;       ///< ascending, disjoint, not adjacent
  std::vector<Range> columnsWithoutQueries; ///< ascending, disjoint, not adjacent
};

/// Exact pair counts, summed over the distinct (b, h).
struct PairCounts {
  int64_t allowed = 0;
  int64_t rowsWithoutKeys = 0;
  int64_t columnsWithoutQueries = 0;
  double density = 0; ///< allowed / (rowSets.size() * qLen * kvLen); 0 for a mask without pairs
  std::vector<RowSetPairs> rowSets;
};

/// Counts the allowed pairs exactly by settling the partial tiles with the tape the mask was built
/// from. `tape`, `bindings` and `options` are those given to buildBlockMask.
StatusOr<PairCounts> countAllowed(const BlockMask &mask, const Tape *tape, const Bindings &bindings,
                                  const BlockMaskOptions &options);

/// How long the stages took, for the JSON object.
struct BuildTimes {
  double compileMs = 0;
  double buildMs = 0;
};

/// The JSON object of `cpflexc mask --format json`: q_len, kv_len, tile_q, tile_kv, distinct_bh,
/// empty, full, partial, compile_ms, build_ms, bytes, points_evaluated; with `pairs` also allowed,
/// rows_without_keys, columns_without_queries, density. `pairs` may be null.
std::string toJson(const BlockMaskResult &result, const BuildTimes &times, const PairCounts *pairs);

} // namespace cpflex
