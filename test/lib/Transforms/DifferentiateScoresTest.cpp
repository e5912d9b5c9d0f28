// Do gradients of score functions agree with finite differences, in the score and in the captured arrays?
#include "lib/Analysis/ScoreForm.h"
#include "lib/Transforms/Passes.h"
#include "test/lib/Transforms/Evaluator.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace cpflex::test {
namespace {

/// A module with one score function `@f` of body `body`, and its simplified gradient.
class DifferentiatedScore {
public:
  explicit DifferentiatedScore(const std::string &body) {
    ctx.loadDialect<mask::MaskDialect>();
    std::string text = R"mlir(
      mask.capture @table : f32 ["N", "H"] {grad}
      mask.capture @fixed : f32 ["N"]
      mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
    )mlir" + body + "\n mask.yield %r : f32 }";
    module = mlir::parseSourceString<mlir::ModuleOp>(text, &ctx);
    if (!module)
      return;
    mlir::PassManager passes(&ctx);
    addScoreDifferentiation(passes);
    if (mlir::failed(passes.run(*module)))
      module = nullptr;
    evaluator.captures["table"] = {{4, 2}, {}};
    for (float value : {0.3f, -0.7f, 1.1f, 0.25f, -1.3f, 0.9f, 0.6f, 2.1f})
      evaluator.captures["table"].elements.push_back(slotOf(value));
    evaluator.captures["fixed"] = {{4}, {slotOf(1.5f), slotOf(-0.5f), slotOf(0.75f), slotOf(2.0f)}};
    evaluator.dims = {{"N", 4}, {"H", 2}};
  }

  float score(float s, int64_t h, int64_t q, int64_t kv) {
    return floatOf(evaluator.run(module->lookupSymbol<mask::ScoreOp>("f"), {slotOf(s), 0, h, q, kv}));
  }
  float gradient(float incoming, float s, int64_t h, int64_t q, int64_t kv) {
    evaluator.gradients["table"].assign(8, 0.0f);
    return floatOf(evaluator.run(module->lookupSymbol<mask::ScoreGradientOp>("f.gradient"),
                                 {slotOf(incoming), slotOf(s), 0, h, q, kv}));
  }

  mlir::MLIRContext ctx;
  mlir::OwningOpRef<mlir::ModuleOp> module;
  Evaluator evaluator;
};

/// A step whose truncation and rounding errors balance in f32, and the error that it leaves.
constexpr float kStep = 4e-3f;
constexpr float kTolerance = 4e-3f;

/// Compares every gradient of `body` with central differences at points away from kinks.
void expectGradientsMatch(const std::string &body) {
  DifferentiatedScore f(body);
  ASSERT_TRUE(f.module) << body;
  for (float s : {0.43f, 1.7f, 2.6f})
    for (int64_t q : {0, 2})
      for (int64_t kv : {1, 3}) {
        const float incoming = 1.25f;
        float expected = incoming * (f.score(s + kStep, 1, q, kv) - f.score(s - kStep, 1, q, kv)) / (2 * kStep);
        float actual = f.gradient(incoming, s, 1, q, kv);
        EXPECT_NEAR(actual, expected, kTolerance * (1 + std::fabs(expected))) << body << " at s = " << s;
        std::vector<float> scattered = f.evaluator.gradients["table"];
        Array &table = f.evaluator.captures["table"];
        for (size_t i = 0; i < table.elements.size(); ++i) {
          ScalarSlot saved = table.elements[i];
          table.elements[i] = slotOf(floatOf(saved) + kStep);
          float above = f.score(s, 1, q, kv);
          table.elements[i] = slotOf(floatOf(saved) - kStep);
          float below = f.score(s, 1, q, kv);
          table.elements[i] = saved;
          float inElement = incoming * (above - below) / (2 * kStep);
          EXPECT_NEAR(scattered[i], inElement, kTolerance * (1 + std::fabs(inElement)))
              << body << " in element " << i << " at s = " << s;
        }
      }
}

TEST(DifferentiateScores, unaryOperationsMatchFiniteDifferences) {
  for (const char *op : {"neg", "abs", "exp", "exp2", "log", "log1p", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos"})
    expectGradientsMatch("%r = mask." + std::string(op) + " %s : f32");
}

TEST(DifferentiateScores, binaryOperationsMatchFiniteDifferencesInBothOperands) {
  for (const char *op : {"add", "sub", "mul", "div", "min", "max", "pow", "mod"}) {
    expectGradientsMatch("%c = mask.constant 1.5 : f32\n %r = mask." + std::string(op) + " %s, %c : f32");
    expectGradientsMatch("%c = mask.constant 1.5 : f32\n %r = mask." + std::string(op) + " %c, %s : f32");
    expectGradientsMatch(
        "%c = mask.load @fixed[%kv] : (i64) -> f32\n %a = mask.abs %c : f32\n %x = mask.add %a, %s : f32"
        "\n %r = mask." +
        std::string(op) + " %x, %s : f32");
  }
}

TEST(DifferentiateScores, loadsOfDifferentiatedCapturesScatter) {
  expectGradientsMatch("%t = mask.load @table[%kv, %h] : (i64, i64) -> f32\n %r = mask.add %s, %t : f32");
  expectGradientsMatch("%t = mask.load @table[%q, %h] : (i64, i64) -> f32\n %x = mask.mul %s, %t : f32"
                       "\n %r = mask.tanh %x : f32");
  expectGradientsMatch("%d = mask.sub %q, %kv : i64\n %t = mask.load @table[%d, %h] : (i64, i64) -> f32"
                       "\n %u = mask.load @table[%kv, %h] : (i64, i64) -> f32\n %x = mask.mul %u, %t : f32"
                       "\n %r = mask.add %s, %x : f32");
}

TEST(DifferentiateScores, selectsPassTheGradientToTheArmTaken) {
  expectGradientsMatch("%c = mask.lt %q, %kv : i64\n %x = mask.exp %s : f32\n %y = mask.mul %s, %s : f32"
                       "\n %r = mask.select %c, %x, %y : i1, f32");
}

TEST(DifferentiateScores, reductionsMatchFiniteDifferences) {
  for (const char *kind : {"sum", "min", "max"})
    expectGradientsMatch(R"mlir(
      %n = mask.dim "N" : i64
      %r = mask.reduce )mlir" +
                         std::string(kind) + R"mlir( %n : i64 -> f32 {
      ^bb0(%i: i64):
        %x = mask.load @table[%i, %h] : (i64, i64) -> f32
        %f = mask.load @fixed[%i] : (i64) -> f32
        %y = mask.mul %x, %s : f32
        %z = mask.add %y, %f : f32
        mask.yield %z : f32
      }
    )mlir");
}

