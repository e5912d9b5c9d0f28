// Does a residual equal its predicate wherever its assumptions hold?
#include "lib/Analysis/Residuals.h"
#include "lib/Analysis/ProgramSignature.h"
#include "lib/Transforms/Passes.h"
#include "lib/Transforms/TapeFromClassifier.h"
#include "test/lib/Transforms/RandomProgram.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

constexpr const char *kPredicate = R"mlir(
  mask.capture @doc : i32 ["KV_LEN"]
  mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
    %0 = mask.load @doc[%q] : (i64) -> i64
    %1 = mask.load @doc[%kv] : (i64) -> i64
    %2 = mask.eq %0, %1 : i64
    %3 = mask.le %kv, %q : i64
    %4 = mask.and %2, %3 : i1
    %5 = mask.lt %kv, %h : i64
    %6 = mask.or %4, %5 : i1
    %7 = mask.not %6 : i1
    mask.yield %7 : i1
  })mlir";

TEST(Residuals, areFunctionsByNumberWithTheirAssumptionsAndText) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  auto module = mlir::parseSourceString<mlir::ModuleOp>(kPredicate, &ctx);
  ASSERT_TRUE(module);
  auto result = tapeWithResiduals(module->lookupSymbol<mask::PredicateOp>("f"), signatureOf(*module));
  ASSERT_TRUE(mlir::succeeded(result));
  std::vector<std::string> texts;
  for (const Residual &residual : result->residuals)
    texts.push_back(residual.text);
  EXPECT_EQ(texts, (std::vector<std::string>{"kv > q", "kv >= h", "doc[q] != doc[kv]",
                                             "not (doc[q] == doc[kv] and kv <= q)"}));
  const auto &instructions = result->tape.instructions;
  const Residual &causal = result->residuals[0];
  EXPECT_TRUE(causal.isNegated);
  EXPECT_EQ(instructions[causal.result].operation, Operation::Le);
  // One document in the whole tile, and no key below h.
  ASSERT_EQ(causal.assumptions.size(), 2u);
  EXPECT_EQ(instructions[causal.assumptions[0].instruction].operation, Operation::Lt);
  EXPECT_FALSE(causal.assumptions[0].value);
  EXPECT_EQ(instructions[causal.assumptions[1].instruction].operation, Operation::Eq);
  EXPECT_TRUE(causal.assumptions[1].value);
}

TEST(Residuals, equalTheirRandomPredicatesWhereAssumptionsHold) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  int numResiduals = 0, numApplied = 0;
  for (uint64_t seed = 40001; seed <= 40600; ++seed) {
    RandomProgram program(ctx, seed);
    mlir::PassManager passes(&ctx);
    addSimplification(passes);
    addClassifierDerivation(passes);
    ASSERT_TRUE(mlir::succeeded(passes.run(*program.module)));
    auto predicate = program.module->lookupSymbol<mask::PredicateOp>("f");
    auto result = tapeWithResiduals(predicate, signatureOf(*program.module));
    ASSERT_TRUE(mlir::succeeded(result));
    EXPECT_LT(result->residuals.size(), static_cast<size_t>(kMostResiduals));
    for (auto [number, residual] : llvm::enumerate(result->residuals)) {
      ++numResiduals;
      std::string name = "f.residual" + std::to_string(number + 1);
      auto function = program.module->lookupSymbol<mask::PredicateOp>(name);
      ASSERT_TRUE(function) << "seed " << seed;
      auto expressions = residualsOf(predicate);
      ASSERT_EQ(expressions.size(), result->residuals.size());
      for (int point = 0; point < 8; ++point) {
        Evaluator evaluator = program.evaluator(INT64_MAX);
        std::vector<ScalarSlot> coordinates = program.coordinates();
        llvm::DenseMap<mlir::Value, ScalarSlot> values;
        evaluator.onValue = [&](mlir::Value value, ScalarSlot slot) { values[value] = slot; };
        ScalarSlot expected = evaluator.run(predicate, coordinates);
        evaluator.onValue = nullptr;
        bool holds = llvm::all_of(expressions[number].assumptions, [&](auto assumption) {
          return (values.lookup(assumption.first) != 0) == assumption.second;
        });
        if (!holds)
          continue;
        ++numApplied;
        EXPECT_EQ(evaluator.run(function, coordinates), expected) << "seed " << seed << ", " << name;
      }
    }
  }
  EXPECT_GT(numResiduals, 100);
  EXPECT_GT(numApplied, numResiduals);
}

} // namespace
} // namespace cpflex::test
