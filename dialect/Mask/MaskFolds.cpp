// What operations of the `mask` dialect fold to: constants by the functions of runtime/contract/Operations.h, and
// values that an identity of the arithmetic proves equal.
#include "dialect/Mask/MaskDialect.h"
#include "runtime/contract/Operations.h"

using namespace mlir;

namespace cpflex::mask {

OpFoldResult ConstantOp::fold(FoldAdaptor) { return getValueAttr(); }

//===----------------------------------------------------------------------===//
// Constants
//===----------------------------------------------------------------------===//

namespace {

/// The operand types of an entry of the table, as its `domains` letters.
struct Domains {
  const char *letters;
  constexpr bool contains(char letter) const {
    for (const char *c = letters; *c; ++c)
      if (*c == letter)
        return true;
    return false;
  }
};

bool toConcrete(Attribute attribute, bool &value) {
  auto integer = llvm::dyn_cast_or_null<IntegerAttr>(attribute);
  if (!integer)
    return false;
  value = integer.getValue().getBoolValue();
  return true;
}
bool toConcrete(Attribute attribute, ops::Int &value) {
  auto integer = llvm::dyn_cast_or_null<IntegerAttr>(attribute);
  if (!integer)
    return false;
  value = integer.getValue().getSExtValue();
  return true;
}
bool toConcrete(Attribute attribute, ops::U32 &value) {
  auto integer = llvm::dyn_cast_or_null<IntegerAttr>(attribute);
  if (!integer)
    return false;
  value = static_cast<ops::U32>(integer.getValue().getZExtValue());
  return true;
}
bool toConcrete(Attribute attribute, float &value) {
  auto number = llvm::dyn_cast_or_null<FloatAttr>(attribute);
  if (!number)
    return false;
  value = number.getValue().convertToFloat();
  return true;
}

Attribute toAttribute(Type type, bool value) { return IntegerAttr::get(type, APInt(1, value)); }
Attribute toAttribute(Type type, ops::Int value) {
  // An i32 was proved to fit; a value that doesn't stays unfolded.
  unsigned width = type.getIntOrFloatBitWidth();
  if (width < 64 && !llvm::isIntN(width, value))
    return {};
  return IntegerAttr::get(type, APInt(width, static_cast<uint64_t>(value), /*isSigned=*/true));
}
Attribute toAttribute(Type type, ops::U32 value) { return IntegerAttr::get(type, APInt(32, value)); }
Attribute toAttribute(Type type, float value) { return FloatAttr::get(type, APFloat(value)); }

/// Applies `function` to the constants when the table has it for operands of type T.
template <typename T, int arity, typename Function>
Attribute applyTyped(Type resultType, ArrayRef<Attribute> operands, Function function) {
  T values[3] = {};
  for (int i = 0; i < arity; ++i)
    if (!toConcrete(operands[i], values[i]))
      return {};
  if constexpr (arity == 1)
    return toAttribute(resultType, function(values[0]));
  else if constexpr (arity == 2)
    return toAttribute(resultType, function(values[0], values[1]));
  else
    return {};
}

template <typename Table, int arity> Attribute applyEntry(mlir::Operation *op, ArrayRef<Attribute> operands) {
  constexpr Domains domains{Table::domains};
  Type resultType = elementTypeOf(op->getResult(0).getType());
  auto apply = [](auto... values) { return Table::apply(values...); };
  switch (toValueType(op->getOperand(0).getType())) {
  case ValueType::Bool:
    if constexpr (domains.contains('B'))
      return applyTyped<bool, arity>(resultType, operands, apply);
    break;
  case ValueType::Int:
    if constexpr (domains.contains('I'))
      return applyTyped<ops::Int, arity>(resultType, operands, apply);
    break;
  case ValueType::U32:
    if constexpr (domains.contains('U'))
      return applyTyped<ops::U32, arity>(resultType, operands, apply);
    break;
  case ValueType::Float:
    if constexpr (domains.contains('F'))
      return applyTyped<float, arity>(resultType, operands, apply);
    break;
  }
  return {};
}

// One struct per entry, so that its overload set can be passed on.
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, operandDomains)                                        \
  struct Table##Enumerator {                                                                                           \
    static constexpr const char *domains = operandDomains;                                                             \
    template <typename... Values> static auto apply(Values... values) { return ops::function(values...); }             \
  };
