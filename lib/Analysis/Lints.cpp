// Finds suspicious operations from their ranges, their dependences and their shapes.
#include "lib/Analysis/Lints.h"

#include "lib/Analysis/CoordinateDependence.h"
#include "lib/Analysis/ExpressionText.h"
#include "lib/Analysis/LoadBounds.h"

#include <fmt/format.h>

using namespace mlir;

namespace cpflex {
namespace {

/// Operations shown of an expression in a message.
constexpr int kShownOperations = 8;

bool isComparison(mlir::Operation *op) {
  return llvm::isa<mask::EqOp, mask::NeOp, mask::LtOp, mask::LeOp, mask::GtOp, mask::GeOp>(op);
}

void addConstantConditions(const IntegerRanges &ranges, FunctionOpInterface function, std::vector<Lint> &lints) {
  function.walk([&](mlir::Operation *op) {
    if (!isComparison(op) || llvm::isa<FloatType>(op->getOperand(0).getType()))
      return;
    IntegerRange range = ranges.of(op->getResult(0));
    if (range.isPoint())
      lints.push_back(
          {op->getLoc(), fmt::format("'{}' is always {}", expressionText(op->getResult(0), kShownOperations),
                                     range.lo ? "True" : "False")});
  });
}

/// Whether something decides if the value counts: it is an arm of a select, or the right operand of `and` or `or`.
bool isGuarded(Value value, int stepsLeft = 64) {
  if (stepsLeft <= 0 || value.use_empty())
    return true;
  return llvm::all_of(value.getUses(), [&](OpOperand &use) {
    mlir::Operation *user = use.getOwner();
    if (llvm::isa<mask::YieldOp>(user)) {
      auto reduction = llvm::dyn_cast<mask::ReduceOp>(user->getParentOp());
      return reduction && isGuarded(reduction.getResult(), stepsLeft - 1);
    }
    bool isLogic = llvm::isa<mask::AndOp, mask::OrOp>(user) && user->getResult(0).getType().isInteger(1);
    if (use.getOperandNumber() > 0 && (isLogic || llvm::isa<mask::SelectOp>(user)))
      return true;
    return user->getNumResults() == 1 && isGuarded(user->getResult(0), stepsLeft - 1);
  });
}

void addLooseLoads(ModuleOp module, std::vector<Lint> &lints) {
  for (LooseIndex loose : looseIndicesOf(module)) {
    mask::LoadOp load = loose.load;
    auto capture = module.lookupSymbol<mask::CaptureOp>(load.getCapture());
    StringRef dimension = llvm::cast<StringAttr>(capture.getDims()[loose.axis]).getValue();
    Value index = load.getIndices()[loose.axis];
    // Whether positions and elements fit a size that only a binding fixes cannot be said.
    int64_t size = 0;
    const bool isFixedSize = !dimension.getAsInteger(10, size);
    const bool mustBeWarned = loose.mayBeNegative || (loose.mayReachEnd && isFixedSize);
    loose.mayReachEnd &= index.getDefiningOp<mask::LoadOp>() || isFixedSize;
    if (!mustBeWarned || isGuarded(load.getResult()))
      continue;
    std::string where = loose.mayBeNegative
                            ? "may be negative, where PyTorch wraps around"
                            : fmt::format("may reach the size '{}' of axis {}", dimension.str(), loose.axis);
    if (loose.mayBeNegative && loose.mayReachEnd)
      where += fmt::format(", or reach the size '{}' of axis {}", dimension.str(), loose.axis);
    std::string advice;
    if (auto inner = index.getDefiningOp<mask::LoadOp>())
      advice = fmt::format("; if it cannot, say so where '{}' is declared: (lo=0{})", inner.getCapture().str(),
                           isFixedSize ? ", hi=" + dimension.str() : std::string());
    lints.push_back(
        {load.getLoc(), fmt::format("index '{}' of '{}' {}; the load gives 0 there{}",
                                    expressionText(index, kShownOperations), load.getCapture().str(), where, advice)});
  }
}

bool isMinusInfinity(Value value) {
  auto constant = value.getDefiningOp<mask::ConstantOp>();
  auto number = constant ? llvm::dyn_cast<FloatAttr>(constant.getValue()) : FloatAttr();
  return number && number.getValue().isInfinity() && number.getValue().isNegative();
}

void addMaskingScores(mask::ScoreOp score, std::vector<Lint> &lints) {
  CoordinateDependence dependence(score);
  score.walk([&](mask::SelectOp op) {
    bool isMasking = isMinusInfinity(op.getTrueValue()) != isMinusInfinity(op.getFalseValue());
    if (isMasking && !dependence.of(op.getCondition()).score)
      lints.push_back(
          {op.getLoc(), fmt::format("a score of -inf where '{}' is {}; write that as a mask, which also skips "
                                    "whole tiles",
                                    expressionText(op.getCondition(), kShownOperations),
                                    isMinusInfinity(op.getTrueValue()) ? "True" : "False")});
  });
}

} // namespace

std::vector<Lint> maskingScoresOf(ModuleOp module) {
  std::vector<Lint> lints;
  for (auto score : module.getOps<mask::ScoreOp>())
    addMaskingScores(score, lints);
  return lints;
}

std::vector<Lint> lintsWithoutBinding(ModuleOp module) {
  std::vector<Lint> lints;
  IntegerRanges ranges(module);
  for (auto function : module.getOps<FunctionOpInterface>())
    if (llvm::isa<mask::PredicateOp, mask::ScoreOp>(function))
      addConstantConditions(ranges, function, lints);
  addLooseLoads(module, lints);
  return lints;
}

std::string reorderingAdvice(mask::PredicateOp function) {
  if (!function)
    return {};
  CoordinateDependence dependence(function);
  const auto isOfOnePosition = [&](Value value) {
    CoordinateSet set = dependence.of(value);
    return set.q != set.kv;
  };
  std::string advice;
  function.walk([&](mask::EqOp op) {
    auto q = op.getLhs().getDefiningOp<mask::LoadOp>(), kv = op.getRhs().getDefiningOp<mask::LoadOp>();
    if (q && kv && q.getCapture() == kv.getCapture() && isOfOnePosition(q) && isOfOnePosition(kv))
      advice = fmt::format("; tokens in ascending order of '{}' would make tiles full or empty", q.getCapture().str());
  });
  if (!advice.empty())
    return advice;

  // A grid: positions of both sides taken apart into rows and columns. The widest row is that of the grid.
  bool hasQuotient = false, isGridOfQ = false, isGridOfKV = false;
  int64_t width = 0, remainder = 0;
  function.walk([&](mask::FloorDivOp op) { hasQuotient |= isOfOnePosition(op.getResult()); });
  function.walk([&](mask::ModOp op) {
    auto divisor = op.getRhs().getDefiningOp<mask::ConstantOp>();
    if (!divisor || !divisor.getType().isInteger())
      return;
    const int64_t size = mask::toScalarSlot(divisor.getValue());
    CoordinateSet set = dependence.of(op.getResult());
    isGridOfQ |= set.q && !set.kv;
    isGridOfKV |= set.kv && !set.q;
    remainder = size;
    width = std::max(width, set.q != set.kv ? size : 0);
  });
  if (hasQuotient && isGridOfQ && isGridOfKV)
    return fmt::format(
        "; storing the grid of width {} tile by tile, as 'sliding_tile' of cpflex.std does, would decide more "
        "tiles",
        width);
  if (!hasQuotient && remainder > 1)
    return fmt::format(
        "; storing tokens by their remainder by {}, all of one remainder together, would make tiles full or "
        "empty",
        remainder);
  return advice;
}

} // namespace cpflex
