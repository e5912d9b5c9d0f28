// dQ on Hopper: the forward's roles and loop over the tiles of a row, with the weights taken from LSE instead of a
// running maximum. Deterministic.
//
// One step of a consumer, products in flight in brackets:
//   1. [S = Q K^T] [dP = dO V^T]   2. gradient factors from S   3. dS from dP   4. [dQ += dS K]
#pragma once

#include "runtime/kernels/backward.cuh"
#include "runtime/kernels/hopper.cuh"
#include "runtime/kernels/pipeline.cuh"

namespace cpflex::kernels {

template <class Config> struct BackwardQWgmmaShared {
  static constexpr int kPanels = ceilDivide(Config::kHeadDim, 64), kVPanels = ceilDivide(Config::kVHeadDim, 64);
  static constexpr int kConsumers = Config::kTileQ / kConsumerRows;
  static constexpr int kKVPanelBytes = Config::kTileKV * 128, kQPanelBytes = Config::kTileQ * 128;
  static constexpr int kKBytes = kPanels * kKVPanelBytes, kVBytes = kVPanels * kKVPanelBytes;
  static constexpr int kQBytes = kPanels * kQPanelBytes, kDOBytes = kVPanels * kQPanelBytes;
  static constexpr int kTileBytes = kQBytes + kDOBytes + Config::kStages * (kKBytes + kVBytes);

  struct Rest {
    SharedBarrier qFull, qEmpty;
    SharedBarrier kFull[Config::kStages], kEmpty[Config::kStages];
    SharedBarrier vFull[Config::kStages], vEmpty[Config::kStages];
    TileMessage message[Config::kStages];
    WorkQueue::Shared work;
  };
  static_assert(Config::kTileQ % kConsumerRows == 0 && Config::kTileKV % 16 == 0);
  static_assert(Config::kThreads == (kConsumers + 1) * kWarpgroupSize);
  static_assert(kTileBytes + (int)sizeof(Rest) + kSharedAlignment <= Config::kSharedBytes,
                "the table of tiles is out of date");

  unsigned char *tiles;
  Rest *rest;

  __device__ __forceinline__ BackwardQWgmmaShared() {
    tiles = alignedSharedMemory();
    rest = reinterpret_cast<Rest *>(tiles + kTileBytes);
  }
  __device__ __forceinline__ unsigned char *q() const { return tiles; }
  __device__ __forceinline__ unsigned char *dO() const { return tiles + kQBytes; }
  __device__ __forceinline__ unsigned char *k(int stage) const { return tiles + kQBytes + kDOBytes + stage * kKBytes; }
  __device__ __forceinline__ unsigned char *v(int stage) const {
    return tiles + kQBytes + kDOBytes + Config::kStages * kKBytes + stage * kVBytes;
  }
};

/// The producer: one thread takes work and issues every copy.
template <class Config, class Program>
__device__ __forceinline__ void produceBackwardQ(const BackwardQWgmmaShared<Config> &shared,
                                                 const BackwardArguments &arguments, const BackwardTensorMaps &maps) {
  using Shared = BackwardQWgmmaShared<Config>;
  auto &rest = *shared.rest;
  RingPosition<Config::kStages> ring;
  uint32 qParity = 0;
  int numItems = numWorkItems(arguments.work, arguments.batch * arguments.qHeads);
  int numTiles = ceilDivide(arguments.kvLen, Config::kTileKV), headsPerKV = arguments.qHeads / arguments.kvHeads;
  WorkQueue queue;
  while (true) {
    int item = atomicAdd(arguments.work.counter, 1);
    if (item >= numItems)
      return queue.publish(rest.work, WorkQueue::kEnd);
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.qHeads);
    int kvHead = work.h / headsPerKV;
    TileWalk walk;
    walk.start(arguments.mask, work.row, arguments.work.numRows, work.b * arguments.qHeads + work.h, numTiles,
               Program::kHasMask);
    bool hasTile = walk.next(), isFirst = true;
    queue.publish(rest.work, item * 2 + hasTile);
    while (hasTile) {
      if (isFirst) {
        rest.qEmpty.wait(qParity ^ 1);
        qParity ^= 1;
        rest.qFull.arriveExpecting(Shared::kQBytes + Shared::kDOBytes);
        copyPanels<Shared::kPanels, Shared::kQPanelBytes>(maps.q, rest.qFull, shared.q(), work.row * Config::kTileQ,
                                                          work.h, work.b, CacheHint::EvictFirst);
        copyPanels<Shared::kVPanels, Shared::kQPanelBytes>(maps.dO, rest.qFull, shared.dO(), work.row * Config::kTileQ,
                                                           work.h, work.b, CacheHint::EvictFirst);
        isFirst = false;
      }
      int row = walk.tile * Config::kTileKV;
      TileMessage message = TileMessage::of(walk);
      hasTile = walk.next();
      message.isLast = !hasTile;
      SharedBarrier &kFull = rest.kFull[ring.slot], &vFull = rest.vFull[ring.slot];
      rest.kEmpty[ring.slot].wait(ring.parity ^ 1);
      rest.message[ring.slot] = message;
      kFull.arriveExpecting(Shared::kKBytes);
      copyPanels<Shared::kPanels, Shared::kKVPanelBytes>(maps.k, kFull, shared.k(ring.slot), row, kvHead, work.b,
                                                         CacheHint::EvictLast);
      rest.vEmpty[ring.slot].wait(ring.parity ^ 1);
      vFull.arriveExpecting(Shared::kVBytes);
      copyPanels<Shared::kVPanels, Shared::kKVPanelBytes>(maps.v, vFull, shared.v(ring.slot), row, kvHead, work.b,
                                                          CacheHint::EvictLast);
      ring.advance();
    }
  }
}

