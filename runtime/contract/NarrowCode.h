// When may code run that computes ints in 32 bits? The compiler narrows under these assumptions; whoever binds a
// program checks them and takes the 64-bit variant otherwise.
#pragma once

#include "runtime/contract/Bindings.h"

namespace cpflex {

/// Narrow code assumes that dimensions are at most this, and positions below it.
inline constexpr int64_t kLongestNarrowDimension = int64_t(1) << 30;

/// Narrow code assumes that int params lie between the negation of this and this.
inline constexpr int64_t kLargestNarrowParam = int64_t(1) << 30;

/// All code assumes that B, H and HKV are at most this, and that every other dimension is at most kLongestDimension.
inline constexpr int64_t kMostBatchesOrHeads = int64_t(1) << 20;
inline constexpr int64_t kLongestDimension = int64_t(1) << 40;

/// Whether the dimensions and params of `bindings` are what narrow code assumes.
inline bool mayRunNarrowCode(const Signature &signature, const Bindings &bindings) {
  for (size_t i = 0; i < signature.dims.size(); ++i)
    if (bindings.dims[i] < 0 || bindings.dims[i] > kLongestNarrowDimension)
      return false;
  for (size_t i = 0; i < signature.params.size(); ++i)
    if (signature.params[i].type == ValueType::Int &&
        (bindings.params[i] < -kLargestNarrowParam || bindings.params[i] > kLargestNarrowParam))
      return false;
  return true;
}

} // namespace cpflex
