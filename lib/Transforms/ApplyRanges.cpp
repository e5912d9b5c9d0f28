// What do the bounds of ints decide? Comparisons that always hold, remainders that change nothing, and terms that both
// sides of a comparison share.
#include "lib/Analysis/IntegerRanges.h"
#include "lib/Transforms/Passes.h"

#include "mlir/IR/Matchers.h"
#include "llvm/ADT/MapVector.h"

using namespace mlir;

namespace cpflex {

#define GEN_PASS_DEF_APPLYRANGES
#include "lib/Transforms/Passes.h.inc"

namespace {

using Wide = __int128;

/// Sums of more operations are compared as written.
constexpr int kMostSteps = 32;

/// A sum of values times coefficients plus a constant, over unbounded ints.
struct Affine {
  llvm::MapVector<Value, Wide> coefficients;
  Wide constant = 0;
  int numSteps = 0;
  bool sharesTerm = false;
};

bool collect(Value value, Wide scale, const IntegerRanges &ranges, Affine &affine) {
  if (++affine.numSteps > kMostSteps)
    return false;
  if (IntegerRange range = ranges.of(value); range.isPoint()) {
    affine.constant += scale * range.lo;
    return true;
  }
  mlir::Operation *op = value.getDefiningOp();
  if (op && llvm::isa<mask::AddOp, mask::SubOp, mask::NegOp>(op) && !ranges.mayWrap(value)) {
    if (auto neg = llvm::dyn_cast<mask::NegOp>(op))
      return collect(neg.getOperand(), -scale, ranges, affine);
    return collect(op->getOperand(0), scale, ranges, affine) &&
           collect(op->getOperand(1), llvm::isa<mask::SubOp>(op) ? -scale : scale, ranges, affine);
  }
  auto [entry, isFirst] = affine.coefficients.insert({value, scale});
  if (!isFirst) {
    entry->second += scale;
    affine.sharesTerm = true;
  }
  return true;
}

struct ApplyRanges : impl::ApplyRangesBase<ApplyRanges> {
  void runOnOperation() override {
    IntegerRanges ranges(getOperation());
    llvm::SmallVector<std::pair<mlir::Operation *, Value>> replacements;
    getOperation().walk([&](mask::TableOpInterface op) {
      if (llvm::isa<mask::IntervalType>(op->getResult(0).getType()))
        return;
      OpBuilder builder(op);
      if (Value replacement = replacementFor(op, ranges, builder))
        replacements.push_back({op, replacement});
    });
    // A replacement may be an earlier value that is replaced itself, so later ones are put in place first; nothing is
    // erased while the ranges are in use, since they are found by address.
    for (auto [op, replacement] : llvm::reverse(replacements)) {
      op->getResult(0).replaceAllUsesWith(replacement);
      op->erase();
    }
  }

  static Value constant(OpBuilder &builder, mlir::Operation *op, Type type, int64_t value) {
    return mask::ConstantOp::create(builder, op->getLoc(), builder.getIntegerAttr(type, value));
  }

  /// A simpler value equal to the result of `op`, or null.
  static Value replacementFor(mlir::Operation *op, const IntegerRanges &ranges, OpBuilder &builder) {
    Value result = op->getResult(0);
    if (mask::toValueType(result.getType()) == ValueType::Float)
      return {};
    if (IntegerRange range = ranges.of(result); range.isPoint())
      return constant(builder, op, result.getType(), range.lo);
    ValueType operandType = mask::toValueType(op->getOperand(0).getType());
    if (operandType != ValueType::Int && operandType != ValueType::U32)
      return {};
    IntegerRange a = ranges.of(op->getOperand(0));
    IntegerRange b = op->getNumOperands() > 1 ? ranges.of(op->getOperand(1)) : a;
    switch (llvm::cast<mask::TableOpInterface>(op).getTableOperation()) {
    case Operation::Mod: // 0 <= a < b
      return a.lo >= 0 && a.hi < b.lo ? op->getOperand(0) : Value();
    case Operation::Abs: return a.lo >= 0 ? op->getOperand(0) : Value();
    case Operation::Min: return a.hi <= b.lo ? op->getOperand(0) : b.hi <= a.lo ? op->getOperand(1) : Value();
    case Operation::Max: return a.lo >= b.hi ? op->getOperand(0) : b.lo >= a.hi ? op->getOperand(1) : Value();
    case Operation::Lt: return withoutSharedTerms<mask::LtOp>(op, ranges, builder);
    case Operation::Le: return withoutSharedTerms<mask::LeOp>(op, ranges, builder);
    case Operation::Gt: return withoutSharedTerms<mask::GtOp>(op, ranges, builder);
    case Operation::Ge: return withoutSharedTerms<mask::GeOp>(op, ranges, builder);
    default: return {};
    }
  }

  /// `a + x < b + x` becomes `a < b` where neither sum can wrap; `a - b < 0` becomes `a < b`.
  template <typename CompareOp>
  static Value withoutSharedTerms(mlir::Operation *op, const IntegerRanges &ranges, OpBuilder &builder) {
    Value lhs = op->getOperand(0), rhs = op->getOperand(1);
    if (!lhs.getType().isSignlessInteger(64))
      return {};
    Affine difference;
    if (!collect(lhs, 1, ranges, difference) || !collect(rhs, -1, ranges, difference))
      return {};
    auto sub = lhs.getDefiningOp<mask::SubOp>();
    bool comparesDifferenceWithZero = sub && !ranges.mayWrap(lhs) && matchPattern(rhs, m_Zero());
    if (!difference.sharesTerm && !comparesDifferenceWithZero)
      return {};
    // lhs < rhs holds exactly when the positive part of lhs - rhs is less than the negative part.
    Value left = sumOf(op, difference, /*sign=*/1, ranges, builder);
    Value right = sumOf(op, difference, /*sign=*/-1, ranges, builder);
    if (!left || !right)
      return {};
    return CompareOp::create(builder, op->getLoc(), left, right);
  }

  /// The sum of the terms of that sign, or null where it may wrap or needs a product.
  static Value sumOf(mlir::Operation *op, const Affine &affine, int sign, const IntegerRanges &ranges,
                     OpBuilder &builder) {
    llvm::SmallVector<Value> terms;
    Wide lo = 0, hi = 0;
    for (auto &[value, coefficient] : affine.coefficients) {
      if (coefficient * sign <= 0)
        continue;
      if (coefficient * sign != 1)
        return {};
      terms.push_back(value);
      lo += std::min<Wide>(0, ranges.of(value).lo);
      hi += std::max<Wide>(0, ranges.of(value).hi);
    }
    Wide constantPart = std::max<Wide>(0, affine.constant * sign);
    if (lo < INT64_MIN || hi + constantPart > INT64_MAX)
      return {};
    Type type = op->getOperand(0).getType();
    if (terms.empty())
      return constant(builder, op, type, static_cast<int64_t>(constantPart));
    Value sum = terms.front();
    for (Value term : llvm::drop_begin(terms))
      sum = mask::AddOp::create(builder, op->getLoc(), sum, term);
    if (constantPart != 0)
      sum = mask::AddOp::create(builder, op->getLoc(), sum,
                                constant(builder, op, type, static_cast<int64_t>(constantPart)));
    return sum;
  }
};

} // namespace
} // namespace cpflex
