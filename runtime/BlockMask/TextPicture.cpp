// Draws masks with characters, two per cell so that cells look square.
#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "runtime/BlockMask/CellGrid.h"
#include "runtime/BlockMask/PictureParts.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

namespace {

const char *textOf(CellClass cellClass) {
  switch (cellClass) {
  case CellClass::Empty: return "··";
  case CellClass::Full: return "██";
  case CellClass::Partial: return "▒▒";
  case CellClass::Different: return "><";
  }
  return "";
}

void appendCells(const BlockMask &mask, const CellGrid &grid, std::string &out) {
  int64_t lastToken = grid.lastRow * mask.tileQ;
  size_t labelWidth = fmt::formatted_size("{}", lastToken);
  size_t indent = labelWidth + 3;
  out += fmt::format("{:>{}}kv {} .. {}\n", "", indent, grid.firstColumn * mask.tileKV,
                     std::min(grid.lastColumn * mask.tileKV, mask.kvLen));
  for (int64_t row = 0; row < grid.numRows; ++row) {
    int64_t token = (grid.firstRow + row * grid.tilesPerRow) * mask.tileQ;
    bool isLabelled = row == 0 || row + 1 == grid.numRows || row % 8 == 0;
    out += isLabelled ? fmt::format("{:>{}} │ ", token, labelWidth)
                      : fmt::format("{:>{}} │ ", "", labelWidth);
    int64_t column = 0;
    for (const CellRun &run : grid.rows[row]) {
      for (; column < run.begin; ++column)
        out += textOf(CellClass::Empty);
      for (; column < run.end; ++column)
        out += textOf(run.cellClass);
    }
    for (; column < grid.numColumns; ++column)
      out += textOf(CellClass::Empty);
    out += '\n';
  }
}

} // namespace

std::string drawText(const BlockMask &mask, const PictureOptions &options) {
  std::string out;
  if (!options.title.empty())
    out += options.title + "\n";
  if (!hasPicture(mask, options))
    return out + describeAbsence(mask, options) + "\n";
  const TileRows &rows = mask.rows(options.batch, options.head);
  CellGrid grid = cellsOf(mask, rows, options);
  appendCells(mask, grid, out);
  out +=
      fmt::format("{} full  {} partial  {} empty   {}\n", textOf(CellClass::Full),
                  textOf(CellClass::Partial), textOf(CellClass::Empty), describeCells(mask, grid));
  out += describeTiles(mask, rows) + "\n";
  return out;
}

StatusOr<MaskDifference> drawDifferenceText(const BlockMask &left, const BlockMask &right,
                                            const PictureOptions &options) {
  CPFLEX_RETURN_IF_ERROR(verifySameShape(left, right, options));
  MaskDifference result;
  if (!options.title.empty())
    result.picture += options.title + "\n";
  TileRows rows = differenceOf(left, left.rows(options.batch, options.head),
                               right.rows(options.batch, options.head));
  result.differingTiles = countTiles(left, rows).partial;
  CellGrid grid = cellsOf(left, rows, options);
  markDifferent(grid);
  appendCells(left, grid, result.picture);
  result.picture +=
      fmt::format("{} differs  {} same   {}\n{} of {} tiles differ\n", textOf(CellClass::Different),
                  textOf(CellClass::Empty), describeCells(left, grid), result.differingTiles,
                  left.numQTiles() * left.numKVTiles());
  return result;
}

} // namespace cpflex
