// Brings captures to a GPU and hands calls to the CUDA runtime.
#include "lib/API/CudaCalls.h"

#include "lib/API/ProgramState.h"

#include <fmt/format.h>

namespace cpflex {

TensorView toTensorView(const CallTensor &tensor) {
  return {tensor.data, tensor.type, {tensor.strides[0], tensor.strides[1], tensor.strides[2], tensor.strides[3]}};
}

StatusOr<void *> CudaCalls::upload(const CudaMachine &machine, const void *bytes, int64_t sizeInBytes,
                                   cuda::Stream stream) {
  StatusOr<CudaBuffer> memory = CudaBuffer::allocate(machine.device, sizeInBytes);
  if (!memory)
    return memory.status();
  CPFLEX_RETURN_IF_ERROR(copyToDevice(*machine.device, memory->address(), bytes, sizeInBytes, stream));
  kept_.push_back(std::move(*memory));
  return kept_.back().data();
}

Status CudaCalls::addCaptures(const Program &program, const Binding &binding, const CudaMachine &machine,
                              int deviceIndex, cuda::Stream stream) {
  const std::vector<CaptureDeclaration> &declarations = program.signature().captures;
  for (size_t slot = 0; slot < declarations.size(); ++slot) {
    CaptureView view = binding.bindings().captures[slot];
    const ArrayView &source = binding.source(int(slot));
    if (source.device == DeviceId{DeviceType::Cuda, deviceIndex} && source.type == declarations[slot].type) {
      // Read in place. Axes that the binding broadcasts have another size there.
      view.data = source.data;
      for (int axis = 0; axis < view.rank; ++axis)
        view.strides[axis] = view.shape[axis] == source.shape[axis] ? source.strides[axis] : 0;
      captures_.push_back(view);
      continue;
    }
    int64_t low = 0, high = 0;
    bool isEmpty = !view.data;
    for (int axis = 0; axis < view.rank; ++axis) {
      isEmpty |= view.shape[axis] == 0;
      (view.strides[axis] < 0 ? low : high) += (view.shape[axis] - 1) * view.strides[axis];
    }
    if (!isEmpty) {
      const int64_t size = sizeInBytes(view.type);
      StatusOr<void *> data =
          upload(machine, static_cast<const char *>(view.data) + low * size, (high - low + 1) * size, stream);
      if (!data)
        return data.status();
      view.data = static_cast<char *>(*data) - low * size;
    }
    captures_.push_back(view);
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
        calls->upload(*machine, problem.sink, binding.sizes().heads * int64_t(sizeof(float)), stream);
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

int64_t CudaCalls::sizeInBytes() const {
  int64_t size = executable_->sizeInBytes();
  for (const CudaBuffer &memory : kept_)
    size += memory.sizeInBytes();
  return size;
}

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
