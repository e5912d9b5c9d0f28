// Which sums, products, quotients and reductions have a simpler form with the same meaning on every input. Ints and u32
// wrap, so they are rings: terms of a sum may be reordered and collected. Floats are left as written.
#include "dialect/Mask/MaskPatterns.h"

#include "mlir/IR/Matchers.h"
#include "llvm/ADT/MapVector.h"

using namespace mlir;

namespace cpflex::mask {
namespace {

/// The constant int or u32 that `value` is.
std::optional<APInt> constantOf(Value value) {
  APInt constant;
  if (!matchPattern(value, m_ConstantInt(&constant)))
    return std::nullopt;
  return constant;
}

Value buildConstant(OpBuilder &builder, Location loc, Type type, const APInt &value) {
  return ConstantOp::create(builder, loc, type, IntegerAttr::get(elementTypeOf(type), value));
}

/// Types whose sums may be reordered: not i32, whose steps were each proved to fit.
bool isRing(Type type) {
  Type element = elementTypeOf(type);
  return element.isSignlessInteger(64) || element.isUnsignedInteger(32);
}

//===----------------------------------------------------------------------===//
// Sums
//===----------------------------------------------------------------------===//

/// A sum of values times constants plus a constant.
struct LinearForm {
  llvm::MapVector<Value, APInt> coefficients;
  APInt constant;
  int numTerms = 0;     ///< as written, before terms of one value were collected
  int numConstants = 0; ///< as written
  int numSteps = 0;     ///< operations and leaves visited
};

/// A sum of more operations stays as written, so that sums of shared sums cost linear time and bounded stack.
constexpr int kMostSteps = 64;

/// Adds `scale * value` to `form`; false when the sum is too long.
bool collect(Value value, const APInt &scale, LinearForm &form) {
  if (++form.numSteps > kMostSteps)
    return false;
  if (auto constant = constantOf(value)) {
    form.constant += scale * *constant;
    ++form.numConstants;
    return true;
  }
  if (auto add = value.getDefiningOp<AddOp>())
    return collect(add.getLhs(), scale, form) && collect(add.getRhs(), scale, form);
  if (auto sub = value.getDefiningOp<SubOp>())
    return collect(sub.getLhs(), scale, form) && collect(sub.getRhs(), -scale, form);
  if (auto neg = value.getDefiningOp<NegOp>())
    return collect(neg.getOperand(), -scale, form);
  if (auto mul = value.getDefiningOp<MulOp>())
    if (auto factor = constantOf(mul.getRhs()))
      return collect(mul.getLhs(), scale * *factor, form);
  auto [entry, isFirst] = form.coefficients.insert({value, scale});
  if (!isFirst)
    entry->second += scale;
  ++form.numTerms;
  return true;
}

/// Rewrites a sum in which a value or a constant occurs more than once: `q - kv + kv` becomes `q`.
template <typename SumOp> struct CollectTerms : OpRewritePattern<SumOp> {
  using OpRewritePattern<SumOp>::OpRewritePattern;
  LogicalResult matchAndRewrite(SumOp op, PatternRewriter &rewriter) const override {
    Type type = op.getType();
    if (!isRing(type))
      return failure();
    unsigned width = elementTypeOf(type).getIntOrFloatBitWidth();
    LinearForm form{.coefficients = {}, .constant = APInt(width, 0)};
    if (!collect(op.getResult(), APInt(width, 1), form))
      return failure();
    if (static_cast<int>(form.coefficients.size()) == form.numTerms && form.numConstants < 2)
      return failure();
    rewriter.replaceOp(op, build(rewriter, op.getLoc(), type, form));
    return success();
  }

  /// Terms with positive coefficients first, so that differences read as such.
  static Value build(PatternRewriter &rewriter, Location loc, Type type, const LinearForm &form) {
    Value sum;
    auto scaled = [&](Value value, const APInt &coefficient) -> Value {
      if (coefficient.isOne())
        return value;
      return MulOp::create(rewriter, loc, value, buildConstant(rewriter, loc, type, coefficient));
    };
    for (auto &[value, coefficient] : form.coefficients)
      if (coefficient.isStrictlyPositive()) {
        Value term = scaled(value, coefficient);
        sum = sum ? Value(AddOp::create(rewriter, loc, sum, term)) : term;
      }
    if (!sum || form.constant.isStrictlyPositive()) {
      Value constant = buildConstant(rewriter, loc, type, form.constant);
      sum = sum ? Value(AddOp::create(rewriter, loc, sum, constant)) : constant;
    } else if (!form.constant.isZero()) {
      sum = SubOp::create(rewriter, loc, sum, buildConstant(rewriter, loc, type, -form.constant));
    }
    for (auto &[value, coefficient] : form.coefficients)
      if (coefficient.isNegative())
        sum = SubOp::create(rewriter, loc, sum, scaled(value, -coefficient));
    return sum;
  }
};

/// `x - (x // n) * n` becomes `x % n` for a constant n other than 0; `0 - x` becomes `-x`.
struct DifferenceToRemainder : OpRewritePattern<SubOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(SubOp op, PatternRewriter &rewriter) const override {
    if (toValueType(op.getType()) == ValueType::Float)
      return failure();
    if (matchPattern(op.getLhs(), m_Zero())) {
      rewriter.replaceOpWithNewOp<NegOp>(op, op.getRhs());
      return success();
    }
    auto product = op.getRhs().getDefiningOp<MulOp>();
    auto quotient = product ? product.getLhs().getDefiningOp<FloorDivOp>() : FloorDivOp();
    if (!quotient || quotient.getLhs() != op.getLhs() || quotient.getRhs() != product.getRhs())
      return failure();
    auto divisor = constantOf(product.getRhs());
    if (!divisor || divisor->isZero())
      return failure();
    rewriter.replaceOpWithNewOp<ModOp>(op, op.getLhs(), product.getRhs());
    return success();
  }
};

//===----------------------------------------------------------------------===//
// Quotients and remainders
//===----------------------------------------------------------------------===//

/// `x // a // b` becomes `x // (a * b)` for positive constants whose product fits.
struct MergeQuotients : OpRewritePattern<FloorDivOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(FloorDivOp op, PatternRewriter &rewriter) const override {
    auto inner = op.getLhs().getDefiningOp<FloorDivOp>();
    if (!inner || toValueType(op.getType()) == ValueType::Float)
      return failure();
    auto outerDivisor = constantOf(op.getRhs()), innerDivisor = constantOf(inner.getRhs());
    if (!outerDivisor || !innerDivisor)
      return failure();
    bool isUnsigned = toValueType(op.getType()) == ValueType::U32;
    if (!isUnsigned && (!outerDivisor->isStrictlyPositive() || !innerDivisor->isStrictlyPositive()))
      return failure();
    if (outerDivisor->isZero() || innerDivisor->isZero())
      return failure();
    bool overflows = false;
    APInt product =
        isUnsigned ? outerDivisor->umul_ov(*innerDivisor, overflows) : outerDivisor->smul_ov(*innerDivisor, overflows);
    if (overflows)
      return failure();
    rewriter.replaceOpWithNewOp<FloorDivOp>(op, inner.getLhs(),
                                            buildConstant(rewriter, op.getLoc(), op.getType(), product));
    return success();
  }
};

