// The BlockMask of a compute whose mask has no tape: every tile is evaluated by the host function.
#pragma once

#include "runtime/contract/Attention.h"
#include "runtime/contract/BlockMask.h"

namespace cpflex {

/// Classifies each tile of 128 x 128 local pairs of `problem` by evaluating it. For hand-written functions; masks with
/// a tape are derived by runtime/BlockMask.
BlockMask evaluatedMask(const AttentionProblem &problem);

} // namespace cpflex
