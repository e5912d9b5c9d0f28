// A folder of compiled code, shared by the processes of a machine: safe against other writers, damage, a full disk and
// a folder that cannot be written. What the files of an entry mean, and whether they are whole, is their owners'
// business.
#pragma once

#include "runtime/contract/Status.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

/// Entries `<key>/<file>`, a key being 64 hexadecimal digits. Entries are written aside and renamed, so a reader sees a
/// whole entry or none, however many processes start cold. Code from here is run, so a folder (or a link to it) of
/// another user, root aside, or one to which others may write holds nothing and takes nothing. The object holds no
/// state but the folder; thread safe.
class DiskCache {
public:
  static constexpr int64_t kDefaultLimitInBytes = int64_t(1) << 30;

  /// Nothing is created before the first store; the folder is made for its owner alone. Beyond the limit, entries
  /// unused for longest are removed.
  explicit DiskCache(std::string folder, int64_t limitInBytes = kDefaultLimitInBytes)
      : folder_(std::move(folder)), limitInBytes_(limitInBytes) {
    while (folder_.size() > 1 && folder_.ends_with('/')) // a link with a slash behind it would be taken for its target
      folder_.pop_back();
  }

  /// The contents of a file of an entry; nothing when it is not there.
  std::optional<std::string> read(const std::string &key, const std::string &file) const;

  /// Notes that an entry was used, for eviction; a folder that is read-only keeps its times.
  void touch(const std::string &key) const;

  struct File {
    std::string name;
    std::string_view contents;
  };
  /// Keeps files under `key` and removes what exceeds the limit. Ok when another process kept them first, unless
  /// `isDamaged()` says that what is there is no good: it is replaced then. `name` and `consequence` stand in the
  /// message: "the <name> cannot be written (...); <consequence>". Unavailable when the folder cannot be written or is
  /// not to be trusted: the caller goes on without.
  Status store(const std::string &key, std::span<const File> files, const std::function<bool()> &isDamaged,
               std::string_view name, std::string_view consequence) const;

  struct Entry {
    std::string key;
    int64_t sizeInBytes = 0;
    int64_t lastUsed = 0; ///< seconds since 1970
  };
  /// Every entry, latest used first; empty when the folder does not exist.
  std::vector<Entry> list() const;

  /// Removes every entry and what crashed writers left behind, and nothing else in the folder.
  struct Cleared {
    int64_t numEntries = 0;
    int64_t sizeInBytes = 0;
  };
  StatusOr<Cleared> clear(std::string_view name) const;

  const std::string &folder() const { return folder_; }

private:
  /// Unavailable, with the reason, when another user may decide what the folder holds.
  Status trust(std::string_view name, std::string_view consequence) const;
  void evict(const std::string &keptKey) const;

  std::string folder_;
  int64_t limitInBytes_;
};

} // namespace cpflex
