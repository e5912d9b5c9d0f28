// Do the bits of partial tiles say which pairs attend, in every order?
#include "runtime/BlockMask/KeepWords.h"
#include "test/runtime/BlockMask/SmallMasks.h"

#include <gtest/gtest.h>

#include <numeric>

namespace cpflex::test {
namespace {

/// Documents inside a causal window, of lengths that fit no tile; the second head sees less.
struct TwoHeads {
  TapeBuilder builder;
  std::vector<int32_t> ids;
  BlockMaskOptions options;

  TwoHeads() {
    for (int32_t i = 0; i < 150; ++i)
      ids.push_back(i / 37);
    int doc = builder.ints(ids);
    Value q = builder.q(), kv = builder.kv();
    builder.finish((builder.load(doc, {q}) == builder.load(doc, {kv})) & (kv <= q) &
                   (q - kv < builder.constant(90) - builder.h() * builder.constant(70)));
    options.heads = 2;
    options.qLen = 150;
    options.kvLen = 141;
    options.tileQ = 32;
    options.tileKV = 16;
  }
  bool attends(int64_t h, int64_t q, int64_t kv) const { return ids[q] == ids[kv] && kv <= q && q - kv < 90 - h * 70; }
};

void expectBits(const TwoHeads &mask, std::span<const int32_t> order, int threads) {
  BlockMaskOptions options = mask.options;
  options.threads = threads;
  auto built = buildBlockMask(&mask.builder.tape(), mask.builder.bindings(), options);
  ASSERT_TRUE(built.isOk());
  auto keep = keepWords(built->mask, mask.builder.tape(), mask.builder.bindings(), options, order);
  ASSERT_TRUE(keep.isOk()) << keep.status().message();
  EXPECT_EQ(keep->wordsPerTile, 16);
  int64_t numPartial = 0;
  for (int64_t h = 0; h < 2; ++h) {
    const TileKeepWords &part = keep->parts[keep->partOf[h]];
    const TileRows &rows = built->mask.rowSets[part.rowSet];
    EXPECT_EQ(rows, built->mask.rows(0, h));
    int64_t tile = 0;
    for (int64_t row = 0; row < built->mask.numQTiles(); ++row) {
      ASSERT_EQ(part.firstTileOfRow[row], tile);
      for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i)
        for (int32_t column = rows.runs[i].begin; column < rows.runs[i].end; ++column) {
          if (rows.runs[i].tileClass != TileClass::Partial)
            continue;
          ++numPartial;
          for (int32_t bit = 0; bit < 32 * 16; ++bit) {
            int32_t pair = order.empty() ? bit : order[bit];
            int64_t q = row * 32 + pair / 16, kv = column * 16 + pair % 16;
            bool expected = q < 150 && kv < 141 && mask.attends(h, q, kv);
            bool seen = part.words[tile * 16 + bit / 32] >> (bit % 32) & 1;
            ASSERT_EQ(seen, expected) << h << " " << q << " " << kv;
          }
          ++tile;
        }
    }
    EXPECT_EQ(static_cast<int64_t>(part.words.size()), tile * 16);
  }
  EXPECT_GT(numPartial, 20);
}

TEST(KeepWords, SayWhichPairsAttend) {
  TwoHeads mask;
  expectBits(mask, {}, /*threads=*/1);
  expectBits(mask, *accumulatorOrder(32, 16), /*threads=*/2);
  expectBits(mask, *transposedAccumulatorOrder(32, 16), /*threads=*/1);
}

TEST(KeepWords, FollowTheThreadsOfTensorCores) {
  std::vector<int32_t> order = *accumulatorOrder(32, 16);
  // Lane 5 of warp 1 holds rows 17 and 25, columns 2, 3, 10 and 11.
  std::vector<int32_t> wanted;
  for (auto [row, column] : {std::pair{17, 2}, {17, 3}, {25, 2}, {25, 3}, {17, 10}, {17, 11}, {25, 10}, {25, 11}})
    wanted.push_back(row * 16 + column);
  EXPECT_EQ(std::vector<int32_t>(order.begin() + (32 + 5) * 8, order.begin() + (32 + 6) * 8), wanted);
  std::sort(order.begin(), order.end());
  for (int32_t i = 0; i < 32 * 16; ++i)
    ASSERT_EQ(order[i], i);
}

TEST(KeepWords, OfAMaskWithoutPartialTilesAreNone) {
  TapeBuilder builder;
  builder.finish(builder.kv() / 16 == builder.q() / 16);
  BlockMaskOptions options;
  options.qLen = options.kvLen = 64;
  options.tileQ = options.tileKV = 16;
  auto built = buildBlockMask(&builder.tape(), builder.bindings(), options);
  auto keep = keepWords(built->mask, builder.tape(), builder.bindings(), options, {});
  ASSERT_TRUE(keep.isOk());
  EXPECT_TRUE(keep->parts[0].words.empty());
}

TEST(KeepWordErrors, SayWhatWasSeenAndExpected) {
  TwoHeads mask;
  auto built = buildBlockMask(&mask.builder.tape(), mask.builder.bindings(), mask.options);
  auto messageOf = [&](std::span<const int32_t> order, int64_t maxBytes) {
    return keepWords(built->mask, mask.builder.tape(), mask.builder.bindings(), mask.options, order, maxBytes)
        .status()
        .message();
  };
  constexpr int64_t kEnough = 1 << 30;
  std::vector<int32_t> order(512);
  EXPECT_EQ(messageOf(std::span(order).first(3), kEnough),
            "the order of bits has 3 entries; expected 512, one per pair of a tile");
  EXPECT_EQ(messageOf(order, kEnough), "entry 1 of the order of bits is 0; expected each of 0 to 511 once");
  EXPECT_NE(messageOf({}, 100).find("partial tiles take 64 bytes each; expected at most 100 bytes in all"),
            std::string::npos);
  EXPECT_EQ(accumulatorOrder(24, 16).status().message(),
            "the product is 24 x 16; expected multiples of 16 x 8 for the order of tensor cores");
  EXPECT_EQ(transposedAccumulatorOrder(32, 24).status().message(),
            "the product is 24 x 32; expected multiples of 16 x 8 for the order of tensor cores");
  BlockMaskOptions other = mask.options;
  other.qLen = 149;
  EXPECT_EQ(keepWords(built->mask, mask.builder.tape(), mask.builder.bindings(), other, {}).status().message(),
            "the mask whose bits are asked for has other sizes than the options; expected equal ones");
  BlockMask large = built->mask;
  large.tileQ = large.tileKV = int64_t(1) << 20;
  EXPECT_EQ(keepWords(large, mask.builder.tape(), mask.builder.bindings(), mask.options, {}).status().message(),
            "tiles of 1048576 x 1048576 have more pairs than 32-bit indices hold; choose smaller tiles");
}

} // namespace
} // namespace cpflex::test
