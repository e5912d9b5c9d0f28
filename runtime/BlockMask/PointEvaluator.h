// Does a single (q, kv) pair attend, and why? Evaluates a predicate tape at points with the
// concrete meaning of Operations.h: a row of kv positions at a time, or one point with every
// intermediate value.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/Status.h"
#include "runtime/contract/Tape.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace cpflex {

/// The concrete value of one operation on operands stored as ScalarSlots of `operandType`. Select
/// takes its condition in operands[0] as Bool and the arms as `operandType`. Only for the
/// operations of Operations.def.
ScalarSlot applyOperation(Operation operation, ValueType operandType, const ScalarSlot *operands);

/// Reads the element at `offset` (in elements from data) as a value of `type`.
ScalarSlot readElement(const CaptureView &view, int64_t offset, ValueType type);

/// The type of a capture's elements inside an expression.
ValueType valueTypeOf(ElementType type);

/// Checks that operands precede their uses, reductions nest, captures exist and have as many
/// dimensions as indices. `numCaptures`, ... bound the slots; every later function assumes a valid
/// tape.
Status verifyTape(const Tape &tape, const Bindings &bindings);

/// Evaluates a tape over rows of pairs. Holds scratch memory: one object per thread. The tape and
/// what the bindings point to must outlive it.
class PointEvaluator {
public:
  PointEvaluator(const Tape &tape, const Bindings &bindings);
  ~PointEvaluator();
  PointEvaluator(PointEvaluator &&) noexcept;

  /// out[j] = 1 where (b, h, q, kvBegin + j*kvStep) attends, else 0, for j in [0, count). Global
  /// positions.
  void evaluateRow(int64_t b, int64_t h, int64_t q, int64_t kvBegin, int64_t kvStep, int64_t count, uint8_t *out);

  /// Whether one pair attends.
  bool evaluate(int64_t b, int64_t h, int64_t q, int64_t kv);

private:
  struct State;
  std::unique_ptr<State> state_;
};

/// One instruction's value at one point.
struct ExplainedValue {
  int32_t instruction = 0; ///< index into Tape::instructions
  ValueType type = ValueType::Int;
  ScalarSlot value = 0;      ///< as a ScalarSlot of `type`
  int64_t iteration = -1;    ///< inside a reduction: the iteration shown; -1 outside
  bool isOutOfRange = false; ///< a load whose index lies outside the array (its value is 0 / False)
};

/// Every instruction's value at one (b, h, q, kv), in tape order. A reduction's body shows the
/// iteration that decided it (the first true one of `any`, the first false one of `all`, else the
/// last one run); an empty reduction's body is left out.
struct PointExplanation {
  bool attends = false;
  std::vector<ExplainedValue> values;
};

/// Explains one point in global coordinates.
PointExplanation explainPoint(const Tape &tape, const Bindings &bindings, int64_t b, int64_t h, int64_t q, int64_t kv);

} // namespace cpflex
