// Attention on a GPU for callers whose arrays are on the host: `cpflexc run|bench --device cuda` and tests. Allocates,
// copies, runs, copies back, and times on request.
#pragma once

#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Cuda/CudaDevice.h"
#include "runtime/Cuda/CudaProgram.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/DeviceFunctions.h"

#include <optional>
#include <string>
#include <vector>

namespace cpflex {

/// A GPU and the compiler for it.
struct CudaMachine {
  std::shared_ptr<const CudaDevice> device;
  KernelToolchain toolchain;
  double contextMs = 0;   ///< what loading the driver and opening the GPU took
  double nvrtcLoadMs = 0; ///< what finding and loading NVRTC took

  /// The GPU with this index, NVRTC and the default cache.
  static StatusOr<CudaMachine> open(int deviceIndex);
};

/// Host arrays of one attention call, indexed [b, h, s, d] by their strides (not negative). Q, K, V and dO have one
/// type, bf16 or f16; outputs have that type, or are all f32. `lse` (f32) may be null. Backward runs when `dO` is not
/// null; it then needs dQ, dK and dV, and takes what forward wrote to o.
struct HostAttentionArrays {
  TensorView q, k, v, o, lse;
  TensorView dO, dLse, dQ, dK, dV;
  float *dSink = nullptr;              ///< one per local query head, or null
  std::vector<float *> dCaptures = {}; ///< one per capture, dense, null where not wanted; empty: none
};

/// What a run on the GPU says besides its results.
struct CudaRunReport {
  std::shared_ptr<const CudaProgram> program;
  double compileMs = 0;                     ///< from functor to loaded kernels, cache included
  std::vector<float> forwardMs, backwardMs; ///< one per repetition, from events on the GPU
  std::vector<float> forwardCallUs;         ///< what each of these forward calls took on the host
  double updateMs = 0;                      ///< host time of binding the same mask once more; with warm-ups only
};

/// How a run is made: how often each pass runs, the first `warmups` unreported, and by which kernels.
struct CudaRunOptions {
  int warmups = 0;
  int timed = 1;
  std::optional<KernelFamily> family = {}; ///< none: what the table of tiles prefers
};

/// Runs forward and, where asked for, backward. All pointers of `problem` and `arrays` are host memory.
StatusOr<CudaRunReport> runAttentionCuda(const CudaMachine &machine, const DeviceFunctions &functions,
                                         const AttentionProblem &problem, const HostAttentionArrays &arrays,
                                         const CudaRunOptions &options = {});

} // namespace cpflex
