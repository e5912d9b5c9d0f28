// What is known about a program without its modules, on disk: so that a program whose code is kept needs no MLIR.
#pragma once

#include "lib/API/cpflex.h"
#include "lib/Frontend/ImportedFiles.h"
#include "runtime/Files/DiskCache.h"

#include <set>

namespace cpflex {

/// All that a Program answers without its modules.
struct ProgramSummary {
  Signature signature;
  std::vector<EntryPoint> entries;
  std::set<std::string> constants; ///< names of `const` declarations
  std::string sourceDigest;        ///< part of the keys of host code
};

/// Entries `<key>/program.json` of a DiskCache. Thread safe.
class ProgramCache {
public:
  explicit ProgramCache(std::string folder) : disk_(std::move(folder)) {}

  /// The digest that names a program: of its text and path, the files that it imports, the values of its constants
  /// (those of `options` that the file declares as params are none), and the compiler's own sources.
  static std::string key(const ast::File &file, const ImportedFiles &imported, const CompileOptions &options);

  /// What is kept under `key`; nothing when there is none, or when it is damaged (a store then replaces it).
  std::optional<ProgramSummary> find(const std::string &key) const;

  /// Keeps a summary; `path` is for lists. Unavailable when the folder cannot be written: the caller goes on without.
  Status store(const std::string &key, const std::string &path, const ProgramSummary &summary) const;

  /// One kept summary, as `cpflexc cache list` prints it.
  struct Entry {
    std::string key;
    std::string path; ///< of the program's file
    int64_t sizeInBytes = 0;
  };
  std::vector<Entry> list() const;

private:
  DiskCache disk_;
};

/// The digest of the compiler's sources: code and summaries of another compiler are never taken.
std::string_view compilerDigest();

} // namespace cpflex
