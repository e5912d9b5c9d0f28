// NCCL as a table of functions loaded at run time, with our own declarations of the few types it takes.
#pragma once

#include "runtime/Cuda/CudaTypes.h"
#include "runtime/Cuda/SharedLibrary.h"
#include "runtime/contract/Status.h"

#include <climits>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace cpflex {

namespace nccl {

using Comm = struct CommHandle *;
enum Result : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7
};
enum ElementKind : int { kUint8 = 1 };

/// Names a group of ranks before it exists; made by one, known to all.
struct UniqueId {
  char bytes[128];
};

/// How a communicator is made: NCCL's configuration as of version 2.18, which later versions read too. INT_MIN leaves
/// the choice to NCCL.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = 0; ///< calls return before they are done, so that waits can have deadlines
  int cgaClusterSize = INT_MIN;
  int minCTAs = INT_MIN;
  int maxCTAs = INT_MIN;
  const char *netName = nullptr;
  int splitShare = INT_MIN;
};

/// NCCL's functions under the names of NcclEntryPoints.def.
struct Functions {
#define CPFLEX_NCCL_ENTRY(MEMBER, SYMBOL, PARAMETERS) Result(*MEMBER) PARAMETERS = nullptr;
#include "runtime/Comm/NcclEntryPoints.def"
  const char *(*getErrorString)(Result result) = nullptr;
  const char *(*getLastError)(Comm comm) = nullptr;
};

} // namespace nccl

/// Where NCCL is looked for: CPFLEX_NCCL, the dynamic loader's path, and the Python wheels of the machine.
LibrarySearch ncclSearch(const EnvironmentLookup &environment = processEnvironment);

/// The oldest NCCL with the configuration above, as ncclGetVersion counts.
inline constexpr int kOldestNccl = 21800;

/// NCCL of this machine. Immutable, safe to use from many threads.
class NcclLibrary : public nccl::Functions {
public:
  /// Unavailable when none is found or it is older than kOldestNccl. Turns NVLink multicast off for NCCL in this
  /// process: sets NCCL_NVLS_ENABLE to 0.
  static StatusOr<std::shared_ptr<const NcclLibrary>> load(const LibrarySearch &search = ncclSearch());
  /// A library made of functions supplied by a test.
  static std::shared_ptr<const NcclLibrary> fromFunctions(const nccl::Functions &functions);

  /// Ok for success; else what NCCL says of the result, and of the last error where there is one.
  std::string describe(nccl::Result result, nccl::Comm comm) const;
  Status status(nccl::Result result, std::string_view call) const;
  /// The id of a group to be.
  StatusOr<nccl::UniqueId> newId() const;
  int version() const { return version_; }

private:
  int version_ = 0;
};

} // namespace cpflex
