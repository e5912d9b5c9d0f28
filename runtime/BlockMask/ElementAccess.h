// How are the elements of a captured array read? One visitor from the run-time element type to
// typed code, and the conversion of each element to its value inside an expression.
#pragma once

#include "runtime/contract/Bindings.h"

#include <bit>
#include <cstdint>
#include <cstring>

namespace cpflex {

/// A 16-bit float as stored; Bfloat16 keeps the upper half of an f32.
struct Float16Bits {
  uint16_t bits;
};
struct Bfloat16Bits {
  uint16_t bits;
};

inline float toFloat32(float value) { return value; }
inline float toFloat32(Bfloat16Bits value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float toFloat32(Float16Bits value) {
  uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) // infinity and NaN
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Shifted into place, the exponent is 112 too small; the product is exact, subnormal numbers
  // included.
  float shifted = std::bit_cast<float>(magnitude << 13);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(shifted * 0x1p112f) | sign);
}

/// Calls `visitor(const T *)` with the array's elements as their C++ type. Bool elements are bytes.
template <typename Visitor> decltype(auto) visitElements(ElementType type, const void *data, Visitor &&visitor) {
  switch (type) {
  case ElementType::I8: return visitor(static_cast<const int8_t *>(data));
  case ElementType::I16: return visitor(static_cast<const int16_t *>(data));
  case ElementType::I32: return visitor(static_cast<const int32_t *>(data));
  case ElementType::I64: return visitor(static_cast<const int64_t *>(data));
  case ElementType::U16: return visitor(static_cast<const uint16_t *>(data));
  case ElementType::U32: return visitor(static_cast<const uint32_t *>(data));
  case ElementType::U64: return visitor(static_cast<const uint64_t *>(data));
  case ElementType::F16: return visitor(static_cast<const Float16Bits *>(data));
  case ElementType::BF16: return visitor(static_cast<const Bfloat16Bits *>(data));
  case ElementType::F32: return visitor(static_cast<const float *>(data));
  case ElementType::Bool:
  case ElementType::U8: break;
  }
  return visitor(static_cast<const uint8_t *>(data));
}

/// Whether expressions see the elements as Float.
constexpr bool isFloat(ElementType type) {
  return type == ElementType::F16 || type == ElementType::BF16 || type == ElementType::F32;
}

/// The address `offset` elements after `data`.
inline const void *elementAt(const void *data, ElementType type, int64_t offset) {
  return static_cast<const char *>(data) + offset * sizeInBytes(type);
}

} // namespace cpflex
