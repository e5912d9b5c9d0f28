// Half-open ranges of positions or tiles, the unit in which every part of cpflex speaks of "from here to there".
#pragma once

#include <algorithm>
#include <cstdint>

namespace cpflex {

/// The integers in [begin, end); empty when end <= begin.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return std::max<int64_t>(end - begin, 0); }
  bool isEmpty() const { return end <= begin; }
  bool contains(int64_t value) const { return begin <= value && value < end; }
  friend bool operator==(const Range &, const Range &) = default;
};

/// The common part of two ranges.
inline Range intersection(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

/// Division that rounds up; both arguments are non-negative and the divisor is not zero.
inline int64_t ceilDivide(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

} // namespace cpflex
