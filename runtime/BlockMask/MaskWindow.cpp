// Windows of masks in tilings of their own: each row of target tiles gathers what the source tiles
// under it cover.
#include "runtime/BlockMask/BlockMaskAlgebra.h"
#include "runtime/BlockMask/RowSetSharing.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace cpflex {

namespace {

/// One row of target tiles while the source rows under it are added.
class GatheredRow {
public:
  /// `columns` are the target's, numRows how many rows of pairs the target row has.
  GatheredRow(int64_t kvLen, int64_t tileKV, int64_t numRows) : kvLen_(kvLen), tileKV_(tileKV), numRows_(numRows) {}

  /// Full pairs in target columns [begin, end) of `rows` rows.
  void addFull(int64_t begin, int64_t end, int64_t rows) {
    int64_t first = begin / tileKV_, last = (end - 1) / tileKV_;
    if (first == last) {
      extraArea_[first] += rows * (end - begin);
      return;
    }
    extraArea_[first] += rows * ((first + 1) * tileKV_ - begin);
    extraArea_[last] += rows * (end - last * tileKV_);
    if (first + 1 < last) {
      coverChanges_[first + 1] += rows;
      coverChanges_[last] -= rows;
    }
  }

  /// A partial source tile in target columns [begin, end); it is whole when no edge of the window
  /// or of a target row cuts it.
  void addPartial(int64_t begin, int64_t end, bool isWhole) {
    int64_t first = begin / tileKV_, last = (end - 1) / tileKV_;
    for (int64_t tile = first; tile <= last; ++tile) {
      bool &isCertain = partial_[tile];
      isCertain |= isWhole && first == last;
    }
  }

  /// Appends the row's runs; returns how many of its tiles are unsettled.
  int64_t moveTo(TileRows &rows) {
    // A column where something changes begins a stretch of equal columns.
    std::map<int64_t, bool> stretches;
    int64_t numTiles = ceilDivide(kvLen_, tileKV_);
    auto cutAround = [&](int64_t tile) {
      stretches[tile] = true;
      if (tile + 1 < numTiles)
        stretches[tile + 1] = true;
    };
    for (auto [tile, change] : coverChanges_)
      stretches[tile] = true;
    for (auto [tile, area] : extraArea_)
      cutAround(tile);
    for (auto [tile, isCertain] : partial_)
      cutAround(tile);
    size_t start = rows.runs.size();
    int64_t covered = 0, unsettled = 0;
    for (auto it = stretches.begin(); it != stretches.end(); ++it) {
      int64_t begin = it->first, end = std::next(it) == stretches.end() ? numTiles : std::next(it)->first;
      if (auto change = coverChanges_.find(begin); change != coverChanges_.end())
        covered += change->second;
      auto extra = extraArea_.find(begin);
      auto partial = partial_.find(begin);
      int64_t width = std::min(tileKV_, kvLen_ - begin * tileKV_);
      int64_t area = covered * width + (extra == extraArea_.end() ? 0 : extra->second);
      TileClass tileClass = area == numRows_ * width ? TileClass::Full
                            : area > 0               ? TileClass::Partial
                                                     : TileClass::Empty;
      if (partial != partial_.end()) {
        tileClass = TileClass::Partial;
        // A whole partial tile decides, and so do full pairs beside certainly empty ones only with
        // it.
        unsettled += !partial->second;
      }
      if (tileClass == TileClass::Empty)
        continue;
      TileRun run{static_cast<int32_t>(begin), static_cast<int32_t>(end), tileClass, 0};
      if (rows.runs.size() > start && rows.runs.back().end == run.begin && rows.runs.back().tileClass == tileClass)
        rows.runs.back().end = run.end;
      else
        rows.runs.push_back(run);
    }
    rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
    return unsettled;
  }

private:
  int64_t kvLen_, tileKV_, numRows_;
  std::map<int64_t, int64_t> coverChanges_; ///< by tile: rows that begin to be covered from here on
  std::map<int64_t, int64_t> extraArea_;    ///< by tile: full pairs besides
  std::map<int64_t, bool> partial_;         ///< by tile: whether a partial source tile lies wholly inside
};

} // namespace

