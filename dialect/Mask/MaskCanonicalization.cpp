// Which conditions have a simpler or more readable form with the same meaning on every input: comparisons, logic and
// selects. Arithmetic is MaskArithmetic.cpp's; identities that give an existing value are MaskFolds.cpp's.
#include "dialect/Mask/MaskPatterns.h"

#include "mlir/IR/Matchers.h"

using namespace mlir;

namespace cpflex::mask {
namespace {

/// A comparison as data: the entry of the table and its operands.
struct Comparison {
  Operation entry;
  Value lhs, rhs;
};

std::optional<Comparison> comparisonOf(Value value) {
  auto op = value.getDefiningOp<TableOpInterface>();
  if (!op)
    return std::nullopt;
  Operation entry = op.getTableOperation();
  if (entry < Operation::Eq || entry > Operation::Ge)
    return std::nullopt;
  return Comparison{entry, op->getOperand(0), op->getOperand(1)};
}

/// The comparison that holds when `entry` does with its operands exchanged.
Operation exchanged(Operation entry) {
  switch (entry) {
  case Operation::Lt: return Operation::Gt;
  case Operation::Le: return Operation::Ge;
  case Operation::Gt: return Operation::Lt;
  case Operation::Ge: return Operation::Le;
  default: return entry;
  }
}

/// The comparison that holds exactly when `entry` does not; for floats only of Eq and Ne, since a NaN compares false.
std::optional<Operation> complement(Operation entry, Type operandType) {
  if (entry == Operation::Eq)
    return Operation::Ne;
  if (entry == Operation::Ne)
    return Operation::Eq;
  if (toValueType(operandType) == ValueType::Float)
    return std::nullopt;
  switch (entry) {
  case Operation::Lt: return Operation::Ge;
  case Operation::Le: return Operation::Gt;
  case Operation::Gt: return Operation::Le;
  case Operation::Ge: return Operation::Lt;
  default: return std::nullopt;
  }
}

Value buildComparison(OpBuilder &builder, Location loc, const Comparison &comparison) {
  switch (comparison.entry) {
  case Operation::Eq: return EqOp::create(builder, loc, comparison.lhs, comparison.rhs);
  case Operation::Ne: return NeOp::create(builder, loc, comparison.lhs, comparison.rhs);
  case Operation::Lt: return LtOp::create(builder, loc, comparison.lhs, comparison.rhs);
  case Operation::Le: return LeOp::create(builder, loc, comparison.lhs, comparison.rhs);
  case Operation::Gt: return GtOp::create(builder, loc, comparison.lhs, comparison.rhs);
  default: return GeOp::create(builder, loc, comparison.lhs, comparison.rhs);
  }
}

bool isConstant(Value value) { return matchPattern(value, m_Constant()); }

/// Whether `left` is true exactly when `right` is false, whatever the inputs.
bool areComplements(Value left, Value right) {
  if (auto op = left.getDefiningOp<NotOp>(); op && op.getOperand() == right)
    return true;
  if (auto op = right.getDefiningOp<NotOp>(); op && op.getOperand() == left)
    return true;
  auto first = comparisonOf(left), second = comparisonOf(right);
  if (!first || !second)
    return false;
  auto opposite = complement(first->entry, first->lhs.getType());
  if (!opposite)
    return false;
  return (second->entry == *opposite && second->lhs == first->lhs && second->rhs == first->rhs) ||
         (second->entry == exchanged(*opposite) && second->lhs == first->rhs && second->rhs == first->lhs);
}

/// Whether the complement of `value` needs no operation more than `value` itself.
bool isComplementFree(Value value) {
  if (isConstant(value) || value.getDefiningOp<NotOp>())
    return true;
  auto comparison = comparisonOf(value);
  return comparison && value.hasOneUse() && complement(comparison->entry, comparison->lhs.getType());
}

//===----------------------------------------------------------------------===//
// Comparisons
//===----------------------------------------------------------------------===//

/// `c < x` becomes `x > c`.
template <typename CompareOp> struct ConstantsToTheRight : OpRewritePattern<CompareOp> {
  using OpRewritePattern<CompareOp>::OpRewritePattern;
  LogicalResult matchAndRewrite(CompareOp op, PatternRewriter &rewriter) const override {
    if (!isConstant(op.getLhs()) || isConstant(op.getRhs()))
      return failure();
    rewriter.replaceOp(
        op, buildComparison(rewriter, op.getLoc(), {exchanged(op.getTableOperation()), op.getRhs(), op.getLhs()}));
    return success();
  }
};

/// `x == False` becomes `not x`; `x - y == 0` becomes `x == y`, and `x + c == d` becomes `x == d - c`, which hold for
/// wrapping ints; a term that both sides add or subtract is dropped.
template <typename CompareOp> struct SimplifyEquality : OpRewritePattern<CompareOp> {
  using OpRewritePattern<CompareOp>::OpRewritePattern;
  LogicalResult matchAndRewrite(CompareOp op, PatternRewriter &rewriter) const override {
    Value lhs = op.getLhs(), rhs = op.getRhs();
    ValueType type = toValueType(lhs.getType());
    if (type == ValueType::Bool) {
      bool isEq = op.getTableOperation() == Operation::Eq;
      if (!(isEq ? matchPattern(rhs, m_Zero()) : matchPattern(rhs, m_One())))
        return failure();
      rewriter.replaceOpWithNewOp<NotOp>(op, lhs);
      return success();
    }
    if (type == ValueType::Float)
      return failure();
    auto replaceSides = [&](Value left, Value right) {
      rewriter.replaceOpWithNewOp<CompareOp>(op, left, right);
      return success();
    };
    auto leftSub = lhs.getDefiningOp<SubOp>();
    if (leftSub && matchPattern(rhs, m_Zero()))
      return replaceSides(leftSub.getLhs(), leftSub.getRhs());
    auto rightSub = rhs.getDefiningOp<SubOp>();
    if (leftSub && rightSub && leftSub.getRhs() == rightSub.getRhs())
      return replaceSides(leftSub.getLhs(), rightSub.getLhs());
    if (leftSub && rightSub && leftSub.getLhs() == rightSub.getLhs())
      return replaceSides(leftSub.getRhs(), rightSub.getRhs());
    auto leftAdd = lhs.getDefiningOp<AddOp>(), rightAdd = rhs.getDefiningOp<AddOp>();
    if (leftAdd && rightAdd && leftAdd.getRhs() == rightAdd.getRhs())
      return replaceSides(leftAdd.getLhs(), rightAdd.getLhs());
    bool mayWrap = !elementTypeOf(lhs.getType()).isSignlessInteger(32);
    if (isConstant(rhs) && mayWrap) {
      if (leftAdd && isConstant(leftAdd.getRhs()))
        return replaceSides(leftAdd.getLhs(), SubOp::create(rewriter, op.getLoc(), rhs, leftAdd.getRhs()));
      if (leftSub && isConstant(leftSub.getRhs()))
        return replaceSides(leftSub.getLhs(), AddOp::create(rewriter, op.getLoc(), rhs, leftSub.getRhs()));
    }
    return failure();
  }
};

//===----------------------------------------------------------------------===//
// Logic
//===----------------------------------------------------------------------===//

/// `not (a < b)` becomes `a >= b`; a complement moves into `and` and `or` where it vanishes on one side.
struct PushNot : OpRewritePattern<NotOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(NotOp op, PatternRewriter &rewriter) const override {
    Value operand = op.getOperand();
    if (toValueType(operand.getType()) != ValueType::Bool || !operand.hasOneUse())
      return failure();
    if (auto comparison = comparisonOf(operand)) {
      auto opposite = complement(comparison->entry, comparison->lhs.getType());
      if (!opposite)
        return failure();
      rewriter.replaceOp(op,
                         buildComparison(rewriter, operand.getLoc(), {*opposite, comparison->lhs, comparison->rhs}));
      return success();
    }
    mlir::Operation *inner = operand.getDefiningOp();
    if (!inner || !llvm::isa<AndOp, OrOp>(inner))
      return failure();
    Value lhs = inner->getOperand(0), rhs = inner->getOperand(1);
    if (!isComplementFree(lhs) && !isComplementFree(rhs))
      return failure();
    Value notLhs = NotOp::create(rewriter, op.getLoc(), lhs);
    Value notRhs = NotOp::create(rewriter, op.getLoc(), rhs);
    if (llvm::isa<AndOp>(inner))
      rewriter.replaceOpWithNewOp<OrOp>(op, notLhs, notRhs);
    else
      rewriter.replaceOpWithNewOp<AndOp>(op, notLhs, notRhs);
    return success();
  }
};

/// For `and` with its dual `or`, and the other way round: absorption (`x and (x or y)` is `x`), idempotence through a
/// chain, complements, and two bounds on one value merged into the tighter one.
template <typename LogicOp, typename DualOp> struct SimplifyLogic : OpRewritePattern<LogicOp> {
  using OpRewritePattern<LogicOp>::OpRewritePattern;
  LogicalResult matchAndRewrite(LogicOp op, PatternRewriter &rewriter) const override {
    for (auto [value, other] : {std::pair(op.getLhs(), op.getRhs()), std::pair(op.getRhs(), op.getLhs())}) {
      if (auto dual = other.template getDefiningOp<DualOp>(); dual && llvm::is_contained(dual->getOperands(), value)) {
        rewriter.replaceOp(op, value);
        return success();
      }
      if (auto same = other.template getDefiningOp<LogicOp>(); same && llvm::is_contained(same->getOperands(), value)) {
        rewriter.replaceOp(op, other);
        return success();
      }
    }
    if (toValueType(op.getType()) != ValueType::Bool)
      return failure();
    constexpr bool isAnd = std::is_same_v<LogicOp, AndOp>;
    if (areComplements(op.getLhs(), op.getRhs())) {
      rewriter.replaceOpWithNewOp<ConstantOp>(op, op.getType(), rewriter.getBoolAttr(!isAnd));
      return success();
    }
    return mergeBounds(op, rewriter);
  }

  /// `x < 3 and x < 5` becomes `x < min(3, 5)`.
  static LogicalResult mergeBounds(LogicOp op, PatternRewriter &rewriter) {
    constexpr bool isAnd = std::is_same_v<LogicOp, AndOp>;
    auto first = comparisonOf(op.getLhs()), second = comparisonOf(op.getRhs());
    if (!first || !second || first->entry != second->entry || first->lhs != second->lhs || !isConstant(first->rhs) ||
        !isConstant(second->rhs) || toValueType(first->lhs.getType()) == ValueType::Float)
      return failure();
    bool isUpper = first->entry == Operation::Lt || first->entry == Operation::Le;
    bool isLower = first->entry == Operation::Gt || first->entry == Operation::Ge;
    if (!isUpper && !isLower)
      return failure();
    Value bound = isUpper == isAnd ? Value(MinOp::create(rewriter, op.getLoc(), first->rhs, second->rhs))
                                   : Value(MaxOp::create(rewriter, op.getLoc(), first->rhs, second->rhs));
    rewriter.replaceOp(op, buildComparison(rewriter, op.getLoc(), {first->entry, first->lhs, bound}));
    return success();
  }
};

/// `x xor True` becomes `not x`.
struct XorToNot : OpRewritePattern<XorOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(XorOp op, PatternRewriter &rewriter) const override {
    APInt value;
    if (!matchPattern(op.getRhs(), m_ConstantInt(&value)) || !value.isAllOnes())
      return failure();
    rewriter.replaceOpWithNewOp<NotOp>(op, op.getLhs());
    return success();
  }
};

