// Constant arithmetic by the table of operations, so that a constant expression means what it means
// at run time.
#include "lib/Frontend/ImporterState.h"
#include "runtime/contract/Operations.h"

#include <cstring>
#include <string_view>

namespace cpflex {

Constant Constant::ofFloat(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return {ValueType::Float, ScalarSlot(bits)};
}

float Constant::asFloat() const {
  uint32_t low = uint32_t(bits);
  float value = 0;
  std::memcpy(&value, &low, sizeof value);
  return value;
}

Entity Entity::ofConstant(Constant constant) {
  Entity entity;
  entity.kind = EntityKind::Scalar;
  entity.type = constant.type;
  entity.constant = constant;
  return entity;
}

namespace {

Constant box(bool value) { return {ValueType::Bool, value}; }
Constant box(ops::Int value) { return {ValueType::Int, value}; }
Constant box(ops::U32 value) { return {ValueType::U32, ScalarSlot(value)}; }
Constant box(float value) { return Constant::ofFloat(value); }

// Calls `function` with the constant's value as its own C++ type.
template <typename Function> std::optional<Constant> withValue(const Constant &constant, Function function) {
  switch (constant.type) {
  case ValueType::Bool: return function(constant.bits != 0);
  case ValueType::Int: return function(ops::Int(constant.bits));
  case ValueType::U32: return function(ops::U32(constant.bits));
  case ValueType::Float: return function(constant.asFloat());
  }
  return std::nullopt;
}

char domainLetter(ValueType type) { return "BIUF"[int(type)]; }

template <typename Value> Value unbox(const Constant &constant) {
  if constexpr (std::is_same_v<Value, float>)
    return constant.asFloat();
  else
    return Value(constant.bits);
}

} // namespace

std::optional<Constant> foldConstants(Operation operation, std::span<const Constant> operands) {
  switch (operation) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  case Operation::Enumerator: {                                                                                        \
    const Constant &last = operands.back();                                                                            \
    if (operands.size() != arity || std::string_view(domains).find(domainLetter(last.type)) == std::string_view::npos) \
      return std::nullopt;                                                                                             \
    return withValue(last, [&](auto value) -> std::optional<Constant> {                                                \
      using Value = decltype(value);                                                                                   \
      if constexpr (arity == 1) {                                                                                      \
        if constexpr (requires { box(ops::function(value)); })                                                         \
          return box(ops::function(value));                                                                            \
      } else if constexpr (arity == 2) {                                                                               \
        if constexpr (requires { box(ops::function(value, value)); })                                                  \
          return box(ops::function(unbox<Value>(operands[0]), value));                                                 \
      } else {                                                                                                         \
        if constexpr (requires { box(ops::function(true, value, value)); })                                            \
          return box(ops::function(operands[0].bits != 0, unbox<Value>(operands[1]), value));                          \
      }                                                                                                                \
      return std::nullopt;                                                                                             \
    });                                                                                                                \
  }
#include "runtime/contract/Operations.def"
  default: return std::nullopt;
  }
}

} // namespace cpflex
