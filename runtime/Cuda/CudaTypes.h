// Our own declarations of the few types of the CUDA driver API that the runtime names, so that nothing of CUDA is
// needed to build. Values follow the driver's published ABI.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cpflex::cuda {

using Device = int;
using DeviceAddress = unsigned long long;
using Context = struct ContextHandle *;
using Module = struct ModuleHandle *;
using Function = struct FunctionHandle *;
using Stream = struct StreamHandle *;
using Event = struct EventHandle *;
using MemoryPool = struct MemoryPoolHandle *;

/// The results that the runtime tells apart; every other value is passed on by name.
enum Result : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kDeinitialized = 4,
  kStubLibrary = 34,
  kDeviceUnavailable = 46,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNoBinaryForGpu = 209,
  kEccUncorrectable = 214,
  kUnsupportedPtxVersion = 222,
  kInvalidSource = 300,
  kInvalidHandle = 400,
  kNotReady = 600,
  kIllegalAddress = 700,
  kLaunchOutOfResources = 701,
  kLaunchTimeout = 702,
  kContextIsDestroyed = 709,
  kAssert = 710,
  kHardwareStackError = 714,
  kIllegalInstruction = 715,
  kMisalignedAddress = 716,
  kInvalidAddressSpace = 717,
  kInvalidPc = 718,
  kLaunchFailed = 719,
  kSystemDriverMismatch = 803,
  kCompatNotSupportedOnDevice = 804,
};

enum DeviceAttribute : int {
  kMultiprocessorCount = 16,
  kL2CacheSize = 38,
  kComputeCapabilityMajor = 75,
  kComputeCapabilityMinor = 76,
  kMaxSharedMemoryPerBlockOptin = 97,
};

/// Most blocks of a grid along y, and along z.
inline constexpr int64_t kMostBlocksAlongY = 65535;

enum FunctionAttribute : int { kMaxDynamicSharedSizeBytes = 8 };

enum PointerAttribute : int { kPointerMemoryType = 2, kPointerDeviceOrdinal = 9 };
enum MemoryType : unsigned { kMemoryTypeHost = 1, kMemoryTypeDevice = 2 };

enum MemoryLocationType : int { kMemoryLocationDevice = 1 };
struct MemoryLocation {
  MemoryLocationType type = kMemoryLocationDevice;
  int index = 0;
};

enum MemoryAllocationType : int { kMemoryAllocationPinned = 1 };
enum MemoryPoolAttribute : int { kMemoryPoolReleaseThreshold = 4 };
/// Pinned memory of one GPU that is not shared with other processes.
struct MemoryPoolProperties {
  MemoryAllocationType allocationType = kMemoryAllocationPinned;
  int handleTypes = 0;
  MemoryLocation location;
  void *securityAttributes = nullptr;
  size_t maxSize = 0;
  unsigned char reserved[56] = {};
};
static_assert(sizeof(MemoryPoolProperties) == 88);

enum MemoryAccessFlags : int { kMemoryReadWrite = 3 };
struct MemoryAccess {
  MemoryLocation location;
  MemoryAccessFlags flags = kMemoryReadWrite;
};

enum StreamFlag : unsigned { kStreamNonBlocking = 1 };
enum EventFlag : unsigned { kEventDefault = 0, kEventDisableTiming = 2 };

enum TensorMapElementType : int { kTensorMapFloat16 = 6, kTensorMapBFloat16 = 9 };
enum TensorMapInterleave : int { kTensorMapInterleaveNone = 0 };
enum TensorMapSwizzle : int { kTensorMapSwizzle128B = 3 };
enum TensorMapL2Promotion : int { kTensorMapL2Promotion256B = 3 };
enum TensorMapFill : int { kTensorMapFillZeros = 0 };

/// An encoded tensor map, opaque.
struct alignas(64) TensorMap {
  uint64_t words[16];
};
static_assert(sizeof(TensorMap) == 128);

} // namespace cpflex::cuda
