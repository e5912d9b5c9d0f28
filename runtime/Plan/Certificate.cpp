// Loads, peak bytes and bounds; see Certificate.h.
#include "runtime/Plan/Certificate.h"

#include <algorithm>
#include <numeric>

namespace cpflex {
namespace {

bool isResult(Payload payload) { return payload == Payload::Out || payload == Payload::DQ || payload == Payload::DKV; }

/// For each rank, its transfers in and out and its computes, in schedule order.
struct RankParts {
  std::vector<int32_t> in, out, computes;
};

std::vector<RankParts> partsOfRanks(const Schedule &schedule) {
  std::vector<RankParts> parts(static_cast<size_t>(schedule.worldSize));
  for (size_t i = 0; i < schedule.transfers.size(); ++i) {
    parts[size_t(schedule.transfers[i].source)].out.push_back(int32_t(i));
    parts[size_t(schedule.transfers[i].destination)].in.push_back(int32_t(i));
  }
  for (size_t i = 0; i < schedule.computes.size(); ++i)
    parts[size_t(schedule.computes[i].rank)].computes.push_back(int32_t(i));
  return parts;
}

int64_t rowsOfOperand(const std::vector<OwnedRows> &operand) {
  int64_t total = 0;
  for (const OwnedRows &rows : operand)
    total += rows.rows.size();
  return total;
}

/// Rows by attended width, widest first: the rows that some rank must take.
struct WideRows {
  int64_t width = 0, count = 0;
  double work = 0.0; ///< of all `count` rows
};

/// The least total (and worst) number of foreign rows that ranks receive when none takes more than `maxRows` query
/// rows, owns more than `maxOwn` kv rows or does more work than `maxWork`: the k-th widest rank has a row at least as
/// wide as the widest that the first k - 1 ranks cannot take.
std::pair<int64_t, int64_t> receivedBound(std::vector<WideRows> rows, int32_t worldSize, int64_t maxRows,
                                          int64_t maxOwn, double maxWork) {
  std::sort(rows.begin(), rows.end(), [](const WideRows &a, const WideRows &b) { return a.width > b.width; });
  int64_t total = 0, worst = 0, count = 0;
  double work = 0.0;
  size_t next = 0;
  for (int32_t taken = 0; taken < worldSize; ++taken) {
    // Skip the rows that `taken` ranks can hold at most; the next one belongs to yet another rank.
    while (next < rows.size() && count + rows[next].count <= taken * maxRows &&
           work + rows[next].work <= double(taken) * maxWork) {
      count += rows[next].count;
      work += rows[next].work;
      ++next;
    }
    if (next == rows.size())
      break;
    int64_t foreign = std::max<int64_t>(0, rows[next].width - maxOwn);
    total += foreign;
    worst = std::max(worst, foreign);
  }
  return {total, worst};
}

} // namespace

bool isOnePiece(const std::vector<OwnedRows> &operand) { return joined(operand).size() == 1; }

std::vector<int32_t> lastUses(const Schedule &schedule) {
  std::vector<int32_t> result(schedule.transfers.size());
  std::vector<RankParts> parts = partsOfRanks(schedule);
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = schedule.transfers[i].step;
  for (const RankParts &rank : parts) {
    // Parcels by owner of their rows: few for each.
    std::map<int32_t, std::vector<int32_t>> byOwner;
    for (int32_t index : rank.in)
      if (!isResult(schedule.transfers[size_t(index)].payload))
        for (const Slab &slab : schedule.transfers[size_t(index)].slabs)
          if (std::vector<int32_t> &list = byOwner[slab.owner]; list.empty() || list.back() != index)
            list.push_back(index);
    auto use = [&](int32_t owner, Range rows, Range batch, int32_t step, bool isKey) {
      auto found = byOwner.find(owner);
      if (found == byOwner.end())
        return;
      for (int32_t index : found->second) {
        const Transfer &transfer = schedule.transfers[size_t(index)];
        if ((transfer.payload == Payload::KV) != isKey || transfer.step >= step)
          continue;
        for (const Slab &slab : transfer.slabs)
          if (slab.owner == owner && !intersection(slab.rows, rows).isEmpty() &&
              !intersection(slab.batch, batch).isEmpty()) {
            result[size_t(index)] = std::max(result[size_t(index)], step);
            break;
          }
      }
    };
    for (int32_t index : rank.computes) {
      const Compute &compute = schedule.computes[size_t(index)];
      for (const OwnedRows &rows : compute.kv)
        use(rows.owner, rows.rows, compute.batch, compute.step, /*isKey=*/true);
      for (const OwnedRows &rows : compute.q)
        use(rows.owner, rows.rows, compute.batch, compute.step, /*isKey=*/false);
    }
    for (int32_t index : rank.out)
      if (const Transfer &transfer = schedule.transfers[size_t(index)]; transfer.payload == Payload::KV)
        for (const Slab &slab : transfer.slabs)
          use(slab.owner, slab.rows, slab.batch, transfer.step, /*isKey=*/true);
  }
  return result;
}

std::optional<SlabPlace> placeOf(const Slab &part, Payload payload, int32_t step, const Schedule &schedule,
                                 const std::vector<int32_t> &results) {
  std::optional<SlabPlace> place;
  for (int32_t index : results) {
    const Transfer &transfer = schedule.transfers[size_t(index)];
    if (transfer.payload != payload || transfer.step <= step || transfer.destination != part.owner)
      continue;
    for (size_t slab = 0; slab < transfer.slabs.size(); ++slab) {
      const Slab common = commonPart(transfer.slabs[slab], part);
      if (isEmpty(common))
        continue;
      if (place || common != part)
        return std::nullopt;
      place = {index, slab};
    }
  }
  return place;
}

bool needsPartials(const Schedule &schedule, int32_t rank) {
  if (schedule.shape.type == ElementType::F32)
    return false;
  // Computes are few and sorted by step: the first one on the same rows tells.
  std::vector<const Compute *> mine;
  for (const Compute &compute : schedule.computes)
    if (compute.rank == rank) {
      for (const Compute *other : mine)
        if (other->step < compute.step && other->q == compute.q && other->batch == compute.batch &&
            other->heads == compute.heads)
          return true;
      mine.push_back(&compute);
    }
  return false;
}

int64_t residentBytes(const Schedule &schedule, int32_t rank) {
  const CallShape &shape = schedule.shape;
  const int64_t element = sizeInBytes(shape.type), single = sizeInBytes(ElementType::F32);
  const int64_t qRows = shape.batch * shape.qHeads * schedule.qLayout.shardSize(rank);
  const int64_t kvRows = shape.batch * shape.kvHeads * schedule.kvLayout.shardSize(rank);
  const int64_t qWidth = shape.headDim, oWidth = shape.vHeadDim, kvWidth = shape.headDim + shape.vHeadDim;
  const int64_t inputs = qRows * (qWidth + oWidth) * element + qRows * single + kvRows * kvWidth * element;
  if (schedule.pass == Pass::Forward)
    return inputs + (needsPartials(schedule, rank) ? qRows * oWidth * single : 0);
  // dO, dQ, dK and dV in the problem's type, row terms and accumulators in f32.
  return inputs + qRows * (qWidth + oWidth) * element + kvRows * kvWidth * element + qRows * single +
         (qRows * qWidth + kvRows * kvWidth) * single;
}

std::vector<int64_t> peakBytes(const Schedule &schedule) {
  const CallShape &shape = schedule.shape;
  const std::vector<int32_t> lastUse = lastUses(schedule);
  const std::vector<RankParts> parts = partsOfRanks(schedule);
  const size_t numSteps = size_t(std::max(1, schedule.numSteps));
  std::vector<int64_t> result;
  for (int32_t rank = 0; rank < schedule.worldSize; ++rank) {
    const RankParts &mine = parts[size_t(rank)];
    std::vector<int64_t> held(numSteps, 0), operands(numSteps, 0);
    for (int32_t index : mine.in) {
      const Transfer &transfer = schedule.transfers[size_t(index)];
      for (int32_t step = transfer.step; step <= lastUse[size_t(index)]; ++step)
        held[size_t(step)] += transfer.sizeInBytes;
    }
    // Results are collected in their send buffer from the first compute on.
    int32_t firstCompute = mine.computes.empty() ? 0 : schedule.computes[size_t(mine.computes.front())].step;
    std::map<int32_t, int32_t> firstUseOfOwner;
    for (int32_t index : mine.computes)
      for (const OwnedRows &rows : schedule.computes[size_t(index)].kv)
        firstUseOfOwner.try_emplace(rows.owner, schedule.computes[size_t(index)].step);
    std::map<int32_t, std::vector<int32_t>> resultsFor; // by owner of the rows
    for (int32_t index : mine.out) {
      const Transfer &transfer = schedule.transfers[size_t(index)];
      if (isResult(transfer.payload))
        resultsFor[transfer.destination].push_back(index);
      int32_t begin = transfer.step;
      if (transfer.payload == Payload::DKV)
        begin = std::min(begin, transfer.step - 1);
      else if (isResult(transfer.payload))
        begin = std::min(begin, firstCompute);
      for (int32_t step = begin; step <= transfer.step; ++step)
        held[size_t(step)] += transfer.sizeInBytes;
    }
    for (int32_t index : mine.computes) {
      const Compute &compute = schedule.computes[size_t(index)];
      const int64_t headsPerKV = std::max<int64_t>(1, shape.qHeads / std::max<int64_t>(1, shape.kvHeads));
      const int64_t kvHeads = ceilDivide(compute.heads.size(), headsPerKV);
      const int64_t kvRows = compute.batch.size() * kvHeads * rowsOfOperand(compute.kv);
      const int64_t qRows = compute.batch.size() * compute.heads.size() * rowsOfOperand(compute.q);
      const bool isBackward = schedule.pass == Pass::Backward;
      const bool isOwnKeys = isOnePiece(compute.kv) && compute.kv[0].owner == rank;
      const bool isOwnQueries = isOnePiece(compute.q) && compute.q[0].owner == rank;
      int64_t bytes = 0;
      if (!isOnePiece(compute.kv))
        bytes += kvRows * bytesPerRow(Payload::KV, shape);
      if (!isOwnQueries)
        bytes += qRows * (isBackward ? bytesPerRow(Payload::QGradient, shape)
                                     : bytesPerRow(Payload::Q, shape) + bytesPerRow(Payload::Out, shape));
      const auto isInMessage = [&](const std::vector<OwnedRows> &listed, Payload payload, Range heads) {
        const OwnedRows rows = joined(listed).front();
        return placeOf({rows.owner, compute.batch, heads, rows.rows}, payload, compute.step, schedule,
                       resultsFor[rows.owner])
            .has_value();
      };
      const Range keyHeads = {compute.heads.begin / headsPerKV, (compute.heads.end - 1) / headsPerKV + 1};
      if (isBackward && !isOwnKeys && !(isOnePiece(compute.kv) && isInMessage(compute.kv, Payload::DKV, keyHeads)))
        bytes += kvRows * bytesPerRow(Payload::DKV, shape);
      if (isBackward && !isOwnQueries && !(isOnePiece(compute.q) && isInMessage(compute.q, Payload::DQ, compute.heads)))
        bytes += qRows * bytesPerRow(Payload::DQ, shape);
      operands[size_t(compute.step)] = std::max(operands[size_t(compute.step)], bytes);
    }
    int64_t peak = 0;
    for (size_t step = 0; step < numSteps; ++step)
      peak = std::max(peak, held[step] + operands[step]);
    result.push_back(residentBytes(schedule, rank) + peak);
  }
  return result;
}

Certificate certify(const PlanRequest &request, const BlockMask &mask, const Schedule &schedule,
                    const std::vector<GroupNeeds> &needs) {
  const CallShape &shape = schedule.shape;
  Certificate certificate;
  certificate.ranks.resize(size_t(schedule.worldSize));
  for (const Compute &compute : schedule.computes)
    certificate.ranks[size_t(compute.rank)].work += compute.work;
  for (const Transfer &transfer : schedule.transfers) {
    certificate.ranks[size_t(transfer.source)].bytesSent += transfer.sizeInBytes;
    certificate.ranks[size_t(transfer.destination)].bytesReceived += transfer.sizeInBytes;
  }
  const std::vector<int64_t> peaks = peakBytes(schedule);
  for (size_t rank = 0; rank < peaks.size(); ++rank)
    certificate.ranks[rank].peakBytes = peaks[rank];

  const bool isBackward = schedule.pass == Pass::Backward;
  const int64_t keyBytes = shape.kvHeads * bytesPerRow(Payload::KV, shape);
  const int64_t gradientBytes = isBackward ? shape.kvHeads * bytesPerRow(Payload::DKV, shape) : 0;
  double total = 0.0, heaviestRow = 0.0;
  for (const GroupNeeds &group : needs) {
    const int64_t batch = group.group.batch.size();
    double maxWork = 0.0;
    int64_t maxRows = 0, maxOwn = 0;
    for (int32_t rank = 0; rank < schedule.worldSize; ++rank) {
      for (const OwnedRows &rows : group.rows[size_t(rank)])
        if (rows.owner != rank) {
          certificate.ranks[size_t(rank)].bytesNeeded += rows.rows.size() * batch * keyBytes;
          certificate.ranks[size_t(rows.owner)].bytesNeeded += rows.rows.size() * batch * gradientBytes;
        }
      double work = 0.0;
      for (const auto &[owner, part] : group.workBy[size_t(rank)])
        work += part;
      total += work;
      maxWork = std::max(maxWork, work);
      maxRows = std::max(maxRows, schedule.qLayout.shardSize(rank));
      maxOwn = std::max(maxOwn, schedule.kvLayout.shardSize(rank));
    }
    // A row of tiles is as wide as its widest row set; at token precision only full tiles surely count.
    std::vector<WideRows> rows(static_cast<size_t>(mask.numQTiles()));
    for (size_t set = 0; set < group.group.rowSets.size(); ++set) {
      const TileRows &tiles = mask.rowSets[size_t(group.group.rowSets[set])];
      for (int64_t tile = 0; tile < mask.numQTiles(); ++tile) {
        int64_t width = 0, sure = 0;
        for (int32_t i = tiles.rowBegin[size_t(tile)]; i < tiles.rowBegin[size_t(tile + 1)]; ++i) {
          const TileRun &run = tiles.runs[size_t(i)];
          int64_t columns = std::min(mask.kvLen, run.end * mask.tileKV) - run.begin * mask.tileKV;
          width += columns;
          if (run.tileClass == TileClass::Full || request.needPrecision == NeedPrecision::Tile)
            sure += columns;
        }
        WideRows &row = rows[size_t(tile)];
        row.count = std::min(mask.qLen, (tile + 1) * mask.tileQ) - tile * mask.tileQ;
        row.width = std::max(row.width, sure);
        row.work += double(width) * double(row.count) * double(group.group.numUses[set]);
      }
    }
    for (const WideRows &row : rows)
      heaviestRow = std::max(heaviestRow, row.count > 0 ? row.work / double(row.count) : 0.0);
    auto [all, worst] = receivedBound(std::move(rows), schedule.worldSize, maxRows, maxOwn, maxWork);
    certificate.receivedBound += all * batch * (keyBytes + gradientBytes);
    certificate.receivedBoundWorst = std::max(certificate.receivedBoundWorst, worst * batch * keyBytes);
  }
  certificate.workBound = std::max(total / double(std::max(1, schedule.worldSize)), heaviestRow);
  return certificate;
}

} // namespace cpflex
