// How does a BlockMask look? Draws masks as text, SVG and PNG from their runs, never from a dense
// matrix.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Range.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace cpflex {

/// Which (b, h) a picture shows.
enum class PictureHeads : uint8_t {
  One,      ///< that of the options
  Distinct, ///< a grid with a panel for each that differs from those before it, up to 64
};

/// What part of a mask is drawn, and how large.
struct PictureOptions {
  int64_t batch = 0, head = 0; ///< which (b, h) of PictureHeads::One
  PictureHeads heads = PictureHeads::One;
  Range rows = {}, columns = {}; ///< tokens to show; empty means all
  int64_t maxCells = 64;         ///< largest number of cells per axis; larger masks are drawn coarser
  int64_t cellPixels = 0;        ///< size of a cell in SVG and PNG; 0: chosen
  std::string title = {};        ///< written above the picture
  /// Token positions where documents begin, for each batch row or once for all, drawn as thin lines
  /// in SVG unless they lie closer than the cells.
  std::vector<std::vector<int64_t>> documentBounds = {};
  /// Text of the residual predicates by their number, 0 being the whole mask, for the hover titles
  /// of SVG.
  std::vector<std::string> residuals = {};
};

/// Where documents begin by what the captures say: the positions at which the first sorted array of
/// integers that is as long as the keys, or the queries, changes its value. Its dimensions are that
/// length, or B and that length, which gives bounds for each batch row. Empty when there is none.
std::vector<std::vector<int64_t>> documentBoundsOf(std::span<const CaptureDeclaration> declarations,
                                                   const Bindings &bindings, const BlockMask &mask);

/// Draws with one character pair per cell: full `██`, partial `▒▒`, empty `··`; a coarse cell is
/// full or empty only when all its tiles are. Ends with a legend and tile counts.
std::string drawText(const BlockMask &mask, const PictureOptions &options);

/// A self-contained SVG: axes in tokens, legend, statistics, and a hover title with range, class and
/// residual of each run.
std::string drawSvg(const BlockMask &mask, const PictureOptions &options);

/// The bytes of a PNG file. Fails when the picture would be larger than 16384 pixels in an axis.
StatusOr<std::string> drawPng(const BlockMask &mask, const PictureOptions &options);

/// Tiles where two masks of equal shape and tile size differ. PictureHeads::Distinct shows each
/// distinct pair of row sets that differs, or one panel when none does.
struct MaskDifference {
  int64_t differingTiles = 0; ///< summed over the panels
  std::string picture;
};

/// Draws where `left` and `right` differ, as text. Masks of unlike lengths or tiles are an
/// InvalidArgument.
StatusOr<MaskDifference> drawDifferenceText(const BlockMask &left, const BlockMask &right,
                                            const PictureOptions &options);

/// As drawDifferenceText, as SVG.
StatusOr<MaskDifference> drawDifferenceSvg(const BlockMask &left, const BlockMask &right,
                                           const PictureOptions &options);

/// As drawDifferenceText, as PNG. Fails like drawPng.
StatusOr<MaskDifference> drawDifferencePng(const BlockMask &left, const BlockMask &right,
                                           const PictureOptions &options);

} // namespace cpflex
