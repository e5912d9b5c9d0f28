// Turns allowed ranges per token into runs of tiles: each row of tiles counts how much of each tile
// its tokens cover.
#include "runtime/BlockMask/MaskImports.h"

#include "runtime/BlockMask/BlockMaskAlgebra.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace cpflex {

namespace {

/// The pairs that the tokens of one row of tiles allow, as numbers per tile.
class CoveredTiles {
public:
  explicit CoveredTiles(const MaskShape &shape) : shape_(shape) {}

  /// Adds a range of columns for one token; the ranges of a token are disjoint.
  void add(Range columns) {
    int64_t first = columns.begin / shape_.tileKV, last = (columns.end - 1) / shape_.tileKV;
    if (first == last) {
      extra_[first] += columns.size();
      return;
    }
    extra_[first] += (first + 1) * shape_.tileKV - columns.begin;
    extra_[last] += columns.end - last * shape_.tileKV;
    ++changes_[first + 1];
    --changes_[last];
  }

  void moveTo(TileRows &rows, int64_t numTokens) const {
    std::map<int64_t, int64_t> bounds = changes_;
    for (auto [tile, pairs] : extra_) {
      bounds[tile];
      bounds[tile + 1];
    }
    int64_t numTiles = ceilDivide(shape_.kvLen, shape_.tileKV), covering = 0;
    for (auto it = bounds.begin(); it != bounds.end() && it->first < numTiles; ++it) {
      covering += it->second;
      auto extra = extra_.find(it->first);
      int64_t width = std::min(shape_.tileKV, shape_.kvLen - it->first * shape_.tileKV);
      int64_t pairs = covering * width + (extra == extra_.end() ? 0 : extra->second);
      if (pairs == 0)
        continue;
      auto next = std::next(it);
      int64_t end = next == bounds.end() ? it->first + 1 : next->first;
      rows.runs.push_back({static_cast<int32_t>(it->first), static_cast<int32_t>(end),
                           pairs == numTokens * width ? TileClass::Full : TileClass::Partial, 0});
    }
    rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
  }

private:
  const MaskShape &shape_;
  std::map<int64_t, int64_t> changes_; ///< by tile: tokens that begin to cover whole tiles from here on
  std::map<int64_t, int64_t> extra_;   ///< by tile: pairs besides
};

/// The mask whose token q attends to the disjoint, non-empty ranges rangesOf(q).
template <typename RangesOf> BlockMask fromTokenRanges(const MaskShape &shape, const RangesOf &rangesOf) {
  BlockMask mask;
  mask.qLen = shape.qLen;
  mask.kvLen = shape.kvLen;
  mask.tileQ = shape.tileQ;
  mask.tileKV = shape.tileKV;
  mask.rowSetOf = {0};
  TileRows &rows = mask.rowSets.emplace_back();
  rows.rowBegin.push_back(0);
  for (int64_t begin = 0; begin < shape.qLen; begin += shape.tileQ) {
    int64_t end = std::min(begin + shape.tileQ, shape.qLen);
    CoveredTiles covered(shape);
    for (int64_t q = begin; q < end; ++q)
      for (Range columns : rangesOf(q))
        covered.add(columns);
    covered.moveTo(rows, end - begin);
  }
  normalize(mask);
  return mask;
}

/// Sorts ranges and joins those that meet; drops empty ones.
std::vector<Range> joined(std::vector<Range> ranges) {
  std::erase_if(ranges, [](Range range) { return range.isEmpty(); });
  std::sort(ranges.begin(), ranges.end(), [](Range a, Range b) { return a.begin < b.begin; });
  std::vector<Range> result;
  for (Range range : ranges) {
    if (!result.empty() && range.begin <= result.back().end)
      result.back().end = std::max(result.back().end, range.end);
    else
      result.push_back(range);
  }
  return result;
}

/// The columns of a slice that row q, one of its rows, attends to.
Range columnsOf(const MaskSlice &slice, int64_t q) {
  Range columns = slice.kv;
  if (slice.kind == SliceKind::Causal || slice.kind == SliceKind::BiCausal)
    columns.end = std::min(columns.end, slice.kv.end - slice.q.end + q + 1);
  if (slice.kind == SliceKind::InverseCausal || slice.kind == SliceKind::BiCausal)
    columns.begin = std::max(columns.begin, slice.kv.begin + q - slice.q.begin);
  return columns;
}

Status verifyShape(const MaskShape &shape) {
  if (shape.qLen < 0 || shape.kvLen < 0 || shape.tileQ < 1 || shape.tileKV < 1)
    return Status::invalid(fmt::format("the imported mask is {} x {} in tiles of {} x {}; expected sizes of "
                                       "0 or more and tiles of 1 or more",
                                       shape.qLen, shape.kvLen, shape.tileQ, shape.tileKV));
  return Status::ok();
}

} // namespace

