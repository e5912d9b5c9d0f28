// The gradients of the arrays that a score function reads. Kernels of their own, run only where such a gradient is
// wanted, so that those of dQ, dK and dV keep their registers: they compute the scores and their gradients of a tile
// once more, in shared memory, and let each scatter of the program walk over it. Serves every architecture.
//
// Same bits in every run: a tile is summed in a fixed order and its sums are added exactly (exact_sum.cuh), or, where
// every pair has an element of its own, by the one thread that owns the pair.
#pragma once

#include "runtime/kernels/ampere.cuh"
#include "runtime/kernels/exact_sum.cuh"
#include "runtime/kernels/softmax.cuh"

namespace cpflex::kernels {

/// The class of one tile of a (b, h): 0 empty, 1 full, 2 partial.
__device__ __forceinline__ int tileClassAt(const MaskArgument &mask, int row, int tile, int pair, bool hasMask) {
  if (!mask.runs)
    return hasMask ? kPartialTile : 1;
  int rowSet = mask.rowSetOf ? __ldg(mask.rowSetOf + pair) : 0;
  const int *rowBegin = mask.rowBegin + (long long)rowSet * (mask.numRows + 1) + row / mask.rowTilesPerMaskTile;
  int first = __ldg(rowBegin), last = __ldg(rowBegin + 1), column = tile / mask.colTilesPerMaskTile;
  while (first < last) {
    int middle = first + (last - first) / 2;
    if (__ldg(&mask.runs[middle].end) <= column)
      first = middle + 1;
    else
      last = middle;
  }
  if (first == __ldg(rowBegin + 1) || __ldg(&mask.runs[first].begin) > column)
    return 0;
  return __ldg(&mask.runs[first].tileClass);
}

/// Adds up neighbours that go to one element before they meet the exact sum.
struct RunOfSums {
  long long *accumulators;
  long long offset = -1;
  float sum = 0.0f;

  __device__ __forceinline__ void add(long long to, float value) {
    if (to != offset) {
      flush();
      offset = to;
      sum = 0.0f;
    }
    sum += value;
  }
  __device__ __forceinline__ void flush() const {
    if (offset >= 0)
      addExactly(accumulators + offset * kAccumulatorWords, sum);
  }
};

/// Scores before the score function, and the gradients in its values, of a tile in shared memory. One column more than
/// the tile has keeps walks along columns free of bank conflicts.
template <int kRows, int kColumns> struct PairTile {
  float2 pairs[kRows][kColumns + 1];
};

/// Lets scatter number kScatter and those after it walk over the tile.
template <class Config, class Program, int kScatter, class Tile, class Rows, class Columns>
__device__ __forceinline__ void scatterTile(const CaptureGradientArguments &arguments,
                                            const typename Program::Captures &captures, const Tile &tile, int b, int h,
                                            const Rows &rows, const Columns &columns) {
  if constexpr (kScatter < Program::kNumScatters) {
    constexpr ScatterWalk kWalk = Program::scatterWalk(kScatter);
    constexpr int kTileQ = Config::kTileQ, kTileKV = Config::kTileKV, kThreads = Config::kThreads;
    constexpr bool kIsAlongQ = kWalk == ScatterWalk::Columns;
    // A thread walks a stretch of one row or, along q, of one column; in dense walks neighbours take neighbouring kv.
    constexpr int kLines = kIsAlongQ ? kTileKV : kTileQ, kLength = kIsAlongQ ? kTileQ : kTileKV;
    constexpr int kParts = kThreads / kLines, kStretch = kLength / kParts;
    static_assert(kThreads % kLines == 0 && kLength % kParts == 0 && kThreads % kTileKV == 0);
    const CaptureGradientTarget &target = arguments.targets[Program::scatterTarget(kScatter)];
    if (target.gradient) {
      auto visit = [&](int row, int column, const auto &add) {
        float2 pair = tile.pairs[row][column];
        if (pair.y != 0.0f)
          Program::scatter(ScatterNumber<kScatter>(), captures, pair.x, pair.y, b, h, rows.at(row), columns.at(column),
                           add);
      };
      if constexpr (kWalk == ScatterWalk::Dense) {
        for (int row = threadIdx.x / kTileKV; row < kTileQ; row += kThreads / kTileKV)
          visit(row, threadIdx.x % kTileKV, [&](long long offset, float value) {
            if (offset >= 0)
              target.gradient[offset] += value;
          });
      } else {
        RunOfSums run{arguments.accumulators + target.begin * kAccumulatorWords};
        int line = threadIdx.x % kLines, first = threadIdx.x / kLines * kStretch;
#pragma unroll 1
        for (int i = first; i < first + kStretch; ++i)
          visit(kIsAlongQ ? i : line, kIsAlongQ ? line : i,
                [&](long long offset, float value) { run.add(offset, value); });
        if constexpr (kWalk == ScatterWalk::Constant) {
#pragma unroll
          for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
            run.sum += __shfl_xor_sync(0xffffffffu, run.sum, distance);
            run.offset = max(run.offset, __shfl_xor_sync(0xffffffffu, run.offset, distance));
          }
          if (threadIdx.x % kWarpSize == 0)
            run.flush();
        } else {
          run.flush();
        }
      }
    }
    scatterTile<Config, Program, kScatter + 1>(arguments, captures, tile, b, h, rows, columns);
  }
}

