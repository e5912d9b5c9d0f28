// The operations of the mask language that are more than one instruction, under names that generated host code calls.
// Compiled to LLVM bitcode and embedded in the compiler, not linked: the JIT inlines what a function uses.
#include "runtime/contract/Operations.h"

namespace ops = cpflex::ops;
using ops::Int;
using ops::U32;

#define CPFLEX_UNARY(mnemonic, function, suffix, type)                                                                 \
  extern "C" [[clang::always_inline]] type cpflex_##mnemonic##_##suffix(type a) { return ops::function(a); }
#define CPFLEX_BINARY(mnemonic, function, suffix, type)                                                                \
  extern "C" [[clang::always_inline]] type cpflex_##mnemonic##_##suffix(type a, type b) { return ops::function(a, b); }

#define CPFLEX_INTEGER(suffix, type)                                                                                   \
  CPFLEX_BINARY(floordiv, floorDiv, suffix, type)                                                                      \
  CPFLEX_BINARY(mod, mod, suffix, type)                                                                                \
  CPFLEX_UNARY(abs, abs, suffix, type)                                                                                 \
  CPFLEX_BINARY(shl, shiftLeft, suffix, type)                                                                          \
  CPFLEX_BINARY(shr, shiftRight, suffix, type)                                                                         \
  CPFLEX_UNARY(ilog2, ilog2, suffix, type)
CPFLEX_INTEGER(i64, Int)
CPFLEX_INTEGER(i32, int)
CPFLEX_INTEGER(u32, U32)

CPFLEX_BINARY(div, div, f32, float)
CPFLEX_BINARY(floordiv, floorDiv, f32, float)
CPFLEX_BINARY(mod, mod, f32, float)
CPFLEX_UNARY(abs, abs, f32, float)
CPFLEX_BINARY(min, min, f32, float)
CPFLEX_BINARY(max, max, f32, float)
CPFLEX_UNARY(exp, exp, f32, float)
CPFLEX_UNARY(exp2, exp2, f32, float)
CPFLEX_UNARY(log, log, f32, float)
CPFLEX_UNARY(log1p, log1p, f32, float)
CPFLEX_UNARY(tanh, tanh, f32, float)
CPFLEX_UNARY(sigmoid, sigmoid, f32, float)
CPFLEX_UNARY(sqrt, sqrt, f32, float)
CPFLEX_UNARY(rsqrt, rsqrt, f32, float)
CPFLEX_UNARY(sin, sin, f32, float)
CPFLEX_UNARY(cos, cos, f32, float)
CPFLEX_UNARY(floor, floor, f32, float)
CPFLEX_BINARY(pow, pow, f32, float)

extern "C" [[clang::always_inline]] Int cpflex_to_int_f32(float a) { return ops::toInt(a); }
extern "C" [[clang::always_inline]] float cpflex_from_f16_u32(U32 bits) { return ops::fromF16(bits); }
extern "C" [[clang::always_inline]] float cpflex_from_bf16_u32(U32 bits) { return ops::fromBF16(bits); }
