// What compiled host code does: loads, strides, reductions, scores, gradients, errors, and that its inner loops are
// vector code.
#include "lib/Jit/HostJit.h"
#include "test/lib/Jit/BoundArrays.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <thread>

namespace cpflex::test {
namespace {

class HostJit : public testing::Test {
protected:
  HostJit() { ctx.loadDialect<mask::MaskDialect>(); }

  void parse(const std::string &text) {
    module = mlir::parseSourceString<mlir::ModuleOp>(text, &ctx);
    ASSERT_TRUE(module);
  }
  HostFunctions compile(const JitOptions &options = {}) {
    mlir::FailureOr<HostFunctions> functions = compileHost(*module, "main", options);
    EXPECT_TRUE(mlir::succeeded(functions));
    return mlir::succeeded(functions) ? *functions : HostFunctions();
  }

  mlir::MLIRContext ctx;
  mlir::OwningOpRef<mlir::ModuleOp> module;
};

constexpr char kDocumentCausal[] = R"(
mask.capture @doc : i32 ["B", "KV_LEN"] {sorted}
mask.predicate @main.mask(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.load @doc[%b, %q] : (i64, i64) -> i64
  %1 = mask.load @doc[%b, %kv] : (i64, i64) -> i64
  %2 = mask.eq %0, %1 : i64
  %3 = mask.le %kv, %q : i64
  %4 = mask.and %2, %3 : i1
  mask.yield %4 : i1
}
mask.score @main.score(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %c = mask.constant 20.0 : f32
  %0 = mask.div %s, %c : f32
  %1 = mask.tanh %0 : f32
  %2 = mask.mul %1, %c : f32
  mask.yield %2 : f32
}
mask.attention @main mask(@main.mask) score(@main.score)
)";

/// The instructions of one function of an assembly text.
std::string functionIn(const std::string &assembly, const std::string &name) {
  size_t begin = assembly.find("\n" + name + ":");
  EXPECT_NE(begin, std::string::npos) << "no function '" << name << "'";
  return begin == std::string::npos ? "" : assembly.substr(begin, assembly.find(".cfi_endproc", begin) - begin);
}

TEST_F(HostJit, innerLoopsAreVectorCodeWithoutCalls) {
  parse(kDocumentCausal);
  mlir::FailureOr<std::string> assembly = emitAssembly(*module, "main");
  ASSERT_TRUE(mlir::succeeded(assembly));
  std::string mask = functionIn(*assembly, "evaluateTile"), score = functionIn(*assembly, "score");
  for (const std::string &function : {mask, score})
    EXPECT_EQ(function.find("call"), std::string::npos) << function;
#if defined(__x86_64__)
  // Packed comparisons of ids and positions, packed products of scores.
  EXPECT_NE(mask.find("pcmp"), std::string::npos) << mask;
  EXPECT_NE(score.find("mulps"), std::string::npos) << score;
  EXPECT_NE(score.find("divps"), std::string::npos) << score;
#endif
}

TEST_F(HostJit, everyFunctionOfTheTableVectorises) {
  for (const char *mnemonic :
       {"exp", "exp2", "log", "log1p", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos", "floor", "abs"}) {
    parse(std::string("mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {\n  %0 = mask.") + mnemonic +
          " %s : f32\n  mask.yield %0 : f32\n}\nmask.attention @main score(@f)\n");
    mlir::FailureOr<std::string> assembly = emitAssembly(*module, "main");
    ASSERT_TRUE(mlir::succeeded(assembly));
    std::string score = functionIn(*assembly, "score");
    EXPECT_EQ(score.find("call"), std::string::npos) << mnemonic << score;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
      EXPECT_TRUE(score.find("%ymm") != std::string::npos || score.find("%zmm") != std::string::npos)
          << mnemonic << score;
#endif
  }
}

/// Every float operation on edge values, compiled for vectors, against the function of Operations.h.
TEST_F(HostJit, floatOperationsEqualTheTable) {
  const float edges[] = {0.0f,  -0.0f,   1.0f, -1.0f,    2.5f,      -2.5f, 0x1p-149f,  -0x1p-130f, 1e30f,  -1e30f,
                         88.5f, -103.5f, 0.3f, INFINITY, -INFINITY, NAN,   1234567.0f, 0.1f,       0x1p29f};
  constexpr int kNumEdges = std::size(edges);
  auto check = [&](const char *mnemonic, auto function) {
    parse(std::string("mask.capture @y : f32 [\"N\"]\n"
                      "mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {\n"
                      "  %y = mask.load @y[%kv] : (i64) -> f32\n  %0 = mask.") +
          mnemonic + "\n  mask.yield %0 : f32\n}\nmask.attention @main score(@f)\n");
    HostFunctions functions = compile({.functions = HostFunctionSet::Forward});
    Evaluator evaluator;
    Array y{{kNumEdges}, {}};
    for (float edge : edges)
      y.elements.push_back(slotOf(edge));
    evaluator.captures["y"] = y;
    evaluator.dims["N"] = kNumEdges;
    BoundArrays arrays(*module, evaluator);
    std::vector<float> scores;
    for (float x : edges)
      scores.insert(scores.end(), kNumEdges, x);
    TileCoordinates tile{0, 0, 0, kNumEdges, 1, 0, kNumEdges, 1};
    functions.score(&arrays.bindings, &tile, scores.data(), kNumEdges);
    for (int i = 0; i < kNumEdges; ++i)
      for (int j = 0; j < kNumEdges; ++j) {
        float expected = function(edges[i], edges[j]), actual = scores[i * kNumEdges + j];
        EXPECT_TRUE(slotOf(expected) == slotOf(actual) || (expected != expected && actual != actual))
            << mnemonic << " of " << edges[i] << ", " << edges[j] << " gives " << actual << " instead of " << expected;
      }
  };
#define CHECK_UNARY(mnemonic) check(#mnemonic " %s : f32", [](float x, float) { return ops::mnemonic(x); })
#define CHECK_BINARY(mnemonic, function)                                                                               \
  check(#mnemonic " %s, %y : f32", [](float x, float y) { return ops::function(x, y); })
  CHECK_BINARY(add, add);
  CHECK_BINARY(sub, sub);
  CHECK_BINARY(mul, mul);
  CHECK_BINARY(div, div);
  CHECK_BINARY(floordiv, floorDiv);
  CHECK_BINARY(mod, mod);
  CHECK_BINARY(min, min);
  CHECK_BINARY(max, max);
  CHECK_BINARY(pow, pow);
  CHECK_UNARY(neg);
  CHECK_UNARY(abs);
  CHECK_UNARY(exp);
  CHECK_UNARY(exp2);
  CHECK_UNARY(log);
  CHECK_UNARY(log1p);
  CHECK_UNARY(tanh);
  CHECK_UNARY(sigmoid);
  CHECK_UNARY(sqrt);
  CHECK_UNARY(rsqrt);
  CHECK_UNARY(sin);
  CHECK_UNARY(cos);
  CHECK_UNARY(floor);
}

TEST_F(HostJit, elementsOfEveryTypeAndNothingOutside) {
  struct Case {
    const char *type, *value;
    std::vector<ScalarSlot> bits;
    std::vector<float> expected;
  };
  const Case cases[] = {
      {"i8", "i64", {0x80, 0x7f, 0xff}, {-128, 127, -1}},
      {"ui8", "i64", {0x80, 0x7f, 0xff}, {128, 127, 255}},
      {"i16", "i64", {0x8000, 5, 0xffff}, {-32768, 5, -1}},
      {"ui16", "i64", {0x8000, 5, 0xffff}, {32768, 5, 65535}},
      {"i32", "i64", {0x80000000, 5, 0xffffffff}, {-2147483648.0f, 5, -1}},
      {"ui32", "ui32", {0x80000000, 5, 0xffffff00}, {2147483648.0f, 5, 4294967040.0f}},
      {"i64", "i64", {-(ScalarSlot(1) << 40), 5, 7}, {-0x1p40f, 5, 7}},
      {"ui64", "i64", {-1, 5, 7}, {-1, 5, 7}},
      {"i1", "i1", {0, 1, 2}, {0, 1, 1}},
      {"f16", "f32", {0x3c00, 0xc000, 0x0001}, {1, -2, 0x1p-24f}},
      {"bf16", "f32", {0x3f80, 0xc000, 0x7f80}, {1, -2, INFINITY}},
      {"f32", "f32", {slotOf(1.5f), slotOf(-0.25f), slotOf(3e38f)}, {1.5f, -0.25f, 3e38f}},
  };
  for (const Case &test : cases) {
    std::string conversion = std::string(test.value) == "f32" ? "  mask.yield %0 : f32\n"
                                                              : std::string("  %1 = mask.to_float %0 : ") + test.value +
                                                                    " -> f32\n  mask.yield %1 : f32\n";
    parse(std::string("mask.capture @c : ") + test.type + " [\"N\"]\n" +
          "mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {\n"
          "  %0 = mask.load @c[%kv] : (i64) -> " +
          test.value + "\n" + conversion + "}\nmask.attention @main score(@f)\n");
    HostFunctions functions = compile({.functions = HostFunctionSet::Forward});
    Evaluator evaluator;
    evaluator.captures["c"] = {{3}, test.bits};
    BoundArrays arrays(*module, evaluator);
    constexpr int kKeys = 40;
    float scores[kKeys];
    std::fill_n(scores, kKeys, 99.0f);
    TileCoordinates tile{0, 0, 0, 1, 1, -2, kKeys, 1};
    functions.score(&arrays.bindings, &tile, scores, kKeys);
    for (int j = 0; j < kKeys; ++j)
      EXPECT_EQ(scores[j], j >= 2 && j < 5 ? test.expected[j - 2] : 0.0f) << test.type << " at " << j - 2;
  }
}

TEST_F(HostJit, readsThroughStridesAndBroadcasts) {
  parse(R"(
mask.capture @bias : f32 ["B", "Q_LEN", "KV_LEN"]
mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.load @bias[%b, %q, %kv] : (i64, i64, i64) -> f32
  %1 = mask.add %s, %0 : f32
  mask.yield %1 : f32
}
mask.attention @main score(@f)
)");
  HostFunctions functions = compile();
  // [q, kv] of a transposed array, the same for every batch row.
  constexpr int kQ = 3, kKV = 21;
  std::vector<float> memory(kQ * kKV);
  for (int q = 0; q < kQ; ++q)
    for (int kv = 0; kv < kKV; ++kv)
      memory[kv * kQ + q] = 100.0f * q + kv;
  CaptureView view{memory.data(), {4, kQ, kKV}, {0, 1, kQ}, ElementType::F32, 3};
  int64_t dims[kNumBuiltinDims] = {4, 1, 1, kQ, kKV};
  Bindings bindings{&view, nullptr, dims};
  std::vector<float> scores(kQ * kKV, 1000.0f);
  TileCoordinates tile{3, 0, 0, kQ, 1, 0, kKV, 1};
  functions.score(&bindings, &tile, scores.data(), kKV);
  for (int q = 0; q < kQ; ++q)
    for (int kv = 0; kv < kKV; ++kv)
      EXPECT_EQ(scores[q * kKV + kv], 1000.0f + 100.0f * q + kv);
}

TEST_F(HostJit, reductionsOfNothingAndOfMany) {
  parse(R"(
mask.capture @x : f32 ["N"]
mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %sum = mask.reduce sum %kv : i64 -> f32 {
  ^bb0(%i: i64):
    %e = mask.load @x[%i] : (i64) -> f32
    mask.yield %e : f32
  }
  %min = mask.reduce min %kv : i64 -> f32 {
  ^bb0(%i: i64):
    %e = mask.load @x[%i] : (i64) -> f32
    mask.yield %e : f32
  }
  %max = mask.reduce max %kv : i64 -> i64 {
  ^bb0(%i: i64):
    %e = mask.load @x[%i] : (i64) -> f32
    %n = mask.to_int %e : f32 -> i64
    mask.yield %n : i64
  }
  %largest = mask.to_float %max : i64 -> f32
  %c = mask.constant 100.0 : f32
  %0 = mask.mul %sum, %c : f32
  %1 = mask.add %0, %min : f32
  %2 = mask.mul %1, %c : f32
  %3 = mask.add %2, %largest : f32
  mask.yield %3 : f32
}
mask.attention @main score(@f)
)");
  HostFunctions functions = compile();
  Evaluator evaluator;
  evaluator.captures["x"] = {{3}, {slotOf(2.0f), slotOf(-3.0f), slotOf(5.0f)}};
  BoundArrays arrays(*module, evaluator);
  float scores[4] = {};
  TileCoordinates tile{0, 0, 0, 1, 1, 0, 4, 1};
  functions.score(&arrays.bindings, &tile, scores, 4);
  const float expected[] = {0.0f, (2 * 100.0f + 2) * 100 + 2, (-1 * 100.0f - 3) * 100 + 2, (4 * 100.0f - 3) * 100 + 5};
  for (int kv = 0; kv < 4; ++kv)
    EXPECT_EQ(scores[kv], expected[kv]) << kv;
}

constexpr char kGradient[] = R"(
mask.capture @slope : f32 ["H"] {grad}
mask.capture @table : f32 ["4"] {grad}
mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  mask.yield %s : f32
}
mask.score_gradient @f.gradient(%g: f32, %s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.div %g, %s : f32
  %distance = mask.sub %q, %kv : i64
  %d = mask.to_float %distance : i64 -> f32
  %1 = mask.mul %g, %d : f32
  mask.scatter_add %1, @slope[%h] : f32[i64]
  mask.scatter_add %g, @table[%distance] : f32[i64]
  %2 = mask.exp %s : f32
  %3 = mask.mul %g, %2 : f32
  mask.yield %3 : f32
}
mask.attention @main score(@f)
)";

