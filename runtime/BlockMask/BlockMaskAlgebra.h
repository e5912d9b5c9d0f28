// How are masks combined and rearranged without making them dense? Set operations, slices, shifts,
// other tilings, concatenation and transposition on runs.
//
// Runs say that a partial tile has some pairs, not which. An operation whose result would depend on
// which keeps the tile Partial and counts it in `unsettled`: such a tile may in truth be empty or
// full, all others are exact. Who has the predicate of the result settles them with
// settlePartialTiles.
#pragma once

#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <span>

namespace cpflex {

/// The result of an operation on masks.
struct CombinedMask {
  BlockMask mask;
  int64_t unsettled = 0; ///< tiles of distinct row sets whose class may be too careful; 0: the result is exact
};

/// What two masks are combined to.
enum class MaskOperation : uint8_t { Union, Intersection, Difference };

/// Combines two masks of equal lengths and tiles. Batches and heads are equal or 1, which is
/// broadcast. A union is unsettled where both are partial, so are an intersection and a difference.
StatusOr<CombinedMask> combine(MaskOperation operation, const BlockMask &left, const BlockMask &right);

/// The pairs that do not attend. Exact.
BlockMask complement(const BlockMask &mask);

/// The mask with q and kv exchanged. Exact.
BlockMask transpose(const BlockMask &mask);

/// A window of a mask in a tiling of its own: row i and column j of the result are row qBegin + i
/// and column kvBegin + j of the source, which may lie outside of it and are empty there. Slices,
/// shifts of positions and other tilings are all windows. Unsettled where a source tile that is
/// partial is cut.
struct MaskWindow {
  int64_t qBegin = 0, kvBegin = 0;
  int64_t qLen = 0, kvLen = 0;
  int64_t tileQ = 128, tileKV = 128;
};
StatusOr<CombinedMask> window(const BlockMask &mask, const MaskWindow &window);

/// Rows `q` and columns `kv` of a mask, in the same tiles.
StatusOr<CombinedMask> slice(const BlockMask &mask, Range q, Range kv);

/// The same mask in other tiles.
StatusOr<CombinedMask> retile(const BlockMask &mask, int64_t tileQ, int64_t tileKV);

/// The same pairs at positions moved by (qOffset, kvOffset); what leaves [0, qLen) x [0, kvLen) is
/// lost.
StatusOr<CombinedMask> shift(const BlockMask &mask, int64_t qOffset, int64_t kvOffset);

/// Which axis grows when masks are put one behind the other.
enum class MaskAxis : uint8_t { Q, KV };

/// Masks one behind the other along an axis. All but the last have a multiple of the tile as length
/// there; the other length, tiles, batches and heads are equal. Exact.
StatusOr<BlockMask> concatenate(std::span<const BlockMask> masks, MaskAxis axis);

/// Whether two masks have the same shape and, for each (b, h), the same classes; how row sets are
/// shared and residuals are numbered does not matter.
bool isSameMask(const BlockMask &left, const BlockMask &right);

/// Gives each partial tile the class it has by the predicate `tape`; full and empty tiles are taken
/// as they are. Exact when those are. `options` are those of buildBlockMask and match the mask.
StatusOr<BlockMask> settlePartialTiles(const BlockMask &mask, const Tape &tape, const Bindings &bindings,
                                       const BlockMaskOptions &options);

/// Joins adjacent runs of one class and shares equal row sets, numbered by first use.
void normalize(BlockMask &mask);

/// Checks that runs lie inside the mask, ascending and disjoint, and that indices are in range.
Status verifyBlockMask(const BlockMask &mask);

} // namespace cpflex
