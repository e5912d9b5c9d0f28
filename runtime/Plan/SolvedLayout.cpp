// Candidate layouts, their scores and the choice; see SolvedLayout.h.
#include "runtime/Plan/SolvedLayout.h"
#include "runtime/Plan/Layouts.h"
#include "runtime/Plan/NeedSets.h"

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace cpflex {
namespace {

/// Thresholds of banded candidates, in multiples of the mean work of a row.
constexpr double kBandThresholds[] = {0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
/// Candidates within this factor of the fastest count as equally fast; the least traffic decides between them.
constexpr double kEquallyFast = 1.01;
/// Layouts beyond the balance tolerance are chosen only when all balanced ones take this many times as long: the rest of
/// a model, and other machines, want balance.
constexpr double kMuchFaster = 1.5;

/// One band: rows in order of position, with prefix sums of rows and work at tile boundaries.
class Band {
public:
  void add(Range rows, double workPerRow) {
    if (rows.isEmpty())
      return;
    tiles_.push_back(rows);
    perRow_.push_back(workPerRow);
    rows_.push_back(rows_.back() + rows.size());
    work_.push_back(work_.back() + workPerRow * double(rows.size()));
  }
  int64_t size() const { return rows_.back(); }
  double total() const { return work_.back(); }

  /// Work of the first `count` rows.
  double workUntil(int64_t count) const {
    if (count >= size())
      return total();
    size_t tile = size_t(std::upper_bound(rows_.begin(), rows_.end(), count) - rows_.begin()) - 1;
    return work_[tile] + perRow_[tile] * double(count - rows_[tile]);
  }

  /// Appends the rows numbered [begin, end) within the band to `map` as pieces of positions.
  void take(int64_t begin, int64_t end, PositionMap &map) const {
    if (begin >= end)
      return;
    size_t tile = size_t(std::upper_bound(rows_.begin(), rows_.end(), begin) - rows_.begin()) - 1;
    for (; begin < end; ++tile) {
      int64_t count = std::min(end, rows_[tile + 1]) - begin;
      map.pieces.push_back({tiles_[tile].begin + begin - rows_[tile], count, 1});
      begin += count;
    }
  }

private:
  std::vector<Range> tiles_;
  std::vector<double> perRow_;
  std::vector<int64_t> rows_ = {0};
  std::vector<double> work_ = {0.0};
};

void sortPieces(PositionMap &map) {
  std::sort(map.pieces.begin(), map.pieces.end(),
            [](const AffinePiece &a, const AffinePiece &b) { return a.begin < b.begin; });
  map = compacted(std::move(map));
}

/// Deals one row of tokens to shards[0 .. worldSize) as two bands.
void dealBands(const std::vector<double> &work, int64_t tile, int64_t length, std::span<PositionMap> shards,
               double threshold, double tolerance) {
  const int64_t worldSize = int64_t(shards.size());
  const double total = std::accumulate(work.begin(), work.end(), 0.0);
  const double meanPerRow = length > 0 ? total / double(length) : 0.0;
  Band heavy, light;
  double heaviest = 0.0;
  for (size_t i = 0; i < work.size(); ++i) {
    Range rows = {int64_t(i) * tile, std::min(length, int64_t(i + 1) * tile)};
    double perRow = work[i] / double(rows.size());
    heaviest = std::max(heaviest, perRow);
    (perRow > threshold * meanPerRow ? heavy : light).add(rows, perRow);
  }
  // A cut may be off by half a grain of the heaviest rows.
  int64_t grain = 1;
  while (grain < tile && double(grain) * heaviest <= tolerance * total / double(worldSize))
    grain *= 2;

  const std::vector<int64_t> counts = evenSizes(length, worldSize);
  int64_t heavyBegin = 0, lightBegin = 0;
  for (int64_t rank = 0; rank < worldSize; ++rank) {
    const int64_t count = counts[size_t(rank)];
    const double heavyDone = heavy.workUntil(heavyBegin), lightDone = light.workUntil(lightBegin);
    const double target = (total - heavyDone - lightDone) / double(worldSize - rank);
    auto workWith = [&](int64_t numHeavy) {
      return heavy.workUntil(heavyBegin + numHeavy) - heavyDone + light.workUntil(lightBegin + count - numHeavy) -
             lightDone;
    };
    // The work grows with the share of heavy rows: find the last grain below the target, then the nearer neighbour.
    int64_t least = std::max<int64_t>(0, count - (light.size() - lightBegin));
    int64_t most = std::min(count, heavy.size() - heavyBegin);
    int64_t low = 0, high = (most - least) / grain;
    while (low < high) {
      int64_t middle = (low + high + 1) / 2;
      if (workWith(least + middle * grain) <= target)
        low = middle;
      else
        high = middle - 1;
    }
    int64_t numHeavy = least + low * grain, next = std::min(most, numHeavy + grain);
    if (workWith(next) - target < target - workWith(numHeavy))
      numHeavy = next;
    heavy.take(heavyBegin, heavyBegin + numHeavy, shards[size_t(rank)]);
    light.take(lightBegin, lightBegin + count - numHeavy, shards[size_t(rank)]);
    heavyBegin += numHeavy;
    lightBegin += count - numHeavy;
    sortPieces(shards[size_t(rank)]);
  }
}

std::vector<const BlockMask *> allMasks(const PlanRequest &request, const BlockMask &mask) {
  std::vector<const BlockMask *> masks = {&mask};
  masks.insert(masks.end(), request.otherMasks.begin(), request.otherMasks.end());
  return masks;
}

/// Work of each row of tiles of one row set.
void addTileWork(const BlockMask &mask, const TileRows &rows, double uses, std::vector<double> &work) {
  for (int64_t tile = 0; tile < mask.numQTiles(); ++tile) {
    int64_t width = 0;
    for (int32_t i = rows.rowBegin[size_t(tile)]; i < rows.rowBegin[size_t(tile + 1)]; ++i)
      width += std::min(mask.kvLen, rows.runs[size_t(i)].end * mask.tileKV) - rows.runs[size_t(i)].begin * mask.tileKV;
    int64_t count = std::min(mask.qLen, (tile + 1) * mask.tileQ) - tile * mask.tileQ;
    work[size_t(tile)] += uses * double(width) * double(count);
  }
}

} // namespace

std::vector<std::vector<double>> tileWork(const PlanRequest &request, const BlockMask &mask) {
  const std::vector<const BlockMask *> masks = allMasks(request, mask);
  const Layout whole = contiguousLayout(mask.qLen, 1), wholeKV = contiguousLayout(mask.kvLen, 1);
  bool isAlike = true;
  for (const BlockMask *each : masks)
    isAlike &= batchGroups(*each, request.shape, whole, wholeKV).size() <= 1;
  std::vector<std::vector<double>> work(isAlike ? 1 : size_t(request.shape.batch),
                                        std::vector<double>(size_t(mask.numQTiles()), 0.0));
  for (const BlockMask *each : masks)
    for (const BatchGroup &group : batchGroups(*each, request.shape, whole, wholeKV))
      for (size_t set = 0; set < group.rowSets.size(); ++set)
        for (int64_t b = group.batch.begin; b < (isAlike ? group.batch.begin + 1 : group.batch.end); ++b)
          addTileWork(*each, each->rowSets[size_t(group.rowSets[set])],
                      double(group.numUses[set]) / double(group.batch.size()), work[isAlike ? 0 : size_t(b)]);
  return work;
}

LayoutScore scoreLayout(const PlanRequest &request, const BlockMask &mask, const Layout &qLayout,
                        const Layout &kvLayout) {
  const int32_t worldSize = qLayout.worldSize;
  std::vector<double> work(size_t(worldSize), 0.0);
  std::vector<int64_t> received(size_t(worldSize), 0), sent(size_t(worldSize), 0);
  for (const BlockMask *each : allMasks(request, mask))
    for (const BatchGroup &group : batchGroups(*each, request.shape, qLayout, kvLayout)) {
      const OwnerIndex owners(kvLayout, group.batch.begin);
      std::vector<double> widths(size_t(each->numQTiles()), 0.0);
      for (size_t set = 0; set < group.rowSets.size(); ++set)
        addTileWork(*each, each->rowSets[size_t(group.rowSets[set])], double(group.numUses[set]), widths);
      for (int32_t rank = 0; rank < worldSize; ++rank) {
        const PositionMap &shard = qLayout.shard(group.batch.begin, rank);
        for (const OwnedTileRows &owned : ownedTiles(shard, each->tileQ)) {
          int64_t count = std::min(each->qLen, (owned.tile + 1) * each->tileQ) - owned.tile * each->tileQ;
          work[size_t(rank)] += widths[size_t(owned.tile)] * double(owned.count) / double(count);
        }
        for (Range range : needOfShard(*each, group, shard))
          owners.visit(range, [&](int32_t owner, Range rows) {
            if (owner == rank)
              return;
            received[size_t(rank)] += rows.size() * group.batch.size();
            sent[size_t(owner)] += rows.size() * group.batch.size();
          });
      }
    }
  LayoutScore score;
  score.maxWork = *std::max_element(work.begin(), work.end());
  score.meanWork = std::accumulate(work.begin(), work.end(), 0.0) / double(worldSize);
  score.maxReceivedRows = *std::max_element(received.begin(), received.end());
  score.totalReceivedRows = std::accumulate(received.begin(), received.end(), int64_t(0));
  score.maxSentRows = *std::max_element(sent.begin(), sent.end());
  // Work up to the tolerance counts as balanced, so that traffic decides between balanced layouts.
  const double flopsPerPair = 2.0 * double(request.shape.headDim + request.shape.vHeadDim);
  const double rowBytes = double(request.shape.kvHeads * bytesPerRow(Payload::KV, request.shape));
  const double floor = (1.0 + request.balanceTolerance) * score.meanWork;
  for (size_t rank = 0; rank < work.size(); ++rank) {
    double compute = std::max(work[rank], floor) * flopsPerPair / request.cost.flopsPerSecond;
    double traffic = double(std::max(received[rank], sent[rank])) * rowBytes / request.cost.bytesPerSecond;
    score.seconds = std::max({score.seconds, compute, traffic});
  }
  return score;
}

Layout bandedLayout(const std::vector<std::vector<double>> &work, int64_t tile, int64_t length, int32_t worldSize,
                    double threshold, double tolerance) {
  Layout layout{LayoutKind::Solved, length, worldSize, int64_t(work.size()), {}};
  layout.shards.resize(work.size() * size_t(worldSize));
  for (size_t row = 0; row < work.size(); ++row)
    dealBands(work[row], tile, length, std::span(layout.shards).subspan(row * size_t(worldSize), size_t(worldSize)),
              threshold, tolerance);
  return layout;
}

Layout contiguousByWork(const std::vector<double> &work, int64_t tile, int64_t length, int32_t worldSize) {
  Layout layout{LayoutKind::Solved, length, worldSize, 1, {}};
  const double total = std::accumulate(work.begin(), work.end(), 0.0);
  double done = 0.0;
  int64_t begin = 0;
  size_t next = 0;
  for (int32_t rank = 0; rank < worldSize; ++rank) {
    const double target = total * double(rank + 1) / double(worldSize);
    while (next < work.size() && done + 0.5 * work[next] <= target)
      done += work[next++];
    int64_t end = rank + 1 == worldSize ? length : std::min(length, int64_t(next) * tile);
    layout.shards.push_back(compacted({{{begin, std::max<int64_t>(0, end - begin), 1}}}));
    begin = std::max(begin, end);
  }
  return layout;
}

StatusOr<LayoutPair> chooseLayouts(const PlanRequest &request, const BlockMask &mask) {
  const int64_t qLen = request.shape.qLen, kvLen = request.shape.kvLen;
  const int32_t worldSize = request.worldSize;
  auto kvLayoutFor = [&](const Layout &q) {
    return request.kvLayout ? *request.kvLayout : qLen == kvLen ? q : contiguousLayout(kvLen, worldSize);
  };
  if (request.qLayout)
    return LayoutPair{*request.qLayout, kvLayoutFor(*request.qLayout)};

  const std::vector<std::vector<int64_t>> offsets =
      !request.documentOffsets.empty() ? request.documentOffsets : documentOffsets(mask);
  const LayoutKind kind = request.layout.value_or(LayoutKind::Solved);
  StatusOr<Layout> made = Status::invalid("");
  switch (kind) {
  case LayoutKind::Contiguous: made = contiguousLayout(qLen, worldSize); break;
  case LayoutKind::HeadTail: made = headTailLayout(qLen, worldSize); break;
  case LayoutKind::Striped: made = stripedLayout(qLen, worldSize); break;
  case LayoutKind::PerDocument: made = perDocumentLayout(offsets, qLen, worldSize); break;
  case LayoutKind::Ptrr: made = ptrrLayout(tileWork(request, mask), mask.tileQ, qLen, worldSize); break;
  case LayoutKind::Custom:
    made = Status::invalid("layout 'custom' without shards; expected the layout itself in 'qLayout'");
    break;
  case LayoutKind::Solved: break;
  }
  if (kind != LayoutKind::Solved) {
    if (!made)
      return made.status();
    Layout kv = kvLayoutFor(*made);
    return LayoutPair{std::move(*made), std::move(kv)};
  }

  // Simple layouts come first, so that they win ties.
  const std::vector<std::vector<double>> work = tileWork(request, mask);
  std::vector<Layout> candidates = {contiguousLayout(qLen, worldSize)};
  if (worldSize > 1) {
    candidates.push_back(headTailLayout(qLen, worldSize));
    if (request.tokenCounts == TokenCounts::Free && work.size() == 1)
      candidates.push_back(contiguousByWork(work[0], mask.tileQ, qLen, worldSize));
    for (double threshold : kBandThresholds)
      candidates.push_back(
          bandedLayout(work, mask.tileQ, qLen, worldSize, threshold, 0.5 * request.balanceTolerance));
  }
  std::vector<LayoutScore> scores;
  for (const Layout &candidate : candidates)
    scores.push_back(scoreLayout(request, mask, candidate, kvLayoutFor(candidate)));
  auto isBalanced = [&](const LayoutScore &score) {
    return score.maxWork <= (1.0 + request.balanceTolerance) * score.meanWork;
  };
  // Dealing row by row balances what bands cannot, at the price of traffic.
  if (worldSize > 1 && std::none_of(scores.begin(), scores.end(), isBalanced))
    if (StatusOr<Layout> ptrr = ptrrLayout(work, mask.tileQ, qLen, worldSize)) {
      candidates.push_back(std::move(*ptrr));
      scores.push_back(scoreLayout(request, mask, candidates.back(), kvLayoutFor(candidates.back())));
    }
  auto cost = [&](const LayoutScore &score) { return score.seconds * (isBalanced(score) ? 1.0 : kMuchFaster); };
  double fastest = cost(scores[0]);
  for (const LayoutScore &score : scores)
    fastest = std::min(fastest, cost(score));
  auto trafficOf = [&](const LayoutScore &score) {
    return score.totalReceivedRows / worldSize + score.maxReceivedRows;
  };
  size_t best = candidates.size();
  for (size_t i = 0; i < candidates.size(); ++i)
    if (cost(scores[i]) <= kEquallyFast * fastest &&
        (best == candidates.size() || trafficOf(scores[i]) < trafficOf(scores[best])))
      best = i;
  Layout kv = kvLayoutFor(candidates[best]);
  return LayoutPair{std::move(candidates[best]), std::move(kv)};
}

} // namespace cpflex
