// Are need sets those that brute force finds, in whole tiles and token by token?
#include "runtime/Plan/NeedSets.h"
#include "TestMasks.h"
#include "runtime/Plan/Layouts.h"

#include <gtest/gtest.h>

using namespace cpflex;
using namespace cpflex::test;

namespace {

/// Need sets of every rank by looking at every pair; widened to tiles where asked.
RangeSet bruteForce(const TestMask &mask, const CallShape &shape, const BatchGroup &group, const PositionMap &shard,
                    int64_t tileQ, int64_t tileKV) {
  std::vector<uint8_t> needed(size_t(shape.kvLen), 0);
  for (int64_t b = group.batch.begin; b < group.batch.end; ++b)
    for (int64_t h = 0; h < shape.qHeads; ++h)
      for (const AffinePiece &piece : shard.pieces)
        for (int64_t i = 0; i < piece.count; ++i) {
          const int64_t position = piece.begin + i * piece.step;
          const Range rows = {position / tileQ * tileQ, std::min(shape.qLen, (position / tileQ + 1) * tileQ)};
          for (int64_t q = rows.begin; q < rows.end; ++q)
            for (int64_t kv = 0; kv < shape.kvLen; ++kv)
              if (mask.attendsAt(b, h, q, kv))
                for (int64_t near = kv / tileKV * tileKV; near < std::min(shape.kvLen, (kv / tileKV + 1) * tileKV);
                     ++near)
                  needed[size_t(near)] = 1;
        }
  RangeSet result;
  for (int64_t p = 0; p < shape.kvLen; ++p)
    if (needed[size_t(p)])
      result.push_back({p, p + 1});
  return normalized(std::move(result));
}

TEST(NeedSets, EqualBruteForce) {
  for (MaskRule rule : {MaskRule::Full, MaskRule::Causal, MaskRule::Document, MaskRule::Window, MaskRule::Prefix,
                        MaskRule::PerHead, MaskRule::Holes, MaskRule::Cross}) {
    CallShape shape;
    shape.batch = 2;
    shape.qHeads = 2;
    shape.qLen = 90;
    shape.kvLen = rule == MaskRule::Cross ? 131 : 90;
    TestMask mask(rule, shape.batch, shape.qHeads, shape.qLen, shape.kvLen, 16);
    PlanRequest request;
    request.shape = shape;
    request.functions = &mask.functions;
    request.bindings = &mask.bindings;
    for (int32_t worldSize : {1, 2, 3, 5})
      for (const Layout &layout : {contiguousLayout(shape.qLen, worldSize), headTailLayout(shape.qLen, worldSize),
                                   stripedLayout(shape.qLen, worldSize)}) {
        Layout kvLayout = contiguousLayout(shape.kvLen, worldSize);
        for (const BatchGroup &group : batchGroups(mask.mask, shape, layout, kvLayout))
          for (int32_t rank = 0; rank < worldSize; ++rank) {
            const PositionMap &shard = layout.shard(group.batch.begin, rank);
            EXPECT_EQ(needOfShard(mask.mask, group, shard), bruteForce(mask, shape, group, shard, 16, 16));
            EXPECT_EQ(exactNeedOfShard(mask.mask, group, shard, {}, request),
                      bruteForce(mask, shape, group, shard, 1, 1));
          }
      }
  }
}

TEST(NeedSets, KnownPositionsOfAttendingTilesCountWithoutALook) {
  TestMask mask(MaskRule::Document, 1, 1, 64, 64, 16);
  CallShape shape;
  shape.qLen = shape.kvLen = 64;
  PlanRequest request;
  request.functions = &mask.functions;
  request.bindings = &mask.bindings;
  Layout layout = contiguousLayout(64, 2);
  BatchGroup group = batchGroups(mask.mask, shape, layout, layout)[0];
  RangeSet exact = exactNeedOfShard(mask.mask, group, layout.shard(0, 1), {}, request);
  RangeSet withKnown = exactNeedOfShard(mask.mask, group, layout.shard(0, 1), {{32, 64}}, request);
  // Foreign positions are the same; own ones may be whole tiles.
  EXPECT_EQ(unionOf(exact, {{32, 64}}), unionOf(withKnown, {{32, 64}}));
}

TEST(NeedSets, BatchRowsThatDifferAreGroupedApart) {
  TestMask mask(MaskRule::Document, 3, 1, 128, 128, 16);
  CallShape shape;
  shape.batch = 3;
  shape.qLen = shape.kvLen = 128;
  Layout layout = contiguousLayout(128, 2);
  EXPECT_EQ(batchGroups(mask.mask, shape, layout, layout).size(), 3u);
  TestMask causal(MaskRule::Causal, 3, 1, 128, 128, 16);
  EXPECT_EQ(batchGroups(causal.mask, shape, layout, layout).size(), 1u);
}

TEST(NeedSets, RangeSetsJoinAndCount) {
  EXPECT_EQ(normalized({{5, 7}, {0, 2}, {2, 3}, {4, 4}}), (RangeSet{{0, 3}, {5, 7}}));
  EXPECT_EQ(sizeOf({{0, 3}, {5, 7}}), 5);
  EXPECT_EQ(unionOf({{0, 3}}, {{2, 6}, {9, 10}}), (RangeSet{{0, 6}, {9, 10}}));
}

} // namespace
