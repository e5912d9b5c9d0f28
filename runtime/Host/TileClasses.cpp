// Implements TileClasses: coverage of working tiles by the runs of a BlockMask, and the mask of one working tile.
#include "runtime/Host/TileClasses.h"

#include <algorithm>
#include <cstring>

namespace cpflex {

PositionIndex::PositionIndex(const PositionMap &map, int64_t length)
    : pieces_(map.pieces.empty() ? PositionMap::identity(length).pieces : map.pieces) {
  starts_.reserve(pieces_.size());
  int64_t start = 0;
  for (const AffinePiece &piece : pieces_) {
    starts_.push_back(start);
    start += piece.count;
  }
}

size_t PositionIndex::pieceOf(int64_t local) const {
  return size_t(std::upper_bound(starts_.begin(), starts_.end(), local) - starts_.begin()) - 1;
}

TileClasses::TileClasses(const AttentionProblem &problem)
    : problem_(problem), qIndex_(problem.qPositions, problem.qLen), kvIndex_(problem.kvPositions, problem.kvLen) {}

TileArea TileClasses::area(int64_t qTile, int64_t kvTile) const {
  return {{qTile * tileSize, std::min((qTile + 1) * tileSize, problem_.qLen)},
          {kvTile * tileSize, std::min((kvTile + 1) * tileSize, problem_.kvLen)}};
}

void TileClasses::classifyRow(int64_t rowSet, int64_t qTile, TileClass *classes, int32_t *scratch) const {
  const int64_t numTiles = numKVTiles();
  if (!problem_.mask) {
    std::fill(classes, classes + numTiles, TileClass::Full);
    return;
  }
  // A working tile is full when full runs cover all its pairs, empty when no run touches it.
  const BlockMask &mask = *problem_.mask;
  const TileRows &rows = mask.rowSets[rowSet];
  const Range q = area(qTile, 0).q;
  std::fill(classes, classes + numTiles, TileClass::Empty);
  std::fill(scratch, scratch + numTiles, 0);
  for (int64_t maskRow = q.begin / mask.tileQ; maskRow * mask.tileQ < q.end; ++maskRow) {
    int64_t height = intersection(q, {maskRow * mask.tileQ, (maskRow + 1) * mask.tileQ}).size();
    for (int32_t i = rows.rowBegin[maskRow]; i < rows.rowBegin[maskRow + 1]; ++i) {
      const TileRun &run = rows.runs[i];
      Range keys = {run.begin * mask.tileKV, std::min(run.end * mask.tileKV, mask.kvLen)};
      for (int64_t tile = keys.begin / tileSize; tile * tileSize < keys.end; ++tile) {
        classes[tile] = TileClass::Partial;
        if (run.tileClass == TileClass::Full)
          scratch[tile] += int32_t(height * intersection(keys, {tile * tileSize, (tile + 1) * tileSize}).size());
      }
    }
  }
  for (int64_t tile = 0; tile < numTiles; ++tile)
    if (scratch[tile] == q.size() * area(qTile, tile).kv.size())
      classes[tile] = TileClass::Full;
}

TileExtent TileExtent::whole(int64_t numRows, int64_t numColumns) {
  TileExtent extent;
  extent.stripeSize = int(TileClasses::tileSize);
  extent.columns[0] = {0, numColumns};
  extent.rows[0] = {0, numRows};
  return extent;
}

/// A row of a mask is read in words of 8 pairs; pair j is byte j of memory.
static constexpr int kWordsPerRow = int(TileClasses::tileSize / 8);
static constexpr int kWordsPerStripe = kWordsPerRow / TileExtent::kNumStripes;

/// The bytes from the first to the last that is not 0.
static Range usedBytes(const uint64_t (&words)[kWordsPerRow]) {
  uint8_t bytes[TileClasses::tileSize];
  std::memcpy(bytes, words, sizeof bytes);
  int64_t begin = 0, end = TileClasses::tileSize;
  while (begin < end && bytes[begin] == 0)
    ++begin;
  while (begin < end && bytes[end - 1] == 0)
    --end;
  return {begin, end};
}

/// Finds the extent of the first numRows rows of a mask; returns whether any byte is set.
static bool findExtent(const uint8_t *allowed, int64_t numRows, TileExtent &extent) {
  extent = {};
  extent.stripeSize = int(TileClasses::tileSize / TileExtent::kNumStripes);
  bool isAny = false;
  for (int stripe = 0; stripe < TileExtent::kNumStripes; ++stripe) {
    uint64_t used[kWordsPerRow] = {};
    const Range rows = extent.stripe(stripe, numRows);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      uint64_t words[kWordsPerRow];
      std::memcpy(words, allowed + row * TileClasses::tileSize, sizeof words);
      for (int i = 0; i < kWordsPerRow; ++i)
        used[i] |= words[i];
      for (int column = 0; column < TileExtent::kNumStripes; ++column) {
        uint64_t any = 0;
        for (int i = 0; i < kWordsPerStripe; ++i)
          any |= words[column * kWordsPerStripe + i];
        if (any == 0)
          continue;
        Range &users = extent.rows[column];
        users = users.isEmpty() ? Range{row, row + 1} : Range{users.begin, row + 1};
      }
    }
    extent.columns[stripe] = usedBytes(used);
    isAny |= !extent.columns[stripe].isEmpty();
  }
  return isAny;
}

EvaluateTileFunction TileClasses::functionOf(const TileRun &run) const {
  const HostFunctions &functions = *problem_.functions;
  const bool isNumbered = run.residual > 0 && run.residual < kMostResiduals && functions.residualKey != 0 &&
                          functions.residualKey == problem_.mask->residualKey;
  EvaluateTileFunction residual = isNumbered ? functions.evaluateResidual[run.residual - 1] : nullptr;
  return residual ? residual : functions.evaluateTile;
}

bool TileClasses::fillMask(int64_t b, int64_t h, TileArea area, uint8_t *allowed, TileExtent &extent) const {
  const BlockMask &mask = *problem_.mask;
  const TileRows &rows = mask.rows(b, h);
  std::memset(allowed, 0, area.q.size() * tileSize);
  for (int64_t maskRow = area.q.begin / mask.tileQ; maskRow * mask.tileQ < area.q.end; ++maskRow) {
    Range q = intersection(area.q, {maskRow * mask.tileQ, (maskRow + 1) * mask.tileQ});
    auto first = rows.runs.begin() + rows.rowBegin[maskRow];
    auto last = rows.runs.begin() + rows.rowBegin[maskRow + 1];
    auto run =
        std::partition_point(first, last, [&](const TileRun &r) { return r.end * mask.tileKV <= area.kv.begin; });
    for (; run != last && run->begin * mask.tileKV < area.kv.end; ++run) {
      Range kv = intersection(area.kv, {run->begin * mask.tileKV, run->end * mask.tileKV});
      uint8_t *corner = allowed + (q.begin - area.q.begin) * tileSize + (kv.begin - area.kv.begin);
      if (run->tileClass == TileClass::Full) {
        for (int64_t i = 0; i < q.size(); ++i)
          std::memset(corner + i * tileSize, 1, kv.size());
        continue;
      }
      const EvaluateTileFunction evaluate = functionOf(*run);
      forEachPiece(b, h, {q, kv}, [&](const TileCoordinates &coordinates, int64_t row, int64_t column) {
        evaluate(problem_.bindings, &coordinates, corner + row * tileSize + column, tileSize);
      });
    }
  }
  return findExtent(allowed, area.q.size(), extent);
}

} // namespace cpflex
