// The steps of settling a tile, cheapest first.
#include "runtime/BlockMask/TileSettlement.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace cpflex {

namespace {

/// Tiles up to this many pairs are looked at point by point.
constexpr int64_t kPointArea = 16;
/// Interval evaluations spent on one tile before one of its rows is looked at.
constexpr int64_t kProbeEvaluations = 16;
/// Pairs of that row.
constexpr int64_t kProbeLength = 128;
/// Interval evaluations spent on one tile before all its open points are evaluated.
constexpr int64_t kMaxSplitEvaluations = 400;
/// Tiles up to this many pairs are counted point by point.
constexpr int64_t kCountArea = 256;

} // namespace

void TileSettlement::lookAtCorners(const Tile &tile, Sight &sight) {
  int64_t top = tile.rows.begin, bottom = tile.rows.end - 1;
  int64_t left = tile.columns.begin, right = tile.columns.end - 1;
  // The first two differ on every tile that a diagonal crosses.
  const std::pair<int64_t, int64_t> points[] = {
      {top, right}, {bottom, left}, {top, left}, {bottom, right}, {(top + bottom) / 2, (left + right) / 2}};
  for (auto [row, column] : points) {
    ++pointsEvaluated_;
    bool attends = points_.evaluate(positions_.q.position(row), positions_.kv.position(column));
    sight.add(attends ? TileClass::Full : TileClass::Empty);
    if (sight.isPartial())
      return;
  }
}

void TileSettlement::evaluateRow(int64_t row, Range columns) {
  row_.resize(static_cast<size_t>(columns.size()));
  int64_t q = positions_.q.position(row);
  positions_.kv.visitPieces(columns, [&](int64_t first, const AffinePiece &piece) {
    points_.evaluateRow(q, piece.begin, piece.step, piece.count, row_.data() + (first - columns.begin));
  });
}

void TileSettlement::lookAtPoints(const Tile &tile, Sight &sight) {
  for (int64_t row = tile.rows.begin; row < tile.rows.end; ++row) {
    evaluateRow(row, tile.columns);
    pointsEvaluated_ += tile.columns.size();
    int64_t allowed = std::accumulate(row_.begin(), row_.end(), int64_t(0));
    sight.hasTrue |= allowed > 0;
    sight.hasFalse |= allowed < tile.columns.size();
    if (sight.isPartial())
      return;
  }
}

/// Cuts a tile in two and opens the halves that stay undecided: across the axis that decided something before, or, when
/// that decides nothing, across the one that decides more.
void TileSettlement::split(const Tile &tile, Sight &sight) {
  struct Halves {
    Tile tiles[2];
    TileClass classes[2] = {TileClass::Partial, TileClass::Partial};
    int64_t decidedArea = -1;
  };
  auto look = [&](Halves &halves) {
    halves.decidedArea = 0;
    for (int i = 0; i < 2; ++i) {
      halves.classes[i] = classify(halves.tiles[i].rows, halves.tiles[i].columns);
      sight.add(halves.classes[i]);
      if (halves.classes[i] != TileClass::Partial)
        halves.decidedArea += halves.tiles[i].area();
    }
  };
  Halves byRow, byColumn;
  auto lookByRow = [&] {
    if (tile.rows.size() < 2)
      return;
    int64_t cut = positions_.q.cut(tile.rows);
    byRow.tiles[0] = {{tile.rows.begin, cut}, tile.columns};
    byRow.tiles[1] = {{cut, tile.rows.end}, tile.columns};
    look(byRow);
  };
  auto lookByColumn = [&] {
    if (tile.columns.size() < 2)
      return;
    int64_t cut = positions_.kv.cut(tile.columns);
    byColumn.tiles[0] = {tile.rows, {tile.columns.begin, cut}};
    byColumn.tiles[1] = {tile.rows, {cut, tile.columns.end}};
    look(byColumn);
  };
  if (areColumnsFirst_)
    lookByColumn();
  else
    lookByRow();
  if (!sight.isPartial() && std::max(byRow.decidedArea, byColumn.decidedArea) <= 0) {
    if (areColumnsFirst_)
      lookByRow();
    else
      lookByColumn();
  }
  bool isRowBetter = byRow.decidedArea > byColumn.decidedArea ||
                     (byRow.decidedArea == byColumn.decidedArea && tile.rows.size() >= tile.columns.size());
  const Halves &chosen = isRowBetter ? byRow : byColumn;
  areColumnsFirst_ = !isRowBetter;
  for (int i = 0; i < 2; ++i)
    if (chosen.classes[i] == TileClass::Partial)
      open_.push_back(chosen.tiles[i]);
}

