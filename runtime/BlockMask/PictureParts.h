// The words that all pictures of a mask share: captions, counts and what is wrong with a request.
#pragma once

#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/CellGrid.h"

#include <string>

namespace cpflex {

/// Whether the mask has the (b, h) asked for and at least one tile in the window.
bool hasPicture(const BlockMask &mask, const PictureOptions &options);

/// Why there is no picture.
std::string describeAbsence(const BlockMask &mask, const PictureOptions &options);

/// "1 cell = 2 x 2 tiles of 128 x 128".
std::string describeCells(const BlockMask &mask, const CellGrid &grid);

/// "4096 tiles: 2016 full, 64 partial, 2016 empty".
std::string describeTiles(const BlockMask &mask, const TileRows &rows);

/// Whether two masks can be compared at the options' (b, h).
Status verifySameShape(const BlockMask &left, const BlockMask &right,
                       const PictureOptions &options);

/// Turns the cells of a difference into Different ones.
void markDifferent(CellGrid &grid);

} // namespace cpflex
