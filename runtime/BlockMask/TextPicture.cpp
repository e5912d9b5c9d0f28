// Draws masks with characters, two per cell so that cells look square.
#include "runtime/BlockMask/BlockMaskPicture.h"
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
    out += isLabelled ? fmt::format("{:>{}} │ ", token, labelWidth) : fmt::format("{:>{}} │ ", "", labelWidth);
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
  PicturePanels panels = panelsOf(mask, options);
  for (const PicturePanel &panel : panels.panels) {
    if (!panel.title.empty())
      out += panel.title + "\n";
    appendCells(mask, panel.grid, out);
    out += fmt::format("{} full  {} partial  {} empty   {}\n", textOf(CellClass::Full), textOf(CellClass::Partial),
                       textOf(CellClass::Empty), describeCells(mask, panel.grid));
    out += panel.statistics + "\n";
  }
  return panels.leftOut.empty() ? out : out + panels.leftOut + "\n";
}

StatusOr<MaskDifference> drawDifferenceText(const BlockMask &left, const BlockMask &right,
                                            const PictureOptions &options) {
  StatusOr<PicturePanels> panels = differencePanelsOf(left, right, options);
  if (!panels)
    return panels.status();
  MaskDifference result;
  result.differingTiles = panels->differingTiles;
  if (!options.title.empty())
    result.picture += options.title + "\n";
  for (const PicturePanel &panel : panels->panels) {
    if (!panel.title.empty())
      result.picture += panel.title + "\n";
    appendCells(left, panel.grid, result.picture);
    result.picture += fmt::format("{} differs  {} same   {}\n{}\n", textOf(CellClass::Different),
                                  textOf(CellClass::Empty), describeCells(left, panel.grid), panel.statistics);
  }
  if (!panels->leftOut.empty())
    result.picture += panels->leftOut + "\n";
  return result;
}

} // namespace cpflex
