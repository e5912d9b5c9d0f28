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
constexpr double kBandThresholds[] = {0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0,  2.5,
                                      3.0,  3.5, 4.0,  5.0, 6.0,  8.0, 10.0, 12.0, 16.0};
/// Candidates within this factor of the fastest count as equally fast; the least traffic decides between them.
constexpr double kEquallyFast = 1.01;
/// Layouts beyond the balance tolerance are chosen only when all balanced ones take this many times as long: the rest
/// of a model, and other machines, want balance.
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

  /// The position of a row of the band.
  int64_t positionOf(int64_t row) const {
    size_t tile = size_t(std::upper_bound(rows_.begin(), rows_.end(), row) - rows_.begin()) - 1;
    return tiles_[tile].begin + row - rows_[tile];
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

/// The light rows in several bands, each taken from its start on.
class LightRows {
public:
  explicit LightRows(size_t numBands) : bands_(numBands), taken_(numBands, 0) {}
  Band &band(size_t index) { return bands_[index]; }
  int64_t size() const {
    int64_t total = 0;
    for (size_t i = 0; i < bands_.size(); ++i)
      total += bands_[i].size() - taken_[i];
    return total;
  }

  /// Says which band the next rows come from; those before it follow, then the last, then the others.
  void startWith(size_t first) {
    order_ = {first};
    for (size_t i = 0; i < first; ++i)
      order_.push_back(i);
    if (first + 1 < bands_.size())
      order_.push_back(bands_.size() - 1);
    for (size_t i = first + 1; i + 1 < bands_.size(); ++i)
      order_.push_back(i);
    // Bands that are used up are not looked at again.
    std::erase_if(order_, [&](size_t i) { return bands_[i].size() == taken_[i]; });
  }

  /// Work of the next `count` rows.
  double workOf(int64_t count) const {
    double work = 0.0;
    for (size_t i : order_) {
      const int64_t part = std::min(count, bands_[i].size() - taken_[i]);
      work += bands_[i].workUntil(taken_[i] + part) - bands_[i].workUntil(taken_[i]);
      if ((count -= part) == 0)
        break;
    }
    return work;
  }

  void take(int64_t count, PositionMap &map) {
    for (size_t i : order_) {
      const int64_t part = std::min(count, bands_[i].size() - taken_[i]);
      bands_[i].take(taken_[i], taken_[i] + part, map);
      taken_[i] += part;
      count -= part;
    }
  }

private:
  std::vector<Band> bands_;
  std::vector<int64_t> taken_;
  std::vector<size_t> order_;
};

/// Deals one row of tokens to shards[0 .. worldSize) as two bands. With `firstKeys`, the first key of each tile of
/// rows, light rows that begin where heavy ones do (the head of a long document) go to the ranks of those first: they
/// need nothing that the heavy rows do not.
void dealBands(const std::vector<double> &work, const std::vector<int64_t> *firstKeys, int64_t tile, int64_t length,
               std::span<PositionMap> shards, double threshold, double tolerance) {
  const int64_t worldSize = int64_t(shards.size());
  const double total = std::accumulate(work.begin(), work.end(), 0.0);
  const double meanPerRow = length > 0 ? total / double(length) : 0.0;
  const auto rowsOf = [&](size_t i) { return Range{int64_t(i) * tile, std::min(length, int64_t(i + 1) * tile)}; };
  const auto isHeavy = [&](size_t i) { return work[i] / double(rowsOf(i).size()) > threshold * meanPerRow; };
  // Keys at which heavy rows begin, ascending; light rows of others are the last band.
  std::vector<int64_t> keys;
  for (size_t i = 0; firstKeys && i < work.size(); ++i)
    if (isHeavy(i))
      keys.push_back((*firstKeys)[i]);
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  const auto bandOf = [&](size_t i) {
    if (!firstKeys)
      return size_t(0);
    auto found = std::lower_bound(keys.begin(), keys.end(), (*firstKeys)[i]);
    return found != keys.end() && *found == (*firstKeys)[i] ? size_t(found - keys.begin()) : keys.size();
  };
  Band heavy;
  LightRows light(keys.size() + 1);
  double heaviest = 0.0, done = 0.0;
  for (size_t i = 0; i < work.size(); ++i) {
    const double perRow = work[i] / double(rowsOf(i).size());
    heaviest = std::max(heaviest, perRow);
    (isHeavy(i) ? heavy : light.band(bandOf(i))).add(rowsOf(i), perRow);
  }
  // A cut may be off by half a grain of the heaviest rows.
  int64_t grain = 1;
  while (grain < tile && double(grain) * heaviest <= tolerance * total / double(worldSize))
    grain *= 2;

  const std::vector<int64_t> counts = evenSizes(length, worldSize);
  int64_t heavyBegin = 0;
  for (int64_t rank = 0; rank < worldSize; ++rank) {
    const int64_t count = counts[size_t(rank)];
    const double heavyDone = heavy.workUntil(heavyBegin);
    const double target = (total - done) / double(worldSize - rank);
    light.startWith(heavyBegin < heavy.size() ? bandOf(size_t(heavy.positionOf(heavyBegin) / tile)) : keys.size());
    auto workWith = [&](int64_t numHeavy) {
      return heavy.workUntil(heavyBegin + numHeavy) - heavyDone + light.workOf(count - numHeavy);
    };
    // The work grows with the share of heavy rows: find the last grain below the target, then the nearer neighbour.
    int64_t least = std::max<int64_t>(0, count - light.size());
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
    done += workWith(numHeavy);
    heavy.take(heavyBegin, heavyBegin + numHeavy, shards[size_t(rank)]);
    light.take(count - numHeavy, shards[size_t(rank)]);
    heavyBegin += numHeavy;
    sortPieces(shards[size_t(rank)]);
  }
}

/// The first key of each tile of rows, over all row sets that the request's masks use.
std::vector<int64_t> firstKeysOf(const PlanRequest &request, const BlockMask &mask) {
  std::vector<int64_t> first(size_t(mask.numQTiles()), mask.kvLen);
  std::vector<const BlockMask *> masks = {&mask};
  masks.insert(masks.end(), request.otherMasks.begin(), request.otherMasks.end());
  for (const BlockMask *each : masks)
    for (const TileRows &rows : each->rowSets)
      for (int64_t tile = 0; tile < each->numQTiles(); ++tile)
        if (const int32_t run = rows.rowBegin[size_t(tile)]; run < rows.rowBegin[size_t(tile + 1)])
          first[size_t(tile)] = std::min(first[size_t(tile)], rows.runs[size_t(run)].begin * each->tileKV);
  return first;
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

Layout bandedLayout(const std::vector<std::vector<double>> &work, const std::vector<int64_t> *firstKeys, int64_t tile,
                    int64_t length, int32_t worldSize, double threshold, double tolerance) {
  Layout layout{LayoutKind::Solved, length, worldSize, int64_t(work.size()), {}};
  layout.shards.resize(work.size() * size_t(worldSize));
  for (size_t row = 0; row < work.size(); ++row)
    dealBands(work[row], firstKeys, tile, length,
              std::span(layout.shards).subspan(row * size_t(worldSize), size_t(worldSize)), threshold, tolerance);
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
    const std::vector<int64_t> firstKeys = firstKeysOf(request, mask);
    for (double threshold : kBandThresholds)
      for (const std::vector<int64_t> *keys : {static_cast<const std::vector<int64_t> *>(nullptr), &firstKeys})
        candidates.push_back(
            bandedLayout(work, keys, mask.tileQ, qLen, worldSize, threshold, 0.5 * request.balanceTolerance));
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
