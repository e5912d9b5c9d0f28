// What is left of a predicate once parts of it are decided? Each of the few answers as a predicate of its own.
#include "lib/Analysis/Residuals.h"
#include "lib/Transforms/Passes.h"

#include "mlir/IR/IRMapping.h"

using namespace mlir;

namespace cpflex {

#define GEN_PASS_DEF_ENUMERATERESIDUALS
#include "lib/Transforms/Passes.h.inc"

namespace {

struct EnumerateResiduals : impl::EnumerateResidualsBase<EnumerateResiduals> {
  void runOnOperation() override {
    for (auto predicate : llvm::make_early_inc_range(getOperation().getOps<mask::PredicateOp>()))
      if (predicate->hasAttr(kResidualAttribute))
        predicate.erase();
    for (auto predicate : llvm::to_vector(getOperation().getOps<mask::PredicateOp>()))
      enumerate(predicate);
  }

  void enumerate(mask::PredicateOp predicate) {
    OpBuilder builder(predicate->getContext());
    builder.setInsertionPointAfter(predicate);
    for (auto [index, residual] : llvm::enumerate(residualsOf(predicate))) {
      IRMapping mapping;
      auto clone = llvm::cast<mask::PredicateOp>(builder.clone(*predicate, mapping));
      clone.setSymName((predicate.getSymName() + kResidualSuffix + Twine(index + 1)).str());
      clone->setAttr(kResidualAttribute, builder.getUnitAttr());
      mlir::Operation *yield = clone.getBody().front().getTerminator();
      OpBuilder bodyBuilder(yield);
      Value result = mapping.lookup(residual.value);
      if (residual.isNegated)
        result = mask::NotOp::create(bodyBuilder, result.getLoc(), result);
      yield->setOperand(0, result);
      eraseUnused(clone.getBody().front());
    }
  }

  static void eraseUnused(Block &block) {
    llvm::SmallVector<mlir::Operation *> operations;
    for (mlir::Operation &op : block.without_terminator())
      operations.push_back(&op);
    for (mlir::Operation *op : llvm::reverse(operations))
      if (op->use_empty())
        op->erase();
  }
};

} // namespace
} // namespace cpflex
