// The C interface's block masks: statistics, pictures, files and FlexAttention's index lists.
#include "test/api/CInterface.h"

#include <cstring>
#include <fstream>

using namespace capi;

namespace {

constexpr const char *kCausal = "@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n";

Mask build(const Binding &binding, cpflex_block_mask_options options = {}) {
  cpflex_block_mask *mask = nullptr;
  EXPECT_EQ(message(cpflex_block_mask_build(binding.get(), nullptr, &options, &mask)), "");
  return Mask(mask);
}

std::string draw(const Mask &mask, const char *format) {
  cpflex_buffer *buffer = nullptr;
  EXPECT_EQ(message(cpflex_block_mask_draw(mask.get(), format, nullptr, &buffer)), "");
  Buffer owned(buffer);
  return {cpflex_buffer_bytes(buffer), cpflex_buffer_size(buffer)};
}

class BlockMaskC : public testing::Test {
protected:
  Program program_ = compile(kCausal);
  Binding binding_ = bindAll(request(program_, {1, 2, 2, 256, 256}));
};

TEST_F(BlockMaskC, StatisticsAndCountsAreExact) {
  const Mask mask = build(binding_, {.tile_q = 64, .tile_kv = 64, .num_threads = 1, .part = {}});
  const cpflex_block_mask_statistics statistics = cpflex_block_mask_statistics_of(mask.get());
  EXPECT_EQ(statistics.q_len, 256);
  EXPECT_EQ(statistics.tile_kv, 64);
  EXPECT_EQ(statistics.heads, 2);
  EXPECT_EQ(statistics.distinct_bh, 1);
  EXPECT_EQ(statistics.empty, 6);
  EXPECT_EQ(statistics.full, 6);
  EXPECT_EQ(statistics.partial, 4);
  EXPECT_GT(statistics.bytes, 0);
  cpflex_pair_counts counts{};
  ASSERT_EQ(message(cpflex_block_mask_count_pairs(mask.get(), &counts)), "");
  EXPECT_EQ(counts.allowed, 256 * 257 / 2);
  EXPECT_EQ(counts.rows_without_keys, 0);
  EXPECT_DOUBLE_EQ(counts.density, 257.0 / 512);
  std::vector<uint8_t> classes(16);
  ASSERT_EQ(message(cpflex_block_mask_classes(mask.get(), 0, 1, classes.data(), classes.size())), "");
  EXPECT_EQ(classes, (std::vector<uint8_t>{2, 0, 0, 0, 1, 2, 0, 0, 1, 1, 2, 0, 1, 1, 1, 2}));
  EXPECT_EQ(message(cpflex_block_mask_classes(mask.get(), 0, 1, classes.data(), 15)),
            "'classes' holds 15 bytes; expected at least 16");
  EXPECT_EQ(message(cpflex_block_mask_classes(mask.get(), 0, 2, classes.data(), 16)),
            "'b' is 0 and 'h' is 2; expected them below 1 and 2");
}

TEST_F(BlockMaskC, PicturesAreDrawn) {
  const Mask mask = build(binding_);
  EXPECT_NE(draw(mask, "text").find("▒▒"), std::string::npos);
  EXPECT_EQ(draw(mask, "svg").find("<svg"), 0u);
  EXPECT_EQ(draw(mask, "png").substr(1, 3), "PNG");
  EXPECT_NE(draw(mask, "json").find("\"q_len\": 256"), std::string::npos);
  EXPECT_EQ(draw(mask, "npz").substr(0, 2), "PK");
  cpflex_buffer *buffer = nullptr;
  EXPECT_EQ(message(cpflex_block_mask_draw(mask.get(), "pdf", nullptr, &buffer)),
            "'format' is 'pdf'; expected text, svg, png, json or npz");
  cpflex_picture_options picture{};
  picture.head = 2;
  EXPECT_EQ(message(cpflex_block_mask_draw(mask.get(), "text", &picture, &buffer)),
            "the picture shows batch row 0 and head 2; expected them below 1 and 2");
}

int64_t countOf(const std::string &text, const std::string &part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++count;
  return count;
}

std::string draw(const Mask &mask, const char *format, const cpflex_picture_options &options) {
  cpflex_buffer *buffer = nullptr;
  EXPECT_EQ(message(cpflex_block_mask_draw(mask.get(), format, &options, &buffer)), "");
  Buffer owned(buffer);
  return {cpflex_buffer_bytes(buffer), cpflex_buffer_size(buffer)};
}

/// Two documents of 64 tokens for two heads whose windows differ.
class PicturesOfDocuments : public testing::Test {
protected:
  PicturesOfDocuments() {
    for (int i = 0; i < 128; ++i)
      doc_[i] = i / 64;
    const Request bound = request(program_, {1, 2, 2, 128, 128});
    const cpflex_array doc = dense(doc_, {128}), width = dense(width_, {2});
    EXPECT_EQ(message(cpflex_bind_request_array(bound.get(), "doc", &doc, CPFLEX_BORROW)), "");
    EXPECT_EQ(message(cpflex_bind_request_array(bound.get(), "width", &width, CPFLEX_BORROW)), "");
    binding_ = bindAll(bound);
    mask_ = build(binding_, {.tile_q = 16, .tile_kv = 16, .num_threads = 1, .part = {}});
  }

