// Sums of floats whose bits don't depend on the order of the additions, so that blocks may add with atomics and results
// still repeat: a float is cut into 32-bit digits and added as integers (the idea of Kulisch's long accumulator).
#pragma once

#include "runtime/contract/KernelArguments.h"
#include "runtime/kernels/device.cuh"

namespace cpflex::kernels {

/// Adds `value`, but for what lies below 2^-kAccumulatorScale, to the exact sum of kAccumulatorWords words.
__device__ __forceinline__ void addExactly(long long *words, float value) {
  if (value == 0.0f)
    return;
  constexpr int kMantissaBits = 23, kSmallestExponent = -149;
  uint32 bits = __float_as_uint(value);
  int exponent = bits >> kMantissaBits & 0xff;
  uint32 mantissa = bits & ((1u << kMantissaBits) - 1u);
  if (exponent == 0)
    exponent = 1;
  else
    mantissa |= 1u << kMantissaBits;
  int shift = exponent - 1 + kSmallestExponent + kAccumulatorScale;
  bool isNegative = bits >> 31, isNaN = value != value;
  if (isNaN || shift / 32 + 1 >= kAccumulatorDigits) {
    atomicOr((uint64 *)words + kAccumulatorDigits, uint64(isNaN ? 4 : isNegative ? 2 : 1));
    return;
  }
  if (shift < 0) {
    if (shift <= -32)
      return;
    mantissa >>= -shift;
    shift = 0;
  }
  uint64 wide = uint64(mantissa) << shift % 32;
  long long low = wide & 0xffffffffu, high = wide >> 32;
  uint64 *digit = (uint64 *)words + shift / 32;
  if (low != 0)
    atomicAdd(digit, uint64(isNegative ? -low : low));
  if (high != 0)
    atomicAdd(digit + 1, uint64(isNegative ? -high : high));
}

/// The sum, rounded to a float.
__device__ __forceinline__ float exactSum(const long long *words) {
  long long kind = words[kAccumulatorDigits];
  if (kind != 0)
    return kind == 1 ? infinity() : kind == 2 ? -infinity() : __int_as_float(0x7fc00000);
  // 1. Carries: every digit but the highest then lies in [0, 2^32).
  long long digits[kAccumulatorDigits], carry = 0;
#pragma unroll
  for (int i = 0; i < kAccumulatorDigits; ++i) {
    long long digit = words[i] + carry;
    carry = digit >> 32;
    digits[i] = i + 1 < kAccumulatorDigits ? digit & 0xffffffff : digit;
  }
  // 2. From the highest digit down: a leading -1 and what follows it cancel exactly.
  double sum = 0.0;
#pragma unroll
  for (int i = kAccumulatorDigits - 1; i >= 0; --i)
    sum = sum * 4294967296.0 + double(digits[i]);
  constexpr double kUnit = 1.0 / (4294967296.0 * 4294967296.0 * 4294967296.0);
  static_assert(kAccumulatorScale == 96, "three digits of fraction");
  return float(sum * kUnit);
}

} // namespace cpflex::kernels
