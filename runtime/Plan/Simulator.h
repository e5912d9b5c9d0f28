// How long does a Schedule take by a cost model? A discrete-event estimate with one compute engine and one port each
// way per rank.
#pragma once

#include "runtime/Plan/Planner.h"
#include "runtime/contract/Schedule.h"

#include <vector>

namespace cpflex {

/// When one thing happens in the simulated run, in seconds from the start.
struct SimulatedEvent {
  bool isTransfer = false;
  int32_t index = 0; ///< into Schedule::transfers or Schedule::computes
  double begin = 0, end = 0;
};

/// The simulated run.
struct Simulation {
  double seconds = 0;                 ///< when the last rank is done
  std::vector<double> rankSeconds;    ///< when each rank is done
  std::vector<double> exposedSeconds; ///< of each rank: time not spent computing before it is done
  std::vector<SimulatedEvent> events;
};

/// Runs the schedule: a rank enters a step when its computes and transfers of the step before are done; a message
/// starts when both ranks are in its step and both ports are free, lowest ready time first.
Simulation simulate(const Schedule &schedule, const CostModel &cost);

} // namespace cpflex
