// Do the masks of the catalogue come out with the counts that brute force gave?
#include "test/runtime/BlockMask/Catalogue.h"
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

class CatalogueTest : public testing::TestWithParam<CatalogueCase> {};

TEST_P(CatalogueTest, CountsEqualBruteForce) {
  const CatalogueCase &mask = GetParam();
  BlockMaskOptions options;
  options.qLen = mask.qLen;
  options.kvLen = mask.kvLen;
  Bindings bindings = mask.builder->bindings();
  auto result = buildBlockMask(&mask.builder->tape(), bindings, options);
  ASSERT_TRUE(result.isOk()) << result.status().message();
  TileCounts tiles = countTiles(result->mask);
  EXPECT_EQ(tiles.empty, mask.counts.empty);
  EXPECT_EQ(tiles.full, mask.counts.full);
  EXPECT_EQ(tiles.partial, mask.counts.partial);
  auto pairs = countAllowed(result->mask, &mask.builder->tape(), bindings, options);
  ASSERT_TRUE(pairs.isOk()) << pairs.status().message();
  EXPECT_EQ(pairs->allowed, mask.counts.allowed);
  EXPECT_EQ(pairs->rowsWithoutKeys, mask.counts.rowsWithoutKeys);
  EXPECT_EQ(pairs->columnsWithoutQueries, mask.counts.columnsWithoutQueries);
  // The share of pairs that had to be looked at one by one.
  double share = static_cast<double>(result->pointsEvaluated) / static_cast<double>(mask.qLen * mask.kvLen);
  EXPECT_LE(share, 0.01);
}

INSTANTIATE_TEST_SUITE_P(All, CatalogueTest, testing::ValuesIn(catalogue()),
                         [](const testing::TestParamInfo<CatalogueCase> &tested) { return tested.param.name; });

} // namespace
} // namespace cpflex::test
