// Do the passes leave the value of every predicate as it was, over random programs?
#include "lib/Transforms/Passes.h"
#include "test/lib/Transforms/RandomProgram.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Pass/PassManager.h"

#include <gtest/gtest.h>

#include <functional>

namespace cpflex::test {
namespace {

constexpr int kNumPrograms = 800;
constexpr int kNumPoints = 12;
constexpr int64_t kAnyParam = INT64_MAX;

/// Runs the passes over random programs and compares values before and after at random points.
void expectSameValues(uint64_t firstSeed, int64_t largestParam,
                      const std::function<void(mlir::OpPassManager &)> &addPasses) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  int numTrue = 0;
  for (int i = 0; i < kNumPrograms; ++i) {
    RandomProgram program(ctx, firstSeed + i);
    ASSERT_TRUE(mlir::succeeded(mlir::verify(*program.module))) << "seed " << firstSeed + i;
    mlir::OwningOpRef<mlir::ModuleOp> changed(program.module->clone());
    mlir::PassManager passes(&ctx);
    addPasses(passes);
    ASSERT_TRUE(mlir::succeeded(passes.run(*changed))) << "seed " << firstSeed + i;
    for (int point = 0; point < kNumPoints; ++point) {
      Evaluator evaluator = program.evaluator(largestParam);
      std::vector<ScalarSlot> coordinates = program.coordinates();
      ScalarSlot expected = evaluator.run(program.module->lookupSymbol<mask::PredicateOp>("f"), coordinates);
      evaluator.sawOverflow = false;
      ScalarSlot actual = evaluator.run(changed->lookupSymbol<mask::PredicateOp>("f"), coordinates);
      numTrue += expected != 0;
      EXPECT_FALSE(evaluator.sawOverflow) << "seed " << firstSeed + i;
      if (expected == actual)
        continue;
      program.module->dump();
      changed->dump();
      FAIL() << "seed " << firstSeed + i << " gives " << actual << " instead of " << expected << " at "
             << coordinates[0] << ", " << coordinates[1] << ", " << coordinates[2] << ", " << coordinates[3];
    }
  }
  // Both values must occur often, or the comparison shows nothing.
  EXPECT_GT(numTrue, kNumPrograms * kNumPoints / 10);
  EXPECT_LT(numTrue, kNumPrograms * kNumPoints * 9 / 10);
}

TEST(PassesPreserveMeaning, simplification) { expectSameValues(1, kAnyParam, addSimplification); }

TEST(PassesPreserveMeaning, narrowingWithUnknownParams) {
  expectSameValues(10001, kAnyParam, [](mlir::OpPassManager &passes) { addIntegerNarrowing(passes); });
}

TEST(PassesPreserveMeaning, narrowingWithBoundedParams) {
  expectSameValues(20001, int64_t(1) << 30, [](mlir::OpPassManager &passes) {
    addSimplification(passes);
    NarrowIntegersOptions options;
    options.boundedParams = true;
    addIntegerNarrowing(passes, options);
  });
}

} // namespace
} // namespace cpflex::test
