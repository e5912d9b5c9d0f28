// Finds and parses the files that a program is made of and collects the names that each defines.
#include "lib/Frontend/ImporterState.h"
#include "lib/Std/StandardLibrary.h"

#include "lib/Frontend/Parser.h"

#include <fmt/format.h>

#include <filesystem>
#include <sstream>

namespace cpflex {

using namespace ast;

namespace {

std::string folderOf(const std::string &path) { return std::filesystem::path(path).parent_path().string(); }

} // namespace

Module *Importer::loadMain(const File &file) {
  auto module = std::make_unique<Module>();
  // The tree belongs to the caller; parsing again gives one of our own without copying node by
  // node.
  DiagnosticList ignored;
  module->file = parseFile(file.source->path(), std::string(file.source->text()), ignored);
  module->file.source = file.source;
  module->folder = folderOf(file.source->path());
  std::error_code code;
  std::string key = std::filesystem::weakly_canonical(file.source->path(), code).string();
  Module *result = module.get();
  modules_[code || key.empty() ? file.source->path() : key] = std::move(module);
  main_ = result;
  loadOrder_.push_back(result);
  collectSymbols(*result);
  result->isLoading = false;
  resolveDeclarations();
  return result;
}

Module *Importer::addModule(std::string key, std::string path, std::string text, std::string folder, bool isStandard) {
  auto owned = std::make_unique<Module>();
  Module *module = owned.get();
  modules_[std::move(key)] = std::move(owned);
  module->folder = std::move(folder);
  module->isStandard = isStandard;
  module->file = parseFile(std::move(path), std::move(text), diagnostics_);
  loadOrder_.push_back(module);
  collectSymbols(*module);
  module->isLoading = false;
  return module;
}

Module *Importer::standardModuleWith(const std::string &name) {
  for (const EmbeddedFile &file : standardLibrary()) {
    // A cheap test before parsing: the definition stands at the beginning of a line.
    std::string text(file.text);
    if (text.find("\ndef " + name + "(") == std::string::npos && text.find("\n" + name + " = ") == std::string::npos &&
        text.find("\n" + name + ": ") == std::string::npos)
      continue;
    std::string key = fmt::format("{}/{}", kStandardLibraryName, file.name);
    if (auto found = modules_.find(key); found != modules_.end())
      return found->second.get();
    return addModule(key, key, std::move(text), {}, /*isStandard=*/true);
  }
  return nullptr;
}

std::vector<std::string> Importer::standardNames() {
  std::vector<std::string> names;
  for (const EmbeddedFile &file : standardLibrary()) {
    std::istringstream lines{std::string(file.text)};
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with("def "))
        names.push_back(line.substr(4, line.find('(') - 4));
  }
  return names;
}

std::optional<ImportedFile> Importer::fileAt(const std::string &path) const {
  if (!options_.files)
    return readImportedFile(path);
  auto found = options_.files->find(path);
  return found == options_.files->end() ? std::nullopt : std::optional(found->second);
}

Module *Importer::loadModule(const std::string &name, Module &from, SourceRange range) {
  if (modules_.size() >= kMaxModules) {
    errorIn(from, range, fmt::format("more than {} files are imported", kMaxModules));
    return nullptr;
  }
  std::vector<std::string> folders;
  if (!from.isStandard)
    folders.push_back(from.folder);
  folders.insert(folders.end(), options_.includeDirs.begin(), options_.includeDirs.end());
  for (const std::string &path : importPaths(name, folders)) {
    std::optional<ImportedFile> imported = fileAt(path);
    if (!imported)
      continue;
    if (auto found = modules_.find(imported->key); found != modules_.end()) {
      if (!found->second->isLoading)
        return found->second.get();
      errorIn(from, range, fmt::format("'{}' imports itself, directly or through other files", name));
      return nullptr;
    }
    if (!imported->text) {
      errorIn(
          from, range,
          fmt::format("file '{}' cannot be read; expected a readable text of at most {} bytes", path, kMaxSourceBytes));
      return nullptr;
    }
    return addModule(imported->key, path, std::move(*imported->text), folderOf(path),
                     /*isStandard=*/false);
  }
  std::string standardFile = name.starts_with("cpflex.std.") ? name.substr(11) : name;
  for (const EmbeddedFile &file : standardLibrary()) {
    if (file.name != standardFile + ".cpf")
      continue;
    std::string key = fmt::format("{}/{}", kStandardLibraryName, file.name);
    if (auto found = modules_.find(key); found != modules_.end())
      return found->second.get();
    return addModule(key, key, std::string(file.text), {}, /*isStandard=*/true);
  }
  std::string looked;
  for (const std::string &folder : folders)
    looked += fmt::format("{}'{}'", looked.empty() ? "" : ", ", folder.empty() ? "." : folder);
  std::string relative = name;
  std::replace(relative.begin(), relative.end(), '.', '/');
  std::string message = foreignNameMessage("import " + name);
  errorIn(from, range,
          !message.empty() ? message
                           : fmt::format("no file '{}.cpf' in {}{}; other files come from there, from the "
                                         "include folders and from 'cpflex.std'",
                                         relative, looked, looked.empty() ? "the search path" : ""));
  return nullptr;
}

