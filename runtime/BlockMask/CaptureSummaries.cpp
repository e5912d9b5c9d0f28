// The shared store of summaries and the verification of declared facts.
#include "runtime/BlockMask/CaptureSummaries.h"

#include "runtime/BlockMask/ElementAccess.h"
#include "runtime/BlockMask/ElementSummary.h"
#include "runtime/BlockMask/MemberLists.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>

namespace cpflex {

namespace {

/// A summary that is built once by whoever asks first, while others wait for this one only.
template <typename Summary> struct Slot {
  std::once_flag once;
  std::unique_ptr<Summary> summary;
};

} // namespace

struct CaptureSummaries::Storage {
  using LineKey = std::tuple<const void *, ElementType, int64_t, int64_t>;
  using RectangleKey = std::tuple<const void *, ElementType, int64_t, int64_t, int64_t, int64_t>;
  mutable std::mutex mutex;
  std::map<LineKey, Slot<LineSummary>> lines;
  std::map<RectangleKey, Slot<RectangleSummary>> rectangles;
  std::map<std::pair<RectangleKey, bool>, Slot<MemberLists>> members;
  int64_t sizeInBytes = 0;

  template <typename Summary, typename Build> const Summary &get(Slot<Summary> &slot, const Build &build) {
    std::call_once(slot.once, [&] {
      slot.summary = build();
      std::lock_guard<std::mutex> lock(mutex);
      sizeInBytes += slot.summary->sizeInBytes();
    });
    return *slot.summary;
  }
};

CaptureSummaries::CaptureSummaries() : storage_(std::make_unique<Storage>()) {}
CaptureSummaries::~CaptureSummaries() = default;

const LineSummary &CaptureSummaries::line(const void *data, ElementType type, int64_t count, int64_t stride,
                                          Order order) {
  Slot<LineSummary> *slot;
  {
    std::lock_guard<std::mutex> lock(storage_->mutex);
    slot = &storage_->lines[{data, type, count, stride}];
  }
  return storage_->get(*slot, [&] {
    return std::make_unique<LineSummary>(ElementLine{data, type, count, stride}, order == Order::Sorted);
  });
}

const RectangleSummary &CaptureSummaries::rectangle(const void *data, ElementType type, int64_t rows, int64_t rowStride,
                                                    int64_t columns, int64_t columnStride) {
  Slot<RectangleSummary> *slot;
  {
    std::lock_guard<std::mutex> lock(storage_->mutex);
    slot = &storage_->rectangles[{data, type, rows, rowStride, columns, columnStride}];
  }
  return storage_->get(*slot, [&] {
    return std::make_unique<RectangleSummary>(ElementRectangle{data, type, rows, rowStride, columns, columnStride});
  });
}

const MemberLists &CaptureSummaries::members(const void *data, ElementType type, int64_t rows, int64_t rowStride,
                                             int64_t columns, int64_t columnStride, bool hasZero) {
  Slot<MemberLists> *slot;
  {
    std::lock_guard<std::mutex> lock(storage_->mutex);
    slot = &storage_->members[{{data, type, rows, rowStride, columns, columnStride}, hasZero}];
  }
  return storage_->get(*slot, [&] {
    return std::make_unique<MemberLists>(ElementRectangle{data, type, rows, rowStride, columns, columnStride},
                                         hasZero ? MemberLists::Zero::Present : MemberLists::Zero::Absent);
  });
}

int64_t CaptureSummaries::sizeInBytes() const {
  std::lock_guard<std::mutex> lock(storage_->mutex);
  return storage_->sizeInBytes;
}

namespace {

/// What is wrong in a line of elements, and where; position -1 when nothing is.
struct Offence {
  int64_t position = -1;
  enum class Fact : uint8_t { Order, Lo, Hi } fact = Fact::Order;
};

template <typename Element>
Offence firstOffence(const CaptureDeclaration &declaration, const Element *data, int64_t stride, int64_t count) {
  auto value = [&](int64_t i) {
    if constexpr (std::is_integral_v<Element>)
      return data[i * stride];
    else
      return toFloat32(data[i * stride]);
  };
  using Value = decltype(value(0));
  auto isBelow = [](Value x, int64_t bound) {
    if constexpr (std::is_same_v<Value, uint64_t>)
      return bound > 0 && x < static_cast<uint64_t>(bound);
    else if constexpr (std::is_integral_v<Value>)
      return static_cast<int64_t>(x) < bound;
    else // a NaN lies outside of every bound
      return !(static_cast<double>(x) >= static_cast<double>(bound));
  };
  auto isBadOrder = [&](int64_t i) {
    if constexpr (std::is_integral_v<Element>)
      return value(i) < value(i - 1);
    else
      return !(value(i) >= value(i - 1));
  };
  bool isBad = false;
  constexpr int64_t kChunk = 4096;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    int64_t end = std::min(begin + kChunk, count);
    // The common case finds nothing: first whole chunks without branches, then the place.
    if (declaration.isSorted)
      for (int64_t i = std::max<int64_t>(begin, 1); i < end; ++i)
        isBad |= isBadOrder(i);
    if (declaration.hasLo)
      for (int64_t i = begin; i < end; ++i)
        isBad |= isBelow(value(i), declaration.lo);
    if (declaration.hasHi)
      for (int64_t i = begin; i < end; ++i)
        isBad |= !isBelow(value(i), declaration.hi);
    if (!isBad)
      continue;
    for (int64_t i = begin; i < end; ++i) {
      if (declaration.hasLo && isBelow(value(i), declaration.lo))
        return {i, Offence::Fact::Lo};
      if (declaration.hasHi && !isBelow(value(i), declaration.hi))
        return {i, Offence::Fact::Hi};
      if (declaration.isSorted && i > 0 && isBadOrder(i))
        return {i, Offence::Fact::Order};
    }
  }
  return {};
}

std::string elementText(const CaptureView &view, int64_t offset) {
  return visitElements(view.type, view.data, [&](const auto *data) {
    if constexpr (std::is_integral_v<std::remove_cvref_t<decltype(*data)>>)
      return fmt::format("{}", +data[offset]);
    else
      return fmt::format("{}", toFloat32(data[offset]));
  });
}

Status offenceStatus(const CaptureDeclaration &declaration, const CaptureView &view, const Offence &offence,
                     const int64_t (&index)[kMaxCaptureRank], int64_t offset, int64_t stride) {
  std::string position;
  for (int axis = 0; axis + 1 < view.rank; ++axis)
    position += fmt::format("{}, ", index[axis]);
  position += fmt::format("{}", offence.position);
  std::string seen =
      fmt::format("'{}[{}]' is {}", declaration.name, position, elementText(view, offset + offence.position * stride));
  switch (offence.fact) {
  case Offence::Fact::Lo: return Status::invalid(fmt::format("{}; expected {} or more", seen, declaration.lo));
  case Offence::Fact::Hi: return Status::invalid(fmt::format("{}; expected less than {}", seen, declaration.hi));
  case Offence::Fact::Order: break;
  }
  return Status::invalid(fmt::format("{}; expected {} or more, because '{}' is declared sorted", seen,
                                     elementText(view, offset + (offence.position - 1) * stride), declaration.name));
}

} // namespace

