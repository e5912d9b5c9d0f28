// Implements the measurements of `cpflexc bench --device cuda`.
#include "tools/cpflexc/GpuBench.h"

#include "lib/API/CudaPrograms.h"
#include "lib/API/ProgramState.h"
#include "runtime/Cuda/DeviceCopies.h"
#include "tools/cpflexc/Timing.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>

namespace cpflex {

namespace {

using Json = nlohmann::ordered_json;

bool isFromCache(const CudaProgram &program) {
  return std::ranges::all_of(program.kernels(), [](const LoadedKernel &kernel) { return kernel.compiled().wasCached; });
}

// From source text to loaded kernels as one who compiles the file again sees it: from the disk cache, and by the
// program that has them.
int benchPrograms(const Options &options, const AttentionCall &call, const CudaProgramOptions &kernels, int repetitions,
                  Json &json) {
  const auto begin = Clock::now();
  LoadedProgram loaded;
  if (int code = loadProgram(options, loaded))
    return code;
  CudaPrograms programs;
  const auto request = [&]() -> StatusOr<std::shared_ptr<const CudaProgram>> {
    StatusOr<DeviceFunctions> functions = loaded.program->deviceFunctions(*loaded.entry, call.binding->bindings());
    if (!functions)
      return functions.status();
    return programs.program(*call.machine, *functions, kernels, loaded.program->log());
  };
  auto first = request();
  if (!first)
    return reportFailure(first.status());
  json["disk_cache_ms"] = isFromCache(**first) ? Json(millisecondsSince(begin)) : Json();
  std::vector<double> microseconds;
  for (int i = 0; i < repetitions; ++i) {
    const auto again = Clock::now();
    if (auto same = request(); !same)
      return reportFailure(same.status());
    microseconds.push_back(1e3 * millisecondsSince(again));
  }
  json["in_process_us"] = median(microseconds);
  return kDone;
}

// A call whose tensors and captures stay on the GPU, and a step that binds the captures there once more.
class StepOnGpu {
public:
  /// Calls are queued on `stream`; arrays are read on `reading`, beside them.
  StepOnGpu(const Options &options, const AttentionCall &call, CudaStream stream, CudaStream reading)
      : options_(options), call_(call), stream_(std::move(stream)), reading_(std::move(reading)) {}

  Status prepare();
  /// Keeps the GPU busy for some milliseconds, `forwardMs` each call.
  Status queueWork(double forwardMs);
  /// Everything that a step with other arrays does on the host, from binding to the launch.
  Status step();
  /// Whether work is still queued.
  StatusOr<bool> isBusy() const;
  Status wait() const { return stream_.synchronize(); }

private:
  Status forward() {
    return executable_->forward(tensors_, workspace_.data(), workspace_.sizeInBytes(), stream_.get());
  }
  StatusOr<CallTensor> onGpu(const TensorView &view, const Array &array, std::array<int64_t, 4> shape);
  Status bringTensors();
  Status bringCaptures();

