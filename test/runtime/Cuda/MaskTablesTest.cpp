// Transposing and recutting block masks, and the order of rows, against masks written out tile by tile.
#include "runtime/Cuda/MaskTables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace cpflex {
namespace {

using testing::ElementsAre;

/// A mask written out: kinds[q tile][kv tile], 0 empty, 1 full, 2 and more partial with residual (kind - 2).
using Written = std::vector<std::vector<int>>;

TileRows toRows(const Written &kinds) {
  TileRows rows;
  rows.rowBegin = {0};
  for (const std::vector<int> &row : kinds) {
    for (size_t i = 0; i < row.size(); ++i) {
      if (row[i] == 0)
        continue;
      TileClass tileClass = row[i] == 1 ? TileClass::Full : TileClass::Partial;
      auto residual = static_cast<uint8_t>(row[i] == 1 ? 0 : row[i] - 2);
      bool continues = i > 0 && row[i - 1] == row[i];
      if (continues)
        rows.runs.back().end = static_cast<int32_t>(i + 1);
      else
        rows.runs.push_back({static_cast<int32_t>(i), static_cast<int32_t>(i + 1), tileClass, residual});
    }
    rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
  }
  return rows;
}

Written toWritten(const TileRows &rows, int64_t numRows, int64_t numColumns) {
  Written kinds(numRows, std::vector<int>(numColumns, 0));
  for (int64_t row = 0; row < numRows; ++row)
    for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i)
      for (int32_t tile = rows.runs[i].begin; tile < rows.runs[i].end; ++tile)
        kinds[row][tile] = rows.runs[i].tileClass == TileClass::Full ? 1 : 2 + rows.runs[i].residual;
  return kinds;
}

BlockMask blockMask(const Written &kinds, int64_t qLen, int64_t kvLen, int64_t tileQ, int64_t tileKV) {
  BlockMask mask;
  mask.qLen = qLen, mask.kvLen = kvLen, mask.tileQ = tileQ, mask.tileKV = tileKV;
  mask.rowSetOf = {0};
  mask.rowSets = {toRows(kinds)};
  return mask;
}

Written randomKinds(std::mt19937 &random, int rows, int columns) {
  Written kinds(rows, std::vector<int>(columns));
  for (auto &row : kinds)
    for (int &kind : row)
      kind = std::array{0, 0, 1, 1, 2, 3}[random() % 6];
  // Long runs as well as short ones.
  if (random() % 2)
    for (int row = 1; row < rows; ++row)
      if (random() % 3)
        kinds[row] = kinds[row - 1];
  return kinds;
}

TEST(MaskTables, TransposesEveryTile) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 200; ++trial) {
    int rows = 1 + random() % 9, columns = 1 + random() % 9;
    Written kinds = randomKinds(random, rows, columns);
    BlockMask result = transposed(blockMask(kinds, rows * 4, columns * 8, 4, 8));
    EXPECT_EQ(result.tileQ, 8);
    EXPECT_EQ(result.tileKV, 4);
    EXPECT_EQ(result.qLen, columns * 8);
    Written expected(columns, std::vector<int>(rows));
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j)
        expected[j][i] = kinds[i][j];
    ASSERT_EQ(toWritten(result.rowSets[0], columns, rows), expected);
    ASSERT_EQ(result.rowSets[0], toRows(expected)) << "runs are as long as they can be";
  }
}

TEST(MaskTables, TransposesAMaskWithoutRows) {
  BlockMask result = transposed(blockMask({}, 0, 16, 4, 8));
  EXPECT_THAT(result.rowSets[0].rowBegin, ElementsAre(0, 0, 0));
}

TEST(MaskTables, RecutTilesKeepWhatIsKnown) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 300; ++trial) {
    int tileQ = 1 + random() % 6, tileKV = 1 + random() % 6, newQ = 1 + random() % 8, newKV = 1 + random() % 8;
    int qLen = 1 + random() % 30, kvLen = 1 + random() % 30;
    auto ceil = [](int a, int b) { return (a + b - 1) / b; };
    Written kinds = randomKinds(random, ceil(qLen, tileQ), ceil(kvLen, tileKV));
    BlockMask result = withTiles(blockMask(kinds, qLen, kvLen, tileQ, tileKV), newQ, newKV);
    Written expected(ceil(qLen, newQ), std::vector<int>(ceil(kvLen, newKV)));
    for (size_t i = 0; i < expected.size(); ++i)
      for (size_t j = 0; j < expected[i].size(); ++j) {
        int kind = -1;
        for (int q = i * newQ; q < std::min<int>(qLen, (i + 1) * newQ); ++q)
          for (int kv = j * newKV; kv < std::min<int>(kvLen, (j + 1) * newKV); ++kv) {
            int here = kinds[q / tileQ][kv / tileKV];
            kind = kind == -1 || kind == here ? here : 2;
          }
        expected[i][j] = kind;
      }
    ASSERT_EQ(toWritten(result.rowSets[0], expected.size(), expected[0].size()), expected)
        << qLen << "x" << kvLen << " tiles " << tileQ << "x" << tileKV << " to " << newQ << "x" << newKV;
  }
}

