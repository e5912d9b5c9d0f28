// The table of tiles with the largest functor of the catalogue, as the compiler prints it: the kernels of forward, of
// backward and of the gradients of its three arrays. Needs NVRTC, no GPU. CudaCompileMatrix has the small functors.
#include "lib/API/cpflex.h"
#include "runtime/Cuda/CudaProgram.h"
#include "test/runtime/Cuda/CompileReport.h"

#include <fmt/format.h>

#include <cstdlib>
#include <ostream>

namespace cpflex {
namespace {

struct Row {
  test::MatrixTarget target;
  int headDim, vHeadDim;
  KernelRole role;
};

std::string nameOf(const Row &row) {
  return fmt::format("{}_{}_sm{}_{}x{}", kernelFunctionName(row.role),
                     row.target.family == KernelFamily::Wgmma ? "wgmma" : "mma_sync", row.target.computeCapability,
                     row.headDim, row.vHeadDim);
}

void PrintTo(const Row &row, std::ostream *out) { *out << nameOf(row); }

/// FIRE: biases from a network of 32 units, evaluated for each pair.
constexpr const char *kLargest = CPFLEX_TEST_SOURCE_ROOT "/test/catalogue/S20.cpf";

/// Bytes that FIRE may spill beyond what a row says: three arrays with pointers and strides, and a loop over the units
/// whose values stand beside the accumulators.
constexpr int kSpillsOfFire = 2048;

std::vector<Row> matrix() {
  std::vector<Row> rows;
  const std::vector<KernelRole> roles = {KernelRole::Forward, KernelRole::BackwardKV, KernelRole::BackwardQ};
  if (!std::getenv("CPFLEX_FULL"))
    return {{{KernelFamily::Wgmma, 90}, 128, 128, KernelRole::Forward}};
  for (const test::MatrixTarget &target : test::targetsWithRows())
    for (auto [headDim, vHeadDim] : test::allHeads())
      for (KernelRole role : roles)
        if (target.family == KernelFamily::MmaSync || role != KernelRole::BackwardQ || !sumsDQ(headDim, vHeadDim))
          rows.push_back({target, headDim, vHeadDim, role});
  // One family and one row for all architectures.
  for (auto [headDim, vHeadDim] : test::allHeads())
    rows.push_back({{KernelFamily::MmaSync, 80}, headDim, vHeadDim, KernelRole::BackwardCaptures});
  rows.push_back({{KernelFamily::MmaSync, 80}, 128, 128, KernelRole::BackwardCaptureSums});
  return rows;
}

class CatalogueKernelsTest : public testing::TestWithParam<Row> {};

TEST_P(CatalogueKernelsTest, StaysWithinItsRow) {
  StatusOr<std::shared_ptr<const Nvrtc>> nvrtc = Nvrtc::load();
  if (!nvrtc)
    GTEST_SKIP() << nvrtc.status().message();
  CompileResult result = compileFile(kLargest);
  ASSERT_TRUE(result.program) << (result.diagnostics.empty() ? "" : result.diagnostics[0].message);
  const Signature &signature = result.program->signature();
  const std::vector<int64_t> dims(signature.dims.size(), 0);
  const std::vector<ScalarSlot> params(signature.params.size(), 0);
  StatusOr<const EntryPoint *> entry = result.program->entry("");
  ASSERT_TRUE(entry) << entry.status().message();
  StatusOr<DeviceFunctions> functions =
      result.program->deviceFunctions(**entry, {.captures = nullptr, .params = params.data(), .dims = dims.data()});
  ASSERT_TRUE(functions) << functions.status().message();
  EXPECT_EQ(functions->gradients.size(), 3u);
  const Row &row = GetParam();
  CudaProgramOptions options;
  options.headDim = row.headDim, options.vHeadDim = row.vHeadDim;
  options.passes = CudaProgramOptions::Passes::ForwardAndBackward;
  options.captureGradients = CudaProgramOptions::CaptureGradients::Computed;
  options.family = row.target.family;
  StatusOr<std::vector<KernelSource>> sources = kernelSources(*functions, options, row.target.computeCapability);
  ASSERT_TRUE(sources) << sources.status().message();
  auto source = std::find_if(sources->begin(), sources->end(),
                             [&](const KernelSource &each) { return each.spec.role == row.role; });
  ASSERT_NE(source, sources->end());
  test::expectWithinRow(*source, **nvrtc, source->tiles.spillLimit + kSpillsOfFire);
}

INSTANTIATE_TEST_SUITE_P(Table, CatalogueKernelsTest, testing::ValuesIn(matrix()),
                         [](const testing::TestParamInfo<Row> &info) { return nameOf(info.param); });

} // namespace
} // namespace cpflex
