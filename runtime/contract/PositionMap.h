// Which global token positions the rows of a local tensor hold: a list of affine pieces, the unit of every Layout.
#pragma once

#include <cstdint>
#include <vector>

namespace cpflex {

/// `count` rows whose global positions are begin, begin + step, ...; step >= 1.
struct AffinePiece {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t step = 1;
  friend bool operator==(const AffinePiece &, const AffinePiece &) = default;
};

/// Rows of a local tensor in order, piece after piece. The identity map of length n is one piece {0, n, 1}.
struct PositionMap {
  std::vector<AffinePiece> pieces;

  static PositionMap identity(int64_t count) { return {{{0, count, 1}}}; }
  int64_t size() const {
    int64_t total = 0;
    for (const AffinePiece &piece : pieces)
      total += piece.count;
    return total;
  }
  friend bool operator==(const PositionMap &, const PositionMap &) = default;
};

} // namespace cpflex
