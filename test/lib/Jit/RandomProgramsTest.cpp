// Does compiled host code give what the operations mean, point by point, over random programs?
#include "lib/Jit/HostJit.h"
#include "lib/Transforms/Passes.h"
#include "test/lib/Jit/BoundArrays.h"
#include "test/lib/Transforms/RandomProgram.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Pass/PassManager.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

constexpr int64_t kRows = 5, kKeys = 37;

enum class Narrowing { None, Narrowed };

/// Compiles random predicates and compares tiles of them with the evaluator.
void expectSameTiles(uint64_t firstSeed, int numPrograms, const JitOptions &options, Narrowing narrowing) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  int64_t numTrue = 0, numPairs = 0;
  for (int i = 0; i < numPrograms; ++i) {
    RandomProgram program(ctx, firstSeed + i);
    mlir::OpBuilder builder(&ctx);
    builder.setInsertionPointToEnd(program.module->getBody());
    mask::AttentionOp::create(builder, builder.getUnknownLoc(), builder.getStringAttr("main"),
                              mlir::FlatSymbolRefAttr::get(&ctx, "f"), mlir::FlatSymbolRefAttr(),
                              mlir::FlatSymbolRefAttr(), mlir::FloatAttr(), mlir::UnitAttr());
    mlir::OwningOpRef<mlir::ModuleOp> compiled(program.module->clone());
    if (narrowing == Narrowing::Narrowed) {
      mlir::PassManager passes(&ctx);
      addSimplification(passes);
      addIntegerNarrowing(passes);
      ASSERT_TRUE(mlir::succeeded(passes.run(*compiled)));
    }
    mlir::FailureOr<HostFunctions> functions = compileHost(*compiled, "main", options);
    ASSERT_TRUE(mlir::succeeded(functions)) << "seed " << firstSeed + i;
    Evaluator evaluator = program.evaluator(INT64_MAX);
    BoundArrays arrays(*compiled, evaluator);
    std::vector<ScalarSlot> origin = program.coordinates();
    int64_t kvStep = i % 3 == 0 ? 5 : 1;
    // Positions stay below the largest length, which narrowing assumes.
    int64_t kvBegin = std::min(origin[3], (int64_t(1) << 30) - kKeys * kvStep);
    int64_t qBegin = std::min(origin[2], (int64_t(1) << 30) - kRows);
    TileCoordinates tile{origin[0], origin[1], qBegin, kRows, 1, kvBegin, kKeys, kvStep};
    std::vector<uint8_t> actual(kRows * (kKeys + 3), 7);
    functions->evaluateTile(&arrays.bindings, &tile, actual.data(), kKeys + 3);
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t key = 0; key < kKeys + 3; ++key) {
        uint8_t value = actual[row * (kKeys + 3) + key];
        if (key >= kKeys) {
          ASSERT_EQ(value, 7) << "seed " << firstSeed + i << " writes beyond its tile";
          continue;
        }
        ScalarSlot expected = evaluator.run(program.module->lookupSymbol<mask::PredicateOp>("f"),
                                            {tile.b, tile.h, tile.qBegin + row, tile.kvBegin + key * tile.kvStep});
        numTrue += expected;
        ++numPairs;
        if (value == expected)
          continue;
        compiled->dump();
        FAIL() << "seed " << firstSeed + i << " gives " << int(value) << " instead of " << expected << " at row " << row
               << ", key " << key << " of q " << tile.qBegin << ", kv " << tile.kvBegin << " step " << tile.kvStep;
      }
  }
  // Both values must occur often, or the comparison shows nothing.
  EXPECT_GT(numTrue, numPairs / 10);
  EXPECT_LT(numTrue, numPairs * 9 / 10);
}

TEST(RandomPrograms, unoptimised) {
  expectSameTiles(1, 150, {.optimizationLevel = 0, .functions = HostFunctionSet::Forward}, Narrowing::None);
}
TEST(RandomPrograms, vectorised) {
  expectSameTiles(10001, 40, {.optimizationLevel = 2, .functions = HostFunctionSet::Forward}, Narrowing::None);
}
TEST(RandomPrograms, narrowedAndVectorised) {
  expectSameTiles(20001, 40, {.optimizationLevel = 2, .functions = HostFunctionSet::Forward}, Narrowing::Narrowed);
}

} // namespace
} // namespace cpflex::test
