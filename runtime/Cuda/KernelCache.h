// The disk cache of compiled kernels: one folder per kernel, safe against other processes, damage and a full disk.
// Which kernels share a key is CompileKernel's business.
#pragma once

#include "runtime/Cuda/SharedLibrary.h"
#include "runtime/contract/KernelSource.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cpflex {

/// A folder of entries `<key>/{kernel.cu,kernel.cubin,resources.json}`. Entries are written aside and renamed, so a
/// reader sees a whole entry or none, however many processes start cold. The object holds no state but the folder.
class KernelCache {
public:
  static constexpr int64_t kDefaultLimitInBytes = int64_t(1) << 30;

  /// Nothing is created before the first store. Beyond the limit, entries unused for longest are removed.
  explicit KernelCache(std::string folder, int64_t limitInBytes = kDefaultLimitInBytes)
      : folder_(std::move(folder)), limitInBytes_(limitInBytes) {}

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
  /// Every entry, latest used first; empty when the folder does not exist.
  std::vector<Entry> list() const;

  /// Removes every entry and what crashed writers left behind, and nothing else in the folder.
  struct Cleared {
    int64_t numEntries = 0;
    int64_t sizeInBytes = 0;
  };
  StatusOr<Cleared> clear() const;

  const std::string &folder() const { return folder_; }

private:
  void evict(const std::string &keptKey) const;

  std::string folder_;
  int64_t limitInBytes_;
};

} // namespace cpflex
