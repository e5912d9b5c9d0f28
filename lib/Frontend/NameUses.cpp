// Walks Python functions and notes where free names stand.
#include "lib/Frontend/NameUses.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

using namespace ast;

namespace {

// Whether an expression is a bool by its form.
bool looksBool(const Expr &expr) {
  switch (expr.kind) {
  case ExprKind::Bool:
  case ExprKind::Compare:
  case ExprKind::And:
  case ExprKind::Or: return true;
  case ExprKind::Unary: return expr.op == OpKind::Not || (expr.op == OpKind::Invert && looksBool(*expr.operands[0]));
  case ExprKind::Binary:
    return (expr.op == OpKind::BitAnd || expr.op == OpKind::BitOr || expr.op == OpKind::BitXor) &&
           (looksBool(*expr.operands[0]) || looksBool(*expr.operands[1]));
  case ExprKind::Call: return expr.operands[0]->name.starts_with("logical_");
  default: return false;
  }
}

std::string upper(std::string name) {
  for (char &c : name)
    c = c >= 'a' && c <= 'z' ? char(c - 'a' + 'A') : c;
  return name;
}

} // namespace

void NameUses::addFunction(const Stmt &function, const std::vector<const Stmt *> &around, FunctionRole role) {
  std::set<std::string> bound;
  size_t first = role == FunctionRole::Score ? 1 : 0;
  const char *sizes[] = {"B", "H", "Q_LEN", "KV_LEN"};
  sizeOf_.clear();
  around_ = around;
  bound_.clear();
  isInScore_ = role == FunctionRole::Score;
  for (size_t i = 0; i < function.parameters.size(); ++i) {
    const Parameter &parameter = function.parameters[i];
    bound.insert(parameter.name);
    if (role != FunctionRole::Plain && i >= first && i < first + 4)
      sizeOf_[parameter.name] = sizes[i - first];
    if (parameter.defaultValue)
      visit(*parameter.defaultValue, false, false);
  }
  collectBound(function.body, bound);
  bound_ = std::move(bound);
  visit(function.body, role == FunctionRole::Mask);
}

void NameUses::addValue(const Expr &value, const std::vector<const Stmt *> &around, const NameUse &as) {
  const bool isBool = as.isBool, isIndex = as.isIndex;
  isInScore_ = as.isInScore;
  around_ = around;
  bound_.clear();
  sizeOf_.clear();
  visit(value, isBool, isIndex);
}

void NameUses::collectBound(const std::vector<StmtRef> &statements, std::set<std::string> &bound) {
  for (const StmtRef &statement : statements) {
    if (statement->kind == StmtKind::Function)
      bound.insert(statement->name);
    for (const ExprRef &target : statement->targets)
      collectTarget(*target, bound);
    collectBound(statement->body, bound);
    collectBound(statement->orElse, bound);
  }
}

void NameUses::collectTarget(const Expr &target, std::set<std::string> &bound) {
  if (target.kind == ExprKind::Name)
    bound.insert(target.name);
  for (const ExprRef &operand : target.operands)
    collectTarget(*operand, bound);
}

void NameUses::visit(const std::vector<StmtRef> &statements, bool givesBool) {
  for (const StmtRef &statement : statements) {
    if (statement->value)
      visit(*statement->value, statement->kind == StmtKind::If || (statement->kind == StmtKind::Return && givesBool),
            /*isIndex=*/false);
    visit(statement->body, givesBool);
    visit(statement->orElse, givesBool);
  }
}

NameUse *NameUses::useOf(const Expr &name) {
  if (bound_.contains(name.name) || name.kind != ExprKind::Name)
    return nullptr;
  auto [entry, isNew] = uses_.try_emplace(name.name);
  if (isNew) {
    entry->second.range = name.range;
    entry->second.around = around_;
    names_.push_back(name.name);
  }
  entry->second.isInScore |= isInScore_;
  return &entry->second;
}