Status verifyFacts(const CaptureDeclaration &declaration, const CaptureView &view) {
  if (!declaration.isSorted && !declaration.hasLo && !declaration.hasHi)
    return Status::ok();
  if (view.rank == 0) {
    CaptureView asLine = view;
    asLine.rank = 1;
    asLine.shape[0] = asLine.strides[0] = 1;
    return verifyFacts(declaration, asLine);
  }
  // One line along the last axis per index of the leading axes; a broadcast axis repeats its only
  // line.
  int last = view.rank - 1;
  int64_t index[kMaxCaptureRank] = {};
  for (int axis = 0; axis < view.rank; ++axis)
    if (view.shape[axis] == 0)
      return Status::ok();
  while (true) {
    int64_t offset = 0;
    for (int axis = 0; axis < last; ++axis)
      offset += index[axis] * view.strides[axis];
    Offence offence = visitElements(view.type, view.data, [&](const auto *data) {
      return view.strides[last] == 1 ? firstOffence(declaration, data + offset, 1, view.shape[last])
                                     : firstOffence(declaration, data + offset, view.strides[last], view.shape[last]);
    });
    if (offence.position >= 0)
      return offenceStatus(declaration, view, offence, index, offset, view.strides[last]);
    int axis = last - 1;
    for (; axis >= 0; --axis) {
      if (view.strides[axis] != 0 && ++index[axis] < view.shape[axis])
        break;
      index[axis] = 0;
    }
    if (axis < 0)
      return Status::ok();
  }
}

} // namespace cpflex
