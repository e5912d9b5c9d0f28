// What do pictures and statistics of masks show?
#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "test/runtime/BlockMask/SmallMasks.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <zlib.h>

namespace cpflex::test {
namespace {

int64_t occurrences(const std::string &text, const std::string &part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size()))
    ++count;
  return count;
}

TEST(TextPicture, ShowsOneCellPerTile) {
  EXPECT_EQ(drawText(causalMask(64, 16), {.title = "causal"}),
            "causal\n"
            "     kv 0 .. 64\n"
            " 0 │ ▒▒······\n"
            "   │ ██▒▒····\n"
            "   │ ████▒▒··\n"
            "48 │ ██████▒▒\n"
            "██ full  ▒▒ partial  ·· empty   1 cell = 1 tile of 16 x 16 tokens\n"
            "16 tiles: 6 full, 4 partial, 6 empty (62.50% visited)\n");
}

TEST(TextPicture, CoarseCellsAreFullOnlyWhenAllTheirTilesAre) {
  std::string text = drawText(causalMask(128, 8), {.maxCells = 4});
  EXPECT_NE(text.find("│ ▒▒······\n"), std::string::npos);
  EXPECT_NE(text.find("│ ████▒▒··\n"), std::string::npos);
  EXPECT_NE(text.find("1 cell = 4 x 4 tiles of 8 x 8 tokens"), std::string::npos);
}

TEST(TextPicture, ZoomsIntoTokens) {
  std::string text = drawText(causalMask(128, 16), {.rows = {32, 64}, .columns = {16, 64}});
  EXPECT_NE(text.find("kv 16 .. 64"), std::string::npos);
  EXPECT_NE(text.find("32 │ ██▒▒··\n48 │ ████▒▒\n"), std::string::npos) << text;
}

TEST(TextPicture, SaysWhyThereIsNone) {
  EXPECT_EQ(drawText(causalMask(32, 16), {.batch = 1}),
            "the mask has 1 x 1 (batch, head); expected (1, 0) to be one of them\n");
  EXPECT_EQ(drawText(causalMask(0, 16), {}), "nothing to draw of 0 x 0 tokens\n");
}

TEST(SvgPicture, HasOneTitledRectanglePerRun) {
  PictureOptions options{.title = "a < b", .documentBounds = {20}, .residuals = {"kv <= q"}};
  std::string svg = drawSvg(causalMask(64, 16), options);
  EXPECT_EQ(occurrences(svg, "<title>"), 7); // 4 partial runs and 3 full ones
  EXPECT_NE(svg.find("<title>q 16..32, kv 0..16: full</title>"), std::string::npos);
  EXPECT_NE(svg.find("<title>q 0..16, kv 0..16: partial, kv &lt;= q</title>"), std::string::npos);
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_EQ(occurrences(svg, "<line class=\"b\""), 2);
  EXPECT_NE(svg.find("16 tiles: 6 full, 4 partial, 6 empty"), std::string::npos);
  EXPECT_EQ(occurrences(svg, "<svg"), occurrences(svg, "</svg>"));
}

TEST(SvgPicture, SaysWhyThereIsNone) {
  EXPECT_NE(drawSvg(causalMask(0, 16), {}).find("nothing to draw of 0 x 0 tokens"),
            std::string::npos);
}

