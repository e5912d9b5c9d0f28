// Which cells does a picture of a mask have? Gathers the tiles of a window into at most so many
// cells per axis, walking runs only.
#pragma once

#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/contract/BlockMask.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// What a drawn cell shows.
enum class CellClass : uint8_t { Empty, Full, Partial, Different };

/// Adjacent cells [begin, end) of one class in one row of cells; Empty is left out.
struct CellRun {
  int32_t begin = 0, end = 0;
  CellClass cellClass = CellClass::Full;
  uint8_t residual = 0; ///< of partial cells; kMixedResiduals where their tiles have several
};

inline constexpr uint8_t kMixedResiduals = 0xff;

/// A window of a mask as rows of cells. Each cell covers `tilesPerRow` x `tilesPerColumn` tiles;
/// the first begins at tile (firstRow, firstColumn).
struct CellGrid {
  int64_t firstRow = 0, firstColumn = 0;       ///< in tiles
  int64_t lastRow = 0, lastColumn = 0;         ///< one past the last tile shown
  int64_t tilesPerRow = 1, tilesPerColumn = 1; ///< tiles of q, of kv per cell
  int64_t numRows = 0, numColumns = 0;         ///< in cells
  std::vector<std::vector<CellRun>> rows;
};

/// The cells of `rows`, a row set of `mask`, in the window of `options`.
CellGrid cellsOf(const BlockMask &mask, const TileRows &rows, const PictureOptions &options);

/// A row set whose Partial tiles are those where two row sets of equal shape differ.
TileRows differenceOf(const BlockMask &mask, const TileRows &left, const TileRows &right);

} // namespace cpflex
