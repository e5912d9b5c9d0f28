// Follows the parts of a buffer that hold something; see WrittenParts.h.
#include "runtime/Executor/WrittenParts.h"
#include "runtime/Plan/Rotations.h"

namespace cpflex {
namespace {

/// Of more parts than this the search for each contribution would cost more than the zeros.
constexpr size_t kMostParts = 256;

} // namespace

bool WrittenParts::isStored(const Slab &part) {
  for (const Slab &each : stored_) {
    const Slab common = commonPart(each, part);
    if (common == part)
      return true;
    isZeroed_ |= !isEmpty(common);
  }
  return false;
}

void WrittenParts::plan(const Slab &part) {
  if (isZeroed_ || isEmpty(part) || isStored(part))
    return;
  isZeroed_ |= stored_.size() == kMostParts;
  stored_.push_back(part);
}

ExecutionDevice::Contents WrittenParts::startOf(int64_t numRows) {
  for (const Slab &each : stored_)
    numRows -= each.batch.size() * each.heads.size() * each.rows.size();
  isZeroed_ |= numRows != 0;
  stored_.clear();
  return isZeroed_ ? ExecutionDevice::Contents::Zero : ExecutionDevice::Contents::Undefined;
}

GradientWrite WrittenParts::next(const Slab &part) {
  if (isZeroed_ || isEmpty(part) || isStored(part))
    return GradientWrite::Add;
  stored_.push_back(part);
  return GradientWrite::Overwrite;
}

} // namespace cpflex
