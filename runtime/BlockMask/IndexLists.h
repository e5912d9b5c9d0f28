// How does FlexAttention write the same mask? Lists of tile indices per row, padded to a rectangle,
// in both orientations.
#pragma once

#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

/// Lists of one orientation: for each (b, h, row) the number of tiles and their indices, ascending,
/// then padding. counts: [batch, heads, rows]; indices: [batch, heads, rows, columns].
struct TileLists {
  std::vector<int32_t> partialCounts, partialIndices;
  std::vector<int32_t> fullCounts, fullIndices;
  friend bool operator==(const TileLists &, const TileLists &) = default;
};

/// A mask as FlexAttention's BlockMask holds it: `byQ` is kv_num_blocks, kv_indices,
/// full_kv_num_blocks and full_kv_indices; `byKV` is their transposed form q_num_blocks, ...
struct IndexLists {
  int64_t batch = 1, heads = 1;
  int64_t qLen = 0, kvLen = 0, tileQ = 128, tileKV = 128;
  TileLists byQ, byKV;

  int64_t numQTiles() const { return ceilDivide(qLen, tileQ); }
  int64_t numKVTiles() const { return ceilDivide(kvLen, tileKV); }
};

/// Both orientations; memory is batch * heads * rows * columns indices four times over, so a mask
/// whose arrays would exceed `maxBytes` is refused with OutOfMemory. Padding continues with the
/// absent tiles in ascending order, as a stable sort of the dense form leaves them.
StatusOr<IndexLists> toIndexLists(const BlockMask &mask, int64_t maxBytes = int64_t(1) << 33);

/// The mask of `lists.byQ`; `byKV` is not read. Indices need not be ascending. InvalidArgument when
/// counts or indices leave the mask, a tile is listed twice, or arrays have the wrong size.
StatusOr<BlockMask> fromIndexLists(const IndexLists &lists);

/// The bytes of a NumPy `.npz` file with the arrays kv_num_blocks, kv_indices, full_kv_num_blocks,
/// full_kv_indices, q_num_blocks, q_indices, full_q_num_blocks, full_q_indices (int32) and
/// block_size, seq_lengths (int64, [2]).
std::string toNpz(const IndexLists &lists);

/// The lists in the bytes of a `.npz` file, of numpy.savez or numpy.savez_compressed, with arrays as toNpz names them,
/// of int32 or int64. The transposed lists and those of full tiles may be absent. DataLoss when the archive is damaged;
/// InvalidArgument when an array is missing or has another shape or type. Whether the lists make a mask is checked by
/// fromIndexLists.
StatusOr<IndexLists> indexListsFromNpz(std::string_view bytes);

} // namespace cpflex
