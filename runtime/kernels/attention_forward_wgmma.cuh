// Forward attention on Hopper: one producer warpgroup copies tiles of Q, K and V into shared memory, two consumer
// warpgroups (three for narrow heads) of 64 query rows each multiply and normalise. O leaves through shared memory by
// tensor copies where there is room. Blocks stay resident and take rows of tiles until none is left, so that the copies
// of the next row run under the end of the last.
//
// A consumer overlaps the softmax of one tile with the product of the previous tile's weights and V, and the two
// consumers take turns at the tensor cores (the schedule of FlashAttention-3, Shah et al. 2024):
//   1. S = Q K[j]^T is issued; 2. O += P V[j-1] is issued behind it; 3. when S is there, the softmax of tile j runs
//   while 2 is still computing; 4. O is rescaled when 2 is done.
#pragma once

#include "runtime/kernels/hopper.cuh"
#include "runtime/kernels/pipeline.cuh"
#include "runtime/kernels/softmax.cuh"

namespace cpflex::kernels {

/// A row of tiles that the producer takes up; its walk stands at the first tile.
struct ForwardItem {
  int number; ///< kEnd of WorkQueue after the last
  bool hasTile;
  WorkItem work;
  TileWalk walk;
};

template <class Config> struct ForwardWgmmaShared {
  static constexpr int kPanels = ceilDivide(Config::kHeadDim, 64);
  static constexpr int kVPanels = ceilDivide(Config::kVHeadDim, 64);
  static constexpr int kConsumers = Config::kTileQ / kConsumerRows;
  static constexpr int kQPanelBytes = kConsumerRows * 128;
  static constexpr int kQBytes = kConsumers * kPanels * kQPanelBytes;
  static constexpr int kTilePanelBytes = Config::kTileKV * 128;
  static constexpr int kKBytes = kPanels * kTilePanelBytes;
  static constexpr int kVBytes = kVPanels * kTilePanelBytes;
  /// Whether O leaves through shared memory, 16 rows of a warp at a time, by tensor copies that nobody waits for.
  static constexpr bool kStagesO = !Config::kOutputIsF32 && Config::kHeadDim <= 128 && Config::kVHeadDim <= 128;
  static constexpr int kOPanelBytes = kRowsPerWarp * 128;
  static constexpr int kOBytes = kStagesO ? Config::kTileQ / kRowsPerWarp * kVPanels * kOPanelBytes : 0;
  static constexpr int kTileBytes = kQBytes + Config::kStages * (kKBytes + kVBytes) + kOBytes;

  struct Barriers {
    SharedBarrier qFull, qEmpty;
    SharedBarrier kFull[Config::kStages], kEmpty[Config::kStages];
    SharedBarrier vFull[Config::kStages], vEmpty[Config::kStages];
    TileMessage message[Config::kStages]; ///< of the K tiles
    WorkQueue::Shared work;
    SharedBarrier itemWanted, itemReady;
    ForwardItem items[2]; ///< the producer's, and the next
  };
  static_assert(Config::kTileQ % kConsumerRows == 0);
  static_assert(Config::kThreads == (kConsumers + 1) * kWarpgroupSize);
  static_assert(kTileBytes + (int)sizeof(Barriers) + kSharedAlignment <= Config::kSharedBytes,
                "the table of tiles is out of date");

  unsigned char *tiles;
  Barriers *barriers;

  __device__ __forceinline__ ForwardWgmmaShared() {
    tiles = alignedSharedMemory();
    barriers = reinterpret_cast<Barriers *>(tiles + kTileBytes);
  }
  __device__ __forceinline__ unsigned char *q(int consumer) const { return tiles + consumer * kPanels * kQPanelBytes; }
  __device__ __forceinline__ unsigned char *k(int stage) const { return tiles + kQBytes + stage * kKBytes; }
  __device__ __forceinline__ unsigned char *v(int stage) const {
    return tiles + kQBytes + Config::kStages * kKBytes + stage * kVBytes;
  }
  __device__ __forceinline__ unsigned char *o(int consumerWarp) const {
    return v(Config::kStages) + consumerWarp * kVPanels * kOPanelBytes;
  }
};

/// Takes work, by one thread: finding the first tile of a row is a chain of reads that takes longer than a tile, so the
/// next row is found while the last tiles of a row are on their way.
template <class Config, class Program>
__device__ __forceinline__ void takeForwardItems(const ForwardWgmmaShared<Config> &shared,
                                                 const ForwardArguments &arguments) {
  auto &barriers = *shared.barriers;
  int numItems = numWorkItems(arguments.work, arguments.batch * arguments.qHeads);
  int numTiles = ceilDivide(arguments.kvLen, Config::kTileKV);
  for (int count = 0;; ++count) {
    if (count > 0)
      barriers.itemWanted.wait((count - 1) % 2);
    ForwardItem &next = barriers.items[count % 2];
    int number = atomicAdd(arguments.work.counter, 1);
    bool isEnd = number >= numItems;
    next.number = isEnd ? WorkQueue::kEnd : number;
    if (!isEnd) {
      WorkItem work = workItem(arguments.work, number, arguments.batch, arguments.qHeads);
      next.work = work;
      next.walk.start(arguments.mask, work.row, arguments.work.numRows, work.b * arguments.qHeads + work.h, numTiles,
                      Program::kHasMask);
      next.hasTile = next.walk.next();
    }
    barriers.itemReady.arrive();
    if (isEnd)
      return;
  }
}

/// The producer: one thread issues every copy.
template <class Config, class Program>
__device__ __forceinline__ void produceForward(const ForwardWgmmaShared<Config> &shared,
                                               const ForwardArguments &arguments, const ForwardTensorMaps &maps) {
  using Shared = ForwardWgmmaShared<Config>;
  auto &barriers = *shared.barriers;
  prefetchTensorMap(maps.q);
  prefetchTensorMap(maps.k);
  prefetchTensorMap(maps.v);
  RingPosition<Config::kStages> kRing, vRing;
  WorkQueue queue;
  uint32 qParity = 0;
  int headsPerKV = arguments.qHeads / arguments.kvHeads;
  for (int count = 0;; ++count) {
    barriers.itemReady.wait(count % 2);
    ForwardItem &item = barriers.items[count % 2];
    if (item.number == WorkQueue::kEnd)
      return queue.publish(barriers.work, WorkQueue::kEnd);
    WorkItem work = item.work;
    int kvHead = work.h / headsPerKV;
    TileWalk &walk = item.walk;
    bool hasTile = item.hasTile;
    queue.publish(barriers.work, item.number * 2 + hasTile);
    if (!hasTile)
      barriers.itemWanted.arrive();

    auto loadV = [&](int tile) {
      SharedBarrier &full = barriers.vFull[vRing.slot];
      barriers.vEmpty[vRing.slot].wait(vRing.parity ^ 1);
      full.arriveExpecting(Shared::kVBytes);
      copyPanels<Shared::kVPanels, Shared::kTilePanelBytes>(maps.v, full, shared.v(vRing.slot), tile * Config::kTileKV,
                                                            kvHead, work.b, CacheHint::EvictLast);
      vRing.advance();
    };
    int previous = -1;
    while (hasTile) {
      int tile = walk.tile;
      SharedBarrier &full = barriers.kFull[kRing.slot];
      TileMessage &message = barriers.message[kRing.slot];
      barriers.kEmpty[kRing.slot].wait(kRing.parity ^ 1);
      copyPanels<Shared::kPanels, Shared::kTilePanelBytes>(maps.k, full, shared.k(kRing.slot), tile * Config::kTileKV,
                                                           kvHead, work.b, CacheHint::EvictLast);
      message = TileMessage::of(walk);
      hasTile = walk.next(); // reads memory, while the copy runs
      message.isLast = !hasTile;
      full.arriveExpecting(Shared::kKBytes);
      if (!hasTile)
        barriers.itemWanted.arrive();
      kRing.advance();
      if (previous < 0) {
        barriers.qEmpty.wait(qParity ^ 1);
        barriers.qFull.arriveExpecting(Shared::kQBytes);
#pragma unroll
        for (int consumer = 0; consumer < Shared::kConsumers; ++consumer)
          copyPanels<Shared::kPanels, Shared::kQPanelBytes>(maps.q, barriers.qFull, shared.q(consumer),
                                                            work.row * Config::kTileQ + consumer * kConsumerRows,
                                                            work.h, work.b, CacheHint::EvictFirst);
        qParity ^= 1;
      } else {
        loadV(previous);
      }
      previous = tile;
    }
    if (previous >= 0)
      loadV(previous);
  }
}

/// Sends a warp's 16 rows of O on their way, from row `row` on. What it sent before has been read from shared memory
/// when this writes there.
template <class Config, int N>
__device__ __forceinline__ void sendOutput(const ForwardWgmmaShared<Config> &shared, const TensorMapArgument &map,
                                           const float (&output)[N], const float (&factor)[2], const WorkItem &work,
                                           int row, int consumerWarp) {
  using Shared = ForwardWgmmaShared<Config>;
  using Element = typename Config::Element;
  unsigned char *staged = shared.o(consumerWarp);
  int lane = threadIdx.x % kWarpSize;
  bool isElected = isElectedLane();
  bulkWaitRead();
  __syncwarp();
#pragma unroll
  for (int step = 0; step < N / 8; ++step) {
    uint32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = Element::pack(output[8 * step + 2 * i] * factor[i % 2], output[8 * step + 2 * i + 1] * factor[i % 2]);
    storeMatrices(staged + swizzledOffset<kRowsPerWarp>(lane % 16, 16 * step + lane / 16 * 8), words[0], words[1],
                  words[2], words[3]);
  }
  fenceSharedForAsync();
  __syncwarp();
#pragma unroll
  for (int panel = 0; panel < Shared::kVPanels; ++panel)
    writeBoxIf(isElected, map, staged + panel * Shared::kOPanelBytes, panel * 64, row, work.h, work.b);
  bulkCommit();
}

/// One consumer warpgroup.
template <class Config, class Program>
__device__ __forceinline__ void consumeForward(const ForwardWgmmaShared<Config> &shared,
                                               const ForwardArguments &arguments, const TensorMapArgument &outputMap,
                                               const typename Program::Captures &captures, int consumer) {
  using Shared = ForwardWgmmaShared<Config>;
  using Element = typename Config::Element;
  constexpr int kTileKV = Config::kTileKV;
  constexpr int kVColumns = roundUp(Config::kVHeadDim, 16);
  constexpr int kHeadSteps = ceilDivide(Config::kHeadDim, 16);
  constexpr bool kTakesTurns = kVColumns <= 128;
  // Of wider heads the compiler would serialise the products around a tile that is left out.
  constexpr bool kSkipsTiles = Program::kHasMask && kTakesTurns;
  constexpr int kTurnBarrier = 1;
  using Positions = TilePositions<Config::kPositions, kTileKV>;
  using ScoreProduct = WarpgroupProduct<Element, kTileKV>;
  using OutputProduct = WarpgroupProduct<Element, kVColumns>;

  auto &barriers = *shared.barriers;
  int firstRow = consumer * kConsumerRows + threadIdx.x % kWarpgroupSize / kWarpSize * kRowsPerWarp;
  int rowInTile = firstRow + threadIdx.x % kWarpSize / 4;
  constexpr int kThreadsOfConsumers = Shared::kConsumers * kWarpgroupSize;
  int thread = consumer * kWarpgroupSize + threadIdx.x % kWarpgroupSize; // of the consumers
  ScoreScale<Program> scale(arguments.scale, Config::kHasSoftmax);
  uint32 qDescriptor = operandDescriptor(shared.q(consumer), Shared::kQPanelBytes);
  uint32 kDescriptor = operandDescriptor(shared.k(0), Shared::kTilePanelBytes);
  uint32 vDescriptor = operandDescriptor(shared.v(0), Shared::kTilePanelBytes);

  RingPosition<Config::kStages> kRing, vRing;
  WorkQueue queue;
  uint32 qParity = 0;
  if (kTakesTurns && consumer == Shared::kConsumers - 1)
    barrierArrive<2 * kWarpgroupSize>(kTurnBarrier);

  float output[kVColumns / 2];
  float scores[kTileKV / 2];
  uint32 weights[kTileKV / 4];

  // O += P V of the tile whose weights are in registers.
  auto issueOutputProduct = [&] {
    barriers.vFull[vRing.slot].wait(vRing.parity);
    uint32 v = vDescriptor + vRing.slot * descriptorStep(Shared::kVBytes);
    pinRegisters(output);
    productFence();
#pragma unroll
    for (int step = 0; step < kTileKV / 16; ++step)
      OutputProduct::template fromRegisters<Major::MN>(output, weights[4 * step], weights[4 * step + 1],
                                                       weights[4 * step + 2], weights[4 * step + 3],
                                                       v + step * descriptorStep(16 * 128), 1);
  };
  auto releaseV = [&] {
    barriers.vEmpty[vRing.slot].arriveAsWarp();
    vRing.advance();
  };
  bool hasWeights = false;
  auto finishWeights = [&] {
    issueOutputProduct();
    productCommit();
    productWait<0>();
    pinRegisters(output);
    releaseV();
    hasWeights = false;
  };
  // Of a tile in which none of this consumer's rows attends: the turn and the keys pass by.
  auto passKeys = [&](bool isLast) {
    if constexpr (kTakesTurns) {
      barrierSync<2 * kWarpgroupSize>(kTurnBarrier + consumer);
      barrierArrive<2 * kWarpgroupSize>(kTurnBarrier + (consumer + 1) % Shared::kConsumers);
    }
    __syncwarp(); // every lane has read the message
    barriers.kEmpty[kRing.slot].arriveAsWarp();
    if (isLast)
      barriers.qEmpty.arriveAsWarp();
    kRing.advance();
  };
  float rescale[2] = {1.0f, 1.0f};
  auto rescaleOutput = [&] {
#pragma unroll
    for (int i = 0; i < kVColumns / 2; ++i)
      output[i] *= rescale[registerRow(i)];
  };

  while (true) {
    int item = queue.take(barriers.work);
    if (item < 0) {
      if constexpr (Shared::kStagesO)
        bulkWaitRead(); // shared memory goes with the block
      return;
    }
    WorkItem work = workItem(arguments.work, item, arguments.batch, arguments.qHeads);
    int b = work.b + arguments.batchOffset, h = work.h + arguments.headOffset;
    TilePositions<Config::kPositions, Config::kTileQ> rows(arguments.qPositions, work.row, arguments.qLen);
    int rowPosition[2] = {rows.at(rowInTile), rows.at(rowInTile + 8)};
    OnlineSoftmax softmax;
#pragma unroll
    for (int i = 0; i < kVColumns / 2; ++i)
      output[i] = 0.0f;

    bool hasTile = queue.hasTile;
    if (hasTile) {
      barriers.qFull.wait(qParity);
      qParity ^= 1;
    }
    while (true) {
      TileMessage message;
      auto takeMessage = [&] {
        barriers.kFull[kRing.slot].wait(kRing.parity);
        message = barriers.message[kRing.slot];
      };
      bool isPassed = !hasTile;
      if constexpr (kSkipsTiles)
        if (hasTile) {
          takeMessage();
          isPassed = message.isEmpty(consumer);
        }
      // Behind the last tile and where one is left out, what is in registers is used up: one place, since the compiler
      // takes its time for each product.
      if (isPassed) {
        if (kSkipsTiles && hasTile)
          passKeys(message.isLast);
        if (hasWeights)
          finishWeights();
        if (!hasTile)
          break;
        hasTile = !message.isLast;
        barriers.vFull[vRing.slot].wait(vRing.parity);
        releaseV();
        continue;
      }
      if constexpr (!kSkipsTiles)
        takeMessage();
      hasTile = !message.isLast;

      // 1. S = Q K[j]^T
      StoredWords stored = StoredWords::load(arguments.mask, message.words, thread, kThreadsOfConsumers);
      if constexpr (kTakesTurns)
        barrierSync<2 * kWarpgroupSize>(kTurnBarrier + consumer);
      uint32 k = kDescriptor + kRing.slot * descriptorStep(Shared::kKBytes);
      pinRegisters(scores);
      productFence();
#pragma unroll
      for (int step = 0; step < kHeadSteps; ++step)
        ScoreProduct::template fromShared<Major::K, Major::K>(scores,
                                                              qDescriptor + panelStep<Shared::kQPanelBytes>(step),
                                                              k + panelStep<Shared::kTilePanelBytes>(step), step != 0);
      productCommit();
      // 2. O += P V[j-1]
      // Each way closes one group: a commit shared by both would close an empty group behind the product and make the
      // wait below wait for it.
      if (hasWeights) {
        issueOutputProduct();
        productCommit();
      } else {
        productCommit();
      }
      if constexpr (kTakesTurns)
        barrierArrive<2 * kWarpgroupSize>(kTurnBarrier + (consumer + 1) % Shared::kConsumers);
      // The mask of tile j is decided while the products run.
      Positions columns(arguments.kvPositions, message.tile, arguments.kvLen);
      uint32 keep[2];
      bool isMasked = tileKeepWords<Program, TileAxes::RowsAreQ, kTileKV>(keep, message.isPartial(consumer), captures,
                                                                          b, h, rows, firstRow, columns, stored);
      productWait<1>();
      pinRegisters(scores);
      barriers.kEmpty[kRing.slot].arriveAsWarp();
      kRing.advance();
      if (!hasTile)
        barriers.qEmpty.arriveAsWarp();

      // 3. Scores and softmax of tile j.
      applyScore<Program, TileAxes::RowsAreQ>(scores, scale, captures, b, h, rowPosition, columns);
      if (isMasked)
        applyKeepWords(scores, keep, Config::kHasSoftmax ? -infinity() : 0.0f);
      bool needsRescale = false;
      if constexpr (Config::kHasSoftmax)
        needsRescale = softmax.step(scores, scale.toLog2, rescale);

      // 4. The weights of tile j replace those of j-1 when their product is done.
      if constexpr (Config::kHasSoftmax)
        softmax.finishBeforeHere();
      productWait<0>();
      pinRegisters(output);
      if (needsRescale)
        rescaleOutput();
      if (hasWeights)
        releaseV();
      packOperand<Element>(weights, scores);
      hasWeights = true;
    }

    float factor[2] = {1.0f, 1.0f}, lse[2];
    int row = work.row * Config::kTileQ + rowInTile;
    if constexpr (Config::kHasSoftmax) {
      softmax.finish(scale.toLog2, arguments.sink, h, factor, lse);
      writeLse(arguments.lse, work, lse, row, arguments.qLen);
    }
    if constexpr (Shared::kStagesO) {
      sendOutput(shared, outputMap, output, factor, work, work.row * Config::kTileQ + firstRow,
                 firstRow / kRowsPerWarp);
    } else {
      void *slice = outputSlice<Config::kOutputIsF32>(arguments.o, work.b, work.h);
      writeRows<Element, Config::kOutputIsF32, Config::kVHeadDim>(output, factor, slice, arguments.o.strideS, row,
                                                                  arguments.qLen);
    }
  }
}

template <class Config, class Program>
__device__ __forceinline__ void attentionForwardWgmma(const ForwardArguments &arguments,
                                                      const typename Program::Captures &captures,
                                                      const ForwardTensorMaps &maps) {
  using Shared = ForwardWgmmaShared<Config>;
  constexpr int kConsumerWarps = Shared::kConsumers * kWarpgroupSize / kWarpSize;
  Shared shared;
  if (threadIdx.x == 0) {
    auto &barriers = *shared.barriers;
    barriers.qFull.initialize(1);
    barriers.qEmpty.initializeForWarps(kConsumerWarps);
    for (int stage = 0; stage < Config::kStages; ++stage) {
      barriers.kFull[stage].initialize(1);
      barriers.kEmpty[stage].initializeForWarps(kConsumerWarps);
      barriers.vFull[stage].initialize(1);
      barriers.vEmpty[stage].initializeForWarps(kConsumerWarps);
    }
    WorkQueue::initialize(barriers.work, kConsumerWarps);
    barriers.itemWanted.initialize(1);
    barriers.itemReady.initialize(1);
    fenceBarrierInit();
  }
  __syncthreads();

  int warpgroup = threadIdx.x / kWarpgroupSize;
  if (warpgroup == 0) {
    giveRegisters<kProducerRegisters<Shared::kConsumers, /*holdsTwo=*/false>>();
    if (threadIdx.x == 0)
      produceForward<Config, Program>(shared, arguments, maps);
    else if (threadIdx.x == kWarpSize)
      takeForwardItems<Config, Program>(shared, arguments);
  } else {
    takeRegisters<kConsumerRegisters<Shared::kConsumers, /*holdsTwo=*/false>>();
    consumeForward<Config, Program>(shared, arguments, maps.o, captures, __shfl_sync(0xffffffffu, warpgroup, 0) - 1);
  }
}

} // namespace cpflex::kernels
