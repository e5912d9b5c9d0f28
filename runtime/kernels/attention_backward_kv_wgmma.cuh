// dK and dV on Hopper: a producer copies tiles of Q and dO, two consumer warpgroups of 64 keys each compute transposed
// tiles. A block owns one tile of keys and loops over the query heads that read them and over the query tiles of the
// transposed mask, in order: no atomics, the same bits in every run. Heads wider than 128 are cut in parts of 128
// columns; each part is a work item of its own and recomputes the scores.
//
// One step of a consumer, products in flight in brackets:
//   1. [S^T = K Q^T] [dP^T = V dO^T]   2. P and the gradient factors from S^T   3. [dV += P^T dO]
//   4. dS^T from dP^T                  5. [dK += dS^T Q], which runs on into the next step's 1
//      where registers suffice
#pragma once

#include "runtime/kernels/backward.cuh"
#include "runtime/kernels/hopper.cuh"
#include "runtime/kernels/pipeline.cuh"

namespace cpflex::kernels {

template <class Config> struct BackwardKVWgmmaShared {
  static constexpr int kMaxPartColumns = 128;
  static constexpr int kColumns = roundUp(Config::kHeadDim, 16), kVColumns = roundUp(Config::kVHeadDim, 16);
  static constexpr int kParts = columnParts(Config::kHeadDim, Config::kVHeadDim);
  static constexpr int kPartColumns = kColumns < kMaxPartColumns ? kColumns : kMaxPartColumns;
  static constexpr int kVPartColumns = kVColumns < kMaxPartColumns ? kVColumns : kMaxPartColumns;
  static constexpr int kRowBytes = Config::kHasSoftmax ? Config::kTileQ * (int)sizeof(float) : 0;
  static constexpr int kPartPanels = kMaxPartColumns / 64;
  static constexpr int kPanels = ceilDivide(Config::kHeadDim, 64), kVPanels = ceilDivide(Config::kVHeadDim, 64);
  static constexpr int kRowsPerConsumer = 64;
  static constexpr int kConsumers = Config::kTileKV / kRowsPerConsumer;
  static constexpr int kKVPanelBytes = Config::kTileKV * 128, kQPanelBytes = Config::kTileQ * 128;
  static constexpr int kKBytes = kPanels * kKVPanelBytes, kVBytes = kVPanels * kKVPanelBytes;
  static constexpr int kQBytes = kPanels * kQPanelBytes, kDOBytes = kVPanels * kQPanelBytes;
  // Products of a last part that is narrower than its accumulator read beyond the panels of Q and dO: those come first.
  static constexpr int kTileBytes = kKBytes + kVBytes + Config::kStages * (kQBytes + kDOBytes);

  struct Rest {
    float lseLog2[Config::kStages][Config::kTileQ];
    float delta[Config::kStages][Config::kTileQ];
    SharedBarrier kvFull, kvEmpty;
    SharedBarrier qFull[Config::kStages], qEmpty[Config::kStages];
    SharedBarrier dOFull[Config::kStages], dOEmpty[Config::kStages];
    TileMessage message[Config::kStages];
    int head[Config::kStages]; ///< query head of the tile
    WorkQueue::Shared work;
  };
  static_assert(Config::kTileKV % kRowsPerConsumer == 0 && Config::kTileQ % 16 == 0 && Config::kTileQ <= kRowPadding);
  static_assert(Config::kThreads == (kConsumers + 1) * kWarpgroupSize);
  static_assert(kTileBytes + (int)sizeof(Rest) + kSharedAlignment <= Config::kSharedBytes, "the table of tiles is out of date");

  unsigned char *tiles;
  Rest *rest;

  __device__ __forceinline__ BackwardKVWgmmaShared() {
    tiles = alignedSharedMemory();
    rest = reinterpret_cast<Rest *>(tiles + kTileBytes);
  }
  __device__ __forceinline__ unsigned char *q(int stage) const { return tiles + stage * kQBytes; }
  __device__ __forceinline__ unsigned char *dO(int stage) const { return tiles + Config::kStages * kQBytes + stage * kDOBytes; }
  __device__ __forceinline__ unsigned char *k() const { return tiles + Config::kStages * (kQBytes + kDOBytes); }
  __device__ __forceinline__ unsigned char *v() const { return k() + kKBytes; }
};

/// The producer: one thread takes work and issues every copy.
template <class Config, class Program>
__device__ __forceinline__ void produceBackwardKV(const BackwardKVWgmmaShared<Config> &shared, const BackwardArguments &arguments,
                                                  const BackwardTensorMaps &maps) {
  using Shared = BackwardKVWgmmaShared<Config>;
  auto &rest = *shared.rest;
  RingPosition<Config::kStages> ring;
  uint32 kvParity = 0;
  int numItems = numWorkItems(arguments.work, arguments.batch * arguments.kvHeads * Shared::kParts);
  int numTiles = ceilDivide(arguments.qLen, Config::kTileQ), headsPerKV = arguments.qHeads / arguments.kvHeads;
  WorkQueue queue;
  while (true) {
    int item = atomicAdd(arguments.work.counter, 1);
    if (item >= numItems)
      return queue.publish(rest.work, WorkQueue::kEnd);
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.kvHeads * Shared::kParts);
    int kvHead = work.h / Shared::kParts;
    int head = kvHead * headsPerKV, endHead = head + headsPerKV;
    TileWalk walk(arguments.mask, work.row, work.b * arguments.qHeads + head, numTiles, Program::kHasMask);
    // Steps to the next tile of this head or of a later one.
    auto next = [&] {
      while (!walk.next()) {
        if (++head == endHead)
          return false;
        walk = TileWalk(arguments.mask, work.row, work.b * arguments.qHeads + head, numTiles, Program::kHasMask);
      }
      return true;
    };
    bool hasTile = next();
    queue.publish(rest.work, item * 2 + hasTile);
    if (hasTile) {
      rest.kvEmpty.wait(kvParity ^ 1);
      kvParity ^= 1;
      rest.kvFull.arriveExpecting(Shared::kKBytes + Shared::kVBytes);
      copyPanels<Shared::kPanels, Shared::kKVPanelBytes>(maps.k, rest.kvFull, shared.k(), work.row * Config::kTileKV, kvHead, work.b, CacheHint::EvictFirst);
      copyPanels<Shared::kVPanels, Shared::kKVPanelBytes>(maps.v, rest.kvFull, shared.v(), work.row * Config::kTileKV, kvHead, work.b, CacheHint::EvictFirst);
    }
    while (hasTile) {
      int tile = walk.tile, row = tile * Config::kTileQ, tileHead = head;
      bool isPartial = walk.isPartial;
      hasTile = next();
      SharedBarrier &qFull = rest.qFull[ring.slot], &dOFull = rest.dOFull[ring.slot];
      rest.qEmpty[ring.slot].wait(ring.parity ^ 1);
      rest.message[ring.slot] = TileMessage::of(tile, isPartial, !hasTile);
      rest.head[ring.slot] = tileHead;
      qFull.arriveExpecting(Shared::kQBytes + Shared::kRowBytes);
      copyPanels<Shared::kPanels, Shared::kQPanelBytes>(maps.q, qFull, shared.q(ring.slot), row, tileHead, work.b, CacheHint::EvictLast);
      if (Config::kHasSoftmax)
        copyBytes(rest.lseLog2[ring.slot], arguments.lseLog2.data + work.b * arguments.lseLog2.strideB + tileHead * arguments.lseLog2.strideH + row, Shared::kRowBytes, qFull);
      rest.dOEmpty[ring.slot].wait(ring.parity ^ 1);
      dOFull.arriveExpecting(Shared::kDOBytes + Shared::kRowBytes);
      copyPanels<Shared::kVPanels, Shared::kQPanelBytes>(maps.dO, dOFull, shared.dO(ring.slot), row, tileHead, work.b, CacheHint::EvictLast);
      if (Config::kHasSoftmax)
        copyBytes(rest.delta[ring.slot], arguments.delta.data + work.b * arguments.delta.strideB + tileHead * arguments.delta.strideH + row, Shared::kRowBytes, dOFull);
      ring.advance();
    }
  }
}