TEST_F(HostJit, gradientsAreScatteredIntoDenseArrays) {
  parse(kGradient);
  HostFunctions functions = compile();
  ASSERT_TRUE(functions.scoreGradient);
  Evaluator evaluator;
  evaluator.captures["slope"] = {{2}, {slotOf(1.0f), slotOf(2.0f)}};
  evaluator.captures["table"] = {{4}, {0, 0, 0, 0}};
  BoundArrays arrays(*module, evaluator);
  // More keys than one stretch, and a row stride of its own.
  constexpr int64_t kQ = 3, kKV = 600, kStride = 607;
  std::vector<float> scores(kQ * kStride), gradients(kQ * kStride, -7.0f);
  for (int64_t i = 0; i < kQ; ++i)
    for (int64_t j = 0; j < kKV; ++j) {
      scores[i * kStride + j] = float((i * 31 + j * 7) % 13) * 0.25f;
      gradients[i * kStride + j] = float((i * 5 + j) % 9) - 4.0f;
    }
  // A pair that does not count: its derivative is not finite.
  scores[5] = INFINITY;
  gradients[5] = 0.0f;
  std::vector<float> expected = gradients;
  double slope = 0;
  float table[4] = {};
  TileCoordinates tile{0, 1, 2, kQ, 1, 0, kKV, 1};
  for (int64_t i = 0; i < kQ; ++i)
    for (int64_t j = 0; j < kKV; ++j) {
      float g = gradients[i * kStride + j];
      int64_t distance = tile.qBegin + i - j;
      slope += double(g) * double(distance);
      if (distance >= 0 && distance < 4)
        table[distance] += g;
      expected[i * kStride + j] = g == 0 ? 0.0f : g * ops::exp(scores[i * kStride + j]);
    }
  float slopeGradient[2] = {10.0f, 20.0f}, tableGradient[4] = {};
  float *captureGradients[] = {slopeGradient, tableGradient};
  std::vector<float> again = gradients;
  functions.scoreGradient(&arrays.bindings, &tile, scores.data(), gradients.data(), kStride, captureGradients);
  for (int64_t i = 0; i < kQ; ++i)
    for (int64_t j = 0; j < kStride; ++j)
      ASSERT_EQ(gradients[i * kStride + j], expected[i * kStride + j]) << i << ", " << j;
  EXPECT_EQ(slopeGradient[0], 10.0f);
  EXPECT_EQ(slopeGradient[1], 20.0f + slope);
  for (int k = 0; k < 4; ++k)
    EXPECT_EQ(tableGradient[k], table[k]) << k;

  // Arrays whose gradient is not wanted are left out.
  float *unwanted[] = {nullptr, nullptr};
  std::vector<float> withoutTable = again;
  functions.scoreGradient(&arrays.bindings, &tile, scores.data(), again.data(), kStride, unwanted);
  EXPECT_EQ(again, gradients);
  functions.scoreGradient(&arrays.bindings, &tile, scores.data(), withoutTable.data(), kStride, nullptr);
  EXPECT_EQ(withoutTable, gradients);
}

