// Do set operations, windows and transpositions of runs equal those of the pairs?
#include "runtime/BlockMask/BlockMaskAlgebra.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "test/runtime/BlockMask/SmallMasks.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

constexpr int64_t kQLen = 100, kKVLen = 116, kTileQ = 10, kTileKV = 8;

BlockMask standardMask(const Pairs &pairs) { return maskOf(kQLen, kKVLen, kTileQ, kTileKV, pairs); }

/// The class of one tile of the first row set.
TileClass classAt(const BlockMask &mask, int64_t row, int64_t column) {
  const TileRows &rows = mask.rowSets[0];
  for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i)
    if (rows.runs[i].begin <= column && column < rows.runs[i].end)
      return rows.runs[i].tileClass;
  return TileClass::Empty;
}

/// `got` equals `truth` but for at most `unsettled` tiles, which are Partial in `got`.
void expectExactBut(const CombinedMask &got, const BlockMask &truth) {
  ASSERT_TRUE(verifyBlockMask(got.mask).isOk()) << verifyBlockMask(got.mask).message();
  ASSERT_EQ(got.mask.numQTiles(), truth.numQTiles());
  ASSERT_EQ(got.mask.numKVTiles(), truth.numKVTiles());
  int64_t different = 0;
  for (int64_t row = 0; row < truth.numQTiles(); ++row)
    for (int64_t column = 0; column < truth.numKVTiles(); ++column) {
      TileClass a = classAt(got.mask, row, column), b = classAt(truth, row, column);
      different += a != b;
      EXPECT_TRUE(a == b || a == TileClass::Partial) << row << " " << column;
    }
  EXPECT_LE(different, got.unsettled);
}

TEST(Algebra, SetOperationsAreExactButForTwoPartialTiles) {
  for (const Pairs &left : somePairs())
    for (const Pairs &right : somePairs()) {
      BlockMask a = standardMask(left), b = standardMask(right);
      auto both = combine(MaskOperation::Intersection, a, b);
      auto either = combine(MaskOperation::Union, a, b);
      auto only = combine(MaskOperation::Difference, a, b);
      ASSERT_TRUE(both.isOk() && either.isOk() && only.isOk());
      expectExactBut(*both, standardMask([&](int64_t q, int64_t kv) { return left(q, kv) && right(q, kv); }));
      expectExactBut(*either, standardMask([&](int64_t q, int64_t kv) { return left(q, kv) || right(q, kv); }));
      expectExactBut(*only, standardMask([&](int64_t q, int64_t kv) { return left(q, kv) && !right(q, kv); }));
    }
}

TEST(Algebra, BlockAlignedUnionIsExact) {
  BlockMask a = standardMask([](int64_t q, int64_t kv) { return q / 10 == kv / 8; });
  BlockMask b = standardMask([](int64_t q, int64_t kv) { return kv < 16; });
  auto either = combine(MaskOperation::Union, a, b);
  ASSERT_TRUE(either.isOk());
  EXPECT_EQ(either->unsettled, 0);
  EXPECT_TRUE(
      isSameMask(either->mask, standardMask([](int64_t q, int64_t kv) { return q / 10 == kv / 8 || kv < 16; })));
}

TEST(Algebra, CombiningBroadcastsHeads) {
  BlockMask one = standardMask(somePairs()[0]);
  BlockMask many = one;
  many.heads = 3;
  many.rowSets.push_back(standardMask(somePairs()[1]).rowSets[0]);
  many.rowSetOf = {0, 1, 0};
  auto both = combine(MaskOperation::Intersection, one, many);
  ASSERT_TRUE(both.isOk());
  EXPECT_EQ(both->mask.heads, 3);
  EXPECT_EQ(both->mask.rowSets.size(), 2u);
  EXPECT_EQ(both->mask.rowSetOf, (std::vector<int32_t>{0, 1, 0}));
}

TEST(Algebra, ComplementAndTransposeAreExact) {
  for (const Pairs &pairs : somePairs()) {
    BlockMask mask = standardMask(pairs);
    EXPECT_TRUE(isSameMask(complement(mask), standardMask([&](int64_t q, int64_t kv) { return !pairs(q, kv); })));
    EXPECT_TRUE(isSameMask(
        transpose(mask), maskOf(kKVLen, kQLen, kTileKV, kTileQ, [&](int64_t q, int64_t kv) { return pairs(kv, q); })));
    EXPECT_EQ(transpose(transpose(mask)), mask);
  }
}

