// A CUDA driver in host memory, so that binding and launching are tested where there is no GPU: memory is malloc,
// copies happen at once, and launches are recorded instead of run.
#pragma once

#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Cuda/CudaDevice.h"
#include "runtime/Cuda/CudaProgram.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace cpflex::test {

/// One recorded launch with copies of its parameters.
struct Launch {
  std::string function;
  unsigned gridX, gridY, gridZ, blockX, sharedBytes;
  std::vector<char> arguments; ///< as many bytes as the kernel's struct of arguments has
  std::vector<char> captures;
  template <typename T> T argumentsAs() const {
    T value;
    std::memcpy(&value, arguments.data(), sizeof(T));
    return value;
  }
};

/// One encoded tensor map.
struct EncodedMap {
  void *address;
  std::vector<uint64_t> sizes, strides;
  std::vector<uint32_t> box;
};

/// What the fake driver did and how it should answer; one per test, on the test's thread.
struct FakeGpu {
  int numDevices = 1;
  int capability = 90;
  int version = 13000;
  int numProcessors = 132;
  size_t captureBytes = 0; ///< bytes of captures copied from each launch
  cuda::Result nextAllocation = cuda::kSuccess;
  int exhaustedAllocation = -1; ///< the one, counted from 0, that finds no memory
  cuda::Result nextLaunch = cuda::kSuccess;
  cuda::Result nextModule = cuda::kSuccess;
  int pointerDevice = 0;
  bool pointersAreOnHost = false;
  int numAllocations = 0, numFrees = 0, numLive = 0, numSynchronizations = 0;
  std::vector<Launch> launches;
  std::vector<EncodedMap> maps;
  std::vector<std::string> ranges;      ///< names for profilers in order, `end` where one ended
  std::vector<std::string> moduleNames; ///< names of functions, in order of their requests

  static FakeGpu *&current() {
    static thread_local FakeGpu *gpu = nullptr;
    return gpu;
  }
  FakeGpu() { current() = this; }
  ~FakeGpu() { current() = nullptr; }

