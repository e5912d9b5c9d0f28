// A compiled program in one file: the code of its mask and its kernels for one architecture. What it takes to load and
// run one is the driver alone, neither NVRTC nor the compiler: buildBlockMask() runs the mask's code,
// CudaProgram::fromBundle() loads the kernels, CudaExecutable binds and launches them.
#pragma once

#include "runtime/Cuda/CudaProgram.h"
#include "runtime/contract/Bindings.h"
#include "runtime/contract/Residual.h"
#include "runtime/contract/Status.h"
#include "runtime/contract/Tape.h"

#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

/// One entry point with everything that a run needs besides arrays, params and sizes.
struct KernelBundle {
  std::string entry;
  Signature signature;             ///< what a run must bind, in slot order
  Tape tape;                       ///< of the mask; unused where functions.hasMask is false
  std::vector<Residual> residuals; ///< of the tape
  float scale = 0.0f;              ///< of the scores; 0: 1 / sqrt(head size)
  int32_t sinkCapture = -1;        ///< slot of the sinks; -1: none
  DeviceFunctions functions;       ///< without text
  CudaProgramOptions options;
  int32_t computeCapability = 0;
  std::vector<KernelImage> kernels; ///< in the order of kernelSpecs()
};

/// The bundle as the contents of a file.
std::string toBytes(const KernelBundle &bundle);

/// InvalidArgument where `bytes` are no bundle, one of another version, or damaged.
StatusOr<KernelBundle> kernelBundle(std::string_view bytes);

} // namespace cpflex
