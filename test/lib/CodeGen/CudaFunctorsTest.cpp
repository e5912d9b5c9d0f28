// What the text of a functor looks like, and the errors of printing one.
#include "lib/CodeGen/Cuda/CudaFunctors.h"

#include "dialect/Mask/MaskDialect.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

class CudaFunctors : public testing::Test {
protected:
  CudaFunctors() {
    ctx.loadDialect<mask::MaskDialect>();
    ctx.getDiagEngine().registerHandler([&](mlir::Diagnostic &diagnostic) { message += diagnostic.str(); });
  }

  DeviceFunctions print(const std::string &text) {
    module = mlir::parseSourceString<mlir::ModuleOp>(text, &ctx);
    EXPECT_TRUE(module) << message;
    if (!module)
      return {};
    mlir::FailureOr<DeviceFunctions> functions = emitCudaFunctors(*module, "main");
    return mlir::succeeded(functions) ? *functions : DeviceFunctions();
  }

  mlir::MLIRContext ctx;
  mlir::OwningOpRef<mlir::ModuleOp> module;
  std::string message;
};

/// The lines of `text` from the one that contains `first` up to the end of that function.
std::string functionIn(const std::string &text, const std::string &first) {
  size_t begin = text.find(first);
  if (begin == std::string::npos)
    return "no '" + first + "' in:\n" + text;
  begin = text.rfind('\n', begin) + 1;
  return text.substr(begin, text.find("\n  }\n", begin) + 5 - begin);
}

