// Plans a call for a group of ranks and runs one of them; see cpflex.h.
#include "lib/API/CudaRankDevice.h"
#include "lib/API/ExecutableState.h"
#include "lib/API/TensorChecks.h"
#include "runtime/Executor/Executor.h"
#include "runtime/Host/AttentionChecks.h"
#include "runtime/Host/TileTensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

namespace cpflex {

struct ContextParallelPlan::State {
  std::shared_ptr<const Executable> executable;
  std::vector<std::shared_ptr<const BlockMask>> otherMasks;
  Schedule forward;
  std::optional<Schedule> backward;
  RankCall call;
};

struct RankExecutable::State {
  std::shared_ptr<const ContextParallelPlan> plan;
  std::shared_ptr<Communicator> communicator;
  RankOptions options;
  AttentionProblem shardProblem; ///< the sizes of this rank's shards
  DeviceId device;
  std::unique_ptr<CudaExecutionDevice> cuda; ///< null on the CPU
  PreparedComputes prepared;
  std::unique_ptr<HostThreads> threads;
  RunReport report;                                      ///< counters and peak
  std::vector<TraceEvent> forwardEvents, backwardEvents; ///< of the last pass of each kind
};

namespace {

RankCall rankCallOf(const Executable::State &executable) {
  const AttentionProblem &problem = executable.problem;
  RankCall call;
  call.scale = problem.scale;
  call.normalization = problem.normalization;
  call.tape = executable.entry.hasMask ? &executable.entry.tape : nullptr;
  call.declarations = executable.program->signature().captures;
  call.residuals = executable.entry.residuals;
  call.functions = problem.functions;
  call.bindings = problem.bindings;
  call.summaries = &executable.binding->summaries();
  call.sink = problem.sink;
  call.batchOffset = problem.batchOffset;
  call.headOffset = problem.headOffset;
  return call;
}

PlanRequest planRequestOf(const Executable::State &executable, const ContextParallelOptions &options) {
  const AttentionProblem &problem = executable.problem;
  PlanRequest request;
  request.shape = {.batch = problem.batch,
                   .qHeads = problem.qHeads,
                   .kvHeads = problem.kvHeads,
                   .qLen = problem.qLen,
                   .kvLen = problem.kvLen,
                   .headDim = problem.headDim,
                   .vHeadDim = problem.vHeadDim,
                   .type = executable.type};
  request.worldSize = options.worldSize;
  request.mask = executable.mask.get();
  for (const std::shared_ptr<const BlockMask> &mask : options.otherMasks)
    request.otherMasks.push_back(mask.get());
  request.layout = options.layout;
  request.rotation = options.rotation;
  request.qLayout = options.qLayout;
  request.kvLayout = options.kvLayout;
  request.keyOrder = options.keyOrder;
  request.tokenCounts = options.tokenCounts;
  request.needPrecision = options.needPrecision;
  request.documentOffsets = options.documentOffsets;
  request.functions = problem.functions;
  request.bindings = problem.bindings;
  request.batchOffset = problem.batchOffset;
  request.headOffset = problem.headOffset;
  request.cost = options.cost;
  return request;
}

/// Adds what one pass counted to the totals and gives its spans.
std::vector<TraceEvent> added(RunReport &total, RunReport pass) {
  total.rank = pass.rank;
  for (auto [from, to] : {std::pair(&pass.sent, &total.sent), {&pass.received, &total.received}})
    for (const auto &[key, counter] : *from) {
      (*to)[key].messages += counter.messages;
      (*to)[key].bytes += counter.bytes;
    }
  total.peakBytes = std::max(total.peakBytes, pass.peakBytes);
  return std::move(pass.events);
}

using Types = CheckedTensor::Types;
using Role = CheckedTensor::Role;

struct ShardArgument {
  const char *name;
  const CallTensor &tensor;
  const int64_t (&shape)[4];
  Types types = Types::Any;
  Role role = Role::Input;
  enum class Need : uint8_t { Required, Optional } need = Need::Required;
};

/// Everything that has to be right about the tensors of a rank's call.
Status checkShards(const RankExecutable::State &rank, std::initializer_list<ShardArgument> arguments) {
  const Executable::State &executable = rank.plan->state().executable->state();
  if (const uint64_t version = executable.binding->version(); version != executable.version)
    return Status::invalid(fmt::format("the binding has version {} and the plan was made for version {}; plan again",
                                       version, executable.version));
  std::vector<CheckedTensor> checked;
  for (const ShardArgument &argument : arguments) {
    CPFLEX_RETURN_IF_ERROR(checkTensor({argument.name, argument.tensor, argument.shape}, rank.device));
    if (rank.cuda)
      CPFLEX_RETURN_IF_ERROR(checkRows({argument.name, argument.tensor, argument.shape}));
    if (argument.types != Types::F32)
      CPFLEX_RETURN_IF_ERROR(checkType(argument.name, argument.tensor, executable.type));
    checked.push_back(tensorArgument(argument.name, toTensorView(argument.tensor), argument.shape, argument.types,
                                     argument.role, argument.need == ShardArgument::Need::Optional));
  }
  return checkTensors(checked);
}

/// A tensor in the type of the call. One without rows may have no memory, and its type is not read then.
TensorView shardView(const RankExecutable::State &rank, const CallTensor &shard) {
  TensorView view = toTensorView(shard);
  if (!view.data)
    view.type = rank.plan->state().executable->state().type;
  return view;
}

ExecutorOptions executorOptionsOf(RankExecutable::State &rank, RunReport &report) {
  ExecutorOptions options;
  options.deadlineSeconds = rank.options.deadlineSeconds;
  options.device = rank.cuda.get();
  if (rank.cuda && rank.options.times == RankOptions::Times::WhereFree)
    options.completion = ExecutorOptions::Completion::LinedUp;
  options.attention.threads = rank.threads.get();
  options.prepared = &rank.prepared;
  options.report = &report;
  return options;
}

/// Runs a pass between the work that the caller has queued in `stream` and what follows there.
Status runInStream(RankExecutable::State &rank, void *stream, const std::function<Status()> &pass) {
  if (!rank.cuda)
    return stream ? Status::invalid("'stream' is given for a rank on the cpu; expected null") : pass();
  const auto callers = static_cast<cuda::Stream>(stream);
  CPFLEX_RETURN_IF_ERROR(rank.cuda->startAfter(callers));
  const Status status = pass();
  const Status finished = rank.cuda->finishBefore(callers);
  return status ? finished : status;
}

} // namespace

ContextParallelPlan::ContextParallelPlan(std::unique_ptr<State> state) : state_(std::move(state)) {}
ContextParallelPlan::~ContextParallelPlan() = default;
const Schedule &ContextParallelPlan::forward() const { return state_->forward; }
const Schedule *ContextParallelPlan::backward() const { return state_->backward ? &*state_->backward : nullptr; }
const BlockMask *ContextParallelPlan::mask() const { return state_->executable->state().mask.get(); }

StatusOr<std::shared_ptr<const ContextParallelPlan>>
ContextParallelPlan::create(std::shared_ptr<const Executable> executable, const ContextParallelOptions &options) {
  if (!executable)
    return Status::invalid("'executable' is null; expected one of the whole call");
  const Executable::State &loaded = executable->state();
  const CallSizes &sizes = loaded.binding->sizes();
  if (loaded.part.q != Range{0, sizes.qLen} || loaded.part.kv != Range{0, sizes.kvLen})
    return Status::invalid(fmt::format(
        "the executable has queries {} to {} and keys {} to {}; expected all {} and {}, which "
        "the ranks share",
        loaded.part.q.begin, loaded.part.q.end, loaded.part.kv.begin, loaded.part.kv.end, sizes.qLen, sizes.kvLen));
  for (const std::shared_ptr<const BlockMask> &mask : options.otherMasks)
    if (!mask)
      return Status::invalid("one of 'otherMasks' is null; expected masks");
  auto state = std::make_unique<State>();
  state->executable = executable;
  loaded.isPlanned = true;
  state->otherMasks = options.otherMasks;
  const PlanRequest request = planRequestOf(loaded, options);
  StatusOr<Schedule> forward = planContextParallel(request);
  if (!forward)
    return forward.status();
  state->forward = std::move(*forward);
  if (loaded.passes == CallPasses::ForwardAndBackward) {
    StatusOr<Schedule> backward = planBackward(request, state->forward);
    if (!backward)
      return backward.status();
    state->backward = std::move(*backward);
  }
  state->call = rankCallOf(loaded);
  return std::make_shared<const ContextParallelPlan>(std::move(state));
}

RankExecutable::RankExecutable(std::unique_ptr<State> state) : state_(std::move(state)) {}
RankExecutable::~RankExecutable() = default;

StatusOr<std::shared_ptr<RankExecutable>> RankExecutable::load(std::shared_ptr<const ContextParallelPlan> plan,
                                                               std::shared_ptr<Communicator> communicator,
                                                               const RankOptions &options) {
  if (!plan || !communicator)
    return Status::invalid(
        fmt::format("'{}' is null; a rank needs a plan and a communicator", plan ? "communicator" : "plan"));
  const Schedule &schedule = plan->forward();
  if (communicator->worldSize() != schedule.worldSize)
    return Status::invalid(fmt::format("the plan is for {} ranks and the communicator has {}; expected as many",
                                       schedule.worldSize, communicator->worldSize()));
  const std::shared_ptr<const Executable> &executable = plan->state().executable;
  const Executable::State &loaded = executable->state();
  const CudaCommunicator *onGpu = communicator->asCuda();
  if (loaded.device.type == DeviceType::Cuda && !onGpu)
    return Status::invalid(
        fmt::format("the plan's executable is on CUDA and the communicator '{}' has its messages in host "
                    "memory; expected an executable on the cpu, or a communicator between GPUs",
                    communicator->transport()));
  if (!(options.deadlineSeconds > 0))
    return Status::invalid(fmt::format("deadline of {} seconds; expected a number above 0", options.deadlineSeconds));
  CPFLEX_RETURN_IF_ERROR(checkOptions({.numThreads = options.numThreads}));
  auto state = std::make_unique<State>();
  state->plan = std::move(plan);
  state->communicator = std::move(communicator);
  state->options = options;
  const int32_t rank = state->communicator->rank();
  state->report.rank = rank;
  state->shardProblem = loaded.problem;
  state->shardProblem.qLen = schedule.qLayout.shardSize(rank);
  state->shardProblem.kvLen = schedule.kvLayout.shardSize(rank);
  if (onGpu) {
    StatusOr<std::unique_ptr<CudaExecutionDevice>> device = openRankDevice(*executable, onGpu->port());
    if (!device)
      return device.status();
    state->cuda = std::move(*device);
    state->device = {DeviceType::Cuda, state->cuda->device()->description().index};
  } else {
    state->device = {DeviceType::Cpu, 0};
    state->threads = std::make_unique<HostThreads>(resolvedNumThreads(options.numThreads));
  }
  return std::make_shared<RankExecutable>(std::move(state));
}

Status RankExecutable::forward(const ForwardCallTensors &shards, void *stream) {
  State &rank = *state_;
  const AttentionShapes shapes(rank.shardProblem);
  using enum ShardArgument::Need;
  if (shards.rowMax.data)
    return Status::unsupported("'rowMax' is given; expected null, since ranks do not compute it");
  if (shards.lse.data && rank.shardProblem.normalization == AttentionProblem::Normalization::None)
    return Status::invalid("'lse' is given without softmax; expected null, since it is not defined then");
  CPFLEX_RETURN_IF_ERROR(checkShards(rank, {{"q", shards.q, shapes.q},
                                            {"k", shards.k, shapes.k},
                                            {"v", shards.v, shapes.v},
                                            {"out", shards.out, shapes.out, Types::LikeFirst, Role::Output},
                                            {"lse", shards.lse, shapes.row, Types::F32, Role::Output, Optional}}));
  RunReport report;
  const Status status = runInStream(rank, stream, [&] {
    return runForward(rank.plan->forward(), rank.plan->state().call,
                      {shardView(rank, shards.q), shardView(rank, shards.k), shardView(rank, shards.v),
                       shardView(rank, shards.out), toTensorView(shards.lse)},
                      *rank.communicator, executorOptionsOf(rank, report));
  });
  rank.forwardEvents = added(rank.report, std::move(report));
  return status;
}

Status RankExecutable::backward(const BackwardCallTensors &shards, void *stream) {
  State &rank = *state_;
  const Schedule *schedule = rank.plan->backward();
  if (!schedule)
    return Status::invalid("the executable was loaded for forward only; expected one loaded for backward too");
  const AttentionShapes shapes(rank.shardProblem);
  using enum ShardArgument::Need;
  const bool isSoftmax = rank.shardProblem.normalization == AttentionProblem::Normalization::Softmax;
  const auto forSoftmax = isSoftmax ? Required : Optional;
  CPFLEX_RETURN_IF_ERROR(checkShards(rank, {{"q", shards.q, shapes.q},
                                            {"k", shards.k, shapes.k},
                                            {"v", shards.v, shapes.v},
                                            {"out", shards.out, shapes.out, Types::LikeFirst, Role::Input, forSoftmax},
                                            {"lse", shards.lse, shapes.row, Types::F32, Role::Input, forSoftmax},
                                            {"dOut", shards.dOut, shapes.out, Types::LikeFirst},
                                            {"dLse", shards.dLse, shapes.row, Types::F32, Role::Input, Optional},
                                            {"dQ", shards.dQ, shapes.q, Types::LikeFirst, Role::Output},
                                            {"dK", shards.dK, shapes.k, Types::LikeFirst, Role::Output},
                                            {"dV", shards.dV, shapes.v, Types::LikeFirst, Role::Output}}));
  CPFLEX_RETURN_IF_ERROR(checkCaptureGradients(*rank.plan->state().executable->state().program, shards));
  RankBackwardTensors tensors;
  tensors.q = shardView(rank, shards.q);
  tensors.k = shardView(rank, shards.k);
  tensors.v = shardView(rank, shards.v);
  tensors.out = shardView(rank, shards.out);
  tensors.lse = toTensorView(shards.lse);
  tensors.dOut = shardView(rank, shards.dOut);
  tensors.dLse = toTensorView(shards.dLse);
  tensors.dQ = shardView(rank, shards.dQ);
  tensors.dK = shardView(rank, shards.dK);
  tensors.dV = shardView(rank, shards.dV);
  if (!shards.captureGradients.empty()) {
    tensors.captureGradients = shards.captureGradients.data();
    tensors.numCaptures = int(shards.captureGradients.size());
  }
  tensors.sinkGradient = shards.sinkGradient;
  RunReport report;
  const Status status = runInStream(rank, stream, [&] {
    return runBackward(*schedule, rank.plan->state().call, tensors, *rank.communicator,
                       executorOptionsOf(rank, report));
  });
  rank.backwardEvents = added(rank.report, std::move(report));
  return status;
}

int64_t RankExecutable::deviceMemoryInBytes() const { return state_->cuda ? state_->cuda->heldInBytes() : 0; }

RunReport RankExecutable::report() const {
  RunReport report = state_->report;
  report.events = state_->forwardEvents;
  report.events.insert(report.events.end(), state_->backwardEvents.begin(), state_->backwardEvents.end());
  return report;
}

} // namespace cpflex