TEST(MaskTables, RowsAreOrderedLongestFirst) {
  BlockMask mask = blockMask({{1, 0, 0}, {1, 1, 2}, {1, 1, 0}, {0, 1, 2}}, 16, 12, 4, 4);
  MaskTables tables = maskTables(mask, KernelRows::Q, 4, 4, 1, 2);
  EXPECT_THAT(tables.rowOrder, ElementsAre(1, 3, 2, 0));
  EXPECT_THAT(tables.rowSetOf, ElementsAre(0, 0));
  EXPECT_EQ(tables.numRows, 4);
  MaskTables alongKV = maskTables(mask, KernelRows::KV, 4, 4, 1, 2);
  EXPECT_THAT(alongKV.rowOrder, ElementsAre(1, 0, 2));
  EXPECT_EQ(alongKV.numRows, 3);
}

TEST(MaskTables, MultiplesOfKernelTilesAreNotRecut) {
  BlockMask mask = blockMask({{1, 2}, {0, 1}}, 15, 16, 8, 8);
  MaskTables tables = maskTables(mask, KernelRows::KV, 4, 2, 1, 1);
  EXPECT_EQ(tables.rowTilesPerMaskTile, 4);
  EXPECT_EQ(tables.colTilesPerMaskTile, 2);
  EXPECT_EQ(tables.numRows, 2);
  EXPECT_EQ(tables.rowOrder.size(), 8u);
}

TEST(MaskTables, RowSetsFollowEachOther) {
  BlockMask mask = blockMask({{1, 0}, {0, 2}}, 8, 8, 4, 4);
  mask.heads = 2;
  mask.rowSets.push_back(toRows({{1, 1}, {0, 0}}));
  mask.rowSetOf = {1, 0};
  MaskTables tables = maskTables(mask, KernelRows::Q, 4, 4, 2, 2);
  EXPECT_THAT(tables.rowSetOf, ElementsAre(1, 0, 1, 0)); // batch 1 of the mask serves both rows
  EXPECT_THAT(tables.rowBegin, ElementsAre(0, 1, 2, 2, 3, 3));
  ASSERT_EQ(tables.runs.size(), 3u);
  EXPECT_EQ(tables.runs[2].end, 2);
}

TEST(MaskTables, LastPartsAreWhereNoLaterKeysAttend) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    int rows = 1 + random() % 9, columns = 1 + random() % 9;
    Written kinds = randomKinds(random, rows, columns);
    BlockMask mask = blockMask(kinds, rows * 4, columns * 8, 4, 8);
    MaskTables tables = maskTables(mask, KernelRows::KV, 4, 8, 1, 1, /*words=*/{}, QuerySums::Shared);
    Written last(rows, std::vector<int>(columns, 0)), expected = last;
    for (int kv = 0; kv < columns; ++kv)
      for (int i = tables.rowBegin[kv]; i < tables.rowBegin[kv + 1]; ++i)
        for (int q = tables.runs[i].begin; q < tables.runs[i].end; ++q) {
          ASSERT_EQ(tables.runs[i].tileClass, std::min(kinds[q][kv], 2)) << "3 is partial with a residual";
          last[q][kv] = tables.runs[i].isLastPart;
        }
    for (int q = 0; q < rows; ++q)
      for (int kv = columns - 1; kv >= 0; --kv)
        if (kinds[q][kv] != 0) {
          expected[q][kv] = 1;
          break;
        }
    ASSERT_EQ(last, expected);
  }
}

