// Which files does a program import? They are found and read before anything is type-checked, so that the texts of a
// program are known without MLIR and stay as they were read.
#pragma once

#include "lib/Frontend/ast.h"

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

/// The name by which the built-in standard library is imported.
inline constexpr std::string_view kStandardLibraryName = "cpflex.std";

/// Whether a module of Python stands for the language's own names.
bool isPythonLibrary(std::string_view name);

/// A file that an import names.
struct ImportedFile {
  std::string key;                 ///< the same for every path to one file
  std::optional<std::string> text; ///< none: it cannot be read, or is larger than a source may be
};

/// Files by the path under which the search found them.
using ImportedFiles = std::map<std::string, ImportedFile>;

/// The paths that `import name` tries, in this order: in `folders`, each of which may be empty.
std::vector<std::string> importPaths(const std::string &name, const std::vector<std::string> &folders);

/// What lies at `path`; nothing unless it is a regular file.
std::optional<ImportedFile> readImportedFile(const std::string &path);

/// The files that `file` imports, directly or through others: beside the importing file, then in `includeDirs`. What is
/// not found is left out, as is the standard library, which no file can change.
ImportedFiles findImportedFiles(const ast::File &file, const std::vector<std::string> &includeDirs);

} // namespace cpflex
