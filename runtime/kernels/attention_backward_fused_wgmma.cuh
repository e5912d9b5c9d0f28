// dK, dV and the sums of dQ in one kernel on Hopper, for heads that sumsDQ() names: five products per pair of tiles
// where the two kernels that write dK/dV and dQ alone need seven. A block owns one tile of keys, as in
// attention_backward_kv_wgmma.cuh, and adds its part of dQ for each query tile to f32 sums in global memory, which
// attention_backward_q_sums.cuh converts.
//
// One step of a consumer, products in flight in brackets:
//   1. [S^T = K Q^T] [dP^T = V dO^T]   2. P and the gradient factors from S^T   3. [dV += P^T dO]
//   4. dS^T from dP^T, exchanged through shared memory: dQ needs the keys of both consumers
//   5. [dQ = dS K] of half of the columns, or of narrow heads [dQ^T = K^T dS^T] of half of the queries
//   6. [dK += dS^T Q], which runs on into the next step's 1 where registers suffice
//   7. dQ to shared memory, from where a warp adds it to the sums
//
// The same bits in every run: a query tile's parts are added in ascending order of kv. A counter per query tile says
// how many were added; a block's turn is the number of tiles that the mask visits before its own. Items are taken in
// ascending order of kv too, so that a block waits only for items that were taken before its own: some block can always
// go on, however few of them run. (The scheme of FlashAttention-3's deterministic mode, with turns read off the runs of
// the mask.)
#pragma once

#include "runtime/kernels/backward_kv_pipeline.cuh"

