// A mask predicate as plain data: the straight-line program that the compiler derives from the `mask` dialect and that
// the runtime evaluates over intervals (to classify tiles) and over points (to settle and to explain them).
#pragma once

#include "runtime/contract/Bindings.h"

#include <cstdint>
#include <string>
#include <vector>

namespace cpflex {

/// What one tape instruction computes.
enum class Operation : uint8_t {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains) Enumerator,
#include "runtime/contract/Operations.def"
  Constant,   ///< immediate
  Param,      ///< Bindings::params[immediate]
  Dim,        ///< Bindings::dims[immediate]
  Coordinate, ///< 0 b, 1 h, 2 q, 3 kv in immediate
  Load,       ///< captures[immediate] at operands; 0 / False outside the array
  Induction,  ///< the index of the reduction that encloses it
  ReduceAny,  ///< see TapeInstruction
  ReduceAll,
  ReduceSum,
  ReduceMin,
  ReduceMax,
};

/// One value of the tape; instruction i defines value i, operands refer to earlier values, unused ones are -1.
/// A reduction at i has operands[0] = its count, operands[1] = the end of its body, operands[2] = the body's result;
/// its body is instructions [i+1, operands[1]), of which the first is its Induction, and is run count times. The value
/// of an empty reduction is False, True, 0, 0 and 0.
struct TapeInstruction {
  Operation operation = Operation::Constant;
  ValueType operandType = ValueType::Int; ///< of the operands (the arms, for Select; the elements, for Load)
  ValueType resultType = ValueType::Int;
  int32_t operands[4] = {-1, -1, -1, -1};
  ScalarSlot immediate = 0;
  int32_t line = 0, column = 0; ///< where the user wrote it; 0 when unknown
};

/// A predicate over (b, h, q, kv); the last instruction outside any body is the result and is Bool.
struct Tape {
  std::string name;
  std::vector<TapeInstruction> instructions;
  int32_t result = -1;
};

} // namespace cpflex