  std::vector<int32_t> doc_ = std::vector<int32_t>(128), width_ = {8, 40};
  Program program_ = compile("doc: tensor[i32, KV_LEN](sorted)\nwidth: tensor[i32, H]\n@mask\ndef m(b, h, q, kv):\n"
                             "    return doc[q] == doc[kv] and 0 <= q - kv < width[h]\n");
  Binding binding_;
  Mask mask_;
};

TEST_F(PicturesOfDocuments, ShowOneHeadOrAPanelForEachThatDiffers) {
  cpflex_picture_options options{};
  EXPECT_EQ(countOf(draw(mask_, "svg", options), "b 0, h "), 0);
  options.heads = CPFLEX_PICTURE_DISTINCT;
  EXPECT_EQ(countOf(draw(mask_, "svg", options), "b 0, h "), 2);
  EXPECT_EQ(countOf(draw(mask_, "text", options), "b 0, h "), 2);
  options.heads = 2;
  cpflex_buffer *buffer = nullptr;
  EXPECT_EQ(message(cpflex_block_mask_draw(mask_.get(), "svg", &options, &buffer)), "'heads' is 2; expected 0 or 1");
}

TEST_F(PicturesOfDocuments, HaveLinesWhereTheCapturesOrTheCallerSay) {
  constexpr const char *kLine = "<line class=\"b\"";
  cpflex_picture_options options{};
  EXPECT_EQ(countOf(draw(mask_, "svg", options), kLine), 2);
  const int64_t bounds[] = {32, 64, 96};
  options.document_bounds = bounds;
  EXPECT_EQ(countOf(draw(mask_, "svg", options), kLine), 0) << "none is asked for";
  options.num_document_bounds = 3;
  EXPECT_EQ(countOf(draw(mask_, "svg", options), kLine), 6);
  const int64_t wrong[] = {64, 32};
  options.document_bounds = wrong;
  options.num_document_bounds = 2;
  cpflex_buffer *buffer = nullptr;
  EXPECT_EQ(message(cpflex_block_mask_draw(mask_.get(), "svg", &options, &buffer)),
            "'document_bounds' do not ascend; expected the positions where documents begin, in order");
}

TEST_F(PicturesOfDocuments, ShowWhereMasksDiffer) {
  width_ = {8, 8};
  const Request bound = request(program_, {1, 2, 2, 128, 128});
  const cpflex_array doc = dense(doc_, {128}), width = dense(width_, {2});
  EXPECT_EQ(message(cpflex_bind_request_array(bound.get(), "doc", &doc, CPFLEX_BORROW)), "");
  EXPECT_EQ(message(cpflex_bind_request_array(bound.get(), "width", &width, CPFLEX_BORROW)), "");
  const Mask other = build(bindAll(bound), {.tile_q = 16, .tile_kv = 16, .num_threads = 1, .part = {}});
  cpflex_picture_options options{};
  cpflex_buffer *buffer = nullptr;
  int64_t count = -1;
  ASSERT_EQ(message(cpflex_block_mask_draw_difference(mask_.get(), other.get(), "text", &options, &count, &buffer)),
            "");
  Buffer owned(buffer);
  EXPECT_EQ(count, 0) << "head 0 is alike";
  options.heads = CPFLEX_PICTURE_DISTINCT;
  for (const char *format : {"text", "svg", "png"}) {
    ASSERT_EQ(message(cpflex_block_mask_draw_difference(mask_.get(), other.get(), format, &options, &count, &buffer)),
              "");
    owned.reset(buffer);
    EXPECT_EQ(count, 12) << "three tiles beside the diagonal, two and one further down, in both documents";
    EXPECT_GT(cpflex_buffer_size(buffer), 0u);
  }
  EXPECT_EQ(message(cpflex_block_mask_draw_difference(mask_.get(), other.get(), "json", &options, &count, &buffer)),
            "'format' is 'json'; expected text, svg or png");
  const Mask coarse = build(binding_, {.tile_q = 32, .tile_kv = 32, .num_threads = 1, .part = {}});
  EXPECT_EQ(message(cpflex_block_mask_draw_difference(mask_.get(), coarse.get(), "text", &options, nullptr, &buffer)),
            "the masks are 128 x 128 in tiles of 16 x 16 and 128 x 128 in tiles of 32 x 32; expected equal lengths and "
            "tiles");
}

TEST_F(BlockMaskC, FilesKeepMasks) {
  const Mask mask = build(binding_);
  const std::string path = testing::TempDir() + "causal.mask";
  ASSERT_EQ(message(cpflex_block_mask_save(mask.get(), path.c_str())), "");
  cpflex_block_mask *handle = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_read(path.c_str(), &handle)), "");
  const Mask read(handle);
  EXPECT_EQ(draw(mask, "text").size() > 0, true);
  EXPECT_EQ(cpflex_block_mask_statistics_of(read.get()).partial, 2);
  cpflex_pair_counts counts{};
  EXPECT_EQ(message(cpflex_block_mask_count_pairs(read.get(), &counts)),
            "the mask was read or imported and has no program; expected one built from a binding");
  std::ofstream(path, std::ios::app) << "x";
  Error damaged(cpflex_block_mask_read(path.c_str(), &handle));
  ASSERT_TRUE(damaged);
  EXPECT_EQ(cpflex_error_code(damaged.get()), CPFLEX_DATA_LOSS);
  std::remove(path.c_str());
  Error missing(cpflex_block_mask_read(path.c_str(), &handle));
  ASSERT_TRUE(missing);
  EXPECT_EQ(cpflex_error_code(missing.get()), CPFLEX_UNAVAILABLE);
}

