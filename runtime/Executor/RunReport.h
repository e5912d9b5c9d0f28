// What did a rank do, when, and what did it cost? Counters by collective and peer, trace events, and the most memory
// held.
#pragma once

#include "runtime/contract/Status.h"

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace cpflex {

/// Messages and bytes of one kind with one peer.
struct TrafficCounter {
  int64_t messages = 0, bytes = 0;
  friend bool operator==(const TrafficCounter &, const TrafficCounter &) = default;
};

/// A span of time on one rank.
struct TraceEvent {
  enum class Lane : uint8_t { Compute, Transfer } lane = Lane::Compute;
  std::string name;
  int32_t step = 0;
  double beginSeconds = 0; ///< on the steady clock
  double durationSeconds = 0;
  int64_t bytes = 0;
};

/// One rank's report. Runs add to it.
struct RunReport {
  int32_t rank = 0;
  std::map<std::pair<std::string, int32_t>, TrafficCounter> sent, received; ///< by purpose (payload word, ...) and peer
  std::vector<TraceEvent> events;
  int64_t peakBytes = 0; ///< shards, buffers and accumulators of the run that held most; no kernel workspace
};

/// A report as bytes for another process of the same build, and back; DataLoss when they are damaged.
std::string toBytes(const RunReport &report);
StatusOr<RunReport> reportFromBytes(const std::string &bytes);

/// The events of all ranks as one Chrome trace (which Perfetto opens): a process per rank, computes and transfers in
/// two threads.
std::string toTraceJson(std::span<const RunReport> reports);

} // namespace cpflex
