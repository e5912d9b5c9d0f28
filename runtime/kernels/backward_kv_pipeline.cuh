// Shared memory and producer of the wgmma kernels for dK and dV: tiles of Q and dO with their rows of LSE and delta
// stream past one tile of K and V. One warp of the producer's warpgroup plans, one issues copies.
#pragma once

#include "runtime/kernels/backward.cuh"
#include "runtime/kernels/hopper.cuh"
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
  /// Steps to the next tile of this head or of a later one; false after the last. Leaves its classes alone.
  __device__ __forceinline__ bool advance(const BackwardArguments &arguments, int tileQ, bool hasMask) {
    while (!walk.advance()) {
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

/// The next tiles of an item, as the producer and the warps that add dQ up need them.
struct TilePlan {
  static constexpr int kMostTiles = 8;
  int count;            ///< 0: no item is left
  bool isFirst, isLast; ///< of the item's plans
  WorkItem item;
  TileMessage tiles[kMostTiles];
  int heads[kMostTiles]; ///< query heads
  int turns[kMostTiles]; ///< where dQ is summed: how many parts are added before
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
  static constexpr int kPlans = 2;
  static constexpr int kSumSlots = 2; ///< parts of dQ on their way out, each in the care of one warp
  /// Each consumer computes dQ of half of the tile: 64 columns of all queries or, where there are no more columns, all
  /// columns of half of the queries, transposed, since products have 64 rows.
  static constexpr bool kTransposesDQ = kPanels == 1;
  static constexpr int kDQRows = Config::kTileQ, kDQColumns = kTransposesDQ ? Config::kTileQ / kConsumers : 64;
  static constexpr int kDSColumns = kTransposesDQ ? kDQColumns : kDQRows; ///< of a panel of 64 that are used
  static constexpr int kDSBytes = Config::kTileQ / kDSColumns * Config::kTileKV * 128;
  static constexpr int kDQBytes = (int)sumsPerTile(Config::kTileQ, Config::kHeadDim) * (int)sizeof(float);
  static constexpr int kExchangeBytes = kIsWide   ? kExchangeSlots * kConsumerRows * Config::kTileQ * (int)sizeof(float)
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
    SharedBarrier sumsFull[kSumSlots]; ///< all but the last part of dQ are added
    float *othersSums[kSumSlots];      ///< to which it adds; null: none
    TilePlan plan[kPlans];
    SharedBarrier planFull[kPlans], planEmpty[kPlans];
    SharedBarrier itemWanted;    ///< the producer is about to be done with an item
    QueryTileWalk<kSumsDQ> walk; ///< that makes the plans
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
      for (int slot = 0; slot < kPlans; ++slot) {
        rest->planFull[slot].initializeForWarps(1);
        rest->planEmpty[slot].initializeForWarps(kSumsDQ ? 1 + kSumSlots : 1);
      }
      rest->itemWanted.initialize(1);
      WorkQueue::initialize(rest->work, kConsumerWarps);
      fenceBarrierInit();
    }
    __syncthreads();
  }
};

/// Which runs of the mask belong to query tile `tile` of a (b, h).
__device__ __forceinline__ Range runsOfQueryTile(const MaskArgument &mask, int pair, int tile) {
  int rowSet = mask.rowSetOf ? __ldg(mask.rowSetOf + pair) : 0;
  const int *begin = mask.rowBegin + (long long)rowSet * (mask.numRows + 1) + tile / mask.rowTilesPerMaskTile;
  return {__ldg(begin), __ldg(begin + 1)};
}

/// How many tiles of query tile `tile` of a (b, h) lie before kv tile `kvTile`.
__device__ __forceinline__ int turnInSums(const MaskArgument &mask, int pair, int tile, int kvTile) {
  if (!mask.runs)
    return kvTile;
  Range runs = runsOfQueryTile(mask, pair, tile);
  int turn = 0, ratio = mask.colTilesPerMaskTile;
  for (int i = runs.begin; i < runs.end; ++i) {
    int first = __ldg(&mask.runs[i].begin) * ratio;
    if (first >= kvTile)
      break;
    turn += min(__ldg(&mask.runs[i].end) * ratio, kvTile) - first;
  }
  return turn;
}

