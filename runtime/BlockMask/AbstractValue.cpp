// The shared parts of abstract values and the interval rules of Bool and of conversions;
// IntegerRules.cpp and FloatRules.cpp hold the rules of the number types.
#include "runtime/BlockMask/AbstractValue.h"

#include "runtime/BlockMask/AbstractRules.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/contract/Operations.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace cpflex {

namespace {

constexpr int64_t kIntMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kIntMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kU32Max = 0xffffffffLL;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

AbstractValue toBoolean(ValueType type, const AbstractValue &value) {
  if (type == ValueType::Float) {
    bool canBeZero = value.floatLo() <= 0 && value.floatHi() >= 0;
    bool onlyZero = value.floatLo() == 0 && value.floatHi() == 0 && !value.mayBeNaN();
    return AbstractValue::booleans(/*canBeTrue=*/!onlyZero, /*canBeFalse=*/canBeZero);
  }
  bool canBeZero = value.lo <= 0 && value.hi >= 0;
  return AbstractValue::booleans(!(value.lo == 0 && value.hi == 0), canBeZero);
}

AbstractValue toInteger(ValueType type, const AbstractValue &value) {
  if (type != ValueType::Float)
    return value;
  if (!value.hasNumbers())
    return AbstractValue::integers(0, 0);
  // Truncation toward zero and saturation are monotone.
  AbstractValue result = AbstractValue::integers(ops::toInt(value.floatLo()), ops::toInt(value.floatHi()));
  if (value.mayBeNaN())
    result = hull(ValueType::Int, result, AbstractValue::integers(0, 0));
  return result;
}

AbstractValue toFloat(ValueType type, const AbstractValue &value) {
  if (type == ValueType::Float)
    return value;
  // Rounding to nearest is monotone.
  return AbstractValue::floats(static_cast<float>(value.lo), static_cast<float>(value.hi), false);
}

AbstractValue applyToBooleans(Operation operation, const AbstractValue *x) {
  switch (operation) {
  case Operation::And: return AbstractValue::integers(x[0].lo & x[1].lo, x[0].hi & x[1].hi);
  case Operation::Or: return AbstractValue::integers(x[0].lo | x[1].lo, x[0].hi | x[1].hi);
  case Operation::Xor:
    if (x[0].isSingle() && x[1].isSingle())
      return AbstractValue::integers(x[0].lo ^ x[1].lo, x[0].lo ^ x[1].lo);
    return AbstractValue::integers(0, 1);
  case Operation::Not: return AbstractValue::integers(1 - x[0].hi, 1 - x[0].lo);
  default: return applyToIntegers(operation, x);
  }
}

} // namespace

float floatOfSlot(ScalarSlot slot) { return std::bit_cast<float>(static_cast<uint32_t>(slot)); }
ScalarSlot slotOfFloat(float value) { return std::bit_cast<uint32_t>(value); }

AbstractValue AbstractValue::unknown(ValueType type) {
  switch (type) {
  case ValueType::Bool: return integers(0, 1);
  case ValueType::Int: return integers(kIntMin, kIntMax);
  case ValueType::U32: return integers(0, kU32Max);
  case ValueType::Float: return floats(-kInfinity, kInfinity, true);
  }
  return {};
}

AbstractValue AbstractValue::single(ValueType type, ScalarSlot slot) {
  if (type != ValueType::Float)
    return integers(slot, slot);
  float value = floatOfSlot(slot);
  if (std::isnan(value))
    return floats(kInfinity, -kInfinity, true);
  return floats(value, value, false);
}

ScalarSlot AbstractValue::toSlot(ValueType type) const {
  return type == ValueType::Float ? slotOfFloat(floatLo()) : lo;
}

bool AbstractValue::contains(ValueType type, ScalarSlot slot) const {
  if (type != ValueType::Float)
    return lo <= slot && slot <= hi;
  float value = floatOfSlot(slot);
  return std::isnan(value) ? mayBeNaN() : floatLo() <= value && value <= floatHi();
}

AbstractValue hull(ValueType type, const AbstractValue &left, const AbstractValue &right) {
  if (type != ValueType::Float)
    return AbstractValue::integers(std::min(left.lo, right.lo), std::max(left.hi, right.hi));
  return AbstractValue::floats(std::min(left.floatLo(), right.floatLo()), std::max(left.floatHi(), right.floatHi()),
                               left.mayBeNaN() || right.mayBeNaN());
}

AbstractValue applyAbstract(Operation operation, ValueType operandType, const AbstractValue *operands) {
  switch (operation) {
  case Operation::Select:
    if (!operands[0].canBeFalse())
      return operands[1];
    if (!operands[0].canBeTrue())
      return operands[2];
    return hull(operandType, operands[1], operands[2]);
  case Operation::ToBool: return toBoolean(operandType, operands[0]);
  case Operation::ToInt: return toInteger(operandType, operands[0]);
  case Operation::ToU32: return wrapToU32(toInteger(operandType, operands[0]));
  case Operation::ToFloat: return toFloat(operandType, operands[0]);
  default: break;
  }
  switch (operandType) {
  case ValueType::Bool: return applyToBooleans(operation, operands);
  case ValueType::Int: return applyToIntegers(operation, operands);
  case ValueType::U32: return applyToU32(operation, operands);
  case ValueType::Float: return applyToFloats(operation, operands);
  }
  return {};
}

} // namespace cpflex
