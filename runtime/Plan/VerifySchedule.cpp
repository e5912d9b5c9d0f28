// Walks a schedule as an executor would; see VerifySchedule.h.
#include "runtime/Plan/VerifySchedule.h"
#include "runtime/Plan/Layouts.h"
#include "runtime/Plan/NeedSets.h"
#include "runtime/Plan/Planner.h"

#include <algorithm>
#include <fmt/format.h>
#include <map>
#include <tuple>

namespace cpflex {
namespace {

bool isKeySide(Payload payload) { return payload == Payload::KV || payload == Payload::DKV; }
bool isInput(Payload payload) {
  return payload == Payload::KV || payload == Payload::Q || payload == Payload::QGradient;
}
bool isWithin(Range inner, int64_t size) { return 0 <= inner.begin && inner.begin <= inner.end && inner.end <= size; }

/// What has arrived at a rank: rows by side, owner and batch row, for ranges of heads.
class Arrivals {
public:
  void add(bool isKey, const Slab &slab, int32_t step) { parcels_[{isKey, slab.owner}].push_back({slab, step}); }

  /// Whether the rows were there when `step` began, for all the heads and batch rows.
  bool has(bool isKey, const Slab &wanted, int32_t step) const {
    auto found = parcels_.find({isKey, wanted.owner});
    if (found == parcels_.end())
      return false;
    RangeSet rows;
    for (const auto &[slab, arrival] : found->second)
      if (arrival < step && slab.batch.begin <= wanted.batch.begin && wanted.batch.end <= slab.batch.end &&
          slab.heads.begin <= wanted.heads.begin && wanted.heads.end <= slab.heads.end)
        rows.push_back(slab.rows);
    for (Range range : normalized(std::move(rows)))
      if (range.begin <= wanted.rows.begin && wanted.rows.end <= range.end)
        return true;
    return false;
  }

private:
  std::map<std::pair<bool, int32_t>, std::vector<std::pair<Slab, int32_t>>> parcels_;
};

Status verifySlab(const Schedule &schedule, Payload payload, const Slab &slab, const std::string &place) {
  const bool isKey = isKeySide(payload);
  const Layout &layout = isKey ? schedule.kvLayout : schedule.qLayout;
  if (slab.owner < 0 || slab.owner >= schedule.worldSize)
    return Status::invalid(
        fmt::format("{} has rows of rank {}; expected a rank in [0, {})", place, slab.owner, schedule.worldSize));
  if (!isWithin(slab.rows, layout.shardSize(slab.owner)))
    return Status::invalid(fmt::format("{} has rows [{}, {}) of rank {}; expected rows in [0, {})", place,
                                       slab.rows.begin, slab.rows.end, slab.owner, layout.shardSize(slab.owner)));
  const int64_t numHeads = isKey ? schedule.shape.kvHeads : schedule.shape.qHeads;
  if (!isWithin(slab.heads, numHeads) || !isWithin(slab.batch, schedule.shape.batch))
    return Status::invalid(fmt::format(
        "{} has heads [{}, {}) and batch rows [{}, {}); expected heads in [0, {}) and batch "
        "rows in [0, {})",
        place, slab.heads.begin, slab.heads.end, slab.batch.begin, slab.batch.end, numHeads, schedule.shape.batch));
  return Status::ok();
}

} // namespace

Status verifySchedule(const Schedule &schedule) {
  const CallShape &shape = schedule.shape;
  if (schedule.worldSize < 1 || shape.batch < 0 || shape.qHeads < 1 || shape.kvHeads < 1 || shape.headDim < 1 ||
      shape.vHeadDim < 1 || shape.qHeads % shape.kvHeads != 0)
    return Status::invalid("sizes of the call are out of range; expected 1 or more ranks and heads, query heads a "
                           "multiple of kv heads");
  for (auto [layout, length] : {std::pair(&schedule.qLayout, shape.qLen), std::pair(&schedule.kvLayout, shape.kvLen)}) {
    if (layout->length != length || layout->worldSize != schedule.worldSize ||
        (layout->rows != 1 && layout->rows != shape.batch))
      return Status::invalid(
          fmt::format("layout of {} tokens and {} batch rows; expected {} tokens and 1 or {} batch rows",
                      layout->length, layout->rows, length, shape.batch));
    CPFLEX_RETURN_IF_ERROR(verifyLayout(*layout));
  }
  std::vector<Arrivals> arrivals(size_t(schedule.worldSize));
  std::tuple<int32_t, int32_t, int32_t, int> last = {-1, -1, -1, -1};
  for (const Transfer &transfer : schedule.transfers) {
    const std::string place = fmt::format("the transfer of step {} from rank {} to rank {}", transfer.step,
                                          transfer.source, transfer.destination);
    const std::tuple key = {transfer.step, transfer.source, transfer.destination, int(transfer.payload)};
    if (!(last < key) || transfer.step < 0 || transfer.step >= schedule.numSteps)
      return Status::invalid(place + " is out of order; expected transfers by step, source, destination and payload");
    last = key;
    for (int32_t rank : {transfer.source, transfer.destination})
      if (rank < 0 || rank >= schedule.worldSize || transfer.source == transfer.destination)
        return Status::invalid(fmt::format("{}; expected two ranks in [0, {})", place, schedule.worldSize));
    int64_t bytes = 0;
    for (const Slab &slab : transfer.slabs) {
      CPFLEX_RETURN_IF_ERROR(verifySlab(schedule, transfer.payload, slab, place));
      bytes += slab.batch.size() * slab.heads.size() * slab.rows.size() * bytesPerRow(transfer.payload, shape);
      if (isInput(transfer.payload)) {
        if (slab.owner != transfer.source &&
            !arrivals[size_t(transfer.source)].has(isKeySide(transfer.payload), slab, transfer.step))
          return Status::invalid(
              fmt::format("{} passes on rows [{}, {}) of rank {}; expected rows that the source owns or "
                          "has received",
                          place, slab.rows.begin, slab.rows.end, slab.owner));
        arrivals[size_t(transfer.destination)].add(isKeySide(transfer.payload), slab, transfer.step);
      } else if (slab.owner != transfer.destination) {
        return Status::invalid(
            fmt::format("{} returns results of rank {}; expected results of its destination", place, slab.owner));
      }
    }
    if (bytes != transfer.sizeInBytes)
      return Status::invalid(fmt::format("{} has {} bytes; expected {}", place, transfer.sizeInBytes, bytes));
  }
  std::tuple<int32_t, int32_t, int64_t, int64_t> lastCompute = {-1, -1, -1, -1};
  // Query rows computed, counted once per (q, batch, heads) of a chain.
  std::map<std::tuple<int32_t, int64_t, int64_t>, std::vector<Range>> covered; // owner, batch row, head
  const int64_t headsPerKV = shape.qHeads / shape.kvHeads;
  for (const Compute &compute : schedule.computes) {
    const std::string place = fmt::format("the compute of step {} on rank {}", compute.step, compute.rank);
    const std::tuple key = {compute.step, compute.rank, compute.batch.begin, compute.heads.begin};
    if (!(lastCompute < key) || compute.step < 0 || compute.step >= schedule.numSteps)
      return Status::invalid(place + " is out of order; expected computes by step, rank, batch and heads");
    lastCompute = key;
    if (compute.rank < 0 || compute.rank >= schedule.worldSize)
      return Status::invalid(fmt::format("{}; expected a rank in [0, {})", place, schedule.worldSize));
    if (compute.heads.isEmpty() || (compute.heads != Range{0, shape.qHeads} &&
                                    compute.heads.begin / headsPerKV != (compute.heads.end - 1) / headsPerKV))
      return Status::invalid(fmt::format("{} covers heads [{}, {}); expected all heads or heads of one kv head", place,
                                         compute.heads.begin, compute.heads.end));
    const Range kvHeads = {compute.heads.begin / headsPerKV, (compute.heads.end - 1) / headsPerKV + 1};
    for (bool isKey : {false, true})
      for (const OwnedRows &rows : isKey ? compute.kv : compute.q) {
        Slab slab{rows.owner, compute.batch, isKey ? kvHeads : compute.heads, rows.rows};
        CPFLEX_RETURN_IF_ERROR(verifySlab(schedule, isKey ? Payload::KV : Payload::Q, slab, place));
        if (rows.owner != compute.rank && !arrivals[size_t(compute.rank)].has(isKey, slab, compute.step))
          return Status::invalid(fmt::format("{} reads {} rows [{}, {}) of rank {}; expected rows that it owns or has "
                                             "received",
                                             place, isKey ? "kv" : "q", rows.rows.begin, rows.rows.end, rows.owner));
        if (!isKey)
          for (int64_t b = compute.batch.begin; b < compute.batch.end; ++b)
            for (int64_t h = compute.heads.begin; h < compute.heads.end; ++h)
              covered[{rows.owner, b, h}].push_back(rows.rows);
      }
  }
  for (int32_t rank = 0; rank < schedule.worldSize; ++rank)
    for (int64_t b = 0; b < shape.batch; ++b)
      for (int64_t h = 0; h < shape.qHeads; ++h)
        if (sizeOf(normalized(covered[{rank, b, h}])) != schedule.qLayout.shardSize(rank))
          return Status::invalid(
              fmt::format("query rows of rank {}, batch row {} and head {} are not all computed; expected "
                          "{} rows",
                          rank, b, h, schedule.qLayout.shardSize(rank)));
  return Status::ok();
}

} // namespace cpflex
