// Rounds f32 to bf16 and f16 by their bits, the same on every processor. Internal linkage, so that every variant of the
// inner loops has its own copy.
#pragma once

#include <cstdint>

namespace cpflex {

/// Rounds to nearest even; a NaN stays one.
static inline uint16_t narrowToBFloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// Rounds to nearest even; a NaN stays one, and what is too large becomes infinite.
static inline uint16_t narrowToFloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return uint16_t(sign | 0x7e00u);
  // 65520 and above round to infinity.
  if (magnitude >= 0x477ff000u)
    return uint16_t(sign | 0x7c00u);
  // Below 2^-14 the result is a multiple of 2^-24: adding 0.5 leaves that multiple, rounded, in the low bits.
  if (magnitude < 0x38800000u) {
    float shifted;
    __builtin_memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    uint32_t shiftedBits;
    __builtin_memcpy(&shiftedBits, &shifted, sizeof shiftedBits);
    return uint16_t(sign | (shiftedBits - 0x3f000000u));
  }
  uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
}

} // namespace cpflex
