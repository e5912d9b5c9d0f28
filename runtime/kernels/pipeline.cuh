// The hand-over of work and tiles from the producer warpgroup to the consumers in the wgmma kernels.
#pragma once

#include "runtime/kernels/hopper.cuh"
#include "runtime/kernels/tiles.cuh"

namespace cpflex::kernels {

/// Swizzled panels repeat every 1024 bytes.
constexpr int kSharedAlignment = 1024;

/// Dynamic shared memory from its first aligned byte on.
__device__ __forceinline__ unsigned char *alignedSharedMemory() {
  extern __shared__ unsigned char dynamicShared[];
  uint32 misalignment = sharedAddress(dynamicShared) % kSharedAlignment;
  return dynamicShared + (kSharedAlignment - misalignment) % kSharedAlignment;
}

/// Registers per thread of the warpgroups, of the 512 that a processor has per 128 threads. Two consumers: 56 + 2 *
/// 224, or 24 + 2 * 240 where they hold two wide accumulators (the warps beside them then spill); three:
/// 32 + 3 * 160.
template <int kConsumers, bool kHoldsTwo> constexpr int kProducerRegisters = kConsumers == 3 ? 32 : kHoldsTwo ? 24 : 56;
template <int kConsumers, bool kHoldsTwo>
constexpr int kConsumerRegisters = kConsumers == 3 ? 160
                                   : kHoldsTwo     ? 240
                                                   : 224;

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

/// What consumers are told of the tile in a slot, so that one warp alone walks the mask.
struct alignas(16) TileMessage {
  int tile, words; ///< as in TileWalk
  uint32 classes;
  bool isLast; ///< of the item's tiles
  bool isLastPart;

  template <class Walk> static __device__ __forceinline__ TileMessage of(const Walk &walk) {
    return {walk.tile, walk.words, walk.classes, false, walk.isLastPart};
  }
  /// Of the 64 rows of one consumer: whether no pair attends, and whether some pair does not.
  __device__ __forceinline__ bool isEmpty(int consumer) const { return classOf(consumer) == kEmptyTile; }
  __device__ __forceinline__ bool isPartial(int consumer) const { return classOf(consumer) != kFullTile; }
  __device__ __forceinline__ int classOf(int consumer) const { return classes >> 2 * consumer & 3; }
};

/// How consumers learn which item is next, and whether it has any tile: a ring of two, so that copies
/// run ahead.
struct WorkQueue {
  static constexpr int kSlots = 2;
  static constexpr int kEnd = -1;
  struct Shared {
    SharedBarrier full[kSlots], empty[kSlots];
    int message[kSlots]; ///< item * 2 + (1 when it has a tile), or kEnd
  };
  RingPosition<kSlots> ring;
  bool hasTile; ///< of the item taken last

  static __device__ __forceinline__ void initialize(Shared &shared, int consumerWarps) {
    for (int slot = 0; slot < kSlots; ++slot) {
      shared.full[slot].initialize(1);
      shared.empty[slot].initializeForWarps(consumerWarps);
    }
  }
  /// Whoever takes the items: passes one on.
  __device__ __forceinline__ void publish(Shared &shared, int message) {
    shared.empty[ring.slot].wait(ring.parity ^ 1);
    shared.message[ring.slot] = message;
    shared.full[ring.slot].arrive();
    ring.advance();
  }
  /// Consumer: the next item; negative when none is left.
  __device__ __forceinline__ int take(Shared &shared) {
    shared.full[ring.slot].wait(ring.parity);
    int message = shared.message[ring.slot];
    __syncwarp();
    shared.empty[ring.slot].arriveAsWarp();
    ring.advance();
    hasTile = message & 1;
    return message >> 1;
  }
};

/// Copies the rows of one box, panel after panel.
template <int kPanels, int kPanelBytes>
__device__ __forceinline__ void copyPanels(const TensorMapArgument &map, SharedBarrier &barrier,
                                           unsigned char *destination, int row, int head, int batch, CacheHint hint) {
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel)
    copyBox(map, barrier, destination + panel * kPanelBytes, panel * 64, row, head, batch, hint);
}

/// The descriptor step to columns 16 * step of a K-major operand.
template <int kPanelBytes> constexpr __host__ __device__ uint32 panelStep(int step) {
  return step / 4 * descriptorStep(kPanelBytes) + step % 4 * descriptorStep(32);
}

/// D = A B^T over kDepth columns, with both operands in panels of 64 columns; one group of products.
template <class Product, int kDepth, int kPanelBytesOfA, int kPanelBytesOfB, int kCount>
__device__ __forceinline__ void issueTileProduct(float (&d)[kCount], uint32 a, uint32 b) {
#pragma unroll
  for (int step = 0; step < ceilDivide(kDepth, 16); ++step)
    Product::template fromShared<Major::K, Major::K>(d, a + panelStep<kPanelBytesOfA>(step),
                                                     b + panelStep<kPanelBytesOfB>(step), step != 0);
  productCommit();
}

/// D += A B with A in registers and the rows of B in a panel's order; one group of products.
template <class Product, int kRegisters, int kCount>
__device__ __forceinline__ void issueSumProduct(float (&d)[kCount], const uint32 (&a)[kRegisters], uint32 b) {
#pragma unroll
  for (int step = 0; step < kRegisters / 4; ++step)
    Product::template fromRegisters<Major::MN>(d, a[4 * step], a[4 * step + 1], a[4 * step + 2], a[4 * step + 3],
                                               b + step * descriptorStep(16 * 128), 1);
  productCommit();
}

} // namespace cpflex::kernels