TEST_F(CudaFunctors, usesTheUsersNamesAndLines) {
  DeviceFunctions functions = print(R"(
#line3 = loc("pack.cpf":3:10 to :20)
#line4 = loc("pack.cpf":4:10 to :20)
mask.capture @doc : i32 ["B", "KV_LEN"]
mask.param @W : i64 = 4 : i64
mask.predicate @main.mask(%b: i32, %h: i32, %q: i32 loc("q_idx"(#line3)), %kv: i32 loc("kv_idx"(#line3))) -> i1 {
  %0 = mask.load @doc[%b, %q] : (i32, i32) -> i32 loc("mine"(#line3))
  %1 = mask.load @doc[%b, %kv] : (i32, i32) -> i32 loc(#line3)
  %2 = mask.eq %0, %1 : i32 loc("same"(#line3))
  %3 = mask.sub %q, %kv : i32 loc(#line4)
  %4 = mask.to_int %3 : i32 -> i64 loc(#line4)
  %5 = mask.param_value @W : i64 loc(#line4)
  %6 = mask.lt %4, %5 : i64 loc(#line4)
  %7 = mask.and %2, %6 : i1 loc(#line4)
  mask.yield %7 : i1 loc(#line4)
}
mask.attention @main mask(@main.mask)
)");
  EXPECT_EQ(
      functionIn(functions.text, "bool mask("),
      "  static __device__ __forceinline__ bool mask(const Captures &captures, int b, int h, int q_idx, int kv_idx) {\n"
      "    const int mine = cpflex::elementAt<int>(captures.doc, b, q_idx); // pack.cpf:3\n"
      "    const bool same = mine == cpflex::elementAt<int>(captures.doc, b, kv_idx);\n"
      "    return same && ((long long)(q_idx - kv_idx) < cpflex::paramAt(&captures.params->W)); // pack.cpf:4\n"
      "  }\n");
  EXPECT_NE(functions.text.find("    cpflex::CaptureArgument doc; // i32 [B, KV_LEN]\n"
                                "    const Params *params;\n"
                                "    long long B, H, HKV, Q_LEN, KV_LEN; // dimensions\n"),
            std::string::npos)
      << functions.text;
  EXPECT_TRUE(functions.hasMask);
  EXPECT_TRUE(functions.maskReadsBatch);
  EXPECT_FALSE(functions.maskReadsHead);
  EXPECT_EQ(functions.scoreForm, ScoreForm::Identity);
  EXPECT_EQ(functions.numCaptures, 1);
  EXPECT_EQ(functions.numParams, 1);
  EXPECT_EQ(functions.numDims, 5);
}

TEST_F(CudaFunctors, printsScoresAndTheirGradients) {
  DeviceFunctions functions = print(R"(
mask.score @soft(%s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
  %c = mask.constant 2.000000e+01 : f32
  %0 = mask.div %s, %c : f32
  %1 = mask.tanh %0 : f32
  %2 = mask.mul %1, %c : f32
  mask.yield %2 : f32
}
mask.score_gradient @soft.gradient(%g: f32, %s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
  %0 = mask.mul %g, %s : f32
  mask.yield %0 : f32
}
mask.attention @main score(@soft)
)");
  EXPECT_EQ(functionIn(functions.text, "float score("), "  static __device__ __forceinline__ float score(const "
                                                        "Captures &captures, float s, int b, int h, int q, int kv) {\n"
                                                        "    return ops::tanh(s * 0.05f) * 20.0f; // -:7\n  }\n");
  EXPECT_EQ(
      functionIn(functions.text, "float scoreGradient("),
      "  static __device__ __forceinline__ float scoreGradient(const Captures &captures, float s, float gradient, "
      "int b, int h, int q, int kv) {\n    return gradient * s; // -:11\n  }\n");
  EXPECT_FALSE(functions.hasMask);
  EXPECT_EQ(functions.scoreForm, ScoreForm::General);
}

TEST_F(CudaFunctors, floatsOfMasksAreNeverContracted) {
  DeviceFunctions functions = print(R"(
mask.predicate @f(%b: i32, %h: i32, %q: i32, %kv: i32) -> i1 {
  %0 = mask.to_float %q : i32 -> f32
  %1 = mask.mul %0, %0 : f32
  %2 = mask.add %1, %0 : f32
  %3 = mask.constant 1.0 : f32
  %4 = mask.lt %2, %3 : f32
  mask.yield %4 : i1
}
mask.attention @main mask(@f)
)");
  EXPECT_NE(functions.text.find("ops::add(ops::mul(t, t), t) < 1.0f"), std::string::npos) << functions.text;
}

TEST_F(CudaFunctors, namesThatCppReservesAreChanged) {
  DeviceFunctions functions = print(R"(
mask.param @double : i64
mask.param @captures : i64
mask.predicate @f(%b: i64, %h: i64, %q: i64 loc("int"), %kv: i64 loc("int")) -> i1 {
  %0 = mask.param_value @double : i64
  %1 = mask.param_value @captures : i64
  %2 = mask.add %0, %1 : i64
  %3 = mask.sub %q, %kv : i64
  %4 = mask.lt %2, %3 : i64
  mask.yield %4 : i1
}
mask.attention @main mask(@f)
)");
  EXPECT_NE(functions.text.find("long long user_double;"), std::string::npos) << functions.text;
  EXPECT_NE(functions.text.find("long long user_captures;"), std::string::npos) << functions.text;
  EXPECT_NE(functions.text.find("paramAt(&captures.params->user_double)"), std::string::npos) << functions.text;
  EXPECT_NE(functions.text.find("int user_int, int user_int_2)"), std::string::npos) << functions.text;
}

TEST_F(CudaFunctors, divisionsByParamsOfAScoreAreByAUniformValue) {
  DeviceFunctions functions = print(R"(
mask.param @cap : f32
mask.score @f(%s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
  %0 = mask.param_value @cap : f32
  %1 = mask.div %s, %0 : f32
  %2 = mask.div %1, %s : f32
  mask.yield %2 : f32
}
mask.attention @main score(@f)
)");
  EXPECT_EQ(functionIn(functions.text, "float score("),
            "  static __device__ __forceinline__ float score(const Captures &captures, float s, int b, int h, int q, "
            "int kv) {\n"
            "    const float t = ops::divideByUniform(s, "
            "ops::floatFromBits((unsigned)cpflex::paramAt(&captures.params->cap))); // -:5\n"
            "    return ops::div(t, s); // -:7\n  }\n");
}

TEST_F(CudaFunctors, scattersSayHowTheirElementDependsOnThePair) {
  DeviceFunctions functions = print(R"(
mask.capture @one : f32 ["H"] {grad}
mask.capture @key : f32 ["KV_LEN"] {grad}
mask.capture @bias : f32 ["Q_LEN", "KV_LEN"] {grad}
mask.capture @both : f32 ["KV_LEN"] {grad}
mask.score @f(%s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
  %0 = mask.load @one[%h] : (i32) -> f32
  mask.yield %0 : f32
}
mask.score_gradient @f.gradient(%g: f32, %s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
  %wide = mask.to_int %q : i32 -> i64
  mask.scatter_add %g, @one[%h] : f32[i32]
  mask.scatter_add %s, @key[%kv] : f32[i32]
  mask.scatter_add %g, @bias[%wide, %kv] : f32[i64, i32]
  mask.scatter_add %g, @both[%q] : f32[i32]
  %n = mask.constant 3 : i32
  %sum = mask.reduce sum %n : i32 -> f32 {
  ^bb0(%i: i32):
    mask.scatter_add %g, @both[%i] : f32[i32]
    mask.yield %g : f32
  }
  mask.yield %g : f32
}
mask.attention @main score(@f)
)");
  EXPECT_NE(functions.text.find("kWalks[] = {cpflex::ScatterWalk::Constant, cpflex::ScatterWalk::Columns, "
                                "cpflex::ScatterWalk::Dense, cpflex::ScatterWalk::Rows, cpflex::ScatterWalk::Rows};"),
            std::string::npos)
      << functions.text << message;
  EXPECT_NE(functions.text.find("kTargets[] = {0, 1, 2, 3, 3};"), std::string::npos) << functions.text;
  EXPECT_EQ(
      functionIn(functions.text, "void scatter(cpflex::ScatterNumber<1>"),
      "  static __device__ __forceinline__ void scatter(cpflex::ScatterNumber<1>, const Captures &captures, float s, "
      "float gradient, int b, int h, int q, int kv, const Add &add) {\n"
      "    add(cpflex::denseOffset(captures.key, kv), s); // -:13\n  }\n");
  EXPECT_EQ(
      functionIn(functions.text, "void scatter(cpflex::ScatterNumber<4>"),
      "  static __device__ __forceinline__ void scatter(cpflex::ScatterNumber<4>, const Captures &captures, float s, "
      "float gradient, int b, int h, int q, int kv, const Add &add) {\n"
      "    float sum = 0; // -:17\n"
      "    for (int i = 0; i < 3; ++i) {\n"
      "      add(cpflex::denseOffset(captures.both, i), gradient); // -:19\n"
      "      sum = sum + gradient;\n    }\n  }\n");
  ASSERT_EQ(functions.gradients.size(), 4u);
  EXPECT_EQ(functions.gradients[2].capture, 2);
  EXPECT_TRUE(functions.gradients[2].isDense);
  EXPECT_FALSE(functions.gradients[3].isDense);
  EXPECT_EQ(functions.captureNames, (std::vector<std::string>{"one", "key", "bias", "both"}));
}

TEST_F(CudaFunctors, anEntryPointMustExist) {
  print("mask.attention @other");
  EXPECT_EQ(message, "no entry point is named 'main'");
}

TEST_F(CudaFunctors, whatTheResultDoesNotNeedIsLeftOut) {
  print(R"(
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.constant true
  %1 = mask.constant interval 7 : i64
  %2 = mask.lt %1, %1 : !mask.interval<i64>
  %3 = mask.reduce sum %q : i64 -> i64 {
  ^bb0(%i: i64):
    %4 = mask.constant interval 7 : i64
    mask.yield %i : i64
  }
  mask.yield %0 : i1
}
mask.attention @main mask(@f)
)");
  EXPECT_EQ(message, "");
}

} // namespace
} // namespace cpflex::test
