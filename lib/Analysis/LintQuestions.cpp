// Clones the functions of an entry point and lets each clone yield the question instead of the mask.
#include "lib/Analysis/LintQuestions.h"

#include "lib/Analysis/CoordinateDependence.h"
#include "lib/Analysis/ExpressionText.h"

#include "mlir/IR/IRMapping.h"

#include "llvm/ADT/DenseSet.h"

using namespace mlir;

namespace cpflex {
namespace {

/// Questions asked at most of one entry point.
constexpr size_t kMostQuestions = 64;
/// Uses followed to find out where a load counts.
constexpr int kMostUsesFollowed = 256;
/// Operations shown of an expression in a message.
constexpr int kShownOperations = 8;

/// A predicate whose body holds the copied operations of a mask, and perhaps of a score function, with the copies by
/// original.
struct Clone {
  mask::PredicateOp predicate;
  IRMapping copies;
  Value allowed; ///< the mask's copied value; null without a mask
};

class Questions {
public:
  Questions(ModuleOp module, mask::AttentionOp entry) : module(module), builder(module.getContext()) {
    if (entry.getMask())
      maskFunction = module.lookupSymbol<mask::PredicateOp>(*entry.getMask());
    if (entry.getScore())
      scoreFunction = module.lookupSymbol<mask::ScoreOp>(*entry.getScore());
  }

  void addLoads(FunctionOpInterface function, const std::function<int64_t(StringRef, unsigned)> &axisSize) {
    CoordinateDependence dependence(function);
    llvm::SmallVector<mask::LoadOp> loads;
    function.walk([&](mask::LoadOp load) { loads.push_back(load); });
    for (mask::LoadOp load : loads)
      for (auto [axis, index] : llvm::enumerate(load.getIndices())) {
        if (dependence.of(index).score || index.getDefiningOp<mask::ConstantOp>())
          continue;
        int64_t size = axisSize(load.getCapture(), axis);
        std::string text = expressionText(index, kShownOperations);
        for (auto kind : {LintQuestionKind::IndexNegative, LintQuestionKind::IndexPastEnd}) {
          if (result.size() >= kMostQuestions)
            return;
          mask::PredicateOp predicate = whereLoose(function, load, axis, kind, size, dependence);
          result.push_back({kind, predicate, load.getLoc(), text, load.getCapture().str(), unsigned(axis), size});
        }
      }
  }

  /// One question per operand of the logic that the mask ends in; those that read arrays are expected to vary.
  void addConditions() {
    llvm::SmallVector<Value> pending{maskFunction.getYieldedValue()}, conditions;
    llvm::DenseSet<Value> seen;
    while (!pending.empty()) {
      Value value = pending.pop_back_val();
      mlir::Operation *op = value.getDefiningOp();
      if (!op || !seen.insert(value).second || llvm::isa<mask::ConstantOp>(op))
        continue;
      bool isLogic = llvm::isa<mask::AndOp, mask::OrOp, mask::NotOp, mask::SelectOp>(op);
      if (isLogic)
        llvm::copy_if(op->getOperands(), std::back_inserter(pending), [](Value v) { return v.getType().isInteger(1); });
      else
        conditions.push_back(value);
    }
    for (Value condition : llvm::reverse(conditions)) {
      if (result.size() >= kMostQuestions || readsArray(condition))
        continue;
      Clone clone = cloneOf(maskFunction);
      setYielded(clone.predicate, clone.copies.lookup(condition));
      result.push_back({LintQuestionKind::ConditionHolds,
                        clone.predicate,
                        condition.getLoc(),
                        expressionText(condition, kShownOperations),
                        {},
                        0,
                        0});
    }
  }