  const Options &options_;
  const AttentionCall &call_;
  CudaStream stream_, reading_;
  DeviceCopies copies_;
  BindRequest request_;
  ForwardCallTensors tensors_;
  CudaBuffer workspace_;
  CudaEvent queued_;
  std::shared_ptr<Executable> executable_;
};

StatusOr<CallTensor> StepOnGpu::onGpu(const TensorView &view, const Array &array, std::array<int64_t, 4> shape) {
  CallTensor tensor;
  if (!view.data)
    return tensor;
  StatusOr<void *> copy =
      copies_.add(call_.machine->device, array.bytes.data(), int64_t(array.bytes.size()), stream_.get());
  if (!copy)
    return copy.status();
  tensor.data = *copy;
  tensor.type = view.type;
  std::ranges::copy(shape, tensor.shape);
  std::ranges::copy(view.strides, tensor.strides);
  return tensor;
}

Status StepOnGpu::bringTensors() {
  const AttentionProblem &p = call_.problem;
  const std::tuple<CallTensor *, const TensorView *, const Array *, std::array<int64_t, 4>> tensors[] = {
      {&tensors_.q, &call_.qView, &call_.q, {p.batch, p.qHeads, p.qLen, p.headDim}},
      {&tensors_.k, &call_.kView, &call_.k, {p.batch, p.kvHeads, p.kvLen, p.headDim}},
      {&tensors_.v, &call_.vView, &call_.v, {p.batch, p.kvHeads, p.kvLen, p.vHeadDim}},
      {&tensors_.out, &call_.outView, &call_.out, {p.batch, p.qHeads, p.qLen, p.vHeadDim}},
      {&tensors_.lse, &call_.lseView, &call_.lse, {p.batch, p.qHeads, p.qLen, 1}}};
  for (const auto &[tensor, view, array, shape] : tensors) {
    StatusOr<CallTensor> copy = onGpu(*view, *array, shape);
    if (!copy)
      return copy.status();
    *tensor = *copy;
  }
  return Status::ok();
}

Status StepOnGpu::bringCaptures() {
  const auto &device = call_.machine->device;
  const std::vector<CaptureDeclaration> &declarations = call_.loaded.program->signature().captures;
  for (size_t slot = 0; slot < declarations.size(); ++slot) {
    StatusOr<CaptureView> copy = copies_.add(device, call_.binding->bindings().captures[slot], stream_.get());
    if (!copy)
      return copy.status();
    ArrayView view{.data = copy->data,
                   .type = copy->type,
                   .shape = call_.binding->shape(int(slot)),
                   .strides = {},
                   .device = {DeviceType::Cuda, device->description().index},
                   .owner = {}};
    view.strides.assign(copy->strides, copy->strides + copy->rank);
    request_.views[declarations[slot].name] = view;
  }
  request_.params = assignments(options_.defines, "-D");
  request_.sizes = call_.binding->sizes();
  request_.stream = reading_.get();
  return Status::ok();
}

Status StepOnGpu::prepare() {
  CPFLEX_RETURN_IF_ERROR(bringTensors());
  CPFLEX_RETURN_IF_ERROR(bringCaptures());
  auto binding = Binding::create(*call_.loaded.program, request_);
  if (!binding)
    return binding.status();
  const auto &device = call_.machine->device;
  call_.loaded.program->state().cudaPrograms.adopt(*call_.machine);
  LoadOptions load;
  load.device = "cuda:" + std::to_string(device->description().index);
  load.type = call_.type;
  load.headDim = call_.problem.headDim, load.vHeadDim = call_.problem.vHeadDim;
  load.scale = call_.problem.scale;
  load.numThreads = threadCount(options_);
  load.stream = stream_.get();
  auto executable = Executable::load(call_.loaded.program, *call_.loaded.entry, *binding, nullptr, load);
  if (!executable)
    return executable.status();
  executable_ = *executable;
  StatusOr<CudaBuffer> workspace =
      CudaBuffer::allocate(device, executable_->workspaceInBytes(Executable::Pass::Forward));
  if (!workspace)
    return workspace.status();
  workspace_ = std::move(*workspace);
  StatusOr<CudaEvent> queued = CudaEvent::create(device, CudaEvent::Timing::Off);
  if (!queued)
    return queued.status();
  queued_ = std::move(*queued);
  return Status::ok();
}

Status StepOnGpu::queueWork(double forwardMs) {
  constexpr double kBusyMs = 50;
  constexpr double kMostCalls = 500; // what the driver queues without waiting
  const int numCalls = int(std::clamp(std::ceil(kBusyMs / std::max(forwardMs, 1e-3)), 1.0, kMostCalls));
  for (int i = 0; i < numCalls; ++i)
    CPFLEX_RETURN_IF_ERROR(forward());
  return queued_.record(stream_.get());
}

Status StepOnGpu::step() {
  auto binding = Binding::create(*call_.loaded.program, request_);
  if (!binding)
    return binding.status();
  CPFLEX_RETURN_IF_ERROR(executable_->update(*binding, nullptr, stream_.get()));
  return forward();
}

StatusOr<bool> StepOnGpu::isBusy() const {
  StatusOr<bool> isReached = queued_.isReached();
  if (!isReached)
    return isReached.status();
  return !*isReached;
}

// The host's part of a step whose arrays are on the GPU, while the GPU works; and whether that outlasted the step.
Status benchSteps(const Options &options, const AttentionCall &call, const CudaRunReport &report, int repetitions,
                  Json &json) {
  StatusOr<CudaStream> stream = CudaStream::create(call.machine->device);
  if (!stream)
    return stream.status();
  StatusOr<CudaStream> reading = CudaStream::create(call.machine->device);
  if (!reading)
    return reading.status();
  StepOnGpu work(options, call, std::move(*stream), std::move(*reading));
  CPFLEX_RETURN_IF_ERROR(work.prepare());
  std::vector<double> milliseconds;
  bool isOverlapped = true;
  for (int i = 0; i <= repetitions; ++i) {
    CPFLEX_RETURN_IF_ERROR(work.queueWork(median(report.forwardMs)));
    const auto begin = Clock::now();
    CPFLEX_RETURN_IF_ERROR(work.step());
    const double elapsed = millisecondsSince(begin);
    StatusOr<bool> isBusy = work.isBusy();
    if (!isBusy)
      return isBusy.status();
    CPFLEX_RETURN_IF_ERROR(work.wait());
    if (i == 0) // the first step warms up
      continue;
    milliseconds.push_back(elapsed);
    isOverlapped &= *isBusy;
  }
  json["new_arrays_ms"] = median(milliseconds);
  json["new_arrays_overlapped"] = isOverlapped;
  return Status::ok();
}

} // namespace

int benchGpu(const Options &options, AttentionCall &call, int repetitions, Json &json) {
  const CudaMachine &machine = *call.machine;
  const auto begin = Clock::now();
  auto functions = call.loaded.program->deviceFunctions(*call.loaded.entry, call.binding->bindings());
  if (!functions)
    return reportFailure(functions.status());
  const double functorMs = millisecondsSince(begin);
  HostAttentionArrays arrays{.q = call.qView,
                             .k = call.kView,
                             .v = call.vView,
                             .o = call.outView,
                             .lse = call.lseView,
                             .dO = call.dOutView,
                             .dLse = {},
                             .dQ = call.dQView,
                             .dK = call.dKView,
                             .dV = call.dVView};
  StatusOr<CudaRunReport> report = runAttentionCuda(
      machine, *functions, call.problem, arrays, {.warmups = 2, .timed = repetitions, .family = kernelFamily(options)});
  if (!report)
    return reportFailure(report.status());
  json["context_ms"] = machine.contextMs;
  json["nvrtc_load_ms"] = machine.nvrtcLoadMs;
  json["functor_ms"] = functorMs;
  json["kernel_compile_ms"] = report->compileMs;
  json["kernels_were_cached"] = isFromCache(*report->program);
  if (int code = benchPrograms(options, call, report->program->options(), repetitions, json))
    return code;
  json["update_ms"] = report->updateMs;
  if (call.loaded.entry->hasMask && !call.loaded.program->signature().captures.empty())
    if (Status status = benchSteps(options, call, *report, repetitions, json); !status)
      return reportFailure(status);
  json["forward_call_us"] = median(report->forwardCallUs);
  json["forward_ms"] = median(report->forwardMs);
  if (call.isBackward)
    json["backward_ms"] = median(report->backwardMs);
  return kDone;
}

} // namespace cpflex