bool Importer::isUsableName(Module &module, const std::string &name, SourceRange range) {
  if (isBuiltinDimension(name)) {
    errorIn(module, range, fmt::format("'{}' is the built-in size of a dimension; choose another name", name));
    return false;
  }
  if (isBuiltinFunction(name)) {
    errorIn(module, range, fmt::format("'{}' is built in; choose another name", name));
    return false;
  }
  return true;
}

void Importer::define(Module &module, const std::string &name, Symbol symbol) {
  bool isSameImport =
      (symbol.kind == SymbolKind::Imported || symbol.kind == SymbolKind::Library) && isBuiltinFunction(name);
  if (!isSameImport && !isUsableName(module, name, symbol.range))
    return;
  auto [entry, isNew] = module.symbols.try_emplace(name, symbol);
  if (isNew)
    return;
  Diagnostic &diagnostic = errorIn(module, symbol.range, fmt::format("'{}' is already defined", name));
  addNote(diagnostic, module.file.source, entry->second.range, "defined here");
}

FunctionRole roleByParameters(const Stmt &function) {
  const auto isRequired = [](const Parameter &parameter) { return !parameter.defaultValue; };
  const auto numRequired = std::count_if(function.parameters.begin(), function.parameters.end(), isRequired);
  return numRequired == 4 ? FunctionRole::Mask : numRequired == 5 ? FunctionRole::Score : FunctionRole::Plain;
}

FunctionRole Importer::roleOf(Module &module, const Stmt &function) {
  FunctionRole role = FunctionRole::Plain;
  for (const ExprRef &decorator : function.decorators) {
    const Expr &name = decorator->kind == ExprKind::Call ? *decorator->operands[0] : *decorator;
    bool isBare = decorator->kind == ExprKind::Name;
    if (isBare && (name.name == "mask" || name.name == "score")) {
      role = name.name == "mask" ? FunctionRole::Mask : FunctionRole::Score;
      continue;
    }
    errorIn(module, decorator->range,
            fmt::format("decorator '{}' is not part of the language; expected '@mask' or '@score'{}",
                        std::string(module.file.source->slice(name.range)), suggestion(name.name, {"mask", "score"})));
  }
  return role;
}

// Says where a function is that lacks its decorator, with the line to insert.
void Importer::noteMissingDecorator(Diagnostic &diagnostic, const FunctionDefinition &function, FunctionRole role) {
  const SourceRef &source = function.module->file.source;
  const Stmt &statement = *function.statement;
  addNote(diagnostic, source, statement.nameRange, "declared here");
  if (roleByParameters(statement) == role)
    setFixIt(diagnostic.notes.back(), source, {statement.range.begin, statement.range.begin},
             role == FunctionRole::Mask ? "@mask\n" : "@score\n");
}

bool Importer::hasRightParameters(Module &module, const Stmt &function, FunctionRole role) {
  size_t expected = role == FunctionRole::Score ? 5 : 4;
  size_t numRequired = 0;
  for (const Parameter &parameter : function.parameters)
    numRequired += !parameter.defaultValue;
  if (role == FunctionRole::Plain || (numRequired <= expected && function.parameters.size() >= expected))
    return true;
  errorIn(module, function.nameRange,
          fmt::format("'{}' has {} parameters; a {} has {}", function.name, function.parameters.size(),
                      role == FunctionRole::Mask ? "mask" : "score function",
                      role == FunctionRole::Mask ? "4: batch, head, query and key"
                                                 : "5: the score, batch, head, query and key") +
              (function.parameters.empty() || function.parameters[0].name != "self"
                   ? ""
                   : "; leave out 'self', a file's declarations hold what a class would"));
  return false;
}