namespace cpflex::kernels {

/// Named barrier of the consumers; 0 is __syncthreads.
constexpr int kConsumersBarrier = 1;

/// How many tiles of query tile `tile` of a (b, h) lie before kv tile `kvTile`.
__device__ __forceinline__ int turnInSums(const MaskArgument &mask, int pair, int tile, int kvTile) {
  if (!mask.runs)
    return kvTile;
  int rowSet = mask.rowSetOf ? __ldg(mask.rowSetOf + pair) : 0;
  const int *begin = mask.rowBegin + (long long)rowSet * (mask.numRows + 1) + tile / mask.rowTilesPerMaskTile;
  int end = __ldg(begin + 1), turn = 0;
  for (int i = __ldg(begin); i < end; ++i) {
    int first = __ldg(&mask.runs[i].begin) * mask.colTilesPerMaskTile;
    if (first >= kvTile)
      break;
    turn += min(__ldg(&mask.runs[i].end) * mask.colTilesPerMaskTile, kvTile) - first;
  }
  return turn;
}

/// One of the warps that add dQ up: walks the tiles as the producer does and, of every kSumSlots-th, adds the part of
/// dQ when its turn has come. The lanes look up the turns of the tiles that come next, so that none waits for memory.
template <class Config, class Program>
__device__ __forceinline__ void sumQueryGradients(const BackwardKVShared<Config> &shared,
                                                  const BackwardArguments &arguments, int slot) {
  using Shared = BackwardKVShared<Config>;
  auto &rest = *shared.rest;
  auto &walk = rest.sumsWalk[slot];
  const QuerySumsArgument &querySums = arguments.querySums;
  bool isElected = isElectedLane();
  int lane = threadIdx.x % kWarpSize, numTiles = ceilDivide(arguments.qLen, Config::kTileQ);
  RingPosition<Shared::kSumSlots> ring;
  WorkQueue queue;
  while (true) {
    int item = queue.take(rest.work);
    if (item < 0)
      return;
    if (isElected)
      walk.start(arguments, item, Config::kTileQ, Program::kHasMask);
    int numAhead;
    do {
      numAhead = 0;
      if (isElected)
        for (; numAhead < Shared::kSumsAhead && walk.next(arguments, Config::kTileQ, Program::kHasMask); ++numAhead) {
          rest.sumsTile[slot][numAhead] = walk.walk.tile;
          rest.sumsPair[slot][numAhead] = walk.item.b * arguments.qHeads + walk.head;
        }
      __syncwarp();
      numAhead = __shfl_sync(0xffffffffu, numAhead, 0);
      int ownTile = 0, ownTurn = 0; // of all (b, h)
      if (lane < numAhead) {
        int tile = rest.sumsTile[slot][lane], pair = rest.sumsPair[slot][lane];
        ownTurn = turnInSums(querySums.mask, pair, tile, walk.item.row);
        ownTile = pair * numTiles + tile;
      }
      for (int i = 0; i < numAhead; ++i, ring.advance()) {
        if (ring.slot != slot)
          continue;
        int tile = __shfl_sync(0xffffffffu, ownTile, i), turn = __shfl_sync(0xffffffffu, ownTurn, i);
        if (!isElected)
          continue;
        int *done = querySums.turns + tile;
        float *sums = querySums.sums + tile * sumsPerTile(Config::kTileQ, Config::kHeadDim);
        while (loadRelaxed(done) != turn) {
        }
        fenceGlobalForAsync();
        rest.dQFull[slot].wait(ring.parity);
        if (turn == 0)
          writeBytes(sums, shared.dQ(slot), Shared::kDQBytes, CacheHint::EvictLast);
        else
          addFloats(sums, shared.dQ(slot), Shared::kDQBytes, CacheHint::EvictLast);
        bulkCommit();
        bulkWaitRead();
        rest.dQEmpty[slot].arrive();
        bulkWait();
        storeRelease(done, turn + 1);
      }
      __syncwarp();
    } while (numAhead == Shared::kSumsAhead);
  }
}

/// Lays a consumer's part of dQ out as the sums are.
template <class Shared, int N>
__device__ __forceinline__ void stageQueryGradients(const float (&dQ)[N], float *tile, int consumer, int thread) {
  int warp = thread / kWarpSize, quad = thread % kWarpSize / 4, laneInQuad = thread % 4;
  if constexpr (Shared::kTransposesDQ) {
    // Register i holds row (of 64 columns of dQ) 16 warp + 8 registerRow(i) + quad of query 8 (i / 4) + 2 laneInQuad +
    // i % 2.
    float *own = tile + (consumer * Shared::kDQColumns + 2 * laneInQuad) * kSumsColumns + quad;
    int even = sumsChunk(2 * laneInQuad, 2 * warp) * kSumsChunk, odd = even ^ kSumsChunk;
    static_assert(sumsChunk(1, 0) == 1 && sumsChunk(3, 0) == (sumsChunk(2, 0) ^ 1));
#pragma unroll
    for (int i = 0; i < N; ++i)
      own[(i / 4 * 8 + i % 2) * kSumsColumns + ((i % 2 ^ registerRow(i)) ? odd : even)] = dQ[i];
  } else {
    float *own = tile + (consumer * Shared::kDQRows + 16 * warp + quad) * kSumsColumns + 2 * laneInQuad;
#pragma unroll
    for (int i = 0; i < N; i += 2)
      *reinterpret_cast<float2 *>(own + registerRow(i) * 8 * kSumsColumns + sumsChunk(quad, i / 4) * kSumsChunk) =
          make_float2(dQ[i], dQ[i + 1]);
  }
}

/// One consumer warpgroup.
template <class Config, class Program>
__device__ __forceinline__ void consumeBackwardFused(const BackwardKVShared<Config> &shared,
                                                     const BackwardArguments &arguments,
                                                     const typename Program::Captures &captures, int consumer) {
  using Shared = BackwardKVShared<Config>;
  using Element = typename Config::Element;
  constexpr int kTileQ = Config::kTileQ, kTileKV = Config::kTileKV;
  constexpr bool kHasSoftmax = Config::kHasSoftmax;
  using Columns = TilePositions<Config::kPositions, kTileQ>;
  using TileProduct = WarpgroupProduct<Element, kTileQ>;
  using KProduct = WarpgroupProduct<Element, Shared::kColumns>;
  using VProduct = WarpgroupProduct<Element, Shared::kVColumns>;
  using QProduct = WarpgroupProduct<Element, Shared::kDQColumns>;

  auto &rest = *shared.rest;
  bool isElected = isElectedLane();
  int thread = threadIdx.x % kWarpgroupSize, lane = threadIdx.x % kWarpSize;
  int firstRow = consumer * Shared::kRowsPerConsumer + thread / kWarpSize * 16;
  int rowInTile = firstRow + lane / 4;
  int ownColumn = 2 * (threadIdx.x % 4);
  ScoreScale<Program> scale(arguments.scale, kHasSoftmax);
  constexpr int kConsumerBytes = Shared::kRowsPerConsumer * 128;
  uint32 kDescriptor = operandDescriptor(shared.k() + consumer * kConsumerBytes, Shared::kKVPanelBytes);
  uint32 vDescriptor = operandDescriptor(shared.v() + consumer * kConsumerBytes, Shared::kKVPanelBytes);
  uint32 qDescriptor = operandDescriptor(shared.q(0), Shared::kQPanelBytes);
  uint32 dODescriptor = operandDescriptor(shared.dO(0), Shared::kQPanelBytes);
  // Of the consumer's part of dQ.
  uint32 dSDescriptor =
      operandDescriptor(shared.dS(0) + (Shared::kTransposesDQ ? consumer * kTileKV * 128 : 0), kTileKV * 128);
  uint32 kPartDescriptor = operandDescriptor(
      shared.k() + (Shared::kTransposesDQ ? 0 : consumer * Shared::kKVPanelBytes), Shared::kKVPanelBytes);

  RingPosition<Config::kStages> ring;
  // Registers suffice for product 6 to run on where the accumulators are narrow.
  constexpr bool kOverlapsSteps = Shared::kTransposesDQ;
  static_assert(Shared::kExchangeSlots == Shared::kSumSlots);
  RingPosition<Shared::kSumSlots> exchange; ///< of dS and of dQ
  uint32 kvParity = 0;
  WorkQueue queue;
  float dK[Shared::kColumns / 2], dV[Shared::kVColumns / 2];
  float factors[kTileQ / 2], gradients[kTileQ / 2];
  uint32 weights[kTileQ / 4], operands[kTileQ / 4];

  while (true) {
    int item = queue.take(rest.work);
    if (item < 0)
      return;
    WorkItem work = keyItem<true>(arguments, item);
    int b = work.b + arguments.batchOffset;
    TilePositions<Config::kPositions, kTileKV> rows(arguments.kvPositions, work.row, arguments.kvLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};
#pragma unroll
    for (int i = 0; i < Shared::kColumns / 2; ++i)
      dK[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < Shared::kVColumns / 2; ++i)
      dV[i] = 0.0f;
    bool hasTile = queue.hasTile;
    if (hasTile) {
      rest.kvFull.wait(kvParity);
      kvParity ^= 1;
    }
    int previousSlot = -1; // of the last step
    while (hasTile) {
      // 1. S^T = K Q^T and dP^T = V dO^T
      int slot = ring.slot;
      rest.qFull[slot].wait(ring.parity);
      TileMessage message = rest.message[slot];
      int h = rest.head[slot] + arguments.headOffset;
      hasTile = !message.isLast();
      uint32 q = qDescriptor + slot * descriptorStep(Shared::kQBytes);
      uint32 dO = dODescriptor + slot * descriptorStep(Shared::kDOBytes);
      pinRegisters(factors);
      productFence();
#pragma unroll
      for (int step = 0; step < ceilDivide(Config::kHeadDim, 16); ++step)
        TileProduct::template fromShared<Major::K, Major::K>(factors,
                                                             kDescriptor + panelStep<Shared::kKVPanelBytes>(step),
                                                             q + panelStep<Shared::kQPanelBytes>(step), step != 0);
      productCommit();
      if constexpr (kOverlapsSteps) {
        productWait<1>(); // product 6 of the last step
        pinRegisters(dK);
        if (previousSlot >= 0 && isElected)
          rest.qEmpty[previousSlot].arrive();
      }
      rest.dOFull[slot].wait(ring.parity);
      pinRegisters(gradients);
      productFence();
#pragma unroll
      for (int step = 0; step < ceilDivide(Config::kVHeadDim, 16); ++step)
        TileProduct::template fromShared<Major::K, Major::K>(gradients,
                                                             vDescriptor + panelStep<Shared::kKVPanelBytes>(step),
                                                             dO + panelStep<Shared::kQPanelBytes>(step), step != 0);
      productCommit();

      // 2. P and the gradient factors; the mask is decided while the products run.
      Columns columns(arguments.qPositions, message.tile(), arguments.qLen);
      uint32 keep[2];
      bool isMasked = tileKeepWords<Program, TileAxes::RowsAreKV, kTileQ>(keep, message.isPartial(), captures, b, h,
                                                                          rows, firstRow, columns);
      if (rows.last < kTileKV - 1) {
        // Rows beyond the last key meet rows of K that read as zero; their weights must be finite.
        isMasked = true;
        keep[0] = rowInTile <= rows.last ? keep[0] : 0u;
        keep[1] = rowInTile + 8 <= rows.last ? keep[1] : 0u;
      }
      productWait<1>();
      pinRegisters(factors);
      const float *lseLog2 = rest.lseLog2[slot] + ownColumn, *delta = rest.delta[slot] + ownColumn;
      weighTile<Element, Program, TileAxes::RowsAreKV, kHasSoftmax, true>(
          factors, weights, keep, isMasked, scale, captures, b, h, rowPosition, columns,
          [&](int i) { return lseLog2[registerColumn(i)]; });

      // 3. dV += P^T dO
      pinRegisters(dV);
      productFence();
#pragma unroll
      for (int step = 0; step < kTileQ / 16; ++step)
        VProduct::template fromRegisters<Major::MN>(dV, weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
                                                    weights[4 * step + 3], dO + step * descriptorStep(16 * 128), 1);
      productCommit();
      productWait<1>();
      pinRegisters(gradients);

      // 4. dS^T. The slot is free: the other consumer has met the barrier of the last step, so its product of the step
      //    before has been waited for.
#pragma unroll
      for (int i = 0; i < kTileQ / 2; ++i)
        gradients[i] = factors[i] * (kHasSoftmax ? gradients[i] - delta[registerColumn(i)] : gradients[i]);
      packOperand<Element>(operands, gradients);
#pragma unroll
      for (int step = 0; step < kTileQ / 16; ++step)
        storeMatrices(shared.dS(exchange.slot) + 16 * step / Shared::kDSColumns * (kTileKV * 128) +
                          swizzledOffset<kTileKV>(firstRow + lane % 16, 16 * step % Shared::kDSColumns + lane / 16 * 8),
                      operands[4 * step], operands[4 * step + 1], operands[4 * step + 2], operands[4 * step + 3]);
      fenceSharedForAsync();

      barrierSync<Shared::kConsumers * kWarpgroupSize>(kConsumersBarrier);

      // 5. dQ = dS K, or dQ^T = K^T dS^T
      float dQ[Shared::kDQColumns / 2];
      uint32 dS = dSDescriptor + exchange.slot * descriptorStep(Shared::kDSBytes);
      pinRegisters(dK);
      productFence();
#pragma unroll
      for (int step = 0; step < kTileKV / 16; ++step) {
        uint32 dSStep = dS + step * descriptorStep(16 * 128), kStep = kPartDescriptor + step * descriptorStep(16 * 128);
        if constexpr (Shared::kTransposesDQ)
          QProduct::template fromShared<Major::MN, Major::MN>(dQ, kStep, dSStep, step != 0);
        else
          QProduct::template fromShared<Major::MN, Major::MN>(dQ, dSStep, kStep, step != 0);
      }
      productCommit();

      // 6. dK += dS^T Q
#pragma unroll
      for (int step = 0; step < kTileQ / 16; ++step)
        KProduct::template fromRegisters<Major::MN>(dK, operands[4 * step], operands[4 * step + 1],
                                                    operands[4 * step + 2], operands[4 * step + 3],
                                                    q + step * descriptorStep(16 * 128), 1);
      productCommit();
      productWait<1>(); // products 3 and 5
      pinRegisters(dV);
      pinRegisters(dQ);
      if (isElected) {
        rest.dOEmpty[slot].arrive();
        if (!hasTile)
          rest.kvEmpty.arrive(); // the next item's keys may come while this one ends
      }

      // 7. dQ goes out.
      rest.dQEmpty[exchange.slot].wait(exchange.parity ^ 1);
      stageQueryGradients<Shared>(dQ, reinterpret_cast<float *>(shared.dQ(exchange.slot)), consumer, thread);
      fenceSharedForAsync();
      __syncwarp();
      if (isElected)
        rest.dQFull[exchange.slot].arrive();
      if constexpr (!kOverlapsSteps) {
        productWait<0>();
        pinRegisters(dK);
        if (isElected)
          rest.qEmpty[slot].arrive();
      }
      previousSlot = slot;
      exchange.advance();
      ring.advance();
    }
    productWait<0>();
    pinRegisters(dK);
    if constexpr (kOverlapsSteps)
      if (previousSlot >= 0 && isElected)
        rest.qEmpty[previousSlot].arrive();

    const float kScale[2] = {arguments.scale, arguments.scale}, kOne[2] = {1.0f, 1.0f};
    int row = work.row * kTileKV + rowInTile;
    writeRows<Element, Config::kOutputIsF32, Config::kHeadDim>(
        dK, kScale, outputSlice<Config::kOutputIsF32>(arguments.dK, work.b, work.h), arguments.dK.strideS, row,
        arguments.kvLen);
    writeRows<Element, Config::kOutputIsF32, Config::kVHeadDim>(
        dV, kOne, outputSlice<Config::kOutputIsF32>(arguments.dV, work.b, work.h), arguments.dV.strideS, row,
        arguments.kvLen);
  }
}

template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardFusedWgmma(const BackwardArguments &arguments,
                                                            const typename Program::Captures &captures,
                                                            const BackwardTensorMaps &maps) {
  using Shared = BackwardKVShared<Config>;
  static_assert(Shared::kSumsDQ);
  // Of the 504 registers per 128 threads, narrow heads leave the producer's warpgroup enough not to spill.
  constexpr int kProducerRegisters = Shared::kPanels == 1 ? 40 : 24,
                kConsumerRegisters = (504 - kProducerRegisters) / 2;
  Shared shared;
  shared.initialize();

  int warpgroup = threadIdx.x / kWarpgroupSize;
  if (warpgroup == 0) {
    giveRegisters<kProducerRegisters>();
    if (threadIdx.x == 0)
      produceBackwardKV<Config, Program>(shared, arguments, maps);
    else if (int warp = threadIdx.x / kWarpSize; warp > 0 && warp <= Shared::kSumSlots)
      sumQueryGradients<Config, Program>(shared, arguments, warp - 1);
  } else {
    takeRegisters<kConsumerRegisters>();
    consumeBackwardFused<Config, Program>(shared, arguments, captures, __shfl_sync(0xffffffffu, warpgroup, 0) - 1);
  }
}

} // namespace cpflex::kernels
