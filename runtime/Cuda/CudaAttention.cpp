// Host arrays to the GPU and back around one attention call.
#include "runtime/Cuda/CudaAttention.h"

#include "runtime/Cuda/CudaExecutable.h"
#include "runtime/Cuda/DeviceCopies.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace cpflex {
namespace {

/// A host array's double on the GPU: the bytes from its first to its last element, under the same strides.
struct ArrayOnDevice {
  TensorView host;
  TensorView device;
  CudaBuffer memory;
  int64_t spanInBytes = 0;
};

/// Bytes from the first to one past the last element; InvalidArgument for negative strides.
StatusOr<int64_t> spanInBytes(const TensorView &view, const int64_t (&sizes)[4], std::string_view name) {
  int64_t extent = 1;
  for (int axis = 0; axis < 4; ++axis) {
    if (sizes[axis] == 0)
      return int64_t(0);
    if (view.strides[axis] < 0 && sizes[axis] > 1)
      return Status::invalid(fmt::format("array '{}' has a negative stride; expected 0 or more", name));
    extent += (sizes[axis] - 1) * view.strides[axis];
  }
  return extent * sizeInBytes(view.type);
}

/// Of the gradient of a capture: f32, axes that are broadcast having one element.
int64_t denseSizeInBytes(const CaptureView &view) {
  int64_t elements = 1;
  for (int axis = 0; axis < view.rank; ++axis)
    elements *= view.strides[axis] == 0 ? std::min<int64_t>(view.shape[axis], 1) : view.shape[axis];
  return elements * static_cast<int64_t>(sizeof(float));
}

/// Everything that lives on the GPU during one run.
class Run {
public:
  Run(const CudaMachine &machine, CudaStream stream) : machine_(machine), stream_(std::move(stream)) {}

  cuda::Stream stream() const { return stream_.get(); }
  const CudaStream &ownStream() const { return stream_; }

  /// Allocates the double of a host array and copies it; a null array stays null.
  Status add(ArrayOnDevice &array, const TensorView &host, const int64_t (&sizes)[4], std::string_view name) {
    array.host = array.device = host;
    if (!host.data)
      return Status::ok();
    StatusOr<int64_t> bytes = spanInBytes(host, sizes, name);
    if (!bytes)
      return bytes.status();
    array.spanInBytes = *bytes;
    StatusOr<CudaBuffer> memory = CudaBuffer::allocate(machine_.device, *bytes);
    if (!memory)
      return memory.status();
    array.memory = std::move(*memory);
    array.device.data = array.memory.data();
    return copyToDevice(*machine_.device, array.memory.address(), host.data, *bytes, stream_.get());
  }

  Status fetch(const ArrayOnDevice &array) const {
    return array.host.data
               ? copyToHost(*machine_.device, array.host.data, array.memory.address(), array.spanInBytes, stream_.get())
               : Status::ok();
  }

  /// Copies plain bytes to memory that lives as long as the run.
  StatusOr<void *> addBytes(const void *bytes, int64_t sizeInBytes) {
    return copies_.add(machine_.device, bytes, sizeInBytes, stream_.get());
  }

  /// The captures with their arrays on the GPU.
  StatusOr<std::vector<CaptureView>> addCaptures(const Bindings *bindings, int numCaptures) {
    std::vector<CaptureView> captures;
    for (int i = 0; i < numCaptures; ++i) {
      StatusOr<CaptureView> copy = copies_.add(machine_.device, bindings->captures[i], stream_.get());
      if (!copy)
        return copy.status();
      captures.push_back(*copy);
    }
    return captures;
  }

private:
  const CudaMachine &machine_;
  CudaStream stream_;
  DeviceCopies copies_;
};

double millisecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

/// Runs `pass` as often as asked; gives the milliseconds of each timed run, and in `callUs` its microseconds on the
/// host.
template <typename Pass>
StatusOr<std::vector<float>> timed(const CudaMachine &machine, const CudaStream &stream, const CudaRunOptions &run,
                                   Pass pass, std::vector<float> &callUs) {
  StatusOr<CudaEvent> begin = CudaEvent::create(machine.device, CudaEvent::Timing::On);
  StatusOr<CudaEvent> end = CudaEvent::create(machine.device, CudaEvent::Timing::On);
  if (!begin || !end)
    return begin ? end.status() : begin.status();
  std::vector<float> milliseconds;
  for (int i = 0; i < run.warmups + run.timed; ++i) {
    CPFLEX_RETURN_IF_ERROR(begin->record(stream.get()));
    auto called = std::chrono::steady_clock::now();
    CPFLEX_RETURN_IF_ERROR(pass());
    auto microseconds = static_cast<float>(1e3 * millisecondsSince(called));
    CPFLEX_RETURN_IF_ERROR(end->record(stream.get()));
    CPFLEX_RETURN_IF_ERROR(stream.synchronize());
    StatusOr<float> elapsed = end->millisecondsSince(*begin);
    if (!elapsed)
      return elapsed.status();
    if (i < run.warmups)
      continue;
    milliseconds.push_back(*elapsed);
    callUs.push_back(microseconds);
  }
  return milliseconds;
}

StatusOr<CudaProgramOptions> programOptions(const CudaMachine &machine, const DeviceFunctions &functions,
                                            const AttentionProblem &problem, const HostAttentionArrays &arrays,
                                            std::optional<KernelFamily> family) {
  CudaProgramOptions options = CudaProgramOptions::of(problem, arrays.q.type);
  options.family = family;
  options.output = arrays.o.type == ElementType::F32 ? OutputForm::F32 : OutputForm::Element;
  if (arrays.dO.data) {
    if (options.output == OutputForm::F32)
      return Status::invalid("'o' is f32 and 'dO' was given; backward reads 'o' in the type of 'q'");
    options.passes = CudaProgramOptions::Passes::ForwardAndBackward;
    if (std::ranges::any_of(arrays.dCaptures, [](float *gradient) { return gradient != nullptr; }))
      options.captureGradients = CudaProgramOptions::CaptureGradients::Computed;
  }
  options.positions = positionMode(problem, functions, options, machine.device->description().computeCapability);
  return options;
}

} // namespace

