// What is the gradient of a score function in the score it is given and in the arrays it reads? Reverse accumulation
// over straight-line code; a reduction is differentiated by a reduction of its own.
#include "dialect/Mask/MaskDialect.h"
#include "lib/Transforms/DifferentiatedReductions.h"
#include "lib/Transforms/Passes.h"

#include "mlir/IR/IRMapping.h"
#include "mlir/IR/Matchers.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/SetVector.h"

#include <numbers>
#include <optional>

using namespace mlir;

namespace cpflex {

#define GEN_PASS_DEF_DIFFERENTIATESCORES
#include "lib/Transforms/Passes.h.inc"

namespace {

/// What a reduction combines, per index.
Value elementOf(mask::ReduceOp op) { return op.getBody().front().getTerminator()->getOperand(0); }

/// Which values depend on the score or on a capture with a gradient, so that a gradient may flow into them.
class Activity {
public:
  explicit Activity(ModuleOp module) : module(module) {}

  void mark(Value value) { active.insert(value); }
  bool contains(Value value) const { return active.contains(value); }

  bool isDifferentiatedLoad(mlir::Operation *op) const { return cpflex::isDifferentiatedLoad(op, module); }

  void visit(Block &block) {
    for (mlir::Operation &op : block.without_terminator()) {
      if (auto reduction = llvm::dyn_cast<mask::ReduceOp>(op)) {
        visit(reduction.getBody().front());
        if (contains(elementOf(reduction)) && reduction.getType().isF32())
          mark(reduction.getResult());
        continue;
      }
      if (isDifferentiatedLoad(&op) ||
          (passesGradient(&op) && llvm::any_of(op.getOperands(), [&](Value operand) { return contains(operand); })))
        mark(op.getResult(0));
    }
  }

private:
  static bool passesGradient(mlir::Operation *op) {
    return op->getNumResults() == 1 && op->getResult(0).getType().isF32() && llvm::isa<mask::TableOpInterface>(op) &&
           !llvm::isa<mask::FloorOp, mask::FloorDivOp>(op);
  }

  ModuleOp module;
  llvm::DenseSet<Value> active;
};

/// A gradient as a value times a constant, so that constant factors along a chain become one multiplication.
struct Adjoint {
  Value value;
  double scale = 1.0;
};

/// Reverse accumulation over one block. `gradient` is the incoming gradient of the whole function.
class ReverseSweep {
public:
  enum class Scatters { Emit, LeaveOut };

  ReverseSweep(OpBuilder &builder, Activity &activity, Value gradient, Scatters scatters)
      : builder(builder), activity(activity), gradient(gradient), scatters(scatters) {
    zeroWithGradient.insert(gradient);
  }

  void seed(Value value, Adjoint adjoint) { adjoints[value] = adjoint; }

  /// Propagates the adjoints through the operations, last first. What is created stands at the builder's position.
  void run(llvm::ArrayRef<mlir::Operation *> operations) {
    for (mlir::Operation *op : llvm::reverse(operations)) {
      if (op->getNumResults() != 1 || !activity.contains(op->getResult(0)))
        continue;
      loc = op->getLoc();
      if (Adjoint adjoint = adjoints.lookup(op->getResult(0)); adjoint.value)
        propagate(op, adjoint);
    }
  }

  /// The adjoint of `value`, 0 where the incoming gradient is 0.
  Value guardedAdjoint(Value value) {
    Adjoint adjoint = adjoints.lookup(value);
    return adjoint.value ? guarded(adjoint) : constant(0.0f);
  }

private:
  //===--- Building blocks -----------------------------------------------------===//

  Value constant(float value) { return mask::ConstantOp::create(builder, loc, builder.getF32FloatAttr(value)); }

  static std::optional<double> finiteConstant(Value value) {
    APFloat number(0.0f);
    if (matchPattern(value, m_ConstantFloat(&number)) && number.isFinite())
      return number.convertToDouble();
    return std::nullopt;
  }

  /// Whether `value` is never infinite nor NaN: 0 times it is 0.
  static bool isFinite(Value value) {
    auto conversion = value.getDefiningOp<mask::ToFloatOp>();
    return conversion && !conversion.getOperand().getType().isF32();
  }

