// Converts runs to padded index lists and back.
#include "runtime/BlockMask/IndexLists.h"

#include "runtime/BlockMask/BlockMaskAlgebra.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace cpflex {

namespace {

/// Lists the tiles of `wanted` class of one row, then all others.
void listRow(std::span<const TileRun> runs, TileClass wanted, int32_t *count, int32_t *indices, int32_t numColumns) {
  std::vector<bool> isListed(numColumns, false);
  int32_t *next = indices;
  for (const TileRun &run : runs)
    if (run.tileClass == wanted)
      for (int32_t tile = run.begin; tile < run.end; ++tile) {
        *next++ = tile;
        isListed[tile] = true;
      }
  *count = static_cast<int32_t>(next - indices);
  for (int32_t tile = 0; tile < numColumns; ++tile)
    if (!isListed[tile])
      *next++ = tile;
}

TileLists listsOf(const BlockMask &mask) {
  TileLists lists;
  int64_t rows = mask.numQTiles(), columns = mask.numKVTiles();
  int64_t numRows = mask.batch * mask.heads * rows;
  lists.partialCounts.resize(numRows);
  lists.fullCounts.resize(numRows);
  lists.partialIndices.resize(numRows * columns);
  lists.fullIndices.resize(numRows * columns);
  for (int64_t i = 0; i < numRows; ++i) {
    const TileRows &source = mask.rowSets[mask.rowSetOf[i / rows]];
    int64_t row = i % rows;
    std::span<const TileRun> runs =
        std::span(source.runs).subspan(source.rowBegin[row], source.rowBegin[row + 1] - source.rowBegin[row]);
    listRow(runs, TileClass::Partial, &lists.partialCounts[i], lists.partialIndices.data() + i * columns,
            static_cast<int32_t>(columns));
    listRow(runs, TileClass::Full, &lists.fullCounts[i], lists.fullIndices.data() + i * columns,
            static_cast<int32_t>(columns));
  }
  return lists;
}

} // namespace

StatusOr<IndexLists> toIndexLists(const BlockMask &mask, int64_t maxBytes) {
  double bytes = 16.0 * static_cast<double>(mask.batch * mask.heads) * static_cast<double>(mask.numQTiles()) *
                 static_cast<double>(mask.numKVTiles());
  if (bytes > static_cast<double>(maxBytes))
    return Status(StatusCode::OutOfMemory,
                  fmt::format("index lists of this mask take {:.0f} bytes; expected at most {}", bytes, maxBytes));
  IndexLists lists;
  lists.batch = mask.batch;
  lists.heads = mask.heads;
  lists.qLen = mask.qLen;
  lists.kvLen = mask.kvLen;
  lists.tileQ = mask.tileQ;
  lists.tileKV = mask.tileKV;
  lists.byQ = listsOf(mask);
  lists.byKV = listsOf(transpose(mask));
  return lists;
}

StatusOr<BlockMask> fromIndexLists(const IndexLists &lists) {
  BlockMask mask;
  mask.qLen = lists.qLen;
  mask.kvLen = lists.kvLen;
  mask.tileQ = lists.tileQ;
  mask.tileKV = lists.tileKV;
  mask.batch = lists.batch;
  mask.heads = lists.heads;
  if (lists.qLen < 0 || lists.kvLen < 0 || lists.tileQ < 1 || lists.tileKV < 1 || lists.batch < 0 || lists.heads < 0)
    return Status::invalid("index lists have negative sizes; expected 0 or more, and tiles of 1 or more");
  int64_t rows = mask.numQTiles(), columns = mask.numKVTiles();
  int64_t numRows = mask.batch * mask.heads * rows;
  auto hasSize = [](const std::vector<int32_t> &array, int64_t size) {
    return static_cast<int64_t>(array.size()) == size;
  };
  if (!hasSize(lists.byQ.partialCounts, numRows) || !hasSize(lists.byQ.fullCounts, numRows) ||
      !hasSize(lists.byQ.partialIndices, numRows * columns) || !hasSize(lists.byQ.fullIndices, numRows * columns))
    return Status::invalid(fmt::format("index lists do not have {} rows of {} tiles; expected counts of "
                                       "[{}, {}, {}] and indices of [{}, {}, {}, {}]",
                                       rows, columns, mask.batch, mask.heads, rows, mask.batch, mask.heads, rows,
                                       columns));
  std::vector<TileClass> classes(columns);
  for (int64_t bh = 0; bh < mask.batch * mask.heads; ++bh) {
    mask.rowSetOf.push_back(static_cast<int32_t>(bh));
    TileRows &set = mask.rowSets.emplace_back();
    set.rowBegin.push_back(0);
    for (int64_t row = 0; row < rows; ++row) {
      std::fill(classes.begin(), classes.end(), TileClass::Empty);
      int64_t at = bh * rows + row;
      auto read = [&](int32_t count, const int32_t *indices, TileClass tileClass) -> Status {
        if (count < 0 || count > columns)
          return Status::invalid(
              fmt::format("row {} of the index lists has {} tiles; expected 0 to {}", row, count, columns));
        for (int32_t i = 0; i < count; ++i) {
          if (indices[i] < 0 || indices[i] >= columns)
            return Status::invalid(fmt::format("row {} of the index lists names tile {}; expected less "
                                               "than {}",
                                               row, indices[i], columns));
          if (classes[indices[i]] != TileClass::Empty)
            return Status::invalid(fmt::format("row {} of the index lists names tile {} twice; expected "
                                               "each tile once",
                                               row, indices[i]));
          classes[indices[i]] = tileClass;
        }
        return Status::ok();
      };
      CPFLEX_RETURN_IF_ERROR(
          read(lists.byQ.partialCounts[at], lists.byQ.partialIndices.data() + at * columns, TileClass::Partial));
      CPFLEX_RETURN_IF_ERROR(
          read(lists.byQ.fullCounts[at], lists.byQ.fullIndices.data() + at * columns, TileClass::Full));
      for (int32_t tile = 0; tile < columns; ++tile)
        if (classes[tile] != TileClass::Empty)
          set.runs.push_back({tile, tile + 1, classes[tile], 0});
      set.rowBegin.push_back(static_cast<int32_t>(set.runs.size()));
    }
  }
  normalize(mask);
  return mask;
}

} // namespace cpflex
