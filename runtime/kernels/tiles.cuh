// Which tiles a block visits and which of a tile's pairs attend: taking work, walking the runs of a row of tiles, the
// positions of rows, and the bits of a partial tile. Shared by every kernel.
//
// Accumulators of both kernel families have one layout: a warp owns 16 rows; lane l holds, in rows l/4 and l/4 + 8, the
// columns 8g + 2(l%4) + {0, 1} of every group g of 8 columns, as registers 4g + {0, 1} (row l/4) and 4g + {2, 3}.
#pragma once

#include "runtime/contract/KernelArguments.h"
#include "runtime/kernels/device.cuh"

namespace cpflex::kernels {

// TileClass, and the two bits of MaskArgument::classes.
constexpr unsigned char kEmptyTile = 0, kFullTile = 1, kPartialTile = 2;

/// The slice [s, d] of local batch row b and head h, of 2-byte elements.
__device__ __forceinline__ const unsigned short *elementSlice(const TensorArgument &tensor, int b, int h) {
  return static_cast<const unsigned short *>(tensor.data) + b * tensor.strideB + h * tensor.strideH;
}
/// The slice to write, of f32 or 2-byte elements.
template <bool kIsF32> __device__ __forceinline__ void *outputSlice(const TensorArgument &tensor, int b, int h) {
  return static_cast<unsigned char *>(tensor.data) +
         (b * tensor.strideB + h * tensor.strideH) * (kIsF32 ? 4 : kElementBytes);
}

/// The values of local batch row b and head h.
__device__ __forceinline__ const float *rowSlice(const RowArgument &array, int b, int h) {
  return array.data + b * array.strideB + h * array.strideH;
}

/// Indices [begin, end).
struct Range {
  int begin, end;
};

/// One row of kernel tiles of one (batch, head).
struct WorkItem {
  int row, b, h;
};

__device__ __forceinline__ int numWorkItems(const WorkArgument &work, int numPairs) { return work.numRows * numPairs; }

/// The item with number `item`; see WorkArgument for the order.
__device__ __forceinline__ WorkItem workItem(const WorkArgument &work, int item, int batch, int heads) {
  int numPairs = batch * heads;
  int group = item / (work.groupHeads * work.numRows);
  int firstPair = group * work.groupHeads;
  int pairsInGroup = min(work.groupHeads, numPairs - firstPair);
  int rest = item - firstPair * work.numRows;
  int position = rest / pairsInGroup;
  int pair = firstPair + rest - position * pairsInGroup;
  int row = work.rowOrder ? __ldg(work.rowOrder + position) : work.numRows - 1 - position;
  return {row, pair / heads, pair % heads};
}

/// The same with rows in ascending order, whatever rowOrder says.
__device__ __forceinline__ WorkItem ascendingWorkItem(WorkArgument work, int item, int batch, int heads) {
  work.rowOrder = nullptr;
  WorkItem result = workItem(work, item, batch, heads);
  result.row = work.numRows - 1 - result.row;
  return result;
}

/// Walks the tiles of one row, ascending unless asked. The next run is loaded while the current one is walked. Plain
/// data, so that a thread short of registers can keep it in shared memory.
template <bool kMayDescend> struct DirectedTileWalk {
  static constexpr uint32 kAllRows = 0x55u; ///< times a class: that class for all rows
  int tile;                                 ///< current tile, in kernel tiles
  bool isPartial;                           ///< whether the mask decides pair by pair
  bool isLastPart;                          ///< as RunArgument says, of kernel tiles
  int words;                                ///< its number in MaskArgument::words; negative: none
  uint32 classes;                           ///< per 64 rows, as in MaskArgument::classes

  /// Stands before the first tile of row `row` of `numRows` of a (b, h). `numTiles` kernel tiles exist in the direction
  /// of the walk.
  __device__ __forceinline__ void start(const MaskArgument &mask, int row, int numRows, int pair, int numTiles,
                                        bool hasMask, bool descends = false) {
    numTiles_ = numTiles;
    ratio_ = mask.colTilesPerMaskTile;
    descends_ = kMayDescend && descends;
    tile = descends_ ? 0 : -1;
    end_ = 0;
    classes_ = mask.classes;
    if (mask.runs) {
      int rowSet = mask.rowSetOf ? __ldg(mask.rowSetOf + pair) : 0;
      const int *begin = mask.rowBegin + (long long)rowSet * (mask.numRows + 1) + row / mask.rowTilesPerMaskTile;
      next_ = mask.runs + __ldg(begin);
      last_ = mask.runs + __ldg(begin + 1);
      rowInMaskTile_ = row % mask.rowTilesPerMaskTile;
      isLastRow_ = rowInMaskTile_ == mask.rowTilesPerMaskTile - 1 || row == numRows - 1;
      wordsBase_ = classes_ ? __ldg(mask.wordsOf + pair) : 0;
      fetch();
    } else {
      next_ = last_ = nullptr;
      pendingBegin_ = 0;
      pendingEnd_ = numTiles;
      pendingIsPartial_ = hasMask;
      pendingIsLastPart_ = row == numRows - 1;
    }
  }

  /// Steps to the next tile; false after the last.
  __device__ __forceinline__ bool next() {
    if (!advance())
      return false;
    classes = classesOf(classes_, isPartial, words);
    return true;
  }
  /// What `classes` are of a tile with these `isPartial` and `words`.
  static __device__ __forceinline__ uint32 classesOf(const unsigned char *decided, bool isPartial, int words) {
    return words >= 0 ? __ldg(decided + words) : isPartial ? kAllRows * kPartialTile : kAllRows * kFullTile;
  }
  /// Steps like next(), but leaves `classes` alone, which are in memory.
  __device__ __forceinline__ bool advance() {
    if (kMayDescend && descends_ ? --tile < end_ : ++tile >= end_) {
      if (pendingBegin_ >= pendingEnd_)
        return false;
      tile = kMayDescend && descends_ ? pendingEnd_ - 1 : pendingBegin_;
      end_ = kMayDescend && descends_ ? pendingBegin_ : pendingEnd_;
      isPartial = pendingIsPartial_;
      isLastPart = pendingIsLastPart_;
      wordsOfTile0_ = pendingWordsOfTile0_;
      fetch();
    }
    words = isPartial && classes_ ? wordsOfTile0_ + tile : -1;
    return true;
  }
  const RunArgument *next_, *last_;
  int end_; ///< where the current run ends; its first tile in a descending walk
  int pendingBegin_, pendingEnd_, numTiles_, ratio_;
  const unsigned char *classes_;
  int wordsBase_, rowInMaskTile_;
  int wordsOfTile0_, pendingWordsOfTile0_; ///< the number that tile 0 would have in the run
  bool pendingIsPartial_, pendingIsLastPart_, isLastRow_, descends_;

  __device__ __forceinline__ void fetch() {
    pendingBegin_ = pendingEnd_ = 0;
    if (next_ == last_)
      return;
    const RunArgument *run = kMayDescend && descends_ ? --last_ : next_++;
    pendingBegin_ = __ldg(&run->begin) * ratio_;
    pendingEnd_ = min(__ldg(&run->end) * ratio_, numTiles_);
    pendingIsPartial_ = __ldg(&run->tileClass) == kPartialTile;
    pendingIsLastPart_ = isLastRow_ && __ldg(&run->isLastPart);
    if (classes_)
      pendingWordsOfTile0_ = wordsBase_ + __ldg(&run->words) +
                             rowInMaskTile_ * (__ldg(&run->end) * ratio_ - pendingBegin_) - pendingBegin_;
  }
};
using TileWalk = DirectedTileWalk<false>;

/// The global positions of the rows of one tile.
template <PositionMode kMode, int kTileSize> struct TilePositions {
  int begin, step, last; // last: highest row of the tensor, relative to the tile
  const int *rows;

  __device__ __forceinline__ TilePositions(const PositionArgument &positions, int tile, int length) {
    last = length - 1 - tile * kTileSize;
    begin = tile * kTileSize;
    step = 1;
    rows = nullptr;
    if constexpr (kMode == PositionMode::AffinePerTile) {
      begin = __ldg(&positions.tiles[tile].begin);
      step = __ldg(&positions.tiles[tile].step);
    } else if constexpr (kMode == PositionMode::Array) {
      rows = positions.rows + begin;
    }
  }

  /// The position of row i of the tile; beyond the tensor, that of its last row.
  __device__ __forceinline__ int at(int i) const {
    i = min(i, last);
    if constexpr (kMode == PositionMode::Identity)
      return begin + i;
    else if constexpr (kMode == PositionMode::AffinePerTile)
      return begin + step * i;
    else
      return __ldg(rows + i);
  }
};

/// Bits [0, n) of a keep word: those of this lane's columns that lie below `limit`.
__device__ __forceinline__ uint32 bitsBelowColumn(int limit) {
  int own = limit - 2 * static_cast<int>(threadIdx.x % 4);
  if (own <= 0)
    return 0u;
  int count = own / 8 * 2 + min(own % 8, 2);
  return count >= 32 ? ~0u : (1u << count) - 1u;
}

/// The bit of keep word `registerRow(i)` that belongs to accumulator register i.
constexpr __host__ __device__ int registerBit(int i) { return i / 4 * 2 + i % 2; }
/// 0 when register i belongs to row l/4, 1 when to row l/4 + 8.
constexpr __host__ __device__ int registerRow(int i) { return i / 2 % 2; }
/// The column of register i for the first lane of a quad.
constexpr __host__ __device__ int registerColumn(int i) { return i / 4 * 8 + i % 2; }

/// Where the accumulator's rows and columns lie in the attention matrix.
enum class TileAxes {
  RowsAreQ, ///< forward and dQ
  RowsAreKV ///< dK and dV work on transposed tiles
};

/// One keep word per accumulator row: bit registerBit(i) says whether the pair of register i attends.
/// `rows.at(firstRow)` is the warp's first row.
///
/// The warp decides row after row: each lane keeps a few columns for all 16 rows, so that what a mask loads by column
/// is loaded once and what it loads by row is the same for all lanes, and a vote gathers the 32 answers of a word. A
/// row's columns are laid out for this in four sets of kBits, one for each lane of a quad, padded to kSlot.
template <class Program, TileAxes kAxes, int kColumns, class Rows, class Columns>
__device__ __forceinline__ void keepWords(uint32 (&keep)[2], const typename Program::Captures &captures, int b, int h,
                                          const Rows &rows, int firstRow, const Columns &columns) {
  constexpr int kBits = kColumns / 4;
  constexpr int kSlot = kBits <= 8 ? 8 : kBits <= 16 ? 16 : 32;
  constexpr int kVotes = 4 * kSlot / kWarpSize;
  static_assert(kBits <= kSlot);
  int lane = threadIdx.x % kWarpSize, quad = lane / 4, laneInQuad = lane % 4;
  int column[kVotes];
#pragma unroll
  for (int vote = 0; vote < kVotes; ++vote) {
    int set = (vote * kWarpSize + lane) / kSlot, bit = lane % kSlot;
    column[vote] = columns.at(bit / 2 * 8 + 2 * set + bit % 2);
  }
  keep[0] = keep[1] = 0u;
#pragma unroll 2
  for (int row = 0; row < 8; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int rowPosition = rows.at(firstRow + row + 8 * half);
      uint32 votes[kVotes];
#pragma unroll
      for (int vote = 0; vote < kVotes; ++vote)
        votes[vote] = __ballot_sync(0xffffffffu, kAxes == TileAxes::RowsAreQ
                                                     ? Program::mask(captures, b, h, rowPosition, column[vote])
                                                     : Program::mask(captures, b, h, column[vote], rowPosition));
      uint32 word;
      if constexpr (kVotes == 4)
        word = laneInQuad < 2 ? (laneInQuad == 0 ? votes[0] : votes[1]) : (laneInQuad == 2 ? votes[2] : votes[3]);
      else if constexpr (kVotes == 2)
        word = (laneInQuad < 2 ? votes[0] : votes[1]) >> laneInQuad % 2 * kSlot;
      else
        word = votes[0] >> laneInQuad * kSlot;
      keep[half] = quad == row ? word : keep[half];
    }
  }
}

