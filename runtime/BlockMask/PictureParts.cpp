// Captions and checks shared by the text, SVG and PNG pictures.
#include "runtime/BlockMask/PictureParts.h"

#include "runtime/BlockMask/BlockMaskStatistics.h"

#include <fmt/format.h>

namespace cpflex {

namespace {

bool hasHead(const BlockMask &mask, const PictureOptions &options) {
  return options.batch >= 0 && options.batch < mask.batch && options.head >= 0 &&
         options.head < mask.heads;
}

} // namespace

bool hasPicture(const BlockMask &mask, const PictureOptions &options) {
  auto isOutside = [](Range range, int64_t length) {
    return !range.isEmpty() && intersection(range, {0, length}).isEmpty();
  };
  return hasHead(mask, options) && mask.qLen > 0 && mask.kvLen > 0 &&
         !isOutside(options.rows, mask.qLen) && !isOutside(options.columns, mask.kvLen);
}

std::string describeAbsence(const BlockMask &mask, const PictureOptions &options) {
  if (!hasHead(mask, options))
    return fmt::format("the mask has {} x {} (batch, head); expected ({}, {}) to be one of them",
                       mask.batch, mask.heads, options.batch, options.head);
  return fmt::format("nothing to draw of {} x {} tokens", mask.qLen, mask.kvLen);
}

std::string describeCells(const BlockMask &mask, const CellGrid &grid) {
  std::string tiles = fmt::format("{} x {}", mask.tileQ, mask.tileKV);
  if (grid.tilesPerRow == 1 && grid.tilesPerColumn == 1)
    return fmt::format("1 cell = 1 tile of {} tokens", tiles);
  return fmt::format("1 cell = {} x {} tiles of {} tokens", grid.tilesPerRow, grid.tilesPerColumn,
                     tiles);
}

std::string describeTiles(const BlockMask &mask, const TileRows &rows) {
  TileCounts counts = countTiles(mask, rows);
  int64_t all = mask.numQTiles() * mask.numKVTiles();
  double visited =
      all > 0 ? 100.0 * static_cast<double>(counts.full + counts.partial) / static_cast<double>(all)
              : 0;
  return fmt::format("{} tiles: {} full, {} partial, {} empty ({:.2f}% visited)", all, counts.full,
                     counts.partial, counts.empty, visited);
}

Status verifySameShape(const BlockMask &left, const BlockMask &right,
                       const PictureOptions &options) {
  if (left.qLen != right.qLen || left.kvLen != right.kvLen || left.tileQ != right.tileQ ||
      left.tileKV != right.tileKV)
    return Status::invalid(fmt::format(
        "the masks are {} x {} in tiles of {} x {} and {} x {} in tiles of {} x {}; expected equal "
        "lengths and tiles",
        left.qLen, left.kvLen, left.tileQ, left.tileKV, right.qLen, right.kvLen, right.tileQ,
        right.tileKV));
  for (const BlockMask *mask : {&left, &right})
    if (!hasPicture(*mask, options))
      return Status::invalid(describeAbsence(*mask, options));
  return Status::ok();
}

void markDifferent(CellGrid &grid) {
  for (std::vector<CellRun> &row : grid.rows)
    for (CellRun &run : row)
      run.cellClass = CellClass::Different;
}

} // namespace cpflex
