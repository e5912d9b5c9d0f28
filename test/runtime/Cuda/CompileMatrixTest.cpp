// The table of tiles compiled for its architectures, and what the compiler says of the result: no spills but
// those that are allowed for, no local memory, no serialised wgmma. Needs NVRTC, no GPU. A short selection runs always,
// every row where CPFLEX_FULL is set.
#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Cuda/CudaProgram.h"
#include "runtime/Cuda/KernelAssembly.h"
#include "test/runtime/Cuda/TestFunctors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

/// Bytes that a functor may store and load aside beyond what its row says, in the code of partial tiles: one that reads
/// captures has pointers and strides to keep beside the accumulators, and the large one a score function on top.
int spillsOfFunctor(const std::string &name) { return name == "document_causal" ? 256 : name == "large" ? 2048 : 0; }

std::vector<Row> matrix() {
  std::vector<std::pair<int, int>> heads = {{128, 128}};
  std::vector<std::string> functors = {"document_causal"};
  std::vector<std::pair<KernelFamily, int>> targets = {{KernelFamily::Wgmma, 90}, {KernelFamily::MmaSync, 80}};
  if (std::getenv("CPFLEX_FULL")) {
    targets.push_back({KernelFamily::MmaSync, 86});
    targets.push_back({KernelFamily::MmaSync, 90});
    heads = {{64, 64}, {64, 128}, {96, 96}, {128, 128}, {192, 128}, {192, 192}, {256, 256}};
    functors = {"causal", "document_causal", "soft_cap", "large"};
  }
  std::vector<Row> rows;
  for (auto [family, capability] : targets)
    for (KernelRole role : {KernelRole::Forward, KernelRole::BackwardKV, KernelRole::BackwardQ})
      for (auto [headDim, vHeadDim] : heads)
        for (const std::string &functor : functors) {
          bool isOfAnother =
              family == KernelFamily::Wgmma && role == KernelRole::BackwardQ && sumsDQ(headDim, vHeadDim);
          if (!isOfAnother)
            rows.push_back({role, family, capability, headDim, vHeadDim, functor});
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
  StatusOr<KernelImage> image = compileKernel(*source, **nvrtc);
  ASSERT_TRUE(image) << image.status().message();
  EXPECT_THAT(image->warnings, testing::Each(testing::Not(testing::HasSubstr("C75")))) << "wgmma was serialised";
  int allowed = source->tiles.spillLimit + spillsOfFunctor(row.functor);
  EXPECT_LE(image->spillBytes, allowed);
  if (allowed == 0)
    EXPECT_EQ(image->stackBytes, 0);
  RecordProperty("registers", image->registers);
}

INSTANTIATE_TEST_SUITE_P(Table, CompileMatrixTest, testing::ValuesIn(matrix()),
                         [](const testing::TestParamInfo<Row> &info) { return info.param.name(); });

} // namespace
} // namespace cpflex
