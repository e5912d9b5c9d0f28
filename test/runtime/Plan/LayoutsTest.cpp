// Do layouts own every token once, as evenly as promised, and do shards come back whole?
#include "runtime/Plan/Layouts.h"
#include "TestMasks.h"
#include "runtime/Plan/ShardArrays.h"
#include "runtime/Plan/SolvedLayout.h"

#include <gtest/gtest.h>

using namespace cpflex;
using namespace cpflex::test;

namespace {

std::vector<int64_t> positions(const PositionMap &map) {
  std::vector<int64_t> result;
  for (const AffinePiece &piece : map.pieces)
    for (int64_t i = 0; i < piece.count; ++i)
      result.push_back(piece.begin + i * piece.step);
  return result;
}

/// All layouts that can be made for a document mask of this length.
std::vector<Layout> allLayouts(int64_t length, int32_t worldSize, int64_t batch) {
  TestMask mask(MaskRule::Document, batch, 1, length, length, 16);
  PlanRequest request;
  request.shape.batch = batch;
  request.shape.qLen = request.shape.kvLen = length;
  request.worldSize = worldSize;
  request.mask = &mask.mask;
  std::vector<Layout> layouts = {contiguousLayout(length, worldSize), headTailLayout(length, worldSize),
                                 stripedLayout(length, worldSize)};
  layouts.push_back(*perDocumentLayout(mask.offsets, length, worldSize));
  layouts.push_back(*ptrrLayout(tileWork(request, mask.mask), 16, length, worldSize));
  std::vector<int64_t> firstKeys;
  for (int64_t tile = 0; tile < mask.mask.numQTiles(); ++tile)
    firstKeys.push_back(mask.mask.rowSets[0].runs[size_t(mask.mask.rowSets[0].rowBegin[size_t(tile)])].begin * 16);
  for (double threshold : {0.5, 1.0, 2.0})
    for (const std::vector<int64_t> *keys :
         {static_cast<const std::vector<int64_t> *>(nullptr), static_cast<const std::vector<int64_t> *>(&firstKeys)})
      layouts.push_back(bandedLayout(tileWork(request, mask.mask), keys, 16, length, worldSize, threshold, 0.05));
  StatusOr<LayoutPair> solved = chooseLayouts(request, mask.mask);
  EXPECT_TRUE(solved.isOk());
  layouts.push_back(solved->q);
  return layouts;
}

TEST(Layouts, OwnEveryTokenOnceAndEvenly) {
  for (int64_t length : {0, 1, 5, 64, 127, 300, 513})
    for (int32_t worldSize = 1; worldSize <= 8; ++worldSize)
      for (const Layout &layout : allLayouts(length, worldSize, 3)) {
        Status status = verifyLayout(layout);
        ASSERT_TRUE(status.isOk()) << status.message();
        for (int32_t rank = 0; rank < worldSize; ++rank) {
          EXPECT_GE(layout.shardSize(rank), length / worldSize)
              << int(layout.kind) << " " << length << " " << worldSize;
          EXPECT_LE(layout.shardSize(rank), length / worldSize + 1);
        }
      }
}

TEST(Layouts, HeadTailOrderIsThatOfPyTorch) {
  EXPECT_EQ(permutation(headTailLayout(16, 2)),
            (std::vector<int64_t>{0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(permutation(headTailLayout(16, 4)),
            (std::vector<int64_t>{0, 1, 14, 15, 2, 3, 12, 13, 4, 5, 10, 11, 6, 7, 8, 9}));
}

TEST(Layouts, PerDocumentOrderIsRankMajor) {
  StatusOr<Layout> layout = perDocumentLayout(std::vector<std::vector<int64_t>>{{0, 4, 16}}, 16, 2);
  ASSERT_TRUE(layout.isOk());
  EXPECT_EQ(permutation(*layout), (std::vector<int64_t>{0, 3, 4, 5, 6, 13, 14, 15, 1, 2, 7, 8, 9, 10, 11, 12}));
}

TEST(Layouts, PtrrDealsInAlternatingDirections) {
  StatusOr<Layout> layout = ptrrLayout(std::vector<std::vector<double>>{{1, 2, 3, 4, 5, 6, 7, 8}}, 1, 8, 4);
  ASSERT_TRUE(layout.isOk());
  EXPECT_EQ(permutation(*layout), (std::vector<int64_t>{0, 7, 1, 6, 2, 5, 3, 4}));
}

TEST(Layouts, DocumentsAreReadOffTheMask) {
  TestMask mask(MaskRule::Document, 1, 1, 64, 64, 16, 1);
  EXPECT_EQ(documentOffsets(mask.mask), (std::vector<std::vector<int64_t>>{{0, 64}}));
  // Two documents of 32 tokens: the diagonal blocks of a hand-made mask.
  BlockMask blocks;
  blocks.qLen = blocks.kvLen = 64;
  blocks.tileQ = blocks.tileKV = 16;
  blocks.rowSetOf = {0};
  blocks.rowSets = {{{0, 1, 2, 3, 4}, {{0, 1}, {0, 2}, {2, 3}, {2, 4}}}};
  EXPECT_EQ(documentOffsets(blocks), (std::vector<std::vector<int64_t>>{{0, 32, 64}}));
}

TEST(Layouts, ShardsComeBackWhole) {
  const int64_t batch = 3, heads = 2, length = 77, headDim = 5;
  for (const Layout &layout : allLayouts(length, 3, batch)) {
    std::vector<float> global(size_t(batch * heads * length * headDim)), back(global.size(), -1.0f);
    std::iota(global.begin(), global.end(), 0.0f);
    for (int32_t rank = 0; rank < 3; ++rank) {
      SequenceArrayShape shape{batch, heads, headDim, sizeof(float)};
      std::vector<float> local(size_t(batch * heads * layout.shardSize(rank) * headDim));
      ASSERT_TRUE(shard(layout, rank, shape, global.data(), local.data()).isOk());
      EXPECT_EQ(local[0], float(positions(layout.shard(0, rank))[0] * headDim));
      ASSERT_TRUE(unshard(layout, rank, shape, local.data(), back.data()).isOk());
    }
    EXPECT_EQ(back, global);
    // Labels [B, S] follow the permutation.
    std::vector<int64_t> order = permutation(layout), inverse = inversePermutation(layout);
    for (int64_t i = 0; i < length; ++i)
      EXPECT_EQ(inverse[size_t(order[size_t(i)])], i);
  }
}

TEST(Layouts, FaultsAreNamed) {
  auto message = [](const Status &status) { return status.message(); };
  EXPECT_EQ(message(perDocumentLayout(std::vector<std::vector<int64_t>>{{0, 5}}, 8, 2).status()),
            "document offsets of batch row 0 do not ascend from 0 to 8; expected every document boundary");
  EXPECT_EQ(message(perDocumentLayout({}, 8, 2).status()),
            "a per-document layout without document offsets; expected one list of boundaries or more");
  EXPECT_EQ(message(ptrrLayout(std::vector<std::vector<double>>{{1, 2}}, 4, 16, 2).status()),
            "2 work values for 16 tokens in units of 4; expected 4");
  EXPECT_EQ(message(ptrrLayout({}, 4, 16, 2).status()), "a ptrr layout without work values; expected one list or more");
  Layout layout = contiguousLayout(8, 2);
  layout.shards[1].pieces[0].begin = 3;
  EXPECT_EQ(message(verifyLayout(layout)), "token 3 of batch row 0 belongs to ranks 0 and 1; expected one owner");
  layout.shards[1].pieces[0] = {5, 3, 1};
  EXPECT_EQ(message(verifyLayout(layout)), "token 4 of batch row 0 belongs to no rank; expected one owner");
  layout.shards[1].pieces[0] = {5, 4, 1};
  EXPECT_EQ(message(verifyLayout(layout)), "rank 1 owns token 8 in batch row 0; expected tokens in [0, 8)");
  layout.shards.pop_back();
  EXPECT_EQ(message(verifyLayout(layout)),
            "layout of 2 ranks, 1 rows and 8 tokens with 1 shards; expected one shard for each row and rank");
  Layout rows = contiguousLayout(4, 2);
  rows.rows = 2;
  rows.shards = {{{{0, 2, 1}}}, {{{2, 2, 1}}}, {{{0, 3, 1}}}, {{{3, 1, 1}}}};
  EXPECT_EQ(message(verifyLayout(rows)),
            "rank 0 owns 3 tokens in batch row 1 and 2 in batch row 0; expected equally many in each");
  float value = 0;
  EXPECT_EQ(message(shard(contiguousLayout(1, 1), 1, {}, &value, &value)),
            "rank 1 of a layout of 1 ranks; expected a rank in [0, 1)");
  EXPECT_EQ(message(shard(rows, 0, {}, &value, &value)),
            "an array with 1 batch rows for a layout with 2; expected equally many");
}

TEST(Layouts, HeadsOfLongDocumentsStayWithTheirDeepRows) {
  // Four documents of an eighth of the sequence, then many of 64 tokens: only the long ones need keys of other ranks.
  const int64_t length = 8192, longDocument = 1024, shortDocument = 64;
  BlockMask mask;
  mask.qLen = mask.kvLen = length;
  mask.tileQ = mask.tileKV = 64;
  mask.rowSetOf = {0};
  TileRows rows;
  rows.rowBegin = {0};
  std::vector<int64_t> firstKeys;
  for (int64_t tile = 0; tile < length / shortDocument; ++tile) {
    const int32_t tilesOfLong = int32_t(longDocument / shortDocument);
    const int32_t first = tile < 4 * tilesOfLong ? int32_t(tile) / tilesOfLong * tilesOfLong : int32_t(tile);
    firstKeys.push_back(first * mask.tileKV);
    if (first < tile)
      rows.runs.push_back({first, int32_t(tile), TileClass::Full, 0});
    rows.runs.push_back({int32_t(tile), int32_t(tile + 1), TileClass::Partial, 0});
    rows.rowBegin.push_back(int32_t(rows.runs.size()));
  }
  mask.rowSets = {rows};
  PlanRequest request;
  request.shape.qLen = request.shape.kvLen = length;
  request.worldSize = 8;
  request.mask = &mask;
  const auto scoreOf = [&](const std::vector<int64_t> *keys) {
    const Layout layout = bandedLayout(tileWork(request, mask), keys, 64, length, 8, /*threshold=*/1.0, 0.02);
    return scoreLayout(request, mask, layout, layout);
  };
  const LayoutScore apart = scoreOf(nullptr), together = scoreOf(&firstKeys);
  EXPECT_LT(together.totalReceivedRows, apart.totalReceivedRows);
}

} // namespace
