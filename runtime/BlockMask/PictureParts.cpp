// Chooses and captions the panels of the text, SVG and PNG pictures.
#include "runtime/BlockMask/PictureParts.h"

#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "runtime/BlockMask/ElementAccess.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <type_traits>
#include <utility>

namespace cpflex {

namespace {

bool hasHead(const BlockMask &mask, const PictureOptions &options) {
  return options.batch >= 0 && options.batch < mask.batch && options.head >= 0 && options.head < mask.heads;
}

} // namespace

bool hasPicture(const BlockMask &mask, const PictureOptions &options) {
  auto isOutside = [](Range range, int64_t length) {
    return !range.isEmpty() && intersection(range, {0, length}).isEmpty();
  };
  return hasHead(mask, options) && mask.qLen > 0 && mask.kvLen > 0 && !isOutside(options.rows, mask.qLen) &&
         !isOutside(options.columns, mask.kvLen);
}

std::string describeAbsence(const BlockMask &mask, const PictureOptions &options) {
  if (!hasHead(mask, options))
    return fmt::format("the mask has {} x {} (batch, head); expected ({}, {}) to be one of them", mask.batch,
                       mask.heads, options.batch, options.head);
  return fmt::format("nothing to draw of {} x {} tokens", mask.qLen, mask.kvLen);
}

std::string describeCells(const BlockMask &mask, const CellGrid &grid) {
  std::string tiles = fmt::format("{} x {}", mask.tileQ, mask.tileKV);
  if (grid.tilesPerRow == 1 && grid.tilesPerColumn == 1)
    return fmt::format("1 cell = 1 tile of {} tokens", tiles);
  return fmt::format("1 cell = {} x {} tiles of {} tokens", grid.tilesPerRow, grid.tilesPerColumn, tiles);
}

std::string describeTiles(const BlockMask &mask, const TileRows &rows) {
  TileCounts counts = countTiles(mask, rows);
  int64_t all = mask.numQTiles() * mask.numKVTiles();
  double visited = all > 0 ? 100.0 * static_cast<double>(counts.full + counts.partial) / static_cast<double>(all) : 0;
  return fmt::format("{} tiles: {} full, {} partial, {} empty ({:.2f}% visited)", all, counts.full, counts.partial,
                     counts.empty, visited);
}

namespace {

/// Panels beyond which a picture says how many it leaves out.
constexpr size_t kMostPanels = 64;
/// Cells per axis of a panel in a grid of panels.
constexpr int64_t kPanelCells = 32;

Status verifySameShape(const BlockMask &left, const BlockMask &right, const PictureOptions &options) {
  if (left.qLen != right.qLen || left.kvLen != right.kvLen || left.tileQ != right.tileQ || left.tileKV != right.tileKV)
    return Status::invalid(fmt::format(
        "the masks are {} x {} in tiles of {} x {} and {} x {} in tiles of {} x {}; expected equal "
        "lengths and tiles",
        left.qLen, left.kvLen, left.tileQ, left.tileKV, right.qLen, right.kvLen, right.tileQ, right.tileKV));
  if (left.batch != right.batch || left.heads != right.heads)
    return Status::invalid(fmt::format("the masks have {} x {} and {} x {} (batch, head); expected equal numbers",
                                       left.batch, left.heads, right.batch, right.heads));
  if (!hasPicture(left, options))
    return Status::invalid(describeAbsence(left, options));
  return Status::ok();
}

/// The (b, h) that share what a panel shows.
struct PanelHeads {
  int64_t first = 0, count = 0; ///< first as b * heads + h
};

/// One entry per distinct key, in order of first use. `keyOf(bh)` tells what (b, h) shows.
template <typename KeyOf> std::vector<PanelHeads> distinctHeads(const BlockMask &mask, const KeyOf &keyOf) {
  std::vector<PanelHeads> heads;
  std::map<decltype(keyOf(int64_t(0))), size_t> known;
  for (int64_t bh = 0; bh < mask.batch * mask.heads; ++bh) {
    auto [place, isNew] = known.try_emplace(keyOf(bh), heads.size());
    if (isNew)
      heads.push_back({bh, 0});
    ++heads[place->second].count;
  }
  return heads;
}

/// Titles, limits and arranges panels; `fill(panel, b, h, options)` draws one.
template <typename Fill>
PicturePanels arrange(const BlockMask &mask, const PictureOptions &options, std::vector<PanelHeads> heads,
                      const Fill &fill) {
  PicturePanels result;
  PictureOptions own = options;
  size_t count = std::min(heads.size(), kMostPanels);
  if (count > 1)
    own.maxCells = std::min(own.maxCells, kPanelCells);
  if (heads.size() > count)
    result.leftOut = fmt::format("{} of {} distinct (b, h) shown", count, heads.size());
  while (result.columns * result.columns < static_cast<int64_t>(count))
    ++result.columns;
  for (size_t i = 0; i < count; ++i) {
    int64_t b = heads[i].first / mask.heads, h = heads[i].first % mask.heads;
    PicturePanel &panel = result.panels.emplace_back();
    panel.batch = b;
    if (count > 1) {
      panel.title = fmt::format("b {}, h {}", b, h);
      if (heads[i].count > 1)
        panel.title += fmt::format(" and {} more", heads[i].count - 1);
    }
    fill(panel, b, h, own);
  }
  return result;
}

} // namespace

PicturePanels panelsOf(const BlockMask &mask, const PictureOptions &options) {
  std::vector<PanelHeads> heads = {{options.batch * mask.heads + options.head, 1}};
  if (options.heads == PictureHeads::Distinct)
    heads = distinctHeads(mask, [&](int64_t bh) { return mask.rowSetOf[bh]; });
  return arrange(mask, options, std::move(heads),
                 [&](PicturePanel &panel, int64_t b, int64_t h, const PictureOptions &own) {
                   const TileRows &rows = mask.rows(b, h);
                   panel.grid = cellsOf(mask, rows, own);
                   panel.statistics = describeTiles(mask, rows);
                 });
}

StatusOr<PicturePanels> differencePanelsOf(const BlockMask &left, const BlockMask &right,
                                           const PictureOptions &options) {
  CPFLEX_RETURN_IF_ERROR(verifySameShape(left, right, options));
  std::vector<PanelHeads> heads = {{options.batch * left.heads + options.head, 1}};
  if (options.heads == PictureHeads::Distinct) {
    std::vector<PanelHeads> all =
        distinctHeads(left, [&](int64_t bh) { return std::pair(left.rowSetOf[bh], right.rowSetOf[bh]); });
    std::erase_if(all, [&](const PanelHeads &panel) {
      return differenceOf(left, left.rowSets[left.rowSetOf[panel.first]], right.rowSets[right.rowSetOf[panel.first]])
          .runs.empty();
    });
    if (!all.empty())
      heads = std::move(all);
  }
  int64_t differingTiles = 0;
  PicturePanels result = arrange(
      left, options, std::move(heads), [&](PicturePanel &panel, int64_t b, int64_t h, const PictureOptions &own) {
        TileRows rows = differenceOf(left, left.rows(b, h), right.rows(b, h));
        int64_t differing = countTiles(left, rows).partial;
        differingTiles += differing;
        panel.statistics = fmt::format("{} of {} tiles differ", differing, left.numQTiles() * left.numKVTiles());
        panel.grid = cellsOf(left, rows, own);
        for (std::vector<CellRun> &row : panel.grid.rows)
          for (CellRun &run : row)
            run.cellClass = CellClass::Different;
      });
  result.differingTiles = differingTiles;
  return result;
}

std::vector<std::vector<int64_t>> documentBoundsOf(std::span<const CaptureDeclaration> declarations,
                                                   const Bindings &bindings, const BlockMask &mask) {
  std::vector<std::vector<int64_t>> bounds;
  for (size_t slot = 0; slot < declarations.size(); ++slot) {
    const CaptureDeclaration &declaration = declarations[slot];
    const CaptureView &view = bindings.captures[slot];
    bool isPerBatch = view.rank == 2 && !declaration.dims.empty() && declaration.dims[0] == "B";
    if (!declaration.isSorted || isFloat(view.type) || !view.data || (view.rank != 1 && !isPerBatch))
      continue;
    int64_t length = view.shape[view.rank - 1], stride = view.strides[view.rank - 1];
    if (length == 0 || (length != mask.kvLen && length != mask.qLen))
      continue;
    bounds.resize(isPerBatch ? view.shape[0] : 1);
    visitElements(view.type, view.data, [&](const auto *data) {
      if constexpr (std::is_integral_v<std::remove_cvref_t<decltype(*data)>>)
        for (size_t row = 0; row < bounds.size(); ++row) {
          const auto *line = data + static_cast<int64_t>(row) * view.strides[0] * isPerBatch;
          for (int64_t i = 1; i < length; ++i)
            if (line[i * stride] != line[(i - 1) * stride])
              bounds[row].push_back(i);
        }
    });
    break;
  }
  return bounds;
}

} // namespace cpflex
