// The table of tiles compiled for its architectures, and what the compiler says of the result: no spills but
// those that are allowed for, no local arrays, no serialised wgmma. Needs NVRTC, no GPU. A short selection runs always,
// every row where CPFLEX_FULL is set. CatalogueKernels does the same with a functor of the catalogue.
#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Cuda/CudaProgram.h"
#include "runtime/Cuda/KernelAssembly.h"
#include "test/runtime/Cuda/CompileReport.h"
#include "test/runtime/Cuda/TestFunctors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

namespace cpflex {
namespace {

struct Row {
  KernelRole role;
  KernelFamily family;
  int computeCapability;
  int headDim, vHeadDim;
  std::string functor;
  std::string name() const {
    return fmt::format("{}_{}_sm{}_{}x{}_{}", kernelFunctionName(role),
                       family == KernelFamily::Wgmma ? "wgmma" : "mma_sync", computeCapability, headDim, vHeadDim,
                       functor);
  }
};

void PrintTo(const Row &row, std::ostream *out) { *out << row.name(); }

DeviceFunctions functorNamed(const std::string &name) {
  return name == "none"              ? test::noFunctor()
         : name == "causal"          ? test::causal()
         : name == "document_causal" ? test::documentCausal()
         : name == "soft_cap"        ? test::softCap()
                                     : test::large();
}

/// Bytes that a kernel may store and load aside: what its row says. The large functor reads many captures, whose
/// pointers and strides are kept beside the accumulators, in its mask and in its score function. The others read one
/// array or none, so that little of what rows of forward and of dQ allow for masks is for them.
int spillLimit(const std::string &functor, const KernelSource &source) {
  constexpr int kOfOneArray = 128, kOfCausalQueries = 16, kOfLarge = 2048;
  const int ofRow = source.tiles.spillLimit;
  if (functor == "large")
    return ofRow + kOfLarge;
  const bool isForward = source.spec.role == KernelRole::Forward;
  const bool isForMasks = source.spec.family == KernelFamily::Wgmma &&
                          (isForward || source.spec.role == KernelRole::BackwardQ) &&
                          std::max(source.spec.headDim, source.spec.vHeadDim) > 64;
  if (!isForMasks)
    return ofRow;
  return std::min(ofRow, functor != "causal" ? kOfOneArray : isForward ? 0 : kOfCausalQueries);
}

/// The rows of all roles that walk tiles, and of those that decide tiles for them.
void addRows(std::vector<Row> &rows, const std::vector<test::MatrixTarget> &targets,
             const std::vector<std::pair<int, int>> &heads, const std::vector<std::string> &functors) {
  for (auto [family, capability] : targets)
    for (KernelRole role : {KernelRole::Forward, KernelRole::BackwardKV, KernelRole::BackwardQ})
      for (auto [headDim, vHeadDim] : heads)
        for (const std::string &functor : functors) {
          bool isOfAnother =
              family == KernelFamily::Wgmma && role == KernelRole::BackwardQ && sumsDQ(headDim, vHeadDim);
          if (isOfAnother)
            continue;
          rows.push_back({role, family, capability, headDim, vHeadDim, functor});
          if (family == KernelFamily::Wgmma && functorNamed(functor).hasMask)
            rows.push_back({wordsRole(role), family, capability, headDim, vHeadDim, functor});
        }
}

std::vector<Row> matrix() {
  std::vector<Row> rows;
  if (std::getenv("CPFLEX_FULL")) {
    addRows(rows, test::targetsWithRows(), test::allHeads(), {"causal", "document_causal", "soft_cap", "large"});
    addRows(rows, test::furtherTargets(), test::allHeads(), {"document_causal"});
  } else {
    addRows(rows, {{KernelFamily::Wgmma, 90}, {KernelFamily::MmaSync, 80}}, {{128, 128}}, {"document_causal"});
  }
  for (KernelRole role : {KernelRole::BackwardDelta, KernelRole::BackwardSink})
    rows.push_back({role, KernelFamily::MmaSync, 80, 128, 128, "causal"});
  return rows;
}

class CompileMatrixTest : public testing::TestWithParam<Row> {};

TEST_P(CompileMatrixTest, StaysWithinItsRow) {
  StatusOr<std::shared_ptr<const Nvrtc>> nvrtc = Nvrtc::load();
  if (!nvrtc)
    GTEST_SKIP() << nvrtc.status().message();
  const Row &row = GetParam();
  DeviceFunctions functions = functorNamed(row.functor);
  KernelSpec spec;
  spec.role = row.role, spec.family = row.family;
  spec.headDim = row.headDim, spec.vHeadDim = row.vHeadDim;
  spec.hasMask = functions.hasMask, spec.scoreForm = functions.scoreForm;
  StatusOr<KernelSource> source = assembleKernel(spec, row.computeCapability, functions);
  ASSERT_TRUE(source) << source.status().message();
  test::expectWithinRow(*source, **nvrtc, spillLimit(row.functor, *source));
}

/// What expectWithinRow() takes for local arrays and for products is there where the source has some.
TEST(MachineCode, SeesLocalArraysAndProducts) {
  StatusOr<std::shared_ptr<const Nvrtc>> nvrtc = Nvrtc::load();
  if (!nvrtc)
    GTEST_SKIP() << nvrtc.status().message();
  KernelSource source;
  source.functionName = "k", source.architecture = "sm_80", source.key = "0123456789abcdef0123";
  source.text = "extern \"C\" __global__ void k(int *out) {\n"
                "  int a[64]; for (int i = 0; i < 64; ++i) a[out[i] & 63] = i; out[0] = a[out[70] & 63];\n}\n";
  StatusOr<KernelImage> image = compileKernel(source, **nvrtc);
  ASSERT_TRUE(image) << image.status().message();
  const test::MachineCode array = test::machineCode(image->cubin, "k");
  EXPECT_EQ(image->spillBytes, 0);
  EXPECT_GT(array.arrayBytes, 0);
  EXPECT_EQ(array.numWarpProducts, 0);
  source.text =
      "extern \"C\" __global__ void k(float *out, unsigned a, unsigned b) {\n"
      "  asm volatile(\"mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4}, {%5}, \"\n"
      "               \"{%0, %1, %2, %3};\" : \"+f\"(out[0]), \"+f\"(out[1]), \"+f\"(out[2]), \"+f\"(out[3])\n"
      "               : \"r\"(a), \"r\"(b));\n}\n";
  image = compileKernel(source, **nvrtc);
  ASSERT_TRUE(image) << image.status().message();
  const test::MachineCode product = test::machineCode(image->cubin, "k");
  EXPECT_EQ(product.numWarpProducts, 1);
  EXPECT_EQ(product.numWarpgroupProducts, 0);
  EXPECT_EQ(product.arrayBytes, 0);
}

INSTANTIATE_TEST_SUITE_P(Table, CompileMatrixTest, testing::ValuesIn(matrix()),
                         [](const testing::TestParamInfo<Row> &info) { return info.param.name(); });

} // namespace
} // namespace cpflex
