// Which ranges of the whole problem does a call cover?
#pragma once

#include "lib/API/cpflex.h"

namespace cpflex {

/// InvalidArgument unless the ranges of `part` lie within the sizes.
Status checkPart(const CallPart &part, const CallSizes &sizes);

/// The part with an end for every axis.
CallPart withEnds(const CallPart &part, const CallSizes &sizes);

/// The positions of the rows of a part of an axis of `size`; no pieces for all of it.
PositionMap positionsOf(Range part, int64_t size);

} // namespace cpflex
