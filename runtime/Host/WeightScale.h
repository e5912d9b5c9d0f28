// By how much the weights exp(score - LSE) of a row are off because its LSE was rounded to f32.
#pragma once

#include "runtime/Host/BackwardBuffers.h"
#include "runtime/Host/TileClasses.h"

namespace cpflex {

/// Fills layout.weightScale: exp(LSE as stored - LSE), where LSE is summed up again over the keys of the call and the
/// sink. 1 for rows whose LSE is so small that its rounding does not show, which cost nothing, and for rows of which
/// the call sees a part of the keys only: their sum gives another LSE than the stored one. `problem` has softmax.
void computeWeightScale(const AttentionProblem &problem, const HostBackwardTensors &tensors, const HostKernels &kernels,
                        const TileClasses &classes, const BackwardLayout &layout, HostThreads &threads);

} // namespace cpflex
