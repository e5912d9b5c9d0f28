// Copies, sums and merges of rows between the attention kernels of context parallelism, as one module of small kernels.
// Each is bound by memory; the grid is (blocks along rows, batch * heads), and blocks loop until their (b, h) is done.
#pragma once

#include "runtime/contract/PartialArguments.h"
#include "runtime/kernels/device.cuh"

namespace cpflex::kernels {

template <class Pointer>
__device__ __forceinline__ Pointer rowOf(const RowBytesArgument &rows, int b, int h, unsigned row) {
  return reinterpret_cast<Pointer>(static_cast<char *>(rows.data) + b * rows.strideB + h * rows.strideH +
                                   row * rows.strideS);
}

template <class Unit> __device__ __forceinline__ void copyUnits(const CopyRowsArguments &arguments) {
  int b = blockIdx.y / arguments.heads, h = blockIdx.y % arguments.heads;
  unsigned total = arguments.rows * arguments.unitsPerRow;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
    unsigned row = i / arguments.unitsPerRow, unit = i % arguments.unitsPerRow;
    rowOf<Unit *>(arguments.to, b, h, row)[unit] = rowOf<const Unit *>(arguments.from, b, h, row)[unit];
  }
}

__device__ __forceinline__ float unpacked(uint32 pair, bool isHigh, RowElement element) {
  if (element == RowElement::BF16)
    return isHigh ? BFloat16::high(pair) : BFloat16::low(pair);
  return isHigh ? Float16::high(pair) : Float16::low(pair);
}

__device__ __forceinline__ void storePair(void *row, int column, float low, float high, RowElement element) {
  if (element == RowElement::F32)
    reinterpret_cast<float2 *>(row)[column / 2] = make_float2(low, high);
  else
    static_cast<uint32 *>(row)[column / 2] =
        element == RowElement::BF16 ? BFloat16::pack(low, high) : Float16::pack(low, high);
}

__device__ __forceinline__ float *floatRow(const TensorArgument &tensor, int b, int h, int row) {
  return static_cast<float *>(tensor.data) + b * tensor.strideB + h * tensor.strideH + row * tensor.strideS;
}

__device__ __forceinline__ float &rowValue(const RowArgument &rows, int b, int h, int row) {
  return rows.data[b * rows.strideB + h * rows.strideH + row];
}

} // namespace cpflex::kernels

extern "C" __global__ void copy_rows(const __grid_constant__ cpflex::CopyRowsArguments arguments) {
  using namespace cpflex::kernels;
  switch (arguments.unitBytes) {
  case 16: return copyUnits<uint4>(arguments);
  case 8: return copyUnits<uint2>(arguments);
  case 4: return copyUnits<uint32>(arguments);
  default: return copyUnits<unsigned short>(arguments);
  }
}

extern "C" __global__ void add_rows(const __grid_constant__ cpflex::CombineRowsArguments arguments) {
  using namespace cpflex::kernels;
  int b = blockIdx.y / arguments.heads, h = blockIdx.y % arguments.heads;
  unsigned total = arguments.rows * arguments.width;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
    unsigned row = i / arguments.width, column = i % arguments.width;
    rowOf<float *>(arguments.to, b, h, row)[column] += rowOf<const float *>(arguments.from, b, h, row)[column];
  }
}

extern "C" __global__ void convert_rows(const __grid_constant__ cpflex::CombineRowsArguments arguments) {
  using namespace cpflex::kernels;
  int b = blockIdx.y / arguments.heads, h = blockIdx.y % arguments.heads;
  unsigned total = arguments.rows * arguments.width;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) {
    unsigned row = i / arguments.width, column = i % arguments.width;
    float value = rowOf<const float *>(arguments.from, b, h, row)[column] * arguments.factor;
    if (arguments.toElement == cpflex::RowElement::F32)
      rowOf<float *>(arguments.to, b, h, row)[column] = value;
    else
      rowOf<unsigned short *>(arguments.to, b, h, row)[column] = static_cast<unsigned short>(
          arguments.toElement == cpflex::RowElement::BF16 ? BFloat16::pack(value, 0.0f) : Float16::pack(value, 0.0f));
  }
}

