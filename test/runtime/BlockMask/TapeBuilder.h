// How does a test write a predicate? Builds tapes from C++ expressions that look like the mask
// language.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/Tape.h"

#include <bit>
#include <deque>
#include <functional>
#include <vector>

namespace cpflex::test {

class TapeBuilder;

/// A value of the tape under construction.
struct Value {
  TapeBuilder *builder = nullptr;
  int32_t index = -1;
};

/// Collects instructions and the bound arrays of one predicate.
class TapeBuilder {
public:
  Value add(TapeInstruction instruction) {
    tape_.instructions.push_back(instruction);
    return {this, static_cast<int32_t>(tape_.instructions.size()) - 1};
  }
  ValueType typeOf(Value value) const { return tape_.instructions[value.index].resultType; }

  Value coordinate(int which) { return add({.operation = Operation::Coordinate, .immediate = which}); }
  Value b() { return coordinate(0); }
  Value h() { return coordinate(1); }
  Value q() { return coordinate(2); }
  Value kv() { return coordinate(3); }

  Value constant(int64_t value) { return add({.operation = Operation::Constant, .immediate = value}); }
  Value constantU32(uint32_t value) {
    return add({.operation = Operation::Constant,
                .operandType = ValueType::U32,
                .resultType = ValueType::U32,
                .immediate = value});
  }
  Value constantFloat(float value) {
    return add({.operation = Operation::Constant,
                .operandType = ValueType::Float,
                .resultType = ValueType::Float,
                .immediate = std::bit_cast<uint32_t>(value)});
  }
  Value constantBool(bool value) {
    return add({.operation = Operation::Constant,
                .operandType = ValueType::Bool,
                .resultType = ValueType::Bool,
                .immediate = value});
  }
  Value param(int64_t value) {
    params_.push_back(value);
    return add({.operation = Operation::Param, .immediate = static_cast<int64_t>(params_.size()) - 1});
  }

  Value apply(Operation operation, std::vector<Value> operands) {
    TapeInstruction instruction{.operation = operation};
    for (size_t i = 0; i < operands.size(); ++i)
      instruction.operands[i] = operands[i].index;
    bool isSelect = operation == Operation::Select;
    instruction.operandType = typeOf(operands[isSelect ? 1 : 0]);
    bool isComparison = operation >= Operation::Eq && operation <= Operation::Ge;
    instruction.resultType = isComparison ? ValueType::Bool : instruction.operandType;
    if (operation == Operation::ToBool)
      instruction.resultType = ValueType::Bool;
    if (operation == Operation::ToInt)
      instruction.resultType = ValueType::Int;
    if (operation == Operation::ToU32)
      instruction.resultType = ValueType::U32;
    if (operation == Operation::ToFloat)
      instruction.resultType = ValueType::Float;
    return add(instruction);
  }

  /// Binds an array, kept alive by the builder, and returns its slot.
  template <typename T> int capture(ElementType type, std::vector<T> elements, std::vector<int64_t> shape) {
    storage_.emplace_back(elements.size() * sizeof(T) + 1);
    std::copy_n(reinterpret_cast<const char *>(elements.data()), elements.size() * sizeof(T), storage_.back().data());
    CaptureView view;
    view.data = storage_.back().data();
    view.type = type;
    view.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (int axis = view.rank - 1; axis >= 0; --axis) {
      view.shape[axis] = shape[axis];
      view.strides[axis] = stride;
      stride *= shape[axis];
    }
    captures_.push_back(view);
    return static_cast<int>(captures_.size()) - 1;
  }
  int ints(const std::vector<int32_t> &elements) {
    return capture(ElementType::I32, elements, {static_cast<int64_t>(elements.size())});
  }
  int bools(const std::vector<uint8_t> &elements) {
    return capture(ElementType::Bool, elements, {static_cast<int64_t>(elements.size())});
  }
  CaptureView &view(int slot) { return captures_[slot]; }

