// Layouts of the C interface: by rule, from positions, applied to arrays, refused.
#include "test/api/CInterface.h"

#include <numeric>

using namespace capi;

namespace {

Layout made(const char *kind, int64_t length, int32_t worldSize, const cpflex_array *cuSeqlens = nullptr) {
  cpflex_layout *layout = nullptr;
  EXPECT_EQ(message(cpflex_layout_create(kind, length, worldSize, cuSeqlens, &layout)), "");
  return Layout(layout);
}

std::vector<int64_t> permutationOf(const Layout &layout, bool isInverse = false) {
  const cpflex_layout_shape shape = cpflex_layout_shape_of(layout.get());
  std::vector<int64_t> values(size_t(shape.rows * shape.length), -1);
  EXPECT_EQ(message(cpflex_layout_permutation(layout.get(), isInverse ? nullptr : values.data(),
                                              isInverse ? values.data() : nullptr)),
            "");
  return values;
}

TEST(LayoutC, RulesGiveTheirPermutations) {
  EXPECT_EQ(permutationOf(made("head-tail", 16, 2)),
            (std::vector<int64_t>{0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(permutationOf(made("striped", 5, 2)), (std::vector<int64_t>{0, 2, 4, 1, 3}));
  std::vector<int64_t> offsets = {0, 4, 16};
  const cpflex_array documents = dense(offsets, {3});
  const Layout perDocument = made("per-document", 16, 2, &documents);
  EXPECT_EQ(permutationOf(perDocument), (std::vector<int64_t>{0, 3, 4, 5, 6, 13, 14, 15, 1, 2, 7, 8, 9, 10, 11, 12}));
  EXPECT_STREQ(cpflex_layout_shape_of(perDocument.get()).kind, "per-document");
  EXPECT_EQ(cpflex_layout_shard_size(perDocument.get(), 1), 8);
  EXPECT_EQ(cpflex_layout_shard_size(perDocument.get(), 2), 0);
  const Layout contiguous = made("contiguous", 5, 2);
  EXPECT_EQ(permutationOf(contiguous, /*isInverse=*/true), (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(LayoutC, ShardsComeBackWhole) {
  // Two batch rows with layouts of their own, along the second of three axes.
  std::vector<int64_t> positions = {0, 2, 4, 1, 3, 4, 3, 1, 0, 2}, sizes = {3, 2};
  const cpflex_array permutation = dense(positions, {2, 5});
  cpflex_layout *given = nullptr;
  ASSERT_EQ(message(cpflex_layout_from_permutation(&permutation, sizes.data(), 2, &given)), "");
  const Layout layout(given);
  EXPECT_EQ(permutationOf(layout), positions);
  EXPECT_EQ(cpflex_layout_shape_of(layout.get()).rows, 2);
  std::vector<int32_t> whole(2 * 5 * 3), again(whole.size(), -1);
  std::iota(whole.begin(), whole.end(), 0);
  const cpflex_array wholeArray = dense(whole, {2, 5, 3}), againArray = dense(again, {2, 5, 3});
  for (int32_t rank = 0; rank < 2; ++rank) {
    std::vector<int32_t> part(size_t(2 * sizes[size_t(rank)] * 3));
    const cpflex_array partArray = dense(part, {2, sizes[size_t(rank)], 3});
    ASSERT_EQ(message(cpflex_layout_shard(layout.get(), rank, 1, &wholeArray, &partArray)), "");
    EXPECT_EQ(part[3], rank == 0 ? 6 : 9); // the second token of the first batch row
    ASSERT_EQ(message(cpflex_layout_unshard(layout.get(), rank, 1, &partArray, &againArray)), "");
  }
  EXPECT_EQ(again, whole);
}

TEST(LayoutC, RefusesWhatDoesNotFit) {
  cpflex_layout *layout = nullptr;
  const auto create = [&](const char *kind, int64_t length, int32_t worldSize,
                          const cpflex_array *cuSeqlens = nullptr) {
    return message(cpflex_layout_create(kind, length, worldSize, cuSeqlens, &layout));
  };
  EXPECT_EQ(create("zigzag", 8, 2),
            "kind of layout is 'zigzag'; expected contiguous, head-tail, striped or per-document");
  EXPECT_EQ(create("striped", 8, 0), "a layout of 8 tokens for 0 ranks; expected 0 or more tokens and 1 or more ranks");
  EXPECT_EQ(create("per-document", 8, 2), "'cu_seqlens' is null; expected a value");
  std::vector<float> floats = {0, 8};
  const cpflex_array wrong = dense(floats, {2});
  EXPECT_EQ(create("per-document", 8, 2, &wrong), "'cu_seqlens' is f32 with 1 axes; expected i32 or i64 with one");

  const auto own = [&](const cpflex_array &permutation, std::vector<int64_t> sizes) {
    return message(cpflex_layout_from_permutation(&permutation, sizes.data(), int32_t(sizes.size()), &layout));
  };
  EXPECT_EQ(own(wrong, {1, 1}), "'permutation' is f32 with 1 axes; expected i64 with one or two");
  std::vector<int64_t> positions = {0, 1, 1};
  const cpflex_array permutation = dense(positions, {3});
  EXPECT_EQ(own(permutation, {1, -1}), "shard size of rank 1 is -1; expected 0 to 3");
  EXPECT_EQ(own(permutation, {INT64_MAX, INT64_MAX, 5}),
            "shard size of rank 0 is 9223372036854775807; expected 0 to 3");
  EXPECT_EQ(own(permutation, {1, 1}), "the shards have 2 tokens together; expected 3, the length of 'permutation'");
  EXPECT_NE(own(permutation, {2, 1}), "");
  EXPECT_EQ(layout, nullptr);

  const Layout good = made("contiguous", 4, 2);
  std::vector<float> whole(8), part(4);
  cpflex_array wholeArray = dense(whole, {4, 2}), partArray = dense(part, {2, 2});
  const auto copy = [&](int32_t rank, int32_t axis) {
    return message(cpflex_layout_shard(good.get(), rank, axis, &wholeArray, &partArray));
  };
  EXPECT_EQ(copy(2, 0), "rank is 2; expected 0 to 1");
  EXPECT_EQ(copy(0, 2), "'axis' is 2; expected one of the 2 axes of 'whole'");
  EXPECT_EQ(copy(0, 1),
            "'whole' is f32 [4, 2] and 'shard' is f32 [2, 2]; expected one dtype, 4 tokens along axis 1 of 'whole' "
            "and 2 of 'shard'");
  wholeArray.strides[0] = 1;
  EXPECT_EQ(copy(0, 0), "'whole' or 'shard' is not dense in host memory; expected both to be");
}

} // namespace
