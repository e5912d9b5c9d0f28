// Attention by dense loops in double precision: what results are compared with. Simple before fast; one row of scores
// is held at a time.
#pragma once

#include "runtime/Host/HostAttention.h"

#include <vector>

namespace cpflex {

/// Dense results, row-major: out [batch, qHeads, qLen, vHeadDim], lse and rowMax [batch, qHeads, qLen].
struct ReferenceForward {
  std::vector<double> out, lse, rowMax;
};

/// Dense gradients, row-major: dQ [batch, qHeads, qLen, headDim], dK [batch, kvHeads, kvLen, headDim], dV likewise with
/// vHeadDim; sink [qHeads] of this problem's heads; captures[c] dense like capture c (empty when not asked for), and
/// captureMagnitudes[c] what it would be if every pair's incoming gradient were positive: the scale of its rounding
/// errors, since contributions of both signs may cancel. termsOfDQ and termsOfDK are likewise norms of what dQ and dK
/// add up, each pair's d weight and row term apart: a row that attends to one key has a dQ of 0, their difference.
struct ReferenceBackward {
  std::vector<double> dQ, dK, dV, sink;
  double termsOfDQ = 0, termsOfDK = 0;
  std::vector<std::vector<double>> captures, captureMagnitudes;
};

/// Computes forward in double. Where problem.mask is given, HostFunctions::evaluateTile decides about every pair,
/// whatever the tiles say, so that a wrong BlockMask shows as a difference; without evaluateTile the full tiles decide.
/// Scores are computed in double; a score function, being f32, sees the score rounded to f32 and its f32 value is used.
StatusOr<ReferenceForward> referenceAttentionForward(const AttentionProblem &problem, const TensorView &q,
                                                     const TensorView &k, const TensorView &v);

/// Gradients of sum(dOut * out) + sum(dLse * lse); dLse may have null data. captureGradientsWanted: for each capture,
/// whether its gradient is computed (may be empty).
StatusOr<ReferenceBackward> referenceAttentionBackward(const AttentionProblem &problem, const TensorView &q,
                                                       const TensorView &k, const TensorView &v, const TensorView &dOut,
                                                       const TensorView &dLse,
                                                       const std::vector<bool> &captureGradientsWanted = {});

/// |actual - expected| / |expected| in the Frobenius norm over the [sizes] elements of a view; rows where both are the
/// same infinity or both NaN count as equal. 0 when both are all zero; infinity when they differ in where they are
/// finite. A norm of `expected` below `terms` counts as that much.
double relativeError(const TensorView &actual, const std::vector<double> &expected, const int64_t (&sizes)[4],
                     double terms = 0);

/// |actual - expected| / |magnitudes| in the Euclidean norm, for as many f32 elements as `expected` has; 0 when they
/// are equal.
double errorOfSums(const float *actual, const std::vector<double> &expected, const std::vector<double> &magnitudes);

} // namespace cpflex
