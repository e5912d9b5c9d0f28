// Evaluates expressions: names, operators, comparisons, membership, subscripts and attributes.
// Calls are in Calls.cpp.
#include "lib/Frontend/ImporterState.h"

#include "dialect/Mask/MaskDialect.h"

#include "llvm/Support/SaveAndRestore.h"

#include <fmt/format.h>

#include <limits>
#include <numbers>

namespace cpflex {

using namespace ast;

namespace {

bool hasMaskKind(const Entity &entity) {
  return entity.kind == EntityKind::Mask ||
         (entity.kind == EntityKind::Function && entity.function->role == FunctionRole::Mask);
}

} // namespace

Entity Importer::evaluate(const Expr &expr) {
  if (!enter(expr.range))
    return {};
  Entity result = evaluateUnguarded(expr);
  --depth_;
  return result;
}

Entity Importer::evaluateUnguarded(const Expr &expr) {
  switch (expr.kind) {
  case ExprKind::Error: return {};
  case ExprKind::Name: return evaluateName(expr);
  case ExprKind::Int: return Entity::ofConstant(Constant::ofInt(expr.intValue));
  case ExprKind::Float: return Entity::ofConstant(Constant::ofFloat(float(expr.floatValue)));
  case ExprKind::Bool: return Entity::ofConstant(Constant::ofBool(expr.intValue != 0));
  case ExprKind::String: {
    Entity text;
    text.kind = EntityKind::Text;
    text.name = expr.name;
    return text;
  }
  case ExprKind::None: {
    Entity none;
    none.kind = EntityKind::None;
    return none;
  }
  case ExprKind::Tuple: {
    Entity tuple;
    tuple.kind = EntityKind::Tuple;
    for (const ExprRef &operand : expr.operands) {
      tuple.elements.push_back(evaluate(*operand));
      if (tuple.elements.back().isError())
        return {};
    }
    return tuple;
  }
  case ExprKind::Unary: return evaluateUnary(expr);
  case ExprKind::Binary: return evaluateChain(expr);
  case ExprKind::Compare: return evaluateCompare(expr);
  case ExprKind::And:
  case ExprKind::Or: return evaluateLogic(expr);
  case ExprKind::Conditional: return evaluateConditional(expr);
  case ExprKind::Call: return evaluateCall(expr);
  case ExprKind::Attribute: return evaluateAttribute(expr);
  case ExprKind::Subscript: return evaluateSubscript(expr);
  case ExprKind::Slice:
  case ExprKind::Generator:
    return fail(expr.range, "a generator stands only inside any(...), all(...), sum(...), min(...) or max(...)");
  }
  return {};
}

std::optional<Constant> Importer::evaluateConstant(Module &module, const Expr &expr) {
  Frame local;
  local.module = &module;
  frames_.push_back(&local);
  bool hadBody = std::exchange(hasBody_, false);
  Entity value = evaluate(expr);
  hasBody_ = hadBody;
  if (!value.isError() && !value.isConstant())
    error(expr.range, fmt::format("{} where a constant is expected", describe(value)));
  frames_.pop_back();
  return value.isError() ? std::nullopt : value.constant;
}

Entity Importer::evaluateName(const Expr &expr) {
  Frame &current = frame();
  if (auto local = current.locals.find(expr.name); local != current.locals.end())
    return local->second;
  if (auto half = current.halfBound.find(expr.name); half != current.halfBound.end()) {
    Diagnostic &diagnostic =
        error(expr.range, fmt::format("'{}' is bound in one arm of an 'if' only; bind it in both", expr.name));
    addNote(diagnostic, current.module->file.source, half->second, "this 'if'");
    return {};
  }
  if (std::optional<Entity> found = lookUp(*current.module, expr.name, expr.range))
    return *found;
  if (std::string message = foreignNameMessage(expr.name); !message.empty())
    return fail(expr.range, std::move(message));
  // The name may be defined by a line that was left out after an error.
  if (current.module->file.isIncomplete && diagnostics_.hasErrors())
    return {};
  if (expr.name == "self")
    return fail(expr.range, "'self' is not part of the language; what a class would hold is declared, as in 'window: "
                            "param[int]', and used by its name");
  return fail(expr.range, fmt::format("unknown name '{}'{}", expr.name, suggestion(expr.name, visibleNames())));
}

bool Importer::isKnownName(const Module &module, const std::string &name) const {
  return module.symbols.contains(name) || isBuiltinDimension(name) || isBuiltinFunction(name) || valueTypeNamed(name) ||
         name == "inf" || name == "pi" || name == "torch" || name == "math";
}

std::optional<Entity> Importer::lookUp(Module &module, const std::string &name, SourceRange range) {
  if (auto symbol = module.symbols.find(name); symbol != module.symbols.end())
    return evaluateSymbol(module, symbol->second, range);
  Entity entity;
  entity.name = name;
  if (isBuiltinDimension(name)) {
    if (!hasBody_)
      return fail(range, fmt::format("'{}' is known when arrays are bound; expected a constant", name));
    mlir::OperationState state(location(range), "mask.dim");
    state.addAttribute("name", mlir::StringAttr::get(&ctx_, name));
    return emitLeaf(state, ValueType::Int);
  }
  if (name == "inf" || name == "pi")
    return Entity::ofConstant(
        Constant::ofFloat(name == "inf" ? std::numeric_limits<float>::infinity() : std::numbers::pi_v<float>));
  if (std::optional<ValueType> type = valueTypeNamed(name)) {
    entity.kind = EntityKind::Type;
    entity.type = *type;
    return entity;
  }
  if (isBuiltinFunction(name)) {
    entity.kind = EntityKind::Builtin;
    return entity;
  }
  if (name == "torch" || name == "math") {
    entity.kind = EntityKind::Library;
    return entity;
  }
  return std::nullopt;
}

Entity Importer::evaluateSymbol(Module &module, Symbol &symbol, SourceRange range) {
  Entity entity;
  if (symbol.isOpen)
    return fail(range, fmt::format("'{}' is defined by itself", std::string(module.file.source->slice(symbol.range))));
  if (symbol.kind == SymbolKind::Scalar && !symbol.scalar && !symbol.isBroken)
    resolveScalar(module, symbol);
  if (symbol.isBroken)
    return entity;
  usedSymbols_.insert(&symbol);
  switch (symbol.kind) {
  case SymbolKind::Function:
    entity.kind = EntityKind::Function;
    entity.function = &symbol.function;
    return entity;
  case SymbolKind::Scalar: {
    const ScalarDeclaration &scalar = *use(symbol.scalar);
    if (scalar.isConst)
      return Entity::ofConstant(*scalar.value);
    if (!hasBody_)
      return fail(range, fmt::format("'{}' is a runtime argument; expected a constant, as '{}: const[{}]' declares",
                                     scalar.name, scalar.name, typeName(scalar.type)));
    mlir::OperationState state(location(range), "mask.param_value");
    state.addAttribute("param", mlir::FlatSymbolRefAttr::get(&ctx_, scalar.name));
    return emitLeaf(state, scalar.type);
  }
  case SymbolKind::Tensor:
    if (!symbol.tensor)
      return fail(range, fmt::format("'{}' is an array that is bound when the program runs; expected a constant",
                                     symbol.statement->name));
    entity.kind = EntityKind::Tensor;
    entity.tensor = use(symbol.tensor);
    return entity;
  case SymbolKind::Dimension: {
    if (!hasBody_)
      return fail(range, fmt::format("'{}' is a size known when arrays are bound; expected a constant", symbol.name));
    mlir::OperationState state(location(range), "mask.dim");
    state.addAttribute("name", mlir::StringAttr::get(&ctx_, symbol.name));
    return emitLeaf(state, ValueType::Int);
  }
  case SymbolKind::Alias: {
    llvm::SaveAndRestore<bool> open(symbol.isOpen, true);
    Frame local;
    local.module = &module;
    local.callerModule = frame().module;
    local.callRange = range;
    frames_.push_back(&local);
    Entity value = evaluate(*symbol.expr);
    if (symbol.element >= 0 && !value.isError()) {
      if (value.kind != EntityKind::Tuple || size_t(symbol.element) >= value.elements.size())
        value = fail(symbol.range, fmt::format("{} has no element {} to bind", describe(value), symbol.element + 1));
      else
        value = Entity(value.elements[symbol.element]);
    }
    frames_.pop_back();
    return value;
  }
  case SymbolKind::Imported:
    if (symbol.module->isLoading) // a cycle of imports, which was reported
      return entity;
    return evaluateSymbol(*symbol.module, symbol.module->symbols.at(symbol.name), range);
  case SymbolKind::Library: {
    size_t dot = symbol.name.rfind('.');
    std::string base = symbol.name.substr(0, symbol.name.find('.'));
    if (dot == std::string::npos || symbol.statement->isWholeModule) {
      entity.kind = EntityKind::Library;
      entity.name = base;
      return entity;
    }
    return libraryMember(base, symbol.name.substr(dot + 1), range);
  }
  case SymbolKind::Module:
    entity.kind = EntityKind::Module;
    entity.module = symbol.module;
    return entity;
  }
  return entity;
}

Entity Importer::evaluateUnary(const Expr &expr) {
  Entity operand = evaluate(*expr.operands[0]);
  if (operand.isError())
    return {};
  if (hasMaskKind(operand) && (expr.op == OpKind::Invert || expr.op == OpKind::Not)) {
    if (expr.op == OpKind::Not) {
      setFixIt(error(expr.range, "'not' works on bools; write '~' before a mask"), frame().module->file.source,
               {expr.range.begin, expr.operands[0]->range.begin}, "~");
      return {};
    }
    MaskValue value;
    value.kind = MaskValueKind::Not;
    value.operands = {asMask(operand)};
    return maskEntity(std::move(value));
  }
  operand = toScalar(operand, expr.operands[0]->range);
  if (operand.isError())
    return {};
  switch (expr.op) {
  case OpKind::Not:
    operand = toBool(operand, expr.operands[0]->range, "'not'");
    return operand.isError() ? operand : emit(Operation::Not, {operand}, expr.range);
  case OpKind::Invert:
    if (operand.type == ValueType::Float)
      return fail(expr.range, "'~' works on bools and ints; this is a float");
    return emit(Operation::Not, {operand}, expr.range);
  default:
    if (operand.type == ValueType::Bool)
      return fail(expr.range,
                  fmt::format("'{}' works on numbers; this is a bool, write int(...) around it", toString(expr.op)));
    return expr.op == OpKind::Plus ? operand : emit(Operation::Neg, {operand}, expr.range);
  }
}

// The left operands of a chain `a + b + c` are followed in a loop: a chain may have kMaxTerms
// terms.
Entity Importer::evaluateChain(const Expr &expr) {
  std::vector<const Expr *> spine;
  const Expr *first = &expr;
  for (; first->kind == ExprKind::Binary; first = first->operands[0].get())
    spine.push_back(first);
  Entity value = evaluate(*first);
  bool hasFailed = value.isError();
  for (size_t i = spine.size(); i-- > 0;) {
    const Expr &node = *spine[i];
    Entity rhs = evaluate(*node.operands[1]);
    hasFailed |= rhs.isError();
    if (hasFailed)
      continue;
    value =
        binary(node.op, std::move(value), std::move(rhs), node.range, node.operands[0]->range, node.operands[1]->range);
    hasFailed = value.isError();
  }
  return hasFailed ? Entity{} : value;
}

Entity Importer::evaluateCompare(const Expr &expr) {
  Entity result;
  Entity lhs = evaluate(*expr.operands[0]);
  bool hasFailed = false;
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    const Expr &rhsExpr = *expr.operands[i + 1];
    for (const ExprRef &side : {std::cref(expr.operands[i]), std::cref(expr.operands[i + 1])})
      if (side->kind == ExprKind::Binary && !side->isParenthesized &&
          (side->op == OpKind::BitAnd || side->op == OpKind::BitOr)) {
        Diagnostic &diagnostic =
            warning(side->opRange,
                    fmt::format("'{}' binds tighter than '{}'; write parentheses around each comparison, or '{}'",
                                toString(side->op), toString(expr.ops[i]), side->op == OpKind::BitAnd ? "and" : "or"));
        // `a < b & c < d`: what was meant is plain.
        if (expr.ops.size() == 2 && side == expr.operands[1]) {
          const SourceRef &source = frame().module->file.source;
          setFixIt(diagnostic, source, expr.range,
                   fmt::format("({}) {} ({})", source->slice({expr.range.begin, side->operands[0]->range.end}),
                               toString(side->op), source->slice({side->operands[1]->range.begin, expr.range.end})));
        }
      }
    lintWindow(expr.ops[i], *expr.operands[i], rhsExpr);
    SourceRange range{expr.operands[i]->range.begin, rhsExpr.range.end};
    Entity one;
    bool isMembership = expr.ops[i] == OpKind::In || expr.ops[i] == OpKind::NotIn;
    if (isMembership && expr.ops.size() > 1)
      return fail(expr.range, "'in' does not chain with other comparisons; write 'and' between them");
    if (isMembership) {
      if (!lhs.isError())
        one = evaluateMembership(lhs, rhsExpr, range);
      if (!one.isError() && expr.ops[i] == OpKind::NotIn)
        one = emit(Operation::Not, {one}, range);
    } else {
      Entity rhs = evaluate(rhsExpr);
      if (!lhs.isError())
        lhs = toScalar(lhs, expr.operands[i]->range);
      if (!rhs.isError())
        rhs = toScalar(rhs, rhsExpr.range);
      if (!lhs.isError() && !rhs.isError())
        one = compare(expr.ops[i], lhs, rhs, range);
      lhs = std::move(rhs);
    }
    hasFailed |= one.isError();
    if (hasFailed)
      continue;
    result = result.isError() ? one : emit(Operation::And, {result, one}, expr.range);
  }
  return hasFailed ? Entity{} : result;
}

