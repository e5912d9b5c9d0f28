// Forward attention on Hopper: one producer warpgroup copies tiles of Q, K and V into shared memory, two consumer
// warpgroups of 64 query rows each multiply and normalise. Blocks stay resident and take rows of tiles until none is
// left, so that the copies of the next row run under the end of the last.
//
// A consumer overlaps the softmax of one tile with the product of the previous tile's weights and V, and the two
// consumers take turns at the tensor cores (the schedule of FlashAttention-3, Shah et al. 2024):
//   1. S = Q K[j]^T is issued; 2. O += P V[j-1] is issued behind it; 3. when S is there, the softmax of tile j runs
//   while 2 is still computing; 4. O is rescaled when 2 is done.
#pragma once

#include "runtime/kernels/hopper.cuh"
#include "runtime/kernels/softmax.cuh"

namespace cpflex::kernels {

template <class Config> struct ForwardWgmmaShared {
  static constexpr int kPanels = ceilDivide(Config::kHeadDim, 64);
  static constexpr int kVPanels = ceilDivide(Config::kVHeadDim, 64);
  static constexpr int kRowsPerConsumer = 64;
  static constexpr int kConsumers = Config::kTileQ / kRowsPerConsumer;
  static constexpr int kQPanelBytes = kRowsPerConsumer * 128;
  static constexpr int kQBytes = kConsumers * kPanels * kQPanelBytes;
  static constexpr int kTilePanelBytes = Config::kTileKV * 128;
  static constexpr int kKBytes = kPanels * kTilePanelBytes;
  static constexpr int kVBytes = kVPanels * kTilePanelBytes;
  static constexpr int kTileBytes = kQBytes + Config::kStages * (kKBytes + kVBytes);
  static constexpr int kWorkSlots = 2;

  struct Barriers {
    SharedBarrier qFull, qEmpty;
    SharedBarrier kFull[Config::kStages], kEmpty[Config::kStages];
    SharedBarrier vFull[Config::kStages], vEmpty[Config::kStages];
    SharedBarrier workFull[kWorkSlots], workEmpty[kWorkSlots];
    int work[kWorkSlots];
  };
  static_assert(Config::kTileQ % kRowsPerConsumer == 0);
  static_assert(Config::kThreads == (kConsumers + 1) * kWarpgroupSize);
  static_assert(kTileBytes + (int)sizeof(Barriers) + 1024 <= Config::kSharedBytes, "the table of tiles is out of date");

  unsigned char *tiles;
  Barriers *barriers;

  __device__ __forceinline__ ForwardWgmmaShared() {
    extern __shared__ unsigned char dynamicShared[];
    uint32 misalignment = sharedAddress(dynamicShared) % 1024;
    tiles = dynamicShared + (1024 - misalignment) % 1024;
    barriers = reinterpret_cast<Barriers *>(tiles + kTileBytes);
  }
  __device__ __forceinline__ unsigned char *q(int consumer) const { return tiles + consumer * kPanels * kQPanelBytes; }
  __device__ __forceinline__ unsigned char *k(int stage) const { return tiles + kQBytes + stage * kKBytes; }
  __device__ __forceinline__ unsigned char *v(int stage) const {
    return tiles + kQBytes + Config::kStages * kKBytes + stage * kVBytes;
  }
};

/// A position in a ring of kSlots buffers and the parity of its current round.
template <int kSlots> struct RingPosition {
  int slot = 0;
  uint32 parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/// The producer: one thread takes work and issues every copy.
template <class Config, class Program>
__device__ __forceinline__ void produceForward(const ForwardWgmmaShared<Config> &shared, const ForwardArguments &arguments,
                                               const ForwardTensorMaps &maps) {
  using Shared = ForwardWgmmaShared<Config>;
  auto &barriers = *shared.barriers;
  prefetchTensorMap(maps.q);
  prefetchTensorMap(maps.k);
  prefetchTensorMap(maps.v);
  RingPosition<Config::kStages> kRing, vRing;
  RingPosition<Shared::kWorkSlots> workRing;
  uint32 qParity = 0;
  int numItems = numWorkItems(arguments.work, arguments.batch * arguments.qHeads);
  int numTiles = ceilDivide(arguments.kvLen, Config::kTileKV);
  int headsPerKV = arguments.qHeads / arguments.kvHeads;
  while (true) {
    int item = atomicAdd(arguments.work.counter, 1);
    barriers.workEmpty[workRing.slot].wait(workRing.parity ^ 1);
    barriers.work[workRing.slot] = item < numItems ? item : -1;
    barriers.workFull[workRing.slot].arrive();
    workRing.advance();
    if (item >= numItems)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.qHeads);
    int kvHead = work.h / headsPerKV;
    TileWalk walk(arguments.mask, work.row, work.b * arguments.qHeads + work.h, numTiles, Program::kHasMask);

    auto loadV = [&](int tile) {
      SharedBarrier &full = barriers.vFull[vRing.slot];
      barriers.vEmpty[vRing.slot].wait(vRing.parity ^ 1);
      full.arriveExpecting(Shared::kVBytes);
#pragma unroll
      for (int panel = 0; panel < Shared::kVPanels; ++panel)
        copyBox(maps.v, full, shared.v(vRing.slot) + panel * Shared::kTilePanelBytes, panel * 64, tile * Config::kTileKV,
                kvHead, work.b, CacheHint::EvictLast);
      vRing.advance();
    };
    int previous = -1;
    while (walk.next()) {
      SharedBarrier &full = barriers.kFull[kRing.slot];
      barriers.kEmpty[kRing.slot].wait(kRing.parity ^ 1);
      full.arriveExpecting(Shared::kKBytes);
#pragma unroll
      for (int panel = 0; panel < Shared::kPanels; ++panel)
        copyBox(maps.k, full, shared.k(kRing.slot) + panel * Shared::kTilePanelBytes, panel * 64,
                walk.tile * Config::kTileKV, kvHead, work.b, CacheHint::EvictLast);
      kRing.advance();
      if (previous < 0) {
        barriers.qEmpty.wait(qParity ^ 1);
        barriers.qFull.arriveExpecting(Shared::kQBytes);
#pragma unroll
        for (int consumer = 0; consumer < Shared::kConsumers; ++consumer)
#pragma unroll
          for (int panel = 0; panel < Shared::kPanels; ++panel)
            copyBox(maps.q, barriers.qFull, shared.q(consumer) + panel * Shared::kQPanelBytes, panel * 64,
                    work.row * Config::kTileQ + consumer * Shared::kRowsPerConsumer, work.h, work.b, CacheHint::EvictFirst);
        qParity ^= 1;
      } else {
        loadV(previous);
      }
      previous = walk.tile;
    }
    if (previous >= 0)
      loadV(previous);
  }
}

/// One consumer warpgroup.
template <class Config, class Program>
__device__ __forceinline__ void consumeForward(const ForwardWgmmaShared<Config> &shared, const ForwardArguments &arguments,
                                               const typename Program::Captures &captures, int consumer) {
  using Shared = ForwardWgmmaShared<Config>;
  using Element = typename Config::Element;
  constexpr int kTileKV = Config::kTileKV;
  constexpr int kVColumns = roundUp(Config::kVHeadDim, 16);
  constexpr int kHeadSteps = ceilDivide(Config::kHeadDim, 16);
  constexpr bool kTakesTurns = kVColumns <= 128;
  constexpr int kTurnBarrier = 1;
  using Positions = TilePositions<Config::kPositions, kTileKV>;
  using ScoreProduct = WarpgroupProduct<Element, kTileKV>;
  using OutputProduct = WarpgroupProduct<Element, kVColumns>;

  auto &barriers = *shared.barriers;
  bool isElected = isElectedLane();
  int rowInTile = consumer * Shared::kRowsPerConsumer + threadIdx.x % kWarpgroupSize / kWarpSize * 16 + threadIdx.x % kWarpSize / 4;
  int numTiles = ceilDivide(arguments.kvLen, kTileKV);
  ScoreScale<Program> scale(arguments.scale, Config::kHasSoftmax);
  uint64 qDescriptor = operandDescriptor(shared.q(consumer), Shared::kQPanelBytes);
  uint64 kDescriptor = operandDescriptor(shared.k(0), Shared::kTilePanelBytes);
  uint64 vDescriptor = operandDescriptor(shared.v(0), Shared::kTilePanelBytes);

  RingPosition<Config::kStages> kRing, vRing;
  RingPosition<Shared::kWorkSlots> workRing;
  uint32 qParity = 0;
  if (kTakesTurns && consumer == Shared::kConsumers - 1)
    barrierArrive<2 * kWarpgroupSize>(kTurnBarrier);

  float output[kVColumns / 2];
  float scores[kTileKV / 2];
  uint32 weights[kTileKV / 4];

  // O += P V of the tile whose weights are in registers.
  auto issueOutputProduct = [&] {
    barriers.vFull[vRing.slot].wait(vRing.parity);
    uint64 v = vDescriptor + vRing.slot * descriptorStep(Shared::kVBytes);
    pinRegisters(output);
    productFence();
#pragma unroll
    for (int step = 0; step < kTileKV / 16; ++step)
      OutputProduct::template fromRegisters<Major::MN>(output, weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
                                                       weights[4 * step + 3], v + step * descriptorStep(16 * 128), 1);
  };
  auto releaseV = [&] {
    if (isElected)
      barriers.vEmpty[vRing.slot].arrive();
    vRing.advance();
  };
  float rescale[2] = {1.0f, 1.0f};
  auto rescaleOutput = [&] {
#pragma unroll
    for (int i = 0; i < kVColumns / 2; ++i)
      output[i] *= rescale[registerRow(i)];
  };

  while (true) {
    barriers.workFull[workRing.slot].wait(workRing.parity);
    int item = barriers.work[workRing.slot];
    __syncwarp();
    if (isElected)
      barriers.workEmpty[workRing.slot].arrive();
    workRing.advance();
    if (item < 0)
      return;
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.qHeads);
    int b = work.b + arguments.batchOffset, h = work.h + arguments.headOffset;
    int rowPosition[2];
    {
      TilePositions<Config::kPositions, Config::kTileQ> rows(arguments.qPositions, work.row, arguments.qLen);
      rowPosition[0] = rows.at(rowInTile);
      rowPosition[1] = rows.at(rowInTile + 8);
    }
    OnlineSoftmax softmax;
#pragma unroll
    for (int i = 0; i < kVColumns / 2; ++i)
      output[i] = 0.0f;

    TileWalk walk(arguments.mask, work.row, work.b * arguments.qHeads + work.h, numTiles, Program::kHasMask);
    bool hasTile = walk.next(), hasWeights = false;
    if (hasTile) {
      barriers.qFull.wait(qParity);
      qParity ^= 1;
    }
    while (hasTile) {
      // 1. S = Q K[j]^T
      barriers.kFull[kRing.slot].wait(kRing.parity);
      if constexpr (kTakesTurns)
        barrierSync<2 * kWarpgroupSize>(kTurnBarrier + consumer);
      uint64 k = kDescriptor + kRing.slot * descriptorStep(Shared::kKBytes);
      pinRegisters(scores);
      productFence();
#pragma unroll
      for (int step = 0; step < kHeadSteps; ++step)
        ScoreProduct::template fromShared<Major::K, Major::K>(
            scores, qDescriptor + step / 4 * descriptorStep(Shared::kQPanelBytes) + step % 4 * descriptorStep(32),
            k + step / 4 * descriptorStep(Shared::kTilePanelBytes) + step % 4 * descriptorStep(32), step != 0);
      productCommit();
      // 2. O += P V[j-1]
      if (hasWeights)
        issueOutputProduct();
      productCommit();
      if constexpr (kTakesTurns)
        barrierArrive<2 * kWarpgroupSize>(kTurnBarrier + (consumer + 1) % Shared::kConsumers);
      productWait<1>();
      pinRegisters(scores);
      if (isElected)
        barriers.kEmpty[kRing.slot].arrive();
      kRing.advance();
      int tile = walk.tile;
      bool isPartial = walk.isPartial;
      hasTile = walk.next();
      if (!hasTile && isElected)
        barriers.qEmpty.arrive();

      // 3. Scores, mask and softmax of tile j.
      Positions columns(arguments.kvPositions, tile, arguments.kvLen);
      applyScore<Program, TileAxes::RowsAreQ>(scores, scale, captures, b, h, rowPosition, columns);
      bool isShort = columns.last < kTileKV - 1;
      if (isPartial || isShort) {
        uint32 keep[2] = {~0u, ~0u};
        if constexpr (Program::kHasMask)
          if (isPartial)
            keepWords<Program, TileAxes::RowsAreQ, kTileKV>(keep, captures, b, h, rowPosition, columns);
        uint32 inside = bitsBelowColumn(columns.last + 1);
        keep[0] &= inside;
        keep[1] &= inside;
        applyKeepWords(scores, keep, Config::kHasSoftmax ? -infinity() : 0.0f);
      }
      if constexpr (Config::kHasSoftmax)
        softmax.step(scores, scale.toLog2, rescale);

      // 4. The weights of tile j replace those of j-1 when their product is done.
      productWait<0>();
      pinRegisters(output);
      if (hasWeights)
        releaseV();
      if constexpr (Config::kHasSoftmax)
        rescaleOutput();
      packOperand<Element>(weights, scores);
      hasWeights = true;
    }
    if (hasWeights) {
      issueOutputProduct();
      productCommit();
      productWait<0>();
      pinRegisters(output);
      releaseV();
    }

    float factor[2] = {1.0f, 1.0f}, lse[2];
    int row = work.row * Config::kTileQ + rowInTile;
    if constexpr (Config::kHasSoftmax) {
      softmax.finish(scale.toLog2, arguments.sink, h, factor, lse);
      writeLse(arguments.lse, work, lse, row, arguments.qLen);
    }
    constexpr int kOutputBytes = Config::kOutputIsF32 ? 4 : kElementBytes;
    void *slice = static_cast<unsigned char *>(arguments.o.data) +
                  (work.b * arguments.o.strideB + work.h * arguments.o.strideH) * kOutputBytes;
    writeRows<Element, Config::kOutputIsF32, Config::kVHeadDim>(output, factor, slice, arguments.o.strideS, row, arguments.qLen);
  }
}

