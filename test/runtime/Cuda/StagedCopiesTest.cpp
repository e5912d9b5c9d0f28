// Arrays that are staged and uploaded later, against a driver in host memory.
#include "runtime/Cuda/StagedCopies.h"

#include "test/runtime/Cuda/FakeGpu.h"

#include <gtest/gtest.h>

#include <numeric>

namespace cpflex {
namespace {

class StagedCopiesTest : public testing::Test {
protected:
  test::FakeGpu gpu;
  std::vector<int32_t> values = std::vector<int32_t>(40);
  void SetUp() override { std::iota(values.begin(), values.end(), 0); }
  static void upload(StagedCopies &copies) {
    for (const CudaUpload &upload : copies.takeUploads())
      std::memcpy(reinterpret_cast<void *>(upload.to), upload.from, static_cast<size_t>(upload.sizeInBytes));
  }
};

TEST_F(StagedCopiesTest, CaptureKeepsItsElementsUnderItsStrides) {
  // [3, 4]: rows backwards, every second column, one axis that is broadcast between them.
  const CaptureView view{
      .data = &values[25], .shape = {3, 5, 4}, .strides = {-10, 0, 2}, .type = ElementType::I32, .rank = 3};
  const int64_t sizes[] = {100, elementSpan(view).size()};
  EXPECT_EQ(sizes[1], (20 + 6 + 1) * 4) << "from the first element in memory to the last";
  auto copies = StagedCopies::reserve(gpu.device(), sizes);
  ASSERT_TRUE(copies);
  auto copy = copies->stage(1, "array 'a'", view);
  ASSERT_TRUE(copy) << copy.status().message();
  upload(*copies);
  for (int row = 0; row < 3; ++row)
    for (int column = 0; column < 4; ++column)
      EXPECT_EQ(static_cast<const int32_t *>(copy->data)[-10 * row + 2 * column], 25 - 10 * row + 2 * column);
}

TEST_F(StagedCopiesTest, AnotherArrayTakesThePlace) {
  const int64_t sizes[] = {16};
  auto copies = StagedCopies::reserve(gpu.device(), sizes);
  ASSERT_TRUE(copies);
  auto first = copies->stage(0, "array 'a'", &values[0], 16);
  upload(*copies);
  auto second = copies->stage(0, "array 'a'", &values[8], 8);
  ASSERT_TRUE(first);
  ASSERT_TRUE(second);
  EXPECT_EQ(*first, *second);
  EXPECT_EQ(static_cast<const int32_t *>(*first)[0], 0) << "until it is uploaded";
  upload(*copies);
  EXPECT_EQ(static_cast<const int32_t *>(*first)[0], 8);
  EXPECT_EQ(copies->stage(0, "array 'a'", &values[0], 20).status().message(),
            "array 'a' takes 20 bytes on the GPU; expected at most 16, which are reserved for it");
  EXPECT_TRUE(copies->takeUploads().empty());
}

TEST_F(StagedCopiesTest, CaptureWithoutElementsIsNotCopied) {
  const int64_t sizes[] = {0};
  auto copies = StagedCopies::reserve(gpu.device(), sizes);
  ASSERT_TRUE(copies);
  EXPECT_TRUE(copies->isEmpty());
  const CaptureView view{
      .data = values.data(), .shape = {3, 0}, .strides = {0, 1}, .type = ElementType::I32, .rank = 2};
  auto copy = copies->stage(0, "array 'a'", view);
  ASSERT_TRUE(copy);
  EXPECT_EQ(copy->data, values.data());
  EXPECT_EQ(copies->sizeInBytes(), 0);
}

} // namespace
} // namespace cpflex
