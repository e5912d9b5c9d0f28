// Sorts rows and searches them.
#include "runtime/BlockMask/MemberLists.h"

#include "runtime/BlockMask/ElementAccess.h"

#include <algorithm>
#include <type_traits>

namespace cpflex {

MemberLists::MemberLists(const ElementRectangle &rectangle, Zero zero) : numRows_(rectangle.rows) {
  begins_.reserve(numRows_ + 1);
  begins_.push_back(0);
  values_.reserve(rectangle.rows * rectangle.columns);
  visitElements(rectangle.type, rectangle.data, [&](const auto *data) {
    if constexpr (std::is_integral_v<std::remove_cvref_t<decltype(*data)>>)
      for (int64_t row = 0; row < numRows_; ++row) {
        for (int64_t column = 0; column < rectangle.columns; ++column)
          values_.push_back(static_cast<int64_t>(data[row * rectangle.rowStride + column * rectangle.columnStride]));
        if (zero == Zero::Present)
          values_.push_back(0);
        auto begin = values_.begin() + begins_.back();
        if (!std::is_sorted(begin, values_.end()))
          std::sort(begin, values_.end());
        values_.erase(std::unique(begin, values_.end()), values_.end());
        begins_.push_back(static_cast<int64_t>(values_.size()));
      }
  });
  for (int64_t value : values_) {
    least_ = std::min(least_, value);
    greatest_ = std::max(greatest_, value);
  }
}

bool MemberLists::contains(int64_t row, int64_t value) const {
  if (row < 0 || row >= numRows_)
    return value == 0;
  return std::binary_search(values_.begin() + begins_[row], values_.begin() + begins_[row + 1], value);
}

AbstractValue MemberLists::lookAt(int64_t row, int64_t lo, int64_t hi) const {
  auto end = values_.begin() + begins_[row + 1];
  auto first = std::lower_bound(values_.begin() + begins_[row], end, lo);
  bool hasMember = first != end && *first <= hi;
  // Values do not repeat, so hi - lo places after lo stands hi exactly when none between them is missing.
  uint64_t span = static_cast<uint64_t>(hi) - static_cast<uint64_t>(lo);
  bool hasAll =
      hasMember && *first == lo && span < static_cast<uint64_t>(end - first) && first[static_cast<int64_t>(span)] == hi;
  return AbstractValue::booleans(hasMember, !hasAll);
}

AbstractValue MemberLists::contains(const AbstractValue &rows, const AbstractValue &values) const {
  if (values.hi < least_ || values.lo > greatest_)
    return AbstractValue::booleans(/*canBeTrue=*/false, /*canBeFalse=*/true);
  bool canBeTrue = false, canBeFalse = false;
  int64_t begin = std::max<int64_t>(rows.lo, 0), end = std::min(rows.hi, numRows_ - 1);
  if (rows.lo < 0 || rows.hi >= numRows_) {
    canBeTrue = values.lo <= 0 && values.hi >= 0;
    canBeFalse = values.lo != 0 || values.hi != 0;
  }
  if (end - begin >= kMostRows)
    return AbstractValue::booleans(true, true);
  for (int64_t row = begin; row <= end && !(canBeTrue && canBeFalse); ++row) {
    AbstractValue answer = lookAt(row, values.lo, values.hi);
    canBeTrue |= answer.canBeTrue();
    canBeFalse |= answer.canBeFalse();
  }
  return AbstractValue::booleans(canBeTrue, canBeFalse);
}

int64_t MemberLists::sizeInBytes() const {
  return static_cast<int64_t>(sizeof(*this) + (begins_.size() + values_.size()) * sizeof(int64_t));
}

} // namespace cpflex