  mask::PredicateOp maskFunction;
  mask::ScoreOp scoreFunction;
  std::vector<LintQuestion> result;

private:
  static bool readsArray(Value value) {
    llvm::SmallVector<Value> pending{value};
    llvm::DenseSet<Value> seen;
    while (!pending.empty()) {
      mlir::Operation *op = pending.pop_back_val().getDefiningOp();
      if (!op)
        continue;
      bool hasLoad = llvm::isa<mask::LoadOp>(op);
      op->walk([&](mask::LoadOp) { hasLoad = true; });
      if (hasLoad)
        return true;
      for (Value operand : op->getOperands())
        if (seen.insert(operand).second)
          pending.push_back(operand);
    }
    return false;
  }

  Clone cloneOf(FunctionOpInterface function) {
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPointToEnd(module.getBody());
    Type integer = builder.getI64Type();
    Clone clone;
    clone.predicate =
        mask::PredicateOp::create(builder, function.getLoc(), "lint." + std::to_string(result.size()),
                                  builder.getFunctionType({integer, integer, integer, integer}, {builder.getI1Type()}));
    Block &body = clone.predicate.getBody().front();
    builder.setInsertionPointToEnd(&body);
    const auto copy = [&](FunctionOpInterface original) {
      Block &from = original.getFunctionBody().front();
      unsigned numBefore = from.getNumArguments() - 4;
      for (unsigned i = 0; i < numBefore; ++i)
        clone.copies.map(from.getArgument(i),
                         mask::ConstantOp::create(builder, original.getLoc(), builder.getF32FloatAttr(0)));
      for (unsigned i = 0; i < 4; ++i)
        clone.copies.map(from.getArgument(numBefore + i), body.getArgument(i));
      for (mlir::Operation &op : from.without_terminator())
        builder.clone(op, clone.copies);
      return clone.copies.lookupOrDefault(from.getTerminator()->getOperand(0));
    };
    if (maskFunction && function != maskFunction)
      clone.allowed = copy(maskFunction);
    copy(function);
    return clone;
  }

  void setYielded(mask::PredicateOp predicate, Value value) {
    OpBuilder::InsertionGuard guard(builder);
    Block &body = predicate.getBody().front();
    if (body.mightHaveTerminator())
      body.getTerminator()->erase();
    builder.setInsertionPointToEnd(&body);
    mask::YieldOp::create(builder, predicate.getLoc(), ValueRange(value));
  }

  mask::PredicateOp whereLoose(FunctionOpInterface function, mask::LoadOp load, unsigned axis, LintQuestionKind kind,
                               int64_t size, const CoordinateDependence &dependence) {
    Clone clone = cloneOf(function);
    auto copied = clone.copies.lookup(load.getResult()).getDefiningOp<mask::LoadOp>();
    OpBuilder::InsertionGuard guard(builder);
    Value index = copied.getIndices()[axis];
    setInsertionPointAtEndOf(copied->getBlock());
    int64_t bound = kind == LintQuestionKind::IndexNegative ? 0 : size;
    auto limit = mask::ConstantOp::create(builder, load.getLoc(), builder.getIntegerAttr(index.getType(), bound));
    Value loose = kind == LintQuestionKind::IndexNegative
                      ? Value(mask::LtOp::create(builder, load.getLoc(), index, limit))
                      : Value(mask::GeOp::create(builder, load.getLoc(), index, limit));
    // Out of the reductions around the load: is there an iteration?
    const IRMapping &copies = clone.copies;
    stepsLeft = kMostUsesFollowed;
    Value original = load.getResult(), where = copied.getResult();
    while (true) {
      if (Value counts = whereCounts(original, copies, dependence))
        loose = mask::AndOp::create(builder, load.getLoc(), loose, counts);
      auto reduction = llvm::dyn_cast<mask::ReduceOp>(where.getParentBlock()->getParentOp());
      if (!reduction)
        break;
      loose = anyOver(reduction, loose);
      where = reduction.getResult();
      original = llvm::cast<mask::ReduceOp>(original.getParentBlock()->getParentOp()).getResult();
    }
    if (clone.allowed)
      loose = mask::AndOp::create(builder, load.getLoc(), clone.allowed, loose);
    setYielded(clone.predicate, loose);
    return clone.predicate;
  }