//===----------------------------------------------------------------------===//
// Selects
//===----------------------------------------------------------------------===//

/// Selects of bools become logic; a select whose arms are the compared values becomes `min`, `max` or `abs`; a select
/// under the same condition loses its dead arm.
struct SimplifySelect : OpRewritePattern<SelectOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(SelectOp op, PatternRewriter &rewriter) const override {
    Value condition = op.getCondition(), onTrue = op.getTrueValue(), onFalse = op.getFalseValue();
    auto replaceArms = [&](Value newCondition, Value newTrue, Value newFalse) {
      rewriter.replaceOpWithNewOp<SelectOp>(op, op.getType(), newCondition, newTrue, newFalse);
      return success();
    };
    if (auto inner = condition.getDefiningOp<NotOp>())
      return replaceArms(inner.getOperand(), onFalse, onTrue);
    if (auto inner = onTrue.getDefiningOp<SelectOp>(); inner && inner.getCondition() == condition)
      return replaceArms(condition, inner.getTrueValue(), onFalse);
    if (auto inner = onFalse.getDefiningOp<SelectOp>(); inner && inner.getCondition() == condition)
      return replaceArms(condition, onTrue, inner.getFalseValue());
    if (toValueType(op.getType()) == ValueType::Bool)
      return rewriteBool(op, rewriter);
    if (toValueType(op.getType()) != ValueType::Float)
      return rewriteExtremum(op, rewriter);
    return failure();
  }

  static LogicalResult rewriteBool(SelectOp op, PatternRewriter &rewriter) {
    Value condition = op.getCondition(), onTrue = op.getTrueValue(), onFalse = op.getFalseValue();
    auto complementOfCondition = [&] { return NotOp::create(rewriter, op.getLoc(), condition); };
    if (matchPattern(onTrue, m_One()))
      rewriter.replaceOpWithNewOp<OrOp>(op, condition, onFalse);
    else if (matchPattern(onFalse, m_Zero()))
      rewriter.replaceOpWithNewOp<AndOp>(op, condition, onTrue);
    else if (matchPattern(onTrue, m_Zero()))
      rewriter.replaceOpWithNewOp<AndOp>(op, complementOfCondition(), onFalse);
    else if (matchPattern(onFalse, m_One()))
      rewriter.replaceOpWithNewOp<OrOp>(op, complementOfCondition(), onTrue);
    else
      return failure();
    return success();
  }

  static LogicalResult rewriteExtremum(SelectOp op, PatternRewriter &rewriter) {
    auto comparison = comparisonOf(op.getCondition());
    if (!comparison || toValueType(comparison->lhs.getType()) == ValueType::Float)
      return failure();
    bool isLess = comparison->entry == Operation::Lt || comparison->entry == Operation::Le;
    bool isGreater = comparison->entry == Operation::Gt || comparison->entry == Operation::Ge;
    if (!isLess && !isGreater)
      return failure();
    Value onTrue = op.getTrueValue(), onFalse = op.getFalseValue();
    bool keepsLhs = onTrue == comparison->lhs && onFalse == comparison->rhs;
    bool keepsRhs = onTrue == comparison->rhs && onFalse == comparison->lhs;
    if (keepsLhs || keepsRhs) {
      if (isLess == keepsLhs)
        rewriter.replaceOpWithNewOp<MinOp>(op, onTrue, onFalse);
      else
        rewriter.replaceOpWithNewOp<MaxOp>(op, onTrue, onFalse);
      return success();
    }
    if (!matchPattern(comparison->rhs, m_Zero()) || toValueType(op.getType()) != ValueType::Int)
      return failure();
    auto isNegated = [&](Value value) {
      auto neg = value.getDefiningOp<NegOp>();
      return neg && neg.getOperand() == comparison->lhs;
    };
    bool isAbs = (isLess && isNegated(onTrue) && onFalse == comparison->lhs) ||
                 (isGreater && onTrue == comparison->lhs && isNegated(onFalse));
    if (!isAbs)
      return failure();
    rewriter.replaceOpWithNewOp<AbsOp>(op, comparison->lhs);
    return success();
  }
};

} // namespace

void MaskDialect::getCanonicalizationPatterns(RewritePatternSet &patterns) const {
  patterns.add<ConstantsToTheRight<LtOp>, ConstantsToTheRight<LeOp>, ConstantsToTheRight<GtOp>,
               ConstantsToTheRight<GeOp>, SimplifyEquality<EqOp>, SimplifyEquality<NeOp>, PushNot,
               SimplifyLogic<AndOp, OrOp>, SimplifyLogic<OrOp, AndOp>, XorToNot, SimplifySelect>(patterns.getContext());
  populateArithmeticPatterns(patterns);
}

} // namespace cpflex::mask
