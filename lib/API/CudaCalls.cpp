// Brings captures to a GPU and hands calls to the CUDA runtime.
#include "lib/API/CudaCalls.h"

#include "lib/API/ProgramState.h"

#include <fmt/format.h>

namespace cpflex {

TensorView toTensorView(const CallTensor &tensor) {
  return {tensor.data, tensor.type, {tensor.strides[0], tensor.strides[1], tensor.strides[2], tensor.strides[3]}};
}

std::vector<CaptureView> capturesOnDevice(const Program &program, const Binding &binding, int deviceIndex) {
  const std::vector<CaptureDeclaration> &declarations = program.signature().captures;
  std::vector<CaptureView> views(declarations.size());
  for (size_t slot = 0; slot < declarations.size(); ++slot) {
    const ArrayView &source = binding.source(int(slot));
    if (source.device != DeviceId{DeviceType::Cuda, deviceIndex} || source.type != declarations[slot].type)
      continue;
    // Axes that the binding broadcasts have another size there.
    CaptureView &view = views[slot] = binding.bindings().captures[slot];
    view.data = source.data;
    for (int axis = 0; axis < view.rank; ++axis)
      view.strides[axis] = view.shape[axis] == source.shape[axis] ? source.strides[axis] : 0;
  }
  return views;
}

Status CudaCalls::addCaptures(const Program &program, const Binding &binding, const CudaMachine &machine,
                              int deviceIndex, cuda::Stream stream) {
  for (const CaptureView &view : capturesOnDevice(program, binding, deviceIndex)) {
    if (view.data) {
      captures_.push_back(view);
      continue;
    }
    StatusOr<CaptureView> copy =
        copies_.add(machine.device, binding.bindings().captures[captures_.size()], stream);
    if (!copy)
      return copy.status();
    captures_.push_back(*copy);
  }
  return Status::ok();
}

static CudaProgramOptions programOptions(const AttentionProblem &problem, ElementType type,
                                         const LoadOptions &options) {
  CudaProgramOptions compiled = CudaProgramOptions::of(problem, type);
  if (options.passes == CallPasses::ForwardAndBackward)
    compiled.passes = CudaProgramOptions::Passes::ForwardAndBackward;
  compiled.captureGradients = CudaProgramOptions::CaptureGradients::Computed;
  return compiled;
}

StatusOr<MaskTile> CudaCalls::maskTile(const Program &program, const AttentionProblem &problem, ElementType type,
                                       const LoadOptions &options, int deviceIndex) {
  StatusOr<CudaMachine> machine = program.state().cudaPrograms.machine(deviceIndex);
  if (!machine)
    return machine.status();
  return preferredMaskTile(programOptions(problem, type, options), machine->device->description().computeCapability);
}

StatusOr<std::unique_ptr<CudaCalls>> CudaCalls::load(const Program &program, const EntryPoint &entry,
                                                     const Binding &binding, const AttentionProblem &problem,
                                                     ElementType type, const LoadOptions &options, int deviceIndex) {
  CudaPrograms &programs = program.state().cudaPrograms;
  StatusOr<CudaMachine> machine = programs.machine(deviceIndex);
  if (!machine)
    return machine.status();
  StatusOr<DeviceFunctions> functions = program.deviceFunctions(entry, binding.bindings());
  if (!functions)
    return functions.status();
  CudaProgramOptions compiled = programOptions(problem, type, options);
  compiled.positions =
      positionMode(problem, *functions, compiled, machine->device->description().computeCapability);
  auto kernels = programs.program(*machine, *functions, compiled, program.log());
  if (!kernels)
    return kernels.status();

  std::unique_ptr<CudaCalls> calls(new CudaCalls());
  const auto stream = static_cast<cuda::Stream>(options.stream);
  CPFLEX_RETURN_IF_ERROR(calls->addCaptures(program, binding, *machine, deviceIndex, stream));
  AttentionProblem onDevice = problem;
  Bindings bindings = binding.bindings();
  bindings.captures = calls->captures_.data();
  onDevice.bindings = &bindings;
  if (problem.sink) {
    StatusOr<void *> sink =
        calls->copies_.add(machine->device, problem.sink, binding.sizes().heads * int64_t(sizeof(float)), stream);
    if (!sink)
      return sink.status();
    onDevice.sink = static_cast<const float *>(*sink);
  }
  auto executable = CudaExecutable::bind(*kernels, onDevice, stream);
  if (!executable)
    return executable.status();
  calls->executable_ = *executable;
  return calls;
}

int64_t CudaCalls::workspaceInBytes(Executable::Pass pass) const {
  return executable_->workspaceInBytes(pass == Executable::Pass::Forward ? CudaExecutable::Pass::Forward
                                                                         : CudaExecutable::Pass::Backward);
}

int64_t CudaCalls::sizeInBytes() const { return executable_->sizeInBytes() + copies_.sizeInBytes(); }

Status CudaCalls::forward(const ForwardCallTensors &tensors, void *workspace, void *stream) const {
  if (tensors.rowMax.data)
    return Status::unsupported("'rowMax' is given on cuda; expected null, since only the cpu computes it");
  return executable_->forward({toTensorView(tensors.q), toTensorView(tensors.k), toTensorView(tensors.v),
                               toTensorView(tensors.out), toTensorView(tensors.lse)},
                              workspace, static_cast<cuda::Stream>(stream));
}

Status CudaCalls::backward(const BackwardCallTensors &tensors, void *workspace, void *stream) const {
  CudaBackwardTensors views{toTensorView(tensors.q),    toTensorView(tensors.k),    toTensorView(tensors.v),
                            toTensorView(tensors.out),  toTensorView(tensors.lse),  toTensorView(tensors.dOut),
                            toTensorView(tensors.dLse), toTensorView(tensors.dQ),   toTensorView(tensors.dK),
                            toTensorView(tensors.dV),   nullptr};
  if (tensors.sinkGradient)
    views.dSink = tensors.sinkGradient + executable_->problem().headOffset;
  views.dCaptures = tensors.captureGradients;
  return executable_->backward(views, workspace, static_cast<cuda::Stream>(stream));
}

} // namespace cpflex