/// One consumer warpgroup.
template <class Config, class Program>
__device__ __forceinline__ void consumeBackwardKV(const BackwardKVWgmmaShared<Config> &shared, const BackwardArguments &arguments,
                                                  const typename Program::Captures &captures, int consumer) {
  using Shared = BackwardKVWgmmaShared<Config>;
  using Element = typename Config::Element;
  constexpr int kTileQ = Config::kTileQ;
  constexpr bool kHasSoftmax = Config::kHasSoftmax;
  using Columns = TilePositions<Config::kPositions, kTileQ>;
  using TileProduct = WarpgroupProduct<Element, kTileQ>;
  using KProduct = WarpgroupProduct<Element, Shared::kPartColumns>;
  using VProduct = WarpgroupProduct<Element, Shared::kVPartColumns>;

  auto &rest = *shared.rest;
  bool isElected = isElectedLane();
  int firstRow = consumer * Shared::kRowsPerConsumer + threadIdx.x % kWarpgroupSize / kWarpSize * 16;
  int rowInTile = firstRow + threadIdx.x % kWarpSize / 4;
  int ownColumn = 2 * (threadIdx.x % 4);
  ScoreScale<Program> scale(arguments.scale, kHasSoftmax);
  constexpr int kConsumerBytes = Shared::kRowsPerConsumer * 128;
  uint32 kDescriptor = operandDescriptor(shared.k() + consumer * kConsumerBytes, Shared::kKVPanelBytes);
  uint32 vDescriptor = operandDescriptor(shared.v() + consumer * kConsumerBytes, Shared::kKVPanelBytes);
  uint32 qDescriptor = operandDescriptor(shared.q(0), Shared::kQPanelBytes);
  uint32 dODescriptor = operandDescriptor(shared.dO(0), Shared::kQPanelBytes);

  RingPosition<Config::kStages> ring;
  uint32 kvParity = 0;
  WorkQueue queue;
  float dK[Shared::kPartColumns / 2], dV[Shared::kVPartColumns / 2];
  float factors[kTileQ / 2], gradients[kTileQ / 2];
  uint32 weights[kTileQ / 4], operands[kTileQ / 4];

  // Accumulators, operands in flight and what a step computes must fit the registers for product 5 to run on.
  constexpr bool kOverlapsSteps = Shared::kPartColumns / 2 + Shared::kVPartColumns / 2 + kTileQ + kTileQ / 4 <= 192;
  auto releaseTiles = [&](int slot) {
    if (isElected) {
      rest.qEmpty[slot].arrive();
      rest.dOEmpty[slot].arrive();
    }
  };

  while (true) {
    int item = queue.take(rest.work);
    if (item < 0)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.kvHeads * Shared::kParts);
    int part = work.h % Shared::kParts, kvHead = work.h / Shared::kParts, b = work.b + arguments.batchOffset;
    TilePositions<Config::kPositions, Config::kTileKV> rows(arguments.kvPositions, work.row, arguments.kvLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};
    uint32 qPart = qDescriptor + part * descriptorStep(Shared::kPartPanels * Shared::kQPanelBytes);
    uint32 dOPart = dODescriptor + part * descriptorStep(Shared::kPartPanels * Shared::kQPanelBytes);
    // Known while compiling unless one tensor is narrower than the other's last part.
    constexpr int kLastPart = (Shared::kParts - 1) * Shared::kMaxPartColumns;
    bool hasKPart = kLastPart < Config::kHeadDim || part * Shared::kMaxPartColumns < Config::kHeadDim;
    bool hasVPart = kLastPart < Config::kVHeadDim || part * Shared::kMaxPartColumns < Config::kVHeadDim;
#pragma unroll
    for (int i = 0; i < Shared::kPartColumns / 2; ++i)
      dK[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < Shared::kVPartColumns / 2; ++i)
      dV[i] = 0.0f;
    bool hasTile = queue.hasTile;
    int previousSlot = -1; // of the last step
    if (hasTile) {
      rest.kvFull.wait(kvParity);
      kvParity ^= 1;
    }
    while (hasTile) {
      // 1. S^T = K Q^T and dP^T = V dO^T
      rest.qFull[ring.slot].wait(ring.parity);
      TileMessage message = rest.message[ring.slot];
      int h = rest.head[ring.slot] + arguments.headOffset;
      hasTile = !message.isLast();
      uint32 q = qDescriptor + ring.slot * descriptorStep(Shared::kQBytes);
      uint32 dO = dODescriptor + ring.slot * descriptorStep(Shared::kDOBytes);
      pinRegisters(factors);
      productFence();
#pragma unroll
      for (int step = 0; step < ceilDivide(Config::kHeadDim, 16); ++step)
        TileProduct::template fromShared<Major::K, Major::K>(
            factors, kDescriptor + panelStep<Shared::kKVPanelBytes>(step), q + panelStep<Shared::kQPanelBytes>(step), step != 0);
      productCommit();
      rest.dOFull[ring.slot].wait(ring.parity);
      pinRegisters(gradients);
#pragma unroll
      for (int step = 0; step < ceilDivide(Config::kVHeadDim, 16); ++step)
        TileProduct::template fromShared<Major::K, Major::K>(
            gradients, vDescriptor + panelStep<Shared::kKVPanelBytes>(step), dO + panelStep<Shared::kQPanelBytes>(step), step != 0);
      productCommit();

      if constexpr (kOverlapsSteps) {
        productWait<2>(); // product 5 of the last step
        pinRegisters(dK);
        if (previousSlot >= 0)
          releaseTiles(previousSlot);
      }

      // 2. P and the gradient factors; the mask is decided while the products run.
      Columns columns(arguments.qPositions, message.tile(), arguments.qLen);
      uint32 keep[2];
      bool isMasked = tileKeepWords<Program, TileAxes::RowsAreKV, kTileQ>(keep, message.isPartial(), captures, b, h, rows, firstRow, columns);
      productWait<1>();
      pinRegisters(factors);
      const float *lseLog2 = rest.lseLog2[ring.slot] + ownColumn, *delta = rest.delta[ring.slot] + ownColumn;
      weighTile<Element, Program, TileAxes::RowsAreKV, kHasSoftmax, true>(
          factors, weights, keep, isMasked, scale, captures, b, h, rowPosition, columns,
          [&](int i) { return lseLog2[registerColumn(i)]; });

      // 3. dV += P^T dO
      pinRegisters(dV);
      productFence();
      if (hasVPart)
#pragma unroll
        for (int step = 0; step < kTileQ / 16; ++step)
          VProduct::template fromRegisters<Major::MN>(dV, weights[4 * step], weights[4 * step + 1], weights[4 * step + 2], weights[4 * step + 3],
                                                      dOPart + ring.slot * descriptorStep(Shared::kDOBytes) + step * descriptorStep(16 * 128), 1);
      productCommit();
      productWait<1>();
      pinRegisters(gradients);

      // 4. dS^T
#pragma unroll
      for (int i = 0; i < kTileQ / 2; ++i)
        gradients[i] = factors[i] * (kHasSoftmax ? gradients[i] - delta[registerColumn(i)] : gradients[i]);
      packOperand<Element>(operands, gradients);

      // 5. dK += dS^T Q
      pinRegisters(dK);
      productFence();
      if (hasKPart)
#pragma unroll
        for (int step = 0; step < kTileQ / 16; ++step)
          KProduct::template fromRegisters<Major::MN>(dK, operands[4 * step], operands[4 * step + 1], operands[4 * step + 2], operands[4 * step + 3],
                                                      qPart + ring.slot * descriptorStep(Shared::kQBytes) + step * descriptorStep(16 * 128), 1);
      productCommit();
      if constexpr (kOverlapsSteps) {
        productWait<1>(); // product 3
      } else {
        productWait<0>();
        pinRegisters(dK);
        releaseTiles(ring.slot);
      }
      pinRegisters(dV);
      previousSlot = ring.slot;
      ring.advance();
    }
    productWait<0>();
    pinRegisters(dK);
    if (previousSlot >= 0) {
      if constexpr (kOverlapsSteps)
        releaseTiles(previousSlot);
      if (isElected)
        rest.kvEmpty.arrive();
    }

    const float kScale[2] = {arguments.scale, arguments.scale}, kOne[2] = {1.0f, 1.0f};
    int row = work.row * Config::kTileKV + rowInTile;
    writeColumns<Element, Config::kOutputIsF32, Shared::kPartColumns>(
        dK, kScale, outputSlice<Config::kOutputIsF32>(arguments.dK, work.b, kvHead), arguments.dK.strideS, row, arguments.kvLen,
        part * Shared::kMaxPartColumns, Config::kHeadDim);
    writeColumns<Element, Config::kOutputIsF32, Shared::kVPartColumns>(
        dV, kOne, outputSlice<Config::kOutputIsF32>(arguments.dV, work.b, kvHead), arguments.dV.strideS, row, arguments.kvLen,
        part * Shared::kMaxPartColumns, Config::kVHeadDim);
  }
}

