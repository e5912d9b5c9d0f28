// Which values does a list hold? The rows of a matrix of integers, each sorted once, so that membership of a value, or
// of all values between two, takes a binary search instead of a look at every element.
#pragma once

#include "runtime/BlockMask/AbstractValue.h"
#include "runtime/BlockMask/ElementSummary.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// Sorted rows without repetitions. A row beyond the matrix holds only 0, which is what loads outside of an array give.
class MemberLists {
public:
  /// Whether the lists hold a 0 besides their elements, as a loop beyond the end of a row finds it.
  enum class Zero : uint8_t { Absent, Present };

  /// The elements are integers.
  MemberLists(const ElementRectangle &rectangle, Zero zero);

  bool contains(int64_t row, int64_t value) const;

  /// Whether values are members for rows and values that may be any of two intervals; a Bool. More than kMostRows rows
  /// are not looked at one by one.
  AbstractValue contains(const AbstractValue &rows, const AbstractValue &values) const;

  int64_t sizeInBytes() const;

private:
  static constexpr int64_t kMostRows = 256;
  /// Whether the list of a row has a value of [lo, hi], and whether it lacks one.
  AbstractValue lookAt(int64_t row, int64_t lo, int64_t hi) const;

  int64_t numRows_ = 0;
  int64_t least_ = 0, greatest_ = 0; ///< of all lists, 0 included
  std::vector<int64_t> begins_;      ///< of each row in values_, and the end
  std::vector<int64_t> values_;
};

} // namespace cpflex
