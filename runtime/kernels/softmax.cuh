// The online softmax over the tiles of a row, and the writing of finished rows: shared by both forward families. All
// functions work on one warp's 16 rows in the accumulator layout of tiles.cuh.
#pragma once

#include "runtime/kernels/tiles.cuh"

namespace cpflex::kernels {

/// The larger of two values across the four lanes that share a row.
__device__ __forceinline__ float maxInQuad(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
__device__ __forceinline__ float sumInQuad(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/// How raw products become exponents of two: exp(score) = 2^(toLog2 * x), where x is the product, or the score when the
/// program has a score function, when there is no softmax, or when the scale is not positive (a maximum of products
/// would then not be one of scores).
template <class Program> struct ScoreScale {
  static constexpr bool kHasScore = Program::kScoreForm != ScoreForm::Identity;
  float scale, toLog2;
  bool scalesFirst; ///< uniform

  __device__ __forceinline__ ScoreScale(float scale, bool hasSoftmax) : scale(scale) {
    scalesFirst = kHasScore || !hasSoftmax || !(scale > 0.0f);
    toLog2 = scalesFirst ? kLog2E : scale * kLog2E;
  }
};

/// Replaces products by scores where ScoreScale says so.
template <class Program, TileAxes kAxes, int N, class Positions>
__device__ __forceinline__ void applyScore(float (&scores)[N], const ScoreScale<Program> &scale,
                                           const typename Program::Captures &captures, int b, int h,
                                           const int (&rowPosition)[2], const Positions &columns) {
  if constexpr (ScoreScale<Program>::kHasScore) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      int column = columns.at(registerColumn(i) + 2 * (threadIdx.x % 4));
      int row = rowPosition[registerRow(i)];
      float s = scores[i] * scale.scale;
      scores[i] = kAxes == TileAxes::RowsAreQ ? Program::score(captures, s, b, h, row, column)
                                              : Program::score(captures, s, b, h, column, row);
    }
  } else if (scale.scalesFirst) {
#pragma unroll
    for (int i = 0; i < N; ++i)
      scores[i] *= scale.scale;
  }
}

/// Overwrites the registers of pairs that do not attend.
template <int N>
__device__ __forceinline__ void applyKeepWords(float (&scores)[N], const uint32 (&keep)[2], float forbidden) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    scores[i] = keep[registerRow(i)] >> registerBit(i) & 1u ? scores[i] : forbidden;
}

/// Reference and sum of the rows so far; `sum` is per lane until finish(). The reference follows the maximum only when
/// that has grown by more than kSlackLog2: weights then stay below 2^kSlackLog2 and most tiles need no rescaling (the
/// observation of FlashAttention-4). The largest weight is exactly 1, without rounding, only where it is the reference;
/// in rows of few keys the error is up to 1.2 times that of a reference that always follows with 8 of slack, and 1.06
/// with 1. The slack is one for all tiles, since bits must not depend on which of them the mask cuts.
struct OnlineSoftmax {
  static constexpr float kSlackLog2 = 1.0f;
  float reference[2] = {-infinity(), -infinity()}; ///< of x, see ScoreScale; -inf before the first key
  float sum[2] = {0.0f, 0.0f};

  /// Turns scores into weights 2^(toLog2 * (x - reference)). Returns whether any row of the warp needs everything
  /// summed before multiplied by `rescale`.
  template <int N> __device__ __forceinline__ bool step(float (&scores)[N], float toLog2, float (&rescale)[2]) {
    float bias[2];
    bool needsRescale = false;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float maximum = scores[2 * row];
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (registerRow(i) == row)
          maximum = fmaxf(maximum, scores[i]);
      maximum = maxInQuad(maximum);
      float previous = reference[row];
      bool grows = (maximum - previous) * toLog2 > kSlackLog2;
      reference[row] = grows ? maximum : previous;
      needsRescale |= grows;
      // A row that has met no key yet must not compute -inf - -inf.
      float finite = reference[row] == -infinity() ? 0.0f : reference[row];
      bias[row] = finite * toLog2;
      rescale[row] = grows ? exp2Fast(fmaf(previous, toLog2, -bias[row])) : 1.0f;
      sum[row] *= rescale[row];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      scores[i] = exp2Fast(fmaf(scores[i], toLog2, -bias[registerRow(i)]));
      sum[registerRow(i)] += scores[i];
    }
    return __any_sync(0xffffffffu, needsRescale);
  }

  /// Keeps the compiler from scheduling the weights of the last step behind a wait that follows, under whose product
  /// they are to be computed. Sums depend on every weight and are never negative: nothing happens.
  __device__ __forceinline__ void finishBeforeHere() const {
    __syncwarp(sum[0] < 0.0f || sum[1] < 0.0f ? 0u : 0xffffffffu);
  }

  /// Includes the sink of head `h` and returns the factor that normalises each row of O and its LSE (natural).
  __device__ __forceinline__ void finish(float toLog2, const float *sink, int head, float (&factor)[2],
                                         float (&lse)[2]) {
    float sinkLog2 = sink ? __ldg(sink + head) * kLog2E : -infinity();
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float total = sumInQuad(sum[row]);
      bool isEmpty = reference[row] == -infinity();
      float own = isEmpty ? -infinity() : reference[row] * toLog2;
      float highest = fmaxf(own, sinkLog2);
      bool hasNothing = highest == -infinity();
      float weight = isEmpty ? 0.0f : exp2Fast(own - highest);
      float all = total * weight + (hasNothing ? 0.0f : exp2Fast(sinkLog2 - highest));
      factor[row] = isEmpty ? 0.0f : weight / all;
      lse[row] = hasNothing ? -infinity() : (highest + log2f(all)) * kLn2;
    }
  }
};