TEST_F(HostJit, gradientsAreLeftOutWhenNotAskedFor) {
  parse(kGradient);
  HostFunctions functions = compile({.functions = HostFunctionSet::Forward});
  EXPECT_TRUE(functions.score);
  EXPECT_FALSE(functions.scoreGradient);
}

TEST_F(HostJit, lengthsNear2To31) {
  parse(R"(
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.mul %q, %kv : i64
  %1 = mask.constant 4611686018427387904 : i64
  %2 = mask.lt %0, %1 : i64
  mask.yield %2 : i1
}
mask.attention @main mask(@f)
)");
  HostFunctions functions = compile();
  uint8_t out[20];
  int64_t dims[kNumBuiltinDims] = {};
  Bindings bindings{nullptr, nullptr, dims};
  TileCoordinates tile{0, 0, int64_t(1) << 31, 1, 1, (int64_t(1) << 31) - 10, 20, 1};
  functions.evaluateTile(&bindings, &tile, out, 20);
  for (int j = 0; j < 20; ++j)
    EXPECT_EQ(out[j], j < 10) << j;
}

TEST_F(HostJit, objectsAreLoadedWithoutACompiler) {
  parse(kDocumentCausal);
  mlir::FailureOr<HostObject> object = compileHostObject(*module, "main");
  ASSERT_TRUE(mlir::succeeded(object));
  EXPECT_TRUE(object->hasEvaluateTile && object->hasScore);
  HostFunctions functions;
  std::string error;
  ASSERT_TRUE(loadHostObject(*object, functions, error)) << error;
  Evaluator evaluator;
  evaluator.captures["doc"] = {{1, 4}, {0, 0, 1, 1}};
  BoundArrays arrays(*module, evaluator);
  uint8_t out[16];
  TileCoordinates tile{0, 0, 0, 4, 1, 0, 4, 1};
  functions.evaluateTile(&arrays.bindings, &tile, out, 4);
  EXPECT_EQ(std::vector<int>(out, out + 16), (std::vector<int>{1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1}));

  HostObject damaged = *object;
  damaged.bytes.resize(damaged.bytes.size() / 2);
  EXPECT_FALSE(loadHostObject(damaged, functions, error));
  EXPECT_EQ(error.rfind("host code cannot be loaded: ", 0), 0u) << error;
  EXPECT_FALSE(functions.evaluateTile);
}

