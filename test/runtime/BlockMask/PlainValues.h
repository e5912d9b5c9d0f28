// What does a catalogue formula mean, without this project's evaluators? Plain numbers with
// Python's division, and arrays that can be indexed by plain numbers or by values of a tape, so
// that one formula serves both.
#pragma once

#include "test/runtime/BlockMask/TapeBuilder.h"

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace cpflex::test {

struct Truth {
  bool value;
};
struct Number {
  int64_t value;
};

inline int64_t floorQuotient(int64_t a, int64_t b) {
  int64_t quotient = a / b;
  while (quotient * b > a)
    --quotient;
  while ((quotient + 1) * b <= a)
    ++quotient;
  return quotient;
}

inline Number operator+(Number a, Number b) { return {a.value + b.value}; }
inline Number operator-(Number a, Number b) { return {a.value - b.value}; }
inline Number operator*(Number a, Number b) { return {a.value * b.value}; }
inline Number operator/(Number a, Number b) { return {floorQuotient(a.value, b.value)}; }
inline Number operator%(Number a, Number b) { return {a.value - floorQuotient(a.value, b.value) * b.value}; }
inline Number operator>>(Number a, Number b) { return {a.value >> b.value}; }
inline Truth operator==(Number a, Number b) { return {a.value == b.value}; }
inline Truth operator!=(Number a, Number b) { return {a.value != b.value}; }
inline Truth operator<(Number a, Number b) { return {a.value < b.value}; }
inline Truth operator<=(Number a, Number b) { return {a.value <= b.value}; }
inline Truth operator>(Number a, Number b) { return {a.value > b.value}; }
inline Truth operator>=(Number a, Number b) { return {a.value >= b.value}; }
#define CPFLEX_TEST_MIXED(SYMBOL)                                                                                      \
  inline auto operator SYMBOL(Number a, int64_t b) { return a SYMBOL Number{b}; }                                      \
  inline auto operator SYMBOL(int64_t a, Number b) { return Number{a} SYMBOL b; }
CPFLEX_TEST_MIXED(+)
CPFLEX_TEST_MIXED(-)
CPFLEX_TEST_MIXED(*)
CPFLEX_TEST_MIXED(/)
CPFLEX_TEST_MIXED(%)
CPFLEX_TEST_MIXED(>>)
CPFLEX_TEST_MIXED(==)
CPFLEX_TEST_MIXED(!=)
CPFLEX_TEST_MIXED(<)
CPFLEX_TEST_MIXED(<=)
CPFLEX_TEST_MIXED(>)
CPFLEX_TEST_MIXED(>=)
#undef CPFLEX_TEST_MIXED
inline Truth operator&(Truth a, Truth b) { return {a.value && b.value}; }
inline Truth operator|(Truth a, Truth b) { return {a.value || b.value}; }
inline Truth operator~(Truth a) { return {!a.value}; }
inline Number abs(Number a) { return {std::abs(a.value)}; }
inline Number max(Number a, Number b) { return {std::max(a.value, b.value)}; }
inline Number number(Number, int64_t value) { return {value}; }
inline Number clamp(Number a, int64_t lo, int64_t hi) { return {a.value < lo ? lo : a.value > hi ? hi : a.value}; }
inline Truth select(Truth condition, Truth a, Truth b) { return condition.value ? a : b; }
inline Number ilog2(Number a) {
  int64_t result = 0;
  for (int64_t rest = a.value; rest > 1; rest /= 2)
    ++result;
  return {result};
}

/// A captured array of i32 or bool, of one or two dimensions; outside it lies 0.
class Table {
public:
  Table(TapeBuilder &builder, std::vector<int32_t> elements)
      : builder_(&builder), elements_(elements), columns_(static_cast<int64_t>(elements.size())),
        slot_(builder.ints(elements)) {}

  Value operator()(Value i) const { return builder_->load(slot_, {i}); }
  Number operator()(Number i) const {
    bool isInside = i.value >= 0 && i.value < columns_;
    return {isInside ? elements_[i.value] : 0};
  }

private:
  TapeBuilder *builder_;
  std::vector<int32_t> elements_;
  int64_t columns_;
  int slot_;
};

/// A captured array of bool with one row per first index; a line has one row.
class Flags {
public:
  Flags(TapeBuilder &builder, std::vector<uint8_t> elements)
      : builder_(&builder), elements_(elements), columns_(static_cast<int64_t>(elements.size())),
        slot_(builder.bools(elements)) {}
  Flags(TapeBuilder &builder, std::vector<uint8_t> elements, int64_t columns)
      : builder_(&builder), elements_(elements), columns_(columns),
        slot_(
            builder.capture(ElementType::Bool, elements, {static_cast<int64_t>(elements.size()) / columns, columns})) {}

  Value operator()(Value i) const { return builder_->load(slot_, {i}); }
  Value operator()(Value i, Value j) const { return builder_->load(slot_, {i, j}); }
  Truth operator()(Number i) const {
    bool isInside = i.value >= 0 && i.value < columns_;
    return {isInside && elements_[i.value]};
  }
  Truth operator()(Number i, Number j) const {
    int64_t rows = static_cast<int64_t>(elements_.size()) / columns_;
    bool isInside = i.value >= 0 && i.value < rows && j.value >= 0 && j.value < columns_;
    return {isInside && elements_[i.value * columns_ + j.value]};
  }

private:
  TapeBuilder *builder_;
  std::vector<uint8_t> elements_;
  int64_t columns_;
  int slot_;
};

} // namespace cpflex::test
