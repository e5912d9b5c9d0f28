// Do ranges hold every value that random programs compute, and are they as tight as it takes?
#include "lib/Analysis/IntegerRanges.h"
#include "test/lib/Transforms/RandomProgram.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

TEST(IntegerRanges, holdEveryValueOfRandomPrograms) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  int64_t numValues = 0, numBounded = 0;
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    RandomProgram program(ctx, seed);
    bool isNarrow = seed % 2;
    IntegerRanges ranges(*program.module, isNarrow ? RangeAssumptions::forNarrowCode() : RangeAssumptions());
    for (int point = 0; point < 10; ++point) {
      Evaluator evaluator = program.evaluator(isNarrow ? int64_t(1) << 30 : INT64_MAX);
      evaluator.onValue = [&](mlir::Value value, ScalarSlot slot) {
        if (mask::toValueType(value.getType()) == ValueType::Float)
          return;
        IntegerRange range = ranges.of(value);
        ++numValues;
        numBounded += range != fullRange(value.getType());
        EXPECT_TRUE(range.contains(slot))
            << "seed " << seed << ": " << slot << " outside of " << range.lo << " .. " << range.hi;
      };
      evaluator.run(program.module->lookupSymbol<mask::PredicateOp>("f"), program.coordinates());
    }
  }
  // Ranges that say nothing would pass; most must say something.
  EXPECT_GT(numBounded, numValues / 2);
}

class IntegerRangesOf : public testing::Test {
protected:
  /// The range of `%r`, an i64 that `body` computes.
  IntegerRange rangeOf(const std::string &body, RangeAssumptions assumptions = {}) {
    ctx.loadDialect<mask::MaskDialect>();
    module = mlir::parseSourceString<mlir::ModuleOp>(R"mlir(
      mask.param @W : i64
      mask.capture @bytes : ui8 ["N"]
      mask.capture @facts : i64 ["N"] {lo = 5 : i64, hi = 11 : i64}
      mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
    )mlir" + body + "\n %c = mask.lt %r, %q : i64\n mask.yield %c : i1 }",
                                                     &ctx);
    if (!module)
      return {1, 0};
    auto predicate = module->lookupSymbol<mask::PredicateOp>("f");
    return IntegerRanges(*module, assumptions).of(predicate.getYieldedValue().getDefiningOp()->getOperand(0));
  }
  mlir::MLIRContext ctx;
  mlir::OwningOpRef<mlir::ModuleOp> module;
};

TEST_F(IntegerRangesOf, loadsFollowElementTypesFactsAndTheValueOutside) {
  EXPECT_EQ(rangeOf("%r = mask.load @bytes[%q] : (i64) -> i64"), (IntegerRange{0, 255}));
  EXPECT_EQ(rangeOf("%r = mask.load @facts[%q] : (i64) -> i64"), (IntegerRange{0, 10}));
}

TEST_F(IntegerRangesOf, positionsFollowTheAssumedLength) {
  EXPECT_EQ(rangeOf("%r = mask.sub %q, %kv : i64", RangeAssumptions::forNarrowCode()),
            (IntegerRange{-(1 << 30) + 1, (1 << 30) - 1}));
  EXPECT_EQ(rangeOf("%r = mask.dim \"KV_LEN\" : i64", RangeAssumptions::forNarrowCode()), (IntegerRange{0, 1 << 30}));
  EXPECT_EQ(rangeOf("%r = mask.dim \"H\" : i64"), (IntegerRange{0, 1 << 20}));
}

TEST_F(IntegerRangesOf, paramsAreUnknownUnlessAssumedSmall) {
  EXPECT_EQ(rangeOf("%r = mask.param_value @W : i64"), (IntegerRange{INT64_MIN, INT64_MAX}));
  EXPECT_EQ(rangeOf("%r = mask.param_value @W : i64", RangeAssumptions::forNarrowCode()),
            (IntegerRange{-(1 << 30), 1 << 30}));
}

TEST_F(IntegerRangesOf, anArmThatItsConditionComparesIsBounded) {
  const std::string known = "%8 = mask.constant 8 : i64\n %3 = mask.constant 3 : i64\n";
  const auto chosen = [&](const std::string &condition, const std::string &arms) {
    return rangeOf(known + "%t = mask." + condition + " : i64\n %r = mask.select %t, " + arms + " : i1, i64");
  };
  EXPECT_EQ(chosen("lt %q, %8", "%q, %3"), (IntegerRange{0, 7}));
  EXPECT_EQ(chosen("le %q, %8", "%q, %3"), (IntegerRange{0, 8}));
  EXPECT_EQ(chosen("ge %q, %8", "%3, %q"), (IntegerRange{0, 7}));
  EXPECT_EQ(chosen("gt %8, %q", "%q, %3"), (IntegerRange{0, 7}));
  EXPECT_EQ(chosen("ge %q, %8", "%q, %8").lo, 8);
  EXPECT_EQ(chosen("lt %8, %q", "%q, %8").lo, 8);
  EXPECT_EQ(chosen("lt %q, %3", "%8, %q").lo, 3);
  EXPECT_EQ(chosen("lt %3, %8", "%8, %3"), (IntegerRange{8, 8})); // the other arm is never taken
}

TEST_F(IntegerRangesOf, divisionByAnUnknownDivisor) {
  EXPECT_EQ(rangeOf("%x = mask.load @bytes[%q] : (i64) -> i64\n %w = mask.param_value @W : i64\n"
                    "%r = mask.floordiv %x, %w : i64"),
            (IntegerRange{-255, 255}));
}

TEST_F(IntegerRangesOf, sumsOfReductionsGrowWithTheCount) {
  EXPECT_EQ(rangeOf(R"mlir(
      %n = mask.constant 10 : i64
      %r = mask.reduce sum %n : i64 -> i64 {
      ^bb0(%i: i64):
        %x = mask.load @facts[%i] : (i64) -> i64
        mask.yield %x : i64
      }
    )mlir"),
            (IntegerRange{0, 100}));
}

TEST(NarrowCode, runsOnlyWithDimensionsAndParamsThatItAssumes) {
  Signature signature;
  signature.dims = {"B", "H", "HKV", "Q_LEN", "KV_LEN"};
  signature.params = {{"W", ValueType::Int, 0, false}, {"x", ValueType::Float, 0, false}};
  auto mayRun = [&](int64_t kvLength, ScalarSlot window) {
    int64_t dims[] = {1, 1, 1, 8, kvLength};
    ScalarSlot params[] = {window, UINT32_MAX};
    return mayRunNarrowCode(signature, {.captures = nullptr, .params = params, .dims = dims});
  };
  EXPECT_TRUE(mayRun(kLongestNarrowDimension, kLargestNarrowParam));
  EXPECT_FALSE(mayRun(kLongestNarrowDimension + 1, 0));
  EXPECT_FALSE(mayRun(8, kLargestNarrowParam + 1));
  EXPECT_FALSE(mayRun(8, -kLargestNarrowParam - 1));
}

} // namespace
} // namespace cpflex::test
