// What is copied of a capture, against a driver in host memory.
#include "runtime/Cuda/DeviceCopies.h"

#include "test/runtime/Cuda/FakeGpu.h"

#include <gtest/gtest.h>

#include <numeric>

namespace cpflex {
namespace {

TEST(DeviceCopies, CaptureKeepsItsElementsUnderItsStrides) {
  test::FakeGpu gpu;
  std::vector<int32_t> values(40);
  std::iota(values.begin(), values.end(), 0);
  // [3, 4]: rows backwards, every second column, one axis that is broadcast between them.
  const CaptureView view{
      .data = &values[25], .shape = {3, 5, 4}, .strides = {-10, 0, 2}, .type = ElementType::I32, .rank = 3};
  DeviceCopies copies;
  StatusOr<CaptureView> copy = copies.add(gpu.device(), view, /*stream=*/nullptr);
  ASSERT_TRUE(copy) << copy.status().message();
  EXPECT_NE(copy->data, view.data);
  EXPECT_EQ(copies.sizeInBytes(), int64_t(20 + 6 + 1) * 4) << "from the first element in memory to the last";
  for (int row = 0; row < 3; ++row)
    for (int column = 0; column < 4; ++column)
      EXPECT_EQ(static_cast<const int32_t *>(copy->data)[-10 * row + 2 * column], 25 - 10 * row + 2 * column);
}

TEST(DeviceCopies, CaptureWithoutElementsIsNotCopied) {
  test::FakeGpu gpu;
  int32_t value = 0;
  DeviceCopies copies;
  const CaptureView view{.data = &value, .shape = {3, 0}, .strides = {0, 1}, .type = ElementType::I32, .rank = 2};
  StatusOr<CaptureView> copy = copies.add(gpu.device(), view, /*stream=*/nullptr);
  ASSERT_TRUE(copy) << copy.status().message();
  EXPECT_EQ(copy->data, &value);
  EXPECT_EQ(copies.sizeInBytes(), 0);
}

} // namespace
} // namespace cpflex