TEST_F(BlockMaskC, IndexListsGoOutAndComeBack) {
  const Mask mask = build(binding_, {.tile_q = 64, .tile_kv = 64, .num_threads = 0, .part = {}});
  cpflex_index_lists *handle = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_to_index_lists(mask.get(), &handle)), "");
  const Lists lists(handle);
  cpflex_array list[8];
  for (int i = 0; i < 8; ++i)
    ASSERT_EQ(message(cpflex_index_lists_array(lists.get(), i, &list[i])), "");
  EXPECT_EQ(list[CPFLEX_KV_NUM_BLOCKS].rank, 3);
  EXPECT_EQ(list[CPFLEX_Q_INDICES].rank, 4);
  const int32_t *full = static_cast<const int32_t *>(list[CPFLEX_FULL_KV_NUM_BLOCKS].data);
  EXPECT_EQ(std::vector<int32_t>(full, full + 4), (std::vector<int32_t>{0, 1, 2, 3}));
  const int32_t *byKV = static_cast<const int32_t *>(list[CPFLEX_FULL_Q_NUM_BLOCKS].data);
  EXPECT_EQ(std::vector<int32_t>(byKV, byKV + 4), (std::vector<int32_t>{3, 2, 1, 0}));
  cpflex_array none{};
  EXPECT_EQ(message(cpflex_index_lists_array(lists.get(), 8, &none)), "'list' is 8; expected 0 to 7");

  const cpflex_block_mask_statistics shape = cpflex_block_mask_statistics_of(mask.get());
  cpflex_block_mask *imported = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_from_index_lists(&list[0], &list[1], &list[2], &list[3], &shape, &imported)), "");
  const Mask back(imported);
  EXPECT_EQ(draw(back, "npz"), draw(mask, "npz"));
  ASSERT_EQ(message(cpflex_block_mask_from_index_lists(&list[0], &list[1], nullptr, nullptr, &shape, &imported)), "");
  const Mask diagonal(imported);
  EXPECT_EQ(cpflex_block_mask_statistics_of(diagonal.get()).full, 0);
  EXPECT_EQ(cpflex_block_mask_statistics_of(diagonal.get()).partial, 4);

  EXPECT_EQ(message(cpflex_block_mask_from_index_lists(&list[0], &list[1], &list[2], nullptr, &shape, &imported)),
            "only one of 'full_num_blocks' and 'full_indices' is null; expected both or none");
  EXPECT_EQ(message(cpflex_block_mask_from_index_lists(&list[1], &list[1], nullptr, nullptr, &shape, &imported)),
            "'num_blocks' has 4 axes; expected 3");
  EXPECT_EQ(message(cpflex_block_mask_from_index_lists(&list[0], &list[0], nullptr, nullptr, &shape, &imported)),
            "'indices' has elements of type i32 and shape 1x2x4; expected i32 and 1x2x4x4");
  cpflex_block_mask_statistics flat = shape;
  flat.tile_q = 0;
  EXPECT_EQ(message(cpflex_block_mask_from_index_lists(&list[0], &list[1], nullptr, nullptr, &flat, &imported)),
            "'shape' has lengths 256 and 256 and tiles 0 x 64; expected lengths from 0 and tiles from 1");
}

