// Builds and queries the pyramids of bounds over lines and rectangles of elements.
#include "runtime/BlockMask/ElementSummary.h"

#include "runtime/BlockMask/ElementAccess.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace cpflex {

namespace {

constexpr int64_t kNoElement = std::numeric_limits<int64_t>::max();

/// A float's bits as an integer that grows with the float, and back.
int64_t orderOf(float value) {
  int32_t bits = std::bit_cast<int32_t>(value);
  return bits < 0 ? -int64_t(bits & 0x7fffffff) : bits;
}
float floatOfOrder(int64_t order) {
  uint32_t bits = order < 0 ? static_cast<uint32_t>(-order) | 0x80000000u : static_cast<uint32_t>(order);
  return std::bit_cast<float>(bits);
}

/// Bounds of `count` elements; `least` is the line's least element, by which secondLo is defined.
template <typename Element> ElementBounds boundsOf(const Element *data, int64_t stride, int64_t count, int64_t least) {
  ElementBounds result;
  if constexpr (std::is_integral_v<Element>) {
    using Signed = std::conditional_t<sizeof(Element) == 8, int64_t, Element>;
    constexpr Signed kMax = std::numeric_limits<Signed>::max();
    Signed lo = kMax, hi = std::numeric_limits<Signed>::min(), second = kMax;
    bool hasSecond = false;
    auto value = [&](int64_t i) { return static_cast<Signed>(data[i * stride]); };
    if (least == std::numeric_limits<int64_t>::min()) {
      for (int64_t i = 0; i < count; ++i) {
        lo = std::min(lo, value(i));
        hi = std::max(hi, value(i));
      }
    } else {
      Signed first = static_cast<Signed>(least);
      for (int64_t i = 0; i < count; ++i) {
        Signed x = value(i);
        lo = std::min(lo, x);
        hi = std::max(hi, x);
        second = std::min(second, x == first ? kMax : x);
        hasSecond |= x != first;
      }
    }
    result.lo = lo;
    result.hi = hi;
    result.secondLo = hasSecond ? static_cast<int64_t>(second) : kNoElement;
  } else {
    for (int64_t i = 0; i < count; ++i) {
      float x = toFloat32(data[i * stride]);
      if (std::isnan(x)) {
        result.hasNaN = true;
        continue;
      }
      result.lo = std::min(result.lo, orderOf(x));
      result.hi = std::max(result.hi, orderOf(x));
    }
  }
  return result;
}

/// Whether the line never decreases and holds no NaN.
template <typename Element> bool isNonDecreasing(const Element *data, int64_t stride, int64_t count) {
  if constexpr (std::is_integral_v<Element>) {
    if (sizeof(Element) == 8 && std::is_unsigned_v<Element>)
      return false; // the order of wrapped values is another one
    constexpr int64_t kChunk = 4096;
    for (int64_t begin = 0; begin + 1 < count; begin += kChunk) {
      int64_t end = std::min(begin + kChunk, count - 1);
      bool decreases = false;
      if (stride == 1)
        for (int64_t i = begin; i < end; ++i)
          decreases |= data[i] > data[i + 1];
      else
        for (int64_t i = begin; i < end; ++i)
          decreases |= data[i * stride] > data[(i + 1) * stride];
      if (decreases)
        return false;
    }
    return true;
  } else {
    return false;
  }
}

ElementBounds boundsOfLine(const ElementLine &line, int64_t begin, int64_t end, int64_t least) {
  return visitElements(line.type, line.data, [&](const auto *data) {
    const auto *first = data + begin * line.stride;
    return line.stride == 1 ? boundsOf(first, 1, end - begin, least) : boundsOf(first, line.stride, end - begin, least);
  });
}

} // namespace