  /// The adjoint as one value.
  Value materialized(Adjoint adjoint) {
    float scale = static_cast<float>(adjoint.scale);
    if (scale == 1.0f)
      return adjoint.value;
    Value result = scale == -1.0f ? Value(mask::NegOp::create(builder, loc, adjoint.value))
                                  : Value(mask::MulOp::create(builder, loc, adjoint.value, constant(scale)));
    return inherit(result, adjoint.value);
  }

  Value guarded(Adjoint adjoint) {
    if (zeroWithGradient.contains(adjoint.value))
      return materialized(adjoint);
    Value isNonZero = mask::NeOp::create(builder, loc, gradient, constant(0.0f));
    Value result = mask::SelectOp::create(builder, loc, gradient.getType(), isNonZero, adjoint.value, constant(0.0f));
    zeroWithGradient.insert(result);
    return materialized({result, adjoint.scale});
  }

  /// Marks `result` as what `adjoint` is, where both are 0 together.
  Value inherit(Value result, Value adjoint) {
    if (zeroWithGradient.contains(adjoint))
      zeroWithGradient.insert(result);
    if (zeroWhereUntaken.contains(adjoint))
      zeroWhereUntaken.insert(result);
    return result;
  }

  /// `result`, made from `adjoint` by a factor that may be infinite or NaN: a 0 from an arm not taken stays 0.
  Adjoint withFactor(Value result, Adjoint adjoint) {
    if (!zeroWhereUntaken.contains(adjoint.value))
      return {result, adjoint.scale};
    Value isNonZero = mask::NeOp::create(builder, loc, adjoint.value, constant(0.0f));
    Value kept = mask::SelectOp::create(builder, loc, result.getType(), isNonZero, result, constant(0.0f));
    return {inherit(kept, adjoint.value), adjoint.scale};
  }

  Adjoint times(Adjoint adjoint, Value factor) {
    if (auto constant = finiteConstant(factor))
      return {adjoint.value, adjoint.scale * *constant};
    Value product = mask::MulOp::create(builder, loc, adjoint.value, factor);
    if (isFinite(factor))
      return {inherit(product, adjoint.value), adjoint.scale};
    return withFactor(product, adjoint);
  }
  Adjoint over(Adjoint adjoint, Value divisor) {
    if (auto constant = finiteConstant(divisor); constant && *constant != 0.0)
      return {adjoint.value, adjoint.scale / *constant};
    return withFactor(mask::DivOp::create(builder, loc, adjoint.value, divisor), adjoint);
  }
  Adjoint scaled(Adjoint adjoint, double factor) { return {adjoint.value, adjoint.scale * factor}; }

  Adjoint where(Value condition, Adjoint adjoint) { return chosen(condition, adjoint.value, constant(0.0f), adjoint); }
  Adjoint whereNot(Value condition, Adjoint adjoint) {
    return chosen(condition, constant(0.0f), adjoint.value, adjoint);
  }
  /// A select between values that are both 0 when that of `adjoint` is.
  Adjoint chosen(Value condition, Value onTrue, Value onFalse, Adjoint adjoint) {
    Value result = mask::SelectOp::create(builder, loc, gradient.getType(), condition, onTrue, onFalse);
    zeroWhereUntaken.insert(result);
    return {inherit(result, adjoint.value), adjoint.scale};
  }

  void accumulate(Value value, Adjoint contribution) {
    Adjoint &adjoint = adjoints[value];
    if (!adjoint.value) {
      adjoint = contribution;
      return;
    }
    if (adjoint.scale != contribution.scale) {
      adjoint = {materialized(adjoint)};
      contribution = {materialized(contribution)};
    }
    Value sum = mask::AddOp::create(builder, loc, adjoint.value, contribution.value);
    if (zeroWithGradient.contains(adjoint.value) && zeroWithGradient.contains(contribution.value))
      zeroWithGradient.insert(sum);
    if (zeroWhereUntaken.contains(adjoint.value) || zeroWhereUntaken.contains(contribution.value))
      zeroWhereUntaken.insert(sum);
    adjoint.value = sum;
  }

