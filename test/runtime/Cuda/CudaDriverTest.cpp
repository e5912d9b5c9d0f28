// Loading the driver on machines that have none, and what its results say.
#include "runtime/Cuda/CudaDriver.h"
#include "runtime/Cuda/CudaDevice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cpflex {
namespace {

using testing::HasSubstr;

std::shared_ptr<const CudaDriver> driverThatNames(const char *name, const char *text) {
  static thread_local const char *currentName, *currentText;
  currentName = name, currentText = text;
  cuda::DriverFunctions functions;
  functions.getErrorName = [](cuda::Result, const char **out) {
    return *out = currentName, currentName ? cuda::kSuccess : cuda::kInvalidValue;
  };
  functions.getErrorString = [](cuda::Result, const char **out) {
    return *out = currentText, currentText ? cuda::kSuccess : cuda::kInvalidValue;
  };
  return CudaDriver::fromFunctions(functions, 13000);
}

TEST(CudaDriver, MissingLibraryIsOneSentence) {
  LibrarySearch search{
      .libraryName = "CUDA driver", .candidates = {}, .remedy = "install an NVIDIA driver, or run on the CPU"};
  auto driver = CudaDriver::load(search);
  ASSERT_FALSE(driver);
  EXPECT_EQ(driver.status().code(), StatusCode::Unavailable);
  EXPECT_EQ(driver.status().message(),
            "no CUDA driver library found; looked for nowhere (the search path is empty); install an "
            "NVIDIA driver, or run on the CPU");
}

TEST(CudaDriver, MissingLibraryNamesThePlaces) {
  auto driver =
      CudaDriver::load({.libraryName = "CUDA driver", .candidates = {"/nowhere/a.so", "b-none.so"}, .remedy = "r"});
  ASSERT_FALSE(driver);
  EXPECT_EQ(driver.status().message(), "no CUDA driver library found; looked for '/nowhere/a.so', 'b-none.so'; r");
}

TEST(CudaDriver, LibraryWithoutTheFunctionsIsTooOld) {
  auto driver = CudaDriver::load({.libraryName = "CUDA driver", .candidates = {"libm.so.6"}, .remedy = "r"});
  ASSERT_FALSE(driver);
  EXPECT_EQ(driver.status().message(),
            "'libm.so.6' has no function 'cuInit'; cpflex needs a driver for CUDA 12.0 or newer");
}

TEST(CudaDriver, StubLibrarySaysSo) {
  const char *stub = "/usr/local/cuda/lib64/stubs/libcuda.so";
  LibrarySearch search{.libraryName = "CUDA driver", .candidates = {stub}, .remedy = "r"};
  if (!SharedLibrary::open(search))
    GTEST_SKIP() << "no stub library on this machine";
  auto driver = CudaDriver::load(search);
  ASSERT_FALSE(driver);
  EXPECT_THAT(driver.status().message(), HasSubstr("cuInit failed with"));
  EXPECT_THAT(driver.status().message(), HasSubstr("this libcuda is the stub for linking; install an NVIDIA driver"));
}

TEST(CudaDriver, ResultCarriesCallNameAndRemedy) {
  auto driver = driverThatNames("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered");
  EXPECT_EQ(
      driver->status(cuda::kIllegalAddress, "cuStreamSynchronize").message(),
      "cuStreamSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered); the CUDA "
      "context of this process is lost; start the program again to use this GPU");
  EXPECT_TRUE(driver->status(cuda::kSuccess, "cuInit"));
}

TEST(CudaDriver, ResultWithoutNameIsANumber) {
  auto driver = driverThatNames(nullptr, nullptr);
  EXPECT_EQ(driver->status(cuda::Result(12345), "cuInit").message(), "cuInit failed with result 12345");
}

TEST(CudaDriver, EveryRemedyIsPrinted) {
  auto driver = driverThatNames("NAME", nullptr);
  auto remedy = [&](cuda::Result result) { return driver->status(result, "call").message(); };
  EXPECT_EQ(driver->status(cuda::kOutOfMemory, "call").code(), StatusCode::OutOfMemory);
  EXPECT_THAT(remedy(cuda::kOutOfMemory), HasSubstr("free GPU memory or make the problem smaller"));
  EXPECT_THAT(remedy(cuda::kNoDevice), HasSubstr("no GPU is visible; look at CUDA_VISIBLE_DEVICES"));
  EXPECT_THAT(remedy(cuda::kInvalidDevice), HasSubstr("choose one of the GPUs that 'cpflexc devices' lists"));
  EXPECT_THAT(remedy(cuda::kDeviceUnavailable), HasSubstr("another process has the GPU for itself"));
  EXPECT_THAT(remedy(cuda::kNoBinaryForGpu), HasSubstr("the driver is too old for the compiled kernel; update it"));
  EXPECT_THAT(remedy(cuda::kInvalidHandle), HasSubstr("belongs to another device or was destroyed"));
  EXPECT_THAT(remedy(cuda::kDeinitialized), HasSubstr("the process is shutting down"));
  EXPECT_THAT(remedy(cuda::kSystemDriverMismatch), HasSubstr("the driver library does not match the kernel module"));
}

} // namespace
} // namespace cpflex