TEST_F(BlockMaskC, PartsSeeGlobalPositions) {
  cpflex_block_mask_options options{.tile_q = 64, .tile_kv = 64, .num_threads = 1, .part = {}};
  options.part.q_begin = 192;
  const Mask last = build(binding_, options);
  const cpflex_block_mask_statistics statistics = cpflex_block_mask_statistics_of(last.get());
  EXPECT_EQ(statistics.q_len, 64);
  EXPECT_EQ(statistics.full, 3);
  EXPECT_EQ(statistics.partial, 1);
  const std::pair<int64_t cpflex_part::*, const char *> beyond[] = {
      {&cpflex_part::q_end, "the part has queries 0 to 257; expected a range within 0 to 256"},
      {&cpflex_part::kv_end, "the part has keys 0 to 257; expected a range within 0 to 256"},
      {&cpflex_part::head_end, "the part has heads 0 to 257; expected a range within 0 to 2"},
      {&cpflex_part::batch_end, "the part has batch rows 0 to 257; expected a range within 0 to 1"}};
  for (auto [member, expected] : beyond) {
    options.part = {};
    options.part.*member = 257;
    cpflex_block_mask *mask = nullptr;
    EXPECT_EQ(message(cpflex_block_mask_build(binding_.get(), nullptr, &options, &mask)), expected);
  }
}

} // namespace