  /// Adds what `contribution` makes of the operand's adjoint, when a gradient may flow into the operand.
  void contribute(mlir::Operation *op, unsigned operand, llvm::function_ref<Adjoint()> contribution) {
    if (activity.contains(op->getOperand(operand)))
      accumulate(op->getOperand(operand), contribution());
  }

  //===--- Derivatives -----------------------------------------------------------===//

  void propagate(mlir::Operation *op, Adjoint adjoint) {
    if (auto load = llvm::dyn_cast<mask::LoadOp>(op)) {
      if (scatters == Scatters::Emit)
        mask::ScatterAddOp::create(builder, loc, guarded(adjoint), load.getCapture(), load.getIndices());
    } else if (auto reduction = llvm::dyn_cast<mask::ReduceOp>(op)) {
      propagateReduction(reduction, adjoint);
    } else if (op->getNumOperands() == 1) {
      contribute(op, 0, [&] { return unary(op, adjoint); });
    } else if (auto select = llvm::dyn_cast<mask::SelectOp>(op)) {
      contribute(op, 1, [&] { return where(select.getCondition(), adjoint); });
      contribute(op, 2, [&] { return whereNot(select.getCondition(), adjoint); });
    } else {
      binary(op, adjoint);
    }
  }

  Adjoint unary(mlir::Operation *op, Adjoint adjoint) {
    Value x = op->getOperand(0), y = op->getResult(0);
    auto mul = [&](Value a, Value b) -> Value { return mask::MulOp::create(builder, loc, a, b); };
    auto oneMinus = [&](Value a) -> Value { return mask::SubOp::create(builder, loc, constant(1.0f), a); };
    switch (llvm::cast<mask::TableOpInterface>(op).getTableOperation()) {
    case Operation::Neg: return scaled(adjoint, -1.0);
    case Operation::Abs: { // sign(x)
      Value isPositive = mask::GtOp::create(builder, loc, x, constant(0.0f));
      Value isNegative = mask::LtOp::create(builder, loc, x, constant(0.0f));
      Value negative = inherit(mask::NegOp::create(builder, loc, adjoint.value), adjoint.value);
      return chosen(isNegative, negative, where(isPositive, adjoint).value, adjoint);
    }
    case Operation::Exp: return times(adjoint, y);
    case Operation::Exp2: return scaled(times(adjoint, y), std::numbers::ln2);
    case Operation::Log: return over(adjoint, x);
    case Operation::Log1p: return over(adjoint, mask::AddOp::create(builder, loc, x, constant(1.0f)));
    case Operation::Tanh: return times(adjoint, oneMinus(mul(y, y)));
    case Operation::Sigmoid: return times(adjoint, mul(y, oneMinus(y)));
    case Operation::Sqrt: return over(scaled(adjoint, 0.5), y);
    case Operation::Rsqrt: return over(times(scaled(adjoint, -0.5), y), x);
    case Operation::Sin: return times(adjoint, mask::CosOp::create(builder, loc, x));
    case Operation::Cos: return scaled(times(adjoint, mask::SinOp::create(builder, loc, x)), -1.0);
    default: return adjoint; // ToFloat of a float
    }
  }

