// How a score function depends on the score it is given, which tells kernels what their backward pass needs.
#pragma once

#include "dialect/Mask/MaskDialect.h"

namespace cpflex {

/// From the simplest to the most general; a later form includes the earlier ones.
enum class ScoreForm {
  Identity, ///< gives the score itself
  Additive, ///< score + f(b, h, q, kv): the gradient passes unchanged
  Scaled,   ///< score * g + f with g and f of (b, h, q, kv): the gradient is scaled, whatever the score was
  General,  ///< anything else: the gradient depends on the score
};

/// The simplest form that the straight-line reading of `score` proves.
ScoreForm scoreFormOf(mask::ScoreOp score);

} // namespace cpflex
