// What a compiled mask or score function reads while it runs: captured arrays, runtime parameters and dimensions, as
// plain tables in the order of the program's Signature. Who owns the memory is the caller's business.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cpflex {

/// The element type of an array as declared in a `.cpf` file or found in a `.npy` file.
enum class ElementType : uint8_t { Bool, I8, I16, I32, I64, U8, U16, U32, U64, F16, BF16, F32 };

/// Size of one element in bytes.
constexpr int64_t sizeInBytes(ElementType type) {
  switch (type) {
  case ElementType::Bool:
  case ElementType::I8:
  case ElementType::U8: return 1;
  case ElementType::I16:
  case ElementType::U16:
  case ElementType::F16:
  case ElementType::BF16: return 2;
  case ElementType::I32:
  case ElementType::U32:
  case ElementType::F32: return 4;
  case ElementType::I64:
  case ElementType::U64: return 8;
  }
  return 0;
}

/// The name used in `.cpf` files: `bool`, `i32`, `bf16`, ...
const char *toString(ElementType type);

/// The type of a value inside an expression.
enum class ValueType : uint8_t { Bool, Int, U32, Float };

/// Largest number of dimensions of a captured array.
inline constexpr int kMaxCaptureRank = 4;

/// One captured array as generated code sees it. Strides count elements; a broadcast dimension has stride 0 and reports
/// the size it was broadcast to. Read-only during a call; owned by the caller.
struct CaptureView {
  const void *data = nullptr;
  int64_t shape[kMaxCaptureRank] = {};
  int64_t strides[kMaxCaptureRank] = {};
  ElementType type = ElementType::I32;
  int32_t rank = 0;
};

/// A runtime argument or dimension value: Int and U32 as is, Bool as 0 or 1, Float as its f32 bits in the low 32 bits.
using ScalarSlot = int64_t;

/// Everything a compiled function reads besides its coordinates. Layout is fixed: generated code indexes the members.
struct Bindings {
  const CaptureView *captures = nullptr; ///< one per Signature::captures
  const ScalarSlot *params = nullptr;    ///< one per Signature::params
  const int64_t *dims = nullptr;         ///< one per Signature::dims
};

/// One declared array of a program.
struct CaptureDeclaration {
  std::string name;
  ElementType type = ElementType::I32;
  std::vector<std::string> dims; ///< a literal ("64"), a dimension name or an expression as written, per axis
  bool isSorted = false;         ///< last axis non-decreasing, verified when an array is bound
  bool hasLo = false, hasHi = false;
  int64_t lo = 0, hi = 0; ///< every element x satisfies lo <= x < hi where stated, verified when bound
  bool needsGradient = false;
  friend bool operator==(const CaptureDeclaration &, const CaptureDeclaration &) = default;
};

/// One declared runtime argument.
struct ParamDeclaration {
  std::string name;
  ValueType type = ValueType::Int;
  ScalarSlot defaultValue = 0;
  bool hasDefault = false;
  friend bool operator==(const ParamDeclaration &, const ParamDeclaration &) = default;
};

/// Indices of the built-in dimensions in Signature::dims, in this order in every program.
enum BuiltinDim : int { kDimB = 0, kDimH, kDimHKV, kDimQLen, kDimKVLen, kNumBuiltinDims };

/// What a program expects to be bound, in slot order.
struct Signature {
  std::vector<CaptureDeclaration> captures;
  std::vector<ParamDeclaration> params;
  std::vector<std::string> dims; ///< the built-in ones (BuiltinDim), then the file's own
  friend bool operator==(const Signature &, const Signature &) = default;
};

} // namespace cpflex
