// Shared memory and producer of the wgmma kernels for dK and dV: tiles of Q and dO with their rows of LSE and delta
// stream past one tile of K and V.
#pragma once

#include "runtime/kernels/backward.cuh"
#include "runtime/kernels/hopper.cuh"
#include "runtime/kernels/mask_words.cuh"
#include "runtime/kernels/pipeline.cuh"

namespace cpflex::kernels {

/// The item with number `item`. Where dQ is summed, rows ascend, so that an item waits for earlier ones only.
template <bool kSumsDQ> __device__ __forceinline__ WorkItem keyItem(const BackwardArguments &arguments, int item) {
  return kSumsDQ ? ascendingWorkItem(arguments.work, item, arguments.batch, arguments.kvHeads)
                 : workItem(arguments.work, item, arguments.batch, arguments.kvHeads);
}

/// The query tiles of one item, one query head after the other. Lives in shared memory: its users have few registers.
template <bool kSumsDQ> struct QueryTileWalk {
  WorkItem item;
  int head, endHead;
  DirectedTileWalk<kSumsDQ> walk;

  __device__ __forceinline__ void start(const BackwardArguments &arguments, int itemNumber, int tileQ, bool hasMask) {
    int headsPerKV = arguments.qHeads / arguments.kvHeads;
    item = keyItem<kSumsDQ>(arguments, itemNumber);
    head = item.h * headsPerKV;
    endHead = head + headsPerKV;
    startHead(arguments, tileQ, hasMask);
  }
  /// Steps to the next tile of this head or of a later one; false after the last.
  __device__ __forceinline__ bool next(const BackwardArguments &arguments, int tileQ, bool hasMask) {
    while (!walk.next()) {
      if (head + 1 == endHead)
        return false;
      ++head;
      startHead(arguments, tileQ, hasMask);
    }
    return true;
  }
  __device__ __forceinline__ void startHead(const BackwardArguments &arguments, int tileQ, bool hasMask) {
    walk.start(arguments.mask, item.row, arguments.work.numRows, item.b * arguments.qHeads + head,
               ceilDivide(arguments.qLen, tileQ), hasMask, kSumsDQ && arguments.querySums.walksDown);
  }
};

template <class Config> struct BackwardKVShared {
  static constexpr int kColumns = roundUp(Config::kHeadDim, 16), kVColumns = roundUp(Config::kVHeadDim, 16);
  static constexpr int kRowBytes = Config::kHasSoftmax ? Config::kTileQ * (int)sizeof(float) : 0;
  static constexpr int kPanels = ceilDivide(Config::kHeadDim, 64), kVPanels = ceilDivide(Config::kVHeadDim, 64);
  static constexpr int kConsumers = 2;
  /// Whether the consumers divide the products of 64 keys among them instead of 128 keys.
  static constexpr bool kIsWide = kColumns > 128 || kVColumns > 128;
  static constexpr bool kSumsDQ = sumsDQ(Config::kHeadDim, Config::kVHeadDim);
  static constexpr int kExchangeSlots = 2;
  static constexpr int kSumsAhead = 16; ///< tiles whose turns are looked up at once
  static constexpr int kSumSlots = 2;   ///< parts of dQ on their way out, each in the care of one warp
  /// Each consumer computes dQ of half of the tile: 64 columns of all queries or, where there are no more columns, all
  /// columns of half of the queries, transposed, since products have 64 rows.
  static constexpr bool kTransposesDQ = kPanels == 1;
  static constexpr int kDQRows = Config::kTileQ, kDQColumns = kTransposesDQ ? Config::kTileQ / kConsumers : 64;
  static constexpr int kDSColumns = kTransposesDQ ? kDQColumns : kDQRows; ///< of a panel of 64 that are used
  static constexpr int kDSBytes = Config::kTileQ / kDSColumns * Config::kTileKV * 128;
  static constexpr int kDQBytes = (int)sumsPerTile(Config::kTileQ, Config::kHeadDim) * (int)sizeof(float);
  static constexpr int kExchangeBytes = kIsWide
                                            ? kExchangeSlots * kConsumerRows * Config::kTileQ * (int)sizeof(float)
                                        : kSumsDQ ? kExchangeSlots * kDSBytes + kSumSlots * kDQBytes
                                                  : 0;
  static constexpr int kKVPanelBytes = Config::kTileKV * 128, kQPanelBytes = Config::kTileQ * 128;
  static constexpr int kKBytes = kPanels * kKVPanelBytes, kVBytes = kVPanels * kKVPanelBytes;
  static constexpr int kQBytes = kPanels * kQPanelBytes, kDOBytes = kVPanels * kQPanelBytes;
  static constexpr int kTileBytes = kKBytes + kVBytes + Config::kStages * (kQBytes + kDOBytes) + kExchangeBytes;

  struct Rest {
    float lseLog2[Config::kStages][Config::kTileQ];
    float delta[Config::kStages][Config::kTileQ];
    SharedBarrier kvFull, kvEmpty;
    SharedBarrier qFull[Config::kStages], qEmpty[Config::kStages];
    SharedBarrier dOFull[Config::kStages], dOEmpty[Config::kStages];
    TileMessage message[Config::kStages];
    int head[Config::kStages];                                                 ///< query head of the tile
    SharedBarrier exchangeFull[kExchangeSlots], exchangeEmpty[kExchangeSlots]; ///< wide only
    SharedBarrier dQFull[kSumSlots], dQEmpty[kSumSlots];                       ///< where dQ is summed
    SharedBarrier sumsFull[kSumSlots];                                         ///< the slot waits for a last part of dQ
    bool holdsSums[kSumSlots];                                                 ///< and the sums of the others are in it
    QueryTileWalk<kSumsDQ> walk;                                               ///< the producer's
    /// Of the warps that add dQ up: their walks, and what comes next: tiles, each times 2 and 1 more for a last part,
    /// and (b, h).
    QueryTileWalk<kSumsDQ> sumsWalk[kSumSlots];
    int sumsTile[kSumSlots][kSumsAhead], sumsPair[kSumSlots][kSumsAhead];
    WorkQueue::Shared work;
  };
  static_assert(Config::kTileKV == (kIsWide ? kConsumerRows : kConsumers * kConsumerRows));
  static_assert(Config::kTileQ % 16 == 0 && Config::kTileQ <= kRowPadding);
  static_assert(Config::kThreads == (kConsumers + 1) * kWarpgroupSize);
  static_assert(kTileBytes + (int)sizeof(Rest) + kSharedAlignment <= Config::kSharedBytes,
                "the table of tiles is out of date");

  unsigned char *tiles;
  Rest *rest;

  __device__ __forceinline__ BackwardKVShared() {
    tiles = alignedSharedMemory();
    rest = reinterpret_cast<Rest *>(tiles + kTileBytes);
  }
  __device__ __forceinline__ unsigned char *q(int stage) const { return tiles + stage * kQBytes; }
  __device__ __forceinline__ unsigned char *dO(int stage) const {
    return tiles + Config::kStages * kQBytes + stage * kDOBytes;
  }
  __device__ __forceinline__ unsigned char *k() const { return tiles + Config::kStages * (kQBytes + kDOBytes); }
  __device__ __forceinline__ unsigned char *v() const { return k() + kKBytes; }
  __device__ __forceinline__ float *exchange(int slot) const {
    return reinterpret_cast<float *>(v() + kVBytes) + slot * kConsumerRows * Config::kTileQ;
  }

  /// Where dQ is summed: dS^T of a step in panels of 64 queries, and the part of dQ that goes out.
  __device__ __forceinline__ unsigned char *dS(int slot) const { return v() + kVBytes + slot * kDSBytes; }
  __device__ __forceinline__ unsigned char *dQ(int slot) const { return dS(kExchangeSlots) + slot * kDQBytes; }

  /// Sets up the barriers; the whole block calls it.
  __device__ __forceinline__ void initialize() const {
    constexpr int kWarpsPerConsumer = kWarpgroupSize / kWarpSize, kConsumerWarps = kConsumers * kWarpsPerConsumer;
    if (threadIdx.x == 0) {
      rest->kvFull.initialize(1);
      rest->kvEmpty.initializeForWarps(kConsumerWarps);
      for (int stage = 0; stage < Config::kStages; ++stage) {
        rest->qFull[stage].initialize(1);
        rest->qEmpty[stage].initializeForWarps(kConsumerWarps);
        rest->dOFull[stage].initialize(1);
        rest->dOEmpty[stage].initializeForWarps(kConsumerWarps);
      }
      for (int slot = 0; slot < kExchangeSlots; ++slot) {
        rest->exchangeFull[slot].initializeForWarps(kWarpsPerConsumer);
        rest->exchangeEmpty[slot].initializeForWarps(kWarpsPerConsumer);
      }
      for (int slot = 0; slot < kSumSlots; ++slot) {
        rest->dQFull[slot].initializeForWarps(kConsumerWarps);
        rest->dQEmpty[slot].initialize(1);
        rest->sumsFull[slot].initialize(1);
      }
      WorkQueue::initialize(rest->work, kConsumerWarps + (kSumsDQ ? kSumSlots : 0));
      fenceBarrierInit();
    }
    __syncthreads();
  }
};

/// The producer: one thread takes work and issues every copy.
template <class Config, class Program>
__device__ __forceinline__ void produceBackwardKV(const BackwardKVShared<Config> &shared,
                                                  const BackwardArguments &arguments, const BackwardTensorMaps &maps) {
  using Shared = BackwardKVShared<Config>;
  auto &rest = *shared.rest;
  RingPosition<Config::kStages> ring;
  uint32 kvParity = 0;
  int numItems = numWorkItems(arguments.work, arguments.batch * arguments.kvHeads);
  QueryTileWalk<Shared::kSumsDQ> &walk = rest.walk;
  const WorkItem &work = walk.item;
  WorkQueue queue;
  while (true) {
    int item = atomicAdd(arguments.work.counter, 1);
    if (item >= numItems)
      return queue.publish(rest.work, WorkQueue::kEnd);
    walk.start(arguments, item, Config::kTileQ, Program::kHasMask);
    auto next = [&] { return walk.next(arguments, Config::kTileQ, Program::kHasMask); };
    bool hasTile = next();
    queue.publish(rest.work, item * 2 + hasTile);
    if (hasTile) {
      rest.kvEmpty.wait(kvParity ^ 1);
      kvParity ^= 1;
      rest.kvFull.arriveExpecting(Shared::kKBytes + Shared::kVBytes);
      copyPanels<Shared::kPanels, Shared::kKVPanelBytes>(maps.k, rest.kvFull, shared.k(), work.row * Config::kTileKV,
                                                         work.h, work.b, CacheHint::EvictFirst);
      copyPanels<Shared::kVPanels, Shared::kKVPanelBytes>(maps.v, rest.kvFull, shared.v(), work.row * Config::kTileKV,
                                                          work.h, work.b, CacheHint::EvictFirst);
    }
    while (hasTile) {
      // What a slot's consumers are told is read back where the copies need it: registers are few here.
      SharedBarrier &qFull = rest.qFull[ring.slot], &dOFull = rest.dOFull[ring.slot];
      TileMessage &message = rest.message[ring.slot];
      int &tileHead = rest.head[ring.slot];
      rest.qEmpty[ring.slot].wait(ring.parity ^ 1);
      tileHead = walk.head;
      message = TileMessage::of(walk.walk);
      copyPanels<Shared::kPanels, Shared::kQPanelBytes>(
          maps.q, qFull, shared.q(ring.slot), message.tile * Config::kTileQ, tileHead, work.b, CacheHint::EvictLast);
      if (Config::kHasSoftmax)
        copyBytes(rest.lseLog2[ring.slot],
                  rowSlice(arguments.lseLog2, work.b, tileHead) + message.tile * Config::kTileQ, Shared::kRowBytes,
                  qFull);
      hasTile = next(); // reads memory, while the copies run
      message.isLast = !hasTile;
      qFull.arriveExpecting(Shared::kQBytes + Shared::kRowBytes);
      rest.dOEmpty[ring.slot].wait(ring.parity ^ 1);
      dOFull.arriveExpecting(Shared::kDOBytes + Shared::kRowBytes);
      copyPanels<Shared::kVPanels, Shared::kQPanelBytes>(
          maps.dO, dOFull, shared.dO(ring.slot), message.tile * Config::kTileQ, tileHead, work.b, CacheHint::EvictLast);
      if (Config::kHasSoftmax)
        copyBytes(rest.delta[ring.slot], rowSlice(arguments.delta, work.b, tileHead) + message.tile * Config::kTileQ,
                  Shared::kRowBytes, dOFull);
      ring.advance();
    }
  }
}

} // namespace cpflex::kernels
