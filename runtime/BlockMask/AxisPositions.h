// Which global positions do local rows hold? A PositionMap prepared for the questions of the
// builder: bounds of a range, the affine stretches in it, and where to cut it.
#pragma once

#include "runtime/contract/PositionMap.h"
#include "runtime/contract/Range.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace cpflex {

/// One axis of a mask, local rows [0, size()).
class AxisPositions {
public:
  /// A map without pieces is the identity of `count` rows.
  AxisPositions(const PositionMap &map, int64_t count) {
    if (map.pieces.empty())
      pieces_.push_back({0, count, 1});
    for (const AffinePiece &piece : map.pieces)
      if (piece.count > 0)
        pieces_.push_back(piece);
    for (const AffinePiece &piece : pieces_) {
      starts_.push_back(size_);
      size_ += piece.count;
    }
    isOnePiece_ = pieces_.size() == 1;
    if (isOnePiece_)
      only_ = pieces_.front();
  }

  int64_t size() const { return size_; }
  bool isOnePiece() const { return isOnePiece_; }

  int64_t position(int64_t row) const {
    if (isOnePiece_)
      return only_.begin + row * only_.step;
    size_t i = pieceOf(row);
    return pieces_[i].begin + (row - starts_[i]) * pieces_[i].step;
  }

  /// Least and greatest position of a non-empty range of rows.
  std::pair<int64_t, int64_t> bounds(Range rows) const {
    if (isOnePiece_)
      return {only_.begin + rows.begin * only_.step, only_.begin + (rows.end - 1) * only_.step};
    int64_t lo = position(rows.begin), hi = position(rows.end - 1);
    for (size_t i = pieceOf(rows.begin); i < pieces_.size() && starts_[i] < rows.end; ++i) {
      Range part = partOf(i, rows);
      lo = std::min(lo, pieces_[i].begin + (part.begin - starts_[i]) * pieces_[i].step);
      hi = std::max(hi, pieces_[i].begin + (part.end - 1 - starts_[i]) * pieces_[i].step);
    }
    return {lo, hi};
  }

  /// Calls visitor(firstRow, AffinePiece) for each affine stretch of a range of rows.
  template <typename Visitor> void visitPieces(Range rows, Visitor &&visitor) const {
    if (rows.isEmpty())
      return;
    for (size_t i = pieceOf(rows.begin); i < pieces_.size() && starts_[i] < rows.end; ++i) {
      Range part = partOf(i, rows);
      visitor(part.begin, AffinePiece{pieces_[i].begin + (part.begin - starts_[i]) * pieces_[i].step, part.size(),
                                      pieces_[i].step});
    }
  }

  /// Where to cut a range of at least two rows: at the piece boundary next to its middle, else at
  /// its middle.
  int64_t cut(Range rows) const {
    int64_t middle = rows.begin + rows.size() / 2;
    if (isOnePiece())
      return middle;
    size_t i = pieceOf(middle);
    int64_t best = -1;
    for (int64_t boundary : {starts_[i], starts_[i] + pieces_[i].count})
      if (boundary > rows.begin && boundary < rows.end &&
          (best < 0 || std::abs(boundary - middle) < std::abs(best - middle)))
        best = boundary;
    return best < 0 ? middle : best;
  }

private:
  size_t pieceOf(int64_t row) const {
    if (isOnePiece())
      return 0;
    return std::upper_bound(starts_.begin(), starts_.end(), row) - starts_.begin() - 1;
  }
  Range partOf(size_t i, Range rows) const { return intersection(rows, {starts_[i], starts_[i] + pieces_[i].count}); }

  std::vector<AffinePiece> pieces_;
  std::vector<int64_t> starts_;
  int64_t size_ = 0;
  bool isOnePiece_ = false;
  AffinePiece only_; ///< a copy at hand for the most frequent case
};

} // namespace cpflex
