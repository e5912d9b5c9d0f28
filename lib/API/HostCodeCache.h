// Machine code for this CPU on disk: which program texts share it, and what is kept.
#pragma once

#include "lib/API/cpflex.h"
#include "runtime/Files/DiskCache.h"

namespace cpflex {

struct HostObject;

/// Entries `<key>/{host.o,host.json}` of a DiskCache. Thread safe.
class HostCodeCache {
public:
  explicit HostCodeCache(std::string folder) : disk_(std::move(folder)) {}

  /// What decides the code of an entry point.
  struct Subject {
    std::string sourceDigest; ///< of the texts of the program and of its constants
    std::string entry;
    bool isNarrow = false;
    CallPasses passes = CallPasses::ForwardAndBackward;
  };
  /// The digest that names the code: of the subject, this CPU, and the compiler's own sources and LLVM.
  static std::string key(const Subject &subject);

  /// The code kept under `key`; nothing when there is none, or when it is damaged (a store then replaces it).
  std::optional<HostObject> find(const std::string &key) const;

  /// Keeps code. Unavailable when the folder cannot be written: the caller goes on without.
  Status store(const std::string &key, const std::string &entry, const HostObject &object) const;

  /// One kept object, as `cpflexc cache list` prints it.
  struct Entry {
    std::string key;
    std::string entry;
    int64_t sizeInBytes = 0;
  };
  std::vector<Entry> list() const;

private:
  DiskCache disk_;
};

/// The digest of a program's texts, main file first, and of the values given to its constants.
std::string sourceDigest(const std::vector<std::string> &texts, const std::map<std::string, std::string> &constants);

} // namespace cpflex