// A subscript, `a[i][j]` and `a[i, j]` alike: its array and all indices.
void NameUses::visitSubscript(const Expr &expr, bool isBool, bool isIndex) {
  std::vector<const Expr *> indices;
  const Expr *base = &expr;
  for (; base->kind == ExprKind::Subscript; base = base->operands[0].get()) {
    size_t at = 0;
    for (size_t i = 1; i < base->operands.size(); ++i)
      indices.insert(indices.begin() + ptrdiff_t(at++), base->operands[i].get());
  }
  for (const Expr *index : indices)
    visit(*index, /*isBool=*/false, /*isIndex=*/true);
  NameUse *use = useOf(*base);
  if (!use) {
    visit(*base, false, isIndex);
    return;
  }
  use->isTensor = true;
  use->isBool |= isBool;
  use->isIndex |= isIndex;
  std::vector<std::string> dims;
  for (size_t i = 0; i < indices.size(); ++i) {
    auto size = indices[i]->kind == ExprKind::Name ? sizeOf_.find(indices[i]->name) : sizeOf_.end();
    dims.push_back(size != sizeOf_.end() ? size->second : fmt::format("{}_SIZE{}", upper(base->name), i));
    // An array over queries and keys alike is one over all positions.
    if (use->dims.size() == indices.size() && use->dims[i] == "KV_LEN" && dims[i] == "Q_LEN")
      dims[i] = "KV_LEN";
  }
  if (dims.size() >= use->dims.size())
    use->dims = std::move(dims);
}

void NameUses::visit(const Expr &expr, bool isBool, bool isIndex) {
  switch (expr.kind) {
  case ExprKind::Name:
    if (NameUse *use = useOf(expr)) {
      use->isBool |= isBool;
      use->isIndex |= isIndex;
    }
    return;
  case ExprKind::Subscript: return visitSubscript(expr, isBool, isIndex);
  case ExprKind::Generator: {
    std::set<std::string> before = bound_;
    for (const Clause &clause : expr.clauses) {
      visit(*clause.iterable, false, true);
      bound_.insert(clause.target);
    }
    visit(*expr.operands[0], isBool, isIndex);
    bound_ = std::move(before);
    return;
  }
  case ExprKind::And:
  case ExprKind::Or: isBool = true; break;
  case ExprKind::Compare:
    isBool = false;
    isIndex = true; // what is compared are positions and ids
    break;
  case ExprKind::Binary: {
    const bool isBitwise = expr.op == OpKind::BitAnd || expr.op == OpKind::BitOr || expr.op == OpKind::BitXor;
    isIndex |= expr.op == OpKind::FloorDiv || expr.op == OpKind::Mod;
    isBool = isBitwise && (isBool || looksBool(expr));
    break;
  }
  case ExprKind::Call: {
    const Expr &callee = *expr.operands[0];
    const bool isChoice = callee.name == "where" && expr.operands.size() == 4;
    const bool isChoiceOfBools = isChoice && (isBool || looksBool(*expr.operands[2]) || looksBool(*expr.operands[3]));
    if (NameUse *use = callee.kind == ExprKind::Name ? useOf(callee) : nullptr)
      use->numArguments = expr.operands.size() - 1;
    if (callee.kind == ExprKind::Attribute)
      visit(*callee.operands[0], false, isIndex && callee.name != "size");
    else
      visit(callee, false, false);
    for (size_t i = 1; i < expr.operands.size(); ++i)
      visit(*expr.operands[i], (isChoice && i == 1) || isChoiceOfBools || callee.name.starts_with("logical_"), isIndex);
    for (const Keyword &keyword : expr.keywords)
      visit(*keyword.value, false, isIndex);
    return;
  }
  case ExprKind::Attribute: // a size says nothing about the elements
    return visit(*expr.operands[0], false, false);
  case ExprKind::Conditional:
    visit(*expr.operands[0], /*isBool=*/true, false);
    visit(*expr.operands[1], isBool, isIndex);
    visit(*expr.operands[2], isBool, isIndex);
    return;
  default: break;
  }
  for (const ExprRef &operand : expr.operands)
    visit(*operand, isBool, isIndex);
}

} // namespace cpflex