// `m1 and m2` where `m1 & m2` is meant.
Entity Importer::refuseLogicBetweenMasks(const Expr &expr) {
  const bool isAnd = expr.kind == ExprKind::And;
  const SourceRef &source = frame().module->file.source;
  std::string text;
  for (const ExprRef &operand : expr.operands)
    text += fmt::format("{}{}", text.empty() ? "" : isAnd ? " & " : " | ", source->slice(operand->range));
  Diagnostic &diagnostic = error(expr.opRange, fmt::format("'{}' works on bools; write '{}' between masks",
                                                           isAnd ? "and" : "or", isAnd ? "&" : "|"));
  const bool isSimple = std::all_of(expr.operands.begin(), expr.operands.end(), [](const ExprRef &operand) {
    return operand->isParenthesized || operand->kind == ExprKind::Name || operand->kind == ExprKind::Call ||
           operand->kind == ExprKind::Attribute;
  });
  if (isSimple)
    setFixIt(diagnostic, source, expr.range, text);
  return {};
}

Entity Importer::evaluateLogic(const Expr &expr) {
  bool isAnd = expr.kind == ExprKind::And;
  Entity result = Entity::ofConstant(Constant::ofBool(isAnd));
  bool hasFailed = false;
  for (const ExprRef &operand : expr.operands) {
    // A constant that decides leaves the rest unevaluated, as in Python.
    if (result.isConstant() && (result.constant->bits != 0) != isAnd)
      break;
    Entity value = evaluate(*operand);
    if (hasMaskKind(value))
      return refuseLogicBetweenMasks(expr);
    if (!value.isError())
      value = toBool(value, operand->range, isAnd ? "'and'" : "'or'");
    hasFailed |= value.isError();
    if (hasFailed)
      continue;
    result = result.isConstant() ? value : emit(isAnd ? Operation::And : Operation::Or, {result, value}, expr.range);
  }
  return hasFailed ? Entity{} : result;
}

