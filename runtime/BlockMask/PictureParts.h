// What do all pictures of a mask share? Panels of cells, one per (b, h) shown, with their captions, and
// what is wrong with a request.
#pragma once

#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/CellGrid.h"

#include <string>
#include <vector>

namespace cpflex {

/// One (b, h) of a picture.
struct PicturePanel {
  int64_t batch = 0;
  std::string title; ///< which (b, h); empty in a picture of one panel
  CellGrid grid;
  std::string statistics;
};

/// The panels of a picture, side by side in rows of `columns`.
struct PicturePanels {
  std::vector<PicturePanel> panels;
  int64_t columns = 1;
  int64_t differingTiles = 0; ///< of a difference
  std::string leftOut;        ///< what is not shown; empty when all is
};

/// The panels of a mask. `mask` must have a picture.
PicturePanels panelsOf(const BlockMask &mask, const PictureOptions &options);

/// The panels of the difference of two masks. InvalidArgument when they cannot be compared.
StatusOr<PicturePanels> differencePanelsOf(const BlockMask &left, const BlockMask &right,
                                           const PictureOptions &options);

/// Whether the mask has the (b, h) asked for and at least one tile in the window.
bool hasPicture(const BlockMask &mask, const PictureOptions &options);

/// Why there is no picture.
std::string describeAbsence(const BlockMask &mask, const PictureOptions &options);

/// "1 cell = 2 x 2 tiles of 128 x 128".
std::string describeCells(const BlockMask &mask, const CellGrid &grid);

/// "4096 tiles: 2016 full, 64 partial, 2016 empty".
std::string describeTiles(const BlockMask &mask, const TileRows &rows);

} // namespace cpflex
