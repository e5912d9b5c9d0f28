// Context-parallel attention over whole arrays, for callers that hold them: takes shards, runs every rank (or one),
// puts the results together. The tool's entry; a training job calls Executor.h with its own shards.
#pragma once

#include "runtime/Executor/Executor.h"

#include <vector>

namespace cpflex {

/// Whole arrays [batch, heads, length, ...] of any strides. Those of the backward pass are read and written when a
/// backward schedule is given.
struct WholeTensors {
  TensorView q, k, v;
  TensorView out; ///< in the schedule's type
  TensorView lse; ///< optional, f32
  TensorView dOut;
  TensorView dLse;                          ///< optional, f32
  TensorView dQ, dK, dV;                    ///< in the schedule's type
  float *const *captureGradients = nullptr; ///< as in RankBackwardTensors
  int numCaptures = 0;
  float *sinkGradient = nullptr; ///< as in RankBackwardTensors
};

/// Runs all ranks as threads of this process: forward, then backward when `backward` is not null. Every thread uses
/// `options.attention` (one thread each by default); options.report is not read, `reports` gets one entry per rank when
/// given. Returns the first rank's error.
Status runContextParallelHost(const Schedule &forward, const Schedule *backward, const RankCall &call,
                              const WholeTensors &tensors, const ExecutorOptions &options = {},
                              std::vector<RunReport> *reports = nullptr);

/// Runs the rank of `communicator`, one of several threads that share the whole arrays: every rank writes its own rows,
/// and rank 0 the gradients of captures and sinks.
Status runContextParallelThread(const Schedule &forward, const Schedule *backward, const RankCall &call,
                                const WholeTensors &tensors, Communicator &communicator,
                                const ExecutorOptions &options = {});

/// Runs the rank of `communicator` alone: every process of a job calls it with the same whole inputs. Results are
/// complete on rank 0 and partly written elsewhere; gradients of captures and sinks are complete on all ranks.
/// `reports`, given on all ranks or none, gets one entry per rank on rank 0.
Status runContextParallelRank(const Schedule &forward, const Schedule *backward, const RankCall &call,
                              const WholeTensors &tensors, Communicator &communicator,
                              const ExecutorOptions &options = {}, std::vector<RunReport> *reports = nullptr);

} // namespace cpflex