  Value load(int slot, std::vector<Value> indices) {
    TapeInstruction instruction{.operation = Operation::Load, .immediate = slot};
    for (size_t i = 0; i < indices.size(); ++i)
      instruction.operands[i] = indices[i].index;
    switch (captures_[slot].type) {
    case ElementType::Bool: instruction.resultType = ValueType::Bool; break;
    case ElementType::U32: instruction.resultType = ValueType::U32; break;
    case ElementType::F16:
    case ElementType::BF16:
    case ElementType::F32: instruction.resultType = ValueType::Float; break;
    default: break;
    }
    instruction.operandType = instruction.resultType;
    return add(instruction);
  }

  /// A reduction over range(count) of what `body` makes of the index.
  Value reduce(Operation operation, Value count, const std::function<Value(Value)> &body) {
    Value reduction = add({.operation = operation});
    Value index = add({.operation = Operation::Induction});
    Value element = body(index);
    TapeInstruction &instruction = tape_.instructions[reduction.index];
    instruction.operands[0] = count.index;
    instruction.operands[1] = static_cast<int32_t>(tape_.instructions.size());
    instruction.operands[2] = element.index;
    instruction.operandType = instruction.resultType = typeOf(element);
    return reduction;
  }

  const Tape &finish(Value result) {
    tape_.result = result.index;
    return tape_;
  }
  const Tape &tape() const { return tape_; }
  Bindings bindings() const { return {captures_.data(), params_.data(), dims_.data()}; }

private:
  Tape tape_;
  std::vector<CaptureView> captures_;
  std::deque<std::vector<char>> storage_;
  std::vector<ScalarSlot> params_{0};
  std::vector<int64_t> dims_{0};
};

inline Value number(Value like, int64_t value) { return like.builder->constant(value); }

#define CPFLEX_TEST_BINARY(SYMBOL, OPERATION)                                                                          \
  inline Value operator SYMBOL(Value a, Value b) { return a.builder->apply(Operation::OPERATION, {a, b}); }            \
  inline Value operator SYMBOL(Value a, int64_t b) { return a SYMBOL number(a, b); }                                   \
  inline Value operator SYMBOL(int64_t a, Value b) { return number(b, a) SYMBOL b; }
CPFLEX_TEST_BINARY(+, Add)
CPFLEX_TEST_BINARY(-, Sub)
CPFLEX_TEST_BINARY(*, Mul)
CPFLEX_TEST_BINARY(/, FloorDiv)
CPFLEX_TEST_BINARY(%, Mod)
CPFLEX_TEST_BINARY(<<, Shl)
CPFLEX_TEST_BINARY(>>, Shr)
CPFLEX_TEST_BINARY(==, Eq)
CPFLEX_TEST_BINARY(!=, Ne)
CPFLEX_TEST_BINARY(<, Lt)
CPFLEX_TEST_BINARY(<=, Le)
CPFLEX_TEST_BINARY(>, Gt)
CPFLEX_TEST_BINARY(>=, Ge)
#undef CPFLEX_TEST_BINARY
inline Value operator&(Value a, Value b) { return a.builder->apply(Operation::And, {a, b}); }
inline Value operator|(Value a, Value b) { return a.builder->apply(Operation::Or, {a, b}); }
inline Value operator~(Value a) { return a.builder->apply(Operation::Not, {a}); }
inline Value abs(Value a) { return a.builder->apply(Operation::Abs, {a}); }
inline Value ilog2(Value a) { return a.builder->apply(Operation::ILog2, {a}); }
inline Value max(Value a, Value b) { return a.builder->apply(Operation::Max, {a, b}); }
inline Value min(Value a, Value b) { return a.builder->apply(Operation::Min, {a, b}); }
inline Value clamp(Value a, int64_t lo, int64_t hi) { return min(max(a, number(a, lo)), number(a, hi)); }
inline Value select(Value condition, Value a, Value b) {
  return condition.builder->apply(Operation::Select, {condition, a, b});
}

} // namespace cpflex::test
