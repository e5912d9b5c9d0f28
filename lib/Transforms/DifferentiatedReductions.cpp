// Clones the body once per index and combines the elements in ascending order, as a reduction does.
#include "lib/Transforms/DifferentiatedReductions.h"

#include "mlir/IR/IRMapping.h"
#include "mlir/IR/Matchers.h"

using namespace mlir;

namespace cpflex {
namespace {

/// Reductions stay loops when written out they would have more operations.
constexpr int64_t kMostUnrolledOperations = 64;

bool holdsDifferentiatedLoad(mask::ReduceOp op, ModuleOp module) {
  return op.getBody()
      .walk([&](mlir::Operation *inner) {
        return isDifferentiatedLoad(inner, module) ? WalkResult::interrupt() : WalkResult::advance();
      })
      .wasInterrupted();
}

int64_t numOperations(mask::ReduceOp op) {
  int64_t count = 0;
  op.getBody().walk([&](mlir::Operation *) { ++count; });
  return count;
}

/// The number of indices when it is constant and small enough, 0 otherwise.
int64_t unrolledCount(mask::ReduceOp op) {
  APInt count;
  if (!matchPattern(op.getCount(), m_ConstantInt(&count)) || !count.isStrictlyPositive())
    return 0;
  return count.sle(kMostUnrolledOperations / numOperations(op)) ? count.getSExtValue() : 0;
}

Value combine(OpBuilder &builder, mask::ReduceOp op, Value total, Value element) {
  switch (op.getKind()) {
  case mask::ReductionKind::Min: return mask::MinOp::create(builder, op.getLoc(), total, element);
  case mask::ReductionKind::Max: return mask::MaxOp::create(builder, op.getLoc(), total, element);
  default: return mask::AddOp::create(builder, op.getLoc(), total, element);
  }
}

void unroll(mask::ReduceOp op, int64_t count) {
  OpBuilder builder(op);
  Block &body = op.getBody().front();
  Value total;
  for (int64_t i = 0; i < count; ++i) {
    IRMapping mapping;
    auto index = builder.getIntegerAttr(op.getCount().getType(), i);
    mapping.map(body.getArgument(0), mask::ConstantOp::create(builder, op.getLoc(), index));
    for (mlir::Operation &inner : body.without_terminator())
      builder.clone(inner, mapping);
    Value element = mapping.lookupOrDefault(body.getTerminator()->getOperand(0));
    total = total ? combine(builder, op, total, element) : element;
  }
  op.replaceAllUsesWith(total);
  op.erase();
}

} // namespace

bool isDifferentiatedLoad(mlir::Operation *op, ModuleOp module) {
  auto load = llvm::dyn_cast<mask::LoadOp>(op);
  auto capture = load ? module.lookupSymbol<mask::CaptureOp>(load.getCapture()) : mask::CaptureOp();
  return capture && capture->hasAttr("grad");
}

void unrollDifferentiatedReductions(Block &body, ModuleOp module) {
  // Inner reductions come first, so that an outer one is judged by what it has become.
  llvm::SmallVector<mask::ReduceOp> reductions;
  body.walk([&](mask::ReduceOp op) { reductions.push_back(op); });
  for (mask::ReduceOp op : reductions)
    if (op.getType().isF32() && holdsDifferentiatedLoad(op, module))
      if (int64_t count = unrolledCount(op))
        unroll(op, count);
}

} // namespace cpflex
