// Does NVRTC accept the text of functors? Random programs and every function of the table, without attention around
// them.
#include "lib/CodeGen/Cuda/CudaFunctors.h"
#include "lib/Transforms/Passes.h"
#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Cuda/KernelAssembly.h"
#include "test/lib/Transforms/RandomProgram.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

constexpr char kIncludes[] =
    "#include \"runtime/contract/Operations.h\"\n#include \"runtime/contract/CaptureArgument.h\"\n"
    "#include \"runtime/contract/KernelArguments.h\"\n";

class FunctorsCompile : public testing::Test {
protected:
  FunctorsCompile() { ctx.loadDialect<mask::MaskDialect>(); }
  void SetUp() override {
    auto loaded = Nvrtc::load();
    if (!loaded)
      GTEST_SKIP() << loaded.status().message();
    nvrtc = *loaded;
  }

  /// Compiles functors, and a kernel that calls each.
  void expectCompiles(std::string text, const std::string &kernelBody) {
    KernelSource source;
    source.text =
        kIncludes + text +
        "extern \"C\" __global__ void probe(const void *captures, float *out, int b, int h, int q, int kv) {\n" +
        kernelBody + "}\n";
    source.functionName = "probe";
    source.architecture = "sm_80";
    source.key = "functors";
    StatusOr<KernelImage> image = compileKernel(source, *nvrtc);
    ASSERT_TRUE(image) << image.status().message() << "\n" << source.text;
    EXPECT_FALSE(image->cubin.empty());
  }

  mlir::MLIRContext ctx;
  std::shared_ptr<const Nvrtc> nvrtc;
};

TEST_F(FunctorsCompile, randomMasks) {
  constexpr int kNumPrograms = 24;
  std::string text, body;
  for (int i = 0; i < kNumPrograms; ++i) {
    RandomProgram program(ctx, 50001 + i);
    mlir::OpBuilder builder(&ctx);
    builder.setInsertionPointToEnd(program.module->getBody());
    mask::AttentionOp::create(builder, builder.getUnknownLoc(), builder.getStringAttr("main"),
                              mlir::FlatSymbolRefAttr::get(&ctx, "f"), mlir::FlatSymbolRefAttr(),
                              mlir::FlatSymbolRefAttr(), mlir::FloatAttr(), mlir::UnitAttr());
    if (i % 2 == 0) {
      mlir::PassManager passes(&ctx);
      addSimplification(passes);
      addIntegerNarrowing(passes);
      ASSERT_TRUE(mlir::succeeded(passes.run(*program.module)));
    }
    std::string name = "p" + std::to_string(i);
    text += "namespace " + name + " {\n" + emitCudaFunctors(*program.module, "main")->text + "}\n";
    body += "  out[" + std::to_string(i) + "] = " + name + "::Program::mask(*(const " + name +
            "::Program::Captures *)captures, b, h, q, kv);\n";
  }
  expectCompiles(text, body);
}

TEST_F(FunctorsCompile, everyFunctionOnFloatsAndEveryElementType) {
  std::string score =
      "mask.score @f(%s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {\n  %v0 = mask.add %s, %s : f32\n";
  int last = 0;
  auto append = [&](const std::string &operation, const std::string &type) {
    score += "  %v" + std::to_string(last + 1) + " = mask." + operation + " : " + type + "\n";
    ++last;
  };
  auto value = [&](int back) { return "%v" + std::to_string(last - back); };
  for (const char *mnemonic :
       {"neg", "abs", "exp", "exp2", "log", "log1p", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos", "floor"})
    append(std::string(mnemonic) + " " + value(0), "f32");
  for (const char *mnemonic : {"add", "sub", "mul", "div", "floordiv", "mod", "min", "max", "pow"})
    append(std::string(mnemonic) + " " + value(0) + ", %s", "f32");
  std::string captures;
  for (const char *type : {"i1", "i8", "ui8", "i16", "ui16", "i32", "ui32", "i64", "ui64", "f16", "bf16", "f32"}) {
    std::string name = std::string("c_") + type, loaded = std::string(type) == "i1"          ? "i1"
                                                          : std::string(type) == "ui32"      ? "ui32"
                                                          : type[0] == 'f' || type[0] == 'b' ? "f32"
                                                                                             : "i64";
    captures += "mask.capture @" + name + " : " + type + " [\"N\", \"KV_LEN\"]\n";
    score += "  %" + name + " = mask.load @" + name + "[%q, %kv] : (i32, i32) -> " + loaded + "\n";
    std::string element = "%" + name;
    if (loaded != "f32") {
      score += "  %f_" + name + " = mask.to_float " + element + " : " + loaded + " -> f32\n";
      element = "%f_" + name;
    }
    append("add " + value(0) + ", " + element, "f32");
  }
  score += "  mask.yield " + value(0) + " : f32\n}\n";
  auto module = mlir::parseSourceString<mlir::ModuleOp>(captures + score + "mask.attention @main score(@f)\n", &ctx);
  ASSERT_TRUE(module);
  DeviceFunctions functions = *emitCudaFunctors(*module, "main");
  expectCompiles(functions.text,
                 "  out[0] = Program::score(*(const Program::Captures *)captures, out[1], b, h, q, kv);\n");
}

TEST_F(FunctorsCompile, everyWalkOfScattersInItsKernel) {
  auto module = mlir::parseSourceString<mlir::ModuleOp>(R"(
mask.capture @one : f32 ["H"] {grad}
mask.capture @key : bf16 ["KV_LEN"] {grad}
mask.capture @bias : f32 ["B", "Q_LEN", "KV_LEN"] {grad}
mask.capture @both : f32 ["N"] {grad}
mask.score @f(%s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
  mask.yield %s : f32
}
mask.score_gradient @f.gradient(%g: f32, %s: f32, %b: i32, %h: i32, %q: i32, %kv: i32) -> f32 {
  mask.scatter_add %g, @one[%h] : f32[i32]
  mask.scatter_add %s, @key[%kv] : f32[i32]
  mask.scatter_add %g, @bias[%b, %q, %kv] : f32[i32, i32, i32]
  mask.scatter_add %g, @both[%q] : f32[i32]
  %n = mask.dim "N" : i64
  %sum = mask.reduce sum %n : i64 -> f32 {
  ^bb0(%i: i64):
    mask.scatter_add %g, @both[%i] : f32[i64]
    mask.yield %g : f32
  }
  mask.yield %g : f32
}
mask.attention @main score(@f)
)",
                                                        &ctx);
  ASSERT_TRUE(module);
  DeviceFunctions functions = *emitCudaFunctors(*module, "main");
  for (int headDim : {40, 64, 256})
    for (KernelRole role : {KernelRole::BackwardCaptures, KernelRole::BackwardCaptureSums}) {
      KernelSpec spec;
      spec.role = role;
      spec.headDim = headDim;
      spec.scoreForm = functions.scoreForm;
      StatusOr<KernelSource> source = assembleKernel(spec, /*computeCapability=*/80, functions);
      ASSERT_TRUE(source) << source.status().message();
      StatusOr<KernelImage> image = compileKernel(*source, *nvrtc);
      ASSERT_TRUE(image) << image.status().message();
      EXPECT_LE(image->spillBytes, source->tiles.spillLimit) << image->log;
    }
}

} // namespace
} // namespace cpflex::test
