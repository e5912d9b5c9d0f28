// Which rank of a context-parallel group owns which tokens: for each batch row and rank a PositionMap. Plain data;
// runtime/Plan makes, checks and applies layouts.
#pragma once

#include "runtime/contract/PositionMap.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// The rule by which a layout was made. It is a name for people: the shards alone say who owns what.
enum class LayoutKind : uint8_t {
  Contiguous,  ///< rank r owns one range of tokens
  HeadTail,    ///< rank r owns pieces r and 2W-1-r of 2W equal pieces: balances a causal mask
  Striped,     ///< rank r owns tokens r, r + W, r + 2W, ...
  PerDocument, ///< head-tail inside each document
  Ptrr,        ///< tiles of rows sorted by work and dealt round robin, the direction reversed each round
  Solved,      ///< the cheapest by the cost model of compute and traffic together
  Custom,      ///< the caller's own
};

/// Ownership of the tokens [0, length) by the ranks [0, worldSize). Every token of every batch row belongs to exactly
/// one rank, and a rank owns equally many tokens in each batch row. Immutable once made, shared freely between threads.
struct Layout {
  LayoutKind kind = LayoutKind::Contiguous;
  int64_t length = 0;
  int32_t worldSize = 1;
  int64_t rows = 1;                ///< 1: all batch rows alike; else the number of batch rows
  std::vector<PositionMap> shards; ///< [rows * worldSize]; of (row, rank) at row * worldSize + rank

  /// Global positions of the local rows of `rank` in batch row `b`.
  const PositionMap &shard(int64_t b, int32_t rank) const { return shards[(rows == 1 ? 0 : b) * worldSize + rank]; }
  /// Number of tokens that `rank` owns in each batch row.
  int64_t shardSize(int32_t rank) const { return shards[rank].size(); }
  friend bool operator==(const Layout &, const Layout &) = default;
};

} // namespace cpflex
