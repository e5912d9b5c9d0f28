// Implements what forward, backward and merging share.
#include "runtime/Host/TileTensors.h"

#include <cmath>
#include <fmt/format.h>
#include <limits>

namespace cpflex {

/// True when two neighbours in a row of a bf16 tensor can be read as one aligned word.
static bool isReadableInPairs(const TensorView &tensor) {
  bool isEven = reinterpret_cast<uintptr_t>(tensor.data) % sizeof(float) == 0 && tensor.strides[3] == 1;
  for (int axis = 0; axis < 3; ++axis)
    isEven = isEven && tensor.strides[axis] % 2 == 0;
  return tensor.type == ElementType::BF16 && isEven;
}

RowProduct::RowProduct(const HostKernels &kernels, const TensorView &a, const TensorView &b, int64_t depth)
    : kernels_(kernels),
      isPaired_(kernels.multiplyPairs && depth % 2 == 0 && isReadableInPairs(a) && isReadableInPairs(b)),
      depth_(isPaired_ ? depth / 2 : depth) {}

/// A pair of bf16 is copied as one f32 would be.
MatrixView RowProduct::packable(const MatrixView &from) const {
  return isPaired_ ? MatrixView{from.data, ElementType::F32, from.rowStride / 2, 1} : from;
}

void RowProduct::packA(const MatrixView &from, int numRows, float *blocks) const {
  kernels_.packRows(packable(from), numRows, int(depth_), blocks);
}

void RowProduct::packB(const MatrixView &from, int numRows, float *blocks) const {
  kernels_.packColumns(packable(from), numRows, int(depth_), blocks);
}

void RowProduct::multiply(const float *a, const float *b, float *c, int numRows, const TileExtent &extent,
                          float alpha) const {
  for (int i = 0; i < TileExtent::kNumStripes; ++i) {
    const Range rows = extent.stripe(i, numRows), columns = extent.columns[i];
    if (!rows.isEmpty() && !columns.isEmpty())
      multiplyPart(a, b, c, rows, {columns.begin / kColumnPadding * kColumnPadding, columns.end}, alpha);
  }
}

void RowProduct::multiplyPart(const float *a, const float *b, float *c, Range rows, Range columns, float alpha) const {
  for (int64_t begin = 0; begin < depth_; begin += kBlockSize) {
    const int64_t block = begin / kBlockSize * kBlockFloats;
    const Product product = {.a = a + block + rows.begin * kBlockStride,
                             .isATransposed = false,
                             .b = b + block + columns.begin,
                             .c = c + rows.begin * kBlockStride + columns.begin,
                             .cStride = kBlockStride,
                             .numRows = int(rows.size()),
                             .numColumns = paddedColumns(columns.size()),
                             .depth = int(std::min<int64_t>(kBlockSize, depth_ - begin)),
                             .use = begin == 0 ? ProductUse::Replace : ProductUse::Add,
                             .alpha = alpha,
                             .rowScale = nullptr};
    isPaired_ ? kernels_.multiplyPairs(product) : kernels_.multiply(product);
  }
}

void addAllowedProducts(const Product &product, const uint8_t *allowed) {
  for (int m = 0; m < product.numRows; ++m)
    for (int k = 0; k < product.depth; ++k) {
      const int row = product.isATransposed ? k : m, column = product.isATransposed ? m : k;
      if (!allowed[row * kBlockSize + column])
        continue;
      const float factor = product.alpha * product.a[row * kBlockStride + column];
      for (int n = 0; n < product.numColumns; ++n)
        product.c[m * product.cStride + n] += factor * product.b[k * kBlockStride + n];
    }
}

SoftmaxEnd endSoftmax(float largest, float sum, float sink) {
  constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
  // A NaN sum is not "without keys": it goes through.
  if (sum == 0.0f && sink == kNegativeInfinity)
    return {0.0f, kNegativeInfinity};
  const double shared = sink > largest ? sink : largest;
  const double keys = largest == kNegativeInfinity ? double(sum) : double(sum) * std::exp(double(largest) - shared);
  const double total = keys + (sink == kNegativeInfinity ? 0.0 : std::exp(double(sink) - shared));
  if (largest == kNegativeInfinity && sum == 0.0f)
    return {0.0f, sink};
  return {float((keys / double(sum)) / total), shared + std::log(total)};
}

CheckedTensor tensorArgument(const char *name, const TensorView &view, const int64_t (&sizes)[4],
                             CheckedTensor::Types types, CheckedTensor::Role role, bool isOptional) {
  return {name, view, {sizes[0], sizes[1], sizes[2], sizes[3]}, types, role, isOptional};
}

int64_t numOwnElements(const CaptureView &capture) {
  int64_t count = 1;
  for (int axis = 0; axis < capture.rank; ++axis)
    count *= capture.strides[axis] == 0 ? std::min<int64_t>(capture.shape[axis], 1) : capture.shape[axis];
  return count;
}

int numThreadsOf(const HostAttentionOptions &options) {
  return options.threads ? options.threads->numThreads() : resolvedNumThreads(options.numThreads);
}

Status outOfMemory(int64_t neededInBytes) {
  return {StatusCode::OutOfMemory, fmt::format("no memory for a workspace of {} bytes", neededInBytes)};
}

} // namespace cpflex
