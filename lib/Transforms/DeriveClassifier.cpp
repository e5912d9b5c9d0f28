// What may a predicate be over a whole tile? The same operations over intervals.
#include "dialect/Mask/MaskDialect.h"
#include "lib/Analysis/Residuals.h"
#include "lib/Transforms/Passes.h"

#include "mlir/IR/IRMapping.h"

using namespace mlir;

namespace cpflex {

#define GEN_PASS_DEF_DERIVECLASSIFIER
#include "lib/Transforms/Passes.h.inc"

namespace {

struct DeriveClassifier : impl::DeriveClassifierBase<DeriveClassifier> {
  void runOnOperation() override {
    for (auto predicate : llvm::make_early_inc_range(getOperation().getOps<mask::PredicateOp>()))
      if (!predicate->hasAttr(kResidualAttribute) && failed(derive(predicate)))
        return signalPassFailure();
  }

  LogicalResult derive(mask::PredicateOp predicate) {
    if (!llvm::all_of(predicate.getArgumentTypes(), [](Type type) { return type.isInteger(64); }))
      return predicate.emitOpError(
          "computes in 32 bits; expected the classifier to be derived before ints are narrowed");
    std::string name = (predicate.getSymName() + ".classifier").str();
    if (auto previous = getOperation().lookupSymbol<mask::ClassifierOp>(name))
      previous.erase();

    auto toInterval = [](Type type) -> Type { return mask::IntervalType::get(type.getContext(), type); };
    FunctionType type = predicate.getFunctionType();
    auto intervalType = FunctionType::get(&getContext(), llvm::map_to_vector(type.getInputs(), toInterval),
                                          llvm::map_to_vector(type.getResults(), toInterval));
    OpBuilder builder(predicate->getContext());
    builder.setInsertionPointAfter(predicate);
    auto classifier = mask::ClassifierOp::create(builder, predicate.getLoc(), name, intervalType);
    classifier.getBody().getBlocks().clear();
    IRMapping mapping;
    predicate.getBody().cloneInto(&classifier.getBody(), mapping);

    auto retype = [&](ValueRange values) {
      for (Value value : values)
        value.setType(toInterval(value.getType()));
    };
    retype(classifier.getBody().front().getArguments());
    classifier.getBody().walk([&](mlir::Operation *op) {
      retype(op->getResults());
      for (Region &region : op->getRegions())
        for (Block &block : region)
          retype(block.getArguments());
    });
    return success();
  }
};

} // namespace
} // namespace cpflex