StatusOr<std::vector<int32_t>> documentIds(std::span<const int64_t> cumulativeLengths, int64_t length) {
  if (cumulativeLengths.empty() || cumulativeLengths.front() != 0)
    return Status::invalid("cumulative lengths do not begin with 0; expected [0, l0, l0 + l1, ...]");
  for (size_t i = 1; i < cumulativeLengths.size(); ++i)
    if (cumulativeLengths[i] < cumulativeLengths[i - 1])
      return Status::invalid(fmt::format("cumulative length {} is {}; expected {} or more", i, cumulativeLengths[i],
                                         cumulativeLengths[i - 1]));
  if (cumulativeLengths.back() > length)
    return Status::invalid(
        fmt::format("cumulative lengths end at {}; expected at most {}", cumulativeLengths.back(), length));
  std::vector<int32_t> ids(length, static_cast<int32_t>(cumulativeLengths.size()) - 1);
  for (size_t i = 1; i < cumulativeLengths.size(); ++i)
    std::fill(ids.begin() + cumulativeLengths[i - 1], ids.begin() + cumulativeLengths[i], static_cast<int32_t>(i) - 1);
  return ids;
}

StatusOr<BlockMask> fromSlices(std::span<const MaskSlice> slices, const MaskShape &shape) {
  CPFLEX_RETURN_IF_ERROR(verifyShape(shape));
  auto isInside = [](Range range, int64_t length) {
    return range.begin >= 0 && range.begin <= range.end && range.end <= length;
  };
  for (size_t i = 0; i < slices.size(); ++i)
    if (!isInside(slices[i].q, shape.qLen) || !isInside(slices[i].kv, shape.kvLen))
      return Status::invalid(fmt::format("slice {} covers q {}..{}, kv {}..{}; expected it inside {} x {}", i,
                                         slices[i].q.begin, slices[i].q.end, slices[i].kv.begin, slices[i].kv.end,
                                         shape.qLen, shape.kvLen));
  // Slices by their first row, so that each row looks at those that have begun and not ended.
  std::vector<MaskSlice> waiting(slices.begin(), slices.end());
  std::sort(waiting.begin(), waiting.end(),
            [](const MaskSlice &a, const MaskSlice &b) { return a.q.begin < b.q.begin; });
  std::vector<MaskSlice> active;
  size_t next = 0;
  return fromTokenRanges(shape, [&](int64_t q) {
    for (; next < waiting.size() && waiting[next].q.begin <= q; ++next)
      active.push_back(waiting[next]);
    std::erase_if(active, [&](const MaskSlice &slice) { return slice.q.end <= q; });
    std::vector<Range> ranges;
    for (const MaskSlice &slice : active)
      ranges.push_back(columnsOf(slice, q));
    return joined(std::move(ranges));
  });
}

StatusOr<BlockMask> fromFlashMask(std::span<const int32_t> bounds, int64_t numBounds, FlashMaskTriangle triangle,
                                  const MaskShape &shape) {
  CPFLEX_RETURN_IF_ERROR(verifyShape(shape));
  bool isCausal = triangle == FlashMaskTriangle::Causal;
  bool isKnown = isCausal ? numBounds == 1 || numBounds == 2 : numBounds == 2 || numBounds == 4;
  if (!isKnown)
    return Status::invalid(fmt::format("columns have {} bounds; expected {}", numBounds,
                                       isCausal ? "1 or 2 in a causal mask" : "2 or 4 in other masks"));
  if (static_cast<int64_t>(bounds.size()) != shape.kvLen * numBounds)
    return Status::invalid(fmt::format("columns have {} bounds in all; expected {} for each of {} positions",
                                       bounds.size(), numBounds, shape.kvLen));
  // The columns' ranges of rows are those of the transposed mask.
  MaskShape turned{shape.kvLen, shape.qLen, shape.tileKV, shape.tileQ};
  BlockMask mask = fromTokenRanges(turned, [&](int64_t kv) {
    const int32_t *bound = bounds.data() + kv * numBounds;
    // Below the diagonal are the rows from kv on, above it those before.
    int64_t diagonal = std::min(kv, shape.qLen);
    Range lower{bound[0], shape.qLen}, upper{0, 0};
    if (isCausal) {
      upper.end = diagonal;
      if (numBounds == 2)
        lower.end = bound[1];
    } else if (numBounds == 2) {
      upper.end = bound[1];
    } else {
      lower.end = bound[1];
      upper = {bound[2], bound[3]};
    }
    std::vector<Range> hidden =
        joined({intersection(lower, {diagonal, shape.qLen}), intersection(upper, {0, diagonal})});
    std::vector<Range> allowed;
    int64_t begin = 0;
    for (Range range : hidden) {
      allowed.push_back({begin, range.begin});
      begin = range.end;
    }
    allowed.push_back({begin, shape.qLen});
    return joined(std::move(allowed));
  });
  return transpose(mask);
}

} // namespace cpflex
