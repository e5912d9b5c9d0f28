// The text of one kernel as it goes to NVRTC, and what comes back: plain data between lib/CodeGen/Cuda, which prints
// the functor and the instantiation, and runtime/Cuda, which compiles, caches, loads and launches.
//
// A kernel's text is, in this order:
//   1. #include "runtime/contract/Operations.h"           (functors call cpflex::ops)
//   2. #include "runtime/kernels/<file of the spec>"      (kernelFile() of TileConfig.h)
//   3. struct Program { ... };                            (KernelArguments.h says what it must contain)
//   4. the instantiation                                  (kernelInstantiation() of TileConfig.h)
// The included files are embedded in the binary and handed to NVRTC as named headers, under their path from the
// repository root: runtime/contract/{Operations,KernelArguments,CaptureArgument,PartialArguments}.h and every file of
// runtime/kernels/.
#pragma once

#include "runtime/contract/KernelSpec.h"
#include "runtime/contract/TileConfig.h"

#include <cstdint>
#include <string>
#include <vector>

namespace cpflex {

/// One translation unit with one kernel in it.
struct KernelSource {
  KernelSpec spec;
  TileConfig tiles;
  std::string text;         ///< CUDA C++
  std::string functionName; ///< of the kernel, as in extern "C"
  std::string architecture; ///< `sm_90a`
  std::string key;          ///< digest of everything that decides the machine code, compiler version excluded
};

/// A compiled kernel and what the compiler said of it.
struct KernelImage {
  std::vector<char> cubin;
  std::string functionName;
  std::string architecture; ///< `sm_90a`
  TileConfig tiles;
  int32_t registers = 0;  ///< per thread at entry
  int32_t spillBytes = 0; ///< stores and loads
  int32_t stackBytes = 0;
  int32_t staticSharedBytes = 0;
  std::vector<std::string> warnings; ///< lines of the log that cost speed: serialised wgmma, spills
  std::string log;                   ///< the compiler's, with the resource report
};

} // namespace cpflex
