// dQ with the instructions of sm_80: the forward's loop over the tiles of a row, with the weights taken from LSE
// instead of a running maximum. Deterministic.
#pragma once

#include "runtime/kernels/ampere.cuh"
#include "runtime/kernels/backward.cuh"

namespace cpflex::kernels {

template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardQMmaSync(const BackwardArguments &arguments,
                                                          const typename Program::Captures &captures) {
  using Element = typename Config::Element;
  constexpr int kTileQ = Config::kTileQ, kTileKV = Config::kTileKV, kThreads = Config::kThreads;
  constexpr int kColumns = roundUp(Config::kHeadDim, 16), kVColumns = roundUp(Config::kVHeadDim, 16);
  constexpr int kPanels = ceilDivide(Config::kHeadDim, 64), kVPanels = ceilDivide(Config::kVHeadDim, 64);
  constexpr int kKBytes = kTileKV * kPanels * 128, kVBytes = kTileKV * kVPanels * 128;
  constexpr int kQBytes = kTileQ * kPanels * 128, kDOBytes = kTileQ * kVPanels * 128;
  static_assert(kTileQ == kThreads / kWarpSize * 16);
  static_assert(kKBytes + kVBytes + kQBytes + kDOBytes <= Config::kSharedBytes, "the table of tiles is out of date");
  using Columns = TilePositions<Config::kPositions, kTileKV>;

  extern __shared__ __align__(1024) unsigned char dynamicShared[];
  __shared__ int itemSlot;
  unsigned char *q = dynamicShared, *dO = q + kQBytes, *k = dO + kDOBytes, *v = k + kKBytes;
  uint32 kAddress = sharedAddress(k), vAddress = sharedAddress(v), qAddress = sharedAddress(q),
         dOAddress = sharedAddress(dO);
  int firstRow = threadIdx.x / kWarpSize * 16, rowInTile = firstRow + threadIdx.x % kWarpSize / 4;
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
    copyRows<kTileQ, Config::kHeadDim, kThreads>(q, elementSlice(arguments.q, work.b, work.h), arguments.q.strideS,
                                                 work.row * kTileQ, arguments.qLen);
    copyRows<kTileQ, Config::kVHeadDim, kThreads>(dO, elementSlice(arguments.dO, work.b, work.h), arguments.dO.strideS,
                                                  work.row * kTileQ, arguments.qLen);
    TilePositions<Config::kPositions, kTileQ> rows(arguments.qPositions, work.row, arguments.qLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};
    int row = work.row * kTileQ + rowInTile;
    float lseLog2[2], delta[2];
    loadRowPair(lseLog2, arguments.lseLog2, work, row, arguments.qLen, infinity(), Config::kHasSoftmax);
    loadRowPair(delta, arguments.delta, work, row, arguments.qLen, 0.0f, Config::kHasSoftmax);

    float dQ[kColumns / 2];
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i)
      dQ[i] = 0.0f;
    TileWalk walk;
    walk.start(arguments.mask, work.row, arguments.work.numRows, work.b * arguments.qHeads + work.h, numTiles,
               Program::kHasMask);
    while (walk.next()) {
      __syncthreads();
      copyRows<kTileKV, Config::kHeadDim, kThreads>(k, elementSlice(arguments.k, work.b, kvHead), arguments.k.strideS,
                                                    walk.tile * kTileKV, arguments.kvLen);
      copyCommit();
      copyRows<kTileKV, Config::kVHeadDim, kThreads>(v, elementSlice(arguments.v, work.b, kvHead), arguments.v.strideS,
                                                     walk.tile * kTileKV, arguments.kvLen);
      copyCommit();
      copyWait<1>();
      __syncthreads();

      // 1. S = Q K^T, gradient factors.
      float factors[kTileKV / 2];
      multiplyTile<Element, kTileQ, kTileKV, kColumns>(factors, qAddress, kAddress, firstRow);
      Columns columns(arguments.kvPositions, walk.tile, arguments.kvLen);
      uint32 keep[2], operands[kTileKV / 4];
      bool isMasked = tileKeepWords<Program, TileAxes::RowsAreQ, kTileKV>(keep, walk.isPartial, captures, b, h, rows,
                                                                          firstRow, columns);
      weighTile<Element, Program, TileAxes::RowsAreQ, Config::kHasSoftmax, false>(
          factors, operands, keep, isMasked, scale, captures, b, h, rowPosition, columns,
          [&](int i) { return lseLog2[registerRow(i)]; });

      // 2. dP = dO V^T, dS
      copyWait<0>();
      __syncthreads();
      float gradients[kTileKV / 2];
      multiplyTile<Element, kTileQ, kTileKV, kVColumns>(gradients, dOAddress, vAddress, firstRow);
#pragma unroll
      for (int i = 0; i < kTileKV / 2; ++i)
        gradients[i] = factors[i] * (gradients[i] - delta[registerRow(i)]);
      packOperand<Element>(operands, gradients);

      // 3. dQ += dS K
      accumulateTile<Element, kTileKV, kColumns>(dQ, operands, kAddress, 0);
    }
    const float kScale[2] = {arguments.scale, arguments.scale};
    writeRows<Element, Config::kOutputIsF32, Config::kHeadDim>(
        dQ, kScale, outputSlice<Config::kOutputIsF32>(arguments.dQ, work.b, work.h), arguments.dQ.strideS, row,
        arguments.qLen);
  }
}

} // namespace cpflex::kernels
