// Which indices are reported as loose?
#include "lib/Analysis/LoadBounds.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

namespace cpflex {
namespace {

class LoadBounds : public testing::Test {
protected:
  /// What is reported of the index `%i`, which `body` computes, of an axis `dim`: empty, "-", "+" or "-+".
  std::string looseness(const std::string &dim, const std::string &body, const RangeAssumptions &assumptions = {}) {
    mlir::MLIRContext ctx;
    ctx.loadDialect<mask::MaskDialect>();
    auto module = mlir::parseSourceString<mlir::ModuleOp>("mask.capture @a : i1 [\"" + dim + "\"]\n" + R"mlir(
        mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
          %zero = mask.constant 0 : i64
          %one = mask.constant 1 : i64
        )mlir" + body + "\n %r = mask.load @a[%i] : (i64) -> i1\n mask.yield %r : i1 }",
                                                          &ctx);
    if (!module)
      return "not parsed";
    std::string result;
    for (const LooseIndex &index : looseIndicesOf(*module, assumptions))
      result += std::string(index.mayBeNegative ? "-" : "") + (index.mayReachEnd ? "+" : "");
    return result;
  }
};

TEST_F(LoadBounds, coordinatesFitTheDimensionsThatTheyCount) {
  EXPECT_EQ(looseness("KV_LEN", "%i = mask.add %kv, %zero : i64"), "+");
  EXPECT_EQ(looseness("KV_LEN", "%i = mask.min %kv, %q : i64"), "");
  EXPECT_EQ(looseness("Q_LEN", "%i = mask.min %kv, %kv : i64"), "+");
}

TEST_F(LoadBounds, literalAxesAreComparedWithRanges) {
  EXPECT_EQ(looseness("8", "%c = mask.constant 8 : i64\n %i = mask.mod %kv, %c : i64"), "");
  EXPECT_EQ(looseness("7", "%c = mask.constant 8 : i64\n %i = mask.mod %kv, %c : i64"), "+");
}

TEST_F(LoadBounds, differencesMayBeNegative) {
  EXPECT_EQ(looseness("Q_LEN", "%i = mask.sub %q, %kv : i64"), "-");
  EXPECT_EQ(looseness("Q_LEN", "%d = mask.sub %q, %kv : i64\n %i = mask.max %d, %zero : i64"), "");
}

TEST_F(LoadBounds, clampsAndRemaindersByTheDimensionAreInside) {
  EXPECT_EQ(looseness("N", "%n = mask.dim \"N\" : i64\n %i = mask.mod %kv, %n : i64"), "");
  EXPECT_EQ(looseness("N", "%n = mask.dim \"N\" : i64\n %last = mask.sub %n, %one : i64\n"
                           "%x = mask.max %kv, %zero : i64\n %i = mask.min %x, %last : i64"),
            "-"); // where N is 0
}

TEST_F(LoadBounds, knownSizesDecide) {
  RangeAssumptions assumptions;
  assumptions.dimensions = {{"KV_LEN", 1024}, {"BLOCKS", 8}};
  const char *block = "%c = mask.constant 128 : i64\n %i = mask.floordiv %kv, %c : i64";
  EXPECT_EQ(looseness("BLOCKS", block), "+");
  EXPECT_EQ(looseness("BLOCKS", block, assumptions), "");
  assumptions.dimensions["KV_LEN"] = 1025;
  EXPECT_EQ(looseness("BLOCKS", block, assumptions), "+");
}

} // namespace
} // namespace cpflex
