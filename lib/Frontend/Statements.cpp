// Function bodies: bindings, returns and if/else, which becomes selects.
#include "lib/Frontend/ImporterState.h"

#include <fmt/format.h>

namespace cpflex {

using namespace ast;

namespace {

bool containsReturn(const std::vector<StmtRef> &statements) {
  for (const StmtRef &statement : statements)
    if (statement->kind == StmtKind::Return || containsReturn(statement->body) || containsReturn(statement->orElse))
      return true;
  return false;
}

bool isSameValue(const Entity &lhs, const Entity &rhs) {
  if (lhs.kind != rhs.kind || lhs.value != rhs.value || lhs.isConstant() != rhs.isConstant() ||
      lhs.tensor != rhs.tensor || lhs.function != rhs.function || lhs.mask != rhs.mask || lhs.name != rhs.name ||
      lhs.elements.size() != rhs.elements.size())
    return false;
  if (lhs.isConstant() && (lhs.constant->type != rhs.constant->type || lhs.constant->bits != rhs.constant->bits))
    return false;
  for (size_t i = 0; i < lhs.elements.size(); ++i)
    if (!isSameValue(lhs.elements[i], rhs.elements[i]))
      return false;
  return true;
}

} // namespace

// Nothing when the end is reached without a return; an Error entity after a reported error.
std::optional<Entity> Importer::runBlock(std::span<const StmtRef> statements, const Continuation *next) {
  for (size_t i = 0; i < statements.size(); ++i) {
    const Stmt &statement = *statements[i];
    switch (statement.kind) {
    case StmtKind::Return:
      if (!statement.value || statement.value->kind == ExprKind::None)
        return fail(statement.range, "'return' without a value");
      {
        Entity value = evaluate(*statement.value);
        bool givesScalar = frame().function && frame().function->role != FunctionRole::Plain;
        return givesScalar ? toResult(value, statement.value->range) : value;
      }
    case StmtKind::Assign: runAssign(statement); break;
    case StmtKind::If: {
      Continuation rest{statements.subspan(i + 1), next};
      Entity condition = evaluate(*statement.value);
      if (!condition.isError())
        condition = toBool(condition, statement.value->range, "'if'");
      if (condition.isError())
        return Entity{};
      if (condition.isConstant()) {
        if (!enter(statement.range))
          return Entity{};
        std::optional<Entity> result = runBlock(condition.constant->bits ? statement.body : statement.orElse, &rest);
        --depth_;
        return result;
      }
      if (containsReturn(statement.body) || containsReturn(statement.orElse)) {
        // Each arm goes on with what follows the 'if'; the value is a choice between both.
        if (!enter(statement.range))
          return Entity{};
        Frame before = frame();
        std::optional<Entity> ifTrue = runBlock(statement.body, &rest);
        frame() = std::move(before);
        std::optional<Entity> ifFalse = runBlock(statement.orElse, &rest);
        --depth_;
        if (!ifTrue || !ifFalse)
          return std::nullopt;
        if (ifTrue->isError() || ifFalse->isError())
          return Entity{};
        return select(condition, *ifTrue, *ifFalse, statement.range);
      }
      Frame before = frame();
      runBlock(statement.body, nullptr);
      Frame afterTrue = std::exchange(frame(), std::move(before));
      runBlock(statement.orElse, nullptr);
      mergeArms(condition, afterTrue, frame(), statement.range);
      break;
    }
    case StmtKind::Function:
      if (statement.isIncomplete) // an error was reported in it
        return Entity{};
      return fail(statement.nameRange,
                  fmt::format("function '{}' inside a function; move it to the top level", statement.name));
    case StmtKind::Declare: {
      Diagnostic &diagnostic =
          error(statement.nameRange,
                fmt::format("'{}' is declared inside a function; declarations stand at the top level, a local "
                            "name has no type",
                            statement.name));
      if (statement.value)
        setFixIt(diagnostic, frame().module->file.source, {statement.nameRange.end, statement.value->range.begin},
                 " = ");
      return Entity{};
    }
    case StmtKind::Import: return fail(statement.range, "an import inside a function; imports stand at the top level");
    case StmtKind::Expression: {
      if (statement.value->kind == ExprKind::String)
        break;
      Entity value = evaluate(*statement.value);
      if (!value.isError())
        setFixIt(warning(statement.range, "this value is not used; did you mean 'return'?"),
                 frame().module->file.source, {statement.range.begin, statement.range.begin}, "return ");
      break;
    }
    case StmtKind::Pass: break;
    }
  }
  if (!next)
    return std::nullopt;
  if (!enter(frame().callRange))
    return Entity{};
  std::optional<Entity> result = runBlock(next->statements, next->next);
  --depth_;
  return result;
}

// What a mask or score function returns.
Entity Importer::toResult(const Entity &entity, SourceRange range) {
  const FunctionDefinition &function = *frame().function;
  Entity value = toScalar(entity, range);
  if (value.isError())
    return value;
  if (function.role == FunctionRole::Mask && value.type != ValueType::Bool)
    return fail(range, fmt::format("mask '{}' gives {}; a mask gives a bool, write '!= 0' after the value",
                                   function.statement->name, describe(value)));
  if (function.role == FunctionRole::Score && value.type == ValueType::Bool)
    return fail(range,
                fmt::format("score function '{}' gives a bool; a score is a float, write where(condition, score, -inf)",
                            function.statement->name));
  return value;
}

void Importer::runAssign(const Stmt &statement) {
  Entity value = evaluate(*statement.value);
  for (const ExprRef &target : statement.targets)
    bindTarget(*target, value);
}

void Importer::bindTarget(const Expr &target, Entity value) {
  if (target.kind == ExprKind::Tuple) {
    bool isMatch = value.kind == EntityKind::Tuple && value.elements.size() == target.operands.size();
    if (!isMatch && !value.isError())
      error(target.range, value.kind == EntityKind::Tuple
                              ? fmt::format("{} names for a tuple of {}", target.operands.size(), value.elements.size())
                              : fmt::format("{} names for {}", target.operands.size(), describe(value)));
    for (size_t i = 0; i < target.operands.size(); ++i)
      bindTarget(*target.operands[i], isMatch ? value.elements[i] : Entity{});
    return;
  }
  if (target.kind != ExprKind::Name)
    return;
  if (isBuiltinDimension(target.name)) {
    error(target.range, fmt::format("'{}' is the built-in size of a dimension; choose another name", target.name));
    return;
  }
  nameValue(value, target.name);
  frame().halfBound.erase(target.name);
  frame().locals[target.name] = std::move(value);
}

// After an 'if' whose arms bind names: each name is a choice; a name bound in one arm only cannot
// be used.
void Importer::mergeArms(const Entity &condition, Frame &ifTrue, Frame &ifFalse, SourceRange range) {
  std::map<std::string, Entity> merged;
  for (auto &[name, value] : ifTrue.locals) {
    auto other = ifFalse.locals.find(name);
    if (other == ifFalse.locals.end()) {
      ifFalse.halfBound[name] = range;
      continue;
    }
    if (value.isError() || other->second.isError()) {
      merged[name] = {};
      continue;
    }
    if (isSameValue(value, other->second)) {
      merged[name] = value;
      continue;
    }
    merged[name] = select(condition, value, other->second, range);
    nameValue(merged[name], name);
  }
  for (auto &[name, value] : ifFalse.locals)
    if (!ifTrue.locals.contains(name))
      ifFalse.halfBound[name] = range;
  ifFalse.locals = std::move(merged);
}

} // namespace cpflex
