// Locations, names and messages of the importer: where an operation comes from, and what is said
// about a mistake.
#include "lib/Frontend/ImporterState.h"

#include "llvm/ADT/StringExtras.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

static bool isIdentifier(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return llvm::isAlnum(c) || c == '_'; });
}

mlir::Location Importer::location(Module &module, SourceRange range) const {
  const SourceText &source = *module.file.source;
  SourcePosition begin = source.position(range.begin), end = source.position(std::max(range.begin, range.end));
  return mlir::FileLineColRange::get(mlir::StringAttr::get(&ctx_, source.path()), unsigned(begin.line),
                                     unsigned(begin.column), unsigned(end.line), unsigned(end.column));
}

mlir::Location Importer::location(SourceRange range) const { return location(*frames_.back()->module, range); }

// Gives the value's operation the user's name for it, unless it has one.
void Importer::nameValue(const Entity &entity, const std::string &name) {
  if (!entity.isScalar() || entity.isConstant())
    return;
  mlir::Location loc = entity.value.getLoc();
  if (llvm::isa<mlir::NameLoc>(loc))
    return;
  mlir::Location named = mlir::NameLoc::get(mlir::StringAttr::get(&ctx_, name), loc);
  if (mlir::Operation *op = entity.value.getDefiningOp())
    op->setLoc(named);
  else
    llvm::cast<mlir::BlockArgument>(entity.value).setLoc(named);
}

Diagnostic &Importer::errorIn(Module &module, SourceRange range, std::string message) {
  if (quiet_ > 0)
    return discarded_ = {};
  // The suggestion replaces the name that the message points at.
  constexpr std::string_view kSuggestion = "; did you mean '";
  const size_t begin = message.find(kSuggestion);
  std::string suggested;
  if (begin != std::string::npos && isIdentifier(module.file.source->slice(range)))
    suggested = message.substr(begin + kSuggestion.size(),
                               message.find('\'', begin + kSuggestion.size()) - begin - kSuggestion.size());
  Diagnostic &diagnostic = diagnostics_.error(module.file.source, range, std::move(message));
  if (!suggested.empty())
    setFixIt(diagnostic, module.file.source, range, suggested);
  return diagnostic;
}

Diagnostic &Importer::error(SourceRange range, std::string message) {
  Diagnostic &diagnostic = errorIn(*frame().module, range, std::move(message));
  addCallNotes(diagnostic);
  return diagnostic;
}

Diagnostic &Importer::warning(SourceRange range, std::string message) {
  if (quiet_ > 0)
    return discarded_ = {};
  return diagnostics_.warning(frame().module->file.source, range, std::move(message));
}

// Says from where the function that holds the error was called; the innermost calls are enough.
void Importer::addCallNotes(Diagnostic &diagnostic) {
  constexpr int kMaxCallNotes = 3;
  int numNotes = 0;
  for (size_t i = frames_.size(); i-- > 0 && numNotes < kMaxCallNotes;) {
    const Frame &callee = *frames_[i];
    bool isCall =
        callee.function && callee.callerModule && callee.callRange.end > 0 && i > 1 && frames_[i - 1]->function;
    if (!isCall)
      continue;
    addNote(diagnostic, callee.callerModule->file.source, callee.callRange,
            fmt::format("in '{}', called here", callee.function->statement->name));
    ++numNotes;
  }
}

std::string Importer::suggestion(const std::string &name, const std::vector<std::string> &candidates) const {
  constexpr size_t kMaxLength = 40;
  if (name.size() < 2 || name.size() > kMaxLength)
    return {};
  // A third of the letters may differ, two where there are four or more.
  unsigned best = name.size() < 4 ? 2 : unsigned(std::max<size_t>(2, name.size() / 3)) + 1;
  const std::string *found = nullptr;
  for (const std::string &candidate : candidates) {
    if (candidate.size() > kMaxLength || candidate == name)
      continue;
    unsigned distance = llvm::StringRef(name).edit_distance(candidate, /*AllowReplacements=*/true, best);
    if (distance < best) {
      best = distance;
      found = &candidate;
    }
  }
  return found ? fmt::format("; did you mean '{}'?", *found) : std::string();
}

std::vector<std::string> Importer::visibleNames() const {
  std::vector<std::string> names;
  for (const auto &[name, _] : frames_.back()->locals)
    names.push_back(name);
  for (const auto &[name, _] : frames_.back()->module->symbols)
    names.push_back(name);
  names.insert(names.end(), {"True", "False"});
  std::vector<std::string> builtins = builtinNames();
  names.insert(names.end(), builtins.begin(), builtins.end());
  return names;
}

bool Importer::enter(SourceRange range) {
  if (isExhausted_)
    return false;
  if (++numEvaluations_ > kMaxEvaluations) {
    isExhausted_ = true;
    quiet_ = 0;
    error(range, fmt::format("the program evaluates more than {} expressions", kMaxEvaluations));
    return false;
  }
  if (depth_ < kMaxInliningDepth) {
    ++depth_;
    return true;
  }
  error(range, fmt::format("calls and expressions nest more than {} levels deep", kMaxInliningDepth));
  return false;
}

} // namespace cpflex
