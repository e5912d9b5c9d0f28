// Forward attention with the instructions of sm_80: every warp owns one or two groups of 16 query rows; tiles of K and
// V are copied in the background, K of the next tile under the softmax, V under the scores (the order of
// FlashAttention-2, Dao 2023). Serves every head size that is a multiple of 8.
#pragma once

#include "runtime/kernels/ampere.cuh"
#include "runtime/kernels/softmax.cuh"

namespace cpflex::kernels {

template <class Config, class Program>
__device__ __forceinline__ void attentionForwardMmaSync(const ForwardArguments &arguments,
                                                        const typename Program::Captures &captures) {
  using Element = typename Config::Element;
  constexpr int kTileQ = Config::kTileQ, kTileKV = Config::kTileKV, kThreads = Config::kThreads;
  constexpr int kColumns = roundUp(Config::kHeadDim, 16), kVColumns = roundUp(Config::kVHeadDim, 16);
  constexpr int kRowsPerWarp = kTileQ / (kThreads / kWarpSize);
  constexpr int kGroups = kRowsPerWarp / 16;
  constexpr int kQBytes = kTileQ * ceilDivide(Config::kHeadDim, 64) * 128;
  constexpr int kKBytes = kTileKV * ceilDivide(Config::kHeadDim, 64) * 128;
  constexpr int kVBytes = kTileKV * ceilDivide(Config::kVHeadDim, 64) * 128;
  static_assert(kRowsPerWarp == 16 * kGroups && kGroups >= 1);
  static_assert(kQBytes + kKBytes + kVBytes <= Config::kSharedBytes, "the table of tiles is out of date");
  using Positions = TilePositions<Config::kPositions, kTileKV>;

  extern __shared__ __align__(1024) unsigned char dynamicShared[];
  __shared__ int itemSlot;
  unsigned char *q = dynamicShared, *k = q + kQBytes, *v = k + kKBytes;
  uint32 qAddress = sharedAddress(q), kAddress = sharedAddress(k), vAddress = sharedAddress(v);
  int firstRow = threadIdx.x / kWarpSize * kRowsPerWarp;
  int rowInGroup = threadIdx.x % kWarpSize / 4;
  int numTiles = ceilDivide(arguments.kvLen, kTileKV);
  int numItems = numWorkItems(arguments.work, arguments.batch * arguments.qHeads);
  ScoreScale<Program> scale(arguments.scale, Config::kHasSoftmax);

  while (true) {
    int item = takeItem(arguments.work.counter, &itemSlot, numItems);
    if (item < 0)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.qHeads);
    int b = work.b + arguments.batchOffset, h = work.h + arguments.headOffset;
    int kvHead = work.h / (arguments.qHeads / arguments.kvHeads);
    const unsigned short *kSlice = elementSlice(arguments.k, work.b, kvHead);
    const unsigned short *vSlice = elementSlice(arguments.v, work.b, kvHead);
    const unsigned short *qSlice = elementSlice(arguments.q, work.b, work.h);
    int rowPosition[kGroups][2];
    TilePositions<Config::kPositions, kTileQ> rows(arguments.qPositions, work.row, arguments.qLen);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      rowPosition[group][0] = rows.at(firstRow + 16 * group + rowInGroup);
      rowPosition[group][1] = rows.at(firstRow + 16 * group + rowInGroup + 8);
    }

    OnlineSoftmax softmax[kGroups];
    float output[kGroups][kVColumns / 2];
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
#pragma unroll
      for (int i = 0; i < kVColumns / 2; ++i)
        output[group][i] = 0.0f;

