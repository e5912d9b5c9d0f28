// What a backward call keeps in its workspace, and how its work is cut: by the problem alone, never by threads.
#pragma once

#include "runtime/Host/HostKernels.h"
#include "runtime/Host/TileColumns.h"

#include "runtime/Host/HostAttention.h"

#include <vector>

namespace cpflex {

/// The buffers of one thread.
struct BackwardBuffers {
  BackwardBuffers(const AttentionProblem &problem, const HostBackwardTensors &tensors, WorkspaceCursor &cursor);

  float *q, *k, *kTransposed, *dK;       ///< blocks of headDim columns (kTransposed: rows)
  float *vTransposed, *dOut, *dV;        ///< blocks of vHeadDim columns (vTransposed: rows)
  float *qPairs, *dOutPairs;             ///< q and dOut in pairs of bf16 (see RowProduct)
  float *incoming, *weights, *gradients; ///< one score tile each: before the score function, after softmax, dS
  uint8_t *mask, *allowed;
  TileClass *classes; ///< scratch of one element per tile of keys, like coverage
  int32_t *coverage;
};

/// Copies of the capture gradients that one unit at a time adds to. Where a gradient is small, what one pair of tiles
/// adds in f32 is moved to sums in double: many pairs add to one element.
struct CaptureLane {
  std::vector<float *> arrays; ///< one per capture, null when not asked for
  std::vector<double *> sums;  ///< one per capture, null for large ones

  /// Moves what the arrays hold to the sums.
  void flush(const std::vector<int64_t> &sizes) const;
};

/// All that a call keeps. A unit is one slot of one (b, kv head): a share of its keys with its own copy of dQ. A lane
/// is a sequence of units that share copies of the capture gradients.
struct BackwardLayout {
  BackwardLayout(const AttentionProblem &problem, const HostBackwardTensors &tensors, int numThreads,
                 WorkspaceCursor &cursor);

  float *queryGradientRows(int64_t slot, int64_t b, int64_t h, int64_t row) const {
    return queryGradients + (((slot * batch + b) * qHeads + h) * qLen + row) * queryGradientStride;
  }

  int64_t batch, qHeads, qLen;
  int64_t numSlots;
  int64_t queryGradientStride;
  float *queryGradients = nullptr; ///< [slot][b][h][row][queryGradientStride], null when dQ is not asked for
  TensorView rowTerm;              ///< the caller's, or in the workspace
  TensorView weightScale;          ///< f32 [b][h][row], see WeightScale.h; null data without softmax
  TileColumns columns;
  std::vector<int64_t> captureSizes; ///< elements of each gradient array, 0 when not asked for
  std::vector<CaptureLane> lanes;    ///< empty: no capture gradients
  std::vector<BackwardBuffers> threadBuffers;
};

} // namespace cpflex
