// The device code of one compiled program as plain data, so that the runtime assembles, compiles and launches kernels
// without knowing MLIR: what HostFunctions is for the CPU.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/KernelArguments.h"

#include <string>
#include <vector>

namespace cpflex {

/// A captured array that takes a gradient, in the order of Program::scatterTarget.
struct DeviceGradient {
  int capture = 0;      ///< slot of the program's Signature
  bool isDense = false; ///< its one scatter has ScatterWalk::Dense
};

/// The functor of one attention entry point. `text` is CUDA C++ that defines `struct Program` as KernelArguments.h
/// demands, with `Program::Captures` laid out as CaptureArgument.h demands; it uses nothing but cpflex::ops and the
/// contract headers. The other members repeat what the text says, because they decide which kernel is compiled.
struct DeviceFunctions {
  std::string text;
  bool hasMask = false;
  bool maskReadsBatch = true, maskReadsHead = true; ///< false: the mask is the same for all of them
  ScoreForm scoreForm = ScoreForm::Identity;
  int numCaptures = 0; ///< of the program's Signature, as are the next two
  int numParams = 0;
  int numDims = kNumBuiltinDims;
  std::vector<std::string> captureNames; ///< as the user wrote them, one per capture; may be empty in tests
  std::vector<DeviceGradient> gradients; ///< of what the score reads
};

} // namespace cpflex
