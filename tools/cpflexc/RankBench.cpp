// Times both passes of ranks that are threads, on the CPU or on GPUs; see RankBench.h.
#include "tools/cpflexc/RankBench.h"

#include "runtime/Comm/CudaCommunicator.h"
#include "runtime/Cuda/DeviceCopies.h"
#include "tools/cpflexc/RankGroup.h"
#include "tools/cpflexc/Timing.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <barrier>
#include <optional>
#include <thread>

namespace cpflex {

namespace {

/// The shard of one tensor of a call.
struct ShardTensor {
  std::vector<char> bytes;
  CallTensor tensor;

  ShardTensor(const Array &whole, const Layout &layout, int32_t rank, bool isBshd) {
    if (whole.bytes.empty())
      return;
    const bool isRows = whole.shape.size() == 3;
    const int64_t heads = whole.shape[isBshd && !isRows ? 2 : 1], columns = isRows ? 1 : whole.shape[3];
    const int64_t rows = layout.shardSize(rank), batch = whole.shape[0];
    const SequenceArrayShape shape{.batch = batch,
                                   .outer = isBshd && !isRows ? 1 : heads,
                                   .inner = isBshd && !isRows ? heads * columns : columns,
                                   .elementSizeInBytes = sizeInBytes(whole.type)};
    bytes.resize(size_t(std::max<int64_t>(1, batch * heads * rows * columns * sizeInBytes(whole.type))));
    // The rank and the shape are the plan's own.
    (void)shard(layout, rank, shape, whole.bytes.data(), bytes.data());
    tensor = {.data = bytes.data(),
              .type = whole.type,
              .shape = {batch, heads, rows, columns},
              .strides = {},
              .device = {DeviceType::Cpu, 0}};
    const bool isSequenceFirst = isBshd && !isRows;
    tensor.strides[0] = heads * rows * columns;
    tensor.strides[1] = isSequenceFirst ? columns : rows * columns;
    tensor.strides[2] = isSequenceFirst ? heads * columns : columns;
    tensor.strides[3] = 1;
  }
};

/// What the passes of one rank took, by repetition; exposed is what of the last one was no attention call.
struct RankTimes {
  std::vector<double> forwardMs, backwardMs;
  double forwardExposedMs = 0, backwardExposedMs = 0;
};

/// One rank's shards, where it computes, and its executable.
class TimedRank {
public:
  static StatusOr<std::unique_ptr<TimedRank>> prepare(const AttentionCall &call, const Options &options,
                                                      const std::shared_ptr<const ContextParallelPlan> &plan,
                                                      std::shared_ptr<Communicator> communicator);
  /// Each returns when the rank is done.
  Status forward() { return done(executable_->forward(forward_, stream())); }
  Status backward() { return done(executable_->backward(backward_, stream())); }
  RunReport report() const { return executable_->report(); }

private:
  void *stream() const { return stream_ ? stream_->get() : nullptr; }
  Status done(Status status) { return status && stream_ ? stream_->synchronize() : status; }
  Status moveToGpu(const std::shared_ptr<const CudaDevice> &device);