void Importer::collectSymbols(Module &module) {
  for (const StmtRef &statement : module.file.statements) {
    Symbol symbol;
    symbol.range = statement->nameRange;
    symbol.statement = statement.get();
    switch (statement->kind) {
    case StmtKind::Function:
      if (statement->name.empty()) // a returned lambda, which was reported
        break;
      symbol.kind = SymbolKind::Function;
      symbol.function = {statement.get(), &module, roleOf(module, *statement)};
      symbol.isBroken = !hasRightParameters(module, *statement, symbol.function.role);
      define(module, statement->name, symbol);
      break;
    case StmtKind::Declare: {
      const Expr *annotation = statement->annotation.get();
      while (annotation->kind == ExprKind::Call || annotation->kind == ExprKind::Subscript)
        annotation = annotation->operands[0].get();
      symbol.kind = annotation->name == "tensor" ? SymbolKind::Tensor : SymbolKind::Scalar;
      define(module, statement->name, symbol);
      break;
    }
    case StmtKind::Assign:
      symbol.kind = SymbolKind::Alias;
      symbol.expr = statement->value.get();
      for (const ExprRef &target : statement->targets) {
        for (size_t i = 0; i < (target->kind == ExprKind::Tuple ? target->operands.size() : 1); ++i) {
          const Expr &name = target->kind == ExprKind::Tuple ? *target->operands[i] : *target;
          symbol.range = name.range;
          symbol.element = target->kind == ExprKind::Tuple ? int(i) : -1;
          if (name.kind == ExprKind::Name)
            define(module, name.name, symbol);
        }
      }
      break;
    case StmtKind::Import: collectImport(module, *statement); break;
    case StmtKind::If:
      if (module.file.source->slice(statement->range).find("__name__") != std::string_view::npos)
        errorIn(module, statement->range,
                "a file is not run as a script; leave this out, and declare what can be run by "
                "attention(...)");
      else
        errorIn(module, statement->range,
                "'if' at the top level is not part of the language; choose inside a function or by a const");
      break;
    case StmtKind::Return: errorIn(module, statement->range, "'return' outside a function"); break;
    case StmtKind::Expression:
    case StmtKind::Pass: break;
    }
  }
}

void Importer::collectImport(Module &module, const Stmt &statement) {
  Symbol symbol;
  symbol.statement = &statement;
  if (isPythonLibrary(statement.name)) {
    for (const ImportedName &name : statement.imports) {
      symbol.kind = SymbolKind::Library;
      symbol.range = name.range;
      symbol.name = statement.isWholeModule ? (name.alias.find('.') == std::string::npos && name.alias != name.name
                                                   ? statement.name
                                                   : statement.name.substr(0, statement.name.find('.')))
                                            : statement.name + "." + name.name;
      define(module, name.alias, symbol);
    }
    return;
  }
  bool isStandard = statement.name == kStandardLibraryName;
  Module *other = nullptr;
  if (!isStandard) {
    other = loadModule(statement.name, module, statement.nameRange);
    if (!other)
      for (const ImportedName &name : statement.imports) {
        symbol.range = name.range;
        symbol.isBroken = true;
        symbol.kind = SymbolKind::Alias;
        module.symbols.try_emplace(name.alias, symbol);
      }
    if (!other)
      return;
  }
  for (const ImportedName &name : statement.imports) {
    symbol.range = name.range;
    if (statement.isWholeModule) {
      if (isStandard) {
        errorIn(module, statement.nameRange,
                "the standard library is not imported whole; write 'from cpflex.std import causal'");
        return;
      }
      symbol.kind = SymbolKind::Module;
      symbol.module = other;
      define(module, name.alias, symbol);
      continue;
    }
    symbol.kind = SymbolKind::Imported;
    symbol.name = name.name;
    symbol.module = isStandard ? standardModuleWith(name.name) : other;
    symbol.isBroken = !symbol.module || !symbol.module->symbols.contains(name.name);
    if (symbol.isBroken) {
      std::vector<std::string> candidates;
      if (isStandard)
        candidates = standardNames();
      else
        for (const auto &[candidate, _] : other->symbols)
          candidates.push_back(candidate);
      errorIn(module, name.range,
              fmt::format("'{}' has no '{}'{}", statement.name, name.name, suggestion(name.name, candidates)));
    }
    define(module, name.alias, symbol);
  }
}

} // namespace cpflex
