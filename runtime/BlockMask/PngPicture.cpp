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
  put32(png, static_cast<uint32_t>(
                 crc32_z(0, reinterpret_cast<const Bytef *>(checked.data()), checked.size())));
}

} // namespace

StatusOr<std::string> drawPng(const BlockMask &mask, const PictureOptions &options) {
  if (!hasPicture(mask, options))
    return Status::invalid(describeAbsence(mask, options));
  CellGrid grid = cellsOf(mask, mask.rows(options.batch, options.head), options);
  int64_t longest = std::max(grid.numRows, grid.numColumns);
  int64_t cell =
      options.cellPixels > 0 ? options.cellPixels : std::max<int64_t>(1, kTargetPixels / longest);
  if (longest * cell > kMaxPixels)
    return Status::invalid(
        fmt::format("the picture has {} x {} pixels; expected at most {} in an axis",
                    grid.numColumns * cell, grid.numRows * cell, kMaxPixels));
  int64_t width = grid.numColumns * cell, height = grid.numRows * cell;

  // 1. Lines of palette indices, each behind a byte that says "no filter".
  std::string lines;
  for (const std::vector<CellRun> &row : grid.rows) {
    std::string line(static_cast<size_t>(width) + 1, '\0');
    for (const CellRun &run : row)
      std::fill(line.begin() + 1 + run.begin * cell, line.begin() + 1 + run.end * cell,
                static_cast<char>(run.cellClass));
    for (int64_t i = 0; i < cell; ++i)
      lines += line;
  }
  std::string compressed(compressBound(lines.size()), '\0');
  uLongf size = compressed.size();
  // The buffer is large enough by construction.
  [[maybe_unused]] int result =
      compress(reinterpret_cast<Bytef *>(compressed.data()), &size,
               reinterpret_cast<const Bytef *>(lines.data()), lines.size());
  assert(result == Z_OK && "compressBound bytes are enough");
  compressed.resize(size);

  // 2. The file: header, palette in the order of CellClass, picture, end.
  std::string png("\x89PNG\r\n\x1a\n", 8);
  std::string header;
  put32(header, static_cast<uint32_t>(width));
  put32(header, static_cast<uint32_t>(height));
  header += std::string("\x08\x03\x00\x00\x00", 5); // 8 bits, palette
  addChunk(png, "IHDR", header);
  addChunk(png, "PLTE", std::string("\xf4\xf4\xf0\x1f\x4e\x79\xe6\x9f\x00\xc0\x39\x2b", 12));
  addChunk(png, "IDAT", compressed);
  addChunk(png, "IEND", "");
  return png;
}

} // namespace cpflex
