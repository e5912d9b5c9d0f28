// The exact block-sparse form of a mask: for each distinct (batch, head) row set and each row of tiles, the runs of
// tiles that are full or partial. Plain data; runtime/BlockMask builds, combines, stores and draws it.
#pragma once

#include "runtime/contract/PositionMap.h"
#include "runtime/contract/Range.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// How the pairs of a tile attend: none, all, or some.
enum class TileClass : uint8_t { Empty = 0, Full = 1, Partial = 2 };

/// Adjacent kv tiles [begin, end) of one class (never Empty) in one row of tiles.
struct TileRun {
  int32_t begin = 0;
  int32_t end = 0;
  TileClass tileClass = TileClass::Full;
  uint8_t residual = 0; ///< number of the residual predicate of partial tiles; 0 is the whole mask
  friend bool operator==(const TileRun &, const TileRun &) = default;
};

/// The runs of every row of tiles, rows in order, runs of a row ascending and disjoint:
/// row r owns runs[rowBegin[r] .. rowBegin[r + 1]).
struct TileRows {
  std::vector<int32_t> rowBegin;
  std::vector<TileRun> runs;
  friend bool operator==(const TileRows &, const TileRows &) = default;
};

/// A mask over local rows q in [0, qLen) and kv in [0, kvLen), cut in tiles of tileQ x tileKV (the last ones may be
/// shorter; a short tile is full when all its pairs attend). Rows map to global positions through a PositionMap that
/// whoever built the mask keeps. Immutable once built, shared freely between threads.
struct BlockMask {
  int64_t qLen = 0, kvLen = 0;
  int64_t tileQ = 128, tileKV = 128;
  int64_t batch = 1, heads = 1;
  std::vector<int32_t> rowSetOf; ///< [batch * heads], index into rowSets of (b, h) at b * heads + h
  std::vector<TileRows> rowSets; ///< one per distinct (b, h)
  uint64_t residualKey = 0;      ///< residualKeyOf the residuals that the runs number; 0: nobody knows which

  int64_t numQTiles() const { return ceilDivide(qLen, tileQ); }
  int64_t numKVTiles() const { return ceilDivide(kvLen, tileKV); }
  const TileRows &rows(int64_t b, int64_t h) const { return rowSets[rowSetOf[b * heads + h]]; }
  friend bool operator==(const BlockMask &, const BlockMask &) = default;
};

} // namespace cpflex
