// Draws masks as SVG: one rectangle per run of cells, axes in tokens, a legend, and titles that
// browsers show on hover.
#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/CellGrid.h"
#include "runtime/BlockMask/PictureParts.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace cpflex {

namespace {

constexpr int64_t kMargin = 72;        // left of and above the grid, for the axes
constexpr int64_t kTargetPixels = 640; // wanted size of the only panel's grid
constexpr int64_t kPanelPixels = 256;  // of one of several
constexpr int64_t kLeastWidth = 480;   // for the texts
constexpr int64_t kFooter = 64;
constexpr int64_t kNumTicks = 8;

std::string escaped(const std::string &text) {
  std::string out;
  for (char c : text)
    switch (c) {
    case '&': out += "&amp;"; break;
    case '<': out += "&lt;"; break;
    case '>': out += "&gt;"; break;
    case '"': out += "&quot;"; break;
    default: out += c;
    }
  return out;
}

const char *styleOf(CellClass cellClass) {
  switch (cellClass) {
  case CellClass::Empty: return "e";
  case CellClass::Full: return "f";
  case CellClass::Partial: return "p";
  case CellClass::Different: return "d";
  }
  return "";
}

const char *nameOf(CellClass cellClass) {
  switch (cellClass) {
  case CellClass::Empty: return "empty";
  case CellClass::Full: return "full";
  case CellClass::Partial: return "partial";
  case CellClass::Different: return "differs";
  }
  return "";
}

/// One panel as an SVG element of its own, which lies inside the document.
class SvgPanel {
public:
  SvgPanel(const BlockMask &mask, const PicturePanel &panel, const PictureOptions &options)
      : mask_(mask), grid_(panel.grid), panel_(panel), options_(options) {
    int64_t longest = std::max<int64_t>({grid_.numRows, grid_.numColumns, 1});
    int64_t pixels = panel.title.empty() ? kTargetPixels : kPanelPixels;
    cell_ = options.cellPixels > 0 ? options.cellPixels : std::max<int64_t>(1, pixels / longest);
  }

  int64_t width() const { return std::max<int64_t>(grid_.numColumns * cell_ + 2 * kMargin, kLeastWidth); }
  int64_t height() const { return grid_.numRows * cell_ + kMargin + kFooter + 16; }

  std::string draw(int64_t left, int64_t top, std::initializer_list<CellClass> legend) {
    add("<svg x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\">\n", left, top, width(), height());
    std::string title = options_.title;
    if (!panel_.title.empty())
      title += (title.empty() ? "" : ", ") + panel_.title;
    if (!title.empty())
      add("<text x=\"{}\" y=\"18\" font-size=\"14\">{}</text>\n", kMargin, escaped(title));
    addAxes();
    add("<rect class=\"e\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n", kMargin, kMargin,
        grid_.numColumns * cell_, grid_.numRows * cell_);
    for (int64_t row = 0; row < grid_.numRows; ++row)
      for (const CellRun &run : grid_.rows[row])
        addRun(row, run);
    addBounds();
    int64_t y = kMargin + grid_.numRows * cell_ + 24, x = kMargin;
    for (CellClass cellClass : legend) {
      add("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"12\" height=\"12\" stroke=\"#888888\" "
          "stroke-width=\"0.5\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
          styleOf(cellClass), x, y - 10, x + 17, y, nameOf(cellClass));
      x += 78;
    }
    add("<text x=\"{}\" y=\"{}\">{}</text>\n", x, y, describeCells(mask_, grid_));
    add("<text x=\"{}\" y=\"{}\">{}</text>\n</svg>\n", kMargin, y + 20, escaped(panel_.statistics));
    return std::move(out_);
  }

private:
  template <typename... Arguments> void add(fmt::format_string<Arguments...> format, Arguments &&...arguments) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Arguments>(arguments)...);
  }

  /// Tokens of q that a row of cells covers, of kv that cells [begin, end) cover.
  Range rowTokens(int64_t row) const {
    int64_t begin = grid_.firstRow + row * grid_.tilesPerRow;
    int64_t end = std::min(begin + grid_.tilesPerRow, grid_.lastRow);
    return {begin * mask_.tileQ, std::min(end * mask_.tileQ, mask_.qLen)};
  }
  Range columnTokens(int64_t begin, int64_t end) const {
    int64_t first = grid_.firstColumn + begin * grid_.tilesPerColumn;
    int64_t last = std::min(grid_.firstColumn + end * grid_.tilesPerColumn, grid_.lastColumn);
    return {first * mask_.tileKV, std::min(last * mask_.tileKV, mask_.kvLen)};
  }

  void addRun(int64_t row, const CellRun &run) {
    Range q = rowTokens(row), kv = columnTokens(run.begin, run.end);
    add("<rect class=\"c {}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>q {}..{}, kv "
        "{}..{}: {}",
        styleOf(run.cellClass), kMargin + run.begin * cell_, kMargin + row * cell_, (run.end - run.begin) * cell_,
        cell_, q.begin, q.end, kv.begin, kv.end, nameOf(run.cellClass));
    bool isOneTile = grid_.tilesPerRow == 1 && grid_.tilesPerColumn == 1;
    if (run.cellClass == CellClass::Partial && isOneTile && run.residual < options_.residuals.size())
      add(", {}", escaped(options_.residuals[run.residual]));
    add("</title></rect>\n");
  }

  void addAxes() {
    add("<text x=\"{}\" y=\"36\">kv (tokens)</text>\n", kMargin);
    add("<text x=\"8\" y=\"{}\">q (tokens)</text>\n", kMargin - 6);
    int64_t columnStep = std::max<int64_t>(1, ceilDivide(grid_.numColumns, kNumTicks));
    for (int64_t cell = 0; cell < grid_.numColumns; cell += columnStep) {
      int64_t x = kMargin + cell * cell_;
      add("<line x1=\"{0}\" y1=\"{1}\" x2=\"{0}\" y2=\"{2}\" stroke=\"#444444\"/>"
          "<text x=\"{0}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>\n",
          x, kMargin - 5, kMargin, kMargin - 9, columnTokens(cell, cell + 1).begin);
    }
    int64_t rowStep = std::max<int64_t>(1, ceilDivide(grid_.numRows, kNumTicks));
    for (int64_t cell = 0; cell < grid_.numRows; cell += rowStep) {
      int64_t y = kMargin + cell * cell_;
      add("<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"#444444\"/>"
          "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
          kMargin - 5, y, kMargin, y, kMargin - 8, y + 10, rowTokens(cell).begin);
    }
  }

  /// Lines where documents begin, across both axes.
  void addBounds() {
    if (options_.documentBounds.empty())
      return;
    bool isPerBatch = static_cast<size_t>(panel_.batch) < options_.documentBounds.size();
    const std::vector<int64_t> &bounds = options_.documentBounds[isPerBatch ? panel_.batch : 0];
    // Lines closer than the cells would only hide them.
    Range shown = intersection({grid_.firstColumn * mask_.tileKV, grid_.lastColumn * mask_.tileKV}, {0, mask_.kvLen});
    int64_t numShown = std::count_if(bounds.begin(), bounds.end(),
                                     [&](int64_t token) { return shown.begin < token && token < shown.end; });
    if (numShown > grid_.numColumns)
      return;
    double perColumn = static_cast<double>(cell_) / static_cast<double>(grid_.tilesPerColumn * mask_.tileKV);
    double perRow = static_cast<double>(cell_) / static_cast<double>(grid_.tilesPerRow * mask_.tileQ);
    int64_t right = kMargin + grid_.numColumns * cell_, bottom = kMargin + grid_.numRows * cell_;
    for (int64_t token : bounds) {
      int64_t column = token - grid_.firstColumn * mask_.tileKV;
      int64_t row = token - grid_.firstRow * mask_.tileQ;
      if (column > 0 && token < grid_.lastColumn * mask_.tileKV)
        add("<line class=\"b\" x1=\"{0:.2f}\" y1=\"{1}\" x2=\"{0:.2f}\" y2=\"{2}\"/>\n",
            static_cast<double>(kMargin) + static_cast<double>(column) * perColumn, kMargin, bottom);
      if (row > 0 && token < grid_.lastRow * mask_.tileQ)
        add("<line class=\"b\" x1=\"{0}\" y1=\"{1:.2f}\" x2=\"{2}\" y2=\"{1:.2f}\"/>\n", kMargin,
            static_cast<double>(kMargin) + static_cast<double>(row) * perRow, right);
    }
  }

  const BlockMask &mask_;
  const CellGrid &grid_;
  const PicturePanel &panel_;
  const PictureOptions &options_;
  int64_t cell_ = 1;
  std::string out_;
};