TEST(DifferentiateScores, reductionsOverConstantIndicesMatchFiniteDifferences) {
  for (const char *kind : {"sum", "min", "max"})
    expectGradientsMatch(R"mlir(
      %n = mask.constant 3 : i64
      %r = mask.reduce )mlir" +
                         std::string(kind) + R"mlir( %n : i64 -> f32 {
      ^bb0(%i: i64):
        %x = mask.load @table[%i, %h] : (i64, i64) -> f32
        %y = mask.mul %x, %s : f32
        mask.yield %y : f32
      }
    )mlir");
}

TEST(DifferentiateScores, nestedReductionsMatchFiniteDifferences) {
  expectGradientsMatch(R"mlir(
      %n = mask.dim "N" : i64
      %k = mask.dim "H" : i64
      %r = mask.reduce sum %n : i64 -> f32 {
      ^bb0(%i: i64):
        %m = mask.reduce max %k : i64 -> f32 {
        ^bb0(%j: i64):
          %x = mask.load @table[%i, %j] : (i64, i64) -> f32
          mask.yield %x : f32
        }
        %y = mask.mul %m, %s : f32
        mask.yield %y : f32
      }
    )mlir");
}

TEST(DifferentiateScores, zeroGradientContributesZeroWhateverTheScore) {
  DifferentiatedScore f("%l = mask.log %s : f32\n %e = mask.exp %s : f32\n"
                        "%t = mask.load @table[%kv, %h] : (i64, i64) -> f32\n %x = mask.mul %l, %t : f32\n"
                        "%r = mask.mul %x, %e : f32");
  ASSERT_TRUE(f.module);
  const float infinity = std::numeric_limits<float>::infinity();
  for (float s : {infinity, -infinity, std::nanf(""), -1.0f, 1e38f}) {
    EXPECT_EQ(f.gradient(0.0f, s, 1, 0, 1), 0.0f) << s;
    for (float element : f.evaluator.gradients["table"])
      EXPECT_EQ(element, 0.0f) << s;
  }
}

TEST(DifferentiateScores, armNotTakenContributesZeroWhereItsDerivativeIsNotFinite) {
  // The square root of a negative score is NaN, and so is its derivative.
  DifferentiatedScore f("%zero = mask.constant 0.0 : f32\n %c = mask.ge %s, %zero : f32\n %x = mask.sqrt %s : f32\n"
                        "%r = mask.select %c, %x, %s : i1, f32");
  ASSERT_TRUE(f.module);
  EXPECT_EQ(f.gradient(1.5f, -2.0f, 0, 0, 0), 1.5f);
  EXPECT_FLOAT_EQ(f.gradient(1.5f, 4.0f, 0, 0, 0), 0.375f);
}

TEST(DifferentiateScores, nanReachesTheGradientOfAnAllowedPair) {
  DifferentiatedScore f("%r = mask.exp %s : f32");
  ASSERT_TRUE(f.module);
  EXPECT_TRUE(std::isnan(f.gradient(1.0f, std::nanf(""), 0, 0, 0)));
}

TEST(ScoreForm, tellsHowScoreFunctionsDependOnTheScore) {
  auto formOf = [](const char *body) {
    DifferentiatedScore f(body);
    return scoreFormOf(f.module->lookupSymbol<mask::ScoreOp>("f"));
  };
  const char *bias = "%t = mask.load @table[%kv, %h] : (i64, i64) -> f32\n";
  EXPECT_EQ(formOf("%z = mask.constant -0.0 : f32\n %r = mask.add %s, %z : f32"), ScoreForm::Identity);
  EXPECT_EQ(formOf((std::string(bias) + "%r = mask.add %t, %s : f32").c_str()), ScoreForm::Additive);
  EXPECT_EQ(formOf((std::string(bias) + "%r = mask.sub %t, %s : f32").c_str()), ScoreForm::Scaled);
  EXPECT_EQ(formOf((std::string(bias) + "%r = mask.mul %t, %s : f32").c_str()), ScoreForm::Scaled);
  EXPECT_EQ(formOf("%i = mask.constant 0xFF800000 : f32\n %c = mask.lt %q, %kv : i64\n"
                   "%r = mask.select %c, %i, %s : i1, f32"),
            ScoreForm::Scaled);
  EXPECT_EQ(formOf("%r = mask.mul %s, %s : f32"), ScoreForm::General);
  EXPECT_EQ(formOf("%r = mask.tanh %s : f32"), ScoreForm::General);
}

} // namespace
} // namespace cpflex::test
