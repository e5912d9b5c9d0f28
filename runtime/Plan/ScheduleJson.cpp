// The JSON form of a schedule; see ScheduleText.h.
#include "runtime/Plan/Planner.h"
#include "runtime/Plan/ScheduleText.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace cpflex {
namespace {

using Json = nlohmann::ordered_json;

Json rangeJson(Range range) { return Json::array({range.begin, range.end}); }

Json layoutJson(const Layout &layout) {
  Json shards = Json::array();
  for (size_t i = 0; i < layout.shards.size(); ++i) {
    Json pieces = Json::array();
    for (const AffinePiece &piece : layout.shards[i].pieces)
      pieces.push_back({piece.begin, piece.count, piece.step});
    shards.push_back(
        {{"row", i / size_t(layout.worldSize)}, {"rank", i % size_t(layout.worldSize)}, {"pieces", pieces}});
  }
  return {{"kind", toString(layout.kind)}, {"length", layout.length}, {"rows", layout.rows}, {"shards", shards}};
}

Json rowsJson(const std::vector<OwnedRows> &rows) {
  Json list = Json::array();
  for (const OwnedRows &each : rows)
    list.push_back({{"owner", each.owner}, {"rows", rangeJson(each.rows)}});
  return list;
}

} // namespace

std::string toJson(const Schedule &schedule) {
  const CallShape &shape = schedule.shape;
  Json transfers = Json::array(), computes = Json::array(), loads = Json::array();
  for (const Transfer &transfer : schedule.transfers) {
    Json slabs = Json::array();
    for (const Slab &slab : transfer.slabs)
      slabs.push_back({{"owner", slab.owner},
                       {"batch", rangeJson(slab.batch)},
                       {"heads", rangeJson(slab.heads)},
                       {"rows", rangeJson(slab.rows)}});
    transfers.push_back({{"step", transfer.step},
                         {"from", transfer.source},
                         {"to", transfer.destination},
                         {"payload", toString(transfer.payload)},
                         {"bytes", transfer.sizeInBytes},
                         {"slabs", slabs}});
  }
  for (const Compute &compute : schedule.computes)
    computes.push_back({{"step", compute.step},
                        {"rank", compute.rank},
                        {"batch", rangeJson(compute.batch)},
                        {"heads", rangeJson(compute.heads)},
                        {"work", compute.work},
                        {"q", rowsJson(compute.q)},
                        {"kv", rowsJson(compute.kv)}});
  double maxWork = 0.0, totalWork = 0.0;
  for (size_t rank = 0; rank < schedule.certificate.ranks.size(); ++rank) {
    const RankLoad &load = schedule.certificate.ranks[rank];
    maxWork = std::max(maxWork, load.work);
    totalWork += load.work;
    loads.push_back({{"rank", rank},
                     {"work", load.work},
                     {"sent", load.bytesSent},
                     {"received", load.bytesReceived},
                     {"needed", load.bytesNeeded},
                     {"peak", load.peakBytes}});
  }
  Json result = {{"pass", toString(schedule.pass)},
                 {"rotation", toString(schedule.rotation)},
                 {"key_order", toString(schedule.keyOrder)},
                 {"ranks", schedule.worldSize},
                 {"steps", schedule.numSteps},
                 {"call",
                  {{"batch", shape.batch},
                   {"q_heads", shape.qHeads},
                   {"kv_heads", shape.kvHeads},
                   {"q_len", shape.qLen},
                   {"kv_len", shape.kvLen},
                   {"head_dim", shape.headDim},
                   {"v_head_dim", shape.vHeadDim},
                   {"type", toString(shape.type)}}},
                 {"q_layout", layoutJson(schedule.qLayout)},
                 {"kv_layout", layoutJson(schedule.kvLayout)},
                 {"transfers", transfers},
                 {"computes", computes},
                 {"certificate",
                  {{"max_over_mean", totalWork > 0.0 ? maxWork * double(schedule.worldSize) / totalWork : 1.0},
                   {"work_bound", schedule.certificate.workBound},
                   {"received_bound", schedule.certificate.receivedBound},
                   {"received_bound_worst", schedule.certificate.receivedBoundWorst},
                   {"predicted_seconds", schedule.certificate.predictedSeconds},
                   {"loads", loads}}}};
  return result.dump(2) + "\n";
}

} // namespace cpflex
