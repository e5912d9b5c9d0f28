// The CUDA driver as a table of functions loaded at run time, and the one place where its results become a Status.
#pragma once

#include "runtime/Cuda/CudaTypes.h"
#include "runtime/Cuda/SharedLibrary.h"
#include "runtime/contract/Status.h"

#include <memory>
#include <string>
#include <string_view>

namespace cpflex {

namespace cuda {

/// The driver's functions under the names of CudaEntryPoints.def; optional ones may be null.
struct DriverFunctions {
#define CPFLEX_CUDA_ENTRY(MEMBER, SYMBOL, PARAMETERS) Result(*MEMBER) PARAMETERS = nullptr;
#include "runtime/Cuda/CudaEntryPoints.def"
};

/// NVTX's named ranges, which profilers show; null where the library is not installed.
struct RangeFunctions {
  int (*push)(const char *name) = nullptr;
  int (*pop)() = nullptr;
};

} // namespace cuda

/// Where libcuda is looked for: as the dynamic loader finds it, then in the usual folders.
LibrarySearch cudaDriverSearch();

/// The oldest driver that serves the kernels, as cuDriverGetVersion counts.
inline constexpr int kOldestCudaDriver = 12000;

/// `13.0` from 13000, as the driver counts versions.
std::string cudaVersionText(int version);

/// The driver of this machine, initialised. Immutable, safe to use from many threads.
class CudaDriver : public cuda::DriverFunctions {
public:
  /// Loads and initialises the driver. Unavailable when there is none, when it is a stub, finds no device or is older
  /// than kOldestCudaDriver.
  static StatusOr<std::shared_ptr<const CudaDriver>> load(const LibrarySearch &search = cudaDriverSearch());

  /// A driver made of functions supplied by a test; null functions must not be called.
  static std::shared_ptr<const CudaDriver> fromFunctions(const cuda::DriverFunctions &functions, int version,
                                                         const cuda::RangeFunctions &ranges = {});

  /// Ok for success; else a Status with the call, the driver's name for the result and what to do about it.
  Status status(cuda::Result result, std::string_view call) const;

  /// The newest CUDA that the driver serves, e.g. 13000.
  int version() const { return version_; }
  const cuda::RangeFunctions &ranges() const { return ranges_; }

private:
  explicit CudaDriver(const cuda::DriverFunctions &functions) : cuda::DriverFunctions(functions) {}
  int version_ = 0;
  cuda::RangeFunctions ranges_;
};

/// Names what this thread does for a scope, for profilers; nothing happens without NVTX.
class CudaRange {
public:
  CudaRange(const CudaDriver &driver, const char *name) : ranges_(driver.ranges()) {
    if (ranges_.push)
      ranges_.push(name);
  }
  ~CudaRange() {
    if (ranges_.push)
      ranges_.pop();
  }
  CudaRange(const CudaRange &) = delete;

private:
  const cuda::RangeFunctions &ranges_;
};

/// Whether a result means that the process's context is lost for good: nothing on that device will work again here.
bool isContextLost(cuda::Result result);

} // namespace cpflex
