// Do masks stay exact at other tile sizes, odd lengths and positions that are not the identity?
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "test/runtime/BlockMask/BruteForce.h"
#include "test/runtime/BlockMask/Catalogue.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>

namespace cpflex::test {
namespace {

constexpr std::pair<int64_t, int64_t> kTiles[] = {{128, 128}, {128, 64}, {64, 64}, {256, 128},
                                                  {192, 128}, {7, 13},   {33, 5},  {1000, 1000}};

class TilingTest : public testing::TestWithParam<CatalogueCase> {};

/// Expects the mask of every tiling to be `truth`, tile by tile and pair by pair.
void expectEveryTiling(const CatalogueCase &mask, BlockMaskOptions options, const BruteForce &truth) {
  CaptureSummaries summaries;
  options.summaries = &summaries;
  const Tape &tape = mask.builder->tape();
  const Bindings bindings = mask.builder->bindings();
  for (auto [tileQ, tileKV] : kTiles) {
    options.tileQ = tileQ;
    options.tileKV = tileKV;
    auto result = buildBlockMask(&tape, bindings, options);
    ASSERT_TRUE(result.isOk()) << result.status().message();
    ASSERT_EQ(result->mask.rowSets[0], truth.rows(tileQ, tileKV)) << tileQ << " x " << tileKV;
    auto pairs = countAllowed(result->mask, &tape, bindings, options);
    ASSERT_TRUE(pairs.isOk());
    EXPECT_EQ(pairs->allowed, truth.allowed());
    EXPECT_EQ(pairs->rowsWithoutKeys, truth.numRowsWithoutKeys());
    EXPECT_EQ(pairs->columnsWithoutQueries, truth.numColumnsWithoutQueries());
  }
}

TEST_P(TilingTest, ShardsEqualBruteForceInEveryTiling) {
  const CatalogueCase &mask = GetParam();
  // Rows from several places, some strided, as a rank of a context-parallel layout holds them.
  BlockMaskOptions options;
  int64_t q = mask.qLen, kv = mask.kvLen;
  options.qPositions.pieces = {{q / 3, 40, 1}, {q / 7, q > 500 ? 97 : 9, 3}, {q - 21, 21, 1}};
  options.kvPositions.pieces = {{kv - 150, 150, 1}, {0, 130, 1}, {kv / 5, 111, 7}, {q / 3, 45, 1}};
  options.qLen = options.qPositions.size();
  options.kvLen = options.kvPositions.size();
  auto positionsOf = [](const PositionMap &map) {
    std::vector<int64_t> positions;
    for (const AffinePiece &piece : map.pieces)
      for (int64_t i = 0; i < piece.count; ++i)
        positions.push_back(piece.begin + i * piece.step);
    return positions;
  };
  std::vector<int64_t> qAt = positionsOf(options.qPositions), kvAt = positionsOf(options.kvPositions);
  BruteForce truth(options.qLen, options.kvLen,
                   [&](int64_t row, int64_t column) { return mask.oracle(qAt[row], kvAt[column]); });
  expectEveryTiling(mask, options, truth);
}

/// Rows and keys of a whole mask that are tried: all of them with CPFLEX_FULL.
int64_t longestWhole() { return std::getenv("CPFLEX_FULL") ? std::numeric_limits<int64_t>::max() : 700; }

TEST_P(TilingTest, WholeMasksEqualBruteForceInEveryTiling) {
  const CatalogueCase &mask = GetParam();
  // Lengths that are no multiple of any tile.
  BlockMaskOptions options;
  options.qLen = std::min(mask.qLen, longestWhole()) - 5;
  options.kvLen = std::min(mask.kvLen, longestWhole()) - 3;
  expectEveryTiling(mask, options, BruteForce(options.qLen, options.kvLen, mask.oracle));
}

INSTANTIATE_TEST_SUITE_P(All, TilingTest, testing::ValuesIn(catalogue()),
                         [](const testing::TestParamInfo<CatalogueCase> &tested) { return tested.param.name; });

/// Classifies by corners and centre only, as a sampling classifier does.
TileCounts sampledCounts(const CatalogueCase &mask) {
  TileCounts counts;
  for (int64_t q = 0; q < mask.qLen; q += 128)
    for (int64_t kv = 0; kv < mask.kvLen; kv += 128) {
      int64_t bottom = std::min(q + 128, mask.qLen) - 1, right = std::min(kv + 128, mask.kvLen) - 1;
      int seen = mask.oracle(q, kv) + mask.oracle(q, right) + mask.oracle(bottom, kv) + mask.oracle(bottom, right) +
                 mask.oracle((q + bottom) / 2, (kv + right) / 2);
      (seen == 0 ? counts.empty : seen == 5 ? counts.full : counts.partial) += 1;
    }
  return counts;
}

TEST(TestOfTheTests, CornerSamplingFailsTheCatalogue) {
  std::vector<std::string> wrong;
  for (const CatalogueCase &mask : catalogue()) {
    TileCounts counts = sampledCounts(mask);
    if (counts.empty != mask.counts.empty || counts.full != mask.counts.full)
      wrong.push_back(mask.name);
  }
  EXPECT_EQ(wrong.size(), 8u);
  for (const char *name : {"M14", "M27", "M34b", "M35", "M37", "M38", "M60", "M64"})
    EXPECT_NE(std::find(wrong.begin(), wrong.end(), name), wrong.end()) << name;
}

} // namespace
} // namespace cpflex::test
