// Are the functions of Operations.h right at the edges of their domains, and close enough to the real numbers?
#include "runtime/contract/Operations.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace cpflex::test {
namespace {

using ops::Int;
using ops::U32;
constexpr Int kLeast = std::numeric_limits<Int>::min(), kMost = std::numeric_limits<Int>::max();

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

} // namespace
} // namespace cpflex::test
