// Which typed function of Operations.h does an operation on a type call? One visitor from the
// run-time pair to code.
#pragma once

#include "runtime/contract/Operations.h"
#include "runtime/contract/Tape.h"

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace cpflex {

/// Number of operands of an entry of Operations.def; 0 for other operations.
constexpr int arityOf(Operation operation) {
  switch (operation) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  case Operation::Enumerator: return arity;
#include "runtime/contract/Operations.def"
  default: return 0;
  }
}

/// The letter of a C++ operand type in the domains of Operations.def.
template <typename T> constexpr char domainLetter() {
  if constexpr (std::is_same_v<T, bool>)
    return 'B';
  else if constexpr (std::is_same_v<T, ops::Int>)
    return 'I';
  else if constexpr (std::is_same_v<T, ops::U32>)
    return 'U';
  else
    return 'F';
}

/// Calls `visitor.template unary<T>(function)` or `visitor.template binary<T>(function)` with the
/// function of an operation other than Select on operands of type T. Returns false, calling
/// nothing, where it does not exist.
template <typename T, typename Visitor> bool visitTyped(Operation operation, Visitor &&visitor) {
  switch (operation) {
#define CPFLEX_SELECT_ARITY_1(function) visitor.template unary<T>([](T a) { return ops::function(a); })
#define CPFLEX_SELECT_ARITY_2(function) visitor.template binary<T>([](T a, T b) { return ops::function(a, b); })
#define CPFLEX_SELECT_ARITY_3(function) static_cast<void>(0)
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  case Operation::Enumerator:                                                                                          \
    if constexpr (std::string_view(domains).find(domainLetter<T>()) != std::string_view::npos) {                       \
      CPFLEX_SELECT_ARITY_##arity(function);                                                                           \
      return arity != 3;                                                                                               \
    }                                                                                                                  \
    return false;
#include "runtime/contract/Operations.def"
#undef CPFLEX_SELECT_ARITY_1
#undef CPFLEX_SELECT_ARITY_2
#undef CPFLEX_SELECT_ARITY_3
  default: return false;
  }
}

/// As visitTyped, for a run-time operand type.
template <typename Visitor> bool visitOperation(Operation operation, ValueType operandType, Visitor &&visitor) {
  switch (operandType) {
  case ValueType::Bool: return visitTyped<bool>(operation, visitor);
  case ValueType::Int: return visitTyped<ops::Int>(operation, visitor);
  case ValueType::U32: return visitTyped<ops::U32>(operation, visitor);
  case ValueType::Float: return visitTyped<float>(operation, visitor);
  }
  return false;
}

} // namespace cpflex
