// Prints trace events; see RunReport.h.
#include "runtime/Executor/RunReport.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace cpflex {
namespace {

nlohmann::json toJson(const std::map<std::pair<std::string, int32_t>, TrafficCounter> &counters) {
  nlohmann::json list = nlohmann::json::array();
  for (const auto &[key, counter] : counters)
    list.push_back({key.first, key.second, counter.messages, counter.bytes});
  return list;
}

void read(const nlohmann::json &list, std::map<std::pair<std::string, int32_t>, TrafficCounter> &counters) {
  for (const nlohmann::json &entry : list)
    counters[{entry[0].get<std::string>(), entry[1].get<int32_t>()}] = {entry[2].get<int64_t>(),
                                                                        entry[3].get<int64_t>()};
}

} // namespace

std::string toBytes(const RunReport &report) {
  nlohmann::json events = nlohmann::json::array();
  for (const TraceEvent &event : report.events)
    events.push_back({int(event.lane), event.name, event.step, event.beginSeconds, event.durationSeconds, event.bytes});
  return nlohmann::json({report.rank, report.peakBytes, toJson(report.sent), toJson(report.received), events}).dump();
}

StatusOr<RunReport> reportFromBytes(const std::string &bytes) {
  const nlohmann::json json = nlohmann::json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  const Status damaged(StatusCode::DataLoss, "the report of another rank is damaged; expected ranks of one build");
  if (!json.is_array() || json.size() != 5 || !json[0].is_number_integer() || !json[1].is_number_integer() ||
      !json[2].is_array() || !json[3].is_array() || !json[4].is_array())
    return damaged;
  for (size_t list : {2, 3})
    for (const nlohmann::json &entry : json[list])
      if (!entry.is_array() || entry.size() != 4 || !entry[0].is_string() || !entry[1].is_number_integer() ||
          !entry[2].is_number_integer() || !entry[3].is_number_integer())
        return damaged;
  RunReport report;
  report.rank = json[0].get<int32_t>();
  report.peakBytes = json[1].get<int64_t>();
  read(json[2], report.sent);
  read(json[3], report.received);
  for (const nlohmann::json &event : json[4]) {
    if (!event.is_array() || event.size() != 6 || !event[0].is_number_integer() || !event[1].is_string() ||
        !event[2].is_number_integer() || !event[3].is_number() || !event[4].is_number() ||
        !event[5].is_number_integer())
      return damaged;
    report.events.push_back({TraceEvent::Lane(event[0].get<int>()), event[1].get<std::string>(),
                             event[2].get<int32_t>(), event[3].get<double>(), event[4].get<double>(),
                             event[5].get<int64_t>()});
  }
  return report;
}

std::string toTraceJson(std::span<const RunReport> reports) {
  double first = 0.0;
  bool isFirst = true;
  for (const RunReport &report : reports)
    for (const TraceEvent &event : report.events) {
      first = isFirst ? event.beginSeconds : std::min(first, event.beginSeconds);
      isFirst = false;
    }
  nlohmann::ordered_json events = nlohmann::ordered_json::array();
  constexpr double kMicroseconds = 1e6;
  for (const RunReport &report : reports) {
    events.push_back({{"ph", "M"},
                      {"name", "process_name"},
                      {"pid", report.rank},
                      {"args", {{"name", "rank " + std::to_string(report.rank)}}}});
    for (int lane : {0, 1})
      events.push_back({{"ph", "M"},
                        {"name", "thread_name"},
                        {"pid", report.rank},
                        {"tid", lane},
                        {"args", {{"name", lane == 0 ? "compute" : "transfers"}}}});
    for (const TraceEvent &event : report.events)
      events.push_back({{"ph", "X"},
                        {"name", event.name},
                        {"pid", report.rank},
                        {"tid", int(event.lane)},
                        {"ts", (event.beginSeconds - first) * kMicroseconds},
                        {"dur", event.durationSeconds * kMicroseconds},
                        {"args", {{"step", event.step}, {"bytes", event.bytes}}}});
  }
  return nlohmann::ordered_json({{"traceEvents", events}, {"displayTimeUnit", "ms"}}).dump() + "\n";
}

} // namespace cpflex
