// How captured arrays, parameters and dimensions reach device code: the one layout of `Program::Captures`, read alike
// by host C++, which packs it, and by CUDA C++ under NVRTC, whose functor declares it.
//
// `Program::Captures` has these members and no others, in the order of the program's Signature, whatever their names:
//   one CaptureArgument per capture; where the program has params a pointer to `Program::Params`, which holds one
//   `long long` (a ScalarSlot) for each; one `long long` per dim (the built-in ones first).
// Its size is therefore numCaptures * sizeof(CaptureArgument) + (numParams > 0 ? 8 : 0) + numDims * 8, and it never
// contains padding. Params lie in device memory, so that a kernel launched again by a graph sees them change.
#pragma once

namespace cpflex {

/// One captured array in device memory: CaptureView of Bindings.h with 64-bit members throughout. Strides count
/// elements.
struct CaptureArgument {
  const void *data;
  long long shape[4];
  long long strides[4];
};

#if defined(__CUDACC_RTC__)
#define CPFLEX_CAPTURE_FUNCTION static __device__ __forceinline__
#define CPFLEX_CAPTURE_READ(address) __ldg(address)
#else
#define CPFLEX_CAPTURE_FUNCTION static inline
#define CPFLEX_CAPTURE_READ(address) *(address)
#endif

/// A param, from its place in `Program::Params`.
CPFLEX_CAPTURE_FUNCTION long long paramAt(const long long *param) { return CPFLEX_CAPTURE_READ(param); }

/// Whether `index` is in [0, size). A 32-bit index was proved to be one assuming sizes up to 2^30, which binding
/// checks.
CPFLEX_CAPTURE_FUNCTION bool isBelow(long long index, long long size) {
  return (unsigned long long)index < (unsigned long long)size;
}
CPFLEX_CAPTURE_FUNCTION bool isBelow(unsigned index, long long size) { return (long long)index < size; }
CPFLEX_CAPTURE_FUNCTION bool isBelow(int index, long long size) { return (unsigned)index < (unsigned)size; }

/// The element at the indices, one per axis, of an array of `Element`; 0 outside of the array.
template <typename Element> CPFLEX_CAPTURE_FUNCTION Element elementAt(const CaptureArgument &array) {
  return CPFLEX_CAPTURE_READ((const Element *)array.data);
}
template <typename Element, typename... Indices>
CPFLEX_CAPTURE_FUNCTION Element elementAt(const CaptureArgument &array, Indices... indices) {
  int axis = 0;
  bool isInside = true;
  ((isInside &= isBelow(indices, array.shape[axis]), ++axis), ...);
  if (!isInside)
    return Element(0);
  long long offset = 0;
  axis = 0;
  ((offset += (long long)indices * array.strides[axis], ++axis), ...);
  return CPFLEX_CAPTURE_READ((const Element *)array.data + offset);
}

/// Where the gradient of the element at the indices lies in a dense array of the capture's own sizes, in which an axis
/// that is broadcast has one element; -1 outside of the array.
template <typename... Indices>
CPFLEX_CAPTURE_FUNCTION long long denseOffset(const CaptureArgument &array, Indices... indices) {
  int axis = 0;
  bool isInside = true;
  ((isInside &= isBelow(indices, array.shape[axis]), ++axis), ...);
  if (!isInside)
    return -1;
  long long offset = 0;
  axis = 0;
  ((offset = array.strides[axis] == 0 ? offset : offset * array.shape[axis] + (long long)indices, ++axis), ...);
  return offset;
}

} // namespace cpflex