    TileWalk walk;
    walk.start(arguments.mask, work.row, arguments.work.numRows, work.b * arguments.qHeads + work.h, numTiles,
               Program::kHasMask);
    bool hasTile = walk.next();
    if (hasTile) {
      copyRows<kTileQ, Config::kHeadDim, kThreads>(q, qSlice, arguments.q.strideS, work.row * kTileQ, arguments.qLen);
      copyRows<kTileKV, Config::kHeadDim, kThreads>(k, kSlice, arguments.k.strideS, walk.tile * kTileKV,
                                                    arguments.kvLen);
      copyCommit();
    }
    while (hasTile) {
      int tile = walk.tile;
      bool isPartial = walk.isPartial;
      hasTile = walk.next();

      // 1. S = Q K[j]^T, while V[j] is copied.
      copyWait<0>();
      __syncthreads();
      copyRows<kTileKV, Config::kVHeadDim, kThreads>(v, vSlice, arguments.v.strideS, tile * kTileKV, arguments.kvLen);
      copyCommit();
      float scores[kGroups][kTileKV / 2];
#pragma unroll
      for (int group = 0; group < kGroups; ++group)
#pragma unroll
        for (int i = 0; i < kTileKV / 2; ++i)
          scores[group][i] = 0.0f;
#pragma unroll
      for (int column = 0; column < kColumns; column += 16) {
        uint32 a[kGroups][4];
#pragma unroll
        for (int group = 0; group < kGroups; ++group)
          loadOperandA<kTileQ>(a[group], qAddress, firstRow + 16 * group, column);
#pragma unroll
        for (int row = 0; row < kTileKV; row += 16) {
          uint32 operand[4];
          loadOperandB<kTileKV>(operand, kAddress, row, column);
#pragma unroll
          for (int group = 0; group < kGroups; ++group) {
            warpProduct<Element>(scores[group] + row / 2, a[group], operand[0], operand[1]);
            warpProduct<Element>(scores[group] + row / 2 + 4, a[group], operand[2], operand[3]);
          }
        }
      }

      // 2. Scores, mask and softmax, while K[j+1] is copied.
      copyWait<0>();
      __syncthreads();
      if (hasTile) {
        copyRows<kTileKV, Config::kHeadDim, kThreads>(k, kSlice, arguments.k.strideS, walk.tile * kTileKV,
                                                      arguments.kvLen);
        copyCommit();
      }
      Positions columns(arguments.kvPositions, tile, arguments.kvLen);
      unrolled<kGroups>([&](int group) {
        applyScore<Program, TileAxes::RowsAreQ>(scores[group], scale, captures, b, h, rowPosition[group], columns);
        uint32 keep[2];
        if (tileKeepWords<Program, TileAxes::RowsAreQ, kTileKV>(keep, isPartial, captures, b, h, rows,
                                                                firstRow + 16 * group, columns))
          applyKeepWords(scores[group], keep, Config::kHasSoftmax ? -infinity() : 0.0f);
        if constexpr (Config::kHasSoftmax) {
          float rescale[2];
          if (softmax[group].step(scores[group], scale.toLog2, rescale))
#pragma unroll
            for (int i = 0; i < kVColumns / 2; ++i)
              output[group][i] *= rescale[registerRow(i)];
        }
      });

      // 3. O += P V[j]
#pragma unroll
      for (int row = 0; row < kTileKV; row += 16) {
        uint32 weights[kGroups][4];
#pragma unroll
        for (int group = 0; group < kGroups; ++group)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            weights[group][i] = Element::pack(scores[group][row / 2 + 2 * i], scores[group][row / 2 + 2 * i + 1]);
#pragma unroll
        for (int column = 0; column < kVColumns; column += 16) {
          uint32 operand[4];
          loadOperandBTransposed<kTileKV>(operand, vAddress, row, column);
#pragma unroll
          for (int group = 0; group < kGroups; ++group) {
            warpProduct<Element>(output[group] + column / 2, weights[group], operand[0], operand[1]);
            warpProduct<Element>(output[group] + column / 2 + 4, weights[group], operand[2], operand[3]);
          }
        }
      }
    }

    void *slice = outputSlice<Config::kOutputIsF32>(arguments.o, work.b, work.h);
    unrolled<kGroups>([&](int group) {
      float factor[2] = {1.0f, 1.0f}, lse[2];
      int row = work.row * kTileQ + firstRow + 16 * group + rowInGroup;
      if constexpr (Config::kHasSoftmax) {
        softmax[group].finish(scale.toLog2, arguments.sink, h, factor, lse);
        writeLse(arguments.lse, work, lse, row, arguments.qLen);
      }
      writeRows<Element, Config::kOutputIsF32, Config::kVHeadDim>(output[group], factor, slice, arguments.o.strideS,
                                                                  row, arguments.qLen);
    });
  }
}

} // namespace cpflex::kernels
