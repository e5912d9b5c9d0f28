// The bounds that a CaptureSummaries hands out: of ranges of a line of elements, and of rectangles.
#pragma once

#include "runtime/BlockMask/AbstractValue.h"
#include "runtime/BlockMask/ElementAccess.h"
#include "runtime/contract/Bindings.h"
#include "runtime/contract/Range.h"

#include <cstdint>
#include <type_traits>
#include <vector>

namespace cpflex {

/// Bounds of some elements. Integers as they are (Bool as 0 and 1, u64 wrapped to 64 signed bits);
/// floats as integers of the same order, NaN left out and noted. Empty when lo > hi.
struct ElementBounds {
  int64_t lo = std::numeric_limits<int64_t>::max();
  int64_t hi = std::numeric_limits<int64_t>::min();
  /// The least element above the line's least one, for ids with a sentinel such as -1; the maximum
  /// of int64_t when there is none. Equal to lo where nothing is known.
  int64_t secondLo = std::numeric_limits<int64_t>::max();
  bool hasNaN = false;

  void add(const ElementBounds &other) {
    lo = other.lo < lo ? other.lo : lo;
    hi = other.hi > hi ? other.hi : hi;
    secondLo = other.secondLo < secondLo ? other.secondLo : secondLo;
    hasNaN |= other.hasNaN;
  }
  bool covers(const ElementBounds &other) const {
    return lo <= other.lo && hi >= other.hi && secondLo <= other.secondLo && (hasNaN || !other.hasNaN);
  }
  /// As the values of an expression.
  AbstractValue toAbstract(ElementType type) const;
};

/// Elements of an array along one axis.
struct ElementLine {
  const void *data = nullptr;
  ElementType type = ElementType::I32;
  int64_t count = 0, stride = 1;
};

/// Bounds of any range of a line: its ends when the line is sorted, otherwise a binary pyramid over
/// blocks of 128 elements whose partly covered blocks are read. The ends of a sorted line's blocks
/// are kept side by side, because tiles most often begin and end there.
class LineSummary {
public:
  LineSummary(const ElementLine &line, bool isKnownSorted);

  /// Bounds of elements [begin, end), a non-empty part of the line.
  ElementBounds bounds(int64_t begin, int64_t end) const;
  bool isSorted() const { return isSorted_; }
  /// Elements [first, last], a part of a sorted line: its ends bound everything between them.
  AbstractValue sortedBounds(int64_t first, int64_t last) const {
    return AbstractValue::integers(sortedElement(first), sortedElement(last));
  }
  /// One element of a sorted line; those at the ends of blocks without reading the line itself.
  int64_t sortedElement(int64_t i) const {
    if (i % kBlock == 0)
      return ends_[i / kBlock].first;
    return i % kBlock == kBlock - 1 ? ends_[i / kBlock].last : elementAt(i);
  }
  ElementType type() const { return line_.type; }
  int64_t sizeInBytes() const;

private:
  static constexpr int64_t kBlock = 128;
  struct BlockEnds {
    int64_t first, last;
  };
  int64_t elementAt(int64_t i) const {
    return visitElements(line_.type, line_.data, [&](const auto *data) -> int64_t {
      if constexpr (std::is_integral_v<std::remove_cvref_t<decltype(*data)>>)
        return static_cast<int64_t>(data[i * line_.stride]);
      else
        return 0; // floats are never summarised as sorted
    });
  }
  ElementBounds scan(int64_t begin, int64_t end) const;
  /// Without a known least element there is no gap above it to speak of.
  ElementBounds withGap(ElementBounds bounds) const;

  ElementLine line_;
  bool isSorted_ = false;
  int64_t least_ = std::numeric_limits<int64_t>::min(); ///< the line's least element, once known
  std::vector<BlockEnds> ends_;                         ///< of each block, when the line is sorted
  std::vector<std::vector<ElementBounds>> levels_;      ///< levels_[l][i]: blocks [i << l, (i + 1) << l)
};

/// A matrix of elements.
struct ElementRectangle {
  const void *data = nullptr;
  ElementType type = ElementType::I32;
  int64_t rows = 0, rowStride = 0, columns = 0, columnStride = 1;
};

/// Bounds of any rectangle of a matrix, from a pyramid over blocks of 16 x 16 elements.
class RectangleSummary {
public:
  explicit RectangleSummary(const ElementRectangle &rectangle);

  /// Adds the bounds of rows x columns, both non-empty and inside, to `result`.
  void addBounds(Range rows, Range columns, ElementBounds &result) const;
  ElementBounds total() const;
  int64_t sizeInBytes() const;

private:
  static constexpr int64_t kBlock = 16;
  struct Level {
    int64_t blockRows = 0, blockColumns = 0;
    std::vector<ElementBounds> blocks;
  };
  void visit(size_t level, int64_t blockRow, int64_t blockColumn, Range rows, Range columns,
             ElementBounds &result) const;

  ElementRectangle rectangle_;
  std::vector<Level> levels_;
};

} // namespace cpflex
