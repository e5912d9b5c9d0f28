// Kernel text to machine code (stage 8): NVRTC, what it reports about registers and spills, and the disk cache before
// it. Needs no GPU.
#pragma once

#include "runtime/Cuda/KernelCache.h"
#include "runtime/Cuda/Nvrtc.h"
#include "runtime/contract/KernelSource.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace cpflex {

/// What compiles kernels: NVRTC and, unless caching is off, a cache. Copied freely, shared between threads.
struct KernelToolchain {
  std::shared_ptr<const Nvrtc> nvrtc;
  std::optional<KernelCache> cache;

  /// NVRTC as found by nvrtcSearch() and the cache at its default folder.
  static StatusOr<KernelToolchain> load();
};

/// The outcome of asking for a kernel.
struct CompiledKernel {
  KernelImage image;
  bool wasCached = false;
  std::vector<std::string> cacheWarnings; ///< why the cache could not be used or kept; the image is good all the same
};

/// Compiles without looking at a cache. Text that NVRTC rejects is a bug of cpflex: the Status says so, holds the first
/// errors and names the file where the source was kept (in `rejectedFolder`, or the folder for temporary files when
/// that is empty).
StatusOr<KernelImage> compileKernel(const KernelSource &source, const Nvrtc &nvrtc,
                                    const std::string &rejectedFolder = {});

/// The image from the cache, or compiled and then kept there. A cache that fails never fails the call.
StatusOr<CompiledKernel> cachedKernel(const KernelSource &source, const KernelToolchain &toolchain);

/// The PTX of a kernel, for `--emit=ptx`.
StatusOr<std::string> compileToPtx(const KernelSource &source, const Nvrtc &nvrtc);

/// The digest that names a kernel in the cache: everything that decides the machine code, NVRTC's version included.
std::string cacheKey(const KernelSource &source, const Nvrtc &nvrtc);

/// Reads registers, spills, stack and static shared memory of the function out of ptxas' report, and the lines that say
/// that wgmma was serialised or registers were spilled, into `image`.
void readResourceReport(const std::string &log, KernelImage &image);

} // namespace cpflex
