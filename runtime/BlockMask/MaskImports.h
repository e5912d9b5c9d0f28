// How do masks come in from other systems? Ranges per token, slices and cumulative lengths become
// runs or captures, exactly.
#pragma once

#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <span>
#include <vector>

namespace cpflex {

/// The document of each token from cumulative lengths [0, l0, l0 + l1, ...] (`cu_seqlens`): ids 0,
/// 1, ... in order, a sorted capture. Tokens behind the last length, up to `length`, form one more
/// document. InvalidArgument unless the lengths begin with 0, never decrease and do not exceed
/// `length`.
StatusOr<std::vector<int32_t>> documentIds(std::span<const int64_t> cumulativeLengths, int64_t length);

/// How the pairs of a slice of two ranges attend, as in MagiAttention.
enum class SliceKind : uint8_t {
  Full,          ///< all pairs
  Causal,        ///< kv.end - kv >= q.end - q: aligned at the ends
  InverseCausal, ///< kv - kv.begin >= q - q.begin: aligned at the begins
  BiCausal,      ///< both
};
struct MaskSlice {
  Range q, kv;
  SliceKind kind = SliceKind::Full;
};

/// Lengths and tiles of an imported mask.
struct MaskShape {
  int64_t qLen = 0, kvLen = 0;
  int64_t tileQ = 128, tileKV = 128;
};

/// The union of slices, which may overlap; one (b, h). InvalidArgument when a slice leaves the
/// mask.
StatusOr<BlockMask> fromSlices(std::span<const MaskSlice> slices, const MaskShape &shape);

/// Whether FlashMask columns hide the pairs above the diagonal too.
enum class FlashMaskTriangle : uint8_t { Causal, Both };

/// The mask of FlashMask's startend_row_indices of one (b, h): `bounds` holds `numBounds` row
/// indices for each kv position. Hidden rows of a column: Causal with 1 bound: [s, qLen) below the
/// diagonal; with 2: [s, e) below it; Both with 2: [s, qLen) below and [0, e) above; with 4: [s0,
/// e0) below and [s1, e1) above. With Causal, q < kv is hidden too. InvalidArgument for other
/// numbers of bounds or arrays of the wrong size.
StatusOr<BlockMask> fromFlashMask(std::span<const int32_t> bounds, int64_t numBounds, FlashMaskTriangle triangle,
                                  const MaskShape &shape);

} // namespace cpflex