TEST(Algebra, WindowsAreExactButForCutPartialTiles) {
  for (const Pairs &pairs : somePairs())
    for (auto [qBegin, kvBegin, qLen, kvLen, tileQ, tileKV] : {std::tuple{0, 0, 100, 116, 20, 16},
                                                               {0, 0, 100, 116, 5, 4},
                                                               {0, 0, 100, 116, 7, 9},
                                                               {20, 16, 60, 72, 10, 8},
                                                               {3, 5, 50, 77, 10, 8},
                                                               {-20, 16, 100, 116, 10, 8},
                                                               {-7, -3, 130, 140, 13, 11}}) {
      auto got = window(standardMask(pairs), {qBegin, kvBegin, qLen, kvLen, tileQ, tileKV});
      ASSERT_TRUE(got.isOk());
      BlockMask truth = maskOf(qLen, kvLen, tileQ, tileKV, [&](int64_t q, int64_t kv) {
        q += qBegin;
        kv += kvBegin;
        return q >= 0 && q < kQLen && kv >= 0 && kv < kKVLen && pairs(q, kv);
      });
      expectExactBut(*got, truth);
    }
}

TEST(Algebra, CoarserTilingSliceAndShiftByTilesAreExact) {
  BlockMask causal = causalMask(128, 8);
  auto coarse = retile(causal, 16, 32);
  ASSERT_TRUE(coarse.isOk());
  EXPECT_EQ(coarse->unsettled, 0);
  EXPECT_TRUE(isSameMask(coarse->mask, maskOf(128, 128, 16, 32, somePairs()[0])));
  auto part = slice(causal, {32, 96}, {16, 64});
  ASSERT_TRUE(part.isOk());
  EXPECT_EQ(part->unsettled, 0);
  EXPECT_TRUE(isSameMask(part->mask, maskOf(64, 48, 8, 8, [](int64_t q, int64_t kv) { return kv + 16 <= q + 32; })));
  auto moved = shift(causal, 8, 0);
  ASSERT_TRUE(moved.isOk());
  EXPECT_EQ(moved->unsettled, 0);
  EXPECT_TRUE(isSameMask(moved->mask, maskOf(128, 128, 8, 8, [](int64_t q, int64_t kv) { return kv <= q - 8; })));
}

TEST(Algebra, ConcatenationUndoesSlices) {
  for (const Pairs &pairs : somePairs()) {
    BlockMask mask = standardMask(pairs);
    auto top = slice(mask, {0, 30}, {0, kKVLen}), bottom = slice(mask, {30, kQLen}, {0, kKVLen});
    auto left = slice(mask, {0, kQLen}, {0, 48}), right = slice(mask, {0, kQLen}, {48, kKVLen});
    ASSERT_TRUE(top.isOk() && bottom.isOk() && left.isOk() && right.isOk());
    BlockMask rows[] = {top->mask, bottom->mask}, columns[] = {left->mask, right->mask};
    auto byRow = concatenate(rows, MaskAxis::Q), byColumn = concatenate(columns, MaskAxis::KV);
    ASSERT_TRUE(byRow.isOk() && byColumn.isOk());
    EXPECT_EQ(*byRow, mask);
    EXPECT_EQ(*byColumn, mask);
  }
}

