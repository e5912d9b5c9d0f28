// Calls: arguments bound to parameters, functions inlined, reductions over generators. What each
// built-in function does is in Builtins.cpp.
#include "lib/Frontend/ImporterState.h"

#include "dialect/Mask/MaskDialect.h"

#include <fmt/format.h>

namespace cpflex {

using namespace ast;

namespace {

std::optional<mask::ReductionKind> reductionNamed(const std::string &name) {
  if (name == "any")
    return mask::ReductionKind::Any;
  if (name == "all")
    return mask::ReductionKind::All;
  if (name == "sum")
    return mask::ReductionKind::Sum;
  if (name == "min")
    return mask::ReductionKind::Min;
  if (name == "max")
    return mask::ReductionKind::Max;
  return std::nullopt;
}

} // namespace

Entity Importer::evaluateCall(const Expr &expr) {
  const Expr &callee = *expr.operands[0];
  if (callee.kind == ExprKind::Attribute) {
    Entity base = evaluate(*callee.operands[0]);
    if (base.isError())
      return {};
    if (base.kind != EntityKind::Library && base.kind != EntityKind::Module)
      return callMethod(std::move(base), expr);
  }
  Entity target = evaluate(callee);
  switch (target.kind) {
  case EntityKind::Error: return {};
  case EntityKind::Builtin: return callBuiltin(target.name, expr);
  case EntityKind::Type: {
    Entity result;
    std::optional<Arguments> arguments = evaluateArguments(expr, typeName(target.type), 1);
    return arguments ? callWithArguments(typeName(target.type), expr, std::move(*arguments)) : result;
  }
  case EntityKind::Function: {
    std::optional<Arguments> arguments = evaluateArguments(expr, target.function->statement->name, 1);
    return arguments ? callFunction(*target.function, *arguments) : Entity{};
  }
  case EntityKind::Mask: {
    std::optional<Arguments> arguments = evaluateArguments(expr, "mask", 1);
    return arguments ? callMask(*target.mask, *arguments) : Entity{};
  }
  default: return fail(callee.range, fmt::format("{} is no function", describe(target)));
  }
}

std::optional<Importer::Arguments> Importer::evaluateArguments(const Expr &expr, const std::string &callee,
                                                               size_t skip) {
  Arguments arguments;
  arguments.range = expr.range;
  arguments.callee = callee;
  bool hasFailed = false;
  for (size_t i = skip; i < expr.operands.size(); ++i) {
    if (expr.operands[i]->kind == ExprKind::Generator) {
      error(expr.operands[i]->range,
            "a generator stands only inside any(...), all(...), sum(...), min(...) or max(...)");
      return std::nullopt;
    }
    arguments.positional.push_back(evaluate(*expr.operands[i]));
    arguments.ranges.push_back(expr.operands[i]->range);
    hasFailed |= arguments.positional.back().isError();
  }
  for (const Keyword &keyword : expr.keywords) {
    Entity value = evaluate(*keyword.value);
    hasFailed |= value.isError();
    arguments.named[keyword.name] = {std::move(value), keyword.nameRange};
  }
  return hasFailed ? std::nullopt : std::optional(std::move(arguments));
}

bool Importer::takeArguments(Arguments &arguments, std::initializer_list<const char *> names, size_t numRequired,
                             std::vector<Entity> &out) {
  std::vector<std::string> all(names.begin(), names.end());
  out.assign(all.size(), Entity{});
  if (arguments.positional.size() > all.size()) {
    error(arguments.range, fmt::format("'{}' takes {} argument{}, {} given", arguments.callee, all.size(),
                                       all.size() == 1 ? "" : "s", arguments.positional.size()));
    return false;
  }
  std::copy(arguments.positional.begin(), arguments.positional.end(), out.begin());
  for (auto &[name, value] : arguments.named) {
    auto at = std::find(all.begin(), all.end(), name);
    if (at == all.end()) {
      error(value.second, fmt::format("'{}' has no argument '{}'{}", arguments.callee, name, suggestion(name, all)));
      return false;
    }
    size_t index = size_t(at - all.begin());
    if (index < arguments.positional.size()) {
      error(value.second, fmt::format("argument '{}' is given twice", name));
      return false;
    }
    out[index] = value.first;
  }
  for (size_t i = 0; i < numRequired; ++i)
    if (out[i].isError()) {
      error(arguments.range, fmt::format("'{}' needs argument '{}'", arguments.callee, all[i]));
      return false;
    }
  return true;
}

Entity Importer::callFunction(const FunctionDefinition &function, const Arguments &arguments) {
  const Stmt &statement = *function.statement;
  if (!hasBody_)
    return fail(arguments.range, fmt::format("'{}' is called where a constant is expected", statement.name));
  auto noteDefinition = [&](Diagnostic &diagnostic) {
    addNote(diagnostic, function.module->file.source, statement.nameRange, "defined here");
    return Entity{};
  };
  size_t numParameters = statement.parameters.size();
  if (arguments.positional.size() > numParameters)
    return noteDefinition(
        error(arguments.range, fmt::format("'{}' takes {} argument{}, {} given", statement.name, numParameters,
                                           numParameters == 1 ? "" : "s", arguments.positional.size())));
  std::map<std::string, Entity> locals;
  for (size_t i = 0; i < arguments.positional.size(); ++i)
    locals[statement.parameters[i].name] = arguments.positional[i];
  for (const auto &[name, value] : arguments.named) {
    bool isKnown = std::any_of(statement.parameters.begin(), statement.parameters.end(),
                               [&, &name = name](const Parameter &parameter) { return parameter.name == name; });
    if (!isKnown)
      return noteDefinition(error(value.second, fmt::format("'{}' has no parameter '{}'", statement.name, name)));
    if (locals.contains(name))
      return fail(value.second, fmt::format("argument '{}' is given twice", name));
    locals[name] = value.first;
  }
  for (size_t i = 0; i < numParameters; ++i) {
    const Parameter &parameter = statement.parameters[i];
    if (isBuiltinDimension(parameter.name)) {
      errorIn(*function.module, parameter.range,
              fmt::format("'{}' is the built-in size of a dimension; choose another name", parameter.name));
      return {};
    }
    if (!locals.contains(parameter.name)) {
      if (!parameter.defaultValue)
        return noteDefinition(
            error(arguments.range, fmt::format("'{}' needs argument '{}'", statement.name, parameter.name)));
      Frame local;
      local.module = function.module;
      frames_.push_back(&local);
      locals[parameter.name] = evaluate(*parameter.defaultValue);
      frames_.pop_back();
    }
    Entity &value = locals[parameter.name];
    SourceRange range = i < arguments.ranges.size() ? arguments.ranges[i] : arguments.range;
    size_t firstCoordinate = function.role == FunctionRole::Score ? 1 : 0;
    if (function.role == FunctionRole::Score && i == 0 && !value.isError()) {
      value = toScalar(value, range);
      if (!value.isError() && value.type == ValueType::Bool)
        value = fail(range, "a score is a float; this is a bool");
      if (!value.isError())
        value = convert(value, ValueType::Float, range);
    } else if (function.role != FunctionRole::Plain && i < firstCoordinate + 4 && !value.isError()) {
      value = toInt(value, range, fmt::format("coordinate '{}'", parameter.name));
    }
    if (value.isError())
      return {};
  }
  Entity result = inlineFunction(function, std::move(locals), arguments.range);
  if (result.isError() || function.role == FunctionRole::Plain)
    return result;
  if (!result.isScalar()) {
    if (Entity scalar = toScalar(result, statement.nameRange); scalar.isScalar())
      result = scalar;
    else
      return {};
  }
  return function.role == FunctionRole::Score ? convert(result, ValueType::Float, arguments.range) : result;
}

Entity Importer::inlineFunction(const FunctionDefinition &function, std::map<std::string, Entity> locals,
                                SourceRange range) {
  const Stmt &statement = *function.statement;
  for (Frame *open : frames_)
    if (open->function == &function || (open->function && open->function->statement == &statement))
      return fail(range, fmt::format("'{}' calls itself; recursion is not part of the language, write a "
                                     "closed formula or any(...), sum(...) over a generator",
                                     statement.name));
  inlined_.insert(&statement);
  if (statement.isIncomplete || !enter(range))
    return {};
  Frame local;
  local.module = function.module;
  local.function = &function;
  local.locals = std::move(locals);
  local.callerModule = frame().module;
  local.callRange = range;
  frames_.push_back(&local);
  std::optional<Entity> result = runBlock(statement.body, nullptr);
  if (!result)
    result = fail(statement.nameRange, fmt::format("not every path of '{}' returns a value", statement.name));
  frames_.pop_back();
  --depth_;
  return *result;
}

Entity Importer::callMask(const MaskValue &mask, const Arguments &given) {
  Arguments arguments = given;
  std::vector<Entity> values;
  if (!hasBody_)
    return fail(given.range, "a mask is called where a constant is expected");
  if (!takeArguments(arguments, {"b", "h", "q", "kv"}, 4, values))
    return {};
  Coordinates at;
  Entity *coordinates[] = {&at.b, &at.h, &at.q, &at.kv};
  for (size_t i = 0; i < 4; ++i) {
    *coordinates[i] = toInt(values[i], i < given.ranges.size() ? given.ranges[i] : given.range, "a coordinate");
    if (coordinates[i]->isError())
      return {};
  }
  return evaluateMask(mask, at, given.range);
}

Entity Importer::callBuiltin(const std::string &name, const Expr &expr) {
  if (reductionNamed(name) && expr.operands.size() == 2 && expr.operands[1]->kind == ExprKind::Generator)
    return callReduction(name, expr);
  if (name == "attention")
    return fail(expr.range, "attention(...) stands at the top level of a file");
  if (name == "range")
    return fail(expr.range, "range(...) stands after 'in' of a generator or of a membership test only");
  std::optional<Arguments> arguments = evaluateArguments(expr, name, 1);
  return arguments ? callWithArguments(name, expr, std::move(*arguments)) : Entity{};
}

Entity Importer::callReduction(const std::string &name, const Expr &expr) {
  if (!expr.keywords.empty())
    return fail(expr.keywords[0].nameRange,
                fmt::format("'{}' over a generator has no argument '{}'", name, expr.keywords[0].name));
  // Names bound by the generator are not seen after it.
  Frame before = frame();
  Entity result = reduceClauses(name, *expr.operands[1], 0);
  frame() = std::move(before);
  return result;
}

Entity Importer::reduceClauses(const std::string &name, const Expr &generator, size_t clauseIndex) {
  const Expr &elementExpr = *generator.operands[0];
  mask::ReductionKind kind = *reductionNamed(name);
  if (clauseIndex == generator.clauses.size()) {
    Entity element = toScalar(evaluate(elementExpr), elementExpr.range);
    if (element.isError())
      return {};
    bool isLogic = kind == mask::ReductionKind::Any || kind == mask::ReductionKind::All;
    if (isLogic)
      return toBool(element, elementExpr.range, fmt::format("'{}'", name));
    if (element.type == ValueType::Bool)
      return fail(elementExpr.range,
                  fmt::format("'{}' works on numbers; these are bools, write int(...) around the element", name));
    return element;
  }
  const Clause &clause = generator.clauses[clauseIndex];
  const Expr &iterable = *clause.iterable;
  bool isRange = iterable.kind == ExprKind::Call && iterable.operands[0]->kind == ExprKind::Name &&
                 iterable.operands[0]->name == "range" && iterable.keywords.empty() &&
                 (iterable.operands.size() == 2 || iterable.operands.size() == 3);
  if (!isRange)
    return fail(iterable.range, "a generator runs over range(n) or range(begin, end); index arrays by its name");
  Entity end = evaluate(*iterable.operands.back());
  Entity begin;
  if (!end.isError())
    end = toInt(end, iterable.operands.back()->range, "the end of range(...)");
  if (iterable.operands.size() == 3) {
    begin = evaluate(*iterable.operands[1]);
    if (!begin.isError())
      begin = toInt(begin, iterable.operands[1]->range, "the begin of range(...)");
    if (begin.isError())
      return {};
  }
  if (end.isError())
    return {};
  Entity count = begin.isError() ? end : emit(Operation::Sub, {end, begin}, iterable.range);
  return reduce(int(kind), count, iterable.range, [&](Entity index) -> Entity {
    if (!begin.isError())
      index = emit(Operation::Add, {index, begin}, clause.targetRange);
    nameValue(index, clause.target);
    frame().locals[clause.target] = index;
    Entity condition;
    for (const ExprRef &expr : clause.conditions) {
      Entity one = toBool(evaluate(*expr), expr->range, "'if'");
      if (one.isError())
        return {};
      condition = condition.isError() ? one : emit(Operation::And, {condition, one}, expr->range);
    }
    Entity element = reduceClauses(name, generator, clauseIndex + 1);
    if (element.isError() || clause.conditions.empty())
      return element;
    Entity neutral;
    neutral.kind = EntityKind::Scalar;
    neutral.type = element.type;
    neutral.constant = Constant{element.type, kind == mask::ReductionKind::All};
    if (kind == mask::ReductionKind::Min || kind == mask::ReductionKind::Max)
      return fail(clause.conditions[0]->range,
                  fmt::format("'{}' has no value for elements left out; write where(...) in the element", name));
    return select(condition, element, neutral, elementExpr.range);
  });
}

} // namespace cpflex
