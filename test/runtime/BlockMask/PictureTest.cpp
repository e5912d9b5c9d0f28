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
  PictureOptions options{.title = "a < b", .documentBounds = {{20}}, .residuals = {"kv <= q"}};
  std::string svg = drawSvg(causalMask(64, 16), options);
  EXPECT_EQ(occurrences(svg, "<title>"), 7); // 4 partial runs and 3 full ones
  EXPECT_NE(svg.find("<title>q 16..32, kv 0..16: full</title>"), std::string::npos);
  EXPECT_NE(svg.find("<title>q 0..16, kv 0..16: partial, kv &lt;= q</title>"), std::string::npos);
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_EQ(occurrences(svg, "<line class=\"b\""), 2);
  EXPECT_NE(svg.find("16 tiles: 6 full, 4 partial, 6 empty"), std::string::npos);
  EXPECT_EQ(occurrences(svg, "<svg"), occurrences(svg, "</svg>"));
}

TEST(SvgPicture, EveryCellOfARunKnowsItsResidual) {
  BlockMask mask = maskOf(16, 64, 16, 16, [](int64_t q, int64_t kv) { return kv <= q || kv > 40; });
  mask.rowSets[0].runs = {{0, 3, TileClass::Partial, 2}, {3, 4, TileClass::Partial, 1}};
  mask.rowSets[0].rowBegin = {0, 2};
  std::vector<std::string> residuals = {"whole", "first", "second"};
  std::string svg = drawSvg(mask, {.residuals = residuals});
  EXPECT_NE(svg.find("kv 0..48: partial, second</title>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("kv 48..64: partial, first</title>"), std::string::npos);
  // A cell of several tiles has no residual of its own.
  svg = drawSvg(mask, {.maxCells = 2, .residuals = residuals});
  EXPECT_EQ(svg.find("second"), std::string::npos);
  EXPECT_EQ(svg.find("first"), std::string::npos);
}

TEST(SvgPicture, LeavesOutDocumentsThatLieCloserThanTheCells) {
  std::vector<std::vector<int64_t>> bounds = {{3, 6, 9, 12, 15}};
  EXPECT_EQ(occurrences(drawSvg(causalMask(64, 16), {.documentBounds = bounds}), "class=\"b\""), 0);
  // In a window that shows few of them they are back.
  PictureOptions zoomed{.rows = {0, 8}, .columns = {0, 8}, .documentBounds = bounds};
  EXPECT_EQ(occurrences(drawSvg(causalMask(64, 4), zoomed), "class=\"b\""), 4);
}

TEST(SvgPicture, DocumentsBeginWhereASortedCaptureChanges) {
  TapeBuilder builder;
  builder.ints({7, 1});                                                   // of another length
  builder.capture(ElementType::F32, std::vector<float>{0, 0, 1, 1}, {4}); // no ids
  builder.ints({0, 0, 0, 5});                                             // not declared sorted
  builder.ints({2, 2, 3, 4});
  std::vector<CaptureDeclaration> declarations(4);
  for (int slot : {0, 1, 3})
    declarations[slot].isSorted = true;
  EXPECT_EQ(documentBoundsOf(declarations, builder.bindings(), causalMask(4, 4)),
            (std::vector<std::vector<int64_t>>{{2, 3}}));
  EXPECT_TRUE(documentBoundsOf(declarations, builder.bindings(), causalMask(8, 4)).empty());
}

TEST(SvgPicture, EachBatchRowHasItsDocuments) {
  TapeBuilder builder;
  builder.capture(ElementType::I32, std::vector<int32_t>{0, 0, 0, 1, 0, 1, 1, 2}, {2, 4});
  std::vector<CaptureDeclaration> declarations(1);
  declarations[0].isSorted = true;
  declarations[0].dims = {"B", "KV_LEN"};
  BlockMask mask = causalMask(4, 1);
  mask.batch = 2;
  mask.rowSetOf = {0, 1};
  mask.rowSets.push_back(maskOf(4, 4, 1, 1, [](int64_t q, int64_t kv) { return q == kv; }).rowSets[0]);
  PictureOptions options{.heads = PictureHeads::Distinct};
  options.documentBounds = documentBoundsOf(declarations, builder.bindings(), mask);
  EXPECT_EQ(options.documentBounds, (std::vector<std::vector<int64_t>>{{3}, {1, 3}}));
  std::string svg = drawSvg(mask, options);
  size_t second = svg.find("b 1, h 0");
  ASSERT_NE(second, std::string::npos);
  EXPECT_EQ(occurrences(svg.substr(0, second), "class=\"b\""), 2);
  EXPECT_EQ(occurrences(svg.substr(second), "class=\"b\""), 4);
}

/// Two batches of three heads: heads 0 and 2 are causal, head 1 of each batch sees its own.
BlockMask maskOfSixHeads() {
  BlockMask mask = causalMask(64, 16);
  mask.batch = 2;
  mask.heads = 3;
  mask.rowSetOf = {0, 1, 0, 0, 2, 0};
  for (int64_t width : {1, 2})
    mask.rowSets.push_back(
        maskOf(64, 64, 16, 16, [&](int64_t q, int64_t kv) { return q / 16 - kv / 16 < width && kv <= q; }).rowSets[0]);
  return mask;
}

TEST(HeadGrids, HaveAPanelForEachDistinctHead) {
  BlockMask mask = maskOfSixHeads();
  PictureOptions options{.heads = PictureHeads::Distinct, .title = "m"};
  std::string svg = drawSvg(mask, options);
  EXPECT_EQ(occurrences(svg, "<svg"), 4);
  EXPECT_EQ(occurrences(svg, "</svg>"), 4);
  for (const char *title : {">m, b 0, h 0 and 3 more<", ">m, b 0, h 1<", ">m, b 1, h 1<"})
    EXPECT_NE(svg.find(title), std::string::npos) << title;
  std::string text = drawText(mask, options);
  EXPECT_NE(text.find("m\nb 0, h 0 and 3 more\n"), std::string::npos) << text;
  EXPECT_EQ(occurrences(text, "16 tiles:"), 3);
  EXPECT_EQ(text.find("shown"), std::string::npos);
  // One panel has no title of its own.
  EXPECT_EQ(drawText(causalMask(64, 16), options).find("b 0"), std::string::npos);
}

TEST(HeadGrids, SayHowManyTheyLeaveOut) {
  BlockMask mask = causalMask(64, 16);
  mask.heads = 70;
  mask.rowSetOf.clear();
  for (int32_t head = 0; head < 70; ++head) {
    mask.rowSetOf.push_back(head);
    mask.rowSets.push_back(mask.rowSets[0]);
  }
  PictureOptions options{.heads = PictureHeads::Distinct};
  EXPECT_NE(drawText(mask, options).find("64 of 70 distinct (b, h) shown\n"), std::string::npos);
  EXPECT_NE(drawSvg(mask, options).find(">64 of 70 distinct (b, h) shown<"), std::string::npos);
}

TEST(SvgPicture, SaysWhyThereIsNone) {
  EXPECT_NE(drawSvg(causalMask(0, 16), {}).find("nothing to draw of 0 x 0 tokens"), std::string::npos);
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

TEST(PngPicture, SeparatesThePanelsOfHeads) {
  auto png = drawPng(maskOfSixHeads(), {.heads = PictureHeads::Distinct, .cellPixels = 1});
  ASSERT_TRUE(png.isOk()) << png.status().message();
  // Two by two panels of 4 x 4 cells, 8 pixels apart.
  EXPECT_EQ(png->substr(16, 8), std::string("\0\0\0\x10\0\0\0\x10", 8));
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
  EXPECT_NE(text->picture.find(" 0 │ ><······\n   │ ><><····\n   │ ··><><··\n48 │ ····><><\n"), std::string::npos)
      << text->picture;
  EXPECT_NE(text->picture.find("7 of 16 tiles differ"), std::string::npos);
  auto svg = drawDifferenceSvg(causal, strict, {});
  ASSERT_TRUE(svg.isOk());
  EXPECT_NE(svg->picture.find("kv 0..16: differs"), std::string::npos);
  EXPECT_EQ(drawDifferenceText(causal, causal, {})->differingTiles, 0);
  auto png = drawDifferencePng(causal, strict, {.cellPixels = 1});
  ASSERT_TRUE(png.isOk());
  EXPECT_EQ(png->differingTiles, 7);
  EXPECT_EQ(png->picture.substr(1, 3), "PNG");
}

TEST(DifferencePicture, ShowsTheHeadsThatDiffer) {
  BlockMask left = maskOfSixHeads(), right = left;
  right.rowSetOf[4] = 1; // b 1, h 1
  PictureOptions options{.heads = PictureHeads::Distinct};
  auto difference = drawDifferenceText(left, right, options);
  ASSERT_TRUE(difference.isOk());
  EXPECT_EQ(difference->differingTiles, 3);
  EXPECT_EQ(occurrences(difference->picture, "tiles differ"), 1);
  // Residuals are numbered by each program on its own.
  right = left;
  for (TileRun &run : right.rowSets[0].runs)
    run.residual = run.tileClass == TileClass::Partial;
  EXPECT_EQ(drawDifferenceText(left, right, options)->differingTiles, 0);
}

TEST(DifferencePicture, NeedsEqualShapes) {
  EXPECT_EQ(drawDifferenceText(causalMask(64, 16), causalMask(64, 8), {}).status().message(),
            "the masks are 64 x 64 in tiles of 16 x 16 and 64 x 64 in tiles of 8 x 8; expected "
            "equal lengths "
            "and tiles");
  EXPECT_EQ(drawDifferenceSvg(causalMask(64, 16), causalMask(64, 16), {.batch = -1}).status().message(),
            "the mask has 1 x 1 (batch, head); expected (-1, 0) to be one of them");
  EXPECT_EQ(drawDifferencePng(causalMask(64, 16), maskOfSixHeads(), {}).status().message(),
            "the masks have 1 x 1 and 2 x 3 (batch, head); expected equal numbers");
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
  nlohmann::json json = nlohmann::json::parse(toJson(*result, {.compileMs = 1.5, .buildMs = 0.25}, &*pairs));
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