template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardKVWgmma(const BackwardArguments &arguments,
                                                         const typename Program::Captures &captures,
                                                         const BackwardTensorMaps &maps) {
  using Shared = BackwardKVWgmmaShared<Config>;
  constexpr int kConsumerWarps = Shared::kConsumers * kWarpgroupSize / kWarpSize;
  Shared shared;
  if (threadIdx.x == 0) {
    auto &rest = *shared.rest;
    rest.kvFull.initialize(1);
    rest.kvEmpty.initialize(kConsumerWarps);
    for (int stage = 0; stage < Config::kStages; ++stage) {
      rest.qFull[stage].initialize(1);
      rest.qEmpty[stage].initialize(kConsumerWarps);
      rest.dOFull[stage].initialize(1);
      rest.dOEmpty[stage].initialize(kConsumerWarps);
    }
    WorkQueue::initialize(rest.work, kConsumerWarps);
    fenceBarrierInit();
  }
  __syncthreads();

  int warpgroup = threadIdx.x / kWarpgroupSize;
  if (warpgroup == 0) {
    giveRegisters<kProducerRegisters<Shared::kConsumers, /*kIsWide=*/true>>();
    if (threadIdx.x == 0)
      produceBackwardKV<Config, Program>(shared, arguments, maps);
  } else {
    takeRegisters<kConsumerRegisters<Shared::kConsumers, /*kIsWide=*/true>>();
    consumeBackwardKV<Config, Program>(shared, arguments, captures, __shfl_sync(0xffffffffu, warpgroup, 0) - 1);
  }
}

} // namespace cpflex::kernels
