// Are the functions of Operations.h right at the edges of their domains, and close enough to the real numbers?
#include "runtime/contract/Operations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace cpflex::test {
namespace {

using ops::Int;
using ops::U32;
constexpr Int kLeast = std::numeric_limits<Int>::min(), kMost = std::numeric_limits<Int>::max();

constexpr float kAllFloats = std::numeric_limits<float>::infinity();

TEST(Operations, divisionFloorsAndNeverTraps) {
  EXPECT_EQ(ops::floorDiv(Int(-7), Int(2)), -4);
  EXPECT_EQ(ops::floorDiv(Int(7), Int(-2)), -4);
  EXPECT_EQ(ops::floorDiv(Int(-8), Int(2)), -4);
  EXPECT_EQ(ops::floorDiv(Int(5), Int(0)), 0);
  EXPECT_EQ(ops::floorDiv(kLeast, Int(-1)), kLeast);
  EXPECT_EQ(ops::floorDiv(INT32_MIN, -1), INT32_MIN);
  EXPECT_EQ(ops::floorDiv(-7, 2), -4);
  EXPECT_EQ(ops::floorDiv(7u, 0u), 0u);
  EXPECT_EQ(ops::mod(Int(-7), Int(2)), 1);
  EXPECT_EQ(ops::mod(Int(7), Int(-2)), -1);
  EXPECT_EQ(ops::mod(kLeast, Int(-1)), 0);
  EXPECT_EQ(ops::mod(Int(5), Int(0)), 0);
  EXPECT_EQ(ops::mod(-7, 4), 1);
  EXPECT_EQ(ops::mod(7u, 0u), 0u);
}

TEST(Operations, shiftsAreUnbounded) {
  for (Int a : {Int(0), Int(1), Int(-1), Int(12345), kLeast, kMost})
    for (Int n : {kLeast, Int(-65), Int(-64), Int(-63), Int(-1), Int(0), Int(1), Int(63), Int(64), kMost}) {
      // A left shift by n is a multiplication by 2^n that then wraps or floors.
      __int128 wide = a;
      Int left = n >= 64 ? 0 : n >= 0 ? Int(wide << n) : n <= -64 ? (a < 0 ? -1 : 0) : Int(wide >> -n);
      Int right = n <= -64 ? 0 : n < 0 ? Int(wide << -n) : n >= 64 ? (a < 0 ? -1 : 0) : Int(wide >> n);
      EXPECT_EQ(ops::shiftLeft(a, n), left) << a << " << " << n;
      EXPECT_EQ(ops::shiftRight(a, n), right) << a << " >> " << n;
    }
  for (int a : {0, 1, -1, 12345})
    for (int n : {INT32_MIN, -32, -31, -1, 0, 1, 15, 31, 32, INT32_MAX})
      EXPECT_EQ(ops::shiftRight(a, n), (int)ops::shiftRight(Int(a), Int(n))) << a << " >> " << n;
  EXPECT_EQ(ops::shiftLeft(1u, 32u), 0u);
  EXPECT_EQ(ops::shiftLeft(3u, 31u), 0x80000000u);
  EXPECT_EQ(ops::shiftRight(0x80000000u, 31u), 1u);
}

TEST(Operations, intOfFloatSaturates) {
  float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(ops::toInt(infinity), kMost);
  EXPECT_EQ(ops::toInt(-infinity), kLeast);
  EXPECT_EQ(ops::toInt(0x1p63f), kMost);
  EXPECT_EQ(ops::toInt(-0x1p63f), kLeast);
  EXPECT_EQ(ops::toInt(std::numeric_limits<float>::quiet_NaN()), 0);
  EXPECT_EQ(ops::toInt(-2.75f), -2);
  EXPECT_EQ(ops::toInt(0x1.fffffep62f), 0x7fffff8000000000LL);
}

TEST(Operations, everyHalfIsItsFloat) {
  for (U32 bits = 0; bits < 65536; ++bits) {
    _Float16 half;
    uint16_t narrow = bits;
    __builtin_memcpy(&half, &narrow, 2);
    float expected = half, actual = ops::fromF16(bits);
    if (expected != expected)
      EXPECT_NE(actual, actual) << bits;
    else
      EXPECT_EQ(__builtin_bit_cast(U32, actual), __builtin_bit_cast(U32, expected)) << bits;
  }
}

/// Distance of `actual` from the real number `expected` in units of the last place of the f32 nearest to it.
double distanceInUlp(float actual, double expected) {
  if (std::isnan(expected) || std::isnan(actual))
    return std::isnan(expected) && std::isnan(actual) ? 0 : std::numeric_limits<double>::infinity();
  float nearest = static_cast<float>(expected);
  if (std::isinf(nearest) || std::isinf(actual))
    return nearest == actual || std::abs(actual) == std::numeric_limits<float>::max()
               ? 0
               : std::numeric_limits<double>::infinity();
  int exponent = std::max(expected == 0 ? -126 : std::ilogb(expected), -126);
  return std::abs(actual - expected) / std::ldexp(1.0, exponent - 23);
}

/// The largest distance over one in `stride` of all f32, every special value among them.
template <typename Function, typename Reference>
void expectAccurate(Function function, Reference reference, double mostUlp, float largest = kAllFloats) {
  constexpr uint64_t kStride = 1009;
  double worst = 0;
  float worstAt = 0;
  auto visit = [&](float x) {
    if (largest != kAllFloats && !(std::abs(x) < largest))
      return;
    double distance = distanceInUlp(function(x), reference(static_cast<double>(x)));
    if (distance > worst) {
      worst = distance;
      worstAt = x;
    }
  };
  for (uint64_t bits = 0; bits <= UINT32_MAX; bits += kStride)
    visit(__builtin_bit_cast(float, static_cast<uint32_t>(bits)));
  for (float x :
       {0.0f, -0.0f, 1.0f, -1.0f, 0x1p-149f, -0x1p-149f, 0x1.fffffep127f, -0x1.fffffep127f, INFINITY, -INFINITY, NAN})
    visit(x);
  // Around 1 and 0, where logarithms and sums cancel.
  for (int i = -100000; i <= 100000; ++i)
    visit(1.0f + i * 0x1p-24f);
  EXPECT_LE(worst, mostUlp) << "at " << worstAt;
  testing::Test::RecordProperty("worst_ulp", std::to_string(worst));
}

TEST(OperationsMath, exp) {
  expectAccurate([](float x) { return ops::exp(x); }, [](double x) { return std::exp(x); }, 1.5);
}
TEST(OperationsMath, exp2) {
  expectAccurate([](float x) { return ops::exp2(x); }, [](double x) { return std::exp2(x); }, 1.5);
}
TEST(OperationsMath, log) {
  expectAccurate([](float x) { return ops::log(x); }, [](double x) { return std::log(x); }, 0.51);
}
TEST(OperationsMath, log1p) {
  expectAccurate([](float x) { return ops::log1p(x); }, [](double x) { return std::log1p(x); }, 0.6);
}
TEST(OperationsMath, tanh) {
  expectAccurate([](float x) { return ops::tanh(x); }, [](double x) { return std::tanh(x); }, 2.0);
}
TEST(OperationsMath, sigmoid) {
  expectAccurate([](float x) { return ops::sigmoid(x); }, [](double x) { return 1.0 / (1.0 + std::exp(-x)); }, 2.0);
}
TEST(OperationsMath, sin) {
  expectAccurate([](float x) { return ops::sin(x); }, [](double x) { return std::sin(x); }, 0.51, ops::kLargestAngle);
}
TEST(OperationsMath, cos) {
  expectAccurate([](float x) { return ops::cos(x); }, [](double x) { return std::cos(x); }, 0.51, ops::kLargestAngle);
}
TEST(OperationsMath, rsqrt) {
  expectAccurate([](float x) { return ops::rsqrt(x); }, [](double x) { return x < 0 ? NAN : 1.0 / std::sqrt(x); }, 2.0);
}
TEST(OperationsMath, anglesBeyondAPeriodOfResolutionAreZero) {
  EXPECT_EQ(ops::sin(0x1p30f), 0.0f);
  EXPECT_EQ(ops::cos(-0x1p30f), 1.0f);
  EXPECT_NE(ops::sin(INFINITY), ops::sin(INFINITY));
  EXPECT_NE(ops::cos(NAN), ops::cos(NAN));
}
TEST(OperationsMath, pow) {
  for (float b : {0.0f, 0.5f, 1.0f, 2.0f, 3.0f, -1.0f, -2.5f, 7.0f, 31.0f, -33.0f, 100.5f, 1e6f, 16777217.0f, 1e9f,
                  INFINITY, -INFINITY, NAN}) {
    float worstAt = 0;
    double worst = 0;
    auto visit = [&](float a) {
      double distance = distanceInUlp(ops::pow(a, b), std::pow(static_cast<double>(a), static_cast<double>(b)));
      if (distance > worst) {
        worst = distance;
        worstAt = a;
      }
    };
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += 16381)
      visit(__builtin_bit_cast(float, static_cast<uint32_t>(bits)));
    for (float a : {0.0f, -0.0f, 1.0f, -1.0f, 0.99999994f, 1.0000001f, -1.0000001f, INFINITY, -INFINITY, NAN})
      visit(a);
    EXPECT_LE(worst, 0.6) << worstAt << " to the power of " << b;
  }
}

} // namespace
} // namespace cpflex::test