Entity Importer::evaluateConditional(const Expr &expr) {
  Entity condition = evaluate(*expr.operands[0]);
  if (!condition.isError())
    condition = toBool(condition, expr.operands[0]->range, "'if'");
  if (condition.isConstant())
    return evaluate(*expr.operands[condition.constant->bits ? 1 : 2]);
  Entity ifTrue = evaluate(*expr.operands[1]);
  Entity ifFalse = evaluate(*expr.operands[2]);
  if (condition.isError() || ifTrue.isError() || ifFalse.isError())
    return {};
  return select(condition, ifTrue, ifFalse, expr.range);
}

Entity Importer::evaluateAttribute(const Expr &expr) {
  const Expr &owner = *expr.operands[0];
  // `config.window`: an object of the Python program around a function.
  const bool isForeignObject = owner.kind == ExprKind::Name && owner.name != "self" &&
                               !frame().locals.contains(owner.name) && !frame().halfBound.contains(owner.name) &&
                               !isKnownName(*frame().module, owner.name) && foreignNameMessage(owner.name).empty() &&
                               suggestion(owner.name, visibleNames()).empty();
  if (isForeignObject && !(frame().module->file.isIncomplete && diagnostics_.hasErrors()))
    return fail(owner.range,
                fmt::format("unknown name '{}'; there are no objects, declare what '{}.{}' holds, as in '{}: "
                            "param[int]'",
                            owner.name, owner.name, expr.name, expr.name));
  Entity base = evaluate(owner);
  if (base.isError())
    return {};
  if (base.kind == EntityKind::Library)
    return libraryMember(base.name, expr.name, expr.opRange);
  if (base.kind == EntityKind::Module) {
    if (auto symbol = base.module->symbols.find(expr.name); symbol != base.module->symbols.end())
      return evaluateSymbol(*base.module, symbol->second, expr.range);
    std::vector<std::string> names;
    for (const auto &[name, _] : base.module->symbols)
      names.push_back(name);
    return fail(expr.opRange, fmt::format("'{}' has no '{}'{}", base.module->file.source->path(), expr.name,
                                          suggestion(expr.name, names)));
  }
  if (base.kind == EntityKind::Tensor && expr.name == "shape") {
    Entity shape;
    shape.kind = EntityKind::Tuple;
    for (size_t axis : freeAxes(base))
      shape.elements.push_back(dimensionValue(*base.tensor, axis, expr.range));
    return shape;
  }
  if (base.isScalar() && expr.name == "dtype") {
    base.kind = EntityKind::Type;
    return base;
  }
  if (expr.name == "T" || expr.name == "device" || expr.name == "ndim")
    return fail(expr.opRange, fmt::format("'.{}' is not part of the language; index the array instead", expr.name));
  return fail(expr.opRange,
              fmt::format("{} has no attribute '{}'; {}", describe(base), expr.name,
                          base.kind == EntityKind::Tensor ? "expected '.shape'"
                                                          : "declare what it holds by a name of its own"));
}

} // namespace cpflex