TEST_F(HostJit, anEntryPointWithoutFunctionsNeedsNoCode) {
  parse("mask.attention @main");
  HostFunctions functions = compile();
  EXPECT_FALSE(functions.evaluateTile || functions.score || functions.scoreGradient);
}

TEST_F(HostJit, anEntryPointMustExist) {
  parse("mask.attention @other");
  std::string message;
  mlir::ScopedDiagnosticHandler handler(&ctx, [&](mlir::Diagnostic &diagnostic) { message = diagnostic.str(); });
  EXPECT_TRUE(mlir::failed(compileHost(*module, "main")));
  EXPECT_EQ(message, "no entry point is named 'main'");
}

TEST_F(HostJit, textOfTheLoweredModule) {
  parse(kDocumentCausal);
  mlir::FailureOr<std::string> text = emitLLVM(*module, "main");
  ASSERT_TRUE(mlir::succeeded(text));
  EXPECT_NE(text->find("llvm.func @evaluateTile("), std::string::npos);
  EXPECT_NE(text->find("llvm.func @score("), std::string::npos);
}

TEST_F(HostJit, compilesInManyThreads) {
  std::vector<std::thread> threads;
  std::atomic<int> numRight = 0;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      mlir::MLIRContext own(mlir::MLIRContext::Threading::DISABLED);
      own.loadDialect<mask::MaskDialect>();
      auto program = mlir::parseSourceString<mlir::ModuleOp>(kDocumentCausal, &own);
      mlir::FailureOr<HostFunctions> functions = compileHost(*program, "main");
      if (mlir::failed(functions))
        return;
      float scores[3] = {1.0f, 10.0f, 1e9f};
      TileCoordinates tile{0, 0, 0, 1, 1, 0, 3, 1};
      Bindings bindings;
      functions->score(&bindings, &tile, scores, 3);
      numRight += scores[1] == ops::tanh(0.5f) * 20.0f && scores[2] == 20.0f;
    });
  for (std::thread &thread : threads)
    thread.join();
  EXPECT_EQ(numRight, 4);
}

} // namespace
} // namespace cpflex::test