/// `x % n % m` becomes `x % m` when m divides n, both positive; `x % n % n` becomes `x % n` for every n, since the
/// remainder has the divisor's sign.
struct DropRemainder : OpRewritePattern<ModOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(ModOp op, PatternRewriter &rewriter) const override {
    auto inner = op.getLhs().getDefiningOp<ModOp>();
    if (!inner || toValueType(op.getType()) == ValueType::Float)
      return failure();
    if (inner.getRhs() == op.getRhs()) {
      rewriter.replaceOp(op, inner.getResult());
      return success();
    }
    auto outerDivisor = constantOf(op.getRhs()), innerDivisor = constantOf(inner.getRhs());
    if (!outerDivisor || !innerDivisor || !outerDivisor->isStrictlyPositive() || !innerDivisor->isStrictlyPositive() ||
        !innerDivisor->urem(*outerDivisor).isZero())
      return failure();
    rewriter.replaceOpWithNewOp<ModOp>(op, inner.getLhs(), op.getRhs());
    return success();
  }
};

//===----------------------------------------------------------------------===//
// Signs
//===----------------------------------------------------------------------===//

/// `-(x - y)` becomes `y - x`.
struct NegateDifference : OpRewritePattern<NegOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(NegOp op, PatternRewriter &rewriter) const override {
    auto difference = op.getOperand().getDefiningOp<SubOp>();
    // Of floats, -(x - x) is -0.
    if (!difference || !difference->hasOneUse() || toValueType(op.getType()) == ValueType::Float)
      return failure();
    rewriter.replaceOpWithNewOp<SubOp>(op, difference.getRhs(), difference.getLhs());
    return success();
  }
};

/// `abs(-x)` becomes `abs(x)`.
struct DropSignUnderAbs : OpRewritePattern<AbsOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(AbsOp op, PatternRewriter &rewriter) const override {
    auto neg = op.getOperand().getDefiningOp<NegOp>();
    if (!neg || toValueType(op.getType()) == ValueType::U32)
      return failure();
    rewriter.replaceOpWithNewOp<AbsOp>(op, neg.getOperand());
    return success();
  }
};

//===----------------------------------------------------------------------===//
// Reductions
//===----------------------------------------------------------------------===//

/// A reduction over no index is its empty value; one over a single index is its element.
struct UnrollShortReduction : OpRewritePattern<ReduceOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(ReduceOp op, PatternRewriter &rewriter) const override {
    auto count = constantOf(op.getCount());
    if (!count || count->sgt(1))
      return failure();
    if (count->isOne()) {
      Block &body = op.getBody().front();
      auto yield = llvm::cast<YieldOp>(body.getTerminator());
      Value element = yield.getValues().front();
      Value index = buildConstant(rewriter, op.getLoc(), op.getCount().getType(), APInt(count->getBitWidth(), 0));
      bool isIndex = element == body.getArgument(0);
      rewriter.eraseOp(yield);
      rewriter.inlineBlockBefore(&body, op, index);
      rewriter.replaceOp(op, isIndex ? index : element);
      return success();
    }
    Type element = elementTypeOf(op.getType());
    TypedAttr empty = llvm::isa<FloatType>(element) ? TypedAttr(rewriter.getFloatAttr(element, 0.0))
                                                    : TypedAttr(rewriter.getIntegerAttr(element, 0));
    if (op.getKind() == ReductionKind::All)
      empty = rewriter.getBoolAttr(true);
    rewriter.replaceOpWithNewOp<ConstantOp>(op, op.getType(), empty);
    return success();
  }
};

} // namespace

void populateArithmeticPatterns(RewritePatternSet &patterns) {
  patterns
      .add<CollectTerms<AddOp>, CollectTerms<SubOp>, CollectTerms<MulOp>, CollectTerms<NegOp>, DifferenceToRemainder,
           MergeQuotients, DropRemainder, NegateDifference, DropSignUnderAbs, UnrollShortReduction>(
          patterns.getContext());
}

} // namespace cpflex::mask
