// dK, dV and dQ in one kernel on Hopper, for heads that sumsDQ() names: five products per pair of tiles where the two
// kernels that write dK/dV and dQ alone need seven. A block owns one tile of keys, as in
// attention_backward_kv_wgmma.cuh, and adds its part of dQ for each query tile to f32 sums in global memory. The block
// with the last part of a query tile adds the sums to that instead and writes dQ.
//
// One step of a consumer, products in flight in brackets:
//   1. [S^T = K Q^T] [dP^T = V dO^T]   2. P and the gradient factors from S^T   3. [dV += P^T dO]
//   4. dS^T from dP^T, exchanged through shared memory: dQ needs the keys of both consumers
//   5. [dQ = dS K] of half of the columns, or of narrow heads [dQ^T = K^T dS^T] of half of the queries
//   6. [dK += dS^T Q], which runs on into the next step's 1 where registers suffice
//   7. dQ to shared memory, from where a warp adds it to the sums; of the last part dQ itself is written
//
// The same bits in every run: a query tile's parts are added in ascending order of kv. A counter per query tile says
// how many were added; a block's turn is the number of tiles that the mask visits before its own. Items are taken in
// ascending order of kv too, so that a block waits only for items that were taken before its own: some block can always
// go on, however few of them run. (The scheme of FlashAttention-3's deterministic mode, with turns read off the runs of
// the mask.)
#pragma once

#include "runtime/kernels/backward_kv_pipeline.cuh"

