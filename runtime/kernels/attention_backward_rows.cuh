// The two kernels of backward that work on rows alone: delta and LSE in base 2 before the others, the gradient of the
// sinks after them.
#pragma once

#include "runtime/kernels/softmax.cuh"

namespace cpflex::kernels {

/// delta = rowsum(dO * O) - dLSE and lseLog2 = LSE * log2(e), or 0 and +inf for rows that weigh nothing: rows without
/// keys and the padding. Grid: see kRowPadding.
template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardDelta(const BackwardArguments &arguments,
                                                       const typename Program::Captures &) {
  using Element = typename Config::Element;
  constexpr int kLanesPerRow = 8;
  constexpr int kRowsAtOnce = Config::kThreads / kLanesPerRow;
  static_assert(Config::kTileQ == kRowPadding);
  int h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x % kLanesPerRow;
  const unsigned short *o = elementSlice(arguments.o, b, h), *dO = elementSlice(arguments.dO, b, h);
  for (int i = threadIdx.x / kLanesPerRow; i < kRowPadding; i += kRowsAtOnce) {
    int row = blockIdx.x * kRowPadding + i;
    bool isInside = row < arguments.qLen;
    float sum = 0.0f;
    if (isInside)
      for (int column = lane * 8; column < Config::kVHeadDim; column += kLanesPerRow * 8) {
        uint4 left = *reinterpret_cast<const uint4 *>(o + row * arguments.o.strideS + column);
        uint4 right = *reinterpret_cast<const uint4 *>(dO + row * arguments.dO.strideS + column);
        const uint32 x[4] = {left.x, left.y, left.z, left.w}, y[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
        for (int word = 0; word < 4; ++word)
          sum += Element::low(x[word]) * Element::low(y[word]) + Element::high(x[word]) * Element::high(y[word]);
      }
#pragma unroll
    for (int distance = kLanesPerRow / 2; distance > 0; distance /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane == 0) {
      float lse =
          isInside ? arguments.lse.data[b * arguments.lse.strideB + h * arguments.lse.strideH + row] : -infinity();
      bool weighs = lse != -infinity();
      if (weighs && arguments.dLse.data)
        sum -= arguments.dLse.data[b * arguments.dLse.strideB + h * arguments.dLse.strideH + row];
      arguments.delta.data[b * arguments.delta.strideB + h * arguments.delta.strideH + row] = weighs ? sum : 0.0f;
      arguments.lseLog2.data[b * arguments.lseLog2.strideB + h * arguments.lseLog2.strideH + row] =
          weighs ? lse * kLog2E : infinity();
    }
  }
}

/// dSink[h] = -sum over b and q of exp(sink - LSE) * delta, always in the same order. Grid: query heads.
template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardSink(const BackwardArguments &arguments,
                                                      const typename Program::Captures &) {
  __shared__ float sums[Config::kThreads];
  int h = blockIdx.x;
  float sinkLog2 = arguments.sink[h + arguments.headOffset] * kLog2E, sum = 0.0f;
  for (int b = 0; b < arguments.batch; ++b) {
    const float *delta = arguments.delta.data + b * arguments.delta.strideB + h * arguments.delta.strideH;
    const float *lseLog2 = arguments.lseLog2.data + b * arguments.lseLog2.strideB + h * arguments.lseLog2.strideH;
    for (int row = threadIdx.x; row < arguments.qLen; row += Config::kThreads)
      sum -= exp2f(sinkLog2 - lseLog2[row]) * delta[row];
  }
  sums[threadIdx.x] = sum;
  for (int distance = Config::kThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (threadIdx.x < distance)
      sums[threadIdx.x] += sums[threadIdx.x + distance];
  }
  if (threadIdx.x == 0)
    arguments.dSink[h] = sums[0];
}

} // namespace cpflex::kernels
