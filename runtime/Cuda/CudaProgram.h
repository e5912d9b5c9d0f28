// A compiled program on one GPU: the kernels that one attention entry point needs for one element type and pair of head
// sizes, loaded and ready to launch. Knows no lengths, masks or captures: CudaExecutable binds those.
#pragma once

#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Cuda/CudaDevice.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/DeviceFunctions.h"
#include "runtime/contract/KernelSource.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace cpflex {

/// What besides the functor decides the kernels of a program.
struct CudaProgramOptions {
  ElementType element = ElementType::BF16; ///< of Q, K and V: BF16 or F16
  int headDim = 64, vHeadDim = 64;
  AttentionProblem::Normalization normalization = AttentionProblem::Normalization::Softmax;
  PositionMode positions = PositionMode::Identity;
  OutputForm output = OutputForm::Element;
  enum class Passes { Forward, ForwardAndBackward, Backward } passes = Passes::Forward;
  /// Whether backward can give the gradients of captures; no kernel is added where the score reads none.
  enum class CaptureGradients { None, Computed } captureGradients = CaptureGradients::None;
  std::optional<KernelFamily> family; ///< none: what the table of tiles prefers; for tests and comparisons

  /// Of a program for problems like this one: its head sizes and normalization; the rest is as by default.
  static CudaProgramOptions of(const AttentionProblem &problem, ElementType element);
  friend bool operator==(const CudaProgramOptions &, const CudaProgramOptions &) = default;
};

/// The kernels of a program on a compute capability, in the order of launch; behind them those that fill words, which
/// run once per mask. Needs no GPU.
std::vector<KernelSpec> kernelSpecs(const DeviceFunctions &functions, const CudaProgramOptions &options,
                                    int computeCapability);

/// The sources of all kernels of a program, for `--emit=cuda|ptx|cubin` and for compiling ahead. Needs no GPU.
StatusOr<std::vector<KernelSource>> kernelSources(const DeviceFunctions &functions, const CudaProgramOptions &options,
                                                  int computeCapability);

/// The tile to ask of the classifier for a program: the largest that divides those of its kernels along q, and that of
/// forward along kv; the tiles of kernels do not depend on the functor. Any other tile works too; a larger one makes
/// kernels look at more tiles than attend, and one that is no multiple of a kernel's makes some of its full tiles
/// partial.
struct MaskTile {
  int64_t q = 128, kv = 128;
};
MaskTile preferredMaskTile(const CudaProgramOptions &options, int computeCapability);

/// How a kernel must read the positions of a problem whose kernels have these tiles: the cheapest mode that is exact.
PositionMode positionMode(const AttentionProblem &problem, const std::vector<TileConfig> &tiles);
/// The same for the kernels that a program with these options has.
PositionMode positionMode(const AttentionProblem &problem, const DeviceFunctions &functions, CudaProgramOptions options,
                          int computeCapability);

/// Work items of a kernel per row of tiles and head.
inline int64_t workItemsPerRow(const KernelSpec &spec) {
  return spec.role == KernelRole::BackwardKV ? columnParts(spec.headDim, spec.vHeadDim) : 1;
}

/// One kernel on a GPU. The module is unloaded with the object.
class LoadedKernel {
public:
  /// Unavailable when the driver refuses the image: too old, or the image is damaged.
  static StatusOr<LoadedKernel> load(std::shared_ptr<const CudaDevice> device, const KernelSpec &spec,
                                     CompiledKernel compiled);
  ~LoadedKernel();
  LoadedKernel(LoadedKernel &&other) noexcept;
  LoadedKernel &operator=(LoadedKernel &&) = delete;

  const KernelSpec &spec() const { return spec_; }
  const TileConfig &tiles() const { return compiled_.image.tiles; }
  /// The resource report and whether it came from the cache; the machine code is dropped once loaded.
  const CompiledKernel &compiled() const { return compiled_; }
  cuda::Function function() const { return function_; }

private:
  LoadedKernel(std::shared_ptr<const CudaDevice> device, const KernelSpec &spec, CompiledKernel compiled)
      : device_(std::move(device)), spec_(spec), compiled_(std::move(compiled)) {}
  std::shared_ptr<const CudaDevice> device_;
  KernelSpec spec_;
  CompiledKernel compiled_;
  cuda::Module module_ = nullptr;
  cuda::Function function_ = nullptr;
};

struct KernelBundle;

/// Immutable once created, shared freely between threads.
class CudaProgram {
public:
  /// Compiles, or takes from the cache, and loads every kernel that `options` asks for.
  static StatusOr<std::shared_ptr<const CudaProgram>> create(std::shared_ptr<const CudaDevice> device,
                                                             const KernelToolchain &toolchain,
                                                             DeviceFunctions functions,
                                                             const CudaProgramOptions &options);

  /// Loads the kernels of a bundle; needs no NVRTC. Unsupported when they were compiled for another architecture.
  static StatusOr<std::shared_ptr<const CudaProgram>> fromBundle(std::shared_ptr<const CudaDevice> device,
                                                                 const KernelBundle &bundle);

  const CudaDevice &device() const { return *device_; }
  std::shared_ptr<const CudaDevice> sharedDevice() const { return device_; }
  const DeviceFunctions &functions() const { return functions_; }
  const CudaProgramOptions &options() const { return options_; }
  const std::vector<LoadedKernel> &kernels() const { return kernels_; }
  /// The kernel of a role, null when the program was created without it.
  const LoadedKernel *kernel(KernelRole role) const;
  /// Size of Program::Captures in bytes.
  int64_t capturesInBytes() const;
  /// Everything the cache could not do, for one warning to the user.
  std::vector<std::string> warnings() const;

private:
  CudaProgram(std::shared_ptr<const CudaDevice> device, DeviceFunctions functions, const CudaProgramOptions &options)
      : device_(std::move(device)), functions_(std::move(functions)), options_(options) {}
  std::shared_ptr<const CudaDevice> device_;
  DeviceFunctions functions_;
  CudaProgramOptions options_;
  std::vector<LoadedKernel> kernels_;
};

} // namespace cpflex
