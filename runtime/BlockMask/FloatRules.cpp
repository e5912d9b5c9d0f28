// Interval rules of f32: exact ends for the operations that a mask may use, since rounding to
// nearest is monotone, and generous ones for the transcendental functions.
#include "runtime/BlockMask/AbstractRules.h"

#include "runtime/contract/Operations.h"

#include <algorithm>
#include <cmath>

namespace cpflex {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

AbstractValue unknownFloat() { return AbstractValue::unknown(ValueType::Float); }
AbstractValue onlyNaN() { return AbstractValue::floats(kInfinity, -kInfinity, true); }
AbstractValue zero() { return AbstractValue::floats(0, 0, false); }

bool mayBeInfinite(const AbstractValue &x) {
  return x.hasNumbers() && (std::isinf(x.floatLo()) || std::isinf(x.floatHi()));
}
bool mayBeZero(const AbstractValue &x) { return x.floatLo() <= 0 && x.floatHi() >= 0; }

AbstractValue hullOfCorners(const float (&corners)[4], bool mayBeNaN) {
  for (float corner : corners)
    if (std::isnan(corner))
      return unknownFloat();
  auto [lo, hi] = std::minmax({corners[0], corners[1], corners[2], corners[3]});
  return AbstractValue::floats(lo, hi, mayBeNaN);
}

AbstractValue add(const AbstractValue &a, const AbstractValue &b) {
  bool mayBeNaN = a.mayBeNaN() || b.mayBeNaN() || (mayBeInfinite(a) && mayBeInfinite(b));
  float lo = a.floatLo() + b.floatLo(), hi = a.floatHi() + b.floatHi();
  return AbstractValue::floats(std::isnan(lo) ? -kInfinity : lo, std::isnan(hi) ? kInfinity : hi, mayBeNaN);
}

AbstractValue negate(const AbstractValue &a) { return AbstractValue::floats(-a.floatHi(), -a.floatLo(), a.mayBeNaN()); }

AbstractValue multiply(const AbstractValue &a, const AbstractValue &b) {
  bool mayBeNaN =
      a.mayBeNaN() || b.mayBeNaN() || (mayBeZero(a) && mayBeInfinite(b)) || (mayBeInfinite(a) && mayBeZero(b));
  return hullOfCorners(
      {a.floatLo() * b.floatLo(), a.floatLo() * b.floatHi(), a.floatHi() * b.floatLo(), a.floatHi() * b.floatHi()},
      mayBeNaN);
}

AbstractValue divide(const AbstractValue &a, const AbstractValue &b) {
  if (b.floatLo() == 0 && b.floatHi() == 0)
    return b.mayBeNaN() ? AbstractValue::floats(0, 0, true) : zero();
  if (mayBeZero(b))
    return unknownFloat();
  bool mayBeNaN = a.mayBeNaN() || b.mayBeNaN() || (mayBeInfinite(a) && mayBeInfinite(b));
  return hullOfCorners(
      {a.floatLo() / b.floatLo(), a.floatLo() / b.floatHi(), a.floatHi() / b.floatLo(), a.floatHi() / b.floatHi()},
      mayBeNaN);
}

AbstractValue floorOf(const AbstractValue &a) {
  return AbstractValue::floats(ops::floor(a.floatLo()), ops::floor(a.floatHi()), a.mayBeNaN());
}

AbstractValue absolute(const AbstractValue &a) {
  float least = mayBeZero(a) ? 0.0f : std::min(std::fabs(a.floatLo()), std::fabs(a.floatHi()));
  return AbstractValue::floats(least, std::max(std::fabs(a.floatLo()), std::fabs(a.floatHi())), a.mayBeNaN());
}

/// Widens by some units in the last place, more than libraries differ.
AbstractValue widened(float lo, float hi, bool mayBeNaN) {
  constexpr float kRelative = 1e-5f, kAbsolute = 1e-37f;
  if (std::isnan(lo) || std::isnan(hi))
    return unknownFloat();
  float least = std::isinf(lo) ? lo : lo - std::fabs(lo) * kRelative - kAbsolute;
  float most = std::isinf(hi) ? hi : hi + std::fabs(hi) * kRelative + kAbsolute;
  return AbstractValue::floats(least, most, mayBeNaN);
}

AbstractValue increasing(float (*function)(float), const AbstractValue &a) {
  return widened(function(a.floatLo()), function(a.floatHi()), a.mayBeNaN());
}

AbstractValue applyUnary(Operation operation, const AbstractValue &a) {
  switch (operation) {
  case Operation::Neg: return negate(a);
  case Operation::Abs: return absolute(a);
  case Operation::Floor: return floorOf(a);
  case Operation::Exp: return increasing(ops::exp, a);
  case Operation::Exp2: return increasing(ops::exp2, a);
  case Operation::Tanh: return increasing(ops::tanh, a);
  case Operation::Sigmoid: return increasing(ops::sigmoid, a);
  case Operation::Log: return a.floatLo() > 0 ? increasing(ops::log, a) : unknownFloat();
  case Operation::Log1p: return a.floatLo() > -1 ? increasing(ops::log1p, a) : unknownFloat();
  case Operation::Sqrt:
    if (a.floatLo() < 0)
      return unknownFloat();
    return AbstractValue::floats(ops::sqrt(a.floatLo()), ops::sqrt(a.floatHi()), a.mayBeNaN());
  case Operation::Rsqrt:
    if (a.floatLo() <= 0)
      return unknownFloat();
    return widened(ops::rsqrt(a.floatHi()), ops::rsqrt(a.floatLo()), a.mayBeNaN());
  case Operation::Sin:
  case Operation::Cos: return AbstractValue::floats(-1, 1, a.mayBeNaN() || mayBeInfinite(a));
  default: return unknownFloat();
  }
}

AbstractValue remainder(const AbstractValue &a, const AbstractValue &b) {
  // mod(a, b) = a - floor(a / b) * b, and 0 where b is 0.
  AbstractValue multiple = multiply(floorOf(divide(a, b)), b);
  AbstractValue result = add(a, negate(multiple));
  return mayBeZero(b) ? hull(ValueType::Float, result, zero()) : result;
}

AbstractValue compare(Operation operation, const AbstractValue &a, const AbstractValue &b) {
  // A NaN compares false with everything, so that only `!=` can be true of it.
  bool mayBeNaN = a.mayBeNaN() || b.mayBeNaN();
  bool haveNumbers = a.hasNumbers() && b.hasNumbers();
  bool canBeEqual = haveNumbers && a.floatLo() <= b.floatHi() && b.floatLo() <= a.floatHi();
  bool canDiffer =
      haveNumbers && !(a.floatLo() == a.floatHi() && b.floatLo() == b.floatHi() && a.floatLo() == b.floatLo());
  bool canBeLess = haveNumbers && a.floatLo() < b.floatHi();
  bool canBeGreater = haveNumbers && a.floatHi() > b.floatLo();
  bool canBeLessOrEqual = haveNumbers && a.floatLo() <= b.floatHi();
  bool canBeGreaterOrEqual = haveNumbers && a.floatHi() >= b.floatLo();
  switch (operation) {
  case Operation::Eq: return AbstractValue::booleans(canBeEqual, canDiffer || mayBeNaN);
  case Operation::Ne: return AbstractValue::booleans(canDiffer || mayBeNaN, canBeEqual);
  case Operation::Lt: return AbstractValue::booleans(canBeLess, canBeGreaterOrEqual || mayBeNaN);
  case Operation::Le: return AbstractValue::booleans(canBeLessOrEqual, canBeGreater || mayBeNaN);
  case Operation::Gt: return AbstractValue::booleans(canBeGreater, canBeLessOrEqual || mayBeNaN);
  default: return AbstractValue::booleans(canBeGreaterOrEqual, canBeLess || mayBeNaN);
  }
}

} // namespace

