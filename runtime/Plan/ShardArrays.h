// How callers' arrays become local shards and whole again: copies along the sequence axis by a Layout, and the
// permutation as data. Communication belongs to runtime/Executor.
#pragma once

#include "runtime/contract/Layout.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <span>
#include <vector>

namespace cpflex {

/// A dense row-major array [outer..., sequence, inner...] seen as [batch, outer, sequence, inner]: 1-D positions have
/// batch = outer = inner = 1; labels [B, S] have batch = B, inner = 1; tensors [B, H, S, D] have outer = H, inner = D.
struct SequenceArrayShape {
  int64_t batch = 1, outer = 1;
  int64_t inner = 1;
  int64_t elementSizeInBytes = 4;
};

/// Copies the rows that `rank` owns: global [batch, outer, length, inner] to local [batch, outer, shardSize, inner].
/// A layout with rows of its own needs `batch` to be their number.
Status shard(const Layout &layout, int32_t rank, const SequenceArrayShape &shape, const void *global, void *local);

/// The reverse: writes the rows that `rank` owns into the global array and leaves the others.
Status unshard(const Layout &layout, int32_t rank, const SequenceArrayShape &shape, const void *local, void *global);

/// Global positions in rank-major order, [rows * length]: entry row * length + i is the token at place i of the
/// concatenated shards.
std::vector<int64_t> permutation(const Layout &layout);

/// The inverse: entry row * length + p is the place of token p in the concatenated shards.
std::vector<int64_t> inversePermutation(const Layout &layout);

} // namespace cpflex
