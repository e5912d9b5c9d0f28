// Reads the dimensions of captured arrays: which sizes they name, and what is known of them before arrays are bound.
#include "lib/Frontend/ImporterState.h"

#include <fmt/format.h>

namespace cpflex {

using namespace ast;

namespace {

// What an alias stands for: its expression, or one element of a tuple that is written out; null for anything else.
const Expr *aliasedExpr(const Symbol &symbol) {
  if (symbol.kind != SymbolKind::Alias || symbol.isBroken)
    return nullptr;
  if (symbol.element < 0)
    return symbol.expr;
  bool isWritten = symbol.expr->kind == ExprKind::Tuple && size_t(symbol.element) < symbol.expr->operands.size();
  return isWritten ? symbol.expr->operands[symbol.element].get() : nullptr;
}

bool isDimensionOperator(const Expr &expr) {
  if (expr.kind == ExprKind::Unary)
    return expr.op == OpKind::Neg || expr.op == OpKind::Plus;
  return expr.op == OpKind::Add || expr.op == OpKind::Sub || expr.op == OpKind::Mul || expr.op == OpKind::FloorDiv;
}

} // namespace

Importer::Definition Importer::definitionOf(Module &module, const std::string &name) {
  Definition found{&module, name, nullptr};
  for (auto symbol = module.symbols.find(name); symbol != found.module->symbols.end();
       symbol = found.module->symbols.find(found.name)) {
    found.symbol = &symbol->second;
    if (found.symbol->kind != SymbolKind::Imported || found.symbol->isBroken)
      break;
    found.name = found.symbol->name;
    found.module = found.symbol->module;
  }
  return found;
}

// Names that occur in dimensions and are defined nowhere else are sizes that become known when
// arrays are bound.
void Importer::registerDimensions(Module &module, const Expr &expr) {
  if (expr.kind == ExprKind::Unary || expr.kind == ExprKind::Binary)
    for (const ExprRef &operand : expr.operands)
      registerDimensions(module, *operand);
  if (expr.kind != ExprKind::Name || isBuiltinDimension(expr.name))
    return;
  Definition found = definitionOf(module, expr.name);
  if (const Expr *aliased = found.symbol ? aliasedExpr(*found.symbol) : nullptr) {
    if (enter(expr.range)) {
      registerDimensions(*found.module, *aliased);
      --depth_;
    }
    return;
  }
  if (found.symbol || !isUsableName(module, expr.name, expr.range))
    return;
  Symbol dimension;
  dimension.kind = SymbolKind::Dimension;
  dimension.name = expr.name;
  dimension.range = expr.range;
  module.symbols[expr.name] = dimension;
}

// Whether every name of a dimension's expression is an int that can be known when arrays are bound.
bool Importer::checkDimensionNames(Module &module, const Expr &expr) {
  switch (expr.kind) {
  case ExprKind::Int: return true;
  case ExprKind::Name: {
    if (isBuiltinDimension(expr.name))
      return true;
    Definition found = definitionOf(module, expr.name);
    if (found.symbol && found.symbol->isOpen) {
      errorIn(module, expr.range, fmt::format("'{}' is defined by itself", expr.name));
      return false;
    }
    if (!found.symbol || found.symbol->isBroken)
      return false; // was reported
    if (const Expr *aliased = aliasedExpr(*found.symbol)) {
      if (!enter(expr.range))
        return false;
      bool isRight = checkDimensionNames(*found.module, *aliased);
      --depth_;
      return isRight;
    }
    bool isInt = found.symbol->kind == SymbolKind::Dimension ||
                 (found.symbol->kind == SymbolKind::Scalar && found.symbol->scalar &&
                  found.symbol->scalar->type == ValueType::Int);
    if (!isInt && found.symbol->kind == SymbolKind::Alias) {
      std::optional<Constant> constant = quietly([&] { return evaluateConstant(module, expr); });
      isInt = constant && constant->type == ValueType::Int;
    }
    if (isInt)
      return true;
    Diagnostic &diagnostic = errorIn(module, expr.range,
                                     fmt::format("'{}' is not an int; a dimension is a literal, an "
                                                 "int const or param, or a name of its own",
                                                 expr.name));
    addNote(diagnostic, module.file.source, module.symbols.at(expr.name).range, "defined here");
    return false;
  }
  case ExprKind::Unary:
  case ExprKind::Binary: {
    if (!isDimensionOperator(expr) || expr.numTerms > kMaxDepth)
      break;
    for (const ExprRef &operand : expr.operands)
      if (!checkDimensionNames(module, *operand))
        return false;
    if (expr.op != OpKind::FloorDiv)
      return true;
    std::optional<Constant> divisor = quietly([&] { return evaluateConstant(module, *expr.operands[1]); });
    if (!divisor || divisor->bits != 0)
      return true;
    errorIn(module, expr.range, "division by the constant 0");
    return false;
  }
  default: break;
  }
  errorIn(module, expr.range, "a dimension is a literal, a name or an expression of + - * // over them");
  return false;
}

std::string Importer::dimensionText(Module &module, const Expr &expr) {
  std::optional<Constant> constant = quietly([&] { return evaluateConstant(module, expr); });
  if (constant && constant->type == ValueType::Int)
    return std::to_string(constant->bits);
  switch (expr.kind) {
  case ExprKind::Name: {
    Definition found = definitionOf(module, expr.name);
    const Expr *aliased = found.symbol ? aliasedExpr(*found.symbol) : nullptr;
    return aliased ? dimensionText(*found.module, *aliased) : found.name;
  }
  case ExprKind::Unary: return fmt::format("{}{}", toString(expr.op), dimensionText(module, *expr.operands[0]));
  case ExprKind::Binary: {
    auto side = [&](const Expr &operand) {
      std::string text = dimensionText(module, operand);
      return text.find(' ') == std::string::npos ? text : fmt::format("({})", text);
    };
    return fmt::format("{} {} {}", side(*expr.operands[0]), toString(expr.op), side(*expr.operands[1]));
  }
  default: return std::string(module.file.source->slice(expr.range));
  }
}

bool Importer::resolveDimension(Module &module, const Expr &expr, Dimension &dimension) {
  dimension.expr = &expr;
  if (!checkDimensionNames(module, expr))
    return false;
  std::optional<Constant> constant = quietly([&] { return evaluateConstant(module, expr); });
  if (constant && constant->type == ValueType::Int) {
    if (constant->bits < 0 || constant->bits > (int64_t(1) << 40)) {
      errorIn(module, expr.range, fmt::format("a dimension of size {}; expected 0 to 2^40", constant->bits));
      return false;
    }
    dimension.constant = constant->bits;
  }
  dimension.text = dimensionText(module, expr);
  return true;
}

} // namespace cpflex