AbstractValue applyToFloats(Operation operation, const AbstractValue *x) {
  const AbstractValue &a = x[0];
  const AbstractValue &b = x[1];
  switch (operation) {
  case Operation::Eq:
  case Operation::Ne:
  case Operation::Lt:
  case Operation::Le:
  case Operation::Gt:
  case Operation::Ge: return compare(operation, a, b);
  case Operation::Add:
  case Operation::Sub:
  case Operation::Mul:
  case Operation::Div:
  case Operation::FloorDiv:
  case Operation::Mod:
  case Operation::Min:
  case Operation::Max:
  case Operation::Pow: break;
  default: return a.hasNumbers() ? applyUnary(operation, a) : onlyNaN();
  }
  if (!a.hasNumbers() || !b.hasNumbers())
    // Division by zero gives 0 even for a NaN, and pow(nan, 0) is 1: only these forget a NaN.
    return operation == Operation::Add || operation == Operation::Sub || operation == Operation::Mul ||
                   operation == Operation::Min || operation == Operation::Max
               ? onlyNaN()
               : unknownFloat();
  switch (operation) {
  case Operation::Add: return add(a, b);
  case Operation::Sub: return add(a, negate(b));
  case Operation::Mul: return multiply(a, b);
  case Operation::Div: return divide(a, b);
  case Operation::FloorDiv: return floorOf(divide(a, b));
  case Operation::Mod: return remainder(a, b);
  case Operation::Min:
    return AbstractValue::floats(std::min(a.floatLo(), b.floatLo()), std::min(a.floatHi(), b.floatHi()),
                                 a.mayBeNaN() || b.mayBeNaN());
  case Operation::Max:
    return AbstractValue::floats(std::max(a.floatLo(), b.floatLo()), std::max(a.floatHi(), b.floatHi()),
                                 a.mayBeNaN() || b.mayBeNaN());
  default: return unknownFloat();
  }
}

} // namespace cpflex
