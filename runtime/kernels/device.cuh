// What every kernel needs of the GPU and would otherwise take from vendor headers: element types, conversions, shared
// memory addresses and the few instructions without a C++ spelling.
#pragma once

namespace cpflex::kernels {

using uint32 = unsigned int;
using uint64 = unsigned long long;

constexpr int kWarpSize = 32;
constexpr int kWarpgroupSize = 128;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

constexpr __host__ __device__ int roundUp(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr __host__ __device__ int ceilDivide(int value, int divisor) { return (value + divisor - 1) / divisor; }

/// bfloat16: conversions between f32 and pairs of elements, the lower column in the low half.
struct BFloat16 {
  static __device__ __forceinline__ uint32 pack(float low, float high) {
    uint32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  static __device__ __forceinline__ float low(uint32 pair) { return __uint_as_float(pair << 16); }
  static __device__ __forceinline__ float high(uint32 pair) { return __uint_as_float(pair & 0xffff0000u); }
};

/// IEEE half precision, same members.
struct Float16 {
  static __device__ __forceinline__ uint32 pack(float low, float high) {
    uint32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  static __device__ __forceinline__ float low(uint32 pair) {
    float value;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(value) : "r"(pair));
    return value;
  }
  static __device__ __forceinline__ float high(uint32 pair) {
    float value;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "r"(pair));
    return value;
  }
};

constexpr int kElementBytes = 2;

template <class A, class B> struct IsSame {
  static constexpr bool value = false;
};
template <class A> struct IsSame<A, A> {
  static constexpr bool value = true;
};

/// Calls body(0), ..., body(kCount - 1) as straight-line code, for bodies that the compiler would rather keep in a loop
/// (arrays indexed by the argument then stay in registers).
template <int kCount, class Body> __device__ __forceinline__ void unrolled(const Body &body) {
  if constexpr (kCount > 0) {
    unrolled<kCount - 1>(body);
    body(kCount - 1);
  }
}

/// 2^x, to about 2 units in the last place; 0 for -inf.
__device__ __forceinline__ float exp2Fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// The address of a shared memory location in the shared window.
__device__ __forceinline__ uint32 sharedAddress(const void *pointer) {
  return static_cast<uint32>(__cvta_generic_to_shared(pointer));
}

/// One lane of a converged warp, the same for every call.
__device__ __forceinline__ bool isElectedLane() { return (threadIdx.x % kWarpSize) == 0; }

/// Keeps the compiler from moving uses of `registers` across this point; no instruction.
template <int N> __device__ __forceinline__ void pinRegisters(float (&registers)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    asm volatile("" : "+f"(registers[i])::"memory");
}

/// Named barriers; 0 is __syncthreads.
template <int kThreads> __device__ __forceinline__ void barrierSync(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}
template <int kThreads> __device__ __forceinline__ void barrierArrive(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}

/// Turns a 4 x 4 matrix whose row is the lane within its quad into its transpose: word i of lane j becomes word j of
/// lane i.
__device__ __forceinline__ void transposeInQuad(uint32 (&words)[4]) {
  bool isOdd = threadIdx.x & 1, isUpper = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    uint32 received = __shfl_xor_sync(0xffffffffu, isOdd ? words[i] : words[i + 1], 1);
    words[i] = isOdd ? received : words[i];
    words[i + 1] = isOdd ? words[i + 1] : received;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32 received = __shfl_xor_sync(0xffffffffu, isUpper ? words[i] : words[i + 2], 2);
    words[i] = isUpper ? received : words[i];
    words[i + 2] = isUpper ? words[i + 2] : received;
  }
}

/// Offset in bytes of element (row, column) of a tensor stored in panels of `kRows` rows x 64 columns, each row's eight
/// 16-byte chunks permuted by the row (the pattern of 128-byte swizzled tensor copies).
template <int kRows> __device__ __forceinline__ uint32 swizzledOffset(int row, int column) {
  int panel = column / 64, chunk = (column % 64) / 8;
  return panel * (kRows * 128) + row * 128 + ((chunk ^ (row % 8)) * 16) + (column % 8) * 2;
}

} // namespace cpflex::kernels
