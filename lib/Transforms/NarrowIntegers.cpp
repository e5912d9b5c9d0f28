// Which ints can be computed in 32 bits? Rebuilds each function with i32 where ranges prove that operands and results
// fit.
#include "lib/Analysis/IntegerRanges.h"
#include "lib/Transforms/Passes.h"

#include "llvm/ADT/DenseMap.h"

using namespace mlir;

namespace cpflex {

#define GEN_PASS_DEF_NARROWINTEGERS
#include "lib/Transforms/Passes.h.inc"

namespace {

bool isInt64(Value value) { return value.getType().isSignlessInteger(64); }

/// Rebuilds one function; `narrow` and `wide` hold what each value of the old body became.
class Narrower {
public:
  Narrower(const IntegerRanges &ranges, MLIRContext *ctx)
      : ranges(ranges), builder(ctx), int32(builder.getIntegerType(32)), int64(builder.getIntegerType(64)) {}

  void rebuild(FunctionOpInterface function) {
    Region &region = function.getFunctionBody();
    Block &before = region.front();
    auto *after = new Block();
    region.push_back(after);
    builder.setInsertionPointToStart(after);
    for (BlockArgument argument : before.getArguments())
      define(argument, after->addArgument(typeOf(argument), argument.getLoc()));
    auto type = llvm::cast<FunctionType>(function.getFunctionType());
    function.setFunctionTypeAttr(
        TypeAttr::get(FunctionType::get(builder.getContext(), after->getArgumentTypes(), type.getResults())));
    rebuildBlock(before);
    before.erase();
  }

private:
  bool fits(Value value) const { return isInt64(value) && ranges.of(value).fitsInt32(); }
  Type typeOf(Value value) const { return fits(value) ? Type(int32) : value.getType(); }

  void define(Value before, Value after) {
    if (before.getType() == after.getType())
      wide[before] = after;
    else
      narrow[before] = after;
  }

  /// The value with its own type.
  Value toWide(Value before) {
    Value &after = wide[before];
    if (!after)
      after = converted(before, narrow.lookup(before), int64);
    return after;
  }

  /// The value as i32; it must fit.
  Value toNarrow(Value before) {
    Value &after = narrow[before];
    if (!after)
      after = converted(before, wide.lookup(before), int32);
    return after;
  }

  /// Converts right after the definition, so that every later use may share the conversion.
  Value converted(Value before, Value after, Type type) {
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPointAfterValue(after);
    if (auto constant = after.getDefiningOp<mask::ConstantOp>()) {
      int64_t value = mask::toScalarSlot(constant.getValue());
      return mask::ConstantOp::create(builder, after.getLoc(), builder.getIntegerAttr(type, value));
    }
    return mask::ToIntOp::create(builder, before.getLoc(), type, after);
  }

  void rebuildBlock(Block &before) {
    for (mlir::Operation &op : before)
      rebuildOperation(&op);
  }

  /// Whether all int operands of `op` may be i32.
  bool takesNarrow(mlir::Operation *op) const {
    return llvm::all_of(op->getOperands(), [&](Value operand) { return !isInt64(operand) || fits(operand); });
  }

  /// Whether `op` computes the same in 32 bits once its operands and result fit.
  bool computesNarrow(mlir::Operation *op) const {
    // Bits shifted past the 31st would need more than 32.
    if (llvm::isa<mask::ShlOp, mask::ShrOp>(op)) {
      IntegerRange amount = ranges.of(op->getOperand(1));
      return amount.lo >= 0 && amount.hi < 32;
    }
    return llvm::isa<mask::TableOpInterface>(op);
  }

  void rebuildOperation(mlir::Operation *op) {
    if (auto reduction = llvm::dyn_cast<mask::ReduceOp>(op))
      return rebuildReduction(reduction);
    if (llvm::isa<mask::LoadOp, mask::ScatterAddOp>(op)) {
      // Indices keep whichever width they have.
      llvm::SmallVector<Value> operands;
      for (Value operand : op->getOperands())
        operands.push_back(fits(operand) ? toNarrow(operand) : toWide(operand));
      return recreate(op, operands, /*mayNarrowResult=*/true);
    }
    if (llvm::isa<mask::ConstantOp>(op))
      return recreate(op, {}, /*mayNarrowResult=*/false);
    bool isLeaf = llvm::isa<mask::DimOp, mask::ParamValueOp>(op);
    bool isInTable = computesNarrow(op);
    bool givesInt = op->getNumResults() == 1 && isInt64(op->getResult(0));
    bool narrows = isLeaf || (isInTable && takesNarrow(op) && (!givesInt || fits(op->getResult(0))));
    llvm::SmallVector<Value> operands;
    for (Value operand : op->getOperands())
      operands.push_back(narrows && isInt64(operand) ? toNarrow(operand) : toWide(operand));
    recreate(op, operands, narrows);
  }

  void recreate(mlir::Operation *op, ValueRange operands, bool mayNarrowResult) {
    llvm::SmallVector<Type> types;
    for (Value result : op->getResults())
      types.push_back(mayNarrowResult ? typeOf(result) : result.getType());
    mlir::Operation *created =
        mlir::Operation::create(op->getLoc(), op->getName(), types, operands, op->getDiscardableAttrDictionary(),
                                op->getPropertiesStorage(), /*successors=*/{}, /*numRegions=*/0);
    builder.insert(created);
    for (auto [before, after] : llvm::zip_equal(op->getResults(), created->getResults()))
      define(before, after);
  }

  void rebuildReduction(mask::ReduceOp op) {
    Value count = fits(op.getCount()) ? toNarrow(op.getCount()) : toWide(op.getCount());
    Block &before = op.getBody().front();
    Value element = llvm::cast<mask::YieldOp>(before.getTerminator()).getValues().front();
    bool narrows = fits(op.getResult()) && fits(element);
    auto created =
        mask::ReduceOp::create(builder, op.getLoc(), narrows ? Type(int32) : op.getType(), op.getKind(), count);
    Block &after = created.getBody().emplaceBlock();
    BlockArgument index = after.addArgument(count.getType(), before.getArgument(0).getLoc());
    define(before.getArgument(0), index);
    {
      OpBuilder::InsertionGuard guard(builder);
      builder.setInsertionPointToStart(&after);
      for (mlir::Operation &inner : before.without_terminator())
        rebuildOperation(&inner);
      mask::YieldOp::create(builder, before.getTerminator()->getLoc(),
                            ValueRange(narrows ? toNarrow(element) : toWide(element)));
    }
    define(op.getResult(), created.getResult());
  }

  const IntegerRanges &ranges;
  OpBuilder builder;
  Type int32, int64;
  llvm::DenseMap<Value, Value> narrow, wide;
};

struct NarrowIntegers : impl::NarrowIntegersBase<NarrowIntegers> {
  using NarrowIntegersBase::NarrowIntegersBase;

  void runOnOperation() override {
    RangeAssumptions assumptions = RangeAssumptions::forNarrowCode();
    if (!boundedParams)
      assumptions.largestParam = INT64_MAX;
    IntegerRanges ranges(getOperation(), assumptions);
    for (auto function : getOperation().getOps<FunctionOpInterface>())
      if (!llvm::isa<mask::ClassifierOp>(function))
        Narrower(ranges, &getContext()).rebuild(function);
  }
};

} // namespace
} // namespace cpflex