  std::vector<ShardTensor> shards_; ///< q, k, v, out, lse, dOut, dQ, dK, dV
  DeviceCopies copies_;
  std::optional<CudaStream> stream_; ///< on a GPU
  ForwardCallTensors forward_;
  BackwardCallTensors backward_;
  std::shared_ptr<RankExecutable> executable_;
};

Status TimedRank::moveToGpu(const std::shared_ptr<const CudaDevice> &device) {
  StatusOr<CudaStream> stream = CudaStream::create(device);
  if (!stream)
    return stream.status();
  stream_.emplace(std::move(*stream));
  for (ShardTensor &shard : shards_) {
    if (!shard.tensor.data)
      continue;
    StatusOr<void *> copy = copies_.add(device, shard.bytes.data(), int64_t(shard.bytes.size()), stream_->get());
    if (!copy)
      return copy.status();
    shard.tensor.data = *copy;
    shard.tensor.device = {DeviceType::Cuda, device->description().index};
    shard.bytes = {};
  }
  return Status::ok();
}

StatusOr<std::unique_ptr<TimedRank>> TimedRank::prepare(const AttentionCall &call, const Options &options,
                                                        const std::shared_ptr<const ContextParallelPlan> &plan,
                                                        std::shared_ptr<Communicator> communicator) {
  auto rank = std::make_unique<TimedRank>();
  const Layout &qLayout = plan->forward().qLayout, &kvLayout = plan->forward().kvLayout;
  const std::pair<const Array *, const Layout *> tensors[] = {
      {&call.q, &qLayout},    {&call.k, &kvLayout}, {&call.v, &kvLayout},  {&call.out, &qLayout}, {&call.lse, &qLayout},
      {&call.dOut, &qLayout}, {&call.dQ, &qLayout}, {&call.dK, &kvLayout}, {&call.dV, &kvLayout}};
  for (const auto &[array, layout] : tensors)
    rank->shards_.emplace_back(*array, *layout, communicator->rank(), options.isBshd);
  if (!call.loaded.entry->hasSoftmax)
    rank->shards_[4].tensor.data = nullptr;
  if (const CudaCommunicator *onGpu = communicator->asCuda())
    CPFLEX_RETURN_IF_ERROR(rank->moveToGpu(onGpu->port()->device()));
  const auto at = [&](int index) { return rank->shards_[size_t(index)].tensor; };
  rank->forward_ = {.q = at(0), .k = at(1), .v = at(2), .out = at(3), .lse = at(4), .rowMax = {}};
  rank->backward_ = {.q = at(0),
                     .k = at(1),
                     .v = at(2),
                     .out = at(3),
                     .lse = at(4),
                     .dOut = at(5),
                     .dLse = {},
                     .dQ = at(6),
                     .dK = at(7),
                     .dV = at(8),
                     .captureGradients = {},
                     .sinkGradient = nullptr};
  StatusOr<std::shared_ptr<RankExecutable>> executable = RankExecutable::load(
      plan, std::move(communicator),
      {.deadlineSeconds = options.deadlineSeconds, .numThreads = 1, .times = RankOptions::Times::Always});
  if (!executable)
    return executable.status();
  rank->executable_ = *executable;
  return rank;
}

/// What of the `totalMs` milliseconds of the last pass named `pass` was no attention call: waits, merges, conversions.
double exposedMs(const RunReport &report, const std::string &pass, double totalMs) {
  double busy = 0;
  for (const TraceEvent &event : report.events)
    if (event.lane == TraceEvent::Lane::Compute && event.name == pass)
      busy += event.durationSeconds * 1e3;
  return std::max(totalMs - busy, 0.0);
}

Status timeRank(const AttentionCall &call, const std::shared_ptr<const ContextParallelPlan> &plan,
                std::shared_ptr<Communicator> communicator, const Options &options, int repetitions,
                std::barrier<> &start, RankTimes &times) {
  StatusOr<std::unique_ptr<TimedRank>> rank = TimedRank::prepare(call, options, plan, communicator);
  Status status = rank.status();
  const auto checked = [&](Status next) {
    if (!next)
      communicator->abort(next);
    status = std::move(next);
  };
  if (!status)
    checked(status);
  for (int i = 0; i <= repetitions; ++i) { // the first run warms up
    // Every rank comes to every barrier, also after an error.
    start.arrive_and_wait();
    const Clock::time_point begin = Clock::now();
    if (status)
      checked((*rank)->forward());
    times.forwardMs.push_back(millisecondsSince(begin));
    start.arrive_and_wait();
    const Clock::time_point middle = Clock::now();
    if (status && call.isBackward)
      checked((*rank)->backward());
    times.backwardMs.push_back(millisecondsSince(middle));
  }
  if (status) {
    const RunReport report = (*rank)->report();
    times.forwardExposedMs = exposedMs(report, "forward", times.forwardMs.back());
    times.backwardExposedMs = exposedMs(report, "backward", times.backwardMs.back());
  }
  return status;
}

/// The median over repetitions of what the slowest rank took.
double slowest(const std::vector<RankTimes> &times, std::vector<double> RankTimes::*pass) {
  std::vector<double> values;
  for (size_t i = 1; i < (times[0].*pass).size(); ++i) {
    double largest = 0;
    for (const RankTimes &rank : times)
      largest = std::max(largest, (rank.*pass)[i]);
    values.push_back(largest);
  }
  return median(values);
}

void addPlan(const Schedule &schedule, nlohmann::ordered_json &json) {
  double largest = 0, total = 0;
  int64_t worst = 0, received = 0;
  for (const RankLoad &load : schedule.certificate.ranks) {
    largest = std::max(largest, load.work);
    total += load.work;
    worst = std::max(worst, load.bytesReceived);
    received += load.bytesReceived;
  }
  json["layout"] = toString(schedule.qLayout.kind);
  json["rotation"] = toString(schedule.rotation);
  json["steps"] = schedule.numSteps;
  json["work_max_over_mean"] = total > 0 ? largest * schedule.worldSize / total : 1.0;
  json["bytes_received"] = received;
  json["bytes_received_worst"] = worst;
}

} // namespace

Status benchRanks(const Options &options, AttentionCall &call, int repetitions, nlohmann::ordered_json &json) {
  if (options.transport == "mpi")
    throw CommandLineFault(
        "ranks are timed as threads of one process, not over 'mpi'; expected --transport threads, or nccl "
        "with --device cuda");
  checkTransport(options);
  const Clock::time_point begin = Clock::now();
  ContextParallelOptions wanted;
  wanted.worldSize = rankCount(options);
  wanted.layout = layoutKindFromString(options.layout);
  wanted.rotation = rotationFromString(options.rotate);
  auto plan = ContextParallelPlan::create(call.executable, wanted);
  if (!plan)
    return plan.status();
  json["ranks"] = wanted.worldSize;
  json["plan_ms"] = millisecondsSince(begin);
  addPlan((*plan)->forward(), json);
  auto group = openRankGroup(options, wanted.worldSize);
  if (!group)
    return group.status();
  std::vector<RankTimes> times(group->size());
  std::vector<Status> statuses(group->size());
  std::barrier<> start(wanted.worldSize);
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < group->size(); ++rank)
    threads.emplace_back([&, rank] {
      statuses[rank] = timeRank(call, *plan, (*group)[rank], options, repetitions, start, times[rank]);
    });
  for (std::thread &thread : threads)
    thread.join();
  CPFLEX_RETURN_IF_ERROR(firstFailure(statuses));
  const auto mostExposed = [&](double RankTimes::*exposed) {
    return (*std::ranges::max_element(times, {}, exposed)).*exposed;
  };
  json["forward_ms"] = slowest(times, &RankTimes::forwardMs);
  json["forward_exposed_ms"] = mostExposed(&RankTimes::forwardExposedMs);
  if (call.isBackward) {
    json["backward_ms"] = slowest(times, &RankTimes::backwardMs);
    json["backward_exposed_ms"] = mostExposed(&RankTimes::backwardExposedMs);
  }
  return Status::ok();
}

} // namespace cpflex
