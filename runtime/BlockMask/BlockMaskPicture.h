// How does a BlockMask look? Draws masks as text, SVG and PNG from their runs, never from a dense
// matrix.
#pragma once

#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Range.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <string>
#include <vector>

namespace cpflex {

/// What part of a mask is drawn, and how large.
struct PictureOptions {
  int64_t batch = 0, head = 0;   ///< which (b, h)
  Range rows = {}, columns = {}; ///< tokens to show; empty means all
  int64_t maxCells = 64;  ///< largest number of cells per axis; larger masks are drawn coarser
  int64_t cellPixels = 0; ///< size of a cell in SVG and PNG; 0: chosen
  std::string title = {}; ///< written above the picture
  /// Token positions where documents begin, drawn as thin lines in SVG.
  std::vector<int64_t> documentBounds = {};
  /// Text of residual predicate i for the hover titles of SVG.
  std::vector<std::string> residuals = {};
};

/// Draws with one character pair per cell: full `██`, partial `▒▒`, empty `··`; a coarse cell is
/// full or empty only when all its tiles are. Ends with a legend and tile counts.
std::string drawText(const BlockMask &mask, const PictureOptions &options);

/// A self-contained SVG: axes in tokens, legend, statistics, and a hover title with range and class
/// of each run.
std::string drawSvg(const BlockMask &mask, const PictureOptions &options);

/// The bytes of a PNG file. Fails when the picture would be larger than 16384 pixels in an axis.
StatusOr<std::string> drawPng(const BlockMask &mask, const PictureOptions &options);

/// Tiles where two masks of equal shape and tile size differ.
struct MaskDifference {
  int64_t differingTiles = 0; ///< summed over (b, h) of the drawn one only
  std::string picture;
};

/// Draws where `left` and `right` differ, as text. Masks of unlike lengths or tiles are an
/// InvalidArgument.
StatusOr<MaskDifference> drawDifferenceText(const BlockMask &left, const BlockMask &right,
                                            const PictureOptions &options);

/// As drawDifferenceText, as SVG.
StatusOr<MaskDifference> drawDifferenceSvg(const BlockMask &left, const BlockMask &right,
                                           const PictureOptions &options);

} // namespace cpflex
