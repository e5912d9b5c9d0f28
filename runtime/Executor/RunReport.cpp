// Prints trace events; see RunReport.h.
#include "runtime/Executor/RunReport.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace cpflex {

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
    events.push_back({{"ph", "M"}, {"name", "process_name"}, {"pid", report.rank},
                      {"args", {{"name", "rank " + std::to_string(report.rank)}}}});
    for (int lane : {0, 1})
      events.push_back({{"ph", "M"}, {"name", "thread_name"}, {"pid", report.rank}, {"tid", lane},
                        {"args", {{"name", lane == 0 ? "compute" : "transfers"}}}});
    for (const TraceEvent &event : report.events)
      events.push_back({{"ph", "X"}, {"name", event.name}, {"pid", report.rank}, {"tid", int(event.lane)},
                        {"ts", (event.beginSeconds - first) * kMicroseconds},
                        {"dur", event.durationSeconds * kMicroseconds},
                        {"args", {{"step", event.step}, {"bytes", event.bytes}}}});
  }
  return nlohmann::ordered_json({{"traceEvents", events}, {"displayTimeUnit", "ms"}}).dump() + "\n";
}

} // namespace cpflex