TEST(SvgPicture, OfAMillionTokensIsSmall) {
  TapeBuilder builder;
  builder.finish(builder.kv() <= builder.q());
  BlockMaskOptions options;
  options.qLen = options.kvLen = 1 << 20;
  auto result = buildBlockMask(&builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(result.isOk());
  EXPECT_LE(drawSvg(result->mask, {}).size(), 40000u);
}

TEST(PngPicture, HoldsThePixelsOfEachCell) {
  auto png = drawPng(causalMask(64, 16), {.cellPixels = 1});
  ASSERT_TRUE(png.isOk()) << png.status().message();
  EXPECT_EQ(png->substr(1, 3), "PNG");
  size_t data = png->find("IDAT") + 4, end = png->find("IEND") - 8;
  std::string pixels(4 * 5, '?');
  uLongf size = pixels.size();
  ASSERT_EQ(uncompress(reinterpret_cast<Bytef *>(pixels.data()), &size,
                       reinterpret_cast<const Bytef *>(png->data() + data), end - data),
            Z_OK);
  // A filter byte, then 1 for full, 2 for partial.
  EXPECT_EQ(pixels, std::string("\0\2\0\0\0"
                                "\0\1\2\0\0"
                                "\0\1\1\2\0"
                                "\0\1\1\1\2",
                                20));
}

TEST(PngPicture, RefusesSizesBeyondItsLimit) {
  EXPECT_EQ(drawPng(causalMask(64, 16), {.cellPixels = 5000}).status().message(),
            "the picture has 20000 x 20000 pixels; expected at most 16384 in an axis");
  EXPECT_EQ(drawPng(causalMask(64, 16), {.head = 3}).status().message(),
            "the mask has 1 x 1 (batch, head); expected (0, 3) to be one of them");
}

TEST(DifferencePicture, ShowsTheTilesThatDiffer) {
  BlockMask causal = causalMask(64, 16);
  BlockMask strict = maskOf(64, 64, 16, 16, [](int64_t q, int64_t kv) { return kv + 16 <= q; });
  auto text = drawDifferenceText(causal, strict, {.title = "difference"});
  ASSERT_TRUE(text.isOk());
  EXPECT_EQ(text->differingTiles,
            7); // the diagonal and, partial instead of full, the tiles below it
  EXPECT_NE(text->picture.find(" 0 │ ><······\n   │ ><><····\n   │ ··><><··\n48 │ ····><><\n"),
            std::string::npos)
      << text->picture;
  EXPECT_NE(text->picture.find("7 of 16 tiles differ"), std::string::npos);
  auto svg = drawDifferenceSvg(causal, strict, {});
  ASSERT_TRUE(svg.isOk());
  EXPECT_NE(svg->picture.find("kv 0..16: differs"), std::string::npos);
  EXPECT_EQ(drawDifferenceText(causal, causal, {})->differingTiles, 0);
}

TEST(DifferencePicture, NeedsEqualShapes) {
  EXPECT_EQ(drawDifferenceText(causalMask(64, 16), causalMask(64, 8), {}).status().message(),
            "the masks are 64 x 64 in tiles of 16 x 16 and 64 x 64 in tiles of 8 x 8; expected "
            "equal lengths "
            "and tiles");
  EXPECT_EQ(
      drawDifferenceSvg(causalMask(64, 16), causalMask(64, 16), {.batch = -1}).status().message(),
      "the mask has 1 x 1 (batch, head); expected (-1, 0) to be one of them");
}

TEST(Statistics, JsonHoldsThePromisedFields) {
  TapeBuilder builder;
  builder.finish(builder.kv() < builder.q());
  BlockMaskOptions options;
  options.qLen = options.kvLen = 1000;
  auto result = buildBlockMask(&builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(result.isOk());
  auto pairs = countAllowed(result->mask, &builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(pairs.isOk());
  nlohmann::json json =
      nlohmann::json::parse(toJson(*result, {.compileMs = 1.5, .buildMs = 0.25}, &*pairs));
  EXPECT_EQ(json["q_len"], 1000);
  EXPECT_EQ(json["tile_kv"], 128);
  EXPECT_EQ(json["distinct_bh"], 1);
  EXPECT_EQ(json["empty"], 28);
  EXPECT_EQ(json["full"], 28);
  EXPECT_EQ(json["partial"], 8);
  EXPECT_EQ(json["compile_ms"], 1.5);
  EXPECT_EQ(json["build_ms"], 0.25);
  EXPECT_EQ(json["allowed"], 499500);
  EXPECT_EQ(json["rows_without_keys"], 1);
  EXPECT_EQ(json["columns_without_queries"], 1);
  EXPECT_EQ(json["density"], 0.4995);
  EXPECT_GT(json["bytes"], 0);
  EXPECT_GT(json["points_evaluated"], 0);
  EXPECT_EQ(pairs->rowSets[0].rowsWithoutKeys, (std::vector<Range>{{0, 1}}));
  EXPECT_EQ(pairs->rowSets[0].columnsWithoutQueries, (std::vector<Range>{{999, 1000}}));
  EXPECT_FALSE(nlohmann::json::parse(toJson(*result, {}, nullptr)).contains("allowed"));
}

} // namespace
} // namespace cpflex::test
