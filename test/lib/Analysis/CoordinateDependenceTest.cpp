// Which coordinates do the values of a function depend on?
#include "lib/Analysis/CoordinateDependence.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

namespace cpflex {
namespace {

TEST(CoordinateDependence, followsIndicesSelectsAndReductions) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  auto module = mlir::parseSourceString<mlir::ModuleOp>(R"mlir(
    mask.capture @table : f32 ["H", "N"]
    mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
      %n = mask.dim "N" : i64
      %slope = mask.load @table[%h, %n] : (i64, i64) -> f32
      %d = mask.sub %q, %kv : i64
      %bias = mask.load @table[%h, %d] : (i64, i64) -> f32
      %sum = mask.reduce sum %n : i64 -> f32 {
      ^bb0(%i: i64):
        %e = mask.load @table[%b, %i] : (i64, i64) -> f32
        mask.yield %e : f32
      }
      %x = mask.mul %slope, %bias : f32
      %y = mask.mul %x, %sum : f32
      %r = mask.add %s, %y : f32
      mask.yield %r : f32
    })mlir",
                                                        &ctx);
  ASSERT_TRUE(module);
  auto score = module->lookupSymbol<mask::ScoreOp>("f");
  CoordinateDependence dependence(score);
  std::vector<CoordinateSet> loads;
  score.walk([&](mask::LoadOp op) { loads.push_back(dependence.of(op.getResult())); });
  ASSERT_EQ(loads.size(), 3u);
  EXPECT_EQ(loads[0], (CoordinateSet{.h = true}));
  EXPECT_EQ(loads[1], (CoordinateSet{.h = true, .q = true, .kv = true}));
  EXPECT_EQ(loads[2], (CoordinateSet{.b = true, .induction = true}));
  score.walk([&](mask::ReduceOp op) { EXPECT_EQ(dependence.of(op.getResult()), (CoordinateSet{.b = true})); });
  EXPECT_EQ(dependence.of(score.getYieldedValue()),
            (CoordinateSet{.b = true, .h = true, .q = true, .kv = true, .score = true}));
}

} // namespace
} // namespace cpflex
