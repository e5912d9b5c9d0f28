// Implements TileColumns by counting and then filling: two passes over the rows of tiles.
#include "runtime/Host/TileColumns.h"

#include <algorithm>

namespace cpflex {

/// At least the number of working tiles that the runs of a row set touch.
static int64_t tileCountBound(const BlockMask &mask, const TileRows &rows) {
  constexpr int64_t kTile = TileClasses::tileSize;
  int64_t bound = 0;
  for (int64_t row = 0; row < mask.numQTiles(); ++row) {
    const int64_t qEnd = std::min((row + 1) * mask.tileQ, mask.qLen);
    const int64_t height = ceilDivide(qEnd, kTile) - row * mask.tileQ / kTile;
    for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i) {
      const int64_t end = std::min(rows.runs[i].end * mask.tileKV, mask.kvLen);
      bound += height * (ceilDivide(end, kTile) - rows.runs[i].begin * mask.tileKV / kTile);
    }
  }
  return std::min(bound, ceilDivide(mask.qLen, kTile) * ceilDivide(mask.kvLen, kTile));
}

TileColumns::TileColumns(const AttentionProblem &problem, WorkspaceCursor &cursor)
    : numQTiles_(ceilDivide(problem.qLen, TileClasses::tileSize)),
      numKVTiles_(ceilDivide(problem.kvLen, TileClasses::tileSize)),
      numRowSets_(problem.mask ? int64_t(problem.mask->rowSets.size()) : 0) {
  if (!problem.mask)
    return;
  int64_t bound = 0;
  for (const TileRows &rows : problem.mask->rowSets)
    bound += tileCountBound(*problem.mask, rows);
  begins_ = cursor.take<int64_t>(numRowSets_ * (numKVTiles_ + 1));
  tiles_ = cursor.take<ColumnTile>(bound);
}

void TileColumns::build(const TileClasses &tileClasses, TileClass *classes, int32_t *coverage) {
  if (!begins_)
    return;
  int64_t next = 0;
  for (int64_t rowSet = 0; rowSet < numRowSets_; ++rowSet) {
    int64_t *begins = begins_ + rowSet * (numKVTiles_ + 1);
    auto forEachTile = [&](auto visit) {
      for (int64_t qTile = 0; qTile < numQTiles_; ++qTile) {
        tileClasses.classifyRow(rowSet, qTile, classes, coverage);
        for (int64_t kvTile = 0; kvTile < numKVTiles_; ++kvTile)
          if (classes[kvTile] != TileClass::Empty)
            visit(qTile, kvTile, classes[kvTile]);
      }
    };
    // 1. begins[kvTile] = the tiles of column kvTile.
    std::fill(begins, begins + numKVTiles_ + 1, 0);
    forEachTile([&](int64_t, int64_t kvTile, TileClass) { ++begins[kvTile]; });
    // 2. begins[kvTile] = where the column starts.
    for (int64_t kvTile = 0; kvTile <= numKVTiles_; ++kvTile) {
      const int64_t count = begins[kvTile];
      begins[kvTile] = next;
      next += count;
    }
    // 3. Filling moves each start to the column's end, the start of the next one.
    forEachTile([&](int64_t qTile, int64_t kvTile, TileClass tileClass) {
      tiles_[begins[kvTile]++] = {int32_t(qTile), tileClass == TileClass::Partial};
    });
    for (int64_t kvTile = numKVTiles_; kvTile > 0; --kvTile)
      begins[kvTile] = begins[kvTile - 1];
    begins[0] = rowSet == 0 ? 0 : begins_[rowSet * (numKVTiles_ + 1) - 1];
  }
}

} // namespace cpflex
