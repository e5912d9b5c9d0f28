// Which interval rules belong to which type: the parts that AbstractValue.cpp puts together.
#pragma once

#include "runtime/BlockMask/AbstractValue.h"

namespace cpflex {

/// Interval rules of the operations on Int; comparisons give Bool.
AbstractValue applyToIntegers(Operation operation, const AbstractValue *operands);

/// Interval rules of the operations on U32, whose values wrap at 2^32.
AbstractValue applyToU32(Operation operation, const AbstractValue *operands);

/// Interval rules of the operations on Float. Rounding to nearest is monotone, so the ends are
/// computed in f32.
AbstractValue applyToFloats(Operation operation, const AbstractValue *operands);

/// The low 32 bits of an Int, kept as an interval when all of it lies between two multiples of
/// 2^32.
AbstractValue wrapToU32(const AbstractValue &value);

} // namespace cpflex