StatusOr<CombinedMask> window(const BlockMask &mask, const MaskWindow &window) {
  if (window.qLen < 0 || window.kvLen < 0 || window.tileQ < 1 || window.tileKV < 1)
    return Status::invalid(fmt::format("the window is {} x {} in tiles of {} x {}; expected sizes of 0 "
                                       "or more and tiles of 1 or more",
                                       window.qLen, window.kvLen, window.tileQ, window.tileKV));
  CombinedMask result;
  BlockMask &out = result.mask;
  out = mask;
  out.residualKey = 0;
  out.qLen = window.qLen;
  out.kvLen = window.kvLen;
  out.tileQ = window.tileQ;
  out.tileKV = window.tileKV;
  Range columns{window.kvBegin, window.kvBegin + window.kvLen};
  for (size_t set = 0; set < mask.rowSets.size(); ++set) {
    const TileRows &source = mask.rowSets[set];
    TileRows rows;
    rows.rowBegin.push_back(0);
    for (int64_t row = 0; row < out.numQTiles(); ++row) {
      Range target{row * out.tileQ, std::min((row + 1) * out.tileQ, out.qLen)};
      GatheredRow gathered(out.kvLen, out.tileKV, target.size());
      Range q = intersection({target.begin + window.qBegin, target.end + window.qBegin}, {0, mask.qLen});
      for (int64_t tile = q.isEmpty() ? 0 : q.begin / mask.tileQ; tile * mask.tileQ < q.end && !q.isEmpty(); ++tile) {
        Range tileRows{tile * mask.tileQ, std::min((tile + 1) * mask.tileQ, mask.qLen)};
        Range common = intersection(tileRows, q);
        for (int32_t i = source.rowBegin[tile]; i < source.rowBegin[tile + 1]; ++i) {
          const TileRun &run = source.runs[i];
          Range kv{run.begin * mask.tileKV, std::min(run.end * mask.tileKV, mask.kvLen)};
          Range shown = intersection(kv, columns);
          if (shown.isEmpty())
            continue;
          if (run.tileClass == TileClass::Full) {
            gathered.addFull(shown.begin - columns.begin, shown.end - columns.begin, common.size());
            continue;
          }
          for (int64_t begin = shown.begin / mask.tileKV * mask.tileKV; begin < shown.end; begin += mask.tileKV) {
            Range whole{begin, std::min(begin + mask.tileKV, mask.kvLen)};
            Range part = intersection(whole, columns);
            gathered.addPartial(part.begin - columns.begin, part.end - columns.begin,
                                common == tileRows && part == whole);
          }
        }
      }
      result.unsettled += gathered.moveTo(rows);
    }
    out.rowSets[set] = std::move(rows);
  }
  shareEqualRowSets(out);
  return result;
}

StatusOr<CombinedMask> slice(const BlockMask &mask, Range q, Range kv) {
  if (q.begin < 0 || q.end > mask.qLen || kv.begin < 0 || kv.end > mask.kvLen || q.begin > q.end || kv.begin > kv.end)
    return Status::invalid(fmt::format("cannot slice rows {}..{} and columns {}..{} of a mask of {} x {}; "
                                       "expected them inside",
                                       q.begin, q.end, kv.begin, kv.end, mask.qLen, mask.kvLen));
  return window(mask, {q.begin, kv.begin, q.size(), kv.size(), mask.tileQ, mask.tileKV});
}

StatusOr<CombinedMask> retile(const BlockMask &mask, int64_t tileQ, int64_t tileKV) {
  return window(mask, {0, 0, mask.qLen, mask.kvLen, tileQ, tileKV});
}

StatusOr<CombinedMask> shift(const BlockMask &mask, int64_t qOffset, int64_t kvOffset) {
  return window(mask, {-qOffset, -kvOffset, mask.qLen, mask.kvLen, mask.tileQ, mask.tileKV});
}

} // namespace cpflex