/// The document of all panels.
std::string drawPanels(const BlockMask &mask, const PicturePanels &panels, const PictureOptions &options,
                       std::initializer_list<CellClass> legend) {
  int64_t panelWidth = 0, panelHeight = 0;
  for (const PicturePanel &panel : panels.panels) {
    SvgPanel drawn(mask, panel, options);
    panelWidth = std::max(panelWidth, drawn.width());
    panelHeight = std::max(panelHeight, drawn.height());
  }
  int64_t count = static_cast<int64_t>(panels.panels.size());
  int64_t width = std::min(panels.columns, count) * panelWidth;
  int64_t panelsEnd = ceilDivide(count, panels.columns) * panelHeight;
  int64_t height = panelsEnd + (panels.leftOut.empty() ? 0 : kFooter);
  std::string out = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
                                "viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"11\">\n"
                                "<style>.e{{fill:#f4f4f0}}.f{{fill:#1f4e79}}.p{{fill:#e69f00}}.d{{fill:#c0392b}}"
                                ".b{{stroke:#2a9d5c;stroke-width:1;stroke-dasharray:3 2}}"
                                ".c:hover{{stroke:#000;stroke-width:1}}</style>\n"
                                "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
                                width, height);
  for (int64_t i = 0; i < count; ++i)
    out += SvgPanel(mask, panels.panels[i], options)
               .draw(i % panels.columns * panelWidth, i / panels.columns * panelHeight, legend);
  if (!panels.leftOut.empty())
    out +=
        fmt::format("<text x=\"{}\" y=\"{}\">{}</text>\n", kMargin, panelsEnd + kFooter / 2, escaped(panels.leftOut));
  return out + "</svg>\n";
}

} // namespace

std::string drawSvg(const BlockMask &mask, const PictureOptions &options) {
  if (!hasPicture(mask, options))
    return fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"480\" height=\"40\">"
                       "<text x=\"8\" y=\"24\">{}</text></svg>\n",
                       escaped(describeAbsence(mask, options)));
  return drawPanels(mask, panelsOf(mask, options), options, {CellClass::Full, CellClass::Partial, CellClass::Empty});
}

StatusOr<MaskDifference> drawDifferenceSvg(const BlockMask &left, const BlockMask &right,
                                           const PictureOptions &options) {
  StatusOr<PicturePanels> panels = differencePanelsOf(left, right, options);
  if (!panels)
    return panels.status();
  MaskDifference result;
  result.differingTiles = panels->differingTiles;
  result.picture = drawPanels(left, *panels, options, {CellClass::Different, CellClass::Empty});
  return result;
}

} // namespace cpflex