/// A block takes one tile of pairs and all (b, h) from blockIdx.z on, in steps of the grid: kv tiles along x, q tiles
/// along y. With a dense target the grid has z = 1, so that one block adds up what all (b, h) give its pairs.
template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardCaptures(const CaptureGradientArguments &arguments,
                                                          const typename Program::Captures &captures) {
  using Element = typename Config::Element;
  using Tile = PairTile<Config::kTileQ, Config::kTileKV>;
  constexpr int kTileQ = Config::kTileQ, kTileKV = Config::kTileKV, kThreads = Config::kThreads;
  constexpr int kColumns = roundUp(Config::kHeadDim, 16), kVColumns = roundUp(Config::kVHeadDim, 16);
  constexpr int kWidest = Config::kHeadDim > Config::kVHeadDim ? Config::kHeadDim : Config::kVHeadDim;
  constexpr int kQBytes = kTileQ * ceilDivide(kWidest, 64) * 128, kKBytes = kTileKV * ceilDivide(kWidest, 64) * 128;
  static_assert(kTileQ == kThreads / kWarpSize * 16);
  static_assert(kQBytes + kKBytes + int(sizeof(Tile)) <= Config::kSharedBytes, "the table of tiles is out of date");
  extern __shared__ __align__(1024) unsigned char dynamicShared[];
  unsigned char *left = dynamicShared, *right = left + kQBytes;
  Tile &tile = *reinterpret_cast<Tile *>(right + kKBytes);
  uint32 leftAddress = sharedAddress(left), rightAddress = sharedAddress(right);

  const BackwardArguments &backward = arguments.backward;
  int firstRow = threadIdx.x / kWarpSize * 16, rowInTile = firstRow + threadIdx.x % kWarpSize / 4;
  int kvTile = blockIdx.x, numQTiles = ceilDivide(backward.qLen, kTileQ);
  TilePositions<Config::kPositions, kTileKV> columns(backward.kvPositions, kvTile, backward.kvLen);
  for (int qTile = blockIdx.y; qTile < numQTiles; qTile += gridDim.y) {
    TilePositions<Config::kPositions, kTileQ> rows(backward.qPositions, qTile, backward.qLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};
    int row = qTile * kTileQ + rowInTile;
    for (int pair = blockIdx.z; pair < backward.batch * backward.qHeads; pair += gridDim.z) {
      int tileClass = tileClassAt(backward.mask, qTile, kvTile, pair, Program::kHasMask);
      if (tileClass == 0)
        continue;
      WorkItem work{qTile, pair / backward.qHeads, pair % backward.qHeads};
      int b = work.b + backward.batchOffset, h = work.h + backward.headOffset;
      int kvHead = work.h / (backward.qHeads / backward.kvHeads);

      // 1. s = scale * Q K^T
      __syncthreads();
      copyRows<kTileQ, Config::kHeadDim, kThreads>(left, elementSlice(backward.q, work.b, work.h), backward.q.strideS,
                                                   qTile * kTileQ, backward.qLen);
      copyRows<kTileKV, Config::kHeadDim, kThreads>(right, elementSlice(backward.k, work.b, kvHead), backward.k.strideS,
                                                    kvTile * kTileKV, backward.kvLen);
      copyCommit();
      copyWait<0>();
      __syncthreads();
      float scores[kTileKV / 2];
      multiplyTile<Element, kTileQ, kTileKV, kColumns>(scores, leftAddress, rightAddress, firstRow);

      // 2. dP = dO V^T
      __syncthreads();
      copyRows<kTileQ, Config::kVHeadDim, kThreads>(left, elementSlice(backward.dO, work.b, work.h),
                                                    backward.dO.strideS, qTile * kTileQ, backward.qLen);
      copyRows<kTileKV, Config::kVHeadDim, kThreads>(right, elementSlice(backward.v, work.b, kvHead),
                                                     backward.v.strideS, kvTile * kTileKV, backward.kvLen);
      copyCommit();
      copyWait<0>();
      __syncthreads();
      float gradients[kTileKV / 2];
      multiplyTile<Element, kTileQ, kTileKV, kVColumns>(gradients, leftAddress, rightAddress, firstRow);

      // 3. The gradient in the value x of the score function: exp(x - LSE) * (dP - delta), without a softmax dP.
      float lseLog2[2], delta[2];
      loadRowPair(lseLog2, backward.lseLog2, work, row, backward.qLen, infinity(), Config::kHasSoftmax);
      loadRowPair(delta, backward.delta, work, row, backward.qLen, 0.0f, Config::kHasSoftmax);
      uint32 keep[2];
      tileKeepWords<Program, TileAxes::RowsAreQ, kTileKV>(keep, tileClass == kPartialTile, captures, b, h, rows,
                                                          firstRow, columns);
#pragma unroll
      for (int i = 0; i < kTileKV / 2; ++i) {
        int column = registerColumn(i) + 2 * (threadIdx.x % 4), half = registerRow(i);
        float s = scores[i] * backward.scale, gradient = gradients[i];
        if constexpr (Config::kHasSoftmax) {
          float x = Program::score(captures, s, b, h, rowPosition[half], columns.at(column));
          float weight = exp2Fast(fmaf(x, kLog2E, -lseLog2[half]));
          gradient = weight == 0.0f ? 0.0f : weight * (gradient - delta[half]);
        }
        bool attends = keep[half] >> registerBit(i) & 1u && row + 8 * half < backward.qLen;
        tile.pairs[rowInTile + 8 * half][column] = make_float2(s, attends ? gradient : 0.0f);
      }
      __syncthreads();

      // 4. The scatters.
      scatterTile<Config, Program, 0>(arguments, captures, tile, b, h, rows, columns);
    }
  }
}

/// Rounds the exact sums of every wanted array that is not dense. Grid: any number of blocks.
template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardCaptureSums(const CaptureGradientArguments &arguments,
                                                             const typename Program::Captures &) {
  for (int i = 0; i < arguments.numTargets; ++i) {
    const CaptureGradientTarget &target = arguments.targets[i];
    if (!target.gradient || target.isDense)
      continue;
    const long long *words = arguments.accumulators + target.begin * kAccumulatorWords;
    for (long long element = blockIdx.x * (long long)Config::kThreads + threadIdx.x; element < target.numElements;
         element += gridDim.x * (long long)Config::kThreads)
      target.gradient[element] = exactSum(words + element * kAccumulatorWords);
  }
}

} // namespace cpflex::kernels
