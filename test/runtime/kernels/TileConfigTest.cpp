// The table from KernelSpec to tiles: what it serves, that everything fits its device, and what it says of the rest.
#include "runtime/contract/KernelSource.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace cpflex {
namespace {

constexpr KernelRole kTileRoles[] = {KernelRole::Forward, KernelRole::BackwardKV, KernelRole::BackwardQ};

KernelSpec specOf(KernelRole role, KernelFamily family, int headDim, int vHeadDim) {
  KernelSpec spec;
  spec.role = role;
  spec.family = family;
  spec.headDim = headDim;
  spec.vHeadDim = vHeadDim;
  return spec;
}

TEST(TileConfigTest, EveryHeadSizeFitsTheSharedMemoryOfEveryDevice) {
  for (int capability : {80, 86, 87, 89, 90, 100, 120})
    for (KernelFamily family : {KernelFamily::Wgmma, KernelFamily::MmaSync})
      for (KernelRole role : kTileRoles)
        for (int headDim = 8; headDim <= 256; headDim += 8)
          for (int vHeadDim = 8; vHeadDim <= 256; vHeadDim += 8) {
            if (family == KernelFamily::Wgmma && capability != 90)
              continue;
            StatusOr<TileConfig> tiles = tileConfig(specOf(role, family, headDim, vHeadDim), capability);
            ASSERT_TRUE(tiles) << tiles.status().message();
            EXPECT_LE(tiles->sharedBytes, sharedMemoryLimit(capability))
                << fmt::format("sm_{} {}x{} role {}", capability, headDim, vHeadDim, static_cast<int>(role));
            EXPECT_LE(tiles->tileKV, 128);
          }
}

TEST(TileConfigTest, HopperTakesWgmmaAndOthersMmaSync) {
  KernelSpec spec = specOf(KernelRole::Forward, KernelFamily::MmaSync, 128, 128);
  EXPECT_EQ(kernelFamily(spec, 90), KernelFamily::Wgmma);
  EXPECT_EQ(kernelFamily(spec, 80), KernelFamily::MmaSync);
  EXPECT_EQ(kernelFamily(spec, 100), KernelFamily::MmaSync);
  spec.role = KernelRole::BackwardDelta;
  EXPECT_EQ(kernelFamily(spec, 90), KernelFamily::MmaSync);
}

TEST(TileConfigTest, ArchitectureNamesTheFeatureSetThatWgmmaNeeds) {
  EXPECT_EQ(kernelArchitecture(specOf(KernelRole::Forward, KernelFamily::Wgmma, 64, 64), 90), "sm_90a");
  EXPECT_EQ(kernelArchitecture(specOf(KernelRole::Forward, KernelFamily::MmaSync, 64, 64), 90), "sm_90");
}

TEST(TileConfigTest, BackwardKernelsByHeadSize) {
  EXPECT_EQ(kernelFile(specOf(KernelRole::BackwardKV, KernelFamily::Wgmma, 128, 128)),
            "attention_backward_fused_wgmma.cuh");
  EXPECT_EQ(kernelFile(specOf(KernelRole::BackwardKV, KernelFamily::Wgmma, 64, 128)),
            "attention_backward_kv_wgmma.cuh");
  EXPECT_EQ(kernelFile(specOf(KernelRole::BackwardQ, KernelFamily::Wgmma, 64, 128)), "attention_backward_q_wgmma.cuh");
  EXPECT_EQ(kernelFile(specOf(KernelRole::BackwardKV, KernelFamily::Wgmma, 192, 128)),
            "attention_backward_kv_wide_wgmma.cuh");
}

TEST(TileConfigTest, InstantiationIsFilledByName) {
  KernelSpec spec = specOf(KernelRole::Forward, KernelFamily::Wgmma, 128, 64);
  spec.element = ElementType::F16;
  spec.positions = PositionMode::Array;
  StatusOr<TileConfig> tiles = tileConfig(spec, 90);
  ASSERT_TRUE(tiles);
  std::string text = kernelInstantiation(spec, *tiles);
  for (const char *line :
       {"using Element = cpflex::kernels::Float16;", "kHeadDim = 128;", "kVHeadDim = 64;", "kTileQ = 128;",
        "kPositions = cpflex::PositionMode::Array;", "kOutputIsF32 = false;", "attention_forward(",
        "cpflex::ForwardTensorMaps maps", "attentionForwardWgmma<Config, Program>(arguments, captures, maps);"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\nin\n" << text;
}

TEST(TileConfigTest, MmaSyncKernelsTakeNoTensorMaps) {
  KernelSpec spec = specOf(KernelRole::BackwardQ, KernelFamily::MmaSync, 64, 64);
  EXPECT_FALSE(takesTensorMaps(spec));
  StatusOr<TileConfig> tiles = tileConfig(spec, 80);
  ASSERT_TRUE(tiles);
  EXPECT_EQ(kernelInstantiation(spec, *tiles).find("TensorMaps"), std::string::npos);
}

TEST(TileConfigTest, KernelsThatReadWordsHaveOneThatFillsThemForTheSameTiles) {
  KernelSpec spec = specOf(KernelRole::BackwardKV, KernelFamily::Wgmma, 128, 128);
  StatusOr<TileConfig> tiles = tileConfig(spec, 90);
  ASSERT_TRUE(tiles);
  EXPECT_FALSE(readsWords(spec));
  spec.hasMask = true;
  EXPECT_TRUE(readsWords(spec));

  KernelSpec words = spec;
  words.role = wordsRole(spec.role);
  EXPECT_EQ(decidedRole(words.role), spec.role);
  EXPECT_FALSE(readsWords(words));
  EXPECT_FALSE(takesTensorMaps(words));
  EXPECT_EQ(kernelFile(words), "mask_words.cuh");
  EXPECT_EQ(kernelArchitecture(words, 90), "sm_90a");
  StatusOr<TileConfig> wordsTiles = tileConfig(words, 90);
  ASSERT_TRUE(wordsTiles);
  EXPECT_EQ(wordsTiles->tileQ, tiles->tileQ);
  EXPECT_EQ(wordsTiles->tileKV, tiles->tileKV);
  EXPECT_EQ(wordsTiles->threads, wordsThreads(spec, *tiles));
  EXPECT_EQ(wordsTiles->sharedBytes, 0);
  std::string text = kernelInstantiation(words, *wordsTiles);
  for (const char *line :
       {"__launch_bounds__(Config::kThreads, 2) attention_backward_kv_words(", "cpflex::BackwardArguments arguments",
        "fillMaskWords<Config, Program", "TileAxes::RowsAreKV>("})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\nin\n" << text;
  spec.family = KernelFamily::MmaSync;
  EXPECT_FALSE(readsWords(spec));
}

TEST(TileConfigTest, SaysWhatNoKernelServes) {
  auto message = [](const KernelSpec &spec, int capability) {
    StatusOr<TileConfig> tiles = tileConfig(spec, capability);
    return tiles ? std::string() : tiles.status().message();
  };
  KernelSpec spec = specOf(KernelRole::Forward, KernelFamily::MmaSync, 128, 128);
  EXPECT_EQ(message(spec, 75), "compute capability is 7.5; expected 8.0 or newer");
  KernelSpec wgmma = specOf(KernelRole::Forward, KernelFamily::Wgmma, 128, 128);
  EXPECT_EQ(message(wgmma, 80), "the 'wgmma' kernels need compute capability 9.0; this is 8.0");
  spec.headDim = 100;
  EXPECT_EQ(message(spec, 90), "head size is 100; GPU kernels serve multiples of 8 up to 256");
  spec.headDim = 264;
  EXPECT_EQ(message(spec, 90), "head size is 264; GPU kernels serve multiples of 8 up to 256");
  spec.headDim = 128;
  spec.element = ElementType::F32;
  EXPECT_EQ(message(spec, 90), "element type is 'f32'; GPU kernels exist for 'bf16' and 'f16'");
}

TEST(KernelArgumentsTest, RowArraysCoverATileThatBeginsAtTheLastRow) {
  for (int qLen : {1, 127, 128, 129, 1000})
    for (int tile : {48, 64, 96, 128})
      EXPECT_GE(paddedRows(qLen), (qLen - 1) / tile * tile + tile);
}

} // namespace
} // namespace cpflex
