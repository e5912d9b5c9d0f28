// The kernel that decides the pairs of partial tiles once per mask, for all batch rows and heads that see the same: it
// fills MaskArgument::words and classes for a kernel that has the same tiles.
#pragma once

#include "runtime/kernels/tiles.cuh"

namespace cpflex::kernels {

/// Grid: (rows of kernel tiles, any number of the `numSets` sets of words); a warp per 16 rows of a tile. Set s is
/// filled as (b, h) pair pairOf[s] sees the mask.
template <class Config, class Program, TileAxes kAxes, class Arguments>
__device__ __forceinline__ void fillMaskWords(const Arguments &arguments, const typename Program::Captures &captures,
                                              const int *pairOf, int numSets) {
  constexpr bool kRowsAreQ = kAxes == TileAxes::RowsAreQ;
  constexpr int kRows = kRowsAreQ ? Config::kTileQ : Config::kTileKV;
  constexpr int kColumns = kRowsAreQ ? Config::kTileKV : Config::kTileQ;
  constexpr int kWarps = kRows / 16, kWarpsPerConsumer = kConsumerRows / 16;
  static_assert(kWarps % kWarpsPerConsumer == 0 && kRows <= 4 * kConsumerRows);
  __shared__ unsigned char warpClasses[kWarps];
  const MaskArgument &mask = arguments.mask;
  int row = blockIdx.x, warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, firstRow = 16 * warp;
  int rowLength = kRowsAreQ ? arguments.qLen : arguments.kvLen;
  int columnLength = kRowsAreQ ? arguments.kvLen : arguments.qLen;
  const PositionArgument &rowPositions = kRowsAreQ ? arguments.qPositions : arguments.kvPositions;
  const PositionArgument &columnPositions = kRowsAreQ ? arguments.kvPositions : arguments.qPositions;
  TilePositions<Config::kPositions, kRows> rows(rowPositions, row, rowLength);
  for (int set = blockIdx.y; set < numSets; set += gridDim.y) {
    int pair = __ldg(pairOf + set);
    int b = pair / arguments.qHeads + arguments.batchOffset, h = pair % arguments.qHeads + arguments.headOffset;
    TileWalk walk;
    walk.start(mask, row, ceilDivide(rowLength, kRows), pair, ceilDivide(columnLength, kColumns), true);
    while (walk.next()) {
      if (!walk.isPartial)
        continue;
      TilePositions<Config::kPositions, kColumns> columns(columnPositions, walk.tile, columnLength);
      uint32 keep[2];
      keepWords<Program, kAxes, kColumns>(keep, captures, b, h, rows, firstRow, columns);
      reinterpret_cast<uint2 *>(mask.words)[(long long)walk.words * (kWarps * kWarpSize) + threadIdx.x] =
          make_uint2(keep[0], keep[1]);

      uint32 inside = bitsBelowColumn(min(columns.last + 1, kColumns));
      bool hasSome = false, hasAll = true;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (firstRow + lane / 4 + 8 * half <= rows.last) {
          hasSome |= (keep[half] & inside) != 0u;
          hasAll &= (keep[half] & inside) == inside;
        }
      hasSome = __any_sync(0xffffffffu, hasSome);
      hasAll = __all_sync(0xffffffffu, hasAll);
      __syncthreads(); // the classes of the tile before have been read
      if (lane == 0)
        warpClasses[warp] = !hasSome ? kEmptyTile : hasAll ? kFullTile : kPartialTile;
      __syncthreads();
      if (threadIdx.x == 0) {
        uint32 classes = 0;
        for (int consumer = 0; consumer < kWarps / kWarpsPerConsumer; ++consumer) {
          // Warps of which no row lies inside the tensor go along with any other.
          int joint = warpClasses[consumer * kWarpsPerConsumer];
          for (int i = 1; i < kWarpsPerConsumer; ++i) {
            bool hasRows = (consumer * kWarpsPerConsumer + i) * 16 <= rows.last;
            if (hasRows && warpClasses[consumer * kWarpsPerConsumer + i] != joint)
              joint = kPartialTile;
          }
          classes |= joint << 2 * consumer;
        }
        mask.classes[walk.words] = static_cast<unsigned char>(classes);
      }
    }
  }
}

} // namespace cpflex::kernels
