// Searches and reads the files that a program imports.
#include "lib/Frontend/ImportedFiles.h"

#include "lib/Frontend/Parser.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace cpflex {

namespace fs = std::filesystem;

bool isPythonLibrary(std::string_view name) {
  return name == "torch" || name == "math" || name == "numpy" || name.starts_with("torch.");
}

std::vector<std::string> importPaths(const std::string &name, const std::vector<std::string> &folders) {
  std::string relative = name;
  std::replace(relative.begin(), relative.end(), '.', '/');
  std::vector<std::string> paths;
  for (const std::string &folder : folders)
    paths.push_back((fs::path(folder) / (relative + ".cpf")).string());
  return paths;
}

std::optional<ImportedFile> readImportedFile(const std::string &path) {
  std::error_code code;
  if (!fs::is_regular_file(path, code))
    return std::nullopt;
  ImportedFile file{fs::weakly_canonical(path, code).string(), std::nullopt};
  if (fs::file_size(path, code) > kMaxSourceBytes || code)
    return file;
  std::ifstream stream(path, std::ios::binary);
  if (!stream)
    return file;
  std::ostringstream text;
  text << stream.rdbuf();
  file.text = text.str();
  return file;
}

ImportedFiles findImportedFiles(const ast::File &file, const std::vector<std::string> &includeDirs) {
  constexpr size_t kMostFiles = 256;
  ImportedFiles found;
  std::set<std::string> parsed;
  std::vector<std::pair<ast::File, std::string>> pending; // files to look through, with the folders that they lie in
  const auto lookThrough = [&](const ast::File &from, const std::string &folder) {
    for (const ast::StmtRef &statement : from.statements) {
      if (statement->kind != ast::StmtKind::Import || isPythonLibrary(statement->name) ||
          statement->name == kStandardLibraryName)
        continue;
      std::vector<std::string> folders = {folder};
      folders.insert(folders.end(), includeDirs.begin(), includeDirs.end());
      for (const std::string &path : importPaths(statement->name, folders)) {
        if (found.contains(path))
          break;
        std::optional<ImportedFile> imported = readImportedFile(path);
        if (!imported)
          continue;
        if (imported->text && parsed.insert(imported->key).second && parsed.size() < kMostFiles) {
          DiagnosticList ignored;
          pending.emplace_back(parseFile(path, *imported->text, ignored), fs::path(path).parent_path().string());
        }
        found.emplace(path, std::move(*imported));
        break;
      }
    }
  };
  lookThrough(file, fs::path(file.source->path()).parent_path().string());
  while (!pending.empty()) {
    const auto [next, folder] = std::move(pending.back());
    pending.pop_back();
    lookThrough(next, folder);
  }
  return found;
}

} // namespace cpflex
