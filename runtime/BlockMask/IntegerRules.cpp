// Interval rules of integers: sums and products that notice overflow, floor division and modulo of
// any signs, bits by their known prefix, shifts by a variable amount.
#include "runtime/BlockMask/AbstractRules.h"

#include "runtime/contract/Operations.h"

#include <algorithm>
#include <bit>

namespace cpflex {

namespace {

constexpr int64_t kIntMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kIntMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kU32Max = 0xffffffffLL;

/// The concrete operations on the 64-bit type of this file.
namespace exact {
int64_t add(int64_t a, int64_t b) { return ops::add(ops::Int{a}, ops::Int{b}); }
int64_t sub(int64_t a, int64_t b) { return ops::sub(ops::Int{a}, ops::Int{b}); }
int64_t mul(int64_t a, int64_t b) { return ops::mul(ops::Int{a}, ops::Int{b}); }
int64_t neg(int64_t a) { return ops::neg(ops::Int{a}); }
int64_t abs(int64_t a) { return ops::abs(ops::Int{a}); }
int64_t ilog2(int64_t a) { return ops::ilog2(ops::Int{a}); }
int64_t floorDiv(int64_t a, int64_t b) { return ops::floorDiv(ops::Int{a}, ops::Int{b}); }
int64_t mod(int64_t a, int64_t b) { return ops::mod(ops::Int{a}, ops::Int{b}); }
int64_t shiftLeft(int64_t a, int64_t n) { return ops::shiftLeft(ops::Int{a}, ops::Int{n}); }
} // namespace exact

AbstractValue unknownInteger() { return AbstractValue::integers(kIntMin, kIntMax); }

AbstractValue joined(const AbstractValue &left, const AbstractValue &right) {
  return AbstractValue::integers(std::min(left.lo, right.lo), std::max(left.hi, right.hi));
}

AbstractValue subtract(const AbstractValue &left, const AbstractValue &right) {
  int64_t lo, hi;
  if (__builtin_sub_overflow(left.lo, right.hi, &lo) || __builtin_sub_overflow(left.hi, right.lo, &hi))
    return unknownInteger();
  return AbstractValue::integers(lo, hi);
}

AbstractValue negate(const AbstractValue &value) {
  if (value.lo == kIntMin)
    return unknownInteger();
  return AbstractValue::integers(-value.hi, -value.lo);
}

AbstractValue absolute(const AbstractValue &value) {
  if (value.lo >= 0)
    return value;
  if (value.lo == kIntMin)
    return unknownInteger();
  if (value.hi <= 0)
    return AbstractValue::integers(-value.hi, -value.lo);
  return AbstractValue::integers(0, std::max(-value.lo, value.hi));
}

/// Collects the hull of results found one after the other.
struct Collected {
  bool isEmpty = true;
  AbstractValue value;

  void add(const AbstractValue &part) {
    value = isEmpty ? part : joined(value, part);
    isEmpty = false;
  }
  void add(int64_t part) { add(AbstractValue::integers(part, part)); }
};

/// Quotients by divisors of one sign: floor(a / b) is monotone in a and, for each a, in b, so the
/// corners bound it.
void addQuotients(Collected &result, const AbstractValue &a, int64_t lo, int64_t hi) {
  if (lo > hi)
    return;
  for (int64_t divisor : {lo, hi}) {
    result.add(exact::floorDiv(a.lo, divisor));
    result.add(exact::floorDiv(a.hi, divisor));
  }
}

AbstractValue quotient(const AbstractValue &a, const AbstractValue &b) {
  if (a.lo == kIntMin && b.lo <= -1 && b.hi >= -1)
    return unknownInteger();
  Collected result;
  addQuotients(result, a, std::max<int64_t>(b.lo, 1), b.hi);
  addQuotients(result, a, b.lo, std::min<int64_t>(b.hi, -1));
  if (b.lo <= 0 && b.hi >= 0)
    result.add(0);
  return result.value;
}

AbstractValue remainder(const AbstractValue &a, const AbstractValue &b) {
  if (b.isSingle()) {
    int64_t n = b.lo;
    if (n == 0 || n == -1 || n == 1)
      return AbstractValue::integers(0, 0);
    // Within one quotient the remainder a - quotient * n grows with a.
    if (exact::floorDiv(a.lo, n) == exact::floorDiv(a.hi, n))
      return AbstractValue::integers(exact::mod(a.lo, n), exact::mod(a.hi, n));
    return n > 0 ? AbstractValue::integers(0, n - 1) : AbstractValue::integers(n + 1, 0);
  }
  if (b.lo > 0 && a.lo >= 0 && a.hi < b.lo)
    return a;
  if (b.hi < 0 && a.hi <= 0 && a.lo > b.hi)
    return a;
  Collected result;
  result.add(0);
  if (b.hi > 0) {
    result.add(b.hi - 1);
    // A non-negative dividend never grows.
    if (a.lo >= 0 && b.lo > 0)
      result.value.hi = std::min(result.value.hi, a.hi);
  }
  if (b.lo < 0)
    result.add(b.lo + 1);
  return result.value;
}

/// What is known of the bits of every value in an interval: those above the highest bit in which
/// the ends differ.
struct KnownBits {
  uint64_t value = 0;   ///< the known bits, 0 elsewhere
  uint64_t unknown = 0; ///< bits that may be either