/// One consumer warpgroup.
template <class Config, class Program>
__device__ __forceinline__ void consumeBackwardQ(const BackwardQWgmmaShared<Config> &shared,
                                                 const BackwardArguments &arguments,
                                                 const typename Program::Captures &captures, int consumer) {
  using Shared = BackwardQWgmmaShared<Config>;
  using Element = typename Config::Element;
  constexpr int kTileKV = Config::kTileKV, kColumns = roundUp(Config::kHeadDim, 16);
  constexpr bool kHasSoftmax = Config::kHasSoftmax;
  using Columns = TilePositions<Config::kPositions, kTileKV>;
  using TileProduct = WarpgroupProduct<Element, kTileKV>;
  using QProduct = WarpgroupProduct<Element, kColumns>;

  auto &rest = *shared.rest;
  int firstRow = consumer * kConsumerRows + threadIdx.x % kWarpgroupSize / kWarpSize * 16;
  int rowInTile = firstRow + threadIdx.x % kWarpSize / 4;
  ScoreScale<Program> scale(arguments.scale, kHasSoftmax);
  constexpr int kConsumerBytes = kConsumerRows * 128;
  uint32 qDescriptor = operandDescriptor(shared.q() + consumer * kConsumerBytes, Shared::kQPanelBytes);
  uint32 dODescriptor = operandDescriptor(shared.dO() + consumer * kConsumerBytes, Shared::kQPanelBytes);
  uint32 kDescriptor = operandDescriptor(shared.k(0), Shared::kKVPanelBytes);
  uint32 vDescriptor = operandDescriptor(shared.v(0), Shared::kKVPanelBytes);

  RingPosition<Config::kStages> ring;
  uint32 qParity = 0;
  WorkQueue queue;
  float dQ[kColumns / 2];
  float factors[kTileKV / 2], gradients[kTileKV / 2];
  uint32 operands[kTileKV / 4];

  while (true) {
    int item = queue.take(rest.work);
    if (item < 0)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.qHeads);
    int b = work.b + arguments.batchOffset, h = work.h + arguments.headOffset;
    TilePositions<Config::kPositions, Config::kTileQ> rows(arguments.qPositions, work.row, arguments.qLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};
    int row = work.row * Config::kTileQ + rowInTile;
    float lseLog2[2], delta[2];
    loadRowPair(lseLog2, arguments.lseLog2, work, row, arguments.qLen, infinity(), kHasSoftmax);
    loadRowPair(delta, arguments.delta, work, row, arguments.qLen, 0.0f, kHasSoftmax);
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i)
      dQ[i] = 0.0f;
    bool hasTile = queue.hasTile;
    if (hasTile) {
      rest.qFull.wait(qParity);
      qParity ^= 1;
    }
    while (hasTile) {
      // 1. S = Q K^T and dP = dO V^T
      rest.kFull[ring.slot].wait(ring.parity);
      TileMessage message = rest.message[ring.slot];
      hasTile = !message.isLast;
      StoredWords stored =
          StoredWords::load(arguments.mask, message.words, consumer * kWarpgroupSize + threadIdx.x % kWarpgroupSize,
                            Shared::kConsumers * kWarpgroupSize);
      uint32 k = kDescriptor + ring.slot * descriptorStep(Shared::kKBytes);
      uint32 v = vDescriptor + ring.slot * descriptorStep(Shared::kVBytes);
      pinRegisters(factors);
      productFence();
      issueTileProduct<TileProduct, Config::kHeadDim, Shared::kQPanelBytes, Shared::kKVPanelBytes>(factors, qDescriptor,
                                                                                                   k);
      rest.vFull[ring.slot].wait(ring.parity);
      pinRegisters(gradients);
      issueTileProduct<TileProduct, Config::kVHeadDim, Shared::kQPanelBytes, Shared::kKVPanelBytes>(gradients,
                                                                                                    dODescriptor, v);

      // 2. Gradient factors; the mask is decided while the products run.
      Columns columns(arguments.kvPositions, message.tile, arguments.kvLen);
      uint32 keep[2];
      bool isMasked = tileKeepWords<Program, TileAxes::RowsAreQ, kTileKV>(keep, message.isPartial(consumer), captures,
                                                                          b, h, rows, firstRow, columns, stored);
      productWait<1>();
      pinRegisters(factors);
      weighTile<Element, Program, TileAxes::RowsAreQ, kHasSoftmax, false>(
          factors, operands, keep, isMasked, scale, captures, b, h, rowPosition, columns,
          [&](int i) { return lseLog2[registerRow(i)]; });
      pinRegisters(factors);
      productWait<0>();
      pinRegisters(gradients);
      rest.vEmpty[ring.slot].arriveAsWarp();
      if (!hasTile)
        rest.qEmpty.arriveAsWarp(); // the next item's rows may come while this one ends

      // 3. dS
#pragma unroll
      for (int i = 0; i < kTileKV / 2; ++i)
        gradients[i] = factors[i] * (gradients[i] - delta[registerRow(i)]);
      packOperand<Element>(operands, gradients);

      // 4. dQ += dS K
      pinRegisters(dQ);
      productFence();
      issueSumProduct<QProduct>(dQ, operands, k);
      productWait<0>();
      pinRegisters(dQ);
      rest.kEmpty[ring.slot].arriveAsWarp();
      ring.advance();
    }
    const float kScale[2] = {arguments.scale, arguments.scale};
    writeRows<Element, Config::kOutputIsF32, Config::kHeadDim>(
        dQ, kScale, outputSlice<Config::kOutputIsF32>(arguments.dQ, work.b, work.h), arguments.dQ.strideS, row,
        arguments.qLen);
  }
}

