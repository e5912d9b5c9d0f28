// Emits the transfers and computes of each rotation; see Rotations.h.
#include "runtime/Plan/Rotations.h"
#include "runtime/Plan/Layouts.h"

#include <algorithm>
#include <tuple>

namespace cpflex {
namespace {

/// Keys are gathered in whole tiles of this many positions in ascending order: the tiles of CPU and GPU attention.
constexpr int64_t kGatherTile = 128;

bool comesBefore(const OwnedRows &a, const OwnedRows &b) {
  return a.owner != b.owner ? a.owner < b.owner : a.rows.begin < b.rows.begin;
}

/// Collects slabs into one transfer per step, source, destination and payload.
class TransferTable {
public:
  TransferTable(const CallShape &shape) : shape_(shape) {}
  void add(int32_t step, int32_t source, int32_t destination, Payload payload, Slab slab) {
    if (!slab.rows.isEmpty() && !slab.heads.isEmpty() && !slab.batch.isEmpty())
      slabs_[{step, source, destination, int(payload)}].push_back(slab);
  }
  std::vector<Transfer> take() {
    std::vector<Transfer> transfers;
    for (auto &[key, slabs] : slabs_) {
      auto [step, source, destination, payload] = key;
      Transfer transfer{step, source, destination, Payload(payload), 0, std::move(slabs)};
      for (const Slab &slab : transfer.slabs)
        transfer.sizeInBytes +=
            slab.batch.size() * slab.heads.size() * slab.rows.size() * bytesPerRow(transfer.payload, shape_);
      transfers.push_back(std::move(transfer));
    }
    return transfers;
  }

private:
  CallShape shape_;
  std::map<std::tuple<int32_t, int32_t, int32_t, int>, std::vector<Slab>> slabs_;
};

/// Sorts rows by the global position of the first of them.
void sortByPosition(std::vector<OwnedRows> &rows, const Layout &layout, int64_t b) {
  std::vector<std::pair<int64_t, OwnedRows>> keyed;
  for (const OwnedRows &each : rows)
    keyed.push_back({slice(layout.shard(b, each.owner), {each.rows.begin, each.rows.begin + 1}).pieces[0].begin, each});
  std::sort(keyed.begin(), keyed.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
  for (size_t i = 0; i < rows.size(); ++i)
    rows[i] = keyed[i].second;
}

/// Renumbers steps so that each has a transfer or a compute, and sorts.
void finish(Schedule &schedule) {
  std::vector<int32_t> steps;
  for (const Transfer &transfer : schedule.transfers)
    steps.push_back(transfer.step);
  for (const Compute &compute : schedule.computes)
    steps.push_back(compute.step);
  std::sort(steps.begin(), steps.end());
  steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
  auto renumbered = [&](int32_t step) {
    return int32_t(std::lower_bound(steps.begin(), steps.end(), step) - steps.begin());
  };
  for (Transfer &transfer : schedule.transfers)
    transfer.step = renumbered(transfer.step);
  for (Compute &compute : schedule.computes)
    compute.step = renumbered(compute.step);
  schedule.numSteps = int32_t(steps.size());
  std::sort(schedule.computes.begin(), schedule.computes.end(), [](const Compute &a, const Compute &b) {
    return std::tie(a.step, a.rank, a.batch.begin, a.heads.begin) <
           std::tie(b.step, b.rank, b.batch.begin, b.heads.begin);
  });
}

/// All rows of a rank's query shard.
std::vector<OwnedRows> ownQueries(const Schedule &schedule, int32_t rank) {
  Range rows = {0, schedule.qLayout.shardSize(rank)};
  return rows.isEmpty() ? std::vector<OwnedRows>() : std::vector<OwnedRows>{{rank, rows}};
}

/// Adds the computes of one rank and group for which the keys of `owners` have arrived.
struct ComputeTable {
  std::map<std::tuple<int32_t, int32_t, size_t>, Compute> computes; ///< by step, rank, group
  Compute &at(const Schedule &schedule, int32_t step, int32_t rank, size_t index, const GroupNeeds &needs) {
    Compute &compute = computes[{step, rank, index}];
    if (compute.q.empty()) {
      compute.step = step;
      compute.rank = rank;
      compute.batch = needs.group.batch;
      compute.heads = {0, schedule.shape.qHeads};
      compute.q = ownQueries(schedule, rank);
    }
    return compute;
  }
  void addKeys(Compute &compute, const GroupNeeds &needs, int32_t owner) {
    const std::vector<OwnedRows> &rows = needs.rows[size_t(compute.rank)];
    auto first = std::lower_bound(rows.begin(), rows.end(), OwnedRows{owner, {0, 0}}, comesBefore);
    for (; first != rows.end() && first->owner == owner; ++first)
      compute.kv.push_back(*first);
    if (auto work = needs.workBy[size_t(compute.rank)].find(owner); work != needs.workBy[size_t(compute.rank)].end())
      compute.work += work->second;
  }
  std::vector<Compute> take(const Schedule &schedule) {
    std::vector<Compute> result;
    for (auto &[key, compute] : computes) {
      if (compute.q.empty())
        continue;
      sortByPosition(compute.kv, schedule.kvLayout, compute.batch.begin);
      result.push_back(std::move(compute));
    }
    return result;
  }
};

/// Owners of the keys that a rank needs, itself excluded.
std::vector<int32_t> foreignOwners(const GroupNeeds &needs, int32_t rank) {
  std::vector<int32_t> owners;
  for (const OwnedRows &rows : needs.rows[size_t(rank)])
    if (rows.owner != rank && (owners.empty() || owners.back() != rows.owner))
      owners.push_back(rows.owner);
  return owners;
}

/// Rows of one owner in a joined list.
std::vector<Range> rowsOf(const std::vector<OwnedRows> &rows, int32_t owner) {
  std::vector<Range> result;
  for (const OwnedRows &each : joined(rows))
    if (each.owner == owner)
      result.push_back(each.rows);
  return result;
}

/// The gradient of foreign keys goes home one step after it was computed.
void returnKeyGradients(const Schedule &schedule, TransferTable &transfers) {
  for (const Compute &compute : schedule.computes) {
    std::vector<OwnedRows> rows = compute.kv;
    std::sort(rows.begin(), rows.end(), comesBefore);
    for (const OwnedRows &each : joined(rows))
      if (each.owner != compute.rank)
        transfers.add(compute.step + 1, compute.rank, each.owner, Payload::DKV,
                      {each.owner, compute.batch, {0, schedule.shape.kvHeads}, each.rows});
  }
}

/// The schedule of these computes and transfers of keys; in backward the gradients of keys go back to their owners.
Schedule completed(Schedule schedule, ComputeTable &computes, TransferTable &transfers) {
  schedule.computes = computes.take(schedule);
  if (schedule.pass == Pass::Backward)
    returnKeyGradients(schedule, transfers);
  schedule.transfers = transfers.take();
  finish(schedule);
  return schedule;
}

} // namespace

std::vector<OwnedRows> joined(const std::vector<OwnedRows> &rows) {
  std::vector<OwnedRows> result;
  for (const OwnedRows &each : rows) {
    if (!result.empty() && result.back().owner == each.owner && result.back().rows.end == each.rows.begin)
      result.back().rows.end = each.rows.end;
    else
      result.push_back(each);
  }
  return result;
}

Slab commonPart(const Slab &a, const Slab &b) {
  if (a.owner != b.owner)
    return {};
  return {a.owner, intersection(a.batch, b.batch), intersection(a.heads, b.heads), intersection(a.rows, b.rows)};
}

bool isEmpty(const Slab &slab) { return slab.batch.isEmpty() || slab.heads.isEmpty() || slab.rows.isEmpty(); }

std::vector<GroupNeeds> groupNeeds(const PlanRequest &request, const BlockMask &mask, const Layout &qLayout,
                                   const Layout &kvLayout) {
  std::vector<GroupNeeds> result;
  const int32_t worldSize = qLayout.worldSize;
  for (BatchGroup &group : batchGroups(mask, request.shape, qLayout, kvLayout)) {
    const int64_t b = group.batch.begin;
    const OwnerIndex owners(kvLayout, b);
    GroupNeeds needs{group, {}, {}, {}, {}};
    needs.workBy.resize(size_t(worldSize));
    for (int32_t rank = 0; rank < worldSize; ++rank) {
      const PositionMap &shard = qLayout.shard(b, rank);
      RangeSet own;
      for (const AffinePiece &piece : kvLayout.shard(b, rank).pieces)
        if (piece.step == 1)
          own.push_back({piece.begin, piece.begin + piece.count});
      RangeSet need = request.needPrecision == NeedPrecision::Token && request.keyOrder == KeyOrder::Arrival
                          ? exactNeedOfShard(mask, group, shard, normalized(own), request)
                          : needOfShard(mask, group, shard);
      if (request.keyOrder == KeyOrder::Ascending) {
        for (Range &range : need)
          range = {range.begin / kGatherTile * kGatherTile,
                   std::min(mask.kvLen, ceilDivide(range.end, kGatherTile) * kGatherTile)};
        need = normalized(std::move(need));
      }
      std::vector<OwnedRows> rows;
      for (Range range : need)
        owners.visit(range, [&](int32_t owner, Range local) { rows.push_back({owner, local}); });
      std::sort(rows.begin(), rows.end(), comesBefore);
      needs.need.push_back(std::move(need));
      needs.rows.push_back(std::move(rows));
      // Work against each owner's keys, tile row by tile row.
      std::map<int32_t, double> &workBy = needs.workBy[size_t(rank)];
      for (size_t set = 0; set < group.rowSets.size(); ++set) {
        const TileRows &tiles = mask.rowSets[size_t(group.rowSets[set])];
        for (const OwnedTileRows &owned : ownedTiles(shard, mask.tileQ))
          for (int32_t i = tiles.rowBegin[size_t(owned.tile)]; i < tiles.rowBegin[size_t(owned.tile + 1)]; ++i) {
            const TileRun &run = tiles.runs[size_t(i)];
            owners.visit({run.begin * mask.tileKV, std::min(mask.kvLen, run.end * mask.tileKV)},
                         [&](int32_t owner, Range local) {
                           workBy[owner] += double(owned.count) * double(local.size()) * double(group.numUses[set]);
                         });
          }
      }
    }
    for (int64_t h = 0; h < request.shape.qHeads; ++h) {
      const TileRows &tiles = mask.rows(mask.batch == 1 ? 0 : b, mask.heads == 1 ? 0 : h);
      double work = 0.0;
      for (int64_t tile = 0; tile < mask.numQTiles(); ++tile)
        for (int32_t i = tiles.rowBegin[size_t(tile)]; i < tiles.rowBegin[size_t(tile + 1)]; ++i)
          work += double(std::min(mask.qLen, (tile + 1) * mask.tileQ) - tile * mask.tileQ) *
                  double(std::min(mask.kvLen, tiles.runs[size_t(i)].end * mask.tileKV) -
                         tiles.runs[size_t(i)].begin * mask.tileKV);
      needs.workOfHead.push_back(work);
      if (mask.heads == 1) {
        needs.workOfHead.assign(size_t(request.shape.qHeads), work);
        break;
      }
    }
    result.push_back(std::move(needs));
  }
  return result;
}

Schedule directSchedule(const PlanRequest &request, const std::vector<GroupNeeds> &needs, Schedule schedule) {
  const int32_t worldSize = schedule.worldSize;
  const bool isAllGather = schedule.rotation == Rotation::AllGather;
  const bool isGatheredFirst = schedule.keyOrder == KeyOrder::Ascending;
  const Range kvHeads = {0, schedule.shape.kvHeads};
  // 1. Bytes by distance from owner to user, then distances in at most maxSteps exchanges of similar size.
  std::vector<double> rowsAt(size_t(worldSize), 0.0);
  double total = 0.0;
  for (const GroupNeeds &group : needs)
    for (int32_t rank = 0; rank < worldSize; ++rank)
      for (const OwnedRows &rows : group.rows[size_t(rank)])
        if (rows.owner != rank) {
          rowsAt[size_t((rank - rows.owner + worldSize) % worldSize)] += double(rows.rows.size());
          total += double(rows.rows.size());
        }
  std::vector<int32_t> stepOf(size_t(worldSize), 0);
  if (!isGatheredFirst) {
    const int32_t maxSteps = std::max<int32_t>(1, request.maxSteps);
    double done = 0.0;
    int32_t step = -1, last = -1;
    for (int32_t distance = 1; distance < worldSize; ++distance) {
      if (rowsAt[size_t(distance)] == 0.0)
        continue;
      // The exchange in which the middle of this distance's rows falls, and no gaps between exchanges.
      int32_t wanted = int32_t((done + 0.5 * rowsAt[size_t(distance)]) / total * maxSteps);
      if (worldSize - 1 <= maxSteps || wanted != last)
        ++step;
      last = wanted;
      stepOf[size_t(distance)] = step;
      done += rowsAt[size_t(distance)];
    }
  }
  // 2. Transfers from owners, computes one step later; local keys in step 0 unless everything is gathered first.
  TransferTable transfers(schedule.shape);
  ComputeTable computes;
  for (size_t index = 0; index < needs.size(); ++index) {
    const GroupNeeds &group = needs[index];
    for (int32_t rank = 0; rank < worldSize; ++rank) {
      Compute &local = computes.at(schedule, isGatheredFirst ? 1 : 0, rank, index, group);
      computes.addKeys(local, group, rank);
      for (int32_t owner : foreignOwners(group, rank)) {
        const int32_t step = stepOf[size_t((rank - owner + worldSize) % worldSize)];
        if (!isAllGather)
          for (Range rows : rowsOf(group.rows[size_t(rank)], owner))
            transfers.add(step, owner, rank, Payload::KV, {owner, group.group.batch, kvHeads, rows});
        computes.addKeys(computes.at(schedule, step + 1, rank, index, group), group, owner);
      }
      if (isAllGather && total > 0.0)
        for (int32_t owner = 0; owner < worldSize; ++owner)
          if (owner != rank)
            transfers.add(0, owner, rank, Payload::KV,
                          {owner, group.group.batch, kvHeads, {0, schedule.kvLayout.shardSize(owner)}});
    }
  }
  return completed(std::move(schedule), computes, transfers);
}

Schedule ringSchedule(const PlanRequest &, const std::vector<GroupNeeds> &needs, Schedule schedule) {
  const int32_t worldSize = schedule.worldSize;
  TransferTable transfers(schedule.shape);
  ComputeTable computes;
  for (size_t index = 0; index < needs.size(); ++index) {
    const GroupNeeds &group = needs[index];
    for (int32_t rank = 0; rank < worldSize; ++rank)
      computes.addKeys(computes.at(schedule, 0, rank, index, group), group, rank);
    for (int32_t owner = 0; owner < worldSize; ++owner) {
      // From the far end of the ring back to the owner: a hop carries what this rank or a later one needs.
      RangeSet carried;
      for (int32_t distance = worldSize - 1; distance >= 1; --distance) {
        const int32_t rank = (owner + distance) % worldSize;
        const std::vector<Range> needed = rowsOf(group.rows[size_t(rank)], owner);
        carried = unionOf(carried, needed);
        for (Range rows : carried)
          transfers.add(distance - 1, (rank + worldSize - 1) % worldSize, rank, Payload::KV,
                        {owner, group.group.batch, {0, schedule.shape.kvHeads}, rows});
        if (!needed.empty())
          computes.addKeys(computes.at(schedule, distance, rank, index, group), group, owner);
      }
    }
  }
  return completed(std::move(schedule), computes, transfers);
}

Schedule ulyssesSchedule(const PlanRequest &, const std::vector<GroupNeeds> &needs, Schedule schedule) {
  const int32_t worldSize = schedule.worldSize;
  const CallShape &shape = schedule.shape;
  if (shape.qLen == 0) { // nobody computes, so nothing is sent for it
    finish(schedule);
    return schedule;
  }
  const int64_t headsPerKV = std::max<int64_t>(1, shape.qHeads / std::max<int64_t>(1, shape.kvHeads));
  const bool isBackward = schedule.pass == Pass::Backward;
  const std::vector<int64_t> numHeads = evenSizes(shape.qHeads, worldSize);
  TransferTable transfers(shape);
  int64_t head = 0;
  for (int32_t rank = 0; rank < worldSize; ++rank) {
    const Range heads = {head, head + numHeads[size_t(rank)]};
    head = heads.end;
    if (heads.isEmpty())
      continue;
    const Range kvHeads = {heads.begin / headsPerKV, (heads.end - 1) / headsPerKV + 1};
    for (const GroupNeeds &group : needs) {
      const Range batch = group.group.batch;
      std::vector<OwnedRows> q, kv;
      for (int32_t owner = 0; owner < worldSize; ++owner) {
        const Range qRows = {0, schedule.qLayout.shardSize(owner)}, kvRows = {0, schedule.kvLayout.shardSize(owner)};
        // Pieces one by one, so that rows sort by position.
        for (auto [layout, list] : {std::pair(&schedule.qLayout, &q), std::pair(&schedule.kvLayout, &kv)}) {
          int64_t row = 0;
          for (const AffinePiece &piece : layout->shard(batch.begin, owner).pieces) {
            list->push_back({owner, {row, row + piece.count}});
            row += piece.count;
          }
        }
        if (owner == rank)
          continue;
        transfers.add(0, owner, rank, isBackward ? Payload::QGradient : Payload::Q, {owner, batch, heads, qRows});
        transfers.add(0, owner, rank, Payload::KV, {owner, batch, kvHeads, kvRows});
        transfers.add(2, rank, owner, isBackward ? Payload::DQ : Payload::Out, {owner, batch, heads, qRows});
        if (isBackward)
          transfers.add(2, rank, owner, Payload::DKV, {owner, batch, kvHeads, kvRows});
      }
      sortByPosition(q, schedule.qLayout, batch.begin);
      sortByPosition(kv, schedule.kvLayout, batch.begin);
      // One call per kv head, so that the query heads of a call share keys evenly.
      for (int64_t kvHead = kvHeads.begin; kvHead < kvHeads.end; ++kvHead) {
        const Range part = intersection(heads, {kvHead * headsPerKV, (kvHead + 1) * headsPerKV});
        Compute compute{1, rank, batch, part, 0.0, q, kv};
        for (int64_t h = part.begin; h < part.end; ++h)
          compute.work += group.workOfHead[size_t(h)] * double(batch.size());
        schedule.computes.push_back(std::move(compute));
      }
    }
  }
  schedule.transfers = transfers.take();
  finish(schedule);
  return schedule;
}

} // namespace cpflex
