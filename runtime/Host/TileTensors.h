// Small pieces that forward, backward and merging share: addressing of tensors by tile, products of matrices that are
// several blocks wide, and the end of a softmax.
#pragma once

#include "runtime/Host/AttentionChecks.h"
#include "runtime/Host/HostKernels.h"
#include "runtime/Host/TileClasses.h"
#include "runtime/contract/Range.h"

#include <algorithm>
#include <optional>

namespace cpflex {

/// The rows from `row` on of head h of batch row b.
inline MatrixView matrixOf(const TensorView &tensor, int64_t b, int64_t h, int64_t row) {
  int64_t element = b * tensor.strides[0] + h * tensor.strides[1] + row * tensor.strides[2];
  return {static_cast<char *>(tensor.data) + element * sizeInBytes(tensor.type), tensor.type, tensor.strides[2],
          tensor.strides[3]};
}

/// The element of an f32 tensor with one column.
inline float &floatAt(const TensorView &tensor, int64_t b, int64_t h, int64_t row) {
  return static_cast<float *>(tensor.data)[b * tensor.strides[0] + h * tensor.strides[1] + row * tensor.strides[2]];
}

inline int paddedColumns(int64_t columns) { return int(ceilDivide(columns, kColumnPadding) * kColumnPadding); }

/// How the rows of Q (or dOut) and of K (or V) are packed for the products over the head size: as f32, or as they are,
/// in pairs of bf16, where the processor multiplies those and the memory order lets pairs be read.
class RowProduct {
public:
  /// `a` and `b` are the two tensors, `depth` their columns.
  RowProduct(const HostKernels &kernels, const TensorView &a, const TensorView &b, int64_t depth);

  /// True when packed rows hold pairs and cannot serve another product.
  bool isPaired() const { return isPaired_; }
  void packA(const MatrixView &from, int numRows, float *blocks) const;
  void packB(const MatrixView &from, int numRows, float *blocks) const;
  /// c = alpha * A B^T where `extent` has pairs, anything elsewhere; c is one block of numRows rows.
  void multiply(const float *a, const float *b, float *c, int numRows, const TileExtent &extent, float alpha) const;

private:
  void multiplyPart(const float *a, const float *b, float *c, Range rows, Range columns, float alpha) const;
  MatrixView packable(const MatrixView &from) const;

  const HostKernels &kernels_;
  bool isPaired_;
  int64_t depth_; ///< columns as packed
};

/// The product, added to C, of those A(m, k) only that `allowed` (rows of 128 bytes, laid out like A) permits. For
/// operands with infinities and NaNs: slow and exact about who sees them.
void addAllowedProducts(const Product &product, const uint8_t *allowed);

/// How the running state of a row ends.
struct SoftmaxEnd {
  float outScale; ///< what the running output is multiplied by
  double lse;     ///< as exact as the sum; what is stored is rounded to f32
};

/// largest + log(sum + exp(sink - largest)); without keys and sink: scale 0 and lse -inf.
SoftmaxEnd endSoftmax(float largest, float sum, float sink);

CheckedTensor tensorArgument(const char *name, const TensorView &view, const int64_t (&sizes)[4],
                             CheckedTensor::Types types = CheckedTensor::Types::Any,
                             CheckedTensor::Role role = CheckedTensor::Role::Input, bool isOptional = false);

/// Elements of the dense gradient of a capture: a broadcast axis counts once.
int64_t numOwnElements(const CaptureView &capture);

/// The threads that a call with these options uses.
int numThreadsOf(const HostAttentionOptions &options);

/// The caller's threads, or threads for the duration of a call, no more than it has tasks.
class CallThreads {
public:
  CallThreads(const HostAttentionOptions &options, int64_t numTasks) : threads_(options.threads) {
    if (!threads_)
      threads_ = &own_.emplace(int(std::clamp<int64_t>(numTasks, 1, numThreadsOf(options))));
  }
  HostThreads *operator->() { return threads_; }
  HostThreads &get() { return *threads_; }

private:
  std::optional<HostThreads> own_;
  HostThreads *threads_;
};

Status outOfMemory(int64_t neededInBytes);

} // namespace cpflex
