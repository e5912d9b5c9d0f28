// Loading libcuda and naming its results.
#include "runtime/Cuda/CudaDriver.h"

#include <fmt/format.h>

namespace cpflex {

LibrarySearch cudaDriverSearch() {
  return {.libraryName = "CUDA driver",
          .candidates = {"libcuda.so.1", "/usr/local/nvidia/lib64/libcuda.so.1",
                         "/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1",
                         "/usr/local/cuda/compat/libcuda.so.1"},
          .remedy = "install an NVIDIA driver, or run on the CPU"};
}

std::string cudaVersionText(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

bool isContextLost(cuda::Result result) {
  switch (result) {
  case cuda::kEccUncorrectable:
  case cuda::kIllegalAddress:
  case cuda::kLaunchTimeout:
  case cuda::kContextIsDestroyed:
  case cuda::kAssert:
  case cuda::kHardwareStackError:
  case cuda::kIllegalInstruction:
  case cuda::kMisalignedAddress:
  case cuda::kInvalidAddressSpace:
  case cuda::kInvalidPc:
  case cuda::kLaunchFailed: return true;
  default: return false;
  }
}

/// What the user can do about a result; empty when there is nothing to add.
static std::string_view remedyFor(cuda::Result result) {
  if (isContextLost(result))
    return "the CUDA context of this process is lost; start the program again to use this GPU";
  switch (result) {
  case cuda::kOutOfMemory: return "free GPU memory or make the problem smaller";
  case cuda::kStubLibrary: return "this libcuda is the stub for linking; install an NVIDIA driver, or run on the CPU";
  case cuda::kNoDevice: return "no GPU is visible; look at CUDA_VISIBLE_DEVICES and at nvidia-smi, or run on the CPU";
  case cuda::kInvalidDevice: return "choose one of the GPUs that 'cpflexc devices' lists";
  case cuda::kDeviceUnavailable: return "another process has the GPU for itself; wait for it or choose another GPU";
  case cuda::kNoBinaryForGpu:
  case cuda::kInvalidImage:
  case cuda::kUnsupportedPtxVersion:
    return "the driver is too old for the compiled kernel; update it, or name an older NVRTC in CPFLEX_NVRTC";
  case cuda::kInvalidContext:
  case cuda::kInvalidHandle: return "the stream or memory belongs to another device or was destroyed";
  case cuda::kDeinitialized: return "the process is shutting down";
  case cuda::kSystemDriverMismatch:
  case cuda::kCompatNotSupportedOnDevice:
    return "the driver library does not match the kernel module; reboot, or remove the compatibility libcuda";
  default: return {};
  }
}

Status CudaDriver::status(cuda::Result result, std::string_view call) const {
  if (result == cuda::kSuccess)
    return Status::ok();
  const char *name = nullptr, *text = nullptr;
  if (!getErrorName || getErrorName(result, &name) != cuda::kSuccess)
    name = nullptr;
  if (!getErrorString || getErrorString(result, &text) != cuda::kSuccess)
    text = nullptr;
  std::string message =
      name ? fmt::format("{} failed with {}", call, name) : fmt::format("{} failed with result {}", call, int(result));
  if (text)
    message += fmt::format(" ({})", text);
  if (std::string_view remedy = remedyFor(result); !remedy.empty())
    message += fmt::format("; {}", remedy);
  return {result == cuda::kOutOfMemory ? StatusCode::OutOfMemory : StatusCode::Unavailable, std::move(message)};
}

std::shared_ptr<const CudaDriver> CudaDriver::fromFunctions(const cuda::DriverFunctions &functions, int version,
                                                            const cuda::RangeFunctions &ranges) {
  auto driver = std::shared_ptr<CudaDriver>(new CudaDriver(functions));
  driver->ranges_ = ranges;
  driver->version_ = version;
  return driver;
}

/// NVTX where it is installed: both functions or none.
static cuda::RangeFunctions loadRanges() {
  StatusOr<SharedLibrary> library =
      SharedLibrary::open({.libraryName = "NVTX",
                           .candidates = {"libnvToolsExt.so.1", "/usr/local/cuda/lib64/libnvToolsExt.so.1"},
                           .remedy = ""});
  if (!library)
    return {};
  cuda::RangeFunctions ranges{reinterpret_cast<int (*)(const char *)>(library->symbol("nvtxRangePushA")),
                              reinterpret_cast<int (*)()>(library->symbol("nvtxRangePop"))};
  return ranges.push && ranges.pop ? ranges : cuda::RangeFunctions();
}

StatusOr<std::shared_ptr<const CudaDriver>> CudaDriver::load(const LibrarySearch &search) {
  StatusOr<SharedLibrary> library = SharedLibrary::open(search);
  if (!library)
    return library.status();

  cuda::DriverFunctions functions;
  const char *missing = nullptr;
  auto bind = [&](auto &member, const char *symbol, bool isRequired) {
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(library->symbol(symbol));
    if (!member && isRequired && !missing)
      missing = symbol;
  };
#define CPFLEX_CUDA_ENTRY(MEMBER, SYMBOL, PARAMETERS) bind(functions.MEMBER, #SYMBOL, /*isRequired=*/true);
#define CPFLEX_CUDA_OPTIONAL_ENTRY(MEMBER, SYMBOL, PARAMETERS) bind(functions.MEMBER, #SYMBOL, /*isRequired=*/false);
#include "runtime/Cuda/CudaEntryPoints.def"
  if (missing)
    return Status::unavailable(fmt::format("'{}' has no function '{}'; cpflex needs a driver for CUDA {} or newer",
                                           library->path(), missing, cudaVersionText(kOldestCudaDriver)));

  auto driver = std::shared_ptr<CudaDriver>(new CudaDriver(functions));
  CPFLEX_RETURN_IF_ERROR(driver->status(driver->init(0), "cuInit"));
  CPFLEX_RETURN_IF_ERROR(driver->status(driver->driverGetVersion(&driver->version_), "cuDriverGetVersion"));
  if (driver->version_ < kOldestCudaDriver)
    return Status::unavailable(fmt::format("the driver serves CUDA {}; expected {} or newer; update the NVIDIA driver",
                                           cudaVersionText(driver->version_), cudaVersionText(kOldestCudaDriver)));
  driver->ranges_ = loadRanges();
  return std::shared_ptr<const CudaDriver>(std::move(driver));
}

} // namespace cpflex