#include "runtime/contract/Operations.def"

Attribute foldConstants(mlir::Operation *op, ArrayRef<Attribute> operands) {
  if (llvm::is_contained(operands, Attribute()))
    return {};
  switch (llvm::cast<TableOpInterface>(op).getTableOperation()) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, operandDomains)                                        \
  case Operation::Enumerator: return applyEntry<Table##Enumerator, arity>(op, operands);
#include "runtime/contract/Operations.def"
  default: return {};
  }
}

//===----------------------------------------------------------------------===//
// Identities
//===----------------------------------------------------------------------===//

/// The constant `value` of an int, u32 or bool type.
Attribute integerConstant(Type type, int64_t value) {
  Type element = elementTypeOf(type);
  return IntegerAttr::get(element, APInt(element.getIntOrFloatBitWidth(), static_cast<uint64_t>(value),
                                         /*isSigned=*/true, /*implicitTrunc=*/true));
}

/// Whether `attribute` is the int, u32 or bool whose bits are those of `value`.
bool isInteger(Attribute attribute, int64_t value) {
  auto integer = llvm::dyn_cast_or_null<IntegerAttr>(attribute);
  return integer && integer.getValue() == APInt(integer.getValue().getBitWidth(), static_cast<uint64_t>(value),
                                                /*isSigned=*/true, /*implicitTrunc=*/true);
}

/// Whether `attribute` is the float `value`, the sign of a zero included.
bool isFloat(Attribute attribute, float value) {
  auto number = llvm::dyn_cast_or_null<FloatAttr>(attribute);
  return number && number.getValue().bitwiseIsEqual(APFloat(value));
}

OpFoldResult foldFloatIdentity(Operation entry, Value lhs, Attribute right) {
  switch (entry) {
  case Operation::Add: // x + -0 is x for every x; x + 0 is not, when x is -0
    return isFloat(right, -0.0f) ? OpFoldResult(lhs) : OpFoldResult();
  case Operation::Sub: return isFloat(right, 0.0f) ? OpFoldResult(lhs) : OpFoldResult();
  case Operation::Mul:
  case Operation::Div: return isFloat(right, 1.0f) ? OpFoldResult(lhs) : OpFoldResult();
  default: return {};
  }
}

/// Identities of binary operations on ints, u32 and bools; `right` is the constant right operand or null.
OpFoldResult foldIntegerIdentity(Operation entry, Value lhs, Value rhs, Attribute left, Attribute right) {
  Type type = lhs.getType();
  bool areSame = lhs == rhs;
  auto constant = [&](int64_t value) { return OpFoldResult(integerConstant(type, value)); };
  auto truth = [&](bool value) { return OpFoldResult(integerConstant(comparisonResultType(type), value)); };
  switch (entry) {
  case Operation::Add: return isInteger(right, 0) ? OpFoldResult(lhs) : OpFoldResult();
  case Operation::Sub: return isInteger(right, 0) ? OpFoldResult(lhs) : areSame ? constant(0) : OpFoldResult();
  case Operation::Mul:
    return isInteger(right, 1) ? OpFoldResult(lhs) : isInteger(right, 0) ? constant(0) : OpFoldResult();
  case Operation::FloorDiv:
    if (isInteger(right, 1))
      return lhs;
    return isInteger(right, 0) || isInteger(left, 0) ? constant(0) : OpFoldResult();
  case Operation::Mod: // also x % x when x is 0
    return areSame || isInteger(right, 1) || isInteger(right, 0) || isInteger(left, 0) ? constant(0) : OpFoldResult();
  case Operation::Min:
  case Operation::Max: return areSame ? OpFoldResult(lhs) : OpFoldResult();
  case Operation::And:
    return areSame || isInteger(right, -1) ? OpFoldResult(lhs) : isInteger(right, 0) ? constant(0) : OpFoldResult();
  case Operation::Or:
    return areSame || isInteger(right, 0) ? OpFoldResult(lhs) : isInteger(right, -1) ? constant(-1) : OpFoldResult();
  case Operation::Xor: return isInteger(right, 0) ? OpFoldResult(lhs) : areSame ? constant(0) : OpFoldResult();
  case Operation::Shl:
  case Operation::Shr:
    return isInteger(right, 0) ? OpFoldResult(lhs) : isInteger(left, 0) ? constant(0) : OpFoldResult();
  case Operation::Eq:
    if (isInteger(right, 1) && elementTypeOf(type).isInteger(1))
      return lhs;
    return areSame ? truth(true) : OpFoldResult();
  case Operation::Ne:
    if (isInteger(right, 0) && elementTypeOf(type).isInteger(1))
      return lhs;
    return areSame ? truth(false) : OpFoldResult();
  case Operation::Le:
  case Operation::Ge: return areSame ? truth(true) : OpFoldResult();
  case Operation::Lt:
  case Operation::Gt: return areSame ? truth(false) : OpFoldResult();
  default: return {};
  }
}