template <class Config, class Program>
__device__ __forceinline__ void attentionForwardWgmma(const ForwardArguments &arguments,
                                                      const typename Program::Captures &captures,
                                                      const ForwardTensorMaps &maps) {
  using Shared = ForwardWgmmaShared<Config>;
  constexpr int kConsumerWarps = Shared::kConsumers * kWarpgroupSize / kWarpSize;
  // Registers of the warpgroups: 40 + 2 * 232 and 32 + 3 * 160 of the 512 that a processor has per 128 threads.
  constexpr int kProducerRegisters = Shared::kConsumers == 2 ? 56 : 32;
  constexpr int kConsumerRegisters = Shared::kConsumers == 2 ? 224 : 160;

  Shared shared;
  if (threadIdx.x == 0) {
    auto &barriers = *shared.barriers;
    barriers.qFull.initialize(1);
    barriers.qEmpty.initialize(kConsumerWarps);
    for (int stage = 0; stage < Config::kStages; ++stage) {
      barriers.kFull[stage].initialize(1);
      barriers.kEmpty[stage].initialize(kConsumerWarps);
      barriers.vFull[stage].initialize(1);
      barriers.vEmpty[stage].initialize(kConsumerWarps);
    }
    for (int slot = 0; slot < Shared::kWorkSlots; ++slot) {
      barriers.workFull[slot].initialize(1);
      barriers.workEmpty[slot].initialize(kConsumerWarps);
    }
    fenceBarrierInit();
  }
  __syncthreads();

  int warpgroup = threadIdx.x / kWarpgroupSize;
  if (warpgroup == 0) {
    giveRegisters<kProducerRegisters>();
    if (threadIdx.x == 0)
      produceForward<Config, Program>(shared, arguments, maps);
  } else {
    takeRegisters<kConsumerRegisters>();
    consumeForward<Config, Program>(shared, arguments, captures, __shfl_sync(0xffffffffu, warpgroup, 0) - 1);
  }
}

} // namespace cpflex::kernels