  void binary(mlir::Operation *op, Adjoint adjoint) {
    Value x = op->getOperand(0), y = op->getOperand(1), result = op->getResult(0);
    switch (llvm::cast<mask::TableOpInterface>(op).getTableOperation()) {
    case Operation::Add:
      contribute(op, 0, [&] { return adjoint; });
      contribute(op, 1, [&] { return adjoint; });
      break;
    case Operation::Sub:
      contribute(op, 0, [&] { return adjoint; });
      contribute(op, 1, [&] { return scaled(adjoint, -1.0); });
      break;
    case Operation::Mul:
      contribute(op, 0, [&] { return times(adjoint, y); });
      contribute(op, 1, [&] { return times(adjoint, x); });
      break;
    case Operation::Div: // d(x / y) = dx / y - (x / y) / y dy
      contribute(op, 0, [&] { return over(adjoint, y); });
      contribute(op, 1, [&] { return scaled(over(times(adjoint, result), y), -1.0); });
      break;
    case Operation::Mod: // x % y = x - floor(x / y) * y
      contribute(op, 0, [&] { return adjoint; });
      contribute(op, 1, [&] { return scaled(times(adjoint, mask::FloorDivOp::create(builder, loc, x, y)), -1.0); });
      break;
    case Operation::Min: {
      Value takesLeft = mask::LeOp::create(builder, loc, x, y);
      contribute(op, 0, [&] { return where(takesLeft, adjoint); });
      contribute(op, 1, [&] { return whereNot(takesLeft, adjoint); });
      break;
    }
    case Operation::Max: {
      Value takesLeft = mask::GeOp::create(builder, loc, x, y);
      contribute(op, 0, [&] { return where(takesLeft, adjoint); });
      contribute(op, 1, [&] { return whereNot(takesLeft, adjoint); });
      break;
    }
    case Operation::Pow: // d(x ** y) = y x ** (y - 1) dx + x ** y log(x) dy
      contribute(op, 0, [&] {
        Value isPower = mask::NeOp::create(builder, loc, y, constant(0.0f));
        Value power = mask::PowOp::create(builder, loc, x, mask::SubOp::create(builder, loc, y, constant(1.0f)));
        return times(where(isPower, adjoint), mask::MulOp::create(builder, loc, y, power));
      });
      contribute(op, 1, [&] {
        Value hasLog = mask::GtOp::create(builder, loc, x, constant(0.0f));
        return times(where(hasLog, adjoint),
                     mask::MulOp::create(builder, loc, result, mask::LogOp::create(builder, loc, x)));
      });
      break;
    default: break;
    }
  }

  //===--- Reductions ------------------------------------------------------------===//

  /// Values from outside of the reduction that its body reads and a gradient flows into, in order of first use.
  llvm::SetVector<Value> outerActiveValues(mask::ReduceOp op) {
    llvm::SetVector<Value> values;
    op.getBody().walk([&](mlir::Operation *inner) {
      for (Value operand : inner->getOperands())
        if (activity.contains(operand) && !op.getBody().isAncestor(operand.getParentRegion()))
          values.insert(operand);
    });
    return values;
  }

  bool readsDifferentiatedCapture(mask::ReduceOp op) {
    return op.getBody()
        .walk([&](mlir::Operation *inner) {
          return activity.isDifferentiatedLoad(inner) ? WalkResult::interrupt() : WalkResult::advance();
        })
        .wasInterrupted();
  }

  /// A loop per outer value that sums the contributions of all elements; the first one scatters too.
  void propagateReduction(mask::ReduceOp op, Adjoint adjoint) {
    Value first = op.getKind() == mask::ReductionKind::Sum ? Value() : indexOfFirstExtremum(op);
    llvm::SetVector<Value> outer = outerActiveValues(op);
    Scatters loopScatters =
        scatters == Scatters::Emit && readsDifferentiatedCapture(op) ? Scatters::Emit : Scatters::LeaveOut;
    if (outer.empty() && loopScatters == Scatters::Emit)
      sumOfContributions(op, adjoint, first, Value(), loopScatters);
    for (Value value : outer) {
      Location outerLoc = loc;
      Value sum = sumOfContributions(op, adjoint, first, value, loopScatters);
      loc = outerLoc;
      accumulate(value, {sum});
      loopScatters = Scatters::LeaveOut;
    }
  }

  /// The body of `op` again, at the builder's position, for the index `index`.
  Value cloneBody(mask::ReduceOp op, Value index, llvm::SmallVectorImpl<mlir::Operation *> &operations) {
    IRMapping mapping;
    mapping.map(op.getBody().front().getArgument(0), index);
    for (mlir::Operation &inner : op.getBody().front().without_terminator())
      operations.push_back(builder.clone(inner, mapping));
    return mapping.lookupOrDefault(elementOf(op));
  }

