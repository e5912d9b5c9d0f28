// Which keys must a rank see? The kv positions that its queries attend to, read off the global BlockMask, and the work
// that goes with them. Who sends them is the planner's business.
#pragma once

#include "runtime/Plan/Planner.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Layout.h"
#include "runtime/contract/Range.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace cpflex {

/// Ascending, disjoint, non-adjacent ranges.
using RangeSet = std::vector<Range>;

/// Sorts and joins ranges, dropping empty ones.
RangeSet normalized(RangeSet ranges);
/// Number of integers in a normalised set.
int64_t sizeOf(const RangeSet &set);
/// The union of two normalised sets.
RangeSet unionOf(const RangeSet &a, const RangeSet &b);

/// Adjacent batch rows that share shards and mask rows, hence need sets.
struct BatchGroup {
  Range batch;
  std::vector<int32_t> rowSets; ///< distinct row sets of the mask in use
  std::vector<int64_t> numUses; ///< (batch, head) pairs that use each, summed over the group
};

/// The groups of batch rows of a mask (broadcast from 1 batch row or head where it has only one) under layouts.
std::vector<BatchGroup> batchGroups(const BlockMask &mask, const CallShape &shape, const Layout &qLayout,
                                    const Layout &kvLayout);

/// Rows of one tile of the mask that a rank owns.
struct OwnedTileRows {
  int64_t tile = 0;  ///< index of the row of tiles
  int64_t count = 0; ///< rows in it that the rank owns
};

/// The rows of tiles in which a shard has rows, ascending.
std::vector<OwnedTileRows> ownedTiles(const PositionMap &shard, int64_t tileQ);

/// The kv positions that the rows of `shard` attend to, over all row sets of the group, in whole tiles.
RangeSet needOfShard(const BlockMask &mask, const BatchGroup &group, const PositionMap &shard);

/// The same at token precision: tiles that are partial wherever the shard meets them are evaluated, apart from the
/// positions in `known` (normalised), which count as needed without a look when their tile is.
RangeSet exactNeedOfShard(const BlockMask &mask, const BatchGroup &group, const PositionMap &shard,
                          const RangeSet &known, const PlanRequest &request);

/// Who owns which positions: answers which local rows of which rank lie in a range of positions.
class OwnerIndex {
public:
  OwnerIndex(const Layout &layout, int64_t batchRow);

  /// Calls visit(owner, localRows) for maximal runs of local rows whose positions lie in [range).
  template <typename Visitor> void visit(Range range, Visitor &&visitor) const;

private:
  struct Segment {
    int64_t begin, end; ///< positions
    int64_t localBegin;
    int32_t owner;
  };
  struct Strided {
    AffinePiece piece;
    int64_t localBegin;
    int32_t owner;
  };
  std::vector<Segment> segments_; ///< pieces of step 1, ascending
  std::vector<Strided> strided_;
};

template <typename Visitor> void OwnerIndex::visit(Range range, Visitor &&visitor) const {
  auto first = std::partition_point(segments_.begin(), segments_.end(),
                                    [&](const Segment &segment) { return segment.end <= range.begin; });
  for (auto it = first; it != segments_.end() && it->begin < range.end; ++it) {
    int64_t begin = std::max(it->begin, range.begin), end = std::min(it->end, range.end);
    visitor(it->owner, Range{it->localBegin + begin - it->begin, it->localBegin + end - it->begin});
  }
  for (const Strided &strided : strided_) {
    const AffinePiece &piece = strided.piece;
    int64_t first = range.begin <= piece.begin ? 0 : ceilDivide(range.begin - piece.begin, piece.step);
    int64_t last =
        range.end <= piece.begin ? 0 : std::min(piece.count, ceilDivide(range.end - piece.begin, piece.step));
    if (first < last)
      visitor(strided.owner, Range{strided.localBegin + first, strided.localBegin + last});
  }
}

} // namespace cpflex