namespace cpflex::kernels {

/// dQ by rows in shared memory: 64 columns in chunks of 8, permuted so that neither rows nor columns of accumulators
/// meet in one bank.
constexpr int kRowColumns = 64, kRowChunk = 8;
/// Where chunk `chunk` of row `row` lies.
constexpr __host__ __device__ int rowChunk(int row, int chunk) { return chunk ^ ((row ^ row >> 1) & 3); }

/// Named barrier of the consumers, behind which each has one of its own; 0 is __syncthreads.
constexpr int kConsumersBarrier = 1;

/// Writes 8 sums, scaled and converted, as columns `column`.. of row `row` of a slice of dQ; outside of it nothing.
template <class Config>
__device__ __forceinline__ void writeQueryGradients(const BackwardArguments &arguments, void *slice, int row,
                                                    int column, float4 low, float4 high) {
  using Element = typename Config::Element;
  if (row >= arguments.qLen || column >= Config::kHeadDim)
    return;
  float scale = arguments.scale;
  long long offset = row * arguments.dQ.strideS + column;
  if constexpr (Config::kOutputIsF32) {
    float4 *out = reinterpret_cast<float4 *>(static_cast<float *>(slice) + offset);
    out[0] = make_float4(low.x * scale, low.y * scale, low.z * scale, low.w * scale);
    out[1] = make_float4(high.x * scale, high.y * scale, high.z * scale, high.w * scale);
  } else {
    *reinterpret_cast<uint4 *>(static_cast<unsigned short *>(slice) + offset) =
        make_uint4(Element::pack(low.x * scale, low.y * scale), Element::pack(low.z * scale, low.w * scale),
                   Element::pack(high.x * scale, high.y * scale), Element::pack(high.z * scale, high.w * scale));
  }
}

/// Zeros for query tiles that no kv tile adds to; a warp of each block looks at its share of them, a tile per lane.
template <class Config> __device__ __forceinline__ void clearQueryGradients(const BackwardArguments &arguments) {
  const MaskArgument &mask = arguments.querySums.mask;
  int numTiles = ceilDivide(arguments.qLen, Config::kTileQ);
  int numItems = arguments.batch * arguments.qHeads * numTiles;
  if (!mask.runs && arguments.kvLen > 0)
    return;
  int lane = threadIdx.x % kWarpSize;
  for (int first = blockIdx.x * kWarpSize; first < numItems; first += gridDim.x * kWarpSize) {
    bool isEmpty = first + lane < numItems;
    if (isEmpty && mask.runs) {
      Range runs = runsOfQueryTile(mask, (first + lane) / numTiles, (first + lane) % numTiles);
      isEmpty = runs.begin == runs.end;
    }
    for (uint32 empty = __ballot_sync(0xffffffffu, isEmpty); empty != 0u; empty &= empty - 1u) {
      int item = first + __ffs(empty) - 1, pair = item / numTiles, tile = item % numTiles;
      void *slice = outputSlice<Config::kOutputIsF32>(arguments.dQ, pair / arguments.qHeads, pair % arguments.qHeads);
      float4 zeros = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      for (int row = tile * Config::kTileQ; row < (tile + 1) * Config::kTileQ; ++row)
        writeQueryGradients<Config>(arguments, slice, row, kRowChunk * lane, zeros, zeros);
    }
  }
}

/// One of the warps that add dQ up: of every kSumSlots-th tile adds the part of dQ when its turn has come. Of a last
/// part it says when the sums of the others are there; the consumers add theirs to them and write dQ.
template <class Config>
__device__ __forceinline__ void sumQueryGradients(const BackwardKVShared<Config> &shared,
                                                  const BackwardArguments &arguments, int slot) {
  using Shared = BackwardKVShared<Config>;
  auto &rest = *shared.rest;
  bool isElected = isElectedLane();
  RingPosition<Shared::kSumSlots> ring;
  RingPosition<Shared::kPlans> planRing;
  int numTiles = ceilDivide(arguments.qLen, Config::kTileQ);
  const QuerySumsArgument &querySums = arguments.querySums;
  while (true) {
    rest.planFull[planRing.slot].wait(planRing.parity);
    const TilePlan &plan = rest.plan[planRing.slot];
    int count = plan.count;
    if (count == 0)
      return;
    for (int i = 0; i < count; ++i, ring.advance()) {
      if (ring.slot != slot || !isElected)
        continue;
      int turn = plan.turns[i];
      bool isLastPart = plan.tiles[i].isLastPart;
      int tile = (plan.item.b * arguments.qHeads + plan.heads[i]) * numTiles + plan.tiles[i].tile;
      int *done = querySums.turns + tile;
      float *sums = querySums.sums + tile * sumsPerTile(Config::kTileQ, Config::kHeadDim);
      if (turn > 0)
        while (loadRelaxed(done) != turn) {
        }
      if (isLastPart) {
        rest.othersSums[slot] = turn > 0 ? sums : nullptr;
        fenceAcquireRelease(); // what was seen of `done` comes before the sums are read
        rest.sumsFull[slot].arrive();
        rest.dQFull[slot].wait(ring.parity);
        rest.dQEmpty[slot].arrive();
      } else {
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
    }
    __syncwarp();
    rest.planEmpty[planRing.slot].arriveAsWarp();
    planRing.advance();
  }
}

/// A consumer's part of dQ as the sums hold it: registers 4 i .. 4 i + 3 of all threads, then the next four.
template <int N> __device__ __forceinline__ float4 *ownSums(float *tile, int consumer, int thread) {
  return reinterpret_cast<float4 *>(tile) + consumer * (N / 4 * kWarpgroupSize) + thread;
}
template <int N>
__device__ __forceinline__ void stageQueryGradients(const float (&dQ)[N], float *tile, int consumer, int thread) {
  float4 *own = ownSums<N>(tile, consumer, thread);
#pragma unroll
  for (int i = 0; i < N / 4; ++i)
    own[i * kWarpgroupSize] = make_float4(dQ[4 * i], dQ[4 * i + 1], dQ[4 * i + 2], dQ[4 * i + 3]);
}
template <int N> __device__ __forceinline__ void addSums(float (&dQ)[N], float *tile, int consumer, int thread) {
  const float4 *own = ownSums<N>(tile, consumer, thread);
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    float4 sums = __ldcg(own + i * kWarpgroupSize); // not through L1: other blocks wrote them meanwhile
    dQ[4 * i] += sums.x;
    dQ[4 * i + 1] += sums.y;
    dQ[4 * i + 2] += sums.z;
    dQ[4 * i + 3] += sums.w;
  }
}

/// Lays a transposed part of dQ out by rows: register i holds row (of 64 columns of dQ) 16 warp + 8 registerRow(i) +
/// quad of query 8 (i / 4) + 2 laneInQuad + i % 2.
template <int N>
__device__ __forceinline__ void stageRows(const float (&dQ)[N], float *tile, int firstQuery, int thread) {
  int warp = thread / kWarpSize, quad = thread % kWarpSize / 4, laneInQuad = thread % 4;
  float *own = tile + (firstQuery + 2 * laneInQuad) * kRowColumns + quad;
  int even = rowChunk(2 * laneInQuad, 2 * warp) * kRowChunk, odd = even ^ kRowChunk;
  static_assert(rowChunk(1, 0) == 1 && rowChunk(3, 0) == (rowChunk(2, 0) ^ 1));
#pragma unroll
  for (int i = 0; i < N; ++i)
    own[(i / 4 * 8 + i % 2) * kRowColumns + ((i % 2 ^ registerRow(i)) ? odd : even)] = dQ[i];
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
  int thread = threadIdx.x % kWarpgroupSize, lane = threadIdx.x % kWarpSize;
  int firstRow = consumer * kConsumerRows + thread / kWarpSize * 16;
  int rowInTile = firstRow + lane / 4;
  int ownColumn = 2 * (threadIdx.x % 4);
  ScoreScale<Program> scale(arguments.scale, kHasSoftmax);
  constexpr int kConsumerBytes = kConsumerRows * 128;
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
  uint32 kvParity = 0, sumsParity = 0;      // the latter a bit per slot
  WorkQueue queue;
  float dK[Shared::kColumns / 2], dV[Shared::kVColumns / 2];
  float factors[kTileQ / 2], gradients[kTileQ / 2];
  uint32 weights[kTileQ / 4], operands[kTileQ / 4];

  // 4. dS^T of 16 queries into the slot. It is free: the other consumer has met the barrier of the last step, so its
  //    product of the step before has been waited for.
  auto storeGradients = [&](int step, uint32 a0, uint32 a1, uint32 a2, uint32 a3) {
    storeMatrices(shared.dS(exchange.slot) + 16 * step / Shared::kDSColumns * (kTileKV * 128) +
                      swizzledOffset<kTileKV>(firstRow + lane % 16, 16 * step % Shared::kDSColumns + lane / 16 * 8),
                  a0, a1, a2, a3);
  };
  auto meetConsumers = [&] {
    fenceSharedForAsync();
    barrierSync<Shared::kConsumers * kWarpgroupSize>(kConsumersBarrier);
  };
  // 5. dQ = dS K, or dQ^T = K^T dS^T
  auto issueQueryProduct = [&](float (&dQ)[Shared::kDQColumns / 2]) {
    uint32 dS = dSDescriptor + exchange.slot * descriptorStep(Shared::kDSBytes);
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
  };
  // 7. dQ goes out.
  auto sendQueryGradients = [&](float (&dQ)[Shared::kDQColumns / 2], const TileMessage &message, int b, int h) {
    float *sums = reinterpret_cast<float *>(shared.dQ(exchange.slot));
    rest.dQEmpty[exchange.slot].wait(exchange.parity ^ 1);
    if (message.isLastPart) {
      rest.sumsFull[exchange.slot].wait(sumsParity >> exchange.slot & 1);
      sumsParity ^= 1 << exchange.slot;
      if (float *others = rest.othersSums[exchange.slot])
        addSums(dQ, others, consumer, thread);
      void *slice = outputSlice<Config::kOutputIsF32>(arguments.dQ, b, h);
      int firstQuery = message.tile * kTileQ;
      if constexpr (Shared::kTransposesDQ) {
        stageRows(dQ, sums, consumer * Shared::kDQColumns, thread);
        barrierSync<kWarpgroupSize>(kConsumersBarrier + 1 + consumer);
        constexpr int kChunksPerRow = kRowColumns / kRowChunk;
        int chunk = thread % kChunksPerRow;
#pragma unroll
        for (int i = 0; i < Shared::kDQColumns; i += kWarpgroupSize / kChunksPerRow) {
          int row = consumer * Shared::kDQColumns + i + thread / kChunksPerRow;
          const float4 *words =
              reinterpret_cast<const float4 *>(sums + row * kRowColumns + rowChunk(row, chunk) * kRowChunk);
          writeQueryGradients<Config>(arguments, slice, firstQuery + row, chunk * kRowChunk, words[0], words[1]);
        }
      } else {
        const float kScale[2] = {arguments.scale, arguments.scale};
        writeColumns<Element, Config::kOutputIsF32, Shared::kDQColumns>(
            dQ, kScale, slice, arguments.dQ.strideS, firstQuery + thread / kWarpSize * 16 + lane / 4, arguments.qLen,
            consumer * Shared::kDQColumns, Config::kHeadDim);
      }
    } else {
      stageQueryGradients(dQ, sums, consumer, thread);
    }
    fenceSharedForAsync();
    __syncwarp();
    rest.dQFull[exchange.slot].arriveAsWarp();
  };

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
      hasTile = !message.isLast;
      StoredWords stored =
          StoredWords::load(arguments.mask, message.words, consumer * kWarpgroupSize + threadIdx.x % kWarpgroupSize,
                            Shared::kConsumers * kWarpgroupSize);
      uint32 q = qDescriptor + slot * descriptorStep(Shared::kQBytes);
      uint32 dO = dODescriptor + slot * descriptorStep(Shared::kDOBytes);
      pinRegisters(factors);
      productFence();
      issueTileProduct<TileProduct, Config::kHeadDim, Shared::kKVPanelBytes, Shared::kQPanelBytes>(factors, kDescriptor,
                                                                                                   q);
      if constexpr (kOverlapsSteps) {
        productWait<1>(); // product 6 of the last step
        pinRegisters(dK);
        if (previousSlot >= 0)
          rest.qEmpty[previousSlot].arriveAsWarp();
      }
      rest.dOFull[slot].wait(ring.parity);
      pinRegisters(gradients);
      productFence();
      issueTileProduct<TileProduct, Config::kVHeadDim, Shared::kKVPanelBytes, Shared::kQPanelBytes>(gradients,
                                                                                                    vDescriptor, dO);

      // 2. P and the gradient factors; the mask is decided while the products run.
      Columns columns(arguments.qPositions, message.tile, arguments.qLen);
      uint32 keep[2];
      bool isMasked = tileKeepWords<Program, TileAxes::RowsAreKV, kTileQ>(keep, message.isPartial(consumer), captures,
                                                                          b, h, rows, firstRow, columns, stored);
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
      issueSumProduct<VProduct>(dV, weights, dO);
      productWait<1>();
      pinRegisters(gradients);

      // 4. dS^T
#pragma unroll
      for (int i = 0; i < kTileQ / 2; ++i)
        gradients[i] = factors[i] * (kHasSoftmax ? gradients[i] - delta[registerColumn(i)] : gradients[i]);
      packOperand<Element>(operands, gradients);
#pragma unroll
      for (int step = 0; step < kTileQ / 16; ++step)
        storeGradients(step, operands[4 * step], operands[4 * step + 1], operands[4 * step + 2],
                       operands[4 * step + 3]);
      meetConsumers();

      // 5. dQ
      float dQ[Shared::kDQColumns / 2];
      pinRegisters(dK);
      issueQueryProduct(dQ);

      // 6. dK += dS^T Q
      issueSumProduct<KProduct>(dK, operands, q);
      productWait<1>(); // products 3 and 5
      pinRegisters(dV);
      pinRegisters(dQ);
      rest.dOEmpty[slot].arriveAsWarp();
      if (!hasTile)
        rest.kvEmpty.arriveAsWarp(); // the next item's keys may come while this one ends

      sendQueryGradients(dQ, message, work.b, h - arguments.headOffset);
      if constexpr (!kOverlapsSteps) {
        productWait<0>();
        pinRegisters(dK);
        rest.qEmpty[slot].arriveAsWarp();
      }
      previousSlot = slot;
      exchange.advance();
      ring.advance();
    }
    productWait<0>();
    pinRegisters(dK);
    if constexpr (kOverlapsSteps)
      if (previousSlot >= 0)
        rest.qEmpty[previousSlot].arriveAsWarp();

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
    if (int warp = threadIdx.x / kWarpSize; warp == 0) {
      produceBackwardKV<Config>(shared, arguments, maps);
    } else if (warp == 1) {
      planBackwardKV<Config, Program>(shared, arguments);
      clearQueryGradients<Config>(arguments);
    } else {
      constexpr int kFirstSumWarp = 2;
      static_assert(kFirstSumWarp + Shared::kSumSlots == kWarpgroupSize / kWarpSize);
      sumQueryGradients<Config>(shared, arguments, warp - kFirstSumWarp);
    }
  } else {
    takeRegisters<kConsumerRegisters>();
    consumeBackwardFused<Config, Program>(shared, arguments, captures, __shfl_sync(0xffffffffu, warpgroup, 0) - 1);
  }
}

} // namespace cpflex::kernels
