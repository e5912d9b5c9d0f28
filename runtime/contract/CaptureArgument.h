// How captured arrays, parameters and dimensions reach device code: the one layout of `Program::Captures`, read alike by
// host C++, which packs it, and by CUDA C++ under NVRTC, whose functor declares it.
//
// `Program::Captures` has these members and no others, in the order of the program's Signature, whatever their names:
//   one CaptureArgument per capture, then one `long long` per param (a ScalarSlot), then one `long long` per dim
//   (the built-in ones first). Its size is therefore
//   numCaptures * sizeof(CaptureArgument) + (numParams + numDims) * 8, and it never contains padding.
#pragma once

namespace cpflex {

/// One captured array in device memory: CaptureView of Bindings.h with 64-bit members throughout. Strides count elements.
struct CaptureArgument {
  const void *data;
  long long shape[4];
  long long strides[4];
};

} // namespace cpflex
