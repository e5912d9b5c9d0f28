// Checks parts of problems and turns them into positions.
#include "lib/API/CallParts.h"

#include <fmt/format.h>

namespace cpflex {

static Range withEnd(Range part, int64_t size) { return part.end == 0 ? Range{part.begin, size} : part; }

CallPart withEnds(const CallPart &part, const CallSizes &sizes) {
  return {withEnd(part.batch, sizes.batch), withEnd(part.heads, sizes.heads), withEnd(part.q, sizes.qLen),
          withEnd(part.kv, sizes.kvLen)};
}

static Status checkRange(const char *axis, Range range, int64_t size) {
  if (range.begin < 0 || range.end > size || range.end < range.begin)
    return Status::invalid(
        fmt::format("the part has {} {} to {}; expected a range within 0 to {}", axis, range.begin, range.end, size));
  return Status::ok();
}

Status checkPart(const CallPart &part, const CallSizes &sizes) {
  const CallPart whole = withEnds(part, sizes);
  CPFLEX_RETURN_IF_ERROR(checkRange("batch rows", whole.batch, sizes.batch));
  CPFLEX_RETURN_IF_ERROR(checkRange("heads", whole.heads, sizes.heads));
  CPFLEX_RETURN_IF_ERROR(checkRange("queries", whole.q, sizes.qLen));
  return checkRange("keys", whole.kv, sizes.kvLen);
}

PositionMap positionsOf(Range part, int64_t size) {
  return part == Range{0, size} ? PositionMap{} : PositionMap{{{part.begin, part.size(), 1}}};
}

} // namespace cpflex
