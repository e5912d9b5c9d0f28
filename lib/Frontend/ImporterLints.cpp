// What the syntax of a program shows to be a probable mistake, for `cpflexc check`: declarations that nothing uses, and
// windows that hold one key more than their width.
#include "lib/Frontend/ImporterState.h"

#include "llvm/ADT/StringExtras.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

using namespace ast;

// Whether `text`, an expression over dimensions, has the word `name`.
static bool mentions(const std::string &text, const std::string &name) {
  const auto isWordCharacter = [](char c) { return llvm::isAlnum(c) || c == '_'; };
  for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1)) {
    const size_t end = at + name.size();
    if ((at == 0 || !isWordCharacter(text[at - 1])) && (end == text.size() || !isWordCharacter(text[end])))
      return true;
  }
  return false;
}

// Called while the uses by functions outside of entry points still count.
void Importer::lintUnused(Module &module, const std::set<const Stmt *> &inlinedByEntries) {
  if (diagnostics_.hasErrors())
    return;
  const auto isAxis = [&](const std::string &name) {
    return std::any_of(usedTensors_.begin(), usedTensors_.end(), [&](const TensorDeclaration *tensor) {
      return std::any_of(tensor->dims.begin(), tensor->dims.end(),
                         [&](const Dimension &dimension) { return mentions(dimension.text, name); });
    });
  };
  const auto isUsed = [&](const std::string &name, const Symbol &symbol) {
    const auto hasName = [&](const auto *declaration) { return declaration->name == name; };
    switch (symbol.kind) {
    case SymbolKind::Scalar: return std::any_of(usedScalars_.begin(), usedScalars_.end(), hasName) || isAxis(name);
    case SymbolKind::Tensor:
      return std::any_of(usedTensors_.begin(), usedTensors_.end(), hasName) ||
             (symbol.tensor &&
              std::any_of(symbol.tensor->dims.begin(), symbol.tensor->dims.end(), [&](const Dimension &dimension) {
                auto dim = module.symbols.find(dimension.text);
                return dim != module.symbols.end() && usedSymbols_.contains(&dim->second);
              }));
    case SymbolKind::Function:
      return inlinedByEntries.contains(symbol.function.statement) || usedSymbols_.contains(&symbol);
    case SymbolKind::Alias:
    case SymbolKind::Imported: return usedSymbols_.contains(&symbol);
    default: return true;
    }
  };
  for (const auto &[name, symbol] : module.symbols)
    if (!symbol.isBroken && !isUsed(name, symbol))
      diagnostics_.lint(module.file.source, symbol.range, fmt::format("'{}' is not used", name));
}

// `q - kv <= W` keeps W + 1 keys where `<` keeps W; both conventions are in use, so a name that promises a width is
// worth a second look.
void Importer::lintWindow(OpKind op, const Expr &lhs, const Expr &rhs) {
  const FunctionDefinition *function = frame().function;
  if (!function || function->role != FunctionRole::Mask || function->module->isStandard)
    return;
  const std::vector<Parameter> &parameters = function->statement->parameters;
  const auto isName = [](const Expr &expr, const std::string &name) {
    return expr.kind == ExprKind::Name && expr.name == name;
  };
  const auto isDifference = [](const Expr &expr) { return expr.kind == ExprKind::Binary && expr.op == OpKind::Sub; };
  const auto isWidth = [](const Expr &expr) {
    if (expr.kind != ExprKind::Name)
      return false;
    const std::string name = llvm::StringRef(expr.name).lower();
    return name == "w" || name.find("window") != std::string::npos || name.find("width") != std::string::npos;
  };
  const std::string &q = parameters[2].name, &kv = parameters[3].name;
  const Expr *width = nullptr;
  if (op == OpKind::Le && isDifference(lhs) && isName(*lhs.operands[0], q) && isName(*lhs.operands[1], kv))
    width = &rhs;
  else if (op == OpKind::Ge && isName(lhs, kv) && isDifference(rhs) && isName(*rhs.operands[0], q))
    width = rhs.operands[1].get();
  if (!width || !isWidth(*width))
    return;
  const char *strict = op == OpKind::Le ? "<" : ">";
  diagnostics_.lint(frame().module->file.source, {lhs.range.begin, rhs.range.end},
                    fmt::format("this window holds '{0}' + 1 keys, as FlashAttention's window_left counts; write '{1}' "
                                "for '{0}' keys, as Mistral and Hugging Face count",
                                width->name, strict));
}

} // namespace cpflex
