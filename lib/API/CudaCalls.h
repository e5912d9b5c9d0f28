// An Executable's side on a GPU: captures in device memory and the kernels bound to one problem.
#pragma once

#include "lib/API/cpflex.h"
#include "runtime/Cuda/CudaAttention.h"
#include "runtime/Cuda/CudaExecutable.h"
#include "runtime/Cuda/StagedCopies.h"

namespace cpflex {

/// Calls from several threads are fine, each with its own workspace.
class CudaCalls {
public:
  /// The tile that a block mask should have for the kernels that load() would compile.
  static StatusOr<MaskTile> maskTile(const Program &program, const AttentionProblem &problem, ElementType type,
                                     const LoadOptions &options, int deviceIndex);

  /// Compiles or finds the kernels, uploads what is on the host, and binds. `problem` has its sizes, mask and host
  /// pointers.
  static StatusOr<std::unique_ptr<CudaCalls>> load(const Program &program, const EntryPoint &entry,
                                                   const Binding &binding, const AttentionProblem &problem,
                                                   ElementType type, const LoadOptions &options, int deviceIndex);

  /// Takes another binding and mask of the same program and sizes; see Executable::update.
  Status update(const Program &program, const Binding &binding, const AttentionProblem &problem, void *stream);

  int64_t workspaceInBytes(Executable::Pass pass) const;
  int64_t sizeInBytes() const;
  Status forward(const ForwardCallTensors &tensors, void *workspace, void *stream) const;
  Status backward(const BackwardCallTensors &tensors, void *workspace, void *stream) const;

private:
  CudaCalls() = default;
  /// What kernels read of a binding, in the GPU's memory.
  struct OnDevice {
    std::vector<CaptureView> captures;
    const float *sink = nullptr;
  };
  Status reserve(const Program &program, const Binding &binding, const AttentionProblem &problem,
                 const CudaMachine &machine);
  static AttentionProblem onDevice(const AttentionProblem &problem, const OnDevice &staged, Bindings &bindings);
  StatusOr<OnDevice> stage(const Program &program, const Binding &binding, const AttentionProblem &problem);

  int deviceIndex_ = 0;
  StagedCopies copies_;             ///< of captures by slot, and last of the sinks
  std::vector<bool> isReadInPlace_; ///< by slot, as of load()
  std::shared_ptr<CudaExecutable> executable_;
};

/// The captures that lie in a GPU's memory as the program declares them, one per slot; the others have null data.
std::vector<CaptureView> capturesOnDevice(const Program &program, const Binding &binding, int deviceIndex);

/// A tensor as the runtime takes it.
TensorView toTensorView(const CallTensor &tensor);

} // namespace cpflex
