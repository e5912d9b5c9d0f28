// What tensors in device memory may look like, without a GPU.
#include "runtime/Cuda/DeviceTensor.h"

#include <gtest/gtest.h>

namespace cpflex {
namespace {

using Use = DeviceTensor::Use;

alignas(16) char memory[1 << 16];

/// q [2, 4, 8, 16] in bf16, dense.
DeviceTensor tensor(std::string_view name = "q", Use use = Use::Input, int64_t offsetInElements = 0) {
  return {name,
          {memory + 2 * offsetInElements, ElementType::BF16, {512, 128, 16, 1}},
          ElementType::BF16,
          {2, 4, 8, 16},
          use};
}

std::string why(const DeviceTensor &tensor) { return checkTensor(tensor, nullptr).message(); }

TEST(DeviceTensor, DenseTensorPasses) { EXPECT_EQ(why(tensor()), ""); }

TEST(DeviceTensor, TensorWithoutElementsPasses) {
  DeviceTensor empty = tensor();
  empty.view = {};
  empty.sizes[2] = 0;
  EXPECT_EQ(why(empty), "");
}

TEST(DeviceTensor, FaultsAreNamed) {
  DeviceTensor t = tensor();
  t.view.data = nullptr;
  EXPECT_EQ(why(t), "'q' has no memory");
  t = tensor();
  t.view.type = ElementType::F32;
  EXPECT_EQ(why(t), "'q' has element type 'f32'; expected 'bf16'");
  t = tensor("q", Use::Input, 1);
  EXPECT_NE(why(t).find("expected a multiple of 16 bytes"), std::string::npos);
  t = tensor();
  t.view.strides[3] = 2;
  EXPECT_EQ(why(t), "stride of 'q' along d is 2; expected 1");
  t = tensor();
  t.view.strides[2] = 20;
  EXPECT_EQ(why(t), "stride of 'q' along s is 20 elements; expected a multiple of 8, not negative");
  t = tensor();
  t.view.strides[1] = -128;
  EXPECT_EQ(why(t), "stride of 'q' along h is -128 elements; expected a multiple of 8, not negative");
  t = tensor("o", Use::Output);
  t.view.strides[1] = 0;
  EXPECT_EQ(why(t), "output 'o' is broadcast along h");
}

TEST(DeviceTensor, RowsNeedAStrideOfOneAlongS) {
  DeviceTensor lse{"lse", {memory + 4, ElementType::F32, {33, 9, 1, 1}}, ElementType::F32, {2, 3, 9, 1}, Use::Output};
  EXPECT_EQ(why(lse), "");
  lse.view.strides[2] = 3;
  EXPECT_EQ(why(lse), "stride of 'lse' along s is 3; expected 1");
}

TEST(DeviceTensor, InputsMayOverlap) { EXPECT_TRUE(checkOverlap({tensor("k"), tensor("v")})); }

TEST(DeviceTensor, OutputMayNotOverlap) {
  EXPECT_EQ(checkOverlap({tensor("q"), tensor("o", Use::Output, 1016)}).message(), "output 'o' overlaps 'q'");
  EXPECT_TRUE(checkOverlap({tensor("q"), tensor("o", Use::Output, 1024)}));
  EXPECT_EQ(checkOverlap({tensor("dK", Use::Output), tensor("dV", Use::Output)}).message(),
            "output 'dK' overlaps 'dV'");
}

TEST(DeviceTensor, PackedOutputsDoNotOverlap) {
  // [B, S, 4 + 2 + 2 heads, D]: dQ, dK and dV of grouped heads in one allocation.
  auto packed = [](std::string_view name, int64_t heads, int64_t firstHead) {
    return DeviceTensor{name,
                        {memory + 2 * firstHead * 16, ElementType::BF16, {8 * 8 * 16, 16, 8 * 16, 1}},
                        ElementType::BF16,
                        {2, heads, 8, 16},
                        Use::Output};
  };
  EXPECT_TRUE(checkOverlap({packed("dQ", 4, 0), packed("dK", 2, 4), packed("dV", 2, 6)}));
  EXPECT_EQ(checkOverlap({packed("dQ", 4, 0), packed("dK", 2, 3)}).message(), "output 'dQ' overlaps 'dK'");
  EXPECT_EQ(checkOverlap({packed("dQ", 4, 0), packed("dV", 2, 7)}).message(), "output 'dQ' overlaps 'dV'")
      << "the second head of dV is the first of the next row";
}

TEST(DeviceTensor, PackedOverlapIsNotAnotherPermutation) {
  DeviceTensor a = tensor("dQ", Use::Output), b = tensor("dK", Use::Output, 16);
  EXPECT_EQ(checkOverlap({a, b}).message(), "output 'dQ' overlaps 'dK'");
}

TEST(DeviceTensor, TensorMapNeedsANewDriver) {
  auto driver = CudaDriver::fromFunctions({}, 12000);
  TensorMapArgument map;
  EXPECT_EQ(encodeTensorMap(*driver, tensor(), 64, nullptr, map).message(),
            "the driver has no 'cuTensorMapEncodeTiled'; update it to serve CUDA 12.0 or newer");
}

} // namespace
} // namespace cpflex
