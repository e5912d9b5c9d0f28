// One attention call as plain data: tensors, sizes and what the scores mean. The CPU, the GPU and the executor of
// context-parallel schedules all take it.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/HostFunctions.h"
#include "runtime/contract/PositionMap.h"

#include <cstdint>

namespace cpflex {

/// A tensor indexed [b, h, s, d] whatever its memory order; strides count elements and may be 0 to broadcast. Memory is
/// the caller's. LSE-like tensors have d = 1.
struct TensorView {
  void *data = nullptr;
  ElementType type = ElementType::F32;
  int64_t strides[4] = {};
};

/// Sizes and meaning of one attention call over local rows.
///   scores[q, kv] = score(scale * dot(Q[q], K[kv])) where the mask allows the pair
///   softmax:    O = sum exp(scores - LSE) V, LSE = log sum exp(scores) (natural logarithm, sink included)
///   no softmax: O = sum scores * V, no LSE
/// A row without keys has O = 0 and LSE = -inf (with a sink: O = 0, LSE = sink).
struct AttentionProblem {
  int64_t batch = 1, qHeads = 1, kvHeads = 1;
  int64_t qLen = 0, kvLen = 0;
  int64_t headDim = 64, vHeadDim = 64;
  float scale = 1.0f;
  enum class Normalization : uint8_t { Softmax, None } normalization = Normalization::Softmax;

  int64_t batchOffset = 0; ///< global index of batch row 0
  int64_t headOffset = 0;  ///< global index of query head 0
  PositionMap qPositions;  ///< global positions of the rows of Q; empty means identity
  PositionMap kvPositions; ///< global positions of the rows of K and V; empty means identity

  const BlockMask *mask = nullptr;          ///< over local rows and local (b, h); null: every pair attends
  const HostFunctions *functions = nullptr; ///< used on the CPU for partial tiles and scores; null: none
  const Bindings *bindings = nullptr;       ///< what the functions read; in host memory on the CPU
  const float *sink = nullptr;              ///< one logit per global query head, or null
};

} // namespace cpflex
