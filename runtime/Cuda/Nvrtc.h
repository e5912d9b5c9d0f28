// NVRTC, the CUDA C++ compiler as a library, as a table of functions loaded at run time. Needs no GPU and no driver.
#pragma once

#include "runtime/Cuda/SharedLibrary.h"
#include "runtime/contract/Status.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

namespace nvrtc {

using Program = struct ProgramHandle *;
enum Result : int {
  kSuccess = 0,
  kOutOfMemory = 1,
  kInvalidInput = 3,
  kInvalidOption = 5,
  kCompilation = 6,
  kBuiltinOperationFailure = 7
};

/// NVRTC's functions under the names of NvrtcEntryPoints.def.
struct Functions {
#define CPFLEX_NVRTC_ENTRY(MEMBER, SYMBOL, PARAMETERS) Result(*MEMBER) PARAMETERS = nullptr;
#include "runtime/Cuda/NvrtcEntryPoints.def"
  const char *(*getErrorString)(Result result) = nullptr;
};

} // namespace nvrtc

/// Where NVRTC is looked for, in order: CPFLEX_NVRTC (a file or its folder), beside the program and in `lib` beside its
/// folder, the dynamic loader's own path, /usr/local/cuda, and the pip wheels of the Python found through VIRTUAL_ENV,
/// CONDA_PREFIX and PATH.
LibrarySearch nvrtcSearch(const EnvironmentLookup &environment = processEnvironment);

/// The oldest NVRTC that knows the instructions of the kernels, major * 1000 + minor * 10.
inline constexpr int kOldestNvrtc = 12030;

/// NVRTC of this machine. Immutable, safe to use from many threads.
class Nvrtc : public nvrtc::Functions {
public:
  /// Unavailable when none is found or it is older than kOldestNvrtc.
  static StatusOr<std::shared_ptr<const Nvrtc>> load(const LibrarySearch &search = nvrtcSearch());

  /// Ok for success; else a Status with the call and NVRTC's name for the result.
  Status status(nvrtc::Result result, std::string_view call) const;

  /// major * 1000 + minor * 10, as the driver counts CUDA versions.
  int version() const { return version_; }
  /// The library that was opened.
  const std::string &path() const { return path_; }
  /// Whether it compiles for an architecture such as `sm_90a`.
  bool supports(std::string_view architecture) const;

private:
  int version_ = 0;
  std::string path_;
  std::vector<int> architectures_;
};

} // namespace cpflex
