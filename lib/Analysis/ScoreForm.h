// How a score function depends on the score it is given, which tells kernels what their backward pass needs.
#pragma once

#include "dialect/Mask/MaskDialect.h"
#include "runtime/contract/KernelArguments.h"

namespace cpflex {

/// The simplest form that the straight-line reading of `score` proves. `score * g + f` counts as Scaled: its gradient
/// is scaled, whatever the score was.
ScoreForm scoreFormOf(mask::ScoreOp score);

} // namespace cpflex
