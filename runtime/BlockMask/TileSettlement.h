// Is a tile that interval analysis leaves open empty, full or partial? Settles it exactly: by
// witnesses, by smaller tiles, at last by every point. Also counts the pairs of partial tiles.
#pragma once

#include "runtime/BlockMask/AxisPositions.h"
#include "runtime/BlockMask/IntervalEvaluator.h"
#include "runtime/BlockMask/LaneEvaluator.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// Both axes of a mask.
struct MaskPositions {
  AxisPositions q, kv;

  /// Global bounds of a non-empty local rectangle.
  PositionBounds bounds(Range rows, Range columns) const {
    auto [qLo, qHi] = q.bounds(rows);
    auto [kvLo, kvHi] = kv.bounds(columns);
    return {qLo, qHi, kvLo, kvHi};
  }
};

/// Which rows and columns of local tiles have a partner, filled by TileSettlement::count.
struct PartnerFlags {
  uint8_t *rows = nullptr;    ///< by local row
  uint8_t *columns = nullptr; ///< by local column
};

/// Settles tiles with one program. One object per thread.
class TileSettlement {
public:
  TileSettlement(const TapeProgram &program, const MaskPositions &positions)
      : positions_(positions), intervals_(program), points_(program) {}

  /// The class of a non-empty tile that classify() answered Partial for.
  TileClass settle(Range rows, Range columns);

  /// The number of allowed pairs of a tile; marks rows and columns that have one.
  int64_t count(Range rows, Range columns, const PartnerFlags &flags);

  IntervalEvaluator &intervals() { return intervals_; }
  int64_t pointsEvaluated() const { return pointsEvaluated_; }
  int64_t tilesEvaluated() const { return tilesEvaluated_; }

  /// classify() of a local tile, counted.
  TileClass classify(Range rows, Range columns) {
    ++tilesEvaluated_;
    return intervals_.classify(positions_.bounds(rows, columns));
  }

private:
  struct Tile {
    Range rows, columns;
    int64_t area() const { return rows.size() * columns.size(); }
  };
  /// What has been seen of a tile so far.
  struct Sight {
    bool hasTrue = false, hasFalse = false;
    bool isPartial() const { return hasTrue && hasFalse; }
    void add(TileClass tileClass) {
      hasTrue |= tileClass == TileClass::Full;
      hasFalse |= tileClass == TileClass::Empty;
    }
  };

  void lookAtCorners(const Tile &tile, Sight &sight);
  void lookAtPoints(const Tile &tile, Sight &sight);
  void split(const Tile &tile, Sight &sight);
  void evaluateRow(int64_t row, Range columns);

  const MaskPositions &positions_;
  IntervalEvaluator intervals_;
  LaneEvaluator points_;
  std::vector<Tile> open_;
  std::vector<uint8_t> row_;
  bool areColumnsFirst_ = false; ///< the axis by which split() begins
  int64_t pointsEvaluated_ = 0, tilesEvaluated_ = 0;
};

} // namespace cpflex