TEST(Algebra, SettlingMakesAFinerTilingExact) {
  TapeBuilder builder;
  Value q = builder.q(), kv = builder.kv();
  builder.finish((kv <= q) & (kv > q - 30));
  BlockMaskOptions options;
  options.qLen = kQLen;
  options.kvLen = kKVLen;
  options.tileQ = 40;
  options.tileKV = 40;
  auto coarse = buildBlockMask(&builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(coarse.isOk());
  auto fine = retile(coarse->mask, 10, 8);
  ASSERT_TRUE(fine.isOk());
  EXPECT_GT(fine->unsettled, 0);
  auto settled = settlePartialTiles(fine->mask, builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(settled.isOk());
  EXPECT_TRUE(isSameMask(*settled, standardMask([](int64_t q, int64_t kv) { return kv <= q && kv > q - 30; })));
  EXPECT_FALSE(isSameMask(*settled, fine->mask));
}

TEST(AlgebraErrors, SayWhatDoesNotFit) {
  BlockMask mask = causalMask(64, 8), other = causalMask(64, 16);
  EXPECT_EQ(combine(MaskOperation::Union, mask, other).status().message(),
            "cannot combine a mask of 64 x 64 in tiles of 8 x 8 with one of 64 x 64 in tiles of 16 x 16; "
            "expected equal lengths and tiles");
  BlockMask twoHeads = mask, threeHeads = mask;
  twoHeads.heads = 2;
  twoHeads.rowSetOf = {0, 0};
  threeHeads.heads = 3;
  threeHeads.rowSetOf = {0, 0, 0};
  EXPECT_EQ(combine(MaskOperation::Union, twoHeads, threeHeads).status().message(),
            "cannot combine masks of 1 x 2 and 1 x 3 (batch, head); expected equal numbers or 1");
  EXPECT_EQ(concatenate({}, MaskAxis::Q).status().message(), "nothing to concatenate; expected at least one mask");
  BlockMask unlike[] = {mask, other};
  EXPECT_EQ(concatenate(unlike, MaskAxis::Q).status().message(),
            "cannot concatenate masks of unlike shape; expected equal tiles, batches, heads and "
            "length of "
            "the other axis");
  BlockMask odd[] = {maskOf(20, 64, 8, 8, somePairs()[0]), mask};
  EXPECT_EQ(concatenate(odd, MaskAxis::Q).status().message(),
            "a mask before the last is 20 long; expected a multiple of its tile, 8");
  EXPECT_EQ(window(mask, {0, 0, -1, 4, 8, 8}).status().message(),
            "the window is -1 x 4 in tiles of 8 x 8; expected sizes of 0 or more and tiles of 1 or more");
  EXPECT_EQ(slice(mask, {0, 65}, {0, 64}).status().message(),
            "cannot slice rows 0..65 and columns 0..64 of a mask of 64 x 64; expected them inside");
  TapeBuilder builder;
  builder.finish(builder.kv() <= builder.q());
  EXPECT_EQ(settlePartialTiles(mask, builder.tape(), builder.bindings(), {}).status().message(),
            "the mask to settle has other sizes than the options; expected equal ones");
}

TEST(AlgebraErrors, VerificationNamesWhatIsBroken) {
  BlockMask good = causalMask(64, 8);
  ASSERT_TRUE(verifyBlockMask(good).isOk());
  auto messageOf = [&](auto &&change) {
    BlockMask bad = good;
    change(bad);
    return verifyBlockMask(bad).message();
  };
  EXPECT_EQ(messageOf([](BlockMask &m) { m.tileQ = 0; }), "not a mask: sizes are negative");
  EXPECT_EQ(messageOf([](BlockMask &m) { m.qLen = int64_t(1) << 62; }),
            "not a mask: sizes are beyond 32-bit tile indices");
  EXPECT_EQ(messageOf([](BlockMask &m) { m.heads = 2; }),
            "not a mask: the table of row sets has another size than batch x heads");
  EXPECT_EQ(messageOf([](BlockMask &m) { m.rowSetOf[0] = 1; }),
            "not a mask: a (batch, head) names a row set that is not there");
  EXPECT_EQ(messageOf([](BlockMask &m) { m.rowSets[0].rowBegin.pop_back(); }),
            "not a mask: a row set does not have one begin per row of tiles");
  EXPECT_EQ(messageOf([](BlockMask &m) { std::swap(m.rowSets[0].rowBegin[1], m.rowSets[0].rowBegin[2]); }),
            "not a mask: the rows of a row set are not in order");
  EXPECT_EQ(messageOf([](BlockMask &m) { m.rowSets[0].runs[0].end = 9; }),
            "not a mask: runs overlap, are empty or leave the mask");
  EXPECT_EQ(messageOf([](BlockMask &m) { m.rowSets[0].runs[0].tileClass = TileClass::Empty; }),
            "not a mask: a run is neither full nor partial");
}

} // namespace
} // namespace cpflex::test
