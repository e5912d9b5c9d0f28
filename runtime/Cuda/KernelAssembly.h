// How the text of one kernel is put together (stage 7's last step): the embedded kernel files, the program's functor
// and one instantiation, with the digest that names the result. Needs no GPU and no CUDA.
#pragma once

#include "runtime/contract/DeviceFunctions.h"
#include "runtime/contract/EmbeddedFile.h"
#include "runtime/contract/KernelSource.h"
#include "runtime/contract/Status.h"

#include <span>
#include <string>
#include <vector>

namespace cpflex {

/// The files that kernels include, named by their path from the repository root.
struct KernelHeader {
  std::string path;
  std::string_view text;
};
std::vector<KernelHeader> kernelHeaders();

/// The options that every kernel is compiled with, besides the architecture.
std::span<const char *const> kernelCompileOptions();

/// The text of the kernel that `spec` asks for. `spec.hasMask` and `spec.scoreForm` must be those of `functions`.
/// Unsupported when no row of the tile table serves the spec on this compute capability (90 for 9.0).
StatusOr<KernelSource> assembleKernel(const KernelSpec &spec, int computeCapability, const DeviceFunctions &functions);

} // namespace cpflex
