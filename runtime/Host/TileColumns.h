// The tiles of a problem by column: for each row set and each tile of keys, the tiles of rows that see it. The
// transpose of the mask, which backward walks.
#pragma once

#include "runtime/Host/TileClasses.h"
#include "runtime/Host/Workspace.h"

namespace cpflex {

/// One tile of rows in a column of tiles.
struct ColumnTile {
  int32_t qTile : 31;
  uint32_t isPartial : 1;
};

/// Column lists of every row set, in memory of a workspace; rows ascend in a column.
class TileColumns {
public:
  /// Takes the memory; `problem` has passed checkProblem. Without a mask nothing is stored: every tile is full.
  TileColumns(const AttentionProblem &problem, WorkspaceCursor &cursor);

  /// Fills the lists. `classes` and `coverage` are scratch of numKVTiles elements.
  void build(const TileClasses &tileClasses, TileClass *classes, int32_t *coverage);

  int64_t numTiles(int64_t rowSet, int64_t kvTile) const {
    return begins_ ? begins_[rowSet * (numKVTiles_ + 1) + kvTile + 1] - begins_[rowSet * (numKVTiles_ + 1) + kvTile]
                   : numQTiles_;
  }
  ColumnTile tile(int64_t rowSet, int64_t kvTile, int64_t index) const {
    return begins_ ? tiles_[begins_[rowSet * (numKVTiles_ + 1) + kvTile] + index] : ColumnTile{int32_t(index), 0};
  }

private:
  int64_t numQTiles_, numKVTiles_, numRowSets_;
  int64_t *begins_ = nullptr; ///< [row set][numKVTiles + 1], indices of tiles_
  ColumnTile *tiles_ = nullptr;
};

} // namespace cpflex
