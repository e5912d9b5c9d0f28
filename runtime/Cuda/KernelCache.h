// The disk cache of compiled kernels: one folder per kernel of a DiskCache, which other compiled code may share. Which
// kernels share a key is CompileKernel's business.
#pragma once

#include "runtime/Cuda/SharedLibrary.h"
#include "runtime/Files/DiskCache.h"
#include "runtime/contract/KernelSource.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cpflex {

/// Entries `<key>/{kernel.cu,kernel.cubin,resources.json}` of a DiskCache.
class KernelCache {
public:
  static constexpr int64_t kDefaultLimitInBytes = DiskCache::kDefaultLimitInBytes;

  explicit KernelCache(std::string folder, int64_t limitInBytes = kDefaultLimitInBytes)
      : disk_(std::move(folder), limitInBytes) {}

  /// `$CPFLEX_CACHE_DIR`, else `$XDG_CACHE_HOME/cpflex`, else `~/.cache/cpflex`, else a folder for temporary files.
  static std::string defaultFolder(const EnvironmentLookup &environment = processEnvironment);

  /// The kernel kept under `key`; nothing when there is none, or when it is damaged (a store then replaces it).
  std::optional<KernelImage> find(const std::string &key) const;

  /// Keeps a kernel under `key` and removes what exceeds the limit. Ok when another process kept it first. Unavailable
  /// when the folder cannot be written: the caller goes on without.
  Status store(const std::string &key, const KernelSource &source, const KernelImage &image) const;

  /// One kept kernel, as `cpflexc cache list` prints it.
  struct Entry {
    std::string key;
    std::string functionName;
    std::string architecture;
    int64_t sizeInBytes = 0;
    int64_t lastUsed = 0; ///< seconds since 1970
    int32_t registers = 0;
    int32_t spillBytes = 0;
  };
  /// Every kernel, latest used first; empty when the folder does not exist.
  std::vector<Entry> list() const;

  /// Removes every entry of the folder, other compiled code included, and what crashed writers left behind.
  using Cleared = DiskCache::Cleared;
  StatusOr<Cleared> clear() const;

  const std::string &folder() const { return disk_.folder(); }

private:
  DiskCache disk_;
};

} // namespace cpflex
