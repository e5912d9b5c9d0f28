// Implements TileClasses: coverage of working tiles by the runs of a BlockMask, and the mask of one working tile.
#include "runtime/Host/TileClasses.h"

#include <algorithm>
#include <cstring>

namespace cpflex {

PositionIndex::PositionIndex(const PositionMap &map, int64_t length)
    : pieces_(map.pieces.empty() ? PositionMap::identity(length).pieces : map.pieces) {
  starts_.reserve(pieces_.size());
  int64_t start = 0;
  for (const AffinePiece &piece : pieces_) {
    starts_.push_back(start);
    start += piece.count;
  }
}

size_t PositionIndex::pieceOf(int64_t local) const {
  return size_t(std::upper_bound(starts_.begin(), starts_.end(), local) - starts_.begin()) - 1;
}

TileClasses::TileClasses(const AttentionProblem &problem)
    : problem_(problem), qIndex_(problem.qPositions, problem.qLen), kvIndex_(problem.kvPositions, problem.kvLen) {}

TileArea TileClasses::area(int64_t qTile, int64_t kvTile) const {
  return {{qTile * tileSize, std::min((qTile + 1) * tileSize, problem_.qLen)},
          {kvTile * tileSize, std::min((kvTile + 1) * tileSize, problem_.kvLen)}};
}

void TileClasses::classifyRow(int64_t rowSet, int64_t qTile, TileClass *classes, int32_t *scratch) const {
  const int64_t numTiles = numKVTiles();
  if (!problem_.mask) {
    std::fill(classes, classes + numTiles, TileClass::Full);
    return;
  }
  // A working tile is full when full runs cover all its pairs, empty when no run touches it.
  const BlockMask &mask = *problem_.mask;
  const TileRows &rows = mask.rowSets[rowSet];
  const Range q = area(qTile, 0).q;
  std::fill(classes, classes + numTiles, TileClass::Empty);
  std::fill(scratch, scratch + numTiles, 0);
  for (int64_t maskRow = q.begin / mask.tileQ; maskRow * mask.tileQ < q.end; ++maskRow) {
    int64_t height = intersection(q, {maskRow * mask.tileQ, (maskRow + 1) * mask.tileQ}).size();
    for (int32_t i = rows.rowBegin[maskRow]; i < rows.rowBegin[maskRow + 1]; ++i) {
      const TileRun &run = rows.runs[i];
      Range keys = {run.begin * mask.tileKV, std::min(run.end * mask.tileKV, mask.kvLen)};
      for (int64_t tile = keys.begin / tileSize; tile * tileSize < keys.end; ++tile) {
        classes[tile] = TileClass::Partial;
        if (run.tileClass == TileClass::Full)
          scratch[tile] += int32_t(height * intersection(keys, {tile * tileSize, (tile + 1) * tileSize}).size());
      }
    }
  }
  for (int64_t tile = 0; tile < numTiles; ++tile)
    if (scratch[tile] == q.size() * area(qTile, tile).kv.size())
      classes[tile] = TileClass::Full;
}

bool TileClasses::fillMask(int64_t b, int64_t h, TileArea area, uint8_t *allowed) const {
  const BlockMask &mask = *problem_.mask;
  const TileRows &rows = mask.rows(b, h);
  for (int64_t i = 0; i < area.q.size(); ++i)
    std::memset(allowed + i * tileSize, 0, area.kv.size());
  for (int64_t maskRow = area.q.begin / mask.tileQ; maskRow * mask.tileQ < area.q.end; ++maskRow) {
    Range q = intersection(area.q, {maskRow * mask.tileQ, (maskRow + 1) * mask.tileQ});
    auto first = rows.runs.begin() + rows.rowBegin[maskRow];
    auto last = rows.runs.begin() + rows.rowBegin[maskRow + 1];
    auto run = std::partition_point(first, last, [&](const TileRun &r) { return r.end * mask.tileKV <= area.kv.begin; });
    for (; run != last && run->begin * mask.tileKV < area.kv.end; ++run) {
      Range kv = intersection(area.kv, {run->begin * mask.tileKV, run->end * mask.tileKV});
      uint8_t *corner = allowed + (q.begin - area.q.begin) * tileSize + (kv.begin - area.kv.begin);
      if (run->tileClass == TileClass::Full) {
        for (int64_t i = 0; i < q.size(); ++i)
          std::memset(corner + i * tileSize, 1, kv.size());
        continue;
      }
      forEachPiece(b, h, {q, kv}, [&](const TileCoordinates &coordinates, int64_t row, int64_t column) {
        problem_.functions->evaluateTile(problem_.bindings, &coordinates, corner + row * tileSize + column, tileSize);
      });
    }
  }
  uint8_t any = 0;
  for (int64_t i = 0; i < area.q.size(); ++i)
    for (int64_t j = 0; j < area.kv.size(); ++j)
      any |= allowed[i * tileSize + j];
  return any != 0;
}

} // namespace cpflex
