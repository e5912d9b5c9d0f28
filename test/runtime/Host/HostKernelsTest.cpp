// The inner loops in each instruction set that this machine has: accuracy of the exponential, conversions, products.
#include "runtime/Host/HostKernels.h"
#include "runtime/Host/HostAttention.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <random>
#include <vector>

using namespace cpflex;

namespace {

class HostKernelsTest : public testing::TestWithParam<InstructionSet> {
protected:
  void SetUp() override {
    kernels = hostKernels(GetParam());
    if (!kernels)
      GTEST_SKIP() << "this processor lacks " << toString(GetParam());
  }
  const HostKernels *kernels = nullptr;
};

INSTANTIATE_TEST_SUITE_P(InstructionSets, HostKernelsTest,
                         testing::Values(InstructionSet::Baseline, InstructionSet::Avx2, InstructionSet::Avx512,
                                         InstructionSet::Avx512BFloat16),
                         [](const auto &parameter) {
                           std::string name = toString(parameter.param);
                           std::erase(name, '-');
                           return name;
                         });

TEST_P(HostKernelsTest, ExponentialIsWithinTwoUlp) {
  // Every 97th float of the range where the result is a normal number.
  double worst = 0;
  std::vector<float> inputs, outputs;
  for (float limit : {-87.336f, 88.722f}) {
    uint32_t end;
    std::memcpy(&end, &limit, sizeof end);
    for (uint32_t bits = end & 0x80000000u; bits < end; bits += 97 * 16) {
      float value;
      std::memcpy(&value, &bits, sizeof value);
      inputs.push_back(value);
    }
  }
  outputs = inputs;
  kernels->exponential(outputs.data(), int64_t(outputs.size()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    double exact = std::exp(double(inputs[i]));
    double ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
    worst = std::max(worst, std::abs(outputs[i] - exact) / ulp);
  }
  EXPECT_LE(worst, 2.0);
}

TEST_P(HostKernelsTest, ExponentialOfSpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  float payload;
  const uint32_t payloadBits = 0xffc12345u;
  std::memcpy(&payload, &payloadBits, sizeof payload);
  float values[] = {0.0f, -0.0f, infinity, -infinity, std::nanf(""), payload, 100.0f, -100.0f, -1e30f, 1e30f, 88.7228f};
  kernels->exponential(values, std::size(values));
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[1], 1.0f);
  EXPECT_EQ(values[2], infinity);
  EXPECT_EQ(values[3], 0.0f);
  EXPECT_TRUE(std::isnan(values[4]));
  EXPECT_TRUE(std::isnan(values[5]));
  EXPECT_EQ(values[6], infinity);
  EXPECT_EQ(values[7], 0.0f);
  EXPECT_EQ(values[8], 0.0f);
  EXPECT_EQ(values[9], infinity);
  EXPECT_TRUE(std::isfinite(values[10]));
}

TEST_P(HostKernelsTest, HalfPrecisionConversionsAreExactAndRoundToNearestEven) {
  // All 65536 patterns of both types survive widening and narrowing; NaNs stay NaNs.
  for (ElementType type : {ElementType::F16, ElementType::BF16}) {
    std::vector<uint16_t> from(128 * 128), to(128 * 128);
    std::vector<float> block(kBlockFloats);
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int i = 0; i < 128 * 128; ++i)
        from[i] = uint16_t(quarter * 128 * 128 + i);
      kernels->packRows({from.data(), type, 128, 1}, 128, 128, block.data());
      kernels->unpackRows(block.data(), kBlockStride, kBlockFloats, nullptr, 128, 128, false,
                          {to.data(), type, 128, 1});
      for (int i = 0; i < 128 * 128; ++i) {
        bool isNaN = type == ElementType::F16 ? (from[i] & 0x7fff) > 0x7c00 : (from[i] & 0x7fff) > 0x7f80;
        if (isNaN)
          EXPECT_TRUE(std::isnan(block[i / 128 * kBlockStride + i % 128]));
        else
          EXPECT_EQ(from[i], to[i]);
        if (type == ElementType::F16 && !isNaN) {
          _Float16 half;
          std::memcpy(&half, &from[i], 2);
          EXPECT_EQ(float(half), block[i / 128 * kBlockStride + i % 128]);
        }
      }
    }
  }
  // Random floats of all sizes narrow as the compiler's own conversion does.
  std::mt19937 generator(1);
  std::vector<float> values(kBlockFloats);
  for (int repetition = 0; repetition < 20; ++repetition) {
    for (float &value : values)
      value = std::ldexp(float(int32_t(generator())), int(generator() % 60) - 60);
    std::vector<uint16_t> narrow(128 * 128);
    kernels->unpackRows(values.data(), kBlockStride, kBlockFloats, nullptr, 128, 128, false,
                        {narrow.data(), ElementType::F16, 128, 1});
    for (int i = 0; i < 128 * 128; ++i) {
      _Float16 expected = _Float16(values[i / 128 * kBlockStride + i % 128]);
      EXPECT_EQ(std::memcmp(&expected, &narrow[i], 2), 0) << values[i / 128 * kBlockStride + i % 128];
    }
  }
}

