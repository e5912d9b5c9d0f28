// Which values can an operation have when its operands lie in intervals? The interval meaning of
// every entry of Operations.def; each answer contains every concrete result, and is exact when all
// operands are single values.
#pragma once

#include "runtime/contract/Tape.h"

#include <cstdint>
#include <limits>

namespace cpflex {

/// The values that an expression may take over a tile. Bool, Int and U32 use [lo, hi], both ends
/// included (Bool as 0 and 1). Float uses [floatLo(), floatHi()] for the values that are numbers
/// (none when floatLo() > floatHi()) and mayBeNaN(). Which members are meant follows from the type
/// of the expression. Two words, so that values travel in registers.
struct AbstractValue {
  struct FloatEnd {
    float number;
    bool hasNaN;
  };
  union {
    int64_t lo = 0;
    FloatEnd floatBegin;
  };
  union {
    int64_t hi = 0;
    FloatEnd floatEnd;
  };

  float floatLo() const { return floatBegin.number; }
  float floatHi() const { return floatEnd.number; }
  bool mayBeNaN() const { return floatEnd.hasNaN; }

  static AbstractValue integers(int64_t lo, int64_t hi) {
    AbstractValue value;
    value.lo = lo;
    value.hi = hi;
    return value;
  }
  static AbstractValue booleans(bool canBeTrue, bool canBeFalse) {
    return integers(canBeFalse ? 0 : 1, canBeTrue ? 1 : 0);
  }
  static AbstractValue floats(float lo, float hi, bool mayBeNaN) {
    AbstractValue value;
    value.floatBegin = {lo, mayBeNaN};
    value.floatEnd = {hi, mayBeNaN};
    return value;
  }
  /// Everything a value of the type can be.
  static AbstractValue unknown(ValueType type);
  /// Exactly one value.
  static AbstractValue single(ValueType type, ScalarSlot slot);

  bool canBeTrue() const { return hi != 0; }
  bool canBeFalse() const { return lo == 0; }
  bool isSingle() const { return lo == hi; }
  bool hasNumbers() const { return floatLo() <= floatHi(); }
  /// Whether exactly one value of `type` is possible. Both zeros of Float compare equal and are two
  /// values.
  bool isSingle(ValueType type) const {
    if (type != ValueType::Float)
      return lo == hi;
    return floatLo() == floatHi() && floatLo() != 0 && !mayBeNaN();
  }
  /// The value as a slot when it is single.
  ScalarSlot toSlot(ValueType type) const;
  /// Whether a concrete value lies inside.
  bool contains(ValueType type, ScalarSlot slot) const;
};

/// The f32 value of a Float slot, and back.
float floatOfSlot(ScalarSlot slot);
ScalarSlot slotOfFloat(float value);

/// The smallest abstract value that holds both.
AbstractValue hull(ValueType type, const AbstractValue &left, const AbstractValue &right);

/// The interval meaning of one operation; `operands` as for applyOperation.
AbstractValue applyAbstract(Operation operation, ValueType operandType, const AbstractValue *operands);

/// Integer sums and products that become unknown when an end overflows.
AbstractValue addIntegers(const AbstractValue &left, const AbstractValue &right);
AbstractValue multiplyIntegers(const AbstractValue &left, const AbstractValue &right);

} // namespace cpflex