TileClass TileSettlement::settle(Range rows, Range columns) {
  Tile tile{rows, columns};
  Sight sight;
  // 1. Witnesses: one true and one false pair prove a partial tile.
  lookAtCorners(tile, sight);
  // 2. Smaller tiles, those of few pairs and those beyond the budget point by point. Where
  // intervals get nowhere, as with hashed ids, a row of pairs most often shows both classes.
  open_.assign(1, tile);
  int64_t firstEvaluation = tilesEvaluated_;
  int64_t lastEvaluation = firstEvaluation + kMaxSplitEvaluations;
  bool hasProbed = false;
  while (!sight.isPartial() && !open_.empty()) {
    Tile next = open_.back();
    open_.pop_back();
    if (!hasProbed && tilesEvaluated_ >= firstEvaluation + kProbeEvaluations) {
      hasProbed = true;
      int64_t row = (next.rows.begin + next.rows.end) / 2;
      Range probe{columns.begin, std::min(columns.end, columns.begin + kProbeLength)};
      lookAtPoints({{row, row + 1}, probe}, sight);
    }
    if (next.area() <= kPointArea || tilesEvaluated_ >= lastEvaluation)
      lookAtPoints(next, sight);
    else
      split(next, sight);
  }
  if (sight.isPartial())
    return TileClass::Partial;
  return sight.hasTrue ? TileClass::Full : TileClass::Empty;
}

int64_t TileSettlement::count(Range rows, Range columns, const PartnerFlags &flags) {
  int64_t allowed = 0;
  open_.assign(1, Tile{rows, columns});
  while (!open_.empty()) {
    Tile tile = open_.back();
    open_.pop_back();
    TileClass tileClass = classify(tile.rows, tile.columns);
    if (tileClass == TileClass::Empty)
      continue;
    if (tileClass == TileClass::Full) {
      allowed += tile.area();
      std::fill(flags.rows + tile.rows.begin, flags.rows + tile.rows.end, 1);
      std::fill(flags.columns + tile.columns.begin, flags.columns + tile.columns.end, 1);
      continue;
    }
    if (tile.area() > kCountArea) {
      bool isTall = tile.rows.size() >= tile.columns.size();
      int64_t cut = isTall ? positions_.q.cut(tile.rows) : positions_.kv.cut(tile.columns);
      if (isTall) {
        open_.push_back({{tile.rows.begin, cut}, tile.columns});
        open_.push_back({{cut, tile.rows.end}, tile.columns});
      } else {
        open_.push_back({tile.rows, {tile.columns.begin, cut}});
        open_.push_back({tile.rows, {cut, tile.columns.end}});
      }
      continue;
    }
    for (int64_t row = tile.rows.begin; row < tile.rows.end; ++row) {
      evaluateRow(row, tile.columns);
      int64_t inRow = 0;
      for (int64_t i = 0; i < tile.columns.size(); ++i) {
        inRow += row_[i];
        flags.columns[tile.columns.begin + i] |= row_[i];
      }
      allowed += inRow;
      flags.rows[row] |= inRow > 0;
    }
  }
  return allowed;
}

} // namespace cpflex
