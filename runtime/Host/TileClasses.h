// What the mask says about the tiles of 128 rows by 128 keys that CPU attention works in, whatever tiles the BlockMask
// has, and the global coordinates of what lies in them.
#pragma once

#include "runtime/contract/Attention.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// Finds the affine piece of a local row.
class PositionIndex {
public:
  /// An empty map stands for the identity of that length. The map is copied.
  PositionIndex(const PositionMap &map, int64_t length);

  /// Calls visit(localBegin, count, position, step) for the parts of local rows [begin, end) that lie in one piece
  /// each, in order.
  template <typename Visitor> void forEachPiece(int64_t begin, int64_t end, Visitor visit) const {
    for (size_t i = pieceOf(begin); begin < end; ++i) {
      const AffinePiece &piece = pieces_[i];
      int64_t stop = std::min(end, starts_[i] + piece.count);
      if (stop <= begin)
        continue;
      visit(begin, stop - begin, piece.begin + (begin - starts_[i]) * piece.step, piece.step);
      begin = stop;
    }
  }

private:
  size_t pieceOf(int64_t local) const;

  std::vector<AffinePiece> pieces_;
  std::vector<int64_t> starts_; ///< local row at which each piece begins
};

/// A rectangle of local rows and keys.
struct TileArea {
  Range q, kv;
};

/// Where the allowed pairs of a tile lie, by stripes of rows and of columns: what lies outside needs no arithmetic.
struct TileExtent {
  static constexpr int kNumStripes = 4;

  int stripeSize = 0;         ///< rows (or columns) of a stripe; stripe i starts at i * stripeSize
  Range columns[kNumStripes]; ///< the columns that the rows of a stripe use
  Range rows[kNumStripes];    ///< the rows that use the columns of a stripe

  /// All pairs of numRows x numColumns, in one stripe.
  static TileExtent whole(int64_t numRows, int64_t numColumns);
  /// The rows (columns) of stripe i of a tile that has `count` of them.
  Range stripe(int i, int64_t count) const {
    return intersection({int64_t(i) * stripeSize, int64_t(i + 1) * stripeSize}, {0, count});
  }
};

/// Answers questions about the tiles of one problem. Read-only once built, so shared by threads; borrows the problem.
class TileClasses {
public:
  explicit TileClasses(const AttentionProblem &problem);

  int64_t numQTiles() const { return ceilDivide(problem_.qLen, tileSize); }
  int64_t numKVTiles() const { return ceilDivide(problem_.kvLen, tileSize); }
  TileArea area(int64_t qTile, int64_t kvTile) const;

  /// The number of different row sets; every (b, h) uses one.
  int64_t numRowSets() const { return problem_.mask ? int64_t(problem_.mask->rowSets.size()) : 1; }
  int64_t rowSetOf(int64_t b, int64_t h) const {
    return problem_.mask ? problem_.mask->rowSetOf[b * problem_.mask->heads + h] : 0;
  }

  /// Writes the class of each of the numKVTiles() tiles of one row of tiles. `scratch` holds as many elements.
  void classifyRow(int64_t rowSet, int64_t qTile, TileClass *classes, int32_t *scratch) const;

  /// Writes 1 or 0 for each pair of a tile to allowed[i * tileSize + j] and where the ones are to `extent`; returns
  /// whether there are any.
  bool fillMask(int64_t b, int64_t h, TileArea area, uint8_t *allowed, TileExtent &extent) const;

  /// Calls visit(coordinates, row, column) for the parts of the area that are affine in both directions; row and column
  /// count from the area's corner, b and h are local.
  template <typename Visitor> void forEachPiece(int64_t b, int64_t h, TileArea area, Visitor visit) const {
    qIndex_.forEachPiece(area.q.begin, area.q.end, [&](int64_t q, int64_t qCount, int64_t qBegin, int64_t qStep) {
      kvIndex_.forEachPiece(area.kv.begin, area.kv.end,
                            [&](int64_t kv, int64_t kvCount, int64_t kvBegin, int64_t kvStep) {
                              visit(TileCoordinates{b + problem_.batchOffset, h + problem_.headOffset, qBegin, qCount,
                                                    qStep, kvBegin, kvCount, kvStep},
                                    q - area.q.begin, kv - area.kv.begin);
                            });
    });
  }

  static constexpr int64_t tileSize = 128;

private:
  /// The function that decides about the pairs of a partial run.
  EvaluateTileFunction functionOf(const TileRun &run) const;

  const AttentionProblem &problem_;
  PositionIndex qIndex_, kvIndex_;
};

} // namespace cpflex
