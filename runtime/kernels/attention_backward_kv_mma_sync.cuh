// dK and dV with the instructions of sm_80. A block owns one tile of keys and loops over the query heads that read them
// and over the query tiles of the transposed mask, in order: no atomics, the same bits in every run. Tiles are
// transposed (rows are keys), so that weights and gradients of scores are operands where they are computed. Wide heads
// are cut in parts of columns; each part is a work item of its own and recomputes the scores.
#pragma once

#include "runtime/kernels/ampere.cuh"
#include "runtime/kernels/backward.cuh"

namespace cpflex::kernels {

template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardKVMmaSync(const BackwardArguments &arguments,
                                                           const typename Program::Captures &captures) {
  using Element = typename Config::Element;
  constexpr int kTileQ = Config::kTileQ, kTileKV = Config::kTileKV, kThreads = Config::kThreads;
  constexpr int kColumns = roundUp(Config::kHeadDim, 16), kVColumns = roundUp(Config::kVHeadDim, 16);
  constexpr int kParts = columnParts(Config::kHeadDim, Config::kVHeadDim);
  constexpr int kPartColumns = roundUp(ceilDivide(kColumns, kParts), 16);
  constexpr int kVPartColumns = roundUp(ceilDivide(kVColumns, kParts), 16);
  constexpr int kPanels = ceilDivide(Config::kHeadDim, 64), kVPanels = ceilDivide(Config::kVHeadDim, 64);
  constexpr int kKBytes = kTileKV * kPanels * 128, kVBytes = kTileKV * kVPanels * 128;
  constexpr int kQBytes = kTileQ * kPanels * 128, kDOBytes = kTileQ * kVPanels * 128;
  static_assert(kTileKV == kThreads / kWarpSize * 16);
  static_assert(kTileQ <= kThreads);
  static_assert(kKBytes + kVBytes + kQBytes + kDOBytes <= Config::kSharedBytes, "the table of tiles is out of date");
  using Columns = TilePositions<Config::kPositions, kTileQ>;

  extern __shared__ __align__(1024) unsigned char dynamicShared[];
  __shared__ int itemSlot;
  __shared__ __align__(8) float lseLog2[kTileQ], delta[kTileQ];
  unsigned char *k = dynamicShared, *v = k + kKBytes, *q = v + kVBytes, *dO = q + kQBytes;
  uint32 kAddress = sharedAddress(k), vAddress = sharedAddress(v), qAddress = sharedAddress(q),
         dOAddress = sharedAddress(dO);
  int firstRow = threadIdx.x / kWarpSize * 16, rowInTile = firstRow + threadIdx.x % kWarpSize / 4;
  int ownColumn = 2 * (threadIdx.x % 4);
  int numTiles = ceilDivide(arguments.qLen, kTileQ), headsPerKV = arguments.qHeads / arguments.kvHeads;
  int numItems = numWorkItems(arguments.work, arguments.batch * arguments.kvHeads * kParts);
  ScoreScale<Program> scale(arguments.scale, Config::kHasSoftmax);

  while (true) {
    int item = takeItem(arguments.work.counter, &itemSlot, numItems);
    if (item < 0)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.kvHeads * kParts);
    int part = work.h % kParts, kvHead = work.h / kParts, b = work.b + arguments.batchOffset;
    copyRows<kTileKV, Config::kHeadDim, kThreads>(k, elementSlice(arguments.k, work.b, kvHead), arguments.k.strideS,
                                                  work.row * kTileKV, arguments.kvLen);
    copyRows<kTileKV, Config::kVHeadDim, kThreads>(v, elementSlice(arguments.v, work.b, kvHead), arguments.v.strideS,
                                                   work.row * kTileKV, arguments.kvLen);
    TilePositions<Config::kPositions, kTileKV> rows(arguments.kvPositions, work.row, arguments.kvLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};

    float dK[kPartColumns / 2], dV[kVPartColumns / 2];
#pragma unroll
    for (int i = 0; i < kPartColumns / 2; ++i)
      dK[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < kVPartColumns / 2; ++i)
      dV[i] = 0.0f;

    for (int head = kvHead * headsPerKV; head < (kvHead + 1) * headsPerKV; ++head) {
      int h = head + arguments.headOffset;
      const float *lseLog2Row =
          arguments.lseLog2.data + work.b * arguments.lseLog2.strideB + head * arguments.lseLog2.strideH;
      const float *deltaRow = arguments.delta.data + work.b * arguments.delta.strideB + head * arguments.delta.strideH;
      TileWalk walk;
      walk.start(arguments.mask, work.row, arguments.work.numRows, work.b * arguments.qHeads + head, numTiles,
                 Program::kHasMask);
      while (walk.next()) {
        __syncthreads();
        copyRows<kTileQ, Config::kHeadDim, kThreads>(q, elementSlice(arguments.q, work.b, head), arguments.q.strideS,
                                                     walk.tile * kTileQ, arguments.qLen);
        copyRows<kTileQ, Config::kVHeadDim, kThreads>(dO, elementSlice(arguments.dO, work.b, head),
                                                      arguments.dO.strideS, walk.tile * kTileQ, arguments.qLen);
        copyCommit();
        if (Config::kHasSoftmax && threadIdx.x < kTileQ) {
          int row = walk.tile * kTileQ + threadIdx.x;
          lseLog2[threadIdx.x] = row < arguments.qLen ? lseLog2Row[row] : infinity();
          delta[threadIdx.x] = row < arguments.qLen ? deltaRow[row] : 0.0f;
        }
        copyWait<0>();
        __syncthreads();

        // 1. S^T = K Q^T, weights and gradient factors.
        float factors[kTileQ / 2];
        multiplyTile<Element, kTileKV, kTileQ, kColumns>(factors, kAddress, qAddress, firstRow);
        Columns columns(arguments.qPositions, walk.tile, arguments.qLen);
        uint32 keep[2];
        bool isMasked = tileKeepWords<Program, TileAxes::RowsAreKV, kTileQ>(keep, walk.isPartial, captures, b, h, rows,
                                                                            firstRow, columns);
        uint32 weights[kTileQ / 4];
        weighTile<Element, Program, TileAxes::RowsAreKV, Config::kHasSoftmax, true>(
            factors, weights, keep, isMasked, scale, captures, b, h, rowPosition, columns,
            [&](int i) { return lseLog2[registerColumn(i) + ownColumn]; });

        // 2. dV += P^T dO
        accumulateTile<Element, kTileQ, kVPartColumns>(dV, weights, dOAddress, part * kVPartColumns);

        // 3. dP^T = V dO^T, dS^T
        float gradients[kTileQ / 2];
        multiplyTile<Element, kTileKV, kTileQ, kVColumns>(gradients, vAddress, dOAddress, firstRow);
#pragma unroll
        for (int i = 0; i < kTileQ / 2; ++i)
          gradients[i] =
              factors[i] * (Config::kHasSoftmax ? gradients[i] - delta[registerColumn(i) + ownColumn] : gradients[i]);
        packOperand<Element>(weights, gradients);

        // 4. dK += dS^T Q
        accumulateTile<Element, kTileQ, kPartColumns>(dK, weights, qAddress, part * kPartColumns);
      }
    }

    const float kScale[2] = {arguments.scale, arguments.scale}, kOne[2] = {1.0f, 1.0f};
    int row = work.row * kTileKV + rowInTile;
    writeColumns<Element, Config::kOutputIsF32, kPartColumns>(
        dK, kScale, outputSlice<Config::kOutputIsF32>(arguments.dK, work.b, kvHead), arguments.dK.strideS, row,
        arguments.kvLen, part * kPartColumns, Config::kHeadDim);
    writeColumns<Element, Config::kOutputIsF32, kVPartColumns>(
        dV, kOne, outputSlice<Config::kOutputIsF32>(arguments.dV, work.b, kvHead), arguments.dV.strideS, row,
        arguments.kvLen, part * kVPartColumns, Config::kVHeadDim);
  }
}

} // namespace cpflex::kernels