StatusOr<CudaMachine> CudaMachine::open(int deviceIndex) {
  CudaMachine machine;
  auto begin = std::chrono::steady_clock::now();
  StatusOr<std::shared_ptr<const CudaDriver>> driver = CudaDriver::load();
  if (!driver)
    return driver.status();
  StatusOr<std::shared_ptr<const CudaDevice>> device = CudaDevice::open(*driver, deviceIndex);
  if (!device)
    return device.status();
  machine.device = *device;
  machine.contextMs = millisecondsSince(begin);
  begin = std::chrono::steady_clock::now();
  StatusOr<KernelToolchain> toolchain = KernelToolchain::load();
  if (!toolchain)
    return toolchain.status();
  machine.toolchain = *toolchain;
  machine.nvrtcLoadMs = millisecondsSince(begin);
  return machine;
}

StatusOr<CudaRunReport> runAttentionCuda(const CudaMachine &machine, const DeviceFunctions &functions,
                                         const AttentionProblem &problem, const HostAttentionArrays &arrays,
                                         const CudaRunOptions &options) {
  StatusOr<CudaProgramOptions> compiled = programOptions(machine, functions, problem, arrays, options.family);
  if (!compiled)
    return compiled.status();
  CudaRunReport report;
  auto begin = std::chrono::steady_clock::now();
  StatusOr<std::shared_ptr<const CudaProgram>> program =
      CudaProgram::create(machine.device, machine.toolchain, functions, *compiled);
  if (!program)
    return program.status();
  report.compileMs = millisecondsSince(begin);
  report.program = *program;

  StatusOr<CudaStream> stream = CudaStream::create(machine.device);
  if (!stream)
    return stream.status();
  Run run(machine, std::move(*stream));

  // 1. Arrays, captures and sinks to the GPU.
  const AttentionProblem &p = problem;
  const int64_t qSizes[4] = {p.batch, p.qHeads, p.qLen, p.headDim},
                kSizes[4] = {p.batch, p.kvHeads, p.kvLen, p.headDim};
  const int64_t vSizes[4] = {p.batch, p.kvHeads, p.kvLen, p.vHeadDim},
                oSizes[4] = {p.batch, p.qHeads, p.qLen, p.vHeadDim};
  const int64_t rowSizes[4] = {p.batch, p.qHeads, p.qLen, 1};
  bool isBackward = arrays.dO.data != nullptr;
  bool hasSoftmax = p.normalization == AttentionProblem::Normalization::Softmax;
  ArrayOnDevice q, k, v, o, lse, dO, dLse, dQ, dK, dV;
  CPFLEX_RETURN_IF_ERROR(run.add(q, arrays.q, qSizes, "q"));
  CPFLEX_RETURN_IF_ERROR(run.add(k, arrays.k, kSizes, "k"));
  CPFLEX_RETURN_IF_ERROR(run.add(v, arrays.v, vSizes, "v"));
  CPFLEX_RETURN_IF_ERROR(run.add(o, arrays.o, oSizes, "o"));
  CPFLEX_RETURN_IF_ERROR(run.add(lse, arrays.lse, rowSizes, "lse"));
  CPFLEX_RETURN_IF_ERROR(run.add(dO, arrays.dO, oSizes, "dO"));
  CPFLEX_RETURN_IF_ERROR(run.add(dLse, arrays.dLse, rowSizes, "dLse"));
  CPFLEX_RETURN_IF_ERROR(run.add(dQ, arrays.dQ, qSizes, "dQ"));
  CPFLEX_RETURN_IF_ERROR(run.add(dK, arrays.dK, kSizes, "dK"));
  CPFLEX_RETURN_IF_ERROR(run.add(dV, arrays.dV, vSizes, "dV"));
  CudaBuffer ownLse;
  if (isBackward && hasSoftmax && !lse.device.data) {
    // Backward reads the LSE even when the caller does not want it.
    StatusOr<CudaBuffer> memory =
        CudaBuffer::allocate(machine.device, p.batch * p.qHeads * p.qLen * int64_t(sizeof(float)));
    if (!memory)
      return memory.status();
    ownLse = std::move(*memory);
    lse.device = {.data = ownLse.data(), .type = ElementType::F32, .strides = {p.qHeads * p.qLen, p.qLen, 1, 1}};
  }
  AttentionProblem onDevice = problem;
  Bindings bindings;
  StatusOr<std::vector<CaptureView>> captures = std::vector<CaptureView>();
  if (problem.bindings) {
    captures = run.addCaptures(problem.bindings, functions.numCaptures);
    if (!captures)
      return captures.status();
    bindings = *problem.bindings;
    bindings.captures = captures->data();
    onDevice.bindings = &bindings;
  }
  if (problem.sink) {
    StatusOr<void *> sink = run.addBytes(problem.sink, (p.headOffset + p.qHeads) * int64_t(sizeof(float)));
    if (!sink)
      return sink.status();
    onDevice.sink = static_cast<const float *>(*sink);
  }
  StatusOr<CudaBuffer> dSink =
      CudaBuffer::allocate(machine.device, arrays.dSink ? p.qHeads * int64_t(sizeof(float)) : 0);
  if (!dSink)
    return dSink.status();
  if (arrays.dCaptures.size() > captures->size())
    return Status::invalid(fmt::format("{} gradients of captures were given; {} captures are bound",
                                       arrays.dCaptures.size(), captures->size()));
  std::vector<CudaBuffer> dCaptures(arrays.dCaptures.size());
  std::vector<float *> dCapturesOnDevice(arrays.dCaptures.size(), nullptr);
  for (size_t i = 0; i < arrays.dCaptures.size(); ++i) {
    if (!arrays.dCaptures[i])
      continue;
    StatusOr<CudaBuffer> memory = CudaBuffer::allocate(machine.device, denseSizeInBytes((*captures)[i]));
    if (!memory)
      return memory.status();
    dCaptures[i] = std::move(*memory);
    dCapturesOnDevice[i] = static_cast<float *>(dCaptures[i].data());
  }

  // 2. Bind and run.
  StatusOr<std::shared_ptr<CudaExecutable>> executable = CudaExecutable::bind(*program, onDevice, run.stream());
  if (!executable)
    return executable.status();
  using Pass = CudaExecutable::Pass;
  int64_t workspaceBytes = (*executable)->workspaceInBytes(Pass::Forward);
  if (isBackward)
    workspaceBytes = std::max(workspaceBytes, (*executable)->workspaceInBytes(Pass::Backward));
  StatusOr<CudaBuffer> workspace = CudaBuffer::allocate(machine.device, workspaceBytes);
  if (!workspace)
    return workspace.status();
  CudaForwardTensors forward{q.device, k.device, v.device, o.device, lse.device};
  auto forwardMs = timed(
      machine, run.ownStream(), options,
      [&] { return (*executable)->forward(forward, workspace->data(), run.stream()); }, report.forwardCallUs);
  if (!forwardMs)
    return forwardMs.status();
  report.forwardMs = *forwardMs;
  if (isBackward) {
    CudaBackwardTensors backward{q.device,
                                 k.device,
                                 v.device,
                                 o.device,
                                 lse.device,
                                 dO.device,
                                 dLse.device,
                                 dQ.device,
                                 dK.device,
                                 dV.device,
                                 static_cast<float *>(dSink->data()),
                                 dCapturesOnDevice};
    std::vector<float> backwardCallUs;
    auto backwardMs = timed(
        machine, run.ownStream(), options,
        [&] { return (*executable)->backward(backward, workspace->data(), run.stream()); }, backwardCallUs);
    if (!backwardMs)
      return backwardMs.status();
    report.backwardMs = *backwardMs;
  }

  if (options.warmups > 0) {
    auto updated = std::chrono::steady_clock::now();
    CPFLEX_RETURN_IF_ERROR((*executable)->update(onDevice, run.stream()));
    report.updateMs = millisecondsSince(updated);
  }

  // 3. Results to the host.
  for (const ArrayOnDevice *array : {&o, &lse, &dQ, &dK, &dV})
    CPFLEX_RETURN_IF_ERROR(run.fetch(*array));
  if (arrays.dSink)
    CPFLEX_RETURN_IF_ERROR(
        copyToHost(*machine.device, arrays.dSink, dSink->address(), dSink->sizeInBytes(), run.stream()));
  for (size_t i = 0; i < dCaptures.size(); ++i)
    if (arrays.dCaptures[i])
      CPFLEX_RETURN_IF_ERROR(copyToHost(*machine.device, arrays.dCaptures[i], dCaptures[i].address(),
                                        dCaptures[i].sizeInBytes(), run.stream()));
  return report;
}

} // namespace cpflex
