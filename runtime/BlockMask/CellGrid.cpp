// Gathers runs of tiles into runs of cells.
#include "runtime/BlockMask/CellGrid.h"

#include <algorithm>

namespace cpflex {

namespace {

/// How much of each cell of one row of cells is covered by full tiles and by partial ones, in
/// tiles; sums over cells are kept as differences so that a long run costs the same as a short one.
class CellRow {
public:
  explicit CellRow(const CellGrid &grid)
      : grid_(grid), fullSteps_(grid.numColumns + 1), full_(grid.numColumns), isPartial_(grid.numColumns + 1),
        residual_(grid.numColumns), hasResidual_(grid.numColumns) {}

  void add(const TileRun &run) {
    int64_t begin = std::max<int64_t>(run.begin, grid_.firstColumn);
    int64_t end = std::min<int64_t>(run.end, grid_.lastColumn);
    if (begin >= end)
      return;
    begin -= grid_.firstColumn;
    end -= grid_.firstColumn;
    int64_t size = grid_.tilesPerColumn, first = begin / size, last = (end - 1) / size;
    if (run.tileClass == TileClass::Partial) {
      ++isPartial_[first];
      --isPartial_[last + 1];
      for (int64_t cell = first; cell <= last; ++cell) {
        bool isOther = hasResidual_[cell] && residual_[cell] != run.residual;
        residual_[cell] = isOther ? kMixedResiduals : run.residual;
        hasResidual_[cell] = true;
      }
      return;
    }
    if (first == last) {
      full_[first] += end - begin;
      return;
    }
    full_[first] += (first + 1) * size - begin;
    full_[last] += end - last * size;
    fullSteps_[first + 1] += size;
    fullSteps_[last] -= size;
  }

  std::vector<CellRun> toRuns(int64_t numTileRows) const {
    std::vector<CellRun> runs;
    int64_t full = 0, partial = 0;
    for (int64_t cell = 0; cell < grid_.numColumns; ++cell) {
      full += fullSteps_[cell];
      partial += isPartial_[cell];
      int64_t width =
          std::min(grid_.tilesPerColumn, grid_.lastColumn - grid_.firstColumn - cell * grid_.tilesPerColumn);
      int64_t covered = full + full_[cell];
      CellClass cellClass = CellClass::Empty;
      if (partial > 0)
        cellClass = CellClass::Partial;
      else if (covered == width * numTileRows)
        cellClass = CellClass::Full;
      else if (covered > 0)
        cellClass = CellClass::Partial;
      if (cellClass == CellClass::Empty)
        continue;
      int32_t at = static_cast<int32_t>(cell);
      if (!runs.empty() && runs.back().end == at && runs.back().cellClass == cellClass &&
          runs.back().residual == residual_[cell])
        runs.back().end = at + 1;
      else
        runs.push_back({at, at + 1, cellClass, residual_[cell]});
    }
    return runs;
  }

private:
  const CellGrid &grid_;
  std::vector<int64_t> fullSteps_, full_, isPartial_;
  std::vector<uint8_t> residual_;
  std::vector<bool> hasResidual_;
};

/// The tiles that a range of tokens touches; an empty range means all.
Range tilesOf(Range tokens, int64_t length, int64_t tile) {
  if (tokens.isEmpty())
    tokens = {0, length};
  tokens = intersection(tokens, {0, length});
  if (tokens.isEmpty())
    return {0, 0};
  return {tokens.begin / tile, ceilDivide(tokens.end, tile)};
}

} // namespace

CellGrid cellsOf(const BlockMask &mask, const TileRows &rows, const PictureOptions &options) {
  CellGrid grid;
  Range q = tilesOf(options.rows, mask.qLen, mask.tileQ);
  Range kv = tilesOf(options.columns, mask.kvLen, mask.tileKV);
  int64_t maxCells = std::max<int64_t>(options.maxCells, 1);
  grid.firstRow = q.begin;
  grid.lastRow = q.end;
  grid.firstColumn = kv.begin;
  grid.lastColumn = kv.end;
  grid.tilesPerRow = std::max<int64_t>(1, ceilDivide(q.size(), maxCells));
  grid.tilesPerColumn = std::max<int64_t>(1, ceilDivide(kv.size(), maxCells));
  grid.numRows = ceilDivide(q.size(), grid.tilesPerRow);
  grid.numColumns = ceilDivide(kv.size(), grid.tilesPerColumn);
  for (int64_t begin = q.begin; begin < q.end; begin += grid.tilesPerRow) {
    int64_t end = std::min(begin + grid.tilesPerRow, q.end);
    CellRow cells(grid);
    for (int32_t i = rows.rowBegin[begin]; i < rows.rowBegin[end]; ++i)
      cells.add(rows.runs[i]);
    grid.rows.push_back(cells.toRuns(end - begin));
  }
  return grid;
}

TileRows differenceOf(const BlockMask &mask, const TileRows &left, const TileRows &right) {
  TileRows result;
  result.rowBegin.push_back(0);
  for (int64_t row = 0; row < mask.numQTiles(); ++row) {
    int32_t i = left.rowBegin[row], j = right.rowBegin[row];
    int32_t leftEnd = left.rowBegin[row + 1], rightEnd = right.rowBegin[row + 1];
    int32_t rowStart = static_cast<int32_t>(result.runs.size());
    // Between two adjacent bounds of runs both sides are constant.
    int32_t at = 0, end = static_cast<int32_t>(mask.numKVTiles());
    while (at < end) {
      while (i < leftEnd && left.runs[i].end <= at)
        ++i;
      while (j < rightEnd && right.runs[j].end <= at)
        ++j;
      int32_t next = end;
      TileClass classes[2] = {TileClass::Empty, TileClass::Empty};
      auto look = [&](const TileRows &rows, int32_t k, int32_t last, TileClass &tileClass) {
        if (k >= last)
          return;
        const TileRun &run = rows.runs[k];
        if (run.begin <= at)
          tileClass = run.tileClass;
        next = std::min(next, run.begin <= at ? run.end : run.begin);
      };
      look(left, i, leftEnd, classes[0]);
      look(right, j, rightEnd, classes[1]);
      if (classes[0] != classes[1]) {
        bool isAdjacent = static_cast<int32_t>(result.runs.size()) > rowStart && result.runs.back().end == at;
        if (isAdjacent)
          result.runs.back().end = next;
        else
          result.runs.push_back({at, next, TileClass::Partial, 0});
      }
      at = next;
    }
    result.rowBegin.push_back(static_cast<int32_t>(result.runs.size()));
  }
  return result;
}

} // namespace cpflex
