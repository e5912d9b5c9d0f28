// Which GPU kernels does a program have? What `compile` prints and `explain --kernel` describes; needs no GPU.
#pragma once

#include "tools/cpflexc/Options.h"

#include "runtime/Cuda/CudaProgram.h"

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace cpflex {

/// What kernels are compiled for where no target is named.
inline constexpr const char *kDefaultTarget = "sm_90a";

/// The kernels of an entry point on one architecture, in the order of launch.
struct ProgramKernels {
  DeviceFunctions functions;
  CudaProgramOptions options;
  int computeCapability = 0;
  std::vector<KernelSource> sources;
};

/// What is known of the call whose kernels are asked for.
enum class KernelBinding {
  Required, ///< all lengths, params and arrays are given, and their facts checked
  Optional, ///< where arrays or lengths are missing, ints are those of lengths and params up to 2^30
};

/// The element type and head sizes that the options ask for.
CudaProgramOptions kernelOptions(const Options &options);

/// The sources of the kernels that `target` (`sm_NN`; empty: kDefaultTarget) runs, with those of backward where asked
/// for.
StatusOr<ProgramKernels> programKernels(const Options &options, const LoadedProgram &loaded, const std::string &target,
                                        CudaProgramOptions::Passes passes, KernelBinding binding);

/// That of the GPU which --device names; Unavailable where the machine has none, Unsupported where it is too old.
StatusOr<int> computeCapability(const Options &options);

/// The check of --target: `cpu`, or an architecture that kernels exist for.
std::string checkTarget(const std::string &text);

} // namespace cpflex