template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardQWgmma(const BackwardArguments &arguments,
                                                        const typename Program::Captures &captures,
                                                        const BackwardTensorMaps &maps) {
  using Shared = BackwardQWgmmaShared<Config>;
  constexpr int kConsumerWarps = Shared::kConsumers * kWarpgroupSize / kWarpSize;
  Shared shared;
  if (threadIdx.x == 0) {
    auto &rest = *shared.rest;
    rest.qFull.initialize(1);
    rest.qEmpty.initializeForWarps(kConsumerWarps);
    for (int stage = 0; stage < Config::kStages; ++stage) {
      rest.kFull[stage].initialize(1);
      rest.kEmpty[stage].initializeForWarps(kConsumerWarps);
      rest.vFull[stage].initialize(1);
      rest.vEmpty[stage].initializeForWarps(kConsumerWarps);
    }
    WorkQueue::initialize(rest.work, kConsumerWarps);
    fenceBarrierInit();
  }
  __syncthreads();

  int warpgroup = threadIdx.x / kWarpgroupSize;
  if (warpgroup == 0) {
    giveRegisters<kProducerRegisters<Shared::kConsumers, /*holdsTwo=*/false>>();
    if (threadIdx.x == 0)
      produceBackwardQ<Config, Program>(shared, arguments, maps);
  } else {
    takeRegisters<kConsumerRegisters<Shared::kConsumers, /*holdsTwo=*/false>>();
    consumeBackwardQ<Config, Program>(shared, arguments, captures, __shfl_sync(0xffffffffu, warpgroup, 0) - 1);
  }
}

} // namespace cpflex::kernels
