// The concrete meaning of every operation of the mask language, once, for every target: plain inline functions that
// compile as host C++, as CUDA C++ under NVRTC and to the bitcode that the JIT links. See Operations.def for the table.
//
// Integers are 64 bits and wrap; `//` floors, `%` takes the divisor's sign; division by zero gives 0; a shift outside
// 0..63 (0..31 for u32) gives what an unbounded shift would; int(nan) is 0 and int of a large float saturates.
#pragma once

#if defined(__CUDACC_RTC__)
#define CPFLEX_OPS_FUNCTION static __device__ __forceinline__
#else
#include "runtime/contract/OperationsMath.h"
#define CPFLEX_OPS_FUNCTION static inline
#endif

namespace cpflex::ops {

using Int = long long;
using U32 = unsigned int;
using Bits = unsigned long long;

// Signed integers: `Int`, and `int` for values that were proved to fit in 32 bits. They wrap, so arithmetic is done on
// unsigned bits. Quotients are computed without branches, with a divisor that cannot trap, so that loops vectorise.
#define CPFLEX_OPS_SIGNED(TYPE, UNSIGNED, WIDTH)                                                                       \
  CPFLEX_OPS_FUNCTION TYPE add(TYPE a, TYPE b) { return (TYPE)((UNSIGNED)a + (UNSIGNED)b); }                           \
  CPFLEX_OPS_FUNCTION TYPE sub(TYPE a, TYPE b) { return (TYPE)((UNSIGNED)a - (UNSIGNED)b); }                           \
  CPFLEX_OPS_FUNCTION TYPE mul(TYPE a, TYPE b) { return (TYPE)((UNSIGNED)a * (UNSIGNED)b); }                           \
  CPFLEX_OPS_FUNCTION TYPE neg(TYPE a) { return (TYPE)(0 - (UNSIGNED)a); }                                             \
  CPFLEX_OPS_FUNCTION TYPE abs(TYPE a) { return a < 0 ? neg(a) : a; }                                                  \
  CPFLEX_OPS_FUNCTION TYPE min(TYPE a, TYPE b) { return b < a ? b : a; }                                               \
  CPFLEX_OPS_FUNCTION TYPE max(TYPE a, TYPE b) { return b > a ? b : a; }                                               \
  CPFLEX_OPS_FUNCTION TYPE bitAnd(TYPE a, TYPE b) { return a & b; }                                                    \
  CPFLEX_OPS_FUNCTION TYPE bitOr(TYPE a, TYPE b) { return a | b; }                                                     \
  CPFLEX_OPS_FUNCTION TYPE bitXor(TYPE a, TYPE b) { return a ^ b; }                                                    \
  CPFLEX_OPS_FUNCTION TYPE bitNot(TYPE a) { return ~a; }                                                               \
  CPFLEX_OPS_FUNCTION TYPE floorDiv(TYPE a, TYPE b) {                                                                  \
    TYPE divisor = b == 0 || b == -1 ? 1 : b;                                                                          \
    TYPE quotient = a / divisor;                                                                                       \
    TYPE remainder = a % divisor;                                                                                      \
    TYPE floored = remainder != 0 && (remainder ^ divisor) < 0 ? quotient - 1 : quotient;                              \
    return b == 0 ? 0 : b == -1 ? neg(a) : floored; /* the one quotient that overflows wraps */                        \
  }                                                                                                                    \
  CPFLEX_OPS_FUNCTION TYPE mod(TYPE a, TYPE b) {                                                                       \
    TYPE divisor = b == 0 || b == -1 ? 1 : b;                                                                          \
    TYPE remainder = a % divisor;                                                                                      \
    return remainder != 0 && (remainder ^ divisor) < 0 ? remainder + divisor : remainder;                              \
  }                                                                                                                    \
  CPFLEX_OPS_FUNCTION TYPE shiftLeft(TYPE a, TYPE n) {                                                                 \
    TYPE right = n <= -WIDTH ? WIDTH - 1 : n < 0 ? -n : 0;                                                             \
    TYPE left = n < 0 || n >= WIDTH ? 0 : n;                                                                           \
    return n < 0 ? a >> right : n >= WIDTH ? 0 : (TYPE)((UNSIGNED)a << left);                                          \
  }                                                                                                                    \
  CPFLEX_OPS_FUNCTION TYPE shiftRight(TYPE a, TYPE n) {                                                                \
    TYPE right = n < 0 ? 0 : n >= WIDTH ? WIDTH - 1 : n;                                                               \
    TYPE left = n <= -WIDTH || n >= 0 ? 0 : -n;                                                                        \
    return n <= -WIDTH ? 0 : n < 0 ? (TYPE)((UNSIGNED)a << left) : a >> right;                                         \
  }
CPFLEX_OPS_SIGNED(Int, Bits, 64)
CPFLEX_OPS_SIGNED(int, U32, 32)
#undef CPFLEX_OPS_SIGNED

CPFLEX_OPS_FUNCTION Int ilog2(Int a) {
#if defined(__CUDACC_RTC__)
  return a < 1 ? 0 : 63 - __clzll(a);
#else
  return a < 1 ? 0 : 63 - __builtin_clzll((Bits)a);
#endif
}
CPFLEX_OPS_FUNCTION int ilog2(int a) {
#if defined(__CUDACC_RTC__)
  return a < 1 ? 0 : 31 - __clz(a);
#else
  return a < 1 ? 0 : 31 - __builtin_clz((U32)a);
#endif
}

CPFLEX_OPS_FUNCTION U32 add(U32 a, U32 b) { return a + b; }
CPFLEX_OPS_FUNCTION U32 sub(U32 a, U32 b) { return a - b; }
CPFLEX_OPS_FUNCTION U32 mul(U32 a, U32 b) { return a * b; }
CPFLEX_OPS_FUNCTION U32 neg(U32 a) { return 0u - a; }
CPFLEX_OPS_FUNCTION U32 abs(U32 a) { return a; }
CPFLEX_OPS_FUNCTION U32 min(U32 a, U32 b) { return b < a ? b : a; }
CPFLEX_OPS_FUNCTION U32 max(U32 a, U32 b) { return b > a ? b : a; }
CPFLEX_OPS_FUNCTION U32 bitAnd(U32 a, U32 b) { return a & b; }
CPFLEX_OPS_FUNCTION U32 bitOr(U32 a, U32 b) { return a | b; }
CPFLEX_OPS_FUNCTION U32 bitXor(U32 a, U32 b) { return a ^ b; }
CPFLEX_OPS_FUNCTION U32 bitNot(U32 a) { return ~a; }
CPFLEX_OPS_FUNCTION U32 floorDiv(U32 a, U32 b) { return b == 0 ? 0 : a / (b == 0 ? 1 : b); }
CPFLEX_OPS_FUNCTION U32 mod(U32 a, U32 b) { return b == 0 ? 0 : a % (b == 0 ? 1 : b); }
CPFLEX_OPS_FUNCTION U32 shiftLeft(U32 a, U32 n) { return n >= 32 ? 0 : a << (n & 31); }
CPFLEX_OPS_FUNCTION U32 shiftRight(U32 a, U32 n) { return n >= 32 ? 0 : a >> (n & 31); }
CPFLEX_OPS_FUNCTION U32 ilog2(U32 a) { return (U32)ilog2((Int)a); }

CPFLEX_OPS_FUNCTION bool bitAnd(bool a, bool b) { return a & b; }
CPFLEX_OPS_FUNCTION bool bitOr(bool a, bool b) { return a | b; }
CPFLEX_OPS_FUNCTION bool bitXor(bool a, bool b) { return a ^ b; }
CPFLEX_OPS_FUNCTION bool bitNot(bool a) { return !a; }

// Float arithmetic is never contracted, so that a mask decided on the CPU is the mask that the GPU applies.
#if defined(__CUDACC_RTC__)
CPFLEX_OPS_FUNCTION float add(float a, float b) { return __fadd_rn(a, b); }
CPFLEX_OPS_FUNCTION float sub(float a, float b) { return __fsub_rn(a, b); }
CPFLEX_OPS_FUNCTION float mul(float a, float b) { return __fmul_rn(a, b); }
CPFLEX_OPS_FUNCTION float div(float a, float b) { return b == 0.0f ? 0.0f : __fdiv_rn(a, b); }
#else
CPFLEX_OPS_FUNCTION float add(float a, float b) { return a + b; }
CPFLEX_OPS_FUNCTION float sub(float a, float b) { return a - b; }
CPFLEX_OPS_FUNCTION float mul(float a, float b) { return a * b; }
CPFLEX_OPS_FUNCTION float div(float a, float b) { return b == 0.0f ? 0.0f : a / b; }
#endif
/// a / b within 1.5 units in the last place, 0 where b is 0, for scores: a compiler takes all but one product out of
/// loops in which b stays the same.
CPFLEX_OPS_FUNCTION float divideByUniform(float a, float b) {
  constexpr float kLargest = 3.402823466e38f; // 1 / b overflows for the smallest subnormal b
  float reciprocal = 1.0f / b;
  reciprocal = reciprocal > kLargest ? kLargest : reciprocal < -kLargest ? -kLargest : reciprocal;
  return b == 0.0f ? 0.0f : a * reciprocal;
}
CPFLEX_OPS_FUNCTION float neg(float a) { return -a; }
CPFLEX_OPS_FUNCTION float abs(float a) { return a < 0.0f ? -a : (a == 0.0f ? 0.0f : a); }
// A NaN operand wins, as in torch.minimum and numpy.minimum.
CPFLEX_OPS_FUNCTION float min(float a, float b) { return (a != a || a < b) ? a : b; }
CPFLEX_OPS_FUNCTION float max(float a, float b) { return (a != a || a > b) ? a : b; }

// Comparisons and select exist for every type with the same words.
#define CPFLEX_OPS_COMPARE(TYPE)                                                                                       \
  CPFLEX_OPS_FUNCTION bool lt(TYPE a, TYPE b) { return a < b; }                                                        \
  CPFLEX_OPS_FUNCTION bool le(TYPE a, TYPE b) { return a <= b; }                                                       \
  CPFLEX_OPS_FUNCTION bool gt(TYPE a, TYPE b) { return a > b; }                                                        \
  CPFLEX_OPS_FUNCTION bool ge(TYPE a, TYPE b) { return a >= b; }
#define CPFLEX_OPS_EQUALITY(TYPE)                                                                                      \
  CPFLEX_OPS_FUNCTION bool eq(TYPE a, TYPE b) { return a == b; }                                                       \
  CPFLEX_OPS_FUNCTION bool ne(TYPE a, TYPE b) { return a != b; }                                                       \
  CPFLEX_OPS_FUNCTION TYPE select(bool condition, TYPE a, TYPE b) { return condition ? a : b; }
CPFLEX_OPS_COMPARE(Int)
CPFLEX_OPS_COMPARE(int)
CPFLEX_OPS_COMPARE(U32)
CPFLEX_OPS_COMPARE(float)
CPFLEX_OPS_EQUALITY(bool)
CPFLEX_OPS_EQUALITY(Int)
CPFLEX_OPS_EQUALITY(int)
CPFLEX_OPS_EQUALITY(U32)
CPFLEX_OPS_EQUALITY(float)
#undef CPFLEX_OPS_COMPARE
#undef CPFLEX_OPS_EQUALITY

CPFLEX_OPS_FUNCTION bool toBool(bool a) { return a; }
CPFLEX_OPS_FUNCTION bool toBool(Int a) { return a != 0; }
CPFLEX_OPS_FUNCTION bool toBool(int a) { return a != 0; }
CPFLEX_OPS_FUNCTION bool toBool(U32 a) { return a != 0; }
CPFLEX_OPS_FUNCTION bool toBool(float a) { return a != 0.0f; }
CPFLEX_OPS_FUNCTION Int toInt(bool a) { return a; }
CPFLEX_OPS_FUNCTION Int toInt(Int a) { return a; }
CPFLEX_OPS_FUNCTION Int toInt(int a) { return a; }
CPFLEX_OPS_FUNCTION Int toInt(U32 a) { return (Int)a; }
// Toward zero, as int() in Python.
CPFLEX_OPS_FUNCTION Int toInt(float a) {
  bool fits = a >= -9223372036854775808.0f && a < 9223372036854775808.0f;
  Int beyond = a > 0.0f ? 0x7fffffffffffffffLL : a < 0.0f ? -0x7fffffffffffffffLL - 1 : 0;
  Int whole = (Int)(fits ? a : 0.0f);
  return fits ? whole : beyond;
}
CPFLEX_OPS_FUNCTION U32 toU32(bool a) { return a; }
CPFLEX_OPS_FUNCTION U32 toU32(Int a) { return (U32)a; }
CPFLEX_OPS_FUNCTION U32 toU32(int a) { return (U32)a; }
CPFLEX_OPS_FUNCTION U32 toU32(U32 a) { return a; }
CPFLEX_OPS_FUNCTION U32 toU32(float a) { return (U32)toInt(a); }
CPFLEX_OPS_FUNCTION float toFloat(bool a) { return a ? 1.0f : 0.0f; }
CPFLEX_OPS_FUNCTION float toFloat(Int a) { return (float)a; }
CPFLEX_OPS_FUNCTION float toFloat(int a) { return (float)a; }
CPFLEX_OPS_FUNCTION float toFloat(U32 a) { return (float)a; }
CPFLEX_OPS_FUNCTION float toFloat(float a) { return a; }

#if defined(__CUDACC_RTC__)
CPFLEX_OPS_FUNCTION float exp(float a) { return expf(a); }
CPFLEX_OPS_FUNCTION float exp2(float a) { return exp2f(a); }
CPFLEX_OPS_FUNCTION float log(float a) { return logf(a); }
CPFLEX_OPS_FUNCTION float log1p(float a) { return log1pf(a); }
// 1 - 2 / (e^2a + 1), and its series near 0 where that cancels: within 2e-6 of the value, half the instructions of
// tanhf.
CPFLEX_OPS_FUNCTION float tanh(float a) {
  constexpr float kTwoLog2E = 2.8853900817779268f, kSeriesBelow = 0.1f;
  float power, reciprocal;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a * kTwoLog2E));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(power + 1.0f));
  float square = a * a;
  float series = a * fmaf(square, fmaf(square, 2.0f / 15.0f, -1.0f / 3.0f), 1.0f);
  return fabsf(a) < kSeriesBelow ? series : fmaf(-2.0f, reciprocal, 1.0f);
}
CPFLEX_OPS_FUNCTION float sqrt(float a) { return sqrtf(a); }
CPFLEX_OPS_FUNCTION float rsqrt(float a) { return rsqrtf(a); }
// From 2^29 on neighbouring f32 are further apart than a period: sin and cos see 0, NaN for infinity.
CPFLEX_OPS_FUNCTION float sin(float a) { return sinf(fabsf(a) < 0x1p29f ? a : a - a); }
CPFLEX_OPS_FUNCTION float cos(float a) { return cosf(fabsf(a) < 0x1p29f ? a : a - a); }
CPFLEX_OPS_FUNCTION float floor(float a) { return floorf(a); }
CPFLEX_OPS_FUNCTION float pow(float a, float b) { return powf(a, b); }
CPFLEX_OPS_FUNCTION float sigmoid(float a) { return 1.0f / (1.0f + expf(-a)); }
#endif
CPFLEX_OPS_FUNCTION float floorDiv(float a, float b) { return b == 0.0f ? 0.0f : floor(div(a, b)); }
CPFLEX_OPS_FUNCTION float mod(float a, float b) { return b == 0.0f ? 0.0f : sub(a, mul(floor(div(a, b)), b)); }

// Elements of captured arrays from their bits. Every f16 and bf16 is an f32.
CPFLEX_OPS_FUNCTION float floatFromBits(U32 bits) {
#if defined(__CUDACC_RTC__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}
CPFLEX_OPS_FUNCTION float fromBF16(U32 bits) { return floatFromBits(bits << 16); }
CPFLEX_OPS_FUNCTION float fromF16(U32 bits) {
  U32 magnitude = (bits & 0x7fffu) << 13;
  // Moves the exponent's bias by 112; a product, so that subnormals become normal.
  float finite = mul(floatFromBits(magnitude), 0x1p112f);
  float value = magnitude >= 0x0f800000u ? floatFromBits(magnitude | 0x7f800000u) : finite;
  return (bits & 0x8000u) != 0 ? -value : value;
}

} // namespace cpflex::ops