TEST(MaskTables, PartialTilesAreNumbered) {
  // Mask tiles of 2 x 3 kernel tiles.
  BlockMask mask = blockMask({{2, 1, 2}, {0, 2, 2}}, 16, 36, 8, 12);
  MaskTables tables =
      maskTables(mask, KernelRows::Q, 4, 4, 2, 3, {.perBatch = true, .perHead = false, .maxTiles = 100});
  std::vector<int32_t> words;
  for (const RunArgument &run : tables.runs)
    words.push_back(run.words);
  EXPECT_THAT(words, ElementsAre(0, 6, 6, 12)) << "a full run has none of its own";
  EXPECT_THAT(tables.wordsOf, ElementsAre(0, 0, 0, 24, 24, 24)) << "one set per batch row";
  EXPECT_EQ(tables.numWordSets, 2);
  EXPECT_EQ(tables.wordPairs[0], 0);
  EXPECT_EQ(tables.wordPairs[1], 3);
  EXPECT_EQ(tables.wordPairs.size(), 6u) << "room for masks that differ more";
  EXPECT_EQ(tables.numWordTiles, 48);

  MaskTables tooMany =
      maskTables(mask, KernelRows::Q, 4, 4, 2, 3, {.perBatch = true, .perHead = false, .maxTiles = 47});
  EXPECT_TRUE(tooMany.wordsOf.empty());
  EXPECT_EQ(tooMany.numWordTiles, 0);
  EXPECT_EQ(maskTables(mask, KernelRows::Q, 4, 4, 2, 3).numWordTiles, 0) << "none are asked for";
}

TEST(MaskTables, PairsWithOneRowSetMayDifferInBits) {
  BlockMask mask = blockMask({{2, 1}}, 4, 8, 4, 4);
  MaskTables tables = maskTables(mask, KernelRows::Q, 4, 4, 1, 3, {.perBatch = true, .perHead = true, .maxTiles = 100});
  EXPECT_THAT(tables.wordsOf, ElementsAre(0, 1, 2));
  EXPECT_THAT(tables.wordPairs, ElementsAre(0, 1, 2));
}

/// The tables of the kernel for dK and dV, whose rows of tiles run along kv, of a mask written out by q and kv tiles.
MaskTables keyTables(const Written &kinds) {
  auto qLen = static_cast<int64_t>(kinds.size()) * 64, kvLen = static_cast<int64_t>(kinds[0].size()) * 128;
  return maskTables(blockMask(kinds, qLen, kvLen, 64, 128), KernelRows::KV, 64, 128, 1, 1, /*words=*/{},
                    QuerySums::Shared);
}

TEST(MaskTables, RunsAreCutAtLastPartsOnlyWhereTheyAreRead) {
  const Written causal = {{1, 0}, {1, 1}, {1, 1}, {1, 1}};
  MaskTables shared = keyTables(causal);
  ASSERT_THAT(shared.rowBegin, ElementsAre(0, 2, 3));
  EXPECT_TRUE(shared.runs[0].isLastPart) << "no later keys attend to the first queries";
  EXPECT_FALSE(shared.runs[1].isLastPart);

  MaskTables own = maskTables(blockMask(causal, 4 * 64, 2 * 128, 64, 128), KernelRows::KV, 64, 128, 1, 1);
  ASSERT_THAT(own.rowBegin, ElementsAre(0, 1, 2));
  EXPECT_EQ(own.runs[0].end, 4);
  EXPECT_FALSE(own.runs[0].isLastPart);
}

TEST(MaskTables, CausalRowsWalkDown) {
  MaskTables tables = keyTables({{2, 0, 0}, {2, 0, 0}, {1, 2, 0}, {1, 2, 0}, {1, 1, 2}, {1, 1, 2}});
  EXPECT_TRUE(tables.walksDown);
  EXPECT_EQ(tables.longestRow, 6);
  EXPECT_EQ(tables.tilesPerHead, 6 + 4 + 2);
}

TEST(MaskTables, LongFirstRowBeforeAWindowWalksUp) {
  EXPECT_FALSE(
      keyTables({{2, 0, 0, 0}, {2, 2, 0, 0}, {2, 2, 2, 0}, {2, 0, 2, 2}, {2, 0, 0, 2}, {2, 0, 0, 2}}).walksDown);
}

TEST(MaskTables, RowsOfSeparateDocumentsDoNotWaitForEachOther) {
  // The second document begins four tiles down, which walking up would have to wait for were the rows to share a tile.
  EXPECT_TRUE(keyTables({{1, 0}, {1, 0}, {0, 1}, {0, 1}}).walksDown);
  EXPECT_FALSE(keyTables({{1, 1, 0}, {1, 1, 0}, {1, 0, 0}, {0, 0, 1}}).walksDown);
}

} // namespace
} // namespace cpflex