/// A thread's keep words of a tile as MaskArgument::words has them.
struct StoredWords {
  uint32 words[2];
  bool areThere;

  static __device__ __forceinline__ StoredWords none() { return {{0u, 0u}, false}; }
  /// Those of tile number `tile` (negative: none) for thread `thread` of `numThreads` of all consumers.
  static __device__ __forceinline__ StoredWords load(const MaskArgument &mask, int tile, int thread, int numThreads) {
    StoredWords stored = none();
    stored.areThere = tile >= 0;
    if (stored.areThere)
      asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];"
                   : "=r"(stored.words[0]), "=r"(stored.words[1])
                   : "l"(mask.words + ((long long)tile * numThreads + thread) * 2));
    return stored;
  }
};

/// The keep words of a tile, all ones for full tiles; returns whether they may hold a zero.
template <class Program, TileAxes kAxes, int kColumns, class Rows, class Columns>
__device__ __forceinline__ bool
tileKeepWords(uint32 (&keep)[2], bool isPartial, const typename Program::Captures &captures, int b, int h,
              const Rows &rows, int firstRow, const Columns &columns, const StoredWords &stored = StoredWords::none()) {
  keep[0] = keep[1] = ~0u;
  bool isMasked = isPartial || columns.last < kColumns - 1;
  if (isMasked) {
    if constexpr (Program::kHasMask)
      if (isPartial) {
        if (stored.areThere) {
          keep[0] = stored.words[0];
          keep[1] = stored.words[1];
        } else {
          keepWords<Program, kAxes, kColumns>(keep, captures, b, h, rows, firstRow, columns);
        }
      }
    uint32 inside = bitsBelowColumn(columns.last + 1);
    keep[0] &= inside;
    keep[1] &= inside;
  }
  return isMasked;
}

} // namespace cpflex::kernels
