// What values does a captured array hold between two indices? Bounds of blocks of elements, built
// once per bound array and shared between masks, so that a tile's interval is found without reading
// the tile's elements.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <memory>

namespace cpflex {

class LineSummary;
class MemberLists;
class RectangleSummary;

/// Summaries of bound arrays, found by the memory they describe. They are built on first use and
/// kept until the object dies: whoever changes an array's contents drops the object. Thread safe.
/// The arrays must stay alive and unchanged.
class CaptureSummaries {
public:
  CaptureSummaries();
  ~CaptureSummaries();
  CaptureSummaries(const CaptureSummaries &) = delete;
  CaptureSummaries &operator=(const CaptureSummaries &) = delete;

  /// Whether the line is already known to be non-decreasing, or has to be found out.
  enum class Order : uint8_t { Unknown, Sorted };

  /// The summary of `count` elements of `type` from `data` on, `stride` elements apart.
  const LineSummary &line(const void *data, ElementType type, int64_t count, int64_t stride, Order order);

  /// The summary of a rectangle of rows x columns elements.
  const RectangleSummary &rectangle(const void *data, ElementType type, int64_t rows, int64_t rowStride,
                                    int64_t columns, int64_t columnStride);

  /// The sorted rows of a rectangle of integers; `hasZero` adds 0 to each.
  const MemberLists &members(const void *data, ElementType type, int64_t rows, int64_t rowStride, int64_t columns,
                             int64_t columnStride, bool hasZero);

  /// Bytes held by the summaries built so far.
  int64_t sizeInBytes() const;

private:
  struct Storage;
  std::unique_ptr<Storage> storage_;
};

/// Checks a bound array against what its declaration states (`sorted`, `lo`, `hi`). The message
/// names the capture, the first offending position and the value found there.
Status verifyFacts(const CaptureDeclaration &declaration, const CaptureView &view);

} // namespace cpflex
