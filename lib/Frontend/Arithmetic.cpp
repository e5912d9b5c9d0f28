// The typing rules of values and the emission of operations: conversions, operators, comparisons,
// selects, reductions.
#include "lib/Frontend/ImporterState.h"

#include "dialect/Mask/MaskDialect.h"

#include <fmt/format.h>

namespace cpflex {

using namespace ast;

namespace {

const char *withArticle(ValueType type) {
  switch (type) {
  case ValueType::Bool: return "a bool";
  case ValueType::Int: return "an int";
  case ValueType::U32: return "a u32";
  case ValueType::Float: return "a float";
  }
  return "";
}

bool isZero(const Constant &constant) {
  return constant.type == ValueType::Float ? constant.asFloat() == 0.0f : constant.bits == 0;
}

} // namespace

const char *typeName(ValueType type) { return withArticle(type) + (type == ValueType::Int ? 3 : 2); }

std::string describe(const Entity &entity) {
  switch (entity.kind) {
  case EntityKind::Scalar: return withArticle(entity.type);
  case EntityKind::Tuple: return "a tuple";
  case EntityKind::Tensor: return fmt::format("array '{}'", entity.tensor->name);
  case EntityKind::Mask: return "a mask";
  case EntityKind::Function:
    return fmt::format("{} '{}'",
                       entity.function->role == FunctionRole::Mask    ? "mask"
                       : entity.function->role == FunctionRole::Score ? "score function"
                                                                      : "function",
                       entity.function->statement->name);
  case EntityKind::Builtin: return fmt::format("function '{}'", entity.name);
  case EntityKind::Library: return fmt::format("module '{}'", entity.name);
  case EntityKind::Module: return "a module";
  case EntityKind::Type: return fmt::format("type '{}'", typeName(entity.type));
  case EntityKind::Text: return "a text";
  case EntityKind::None: return "None";
  case EntityKind::Slice: return "':'";
  case EntityKind::Error: return "an error";
  }
  return "";
}

mlir::Type dialectType(mlir::MLIRContext &ctx, ValueType type) {
  switch (type) {
  case ValueType::Bool: return mlir::IntegerType::get(&ctx, 1);
  case ValueType::Int: return mlir::IntegerType::get(&ctx, 64);
  case ValueType::U32: return mlir::IntegerType::get(&ctx, 32, mlir::IntegerType::Unsigned);
  case ValueType::Float: return mlir::Float32Type::get(&ctx);
  }
  return {};
}

ValueType loadedValueType(ElementType type) {
  switch (type) {
  case ElementType::Bool: return ValueType::Bool;
  case ElementType::U32: return ValueType::U32;
  case ElementType::F16:
  case ElementType::BF16:
  case ElementType::F32: return ValueType::Float;
  default: return ValueType::Int;
  }
}

// An element of an array as the user would write it: `doc[i]`, `table[i, j]`.
static std::string elementText(const TensorDeclaration &tensor) {
  constexpr const char *kIndices[] = {"i", "i, j", "i, j, k", "i, j, k, l"};
  return tensor.dims.empty() ? tensor.name : fmt::format("{}[{}]", tensor.name, kIndices[tensor.dims.size() - 1]);
}

Entity Importer::toScalar(const Entity &entity, SourceRange range) {
  switch (entity.kind) {
  case EntityKind::Scalar:
  case EntityKind::Error: return entity;
  case EntityKind::Tensor: {
    size_t rank = entity.tensor->dims.size();
    size_t given = entity.elements.size();
    if (rank == given && std::none_of(entity.elements.begin(), entity.elements.end(),
                                      [](const Entity &index) { return index.kind == EntityKind::Slice; }))
      return load(entity, range);
    bool hasSlice = given == rank;
    Diagnostic &diagnostic =
        hasSlice
            ? error(range, fmt::format("an axis of '{}' where one value is expected; write 'x in "
                                       "{}[...]' to look for a value, or any(...) over a generator",
                                       entity.tensor->name, entity.tensor->name))
            : error(range, fmt::format("'{}' has {} dimension{}, {} ind{} given{}", entity.tensor->name, rank,
                                       rank == 1 ? "" : "s", given, given == 1 ? "ex" : "ices",
                                       given > 0 ? "" : "; name one element, as in " + elementText(*entity.tensor)));
    addNote(diagnostic, entity.tensor->module->file.source, entity.tensor->range, "declared here");
    return {};
  }
  case EntityKind::Mask: return fail(range, "a mask where a value is expected; call it, as in causal(b, h, q, kv)");
  case EntityKind::Function: return fail(range, fmt::format("{} where a value is expected; call it", describe(entity)));
  case EntityKind::Text:
    return fail(range,
                "a text where a number or bool is expected; to choose between variants, declare a const[bool] or "
                "const[int]");
  case EntityKind::None: return fail(range, "None where a number or bool is expected; everything has a value here");
  default: return fail(range, fmt::format("{} where a number or bool is expected", describe(entity)));
  }
}

Entity Importer::toInt(const Entity &entity, SourceRange range, const std::string &what) {
  Entity value = toScalar(entity, range);
  if (value.isError() || value.type == ValueType::Int)
    return value;
  return fail(range, fmt::format("{} is an int; this is {}, write int(...) around it", what, describe(value)));
}

Entity Importer::toBool(const Entity &entity, SourceRange range, const std::string &what) {
  Entity value = toScalar(entity, range);
  if (value.isError() || value.type == ValueType::Bool)
    return value;
  return fail(range, fmt::format("{} works on bools; this is {}, write '!= 0' or bool(...)", what, describe(value)));
}

Entity Importer::convert(const Entity &entity, ValueType type, SourceRange range) {
  if (entity.type == type)
    return entity;
  Operation operation = type == ValueType::Bool  ? Operation::ToBool
                        : type == ValueType::Int ? Operation::ToInt
                        : type == ValueType::U32 ? Operation::ToU32
                                                 : Operation::ToFloat;
  return emit(operation, {entity}, range);
}

// Gives both sides one type: an int that meets a float becomes a float, a constant int that meets a
// u32 becomes a u32.
bool Importer::unify(Entity &lhs, Entity &rhs, SourceRange range, const std::string &what) {
  if (lhs.type == rhs.type)
    return true;
  auto becomes = [&](Entity &from, const Entity &to) {
    if (from.type == ValueType::Int && to.type == ValueType::Float) {
      from = convert(from, ValueType::Float, range);
      return true;
    }
    if (from.type == ValueType::Int && to.type == ValueType::U32 && from.isConstant() && from.constant->bits >= 0 &&
        from.constant->bits <= UINT32_MAX) {
      from = convert(from, ValueType::U32, range);
      return true;
    }
    return false;
  };
  if (becomes(lhs, rhs) || becomes(rhs, lhs))
    return !lhs.isError() && !rhs.isError();
  const char *advice = lhs.type == ValueType::Bool || rhs.type == ValueType::Bool
                           ? "a bool becomes a number by int(...)"
                           : "convert one by int(...), u32(...) or float(...)";
  error(range, fmt::format("{} between {} and {}; {}", what, withArticle(lhs.type), withArticle(rhs.type), advice));
  return false;
}

Entity Importer::power(const Entity &base, const Entity &exponent, SourceRange range) {
  bool isFloat = base.type == ValueType::Float || exponent.type == ValueType::Float;
  if (!isFloat) {
    if (!exponent.isConstant() || exponent.constant->bits < 0)
      return fail(range, "'**' between ints needs a constant exponent of 0 or more; write '1 << n' "
                         "for powers of two, or float(...) around the base");
    // Squaring: b**13 = b**8 * b**4 * b.
    Entity result = convert(Entity::ofConstant(Constant::ofInt(1)), base.type, range);
    Entity square = base;
    for (uint64_t rest = uint64_t(exponent.constant->bits); rest; rest >>= 1) {
      if (rest & 1)
        result =
            result.isConstant() && result.constant->bits == 1 ? square : emit(Operation::Mul, {result, square}, range);
      if (rest > 1)
        square = emit(Operation::Mul, {square, square}, range);
      if (result.isError() || square.isError())
        return {};
    }
    return result;
  }
  Entity lhs = convert(base, ValueType::Float, range);
  // Small whole exponents are products: exact where the products are.
  constexpr float kLargestProduct = 4;
  Entity rhs = convert(exponent, ValueType::Float, range);
  if (lhs.isError() || rhs.isError())
    return {};
  if (!lhs.isConstant() && rhs.isConstant()) {
    float value = rhs.constant->asFloat();
    if (value >= 1 && value <= kLargestProduct && value == float(int(value))) {
      Entity result = lhs;
      for (int i = 1; i < int(value); ++i)
        result = emit(Operation::Mul, {result, lhs}, range);
      return result;
    }
  }
  return emit(Operation::Pow, {lhs, rhs}, range);
}

Entity Importer::binary(OpKind op, Entity lhs, Entity rhs, SourceRange range, SourceRange lhsRange,
                        SourceRange rhsRange) {
  auto isMask = [](const Entity &entity) {
    return entity.kind == EntityKind::Mask ||
           (entity.kind == EntityKind::Function && entity.function->role == FunctionRole::Mask);
  };
  if (isMask(lhs) && isMask(rhs)) {
    if (op != OpKind::BitAnd && op != OpKind::BitOr && op != OpKind::BitXor)
      return fail(range, fmt::format("'{}' between masks; expected '&', '|' or '^'", toString(op)));
    MaskValue value;
    value.kind = op == OpKind::BitAnd  ? MaskValueKind::And
                 : op == OpKind::BitOr ? MaskValueKind::Or
                                       : MaskValueKind::Xor;
    value.operands = {asMask(lhs), asMask(rhs)};
    value.module = frame().module;
    value.range = range;
    return maskEntity(std::move(value));
  }
  const Entity &other = isMask(lhs) ? rhs : lhs;
  if (isMask(lhs) != isMask(rhs) && other.kind == EntityKind::Function && other.function->role == FunctionRole::Plain) {
    Diagnostic &diagnostic = error(range, fmt::format("'{}' between {} and {}; write '@mask' before '{}'", toString(op),
                                                      describe(lhs), describe(rhs), other.function->statement->name));
    noteMissingDecorator(diagnostic, *other.function, FunctionRole::Mask);
    return {};
  }
  if (isMask(lhs) != isMask(rhs))
    return fail(range, fmt::format("'{}' between {} and {}; inside a function call the mask, as in causal(b, h, q, kv)",
                                   toString(op), describe(lhs), describe(rhs)));
  lhs = toScalar(lhs, lhsRange);
  rhs = toScalar(rhs, rhsRange);
  if (lhs.isError() || rhs.isError())
    return {};
  std::string what = fmt::format("'{}'", toString(op));
  bool isBitwise = op == OpKind::BitAnd || op == OpKind::BitOr || op == OpKind::BitXor;
  bool isShift = op == OpKind::Shl || op == OpKind::Shr;
  if (isBitwise && lhs.type != rhs.type && (lhs.type == ValueType::Bool || rhs.type == ValueType::Bool))
    return fail(range,
                fmt::format("{} between {} and {}; it binds tighter than comparisons, put parentheses around them",
                            what, withArticle(lhs.type), withArticle(rhs.type)));
  if (!isBitwise && (lhs.type == ValueType::Bool || rhs.type == ValueType::Bool)) {
    const bool isLeft = lhs.type == ValueType::Bool;
    const SourceRange &side = isLeft ? lhsRange : rhsRange;
    const SourceRef &source = frame().module->file.source;
    setFixIt(error(range, fmt::format("{} works on numbers; {} is a bool, write int(...) around it", what,
                                      isLeft ? "the left side" : "the right side")),
             source, side, fmt::format("int({})", source->slice(side)));
    return {};
  }
  if ((isBitwise || isShift) && (lhs.type == ValueType::Float || rhs.type == ValueType::Float))
    return fail(range, fmt::format("{} works on {}ints; {} is a float", what, isShift ? "" : "bools and ",
                                   lhs.type == ValueType::Float ? "the left side" : "the right side"));
  if (op == OpKind::Pow)
    return power(lhs, rhs, range);
  if (op == OpKind::Div) {
    lhs = convert(lhs, ValueType::Float, range);
    rhs = convert(rhs, ValueType::Float, range);
    if (lhs.isError() || rhs.isError())
      return {};
  }
  if (!unify(lhs, rhs, range, what))
    return {};
  bool isDivision = op == OpKind::Div || op == OpKind::FloorDiv || op == OpKind::Mod;
  if (isDivision && rhs.isConstant() && isZero(*rhs.constant))
    return fail(rhsRange, fmt::format("{} by the constant 0", op == OpKind::Mod ? "remainder" : "division"));
  switch (op) {
  case OpKind::Add: return emit(Operation::Add, {lhs, rhs}, range);
  case OpKind::Sub: return emit(Operation::Sub, {lhs, rhs}, range);
  case OpKind::Mul: return emit(Operation::Mul, {lhs, rhs}, range);
  case OpKind::Div: return emit(Operation::Div, {lhs, rhs}, range);
  case OpKind::FloorDiv: return emit(Operation::FloorDiv, {lhs, rhs}, range);
  case OpKind::Mod: return emit(Operation::Mod, {lhs, rhs}, range);
  case OpKind::Shl: return emit(Operation::Shl, {lhs, rhs}, range);
  case OpKind::Shr: return emit(Operation::Shr, {lhs, rhs}, range);
  case OpKind::BitAnd: return emit(Operation::And, {lhs, rhs}, range);
  case OpKind::BitOr: return emit(Operation::Or, {lhs, rhs}, range);
  default: return emit(Operation::Xor, {lhs, rhs}, range);
  }
}

Entity Importer::compare(OpKind op, Entity lhs, Entity rhs, SourceRange range) {
  lhs = toScalar(lhs, range);
  rhs = toScalar(rhs, range);
  if (lhs.isError() || rhs.isError())
    return {};
  std::string what = fmt::format("'{}'", toString(op));
  if (!unify(lhs, rhs, range, what))
    return {};
  bool isEquality = op == OpKind::Eq || op == OpKind::Ne;
  if (lhs.type == ValueType::Bool && !isEquality)
    return fail(range, fmt::format("{} orders numbers; these are bools", what));
  switch (op) {
  case OpKind::Eq: return emit(Operation::Eq, {lhs, rhs}, range);
  case OpKind::Ne: return emit(Operation::Ne, {lhs, rhs}, range);
  case OpKind::Lt: return emit(Operation::Lt, {lhs, rhs}, range);
  case OpKind::Le: return emit(Operation::Le, {lhs, rhs}, range);
  case OpKind::Gt: return emit(Operation::Gt, {lhs, rhs}, range);
  default: return emit(Operation::Ge, {lhs, rhs}, range);
  }
}

Entity Importer::select(const Entity &condition, const Entity &ifTrue, const Entity &ifFalse, SourceRange range) {
  if (ifTrue.kind == EntityKind::Tuple && ifFalse.kind == EntityKind::Tuple &&
      ifTrue.elements.size() == ifFalse.elements.size()) {
    Entity result = ifTrue;
    for (size_t i = 0; i < result.elements.size(); ++i) {
      result.elements[i] = select(condition, ifTrue.elements[i], ifFalse.elements[i], range);
      if (result.elements[i].isError())
        return {};
    }
    return result;
  }
  Entity lhs = toScalar(ifTrue, range);
  Entity rhs = toScalar(ifFalse, range);
  if (lhs.isError() || rhs.isError() || !unify(lhs, rhs, range, "a choice"))
    return {};
  return emit(Operation::Select, {condition, lhs, rhs}, range);
}

} // namespace cpflex