AbstractValue ElementBounds::toAbstract(ElementType type) const {
  if (isFloat(type)) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (lo > hi)
      return AbstractValue::floats(kInfinity, -kInfinity, hasNaN);
    return AbstractValue::floats(floatOfOrder(lo), floatOfOrder(hi), hasNaN);
  }
  if (type == ElementType::Bool)
    return AbstractValue::integers(lo != 0, hi != 0);
  return AbstractValue::integers(lo, hi);
}

LineSummary::LineSummary(const ElementLine &line, bool isKnownSorted) : line_(line) {
  bool mayBeSorted = line.type != ElementType::U64 && !isFloat(line.type);
  isSorted_ = mayBeSorted && (isKnownSorted || visitElements(line.type, line.data, [&](const auto *data) {
                                return isNonDecreasing(data, line.stride, line.count);
                              }));
  if (isSorted_) {
    ends_.reserve(ceilDivide(line.count, kBlock));
    for (int64_t begin = 0; begin < line.count; begin += kBlock)
      ends_.push_back({elementAt(begin), elementAt(std::min(begin + kBlock, line.count) - 1)});
  }
  if (isSorted_ || line.count == 0)
    return;
  std::vector<ElementBounds> blocks(ceilDivide(line.count, kBlock));
  ElementBounds whole;
  for (size_t i = 0; i < blocks.size(); ++i) {
    int64_t begin = static_cast<int64_t>(i) * kBlock;
    blocks[i] = scan(begin, std::min(begin + kBlock, line.count));
    whole.add(blocks[i]);
  }
  if (!isFloat(line.type) && line.type != ElementType::Bool) {
    least_ = whole.lo;
    for (size_t i = 0; i < blocks.size(); ++i) {
      int64_t begin = static_cast<int64_t>(i) * kBlock;
      blocks[i].secondLo = blocks[i].lo;
      if (blocks[i].lo == least_)
        blocks[i] = scan(begin, std::min(begin + kBlock, line.count));
    }
  }
  levels_.push_back(std::move(blocks));
  while (levels_.back().size() > 1) {
    const std::vector<ElementBounds> &lower = levels_.back();
    std::vector<ElementBounds> upper((lower.size() + 1) / 2);
    for (size_t i = 0; i < lower.size(); ++i)
      upper[i / 2].add(lower[i]);
    levels_.push_back(std::move(upper));
  }
}

ElementBounds LineSummary::scan(int64_t begin, int64_t end) const { return boundsOfLine(line_, begin, end, least_); }

ElementBounds LineSummary::bounds(int64_t begin, int64_t end) const {
  if (isSorted_) {
    AbstractValue ends = sortedBounds(begin, end - 1);
    return {.lo = ends.lo, .hi = ends.hi, .secondLo = ends.lo};
  }
  ElementBounds result;
  int64_t first = ceilDivide(begin, kBlock), last = end / kBlock; // whole blocks
  if (end == line_.count)
    last = ceilDivide(end, kBlock);
  if (first >= last) {
    result = scan(begin, end);
    return withGap(result);
  }
  if (begin < first * kBlock)
    result.add(scan(begin, first * kBlock));
  if (last * kBlock < end)
    result.add(scan(last * kBlock, end));
  // A block range is covered by at most two nodes of each level, from the finest up.
  for (size_t level = 0; first < last; ++level, first >>= 1, last >>= 1) {
    if (first & 1)
      result.add(levels_[level][first++]);
    if (last & 1)
      // The last node of a level may stand for fewer blocks than its siblings.
      result.add(levels_[level][--last]);
  }
  return withGap(result);
}

ElementBounds LineSummary::withGap(ElementBounds bounds) const {
  if (least_ == std::numeric_limits<int64_t>::min())
    bounds.secondLo = bounds.lo;
  return bounds;
}

int64_t LineSummary::sizeInBytes() const {
  int64_t total = sizeof(*this) + static_cast<int64_t>(ends_.size() * sizeof(BlockEnds));
  for (const std::vector<ElementBounds> &level : levels_)
    total += static_cast<int64_t>(level.size() * sizeof(ElementBounds));
  return total;
}

