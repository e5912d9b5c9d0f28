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

static int64_t sinksInBytes(const AttentionProblem &problem, const Binding &binding) {
  return problem.sink ? binding.sizes().heads * int64_t(sizeof(float)) : 0;
}

Status CudaCalls::reserve(const Program &program, const Binding &binding, const AttentionProblem &problem,
                          const CudaMachine &machine) {
  std::vector<int64_t> sizes;
  for (const CaptureView &inPlace : capturesOnDevice(program, binding, deviceIndex_)) {
    isReadInPlace_.push_back(inPlace.data != nullptr);
    sizes.push_back(inPlace.data ? 0 : elementSpan(binding.bindings().captures[sizes.size()]).size());
  }
  sizes.push_back(sinksInBytes(problem, binding));
  StatusOr<StagedCopies> copies = StagedCopies::reserve(machine.device, sizes);
  if (copies)
    copies_ = std::move(*copies);
  return copies.status();
}

StatusOr<CudaCalls::OnDevice> CudaCalls::stage(const Program &program, const Binding &binding,
                                               const AttentionProblem &problem) {
  OnDevice staged;
  for (const CaptureView &inPlace : capturesOnDevice(program, binding, deviceIndex_)) {
    const size_t slot = staged.captures.size();
    if (inPlace.data) {
      staged.captures.push_back(inPlace);
      continue;
    }
    const std::string name = fmt::format("array '{}'", program.signature().captures[slot].name);
    const CaptureView &onHost = binding.bindings().captures[slot];
    if (isReadInPlace_[slot] && elementSpan(onHost).size() > 0)
      return Status::invalid(
          fmt::format("{} is not in the memory of cuda:{}; expected it there, where the executable was "
                      "loaded to read it in place",
                      name, deviceIndex_));
    StatusOr<CaptureView> copy = copies_.stage(slot, name, onHost);
    if (!copy)
      return copy.status();
    staged.captures.push_back(*copy);
  }
  if (problem.sink) {
    StatusOr<void *> sink =
        copies_.stage(staged.captures.size(), "the array of sinks", problem.sink, sinksInBytes(problem, binding));
    if (!sink)
      return sink.status();
    staged.sink = static_cast<const float *>(*sink);
  }
  return staged;
}

static CudaProgramOptions programOptions(const AttentionProblem &problem, ElementType type,
                                         const LoadOptions &options) {
  CudaProgramOptions compiled = CudaProgramOptions::of(problem, type);
  if (options.passes == CallPasses::ForwardAndBackward)
    compiled.passes = CudaProgramOptions::Passes::ForwardAndBackward;
  compiled.captureGradients = CudaProgramOptions::CaptureGradients::Computed;
  return compiled;
}

// The problem as kernels see it; `bindings` must live as long as it.
AttentionProblem CudaCalls::onDevice(const AttentionProblem &problem, const OnDevice &staged, Bindings &bindings) {
  bindings = *problem.bindings;
  bindings.captures = staged.captures.data();
  AttentionProblem onDevice = problem;
  onDevice.bindings = &bindings;
  onDevice.sink = staged.sink;
  return onDevice;
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
  compiled.positions = positionMode(problem, *functions, compiled, machine->device->description().computeCapability);
  auto kernels = programs.program(*machine, *functions, compiled, program.log());
  if (!kernels)
    return kernels.status();

  std::unique_ptr<CudaCalls> calls(new CudaCalls());
  calls->deviceIndex_ = deviceIndex;
  CPFLEX_RETURN_IF_ERROR(calls->reserve(program, binding, problem, *machine));
  StatusOr<OnDevice> staged = calls->stage(program, binding, problem);
  if (!staged)
    return staged.status();
  Bindings bindings;
  auto executable = CudaExecutable::bind(*kernels, onDevice(problem, *staged, bindings),
                                         static_cast<cuda::Stream>(options.stream), calls->copies_.takeUploads());
  if (!executable)
    return executable.status();
  calls->executable_ = *executable;
  return calls;
}

Status CudaCalls::update(const Program &program, const Binding &binding, const AttentionProblem &problem,
                         void *stream) {
  if (!copies_.isEmpty())
    CPFLEX_RETURN_IF_ERROR(executable_->waitForUploads());
  StatusOr<OnDevice> staged = stage(program, binding, problem);
  const std::vector<CudaUpload> uploads = copies_.takeUploads();
  if (!staged)
    return staged.status();
  Bindings bindings;
  return executable_->update(onDevice(problem, *staged, bindings), static_cast<cuda::Stream>(stream), uploads);
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
  CudaBackwardTensors views{toTensorView(tensors.q),
                            toTensorView(tensors.k),
                            toTensorView(tensors.v),
                            toTensorView(tensors.out),
                            toTensorView(tensors.lse),
                            toTensorView(tensors.dOut),
                            toTensorView(tensors.dLse),
                            toTensorView(tensors.dQ),
                            toTensorView(tensors.dK),
                            toTensorView(tensors.dV),
                            nullptr};
  if (tensors.sinkGradient)
    views.dSink = tensors.sinkGradient + executable_->problem().headOffset;
  views.dCaptures = tensors.captureGradients;
  return executable_->backward(views, workspace, static_cast<cuda::Stream>(stream));
}

} // namespace cpflex