  Value indexOfFirstExtremum(mask::ReduceOp op) {
    Type indexType = op.getCount().getType();
    auto search = mask::ReduceOp::create(builder, loc, indexType, mask::ReductionKind::Min, op.getCount());
    Block &body = search.getBody().emplaceBlock();
    Value index = body.addArgument(indexType, loc);
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPointToStart(&body);
    llvm::SmallVector<mlir::Operation *> operations;
    Value element = cloneBody(op, index, operations);
    Value isExtremum = mask::EqOp::create(builder, loc, element, op.getResult());
    Value candidate = mask::SelectOp::create(builder, loc, indexType, isExtremum, index, op.getCount());
    mask::YieldOp::create(builder, loc, ValueRange(candidate));
    return search.getResult();
  }

  /// A loop that sums, over all elements, what flows into `target`; without a target it only scatters.
  Value sumOfContributions(mask::ReduceOp op, Adjoint adjoint, Value firstExtremum, Value target,
                           Scatters loopScatters) {
    auto loop = mask::ReduceOp::create(builder, loc, gradient.getType(), mask::ReductionKind::Sum, op.getCount());
    Block &body = loop.getBody().emplaceBlock();
    Value index = body.addArgument(op.getCount().getType(), loc);
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPointToStart(&body);
    llvm::SmallVector<mlir::Operation *> operations;
    Value element = cloneBody(op, index, operations);
    activity.visit(body);

    ReverseSweep sweep(builder, activity, gradient, loopScatters);
    sweep.loc = loc;
    sweep.zeroWithGradient = zeroWithGradient;
    sweep.zeroWhereUntaken = zeroWhereUntaken;
    if (firstExtremum)
      adjoint = sweep.where(mask::EqOp::create(builder, loc, index, firstExtremum), adjoint);
    sweep.seed(element, adjoint);
    sweep.run(operations);
    Value contribution = target ? sweep.guardedAdjoint(target) : sweep.constant(0.0f);
    mask::YieldOp::create(builder, loc, ValueRange(contribution));
    zeroWithGradient.insert(loop.getResult());
    return loop.getResult();
  }

  OpBuilder &builder;
  Activity &activity;
  Value gradient;
  Scatters scatters;
  Location loc = builder.getUnknownLoc();
  llvm::DenseMap<Value, Adjoint> adjoints;
  llvm::DenseSet<Value> zeroWithGradient; ///< 0 whenever the incoming gradient is
  llvm::DenseSet<Value> zeroWhereUntaken; ///< may be the 0 of an arm that is not taken
};

struct DifferentiateScores : impl::DifferentiateScoresBase<DifferentiateScores> {
  void runOnOperation() override {
    for (auto score : llvm::make_early_inc_range(getOperation().getOps<mask::ScoreOp>()))
      differentiate(score);
  }

  void differentiate(mask::ScoreOp score) {
    std::string name = (score.getSymName() + ".gradient").str();
    if (auto previous = getOperation().lookupSymbol<mask::ScoreGradientOp>(name))
      previous.erase();

    OpBuilder builder(score->getContext());
    builder.setInsertionPointAfter(score);
    FunctionType type = score.getFunctionType();
    llvm::SmallVector<Type> inputs{builder.getF32Type()};
    llvm::append_range(inputs, type.getInputs());
    auto function = mask::ScoreGradientOp::create(builder, score.getLoc(), name,
                                                  builder.getFunctionType(inputs, type.getResults()));
    function.getBody().getBlocks().clear();
    IRMapping mapping;
    score.getBody().cloneInto(&function.getBody(), mapping);
    Block &body = function.getBody().front();
    Value gradient = body.insertArgument(0u, builder.getF32Type(), score.getLoc());
    Value scoreArgument = body.getArgument(1);

    Activity activity(getOperation());
    unrollDifferentiatedReductions(body, getOperation());
    activity.mark(scoreArgument);
    activity.visit(body);
    llvm::SmallVector<mlir::Operation *> operations;
    for (mlir::Operation &op : body.without_terminator())
      operations.push_back(&op);
    mlir::Operation *yield = body.getTerminator();
    builder.setInsertionPoint(yield);
    ReverseSweep sweep(builder, activity, gradient, ReverseSweep::Scatters::Emit);
    sweep.seed(function.getYieldedValue(), {gradient});
    sweep.run(operations);
    mask::YieldOp::create(builder, yield->getLoc(), ValueRange(sweep.guardedAdjoint(scoreArgument)));
    yield->erase();
  }
};

} // namespace
} // namespace cpflex
