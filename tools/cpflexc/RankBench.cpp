// Times both passes of ranks that are threads; see RankBench.h.
#include "tools/cpflexc/RankBench.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <barrier>
#include <chrono>

namespace cpflex {

namespace {

using Clock = std::chrono::steady_clock;

double millisecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

/// The shard of one tensor of a call.
struct ShardTensor {
  std::vector<char> bytes;
  CallTensor tensor;

  ShardTensor(const Array &whole, const Layout &layout, int32_t rank, bool isBshd) {
    const bool isRows = whole.shape.size() == 3;
    const int64_t heads = whole.shape[isBshd && !isRows ? 2 : 1], columns = isRows ? 1 : whole.shape[3];
    const int64_t rows = layout.shardSize(rank), batch = whole.shape[0];
    const SequenceArrayShape shape{.batch = batch, .outer = isBshd && !isRows ? 1 : heads,
                                   .inner = isBshd && !isRows ? heads * columns : columns,
                                   .elementSizeInBytes = sizeInBytes(whole.type)};
    bytes.resize(size_t(std::max<int64_t>(1, batch * heads * rows * columns * sizeInBytes(whole.type))));
    // The rank and the shape are the plan's own.
    (void)shard(layout, rank, shape, whole.bytes.data(), bytes.data());
    tensor = {.data = bytes.data(), .type = whole.type, .shape = {batch, heads, rows, columns}, .strides = {},
              .device = {DeviceType::Cpu, 0}};
    const bool isSequenceFirst = isBshd && !isRows;
    tensor.strides[0] = heads * rows * columns;
    tensor.strides[1] = isSequenceFirst ? columns : rows * columns;
    tensor.strides[2] = isSequenceFirst ? heads * columns : columns;
    tensor.strides[3] = 1;
  }
};

/// What the passes of one rank took, by repetition.
struct RankTimes {
  std::vector<double> forwardMs, backwardMs;
};

Status timeRank(const AttentionCall &call, const std::shared_ptr<const ContextParallelPlan> &plan,
                Communicator &communicator, const Options &options, int repetitions, std::barrier<> &start,
                RankTimes &times) {
  auto rank = RankExecutable::load(plan, {std::shared_ptr<void>(), &communicator},
                                   {.deadlineSeconds = options.deadlineSeconds, .numThreads = 1});
  const Schedule &schedule = plan->forward();
  const auto take = [&](const Array &array, const Layout &layout) {
    return ShardTensor(array, layout, communicator.rank(), options.isBshd);
  };
  ShardTensor q = take(call.q, schedule.qLayout), k = take(call.k, schedule.kvLayout), v = take(call.v, schedule.kvLayout);
  ShardTensor out = take(call.out, schedule.qLayout), lse = take(call.lse, schedule.qLayout), dQ = q, dK = k, dV = v;
  ShardTensor dOut = call.isBackward ? take(call.dOut, schedule.qLayout) : out;
  for (ShardTensor *copy : {&dQ, &dK, &dV, &dOut})
    copy->tensor.data = copy->bytes.data();
  if (!call.loaded.entry->hasSoftmax)
    lse.tensor.data = nullptr;
  ForwardCallTensors forward{.q = q.tensor, .k = k.tensor, .v = v.tensor, .out = out.tensor, .lse = lse.tensor, .rowMax = {}};
  BackwardCallTensors backward{.q = q.tensor, .k = k.tensor, .v = v.tensor, .out = out.tensor, .lse = lse.tensor,
                               .dOut = dOut.tensor, .dLse = {}, .dQ = dQ.tensor, .dK = dK.tensor, .dV = dV.tensor,
                               .captureGradients = {}, .sinkGradient = nullptr};
  Status status = rank.status();
  const auto checked = [&](Status next) {
    if (!next)
      communicator.abort(next);
    status = std::move(next);
  };
  for (int i = 0; i <= repetitions; ++i) { // the first run warms up
    // Every rank comes to every barrier, also after an error.
    start.arrive_and_wait();
    const Clock::time_point begin = Clock::now();
    if (status)
      checked((*rank)->forward(forward));
    times.forwardMs.push_back(millisecondsSince(begin));
    start.arrive_and_wait();
    const Clock::time_point middle = Clock::now();
    if (status && call.isBackward)
      checked((*rank)->backward(backward));
    times.backwardMs.push_back(millisecondsSince(middle));
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
  if (options.transport != "threads" || options.device != "cpu")
    throw CommandLineFault(fmt::format("ranks are timed as threads on the cpu, not over '{}' on '{}'; expected --transport "
                                       "threads --device cpu",
                                       options.transport, options.device));
  const Clock::time_point begin = Clock::now();
  ContextParallelOptions wanted;
  wanted.worldSize = options.ranks;
  wanted.layout = layoutKindFromString(options.layout);
  wanted.rotation = rotationFromString(options.rotate);
  auto plan = ContextParallelPlan::create(call.executable, wanted);
  if (!plan)
    return plan.status();
  json["ranks"] = options.ranks;
  json["plan_ms"] = millisecondsSince(begin);
  addPlan((*plan)->forward(), json);
  std::vector<RankTimes> times(size_t(options.ranks));
  std::barrier<> start(options.ranks);
  CPFLEX_RETURN_IF_ERROR(firstFailure(runRanksInThreads(options.ranks, [&](Communicator &communicator) {
    return timeRank(call, *plan, communicator, options, repetitions, start, times[size_t(communicator.rank())]);
  })));
  json["forward_ms"] = slowest(times, &RankTimes::forwardMs);
  if (call.isBackward)
    json["backward_ms"] = slowest(times, &RankTimes::backwardMs);
  return Status::ok();
}

} // namespace cpflex
