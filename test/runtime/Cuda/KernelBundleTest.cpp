// Bundles: what is written comes back, what is no bundle is refused, and kernels load from one without NVRTC.
#include "runtime/Cuda/KernelBundle.h"

#include "runtime/Cuda/CudaExecutable.h"
#include "test/runtime/Cuda/FakeGpu.h"
#include "test/runtime/Cuda/TestFunctors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cpflex {
namespace {

using testing::ElementsAre;

/// kv <= q over one captured array, forward only.
KernelBundle exampleBundle() {
  KernelBundle bundle;
  bundle.entry = "documents";
  bundle.signature.captures = {{.name = "doc", .type = ElementType::I32, .dims = {"KV_LEN"}, .isSorted = true}};
  bundle.signature.params = {{.name = "W", .type = ValueType::Int, .defaultValue = -7, .hasDefault = true}};
  bundle.signature.dims = {"B", "H", "HKV", "Q_LEN", "KV_LEN"};
  TapeInstruction q{.operation = Operation::Coordinate, .immediate = 2};
  TapeInstruction kv{.operation = Operation::Coordinate, .immediate = 3, .line = 4, .column = 5};
  TapeInstruction compare{.operation = Operation::Le, .resultType = ValueType::Bool, .operands = {1, 0, -1, -1}};
  bundle.tape = {.name = "documents", .instructions = {q, kv, compare}, .result = 2};
  bundle.residuals = {{.assumptions = {{2, true}}, .result = 2, .isNegated = true, .text = "kv <= q"}};
  bundle.scale = 0.25f;
  bundle.functions = test::causal();
  bundle.functions.text.clear();
  bundle.functions.captureNames = {"doc"};
  bundle.computeCapability = 90;
  for (const KernelSpec &spec : kernelSpecs(bundle.functions, bundle.options, 90)) {
    KernelImage image;
    image.cubin = {'E', 'L', '\0', 'F'};
    image.functionName = kernelFunctionName(spec.role);
    image.architecture = kernelArchitecture(spec, 90);
    image.tiles = *tileConfig(spec, 90);
    bundle.kernels.push_back(image);
  }
  return bundle;
}

TEST(KernelBundle, ComesBackAsItWas) {
  KernelBundle bundle = exampleBundle();
  auto read = kernelBundle(toBytes(bundle));
  ASSERT_TRUE(read) << read.status().message();
  EXPECT_EQ(read->entry, "documents");
  EXPECT_EQ(read->signature.captures[0].name, "doc");
  EXPECT_THAT(read->signature.captures[0].dims, ElementsAre("KV_LEN"));
  EXPECT_TRUE(read->signature.captures[0].isSorted);
  EXPECT_FALSE(read->signature.captures[0].needsGradient);
  EXPECT_EQ(read->signature.params[0].defaultValue, -7);
  EXPECT_EQ(read->signature.dims.size(), 5u);
  EXPECT_EQ(read->tape.instructions[1].column, 5);
  EXPECT_EQ(read->tape.instructions[2].operation, Operation::Le);
  EXPECT_EQ(read->tape.instructions[2].operands[3], -1);
  EXPECT_EQ(read->tape.result, 2);
  EXPECT_EQ(read->residuals[0].text, "kv <= q");
  EXPECT_TRUE(read->residuals[0].isNegated);
  EXPECT_EQ(read->scale, 0.25f);
  EXPECT_EQ(read->sinkCapture, -1);
  EXPECT_TRUE(read->functions.hasMask);
  EXPECT_EQ(read->kernels[0].cubin, bundle.kernels[0].cubin);
  EXPECT_EQ(read->kernels[0].tiles, bundle.kernels[0].tiles);
  EXPECT_EQ(toBytes(*read), toBytes(bundle));
}

TEST(KernelBundle, WhatIsNoneIsNamed) {
  EXPECT_EQ(kernelBundle("PK").status().message(),
            "this is no bundle; expected what 'cpflexc compile --emit=bundle' writes");
  EXPECT_EQ(kernelBundle("cpflex bundle 7\nabc").status().message(),
            "the bundle has version '7'; expected '1'; compile it again");
  std::string bytes = toBytes(exampleBundle());
  for (size_t length = 0; length < bytes.size(); length += 7)
    EXPECT_FALSE(kernelBundle(std::string_view(bytes).substr(0, length)));
  bytes.back() ^= 1;
  EXPECT_EQ(kernelBundle(bytes).status().message(), "the bundle is damaged; compile it again");
}

TEST(KernelBundle, RunsWithoutNvrtc) {
  test::FakeGpu gpu;
  auto program = CudaProgram::fromBundle(gpu.device(), exampleBundle());
  ASSERT_TRUE(program) << program.status().message();
  EXPECT_EQ(gpu.ranges.front(), "cpflex load");
  AttentionProblem problem;
  problem.qLen = problem.kvLen = 100;
  auto executable = CudaExecutable::bind(*program, problem, nullptr);
  ASSERT_TRUE(executable) << executable.status().message();
  alignas(256) char workspace[256];
  alignas(16) static char memory[4][100 * 64 * 2];
  auto tensor = [&](int i) { return TensorView{memory[i], ElementType::BF16, {6400, 6400, 64, 1}}; };
  ASSERT_TRUE((*executable)->forward({tensor(0), tensor(1), tensor(2), tensor(3), {}}, workspace, nullptr));
  ASSERT_EQ(gpu.launches.size(), 1u);
  EXPECT_EQ(gpu.launches[0].function, "attention_forward");
}

TEST(KernelBundle, OtherArchitecturesAndKernelsAreNamed) {
  test::FakeGpu gpu;
  gpu.capability = 100;
  EXPECT_EQ(CudaProgram::fromBundle(gpu.device(), exampleBundle()).status().message(),
            "the bundle was compiled for 'sm_90a'; the GPU is sm_100");
  KernelBundle bundle = exampleBundle();
  bundle.kernels.clear();
  EXPECT_EQ(CudaProgram::fromBundle(gpu.device(), bundle).status().message(), "the bundle has 0 kernels; expected 2");
}

} // namespace
} // namespace cpflex
