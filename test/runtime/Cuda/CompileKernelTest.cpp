// Assembling and compiling kernels with hand-written functors. Needs NVRTC, no GPU; the parts that need none always
// run.
#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Cuda/KernelAssembly.h"
#include "test/runtime/Cuda/TestFunctors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <unistd.h>

namespace cpflex {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

KernelSpec forwardSpec(const DeviceFunctions &functions) {
  KernelSpec spec;
  spec.hasMask = functions.hasMask;
  spec.scoreForm = functions.scoreForm;
  return spec;
}

TEST(AssembleKernel, HoldsFunctorAndInstantiation) {
  auto source = assembleKernel(forwardSpec(test::causal()), 80, test::causal());
  ASSERT_TRUE(source) << source.status().message();
  EXPECT_EQ(source->architecture, "sm_80");
  EXPECT_EQ(source->functionName, "attention_forward");
  EXPECT_THAT(source->text, HasSubstr("#include \"runtime/kernels/attention_forward_mma_sync.cuh\""));
  EXPECT_THAT(source->text, HasSubstr("return kv <= q;"));
  EXPECT_THAT(source->text, HasSubstr("attentionForwardMmaSync<Config, Program>"));
}

TEST(AssembleKernel, KeyFollowsWhatDecidesTheMachineCode) {
  auto key = [](const DeviceFunctions &functions, int capability, int headDim) {
    KernelSpec spec = forwardSpec(functions);
    spec.headDim = headDim;
    return assembleKernel(spec, capability, functions)->key;
  };
  std::string base = key(test::causal(), 80, 64);
  EXPECT_EQ(base, key(test::causal(), 80, 64));
  EXPECT_NE(base, key(test::causal(), 90, 64));
  EXPECT_NE(base, key(test::causal(), 80, 128));
  EXPECT_NE(base, key(test::documentCausal(), 80, 64));
}

TEST(AssembleKernel, ShapeWithoutKernelIsUnsupported) {
  KernelSpec spec = forwardSpec(test::causal());
  spec.headDim = 264;
  auto source = assembleKernel(spec, 80, test::causal());
  ASSERT_FALSE(source);
  EXPECT_EQ(source.status().code(), StatusCode::Unsupported);
  EXPECT_THAT(source.status().message(), HasSubstr("head size is 264; GPU kernels serve multiples of 8 up to 256"));
}

TEST(ResourceReport, ReadsRegistersSpillsAndShared) {
  KernelImage image;
  readResourceReport(
      "ptxas info    : Compiling entry function 'k' for 'sm_90a'\n"
      "ptxas         .     400 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n"
      "ptxas info    : Used 168 registers, used 1 barriers, 400 bytes cumulative stack size, 256 bytes smem\n",
      image);
  EXPECT_EQ(image.registers, 168);
  EXPECT_EQ(image.stackBytes, 400);
  EXPECT_EQ(image.spillBytes, 20);
  EXPECT_EQ(image.staticSharedBytes, 256);
  EXPECT_EQ(image.warnings.size(), 1u);
  KernelImage allowed;
  allowed.tiles.spillLimit = 20;
  readResourceReport("ptxas         .     400 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n",
                     allowed);
  EXPECT_THAT(allowed.warnings, IsEmpty());
}

TEST(ResourceReport, ReportsSerialisedWgmma) {
  KernelImage image;
  readResourceReport("ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized\n"
                     "ptxas info    : (C7519) warpgroup.arrive is injected\n"
                     "ptxas info    : Used 40 registers\n",
                     image);
  EXPECT_THAT(image.warnings, ElementsAre(HasSubstr("C7511")));
}

class CompileKernelTest : public testing::Test {
protected:
  std::shared_ptr<const Nvrtc> nvrtc;
  fs::path folder = fs::temp_directory_path() / ("cpflex-compile-" + std::to_string(getpid()));
  void SetUp() override {
    auto loaded = Nvrtc::load();
    if (!loaded)
      GTEST_SKIP() << loaded.status().message();
    nvrtc = *loaded;
  }
  void TearDown() override { fs::remove_all(folder); }
};

/// A small kernel, so that tests of the machinery need not wait for attention.
KernelSource smallSource(const std::string &body) {
  KernelSource source;
  source.text =
      "#include \"runtime/contract/Operations.h\"\nextern \"C\" __global__ void k(int *out) { " + body + " }\n";
  source.functionName = "k";
  source.architecture = "sm_80";
  source.key = "0123456789abcdef0123";
  return source;
}

TEST_F(CompileKernelTest, GivesCubinAndReport) {
  auto image = compileKernel(
      smallSource("out[threadIdx.x] = (int)cpflex::ops::floorDiv(cpflex::ops::Int(out[0]), cpflex::ops::Int(3));"),
      *nvrtc);
  ASSERT_TRUE(image) << image.status().message();
  ASSERT_GT(image->cubin.size(), 1000u);
  EXPECT_EQ(std::string(image->cubin.data() + 1, 3), "ELF");
  EXPECT_GT(image->registers, 0);
  EXPECT_EQ(image->spillBytes, 0);
  EXPECT_EQ(image->stackBytes, 0);
  EXPECT_THAT(image->warnings, IsEmpty());
}

TEST_F(CompileKernelTest, LocalArrayIsSeenInTheReport) {
  auto image = compileKernel(
      smallSource("int a[64]; for (int i = 0; i < 64; ++i) a[out[i] & 63] = i; out[0] = a[out[70] & 63];"), *nvrtc);
  ASSERT_TRUE(image) << image.status().message();
  EXPECT_EQ(image->stackBytes, 256);
}

TEST_F(CompileKernelTest, RejectedTextIsOurBugAndIsKept) {
  auto image = compileKernel(smallSource("nonsense;"), *nvrtc, folder);
  ASSERT_FALSE(image);
  EXPECT_THAT(image.status().message(),
              HasSubstr("rejected kernel 'k' for sm_80; this is a bug of cpflex, please report it; the "
                        "source was kept in '" +
                        (folder / "k-0123456789abcdef.cu").string() + "'"));
  EXPECT_THAT(image.status().message(), HasSubstr("error: identifier \"nonsense\" is undefined"));
  EXPECT_TRUE(fs::exists(folder / "k-0123456789abcdef.cu"));
}

TEST_F(CompileKernelTest, RejectedTextThatCannotBeKeptSaysSo) {
  auto image = compileKernel(smallSource("nonsense;"), *nvrtc, "/proc/nowhere");
  ASSERT_FALSE(image);
  EXPECT_THAT(image.status().message(),
              HasSubstr("the source could not be kept in '/proc/nowhere/k-0123456789abcdef.cu'"));
}

TEST_F(CompileKernelTest, ArchitectureThatNvrtcDoesNotKnow) {
  KernelSource source = smallSource("");
  source.architecture = "sm_30";
  auto image = compileKernel(source, *nvrtc);
  ASSERT_FALSE(image);
  EXPECT_EQ(image.status().code(), StatusCode::Unsupported);
  EXPECT_THAT(image.status().message(),
              HasSubstr("does not compile for 'sm_30'; install a CUDA that does, or set CPFLEX_NVRTC"));
}

TEST_F(CompileKernelTest, GivesPtx) {
  auto ptx = compileToPtx(smallSource("out[0] = 1;"), *nvrtc);
  ASSERT_TRUE(ptx) << ptx.status().message();
  EXPECT_THAT(*ptx, HasSubstr(".target sm_80"));
  EXPECT_THAT(*ptx, HasSubstr(".entry k("));
}

TEST_F(CompileKernelTest, SecondRequestComesFromTheCache) {
  KernelToolchain toolchain{.nvrtc = nvrtc, .cache = KernelCache(folder)};
  KernelSource source = smallSource("out[0] = 2;");
  auto first = cachedKernel(source, toolchain);
  auto second = cachedKernel(source, toolchain);
  ASSERT_TRUE(first && second);
  EXPECT_FALSE(first->wasCached);
  EXPECT_TRUE(second->wasCached);
  EXPECT_EQ(first->image.cubin, second->image.cubin);
  EXPECT_EQ(first->image.registers, second->image.registers);
}

TEST_F(CompileKernelTest, CacheThatFailsIsAWarning) {
  KernelToolchain toolchain{.nvrtc = nvrtc, .cache = KernelCache("/proc/nowhere")};
  auto compiled = cachedKernel(smallSource("out[0] = 3;"), toolchain);
  ASSERT_TRUE(compiled) << compiled.status().message();
  EXPECT_THAT(compiled->cacheWarnings, ElementsAre(HasSubstr("the kernel cache '/proc/nowhere' cannot be written")));
}

TEST_F(CompileKernelTest, WholeForwardKernelCompiles) {
  auto source = assembleKernel(forwardSpec(test::causal()), 80, test::causal());
  ASSERT_TRUE(source);
  auto image = compileKernel(*source, *nvrtc);
  ASSERT_TRUE(image) << image.status().message();
  EXPECT_EQ(image->tiles, source->tiles);
}

} // namespace
} // namespace cpflex
