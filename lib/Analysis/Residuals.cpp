// Walks from the result through `and`, `or`, `not` and selects of bools; beside each operand stands what must be
// decided.
#include "lib/Analysis/Residuals.h"

#include "runtime/contract/Residual.h"

#include "llvm/ADT/DenseSet.h"

#include <algorithm>

using namespace mlir;

namespace cpflex {
namespace {

/// Logic with more operands is not looked at further.
constexpr size_t kMostCandidates = 64;

/// Relative cost of evaluating a pair: a load is worth some arithmetic, a reduction some iterations.
constexpr int64_t kLoadCost = 4;
constexpr int64_t kReductionCost = 64;

/// Beyond this cost expressions count as equally expensive.
constexpr int64_t kMostCost = 4096;

class Enumeration {
public:
  std::vector<ResidualExpression> candidates;

  void visit(Value value, bool isNegated, llvm::SmallVector<std::pair<Value, bool>> assumptions) {
    if (candidates.size() >= kMostCandidates || mask::toValueType(value.getType()) != ValueType::Bool)
      return;
    mlir::Operation *op = value.getDefiningOp();
    if (op && llvm::isa<mask::NotOp>(op))
      return visit(op->getOperand(0), !isNegated, std::move(assumptions));
    if (!assumptions.empty()) {
      if (!seen[isNegated].insert(value).second)
        return;
      candidates.push_back({value, isNegated, assumptions});
    }
    auto visitOperand = [&](unsigned index, Value assumed, bool assumedValue) {
      auto extended = assumptions;
      extended.push_back({assumed, assumedValue});
      visit(op->getOperand(index), isNegated, std::move(extended));
    };
    if (op && llvm::isa<mask::AndOp, mask::OrOp>(op)) {
      bool neutral = llvm::isa<mask::AndOp>(op);
      visitOperand(0, op->getOperand(1), neutral);
      visitOperand(1, op->getOperand(0), neutral);
    } else if (op && llvm::isa<mask::SelectOp>(op)) {
      visitOperand(1, op->getOperand(0), true);
      visitOperand(2, op->getOperand(0), false);
    }
  }

private:
  llvm::DenseSet<Value> seen[2]; ///< as they are, and complemented
};

} // namespace

int64_t evaluationCost(Value value) {
  llvm::DenseSet<mlir::Operation *> counted;
  llvm::SmallVector<mlir::Operation *> pending;
  auto require = [&](Value operand) {
    if (mlir::Operation *op = operand.getDefiningOp(); op && counted.insert(op).second)
      pending.push_back(op);
  };
  require(value);
  int64_t cost = 0;
  while (!pending.empty() && cost < kMostCost) {
    mlir::Operation *op = pending.pop_back_val();
    cost += llvm::isa<mask::LoadOp>(op) ? kLoadCost : llvm::isa<mask::ReduceOp>(op) ? kReductionCost : 1;
    op->walk([&](mlir::Operation *inner) { llvm::for_each(inner->getOperands(), require); });
  }
  return std::min(cost, kMostCost);
}

std::vector<ResidualExpression> residualsOf(mask::PredicateOp predicate) {
  Enumeration enumeration;
  enumeration.visit(predicate.getYieldedValue(), /*isNegated=*/false, {});
  int64_t wholeCost = evaluationCost(predicate.getYieldedValue());
  std::vector<std::pair<int64_t, size_t>> costed;
  for (auto [index, candidate] : llvm::enumerate(enumeration.candidates))
    if (int64_t cost = evaluationCost(candidate.value); cost < wholeCost)
      costed.push_back({cost, index});
  std::sort(costed.begin(), costed.end());
  std::vector<ResidualExpression> residuals;
  for (auto [cost, index] : costed)
    if (residuals.size() < kMostResiduals - 1)
      residuals.push_back(std::move(enumeration.candidates[index]));
  return residuals;
}

} // namespace cpflex