  std::shared_ptr<const CudaDriver> driver() const {
    using namespace cuda;
    DriverFunctions f;
    f.getErrorName = [](Result, const char **name) { return *name = "CUDA_ERROR_FAKE", kSuccess; };
    f.getErrorString = [](Result, const char **) { return kInvalidValue; };
    f.deviceGetCount = [](int *count) { return *count = current()->numDevices, kSuccess; };
    f.deviceGet = [](Device *device, int index) { return *device = index, kSuccess; };
    f.deviceGetName = [](char *name, int length, Device) { return std::strncpy(name, "Fake GPU", length), kSuccess; };
    f.deviceTotalMem = [](size_t *bytes, Device) { return *bytes = size_t(1) << 30, kSuccess; };
    f.deviceGetAttribute = [](int *value, DeviceAttribute attribute, Device) {
      switch (attribute) {
      case kComputeCapabilityMajor: *value = current()->capability / 10; break;
      case kComputeCapabilityMinor: *value = current()->capability % 10; break;
      case kMultiprocessorCount: *value = current()->numProcessors; break;
      case kL2CacheSize: *value = 50 << 20; break;
      default: return kInvalidValue;
      }
      return kSuccess;
    };
    f.devicePrimaryCtxRetain = [](Context *context, Device) { return *context = nullptr, kSuccess; };
    f.devicePrimaryCtxRelease = [](Device) { return kSuccess; };
    f.ctxPushCurrent = [](Context) { return kSuccess; };
    f.ctxPopCurrent = [](Context *) { return kSuccess; };
    f.memAlloc = [](DeviceAddress *address, size_t bytes) {
      if (current()->numAllocations++ == current()->exhaustedAllocation)
        return kOutOfMemory;
      if (current()->nextAllocation != kSuccess)
        return current()->nextAllocation;
      ++current()->numLive;
      void *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
      std::memset(memory, 0xee, bytes);
      return *address = reinterpret_cast<DeviceAddress>(memory), kSuccess;
    };
    f.memFree = [](DeviceAddress address) {
      return ++current()->numFrees, --current()->numLive, std::free(reinterpret_cast<void *>(address)), kSuccess;
    };
    f.memGetInfo = [](size_t *free, size_t *total) { return *free = 1000, *total = 2000, kSuccess; };
    f.memAllocHost = [](void **address, size_t bytes) { return *address = std::malloc(bytes), kSuccess; };
    f.memFreeHost = [](void *address) { return std::free(address), kSuccess; };
    f.memcpyHtoDAsync = [](DeviceAddress to, const void *from, size_t bytes, Stream) {
      return std::memcpy(reinterpret_cast<void *>(to), from, bytes), kSuccess;
    };
    f.memcpyDtoHAsync = [](void *to, DeviceAddress from, size_t bytes, Stream) {
      return std::memcpy(to, reinterpret_cast<void *>(from), bytes), kSuccess;
    };
    f.memsetD32Async = [](DeviceAddress address, unsigned value, size_t count, Stream) {
      return std::fill_n(reinterpret_cast<unsigned *>(address), count, value), kSuccess;
    };
    f.pointerGetAttribute = [](void *value, PointerAttribute attribute, DeviceAddress) {
      if (attribute == kPointerMemoryType)
        *static_cast<unsigned *>(value) = current()->pointersAreOnHost ? kMemoryTypeHost : kMemoryTypeDevice;
      else
        *static_cast<int *>(value) = current()->pointerDevice;
      return kSuccess;
    };
    f.streamCreate = [](Stream *stream, unsigned) { return *stream = reinterpret_cast<Stream>(8), kSuccess; };
    f.streamDestroy = [](Stream) { return kSuccess; };
    f.streamSynchronize = [](Stream) { return ++current()->numSynchronizations, kSuccess; };
    f.eventCreate = [](Event *event, unsigned) { return *event = reinterpret_cast<Event>(8), kSuccess; };
    f.eventDestroy = [](Event) { return kSuccess; };
    f.eventRecord = [](Event, Stream) { return kSuccess; };
    f.eventSynchronize = [](Event) { return kSuccess; };
    f.eventElapsedTime = [](float *milliseconds, Event, Event) { return *milliseconds = 1.5f, kSuccess; };
    f.moduleLoadData = [](Module *module, const void *) {
      return *module = reinterpret_cast<Module>(8), current()->nextModule;
    };
    f.moduleUnload = [](Module) { return kSuccess; };
    f.moduleGetFunction = [](Function *function, Module, const char *name) {
      current()->moduleNames.push_back(name);
      return *function = reinterpret_cast<Function>(current()->moduleNames.size()), kSuccess;
    };
    f.funcSetAttribute = [](Function, FunctionAttribute, int) { return kSuccess; };
    f.launchKernel = [](Function function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX, unsigned,
                        unsigned, unsigned sharedBytes, Stream, void **parameters, void **) {
      if (current()->nextLaunch != kSuccess)
        return current()->nextLaunch;
      Launch launch{current()->moduleNames[reinterpret_cast<size_t>(function) - 1],
                    gridX,
                    gridY,
                    gridZ,
                    blockX,
                    sharedBytes,
                    {},
                    {}};
      bool isOfCaptures = launch.function.find("capture") != std::string::npos;
      size_t bytes = launch.function.starts_with("attention_forward") ? sizeof(ForwardArguments)
                     : isOfCaptures                                   ? sizeof(CaptureGradientArguments)
                                                                      : sizeof(BackwardArguments);
      auto *arguments = static_cast<const char *>(parameters[0]), *captures = static_cast<const char *>(parameters[1]);
      launch.arguments.assign(arguments, arguments + bytes);
      launch.captures.assign(captures, captures + current()->captureBytes);
      current()->launches.push_back(std::move(launch));
      return kSuccess;
    };
    f.tensorMapEncodeTiled = [](TensorMap *map, TensorMapElementType, uint32_t rank, void *address,
                                const uint64_t *sizes, const uint64_t *strides, const uint32_t *box, const uint32_t *,
                                TensorMapInterleave, TensorMapSwizzle, TensorMapL2Promotion, TensorMapFill) {
      if (!address)
        return kInvalidValue;
      *map = {};
      current()->maps.push_back({address, {sizes, sizes + rank}, {strides, strides + rank - 1}, {box, box + rank}});
      return kSuccess;
    };
    RangeFunctions ranges;
    ranges.push = [](const char *name) { return current()->ranges.push_back(name), 0; };
    ranges.pop = [] { return current()->ranges.push_back("end"), 0; };
    return CudaDriver::fromFunctions(f, version, ranges);
  }

  std::shared_ptr<const CudaDevice> device() const {
    auto device = CudaDevice::open(driver(), 0);
    return device ? *device : nullptr;
  }

  /// A compiler that finds every kernel of a program in a cache at `folder`, so that none is compiled.
  static KernelToolchain toolchain(const std::string &folder, const DeviceFunctions &functions,
                                   const CudaProgramOptions &options, int capability) {
    KernelToolchain toolchain{.nvrtc = std::make_shared<Nvrtc>(), .cache = KernelCache(folder)};
    if (auto sources = kernelSources(functions, options, capability))
      for (const KernelSource &source : *sources) {
        KernelImage image;
        image.cubin = {'E', 'L', 'F'};
        image.functionName = source.functionName;
        image.architecture = source.architecture;
        image.tiles = source.tiles;
        (void)toolchain.cache->store(cacheKey(source, *toolchain.nvrtc), source, image);
      }
    return toolchain;
  }
};

} // namespace cpflex::test