/// Writes rows l/4 and l/4 + 8 of a warp's accumulator, multiplied by `factor`, as rows `row` and `row + 8` of a tensor
/// slice [s, d], at columns from firstColumn on; rows from numRows and columns from numColumns on are not written.
/// Lanes of a quad exchange words so that each writes 16 bytes.
template <class Element, bool kIsF32, int kColumns, int N>
__device__ __forceinline__ void writeColumns(const float (&accumulator)[N], const float (&factor)[2], void *slice,
                                             long long strideS, int row, int numRows, int firstColumn, int numColumns) {
  int lane = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    bool isInside = row + 8 * half < numRows;
    long long offset = (row + 8 * half) * strideS + firstColumn;
    if constexpr (kIsF32) {
      float *out = static_cast<float *>(slice) + offset;
#pragma unroll
      for (int group = 0; group < kColumns / 8; ++group)
        if (isInside && firstColumn + 8 * group < numColumns)
          *reinterpret_cast<float2 *>(out + 8 * group + 2 * lane) = make_float2(
              accumulator[4 * group + 2 * half] * factor[half], accumulator[4 * group + 2 * half + 1] * factor[half]);
    } else {
      unsigned short *out = static_cast<unsigned short *>(slice) + offset;
#pragma unroll
      for (int group = 0; group < kColumns / 8; group += 4) {
        uint32 words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int first = 4 * (group + i) + 2 * half;
          words[i] = first + 1 < N
                         ? Element::pack(accumulator[first] * factor[half], accumulator[first + 1] * factor[half])
                         : 0u;
        }
        transposeInQuad(words);
        if (isInside && group + lane < kColumns / 8 && firstColumn + 8 * (group + lane) < numColumns)
          *reinterpret_cast<uint4 *>(out + 8 * (group + lane)) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

/// Writes all columns of a tensor with kColumns columns.
template <class Element, bool kIsF32, int kColumns, int N>
__device__ __forceinline__ void writeRows(const float (&accumulator)[N], const float (&factor)[2], void *slice,
                                          long long strideS, int row, int numRows) {
  writeColumns<Element, kIsF32, kColumns>(accumulator, factor, slice, strideS, row, numRows, 0, kColumns);
}

/// The values of rows `row` and `row + 8` of a row array; `outside` beyond the tensor or where nothing is wanted.
__device__ __forceinline__ void loadRowPair(float (&values)[2], const RowArgument &array, const WorkItem &work, int row,
                                            int numRows, float outside, bool isWanted) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    values[half] = isWanted && row + 8 * half < numRows
                       ? __ldg(array.data + work.b * array.strideB + work.h * array.strideH + row + 8 * half)
                       : outside;
}

/// Writes the LSE of rows `row` and `row + 8` where they lie inside the tensor and LSE is wanted.
__device__ __forceinline__ void writeLse(const RowArgument &out, const WorkItem &work, const float (&lse)[2], int row,
                                         int numRows) {
  if (!out.data || threadIdx.x % 4 != 0)
    return;
  float *rows = out.data + work.b * out.strideB + work.h * out.strideH;
  if (row < numRows)
    rows[row] = lse[0];
  if (row + 8 < numRows)
    rows[row + 8] = lse[1];
}

/// Registers of four packed weights: the A operand of the product with V for 16 columns starting at 16 * step.
template <class Element, int N>
__device__ __forceinline__ void packOperand(uint32 (&packed)[N / 2], const float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i)
    packed[i] = Element::pack(values[2 * i], values[2 * i + 1]);
}

} // namespace cpflex::kernels
