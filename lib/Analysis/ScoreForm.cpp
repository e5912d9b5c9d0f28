// One forward pass that tracks how each value depends on the incoming score.
#include "lib/Analysis/ScoreForm.h"

#include "llvm/ADT/DenseMap.h"

using namespace mlir;

namespace cpflex {
namespace {

/// How a value depends on the score s.
enum class Dependence {
  None,   ///< not at all
  Itself, ///< it is s
  Unit,   ///< s + f
  Scaled, ///< s * g + f
  Other,
};

Dependence combine(mlir::Operation *op, llvm::function_ref<Dependence(Value)> of) {
  auto isNone = [&](unsigned i) { return of(op->getOperand(i)) == Dependence::None; };
  bool dependsOnScore = false;
  op->walk([&](mlir::Operation *inner) {
    for (Value operand : inner->getOperands())
      dependsOnScore |= of(operand) != Dependence::None;
  });
  if (!dependsOnScore)
    return Dependence::None;
  auto table = llvm::dyn_cast<mask::TableOpInterface>(op);
  if (!table)
    return Dependence::Other;
  auto atLeast = [](Dependence value, Dependence least) { return std::max(value, least); };
  switch (table.getTableOperation()) {
  case Operation::Add:
    if (isNone(0) || isNone(1))
      return atLeast(of(op->getOperand(isNone(0) ? 1 : 0)), Dependence::Unit);
    return atLeast(std::max(of(op->getOperand(0)), of(op->getOperand(1))), Dependence::Scaled);
  case Operation::Sub:
    if (isNone(1))
      return atLeast(of(op->getOperand(0)), Dependence::Unit);
    return atLeast(std::max(of(op->getOperand(0)), of(op->getOperand(1))), Dependence::Scaled);
  case Operation::Mul:
    if (isNone(0) || isNone(1))
      return atLeast(of(op->getOperand(isNone(0) ? 1 : 0)), Dependence::Scaled);
    return Dependence::Other;
  case Operation::Div: return isNone(1) ? atLeast(of(op->getOperand(0)), Dependence::Scaled) : Dependence::Other;
  case Operation::Neg: return atLeast(of(op->getOperand(0)), Dependence::Scaled);
  case Operation::Select: {
    if (!isNone(0))
      return Dependence::Other;
    Dependence onTrue = of(op->getOperand(1)), onFalse = of(op->getOperand(2));
    bool isUnit = onTrue != Dependence::None && onFalse != Dependence::None;
    return atLeast(std::max(onTrue, onFalse), isUnit ? Dependence::Unit : Dependence::Scaled);
  }
  default: return Dependence::Other;
  }
}

} // namespace

ScoreForm scoreFormOf(mask::ScoreOp score) {
  Block &body = score.getBody().front();
  llvm::DenseMap<Value, Dependence> dependences;
  dependences[body.getArgument(0)] = Dependence::Itself;
  auto of = [&](Value value) { return dependences.lookup(value); };
  for (mlir::Operation &op : body.without_terminator())
    if (op.getNumResults() == 1)
      dependences[op.getResult(0)] = combine(&op, of);
  switch (of(score.getYieldedValue())) {
  case Dependence::Itself: return ScoreForm::Identity;
  case Dependence::Unit: return ScoreForm::Additive;
  case Dependence::None: // the gradient is scaled by 0
  case Dependence::Scaled: return ScoreForm::Scaled;
  case Dependence::Other: return ScoreForm::General;
  }
  return ScoreForm::General;
}

} // namespace cpflex
