// What the backward kernels share: turning recomputed scores into weights and into the factors that scores' gradients
// are multiples of. With x the score and LSE and delta of its query row,
//   P = exp(x - LSE)                     (no softmax: P = x)
//   dS = score'(s) * P * (dP - delta)    (no softmax: dS = score'(s) * dP),  dP = dO V^T
//   dV = P^T dO,  dQ = scale * dS K,  dK = scale * dS^T Q.
// Gradients of scores are linear in what arrives, so one factor per pair, score'(s) * P, takes the place of the score
// in its register and nothing else stays alive until dP is there.
#pragma once

#include "runtime/kernels/softmax.cuh"

namespace cpflex::kernels {

/// Whether the derivative of the score function differs from 1.
template <class Program>
constexpr bool kScalesGradient = Program::kScoreForm == ScoreForm::Scaled || Program::kScoreForm == ScoreForm::General;

/// In: products. Out: in `scores` the factor of each pair's gradient, in `weights` (where wanted) packed P. Pairs whose
/// keep bit is 0 get 0; `isMasked` (uniform) says whether any bit may be. `lseLog2(i)` is LSE * log2(e) of register i.
template <class Element, class Program, TileAxes kAxes, bool kHasSoftmax, bool kWantsWeights, int N, class Positions,
          class LseLog2>
__device__ __forceinline__ void
weighTile(float (&scores)[N], uint32 (&weights)[N / 2], const uint32 (&keep)[2], bool isMasked,
          const ScoreScale<Program> &scale, const typename Program::Captures &captures, int b, int h,
          const int (&rowPosition)[2], const Positions &columns, const LseLog2 &lseLog2) {
  if constexpr (kHasSoftmax && !kScalesGradient<Program>) {
    applyScore<Program, kAxes>(scores, scale, captures, b, h, rowPosition, columns);
    if (isMasked)
      applyKeepWords(scores, keep, -infinity());
#pragma unroll
    for (int i = 0; i < N; ++i)
      scores[i] = exp2Fast(fmaf(scores[i], scale.toLog2, -lseLog2(i)));
    if constexpr (kWantsWeights)
      packOperand<Element>(weights, scores);
  } else {
    float previous = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float s = scores[i] * scale.scale, score = s, slope = 1.0f;
      if constexpr (ScoreScale<Program>::kHasScore) {
        int column = columns.at(registerColumn(i) + 2 * (threadIdx.x % 4));
        int row = rowPosition[registerRow(i)];
        int q = kAxes == TileAxes::RowsAreQ ? row : column, kv = kAxes == TileAxes::RowsAreQ ? column : row;
        score = Program::score(captures, s, b, h, q, kv);
        if constexpr (kScalesGradient<Program>)
          slope = Program::scoreGradient(captures, s, 1.0f, b, h, q, kv);
      }
      bool attends = keep[registerRow(i)] >> registerBit(i) & 1u;
      float weight = kHasSoftmax ? exp2Fast(fmaf(score, kLog2E, -lseLog2(i))) : score;
      weight = attends ? weight : 0.0f;
      if constexpr (kHasSoftmax)
        scores[i] = weight == 0.0f ? 0.0f : weight * slope;
      else
        scores[i] = attends ? slope : 0.0f;
      if constexpr (kWantsWeights)
        if (i % 2 == 1)
          weights[i / 2] = Element::pack(previous, weight);
      previous = weight;
    }
  }
}

} // namespace cpflex::kernels
