// Which passes the stages of the compiler run over the `mask` dialect, and in which order.
#include "lib/Transforms/Passes.h"

#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"
#include "mlir/Transforms/Passes.h"

namespace cpflex {

void addSimplification(mlir::OpPassManager &passes) {
  passes.addPass(mlir::createCanonicalizerPass());
  passes.addPass(mlir::createCSEPass());
  passes.addPass(createApplyRanges());
  passes.addPass(mlir::createCanonicalizerPass());
  passes.addPass(mlir::createCSEPass());
}

void addClassifierDerivation(mlir::OpPassManager &passes) {
  passes.addPass(createDeriveClassifier());
  passes.addPass(createEnumerateResiduals());
}

void addScoreDifferentiation(mlir::OpPassManager &passes) {
  passes.addPass(createDifferentiateScores());
  passes.addPass(mlir::createCanonicalizerPass());
  passes.addPass(mlir::createCSEPass());
}

void addIntegerNarrowing(mlir::OpPassManager &passes, const NarrowIntegersOptions &options) {
  passes.addPass(createNarrowIntegers(options));
  passes.addPass(mlir::createCanonicalizerPass());
  passes.addPass(mlir::createCSEPass());
}

} // namespace cpflex
