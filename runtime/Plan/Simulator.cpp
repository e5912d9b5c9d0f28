// The discrete-event estimate; see Simulator.h.
#include "runtime/Plan/Simulator.h"

#include <algorithm>
#include <tuple>

namespace cpflex {

Simulation simulate(const Schedule &schedule, const CostModel &cost) {
  const size_t worldSize = size_t(schedule.worldSize);
  const double flopsPerPair = 2.0 * double(schedule.shape.headDim + schedule.shape.vHeadDim);
  // Backward does 2.5 times the operations of forward.
  const double secondsPerPair = schedule.pass == Pass::Forward ? flopsPerPair / cost.flopsPerSecond
                                                               : 2.5 * flopsPerPair / cost.backwardFlopsPerSecond;
  Simulation simulation;
  std::vector<double> entered(worldSize, 0.0), busy(worldSize, 0.0), outFree(worldSize, 0.0), inFree(worldSize, 0.0);
  size_t transfer = 0, compute = 0;
  for (int32_t step = 0; step < schedule.numSteps; ++step) {
    std::vector<double> done = entered;
    for (; compute < schedule.computes.size() && schedule.computes[compute].step == step; ++compute) {
      const Compute &each = schedule.computes[compute];
      double begin = done[size_t(each.rank)];
      double seconds = each.work > 0.0 ? cost.launchSeconds + each.work * secondsPerPair : 0.0;
      done[size_t(each.rank)] = begin + seconds;
      busy[size_t(each.rank)] += seconds;
      simulation.events.push_back({/*isTransfer=*/false, int32_t(compute), begin, begin + seconds});
    }
    // Messages of the step in the order in which both ends are ready.
    // (nearest peers first, so that ports are shared evenly).
    std::vector<std::tuple<double, int32_t, size_t>> ready;
    for (; transfer < schedule.transfers.size() && schedule.transfers[transfer].step == step; ++transfer) {
      const Transfer &each = schedule.transfers[transfer];
      ready.push_back({std::max(entered[size_t(each.source)], entered[size_t(each.destination)]),
                       (each.destination - each.source + schedule.worldSize) % schedule.worldSize, transfer});
    }
    std::sort(ready.begin(), ready.end());
    for (auto [time, distance, index] : ready) {
      const Transfer &each = schedule.transfers[index];
      double begin = std::max({time, outFree[size_t(each.source)], inFree[size_t(each.destination)]});
      double end = begin + cost.messageSeconds + double(each.sizeInBytes) / cost.bytesPerSecond;
      outFree[size_t(each.source)] = inFree[size_t(each.destination)] = end;
      done[size_t(each.source)] = std::max(done[size_t(each.source)], end);
      done[size_t(each.destination)] = std::max(done[size_t(each.destination)], end);
      simulation.events.push_back({/*isTransfer=*/true, int32_t(index), begin, end});
    }
    entered = std::move(done);
  }
  simulation.rankSeconds = entered;
  for (size_t rank = 0; rank < worldSize; ++rank) {
    simulation.seconds = std::max(simulation.seconds, entered[rank]);
    simulation.exposedSeconds.push_back(entered[rank] - busy[rank]);
  }
  return simulation;
}

} // namespace cpflex
