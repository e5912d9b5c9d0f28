// The host code of one compiled program as plain function pointers, so that the runtime runs JITed code, and tests
// supply hand-written functions, without knowing MLIR or LLVM.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/Residual.h"

#include <cstdint>
#include <memory>

namespace cpflex {

/// Which (q, kv) pairs one call covers: global positions qBegin + i*qStep for i in [0, qCount), same for kv. Steps
/// other than 1 come from strided shards.
struct TileCoordinates {
  int64_t b = 0, h = 0;
  int64_t qBegin = 0, qCount = 0, qStep = 1;
  int64_t kvBegin = 0, kvCount = 0, kvStep = 1;
};

/// Writes 1 where the pair attends and 0 where not to out[i*rowStride + j]. Thread safe; never fails.
using EvaluateTileFunction = void (*)(const Bindings *bindings, const TileCoordinates *tile, uint8_t *out,
                                      int64_t rowStride);

/// Replaces the scaled scores[i*rowStride + j] by the score function's value, for every pair, forbidden ones included
/// (the caller masks afterwards). Thread safe; never fails.
using ScoreFunction = void (*)(const Bindings *bindings, const TileCoordinates *tile, float *scores, int64_t rowStride);

/// In: `scores` before the score function, and `gradients` of the loss in the function's result, 0 for forbidden pairs.
/// Out: `gradients` in the incoming score. Where captureGradients and captureGradients[c] are not null, adds the
/// gradient of capture c to that dense f32 array, laid out like the capture with its own sizes (broadcast axes summed).
/// One caller at a time per gradient array. A pair whose incoming gradient is 0 contributes exactly 0, whatever its
/// score.
using ScoreGradientFunction = void (*)(const Bindings *bindings, const TileCoordinates *tile, const float *scores,
                                       float *gradients, int64_t rowStride, float *const *captureGradients);

/// Host code of one attention entry point. Null members mean: all pairs attend; scores stay as they are; the gradient
/// passes unchanged. `owner` keeps the code alive.
struct HostFunctions {
  EvaluateTileFunction evaluateTile = nullptr;
  ScoreFunction score = nullptr;
  ScoreGradientFunction scoreGradient = nullptr;
  std::shared_ptr<void> owner;
  /// The residual predicates by number - 1, each for the partial runs that have its number; null where the whole mask
  /// is evaluated instead. Only for masks with this residualKey, which is not 0.
  EvaluateTileFunction evaluateResidual[kMostResiduals - 1] = {};
  uint64_t residualKey = 0;
};

} // namespace cpflex
