// One attention call of the command line, ready to run: the tensors, read or random, the bound program and its mask.
#pragma once

#include "tools/cpflexc/Options.h"

#include "runtime/Cuda/CudaAttention.h"
#include "runtime/Executor/ContextParallelRun.h"
#include "runtime/Host/ReferenceAttention.h"
#include "runtime/Plan/Planner.h"
#include "runtime/contract/KernelArguments.h"

#include <cstdint>
#include <optional>

namespace cpflex {

/// Where the tensors of a call come from; empty paths mean random values.
struct TensorFiles {
  std::string q, k, v, dOut;
  uint64_t seed = 0;
  bool isBackward = false;
};

/// A prepared call. Owns its tensors; the views point into it, so it is made once and not copied.
struct AttentionCall {
  LoadedProgram loaded;
  std::shared_ptr<const Binding> binding;
  std::shared_ptr<const Executable> executable; ///< on the CPU
  std::optional<CudaMachine> machine;           ///< where one GPU makes the call, that and its compiler
  AttentionProblem problem;                     ///< that of `executable`
  ElementType type = ElementType::F32;
  bool isBackward = false;
  Array q, k, v, out, lse, dOut, dQ, dK, dV;
  TensorView qView, kView, vView, outView, lseView, dOutView, dQView, dKView, dVView;
  std::vector<Array> captureGradients; ///< f32, empty where the capture takes no gradient
  std::vector<float *> captureGradientPointers;
  std::vector<float> sinkGradient;
  double maskMs = 0;

  AttentionCall() = default;
  AttentionCall(const AttentionCall &) = delete;
};

/// Reads or makes the tensors, binds the program and builds the mask. Prints what is wrong and returns the exit code.
int prepareCall(const Options &options, const TensorFiles &files, AttentionCall &call);

/// Forward and, where asked for, backward on the CPU of this process.
Status runOnHost(AttentionCall &call, const Options &options);

/// What the executor of context-parallel schedules calls on each rank.
RankCall rankCall(const AttentionCall &call);
WholeTensors wholeTensors(const AttentionCall &call);

/// The plan of one forward call, as the rank options ask.
PlanRequest planRequest(const Options &options, const CallShape &shape, const BlockMask *mask);

/// True when the device is a GPU; then `index` is its number.
bool isCuda(const Options &options, int &index);

/// The kernels that --kernels asks for; none: what the table of tiles prefers.
std::optional<KernelFamily> kernelFamily(const Options &options);

} // namespace cpflex