TEST_P(HostKernelsTest, PackingReportsNonFiniteElements) {
  std::vector<float> from(150 * 200, 1.0f), blocks(2 * kBlockFloats);
  EXPECT_TRUE(kernels->packRows({from.data(), ElementType::F32, 200, 1}, 100, 200, blocks.data()));
  EXPECT_TRUE(kernels->packColumns({from.data(), ElementType::F32, 200, 1}, 100, 200, blocks.data()));
  for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    from[99 * 200 + 199] = bad;
    EXPECT_FALSE(kernels->packRows({from.data(), ElementType::F32, 200, 1}, 100, 200, blocks.data()));
    EXPECT_FALSE(kernels->packColumns({from.data(), ElementType::F32, 200, 1}, 100, 200, blocks.data()));
    EXPECT_TRUE(kernels->packRows({from.data(), ElementType::F32, 200, 1}, 99, 200, blocks.data()));
  }
}

TEST_P(HostKernelsTest, PackColumnsTransposes) {
  std::vector<float> from(37 * 150), blocks(2 * kBlockFloats, -1.0f);
  for (int i = 0; i < 37 * 150; ++i)
    from[i] = float(i);
  kernels->packColumns({from.data(), ElementType::F32, 150, 1}, 37, 150, blocks.data());
  for (int r = 0; r < 37; ++r)
    for (int c = 0; c < 150; ++c)
      EXPECT_EQ(blocks[c / 128 * kBlockFloats + c % 128 * kBlockStride + r], from[r * 150 + c]);
  EXPECT_EQ(blocks[40], 0.0f);
}

TEST_P(HostKernelsTest, ProductsMatchPlainLoops) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<float> a(kBlockFloats), b(kBlockFloats), c(kBlockFloats), scale(kBlockSize);
  for (std::vector<float> *array : {&a, &b, &c, &scale})
    for (float &value : *array)
      value = normal(generator);
  for (bool isATransposed : {false, true})
    for (ProductUse use : {ProductUse::Replace, ProductUse::Add, ProductUse::ScaleRows})
      for (int numRows : {1, 7, 12, 41, 128})
        for (int numColumns : {16, 48, 128})
          for (int depth : {1, 33, 128}) {
            std::vector<float> actual = c;
            kernels->multiply({a.data(), isATransposed, b.data(), actual.data(), kBlockStride, numRows, numColumns,
                               depth, use, 0.5f, scale.data()});
            double worst = 0;
            for (int m = 0; m < numRows; ++m)
              for (int n = 0; n < numColumns; ++n) {
                double sum = 0;
                for (int k = 0; k < depth; ++k)
                  sum += double(isATransposed ? a[k * kBlockStride + m] : a[m * kBlockStride + k]) *
                         b[k * kBlockStride + n];
                double before = c[m * kBlockStride + n];
                double expected = use == ProductUse::Replace ? 0.5 * sum
                                  : use == ProductUse::Add   ? before + 0.5 * sum
                                                             : before * scale[m] + sum;
                worst = std::max(worst, std::abs(expected - actual[m * kBlockStride + n]));
              }
            // 128 roundings of sums of about 30.
            EXPECT_LE(worst, 128 * 30 * 0x1p-24);
            EXPECT_EQ(actual[numColumns], c[numColumns]);
          }
}

TEST(HostKernelsOfPairs, ProductsMatchPlainLoops) {
  const HostKernels *kernels = hostKernels(InstructionSet::Avx512BFloat16);
  if (!kernels)
    GTEST_SKIP() << "this processor has no AVX-512 BF16";
  ASSERT_TRUE(kernels->multiplyPairs);
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  // Each element holds two bf16: those of k = 2 i and 2 i + 1.
  std::vector<float> a(kBlockFloats), b(kBlockFloats), c(kBlockFloats);
  for (std::vector<float> *array : {&a, &b})
    for (float &pair : *array) {
      const uint32_t low = std::bit_cast<uint32_t>(normal(generator)) >> 16;
      const uint32_t high = std::bit_cast<uint32_t>(normal(generator)) & 0xffff0000u;
      pair = std::bit_cast<float>(high | low);
    }
  const auto half = [](float pair, int which) {
    const uint32_t bits = std::bit_cast<uint32_t>(pair);
    return double(std::bit_cast<float>(which ? bits & 0xffff0000u : bits << 16));
  };
  for (int numRows : {1, 7, 41, 128})
    for (int depth : {1, 33, 128}) {
      kernels->multiplyPairs(
          {a.data(), false, b.data(), c.data(), kBlockStride, numRows, 128, depth, ProductUse::Replace, 1.0f, nullptr});
      double worst = 0;
      for (int m = 0; m < numRows; ++m)
        for (int n = 0; n < 128; ++n) {
          double sum = 0;
          for (int k = 0; k < depth; ++k)
            for (int which : {0, 1})
              sum += half(a[m * kBlockStride + k], which) * half(b[k * kBlockStride + n], which);
          worst = std::max(worst, std::abs(sum - c[m * kBlockStride + n]));
        }
      // 256 roundings of sums of about 40: products of bf16 are exact.
      EXPECT_LE(worst, 256 * 40 * 0x1p-24);
    }
}

} // namespace
