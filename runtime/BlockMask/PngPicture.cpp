// Draws masks as PNG: a palette picture, compressed with zlib, one square of pixels per cell.
#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/CellGrid.h"
#include "runtime/BlockMask/PictureParts.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cassert>
#include <vector>

namespace cpflex {

namespace {

constexpr int64_t kTargetPixels = 640;
constexpr int64_t kMaxPixels = 16384;

void put32(std::string &out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8)
    out.push_back(static_cast<char>(value >> shift & 0xff));
}

void addChunk(std::string &png, const std::string &type, const std::string &contents) {
  put32(png, static_cast<uint32_t>(contents.size()));
  std::string checked = type + contents;
  png += checked;
  put32(png, static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef *>(checked.data()), checked.size())));
}

/// The palette index between panels: white. Those before it are the CellClasses.
constexpr char kGap = 4;
constexpr int64_t kGapPixels = 8;

StatusOr<std::string> drawPanels(const PicturePanels &panels, const PictureOptions &options) {
  const CellGrid &first = panels.panels.front().grid; // all have the same size
  int64_t count = static_cast<int64_t>(panels.panels.size());
  int64_t columns = std::min(panels.columns, count), panelRows = ceilDivide(count, columns);
  int64_t longest = std::max(first.numRows * panelRows, first.numColumns * columns);
  int64_t cell = options.cellPixels > 0 ? options.cellPixels : std::max<int64_t>(1, kTargetPixels / longest);
  int64_t panelWidth = first.numColumns * cell, panelHeight = first.numRows * cell;
  int64_t width = columns * (panelWidth + kGapPixels) - kGapPixels;
  int64_t height = panelRows * (panelHeight + kGapPixels) - kGapPixels;
  if (std::max(width, height) > kMaxPixels)
    return Status::invalid(
        fmt::format("the picture has {} x {} pixels; expected at most {} in an axis", width, height, kMaxPixels));

  // 1. Lines of palette indices, each behind a byte that says "no filter".
  size_t lineSize = static_cast<size_t>(width) + 1;
  std::string lines(lineSize * static_cast<size_t>(height), kGap);
  for (int64_t y = 0; y < height; ++y)
    lines[static_cast<size_t>(y) * lineSize] = '\0';
  for (int64_t i = 0; i < count; ++i) {
    int64_t left = i % columns * (panelWidth + kGapPixels);
    int64_t top = i / columns * (panelHeight + kGapPixels);
    for (int64_t y = 0; y < panelHeight; ++y) {
      char *line = lines.data() + static_cast<size_t>(top + y) * lineSize + 1 + left;
      std::fill_n(line, panelWidth, static_cast<char>(CellClass::Empty));
      for (const CellRun &run : panels.panels[i].grid.rows[y / cell])
        std::fill(line + run.begin * cell, line + run.end * cell, static_cast<char>(run.cellClass));
    }
  }
  std::string compressed(compressBound(lines.size()), '\0');
  uLongf size = compressed.size();
  // The buffer is large enough by construction.
  [[maybe_unused]] int result = compress(reinterpret_cast<Bytef *>(compressed.data()), &size,
                                         reinterpret_cast<const Bytef *>(lines.data()), lines.size());
  assert(result == Z_OK && "compressBound bytes are enough");
  compressed.resize(size);

  // 2. The file: header, palette, picture, end.
  std::string png("\x89PNG\r\n\x1a\n", 8);
  std::string header;
  put32(header, static_cast<uint32_t>(width));
  put32(header, static_cast<uint32_t>(height));
  header += std::string("\x08\x03\x00\x00\x00", 5); // 8 bits, palette
  addChunk(png, "IHDR", header);
  addChunk(png, "PLTE", std::string("\xf4\xf4\xf0\x1f\x4e\x79\xe6\x9f\x00\xc0\x39\x2b\xff\xff\xff", 15));
  addChunk(png, "IDAT", compressed);
  addChunk(png, "IEND", "");
  return png;
}

} // namespace

StatusOr<std::string> drawPng(const BlockMask &mask, const PictureOptions &options) {
  if (!hasPicture(mask, options))
    return Status::invalid(describeAbsence(mask, options));
  return drawPanels(panelsOf(mask, options), options);
}

StatusOr<MaskDifference> drawDifferencePng(const BlockMask &left, const BlockMask &right,
                                           const PictureOptions &options) {
  StatusOr<PicturePanels> panels = differencePanelsOf(left, right, options);
  if (!panels)
    return panels.status();
  StatusOr<std::string> picture = drawPanels(*panels, options);
  if (!picture)
    return picture.status();
  return MaskDifference{panels->differingTiles, std::move(*picture)};
}

} // namespace cpflex