OpFoldResult foldSelect(SelectOp op, Attribute condition, Attribute trueValue, Attribute falseValue) {
  if (condition)
    return isInteger(condition, 1) ? op.getTrueValue() : op.getFalseValue();
  if (op.getTrueValue() == op.getFalseValue() || (trueValue && trueValue == falseValue))
    return op.getTrueValue();
  if (isInteger(trueValue, 1) && isInteger(falseValue, 0) && op.getType() == op.getCondition().getType())
    return op.getCondition();
  return {};
}

/// Casts that change nothing and complements of complements.
OpFoldResult foldUnaryIdentity(mlir::Operation *op, Operation entry) {
  Value operand = op->getOperand(0);
  Type resultType = op->getResult(0).getType();
  auto operandOf = [&](auto inner) -> OpFoldResult {
    return inner && inner.getOperand().getType() == resultType ? OpFoldResult(inner.getOperand()) : OpFoldResult();
  };
  switch (entry) {
  case Operation::ToBool: // a bool's int, u32 and float are zero exactly when it is false
    if (auto inner = operand.getDefiningOp<ToIntOp>())
      return operandOf(inner);
    if (auto inner = operand.getDefiningOp<ToU32Op>())
      return operandOf(inner);
    if (auto inner = operand.getDefiningOp<ToFloatOp>())
      return operandOf(inner);
    return operand.getType() == resultType ? OpFoldResult(operand) : OpFoldResult();
  case Operation::ToInt:
  case Operation::ToFloat: return operand.getType() == resultType ? OpFoldResult(operand) : OpFoldResult();
  case Operation::ToU32: // the low bits of a u32's int are the u32
    if (auto inner = operand.getDefiningOp<ToIntOp>())
      if (OpFoldResult folded = operandOf(inner))
        return folded;
    return operand.getType() == resultType ? OpFoldResult(operand) : OpFoldResult();
  case Operation::Not: return operandOf(operand.getDefiningOp<NotOp>());
  case Operation::Neg: // exact for floats, and for ints since they wrap
    return operandOf(operand.getDefiningOp<NegOp>());
  default: return {};
  }
}

} // namespace

OpFoldResult foldTableOperation(mlir::Operation *op, ArrayRef<Attribute> operands) {
  if (Attribute constant = foldConstants(op, operands))
    return constant;
  Operation entry = llvm::cast<TableOpInterface>(op).getTableOperation();
  if (auto select = llvm::dyn_cast<SelectOp>(op))
    return foldSelect(select, operands[0], operands[1], operands[2]);
  if (op->getNumOperands() == 1)
    return foldUnaryIdentity(op, entry);
  if (toValueType(op->getOperand(0).getType()) == ValueType::Float)
    return foldFloatIdentity(entry, op->getOperand(0), operands[1]);
  return foldIntegerIdentity(entry, op->getOperand(0), op->getOperand(1), operands[0], operands[1]);
}

} // namespace cpflex::mask
