// Do expressions read as the language writes them, with the parentheses that Python needs?
#include "lib/Analysis/ExpressionText.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

namespace cpflex {
namespace {

/// The text of `%r`, a bool that `body` computes.
std::string textOf(const std::string &body, int mostOperations = 40) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  auto module = mlir::parseSourceString<mlir::ModuleOp>(R"mlir(
    mask.param @W : i64
    mask.capture @doc : i32 ["B", "KV_LEN"]
    mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
      %two = mask.constant 2 : i64
  )mlir" + body + "\n mask.yield %r : i1 }",
                                                        &ctx);
  if (!module)
    return "not parsed";
  return expressionText(module->lookupSymbol<mask::PredicateOp>("f").getYieldedValue(), mostOperations);
}

TEST(ExpressionText, loadsParamsAndComparisons) {
  EXPECT_EQ(textOf("%x = mask.load @doc[%b, %q] : (i64, i64) -> i64\n %w = mask.param_value @W : i64\n"
                   "%r = mask.lt %x, %w : i64"),
            "doc[b, q] < W");
}

TEST(ExpressionText, parenthesesFollowPrecedence) {
  EXPECT_EQ(textOf("%s = mask.sub %q, %kv : i64\n %t = mask.sub %h, %s : i64\n %m = mask.mul %t, %two : i64\n"
                   "%r = mask.eq %m, %b : i64"),
            "(h - (q - kv)) * 2 == b");
  EXPECT_EQ(textOf("%m = mask.mul %q, %two : i64\n %s = mask.sub %m, %kv : i64\n %t = mask.sub %s, %h : i64\n"
                   "%r = mask.eq %t, %b : i64"),
            "q * 2 - kv - h == b");
  EXPECT_EQ(textOf("%x = mask.lt %q, %kv : i64\n %y = mask.lt %kv, %h : i64\n %o = mask.or %x, %y : i1\n"
                   "%n = mask.not %o : i1\n %r = mask.and %n, %x : i1"),
            "not (q < kv or kv < h) and q < kv");
  EXPECT_EQ(textOf("%x = mask.lt %q, %kv : i64\n %y = mask.lt %kv, %h : i64\n %r = mask.eq %x, %y : i1"),
            "(q < kv) == (kv < h)");
  EXPECT_EQ(textOf("%x = mask.and %q, %two : i64\n %y = mask.shl %x, %two : i64\n %r = mask.eq %y, %b : i64"),
            "(q & 2) << 2 == b");
}

TEST(ExpressionText, functionsSelectsAndReductions) {
  EXPECT_EQ(textOf("%c = mask.lt %q, %kv : i64\n %a = mask.abs %q : i64\n %x = mask.select %c, %a, %two : i1, i64\n"
                   "%m = mask.max %x, %b : i64\n %r = mask.to_bool %m : i64 -> i1"),
            "bool(max(abs(q) if q < kv else 2, b))");
  EXPECT_EQ(textOf(R"mlir(
      %n = mask.dim "N" : i64
      %r = mask.reduce any %n : i64 -> i1 {
      ^bb0(%i: i64):
        %x = mask.load @doc[%b, %i] : (i64, i64) -> i64
        %e = mask.eq %x, %kv : i64
        mask.yield %e : i1
      })mlir"),
            "any(doc[b, i] == kv for i in range(N))");
}

TEST(ExpressionText, longExpressionsAreCut) {
  EXPECT_EQ(textOf("%x = mask.add %q, %two : i64\n %y = mask.mul %x, %x : i64\n %r = mask.lt %y, %kv : i64",
                   /*mostOperations=*/2),
            "... * ... < kv");
}

} // namespace
} // namespace cpflex