  void setInsertionPointAtEndOf(Block *block) {
    if (block->mightHaveTerminator())
      builder.setInsertionPoint(block->getTerminator());
    else
      builder.setInsertionPointToEnd(block);
  }

  /// Whether some iteration of `reduction`, a copy, makes `condition` of its body true; placed behind it.
  Value anyOver(mask::ReduceOp reduction, Value condition) {
    setInsertionPointAtEndOf(reduction->getBlock());
    auto any = mask::ReduceOp::create(builder, reduction.getLoc(), builder.getI1Type(), mask::ReductionKind::Any,
                                      reduction.getCount());
    IRMapping inner;
    reduction.getBody().cloneInto(&any.getBody(), inner);
    any.getBody().front().getTerminator()->setOperand(0, inner.lookup(condition));
    return any.getResult();
  }

  /// Where the copy of `value` can reach the result of its block, as a bool of the copied block; null for everywhere.
  /// Conditions that depend on the score are taken to hold.
  Value whereCounts(Value value, const IRMapping &copies, const CoordinateDependence &dependence) {
    if (--stepsLeft <= 0)
      return {};
    Value anywhere;
    for (OpOperand &use : value.getUses()) {
      mlir::Operation *user = use.getOwner();
      // A use inside of a reduction is one by the reduction.
      while (user->getBlock() != value.getParentBlock())
        user = user->getParentOp();
      if (user->getNumResults() != 1)
        return {};
      Value here = whereCounts(user->getResult(0), copies, dependence);
      if (user == use.getOwner())
        if (Value local = localCondition(use, copies, dependence))
          here = here ? Value(mask::AndOp::create(builder, user->getLoc(), here, local)) : local;
      if (!here)
        return {};
      anywhere = anywhere ? Value(mask::OrOp::create(builder, user->getLoc(), anywhere, here)) : here;
    }
    return anywhere;
  }

  Value localCondition(OpOperand &use, const IRMapping &copies, const CoordinateDependence &dependence) {
    mlir::Operation *user = use.getOwner();
    unsigned number = use.getOperandNumber();
    bool isLogic = llvm::isa<mask::AndOp, mask::OrOp>(user) && user->getResult(0).getType().isInteger(1);
    if (number == 0 || !(isLogic || llvm::isa<mask::SelectOp>(user)) || dependence.of(user->getOperand(0)).score)
      return {};
    Value condition = copies.lookupOrDefault(user->getOperand(0));
    bool isNegated = llvm::isa<mask::OrOp>(user) || (llvm::isa<mask::SelectOp>(user) && number == 2);
    return isNegated ? Value(mask::NotOp::create(builder, user->getLoc(), condition)) : condition;
  }

  ModuleOp module;
  OpBuilder builder;
  int stepsLeft = 0; ///< uses still followed for the question at hand; beyond them a load counts everywhere
};

/// Erases what no result needs, so that every use of a value is one that counts.
void eraseDead(Block &block) {
  for (mlir::Operation &op : llvm::make_early_inc_range(llvm::reverse(block))) {
    for (Region &region : op.getRegions())
      eraseDead(region.front());
    if (op.getNumResults() == 1 && op.use_empty())
      op.erase();
  }
}

} // namespace

std::vector<LintQuestion> addLintQuestions(ModuleOp module, mask::AttentionOp entry,
                                           const std::function<int64_t(StringRef, unsigned)> &axisSize) {
  for (auto function : module.getOps<FunctionOpInterface>())
    eraseDead(function.getFunctionBody().front());
  Questions questions(module, entry);
  if (questions.maskFunction) {
    questions.addConditions();
    questions.addLoads(questions.maskFunction, axisSize);
  }
  if (questions.scoreFunction)
    questions.addLoads(questions.scoreFunction, axisSize);
  return std::move(questions.result);
}

} // namespace cpflex