  explicit KnownBits(const AbstractValue &x) {
    uint64_t difference = static_cast<uint64_t>(x.lo) ^ static_cast<uint64_t>(x.hi);
    unknown = difference == 0 ? 0 : ~uint64_t(0) >> std::countl_zero(difference);
    value = static_cast<uint64_t>(x.lo) & ~unknown;
  }
  KnownBits(uint64_t value, uint64_t unknown) : value(value), unknown(unknown) {}

  /// The interval of all two's complement numbers with these bits.
  AbstractValue toInterval() const {
    constexpr uint64_t kSign = uint64_t(1) << 63;
    if (unknown & kSign)
      return AbstractValue::integers(static_cast<int64_t>(value | kSign),
                                     static_cast<int64_t>((value | unknown) & ~kSign));
    return AbstractValue::integers(static_cast<int64_t>(value), static_cast<int64_t>(value | unknown));
  }
};

AbstractValue bitAnd(const AbstractValue &a, const AbstractValue &b) {
  KnownBits x(a), y(b);
  uint64_t zeros = ~(x.value | x.unknown) | ~(y.value | y.unknown);
  uint64_t ones = x.value & y.value;
  AbstractValue result = KnownBits(ones, ~(zeros | ones)).toInterval();
  // Clearing bits never makes a non-negative number larger.
  if (a.lo >= 0)
    result.hi = std::min(result.hi, a.hi);
  if (b.lo >= 0)
    result.hi = std::min(result.hi, b.hi);
  return result;
}

AbstractValue bitOr(const AbstractValue &a, const AbstractValue &b) {
  KnownBits x(a), y(b);
  uint64_t ones = x.value | y.value;
  AbstractValue result = KnownBits(ones, (x.unknown | y.unknown) & ~ones).toInterval();
  // Setting bits never makes a non-negative number smaller.
  if (a.lo >= 0 && b.lo >= 0)
    result.lo = std::max({result.lo, a.lo, b.lo});
  return result;
}

AbstractValue bitXor(const AbstractValue &a, const AbstractValue &b) {
  KnownBits x(a), y(b);
  uint64_t unknown = x.unknown | y.unknown;
  return KnownBits((x.value ^ y.value) & ~unknown, unknown).toInterval();
}

AbstractValue shiftedLeft(const AbstractValue &a, int64_t amount) {
  if (a.isSingle()) {
    int64_t value = exact::shiftLeft(a.lo, amount);
    return AbstractValue::integers(value, value);
  }
  if (amount <= 0) // a right shift, which is monotone
    return AbstractValue::integers(exact::shiftLeft(a.lo, amount), exact::shiftLeft(a.hi, amount));
  if (amount >= 64)
    return AbstractValue::integers(0, 0);
  if (amount == 63)
    return unknownInteger();
  return multiplyIntegers(a, AbstractValue::integers(int64_t(1) << amount, int64_t(1) << amount));
}

/// Shifts to the left by every amount in [lo, hi]; beyond 64 places either way nothing changes any
/// more.
AbstractValue shiftLeft(const AbstractValue &a, int64_t lo, int64_t hi) {
  Collected result;
  for (int64_t n = std::clamp<int64_t>(lo, -64, 64); n <= std::clamp<int64_t>(hi, -64, 64); ++n)
    result.add(shiftedLeft(a, n));
  return result.value;
}

AbstractValue shiftU32Left(const AbstractValue &a, const AbstractValue &amount) {
  Collected result;
  for (int64_t n = amount.lo; n <= std::min<int64_t>(amount.hi, 31); ++n)
    result.add(wrapToU32(AbstractValue::integers(a.lo << n, a.hi << n)));
  if (amount.hi >= 32)
    result.add(0);
  return result.value;
}

AbstractValue shiftU32Right(const AbstractValue &a, const AbstractValue &amount) {
  Collected result;
  int64_t least = std::min<int64_t>(amount.lo, 32), most = std::min<int64_t>(amount.hi, 32);
  result.add(a.lo >> most);
  result.add(a.hi >> least);
  return result.value;
}

AbstractValue multiplyU32(const AbstractValue &a, const AbstractValue &b) {
  uint64_t lo = static_cast<uint64_t>(a.lo) * static_cast<uint64_t>(b.lo);
  uint64_t hi = static_cast<uint64_t>(a.hi) * static_cast<uint64_t>(b.hi);
  if (lo >> 32 != hi >> 32)
    return AbstractValue::integers(0, kU32Max);
  return AbstractValue::integers(static_cast<int64_t>(lo & kU32Max), static_cast<int64_t>(hi & kU32Max));
}

} // namespace

AbstractValue addIntegers(const AbstractValue &left, const AbstractValue &right) {
  int64_t lo, hi;
  if (__builtin_add_overflow(left.lo, right.lo, &lo) || __builtin_add_overflow(left.hi, right.hi, &hi))
    return left.isSingle() && right.isSingle()
               ? AbstractValue::integers(exact::add(left.lo, right.lo), exact::add(left.lo, right.lo))
               : unknownInteger();
  return AbstractValue::integers(lo, hi);
}

AbstractValue multiplyIntegers(const AbstractValue &left, const AbstractValue &right) {
  int64_t corners[4];
  bool overflows = __builtin_mul_overflow(left.lo, right.lo, &corners[0]);
  overflows |= __builtin_mul_overflow(left.lo, right.hi, &corners[1]);
  overflows |= __builtin_mul_overflow(left.hi, right.lo, &corners[2]);
  overflows |= __builtin_mul_overflow(left.hi, right.hi, &corners[3]);
  if (overflows)
    return left.isSingle() && right.isSingle()
               ? AbstractValue::integers(exact::mul(left.lo, right.lo), exact::mul(left.lo, right.lo))
               : unknownInteger();
  auto [lo, hi] = std::minmax({corners[0], corners[1], corners[2], corners[3]});
  return AbstractValue::integers(lo, hi);
}

AbstractValue wrapToU32(const AbstractValue &value) {
  if (value.lo >> 32 != value.hi >> 32)
    return AbstractValue::integers(0, kU32Max);
  return AbstractValue::integers(value.lo & kU32Max, value.hi & kU32Max);
}

AbstractValue applyToIntegers(Operation operation, const AbstractValue *x) {
  const AbstractValue &a = x[0];
  const AbstractValue &b = x[1];
  auto boolean = [](bool canBeTrue, bool canBeFalse) { return AbstractValue::booleans(canBeTrue, canBeFalse); };
  switch (operation) {
  case Operation::Add: return addIntegers(a, b);
  case Operation::Sub:
    if (a.isSingle() && b.isSingle())
      return AbstractValue::integers(exact::sub(a.lo, b.lo), exact::sub(a.lo, b.lo));
    return subtract(a, b);
  case Operation::Mul: return multiplyIntegers(a, b);
  case Operation::FloorDiv:
    if (a.isSingle() && b.isSingle())
      return AbstractValue::integers(exact::floorDiv(a.lo, b.lo), exact::floorDiv(a.lo, b.lo));
    return quotient(a, b);
  case Operation::Mod: return remainder(a, b);
  case Operation::Neg: return a.isSingle() ? AbstractValue::integers(exact::neg(a.lo), exact::neg(a.lo)) : negate(a);
  case Operation::Abs: return a.isSingle() ? AbstractValue::integers(exact::abs(a.lo), exact::abs(a.lo)) : absolute(a);
  case Operation::Min: return AbstractValue::integers(std::min(a.lo, b.lo), std::min(a.hi, b.hi));
  case Operation::Max: return AbstractValue::integers(std::max(a.lo, b.lo), std::max(a.hi, b.hi));
  case Operation::And: return bitAnd(a, b);
  case Operation::Or: return bitOr(a, b);
  case Operation::Xor: return bitXor(a, b);
  case Operation::Not: return AbstractValue::integers(~a.hi, ~a.lo);
  case Operation::Shl: return shiftLeft(a, b.lo, b.hi);
  case Operation::Shr:
    // Right by n is left by -n; the amount is cut first because -n overflows at the least integer.
    return shiftLeft(a, -std::clamp<int64_t>(b.hi, -64, 64), -std::clamp<int64_t>(b.lo, -64, 64));
  case Operation::ILog2: return AbstractValue::integers(exact::ilog2(a.lo), exact::ilog2(a.hi));
  case Operation::Eq: return boolean(a.lo <= b.hi && b.lo <= a.hi, !(a.isSingle() && b.isSingle() && a.lo == b.lo));
  case Operation::Ne: return boolean(!(a.isSingle() && b.isSingle() && a.lo == b.lo), a.lo <= b.hi && b.lo <= a.hi);
  case Operation::Lt: return boolean(a.lo < b.hi, a.hi >= b.lo);
  case Operation::Le: return boolean(a.lo <= b.hi, a.hi > b.lo);
  case Operation::Gt: return boolean(a.hi > b.lo, a.lo <= b.hi);
  case Operation::Ge: return boolean(a.hi >= b.lo, a.lo < b.hi);
  default: return unknownInteger();
  }
}

AbstractValue applyToU32(Operation operation, const AbstractValue *x) {
  const AbstractValue &a = x[0];
  const AbstractValue &b = x[1];
  switch (operation) {
  case Operation::Add: return wrapToU32(addIntegers(a, b));
  case Operation::Sub: return wrapToU32(subtract(a, b));
  case Operation::Mul: return multiplyU32(a, b);
  case Operation::Neg: return wrapToU32(negate(a));
  case Operation::Abs: return a;
  case Operation::Not: return AbstractValue::integers(kU32Max - a.hi, kU32Max - a.lo);
  case Operation::Shl: return shiftU32Left(a, b);
  case Operation::Shr: return shiftU32Right(a, b);
  // The values are non-negative, so these mean the same as for Int.
  default: return applyToIntegers(operation, x);
  }
}

} // namespace cpflex