/// A warp that looks ahead for the others: takes items, walks their tiles and reads what the mask says of several tiles
/// at once, a tile per lane, so that nobody else waits for memory.
template <class Config, class Program>
__device__ __forceinline__ void planBackwardKV(const BackwardKVShared<Config> &shared,
                                               const BackwardArguments &arguments) {
  using Shared = BackwardKVShared<Config>;
  auto &rest = *shared.rest;
  QueryTileWalk<Shared::kSumsDQ> &walk = rest.walk;
  int numItems = numWorkItems(arguments.work, arguments.batch * arguments.kvHeads), lane = threadIdx.x % kWarpSize;
  bool isElected = isElectedLane();
  auto advance = [&] { return walk.advance(arguments, Config::kTileQ, Program::kHasMask); };
  RingPosition<Shared::kPlans> ring;
  WorkQueue queue;
  uint32 wantedParity = 0;
  bool isEnd = false;
  while (!isEnd) {
    // 1. The next item, if any, and whether it has a tile.
    bool hasTile = false;
    if (isElected) {
      int item = atomicAdd(arguments.work.counter, 1);
      isEnd = item >= numItems;
      if (!isEnd) {
        walk.start(arguments, item, Config::kTileQ, Program::kHasMask);
        hasTile = advance();
      }
      queue.publish(rest.work, isEnd ? WorkQueue::kEnd : item * 2 + hasTile);
    }
    isEnd = __shfl_sync(0xffffffffu, isEnd, 0);
    hasTile = __shfl_sync(0xffffffffu, hasTile, 0);
    if (!hasTile && !isEnd)
      continue;
    // 2. Its plans, or that nothing is left.
    bool isFirst = true;
    do {
      TilePlan &plan = rest.plan[ring.slot];
      rest.planEmpty[ring.slot].wait(ring.parity ^ 1);
      if (isElected) {
        int count = 0;
        for (; hasTile && count < TilePlan::kMostTiles; ++count) {
          // The classes are only whether the tile is partial until its lane looks them up below.
          plan.tiles[count] = {walk.walk.tile, walk.walk.words, /*classes=*/walk.walk.isPartial, /*isLast=*/false,
                               walk.walk.isLastPart};
          plan.heads[count] = walk.head;
          hasTile = advance();
        }
        plan.count = count;
        plan.isFirst = isFirst;
        plan.isLast = !hasTile;
        plan.item = walk.item;
      }
      __syncwarp();
      hasTile = __shfl_sync(0xffffffffu, hasTile, 0);
      if (lane < plan.count) {
        TileMessage &tile = plan.tiles[lane];
        tile.classes = walk.walk.classesOf(arguments.mask.classes, /*isPartial=*/tile.classes, tile.words);
        tile.isLast = !hasTile && lane == plan.count - 1;
        if constexpr (Shared::kSumsDQ)
          plan.turns[lane] = turnInSums(arguments.querySums.mask, plan.item.b * arguments.qHeads + plan.heads[lane],
                                        tile.tile, plan.item.row);
      }
      __syncwarp();
      rest.planFull[ring.slot].arriveAsWarp();
      ring.advance();
      isFirst = false;
    } while (hasTile);
    // 3. What is taken too early might have been another block's.
    if (!isEnd) {
      rest.itemWanted.wait(wantedParity);
      wantedParity ^= 1;
    }
  }
}

/// The producer: one warp, of which one lane issues every copy.
template <class Config>
__device__ __forceinline__ void produceBackwardKV(const BackwardKVShared<Config> &shared,
                                                  const BackwardArguments &arguments, const BackwardTensorMaps &maps) {
  using Shared = BackwardKVShared<Config>;
  constexpr int kNoticeInTiles = 2; // how early the next item is taken
  auto &rest = *shared.rest;
  bool isElected = isElectedLane();
  RingPosition<Config::kStages> ring;
  RingPosition<Shared::kPlans> planRing;
  uint32 kvParity = 0;
  while (true) {
    rest.planFull[planRing.slot].wait(planRing.parity);
    const TilePlan &plan = rest.plan[planRing.slot];
    const WorkItem &item = plan.item;
    int count = plan.count;
    if (count == 0)
      return;
    if (plan.isFirst) {
      rest.kvEmpty.wait(kvParity ^ 1);
      kvParity ^= 1;
      if (isElected) {
        rest.kvFull.arriveExpecting(Shared::kKBytes + Shared::kVBytes);
        copyPanels<Shared::kPanels, Shared::kKVPanelBytes>(maps.k, rest.kvFull, shared.k(), item.row * Config::kTileKV,
                                                           item.h, item.b, CacheHint::EvictFirst);
        copyPanels<Shared::kVPanels, Shared::kKVPanelBytes>(maps.v, rest.kvFull, shared.v(), item.row * Config::kTileKV,
                                                            item.h, item.b, CacheHint::EvictFirst);
      }
    }
    for (int i = 0; i < count; ++i, ring.advance()) {
      int head = plan.heads[i], row = plan.tiles[i].tile * Config::kTileQ;
      rest.qEmpty[ring.slot].wait(ring.parity ^ 1);
      if (isElected) {
        if (plan.isLast && i == max(count - kNoticeInTiles, 0))
          rest.itemWanted.arrive();
        SharedBarrier &full = rest.qFull[ring.slot];
        rest.message[ring.slot] = plan.tiles[i];
        rest.head[ring.slot] = head;
        full.arriveExpecting(Shared::kQBytes + Shared::kRowBytes);
        copyPanels<Shared::kPanels, Shared::kQPanelBytes>(maps.q, full, shared.q(ring.slot), row, head, item.b,
                                                          CacheHint::EvictLast);
        if (Config::kHasSoftmax)
          copyBytes(rest.lseLog2[ring.slot], rowSlice(arguments.lseLog2, item.b, head) + row, Shared::kRowBytes, full);
      }
      rest.dOEmpty[ring.slot].wait(ring.parity ^ 1);
      if (isElected) {
        SharedBarrier &full = rest.dOFull[ring.slot];
        full.arriveExpecting(Shared::kDOBytes + Shared::kRowBytes);
        copyPanels<Shared::kVPanels, Shared::kQPanelBytes>(maps.dO, full, shared.dO(ring.slot), row, head, item.b,
                                                           CacheHint::EvictLast);
        if (Config::kHasSoftmax)
          copyBytes(rest.delta[ring.slot], rowSlice(arguments.delta, item.b, head) + row, Shared::kRowBytes, full);
      }
    }
    __syncwarp();
    rest.planEmpty[planRing.slot].arriveAsWarp();
    planRing.advance();
  }
}

} // namespace cpflex::kernels