/// A warp for each row. With L = log(sum of exp(lse)) over the parts and the sink, each part weighs exp(lse - L); a
/// part without keys (lse = -inf) weighs nothing, and a row without any keeps O = 0, LSE = -inf.
extern "C" __global__ void merge_partials(const __grid_constant__ cpflex::MergePartialsArguments arguments) {
  using namespace cpflex::kernels;
  int b = blockIdx.y / arguments.heads, h = blockIdx.y % arguments.heads, lane = threadIdx.x % kWarpSize;
  int warpsPerBlock = blockDim.x / kWarpSize;
  for (int row = blockIdx.x * warpsPerBlock + threadIdx.x / kWarpSize; row < arguments.rows;
       row += gridDim.x * warpsPerBlock) {
    float firstWeight = 1.0f, secondWeight = 1.0f;
    if (arguments.hasSoftmax) {
      float first = rowValue(arguments.firstLse, b, h, row), second = rowValue(arguments.secondLse, b, h, row);
      float sink = arguments.sink ? arguments.sink[arguments.headOffset + h] : -infinity();
      float highest = fmaxf(fmaxf(first, second), sink);
      float base = highest == -infinity() ? 0.0f : highest;
      firstWeight = first == -infinity() ? 0.0f : expf(first - base);
      secondWeight = second == -infinity() ? 0.0f : expf(second - base);
      float total = firstWeight + secondWeight + (sink == -infinity() ? 0.0f : expf(sink - base));
      __syncwarp();
      if (lane == 0)
        rowValue(arguments.lse, b, h, row) = total == 0.0f ? -infinity() : base + logf(total);
      float inverse = total == 0.0f ? 0.0f : 1.0f / total;
      firstWeight *= inverse, secondWeight *= inverse;
    }
    const float *first = floatRow(arguments.first, b, h, row), *second = floatRow(arguments.second, b, h, row);
    int elementBytes = arguments.outElement == cpflex::RowElement::F32 ? 4 : 2;
    void *out = static_cast<char *>(arguments.out.data) +
                (b * arguments.out.strideB + h * arguments.out.strideH + row * arguments.out.strideS) * elementBytes;
    auto merged = [&](int column) {
      float left = firstWeight == 0.0f ? 0.0f : firstWeight * first[column];
      return secondWeight == 0.0f ? left : left + secondWeight * second[column];
    };
    for (int column = 2 * lane; column < arguments.width; column += 2 * kWarpSize)
      storePair(out, column, merged(column), merged(column + 1), arguments.outElement);
  }
}

/// A warp for each row.
extern "C" __global__ void row_terms(const __grid_constant__ cpflex::RowTermArguments arguments) {
  using namespace cpflex::kernels;
  int b = blockIdx.y / arguments.heads, h = blockIdx.y % arguments.heads, lane = threadIdx.x % kWarpSize;
  int warpsPerBlock = blockDim.x / kWarpSize;
  for (int row = blockIdx.x * warpsPerBlock + threadIdx.x / kWarpSize; row < arguments.rows;
       row += gridDim.x * warpsPerBlock) {
    auto pairs = [&](const cpflex::TensorArgument &tensor) {
      return reinterpret_cast<const uint32 *>(static_cast<const unsigned short *>(tensor.data) + b * tensor.strideB +
                                              h * tensor.strideH + row * tensor.strideS);
    };
    const uint32 *out = pairs(arguments.out), *dOut = pairs(arguments.dOut);
    float sum = 0.0f;
    for (int pair = lane; pair < arguments.width / 2; pair += kWarpSize)
      sum += unpacked(out[pair], /*isHigh=*/false, arguments.element) *
                 unpacked(dOut[pair], /*isHigh=*/false, arguments.element) +
             unpacked(out[pair], /*isHigh=*/true, arguments.element) *
                 unpacked(dOut[pair], /*isHigh=*/true, arguments.element);
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane == 0)
      rowValue(arguments.rowTerm, b, h, row) = sum - (arguments.dLse.data ? rowValue(arguments.dLse, b, h, row) : 0.0f);
  }
}
