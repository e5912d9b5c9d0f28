// How a library of the machine (the CUDA driver, NVRTC, NCCL) is found and opened at run time. Nothing is linked: a
// missing library is one sentence that says where it was looked for and what to do.
#pragma once

#include "runtime/contract/Status.h"

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

/// Where to look for one library: paths, or bare names left to the dynamic loader (which reads LD_LIBRARY_PATH), tried
/// in order.
struct LibrarySearch {
  std::string libraryName;             ///< what people call it: `NVRTC`
  std::vector<std::string> candidates; ///< tried in order; may be empty
  std::string remedy;                  ///< what to do when none opens, as a clause: `install ...`
};

/// An opened library. It stays open until the process ends: the libraries of CUDA keep threads of their own.
class SharedLibrary {
public:
  /// Opens the first candidate that the loader accepts; Unavailable names every place tried.
  static StatusOr<SharedLibrary> open(const LibrarySearch &search);

  /// The address of a function, null when the library has none of that name.
  void *symbol(const char *name) const;
  /// The candidate that opened.
  const std::string &path() const { return path_; }

private:
  SharedLibrary(void *handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  void *handle_;
  std::string path_;
};

/// Reads an environment variable; empty when unset. Tests pass their own.
using EnvironmentLookup = std::function<std::string(std::string_view name)>;

/// The environment of this process.
std::string processEnvironment(std::string_view name);

} // namespace cpflex