RectangleSummary::RectangleSummary(const ElementRectangle &rectangle) : rectangle_(rectangle) {
  Level base;
  base.blockRows = ceilDivide(rectangle.rows, kBlock);
  base.blockColumns = ceilDivide(rectangle.columns, kBlock);
  base.blocks.resize(base.blockRows * base.blockColumns);
  visitElements(rectangle.type, rectangle.data, [&](const auto *data) {
    for (int64_t row = 0; row < rectangle.rows; ++row)
      for (int64_t block = 0; block < base.blockColumns; ++block) {
        int64_t begin = block * kBlock, end = std::min(begin + kBlock, rectangle.columns);
        const auto *first = data + row * rectangle.rowStride + begin * rectangle.columnStride;
        base.blocks[row / kBlock * base.blockColumns + block].add(
            boundsOf(first, rectangle.columnStride, end - begin, std::numeric_limits<int64_t>::min()));
      }
  });
  levels_.push_back(std::move(base));
  while (levels_.back().blocks.size() > 1) {
    const Level &lower = levels_.back();
    Level upper;
    upper.blockRows = (lower.blockRows + 1) / 2;
    upper.blockColumns = (lower.blockColumns + 1) / 2;
    upper.blocks.resize(upper.blockRows * upper.blockColumns);
    for (int64_t row = 0; row < lower.blockRows; ++row)
      for (int64_t column = 0; column < lower.blockColumns; ++column)
        upper.blocks[row / 2 * upper.blockColumns + column / 2].add(lower.blocks[row * lower.blockColumns + column]);
    levels_.push_back(std::move(upper));
  }
}

void RectangleSummary::visit(size_t level, int64_t blockRow, int64_t blockColumn, Range rows, Range columns,
                             ElementBounds &result) const {
  const Level &here = levels_[level];
  if (blockRow >= here.blockRows || blockColumn >= here.blockColumns)
    return;
  const ElementBounds &block = here.blocks[blockRow * here.blockColumns + blockColumn];
  if (result.covers(block))
    return;
  int64_t size = kBlock << level;
  Range blockRows = intersection({blockRow * size, (blockRow + 1) * size}, {0, rectangle_.rows});
  Range blockColumns = intersection({blockColumn * size, (blockColumn + 1) * size}, {0, rectangle_.columns});
  Range commonRows = intersection(blockRows, rows);
  Range commonColumns = intersection(blockColumns, columns);
  if (commonRows.isEmpty() || commonColumns.isEmpty())
    return;
  if (commonRows == blockRows && commonColumns == blockColumns) {
    result.add(block);
    return;
  }
  if (level == 0) {
    visitElements(rectangle_.type, rectangle_.data, [&](const auto *data) {
      for (int64_t row = commonRows.begin; row < commonRows.end; ++row)
        result.add(boundsOf(data + row * rectangle_.rowStride + commonColumns.begin * rectangle_.columnStride,
                            rectangle_.columnStride, commonColumns.size(), std::numeric_limits<int64_t>::min()));
    });
    return;
  }
  for (int64_t i = 0; i < 4; ++i)
    visit(level - 1, 2 * blockRow + i / 2, 2 * blockColumn + i % 2, rows, columns, result);
}

void RectangleSummary::addBounds(Range rows, Range columns, ElementBounds &result) const {
  visit(levels_.size() - 1, 0, 0, rows, columns, result);
}

ElementBounds RectangleSummary::total() const {
  return levels_.back().blocks.empty() ? ElementBounds() : levels_.back().blocks.front();
}

int64_t RectangleSummary::sizeInBytes() const {
  int64_t total = sizeof(*this);
  for (const Level &level : levels_)
    total += static_cast<int64_t>(level.blocks.size() * sizeof(ElementBounds));
  return total;
}

} // namespace cpflex
