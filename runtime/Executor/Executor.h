// Runs one rank's part of a Schedule: local shards in, local shards out. Who does what when is the schedule's; how
// bytes travel is the Communicator's; where attention runs is the ExecutionDevice's.
#pragma once

#include "runtime/BlockMask/CaptureSummaries.h"
#include "runtime/Comm/Communicator.h"
#include "runtime/Executor/ExecutionDevice.h"
#include "runtime/Executor/RunReport.h"
#include "runtime/Host/HostAttention.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/Schedule.h"
#include "runtime/contract/Status.h"
#include "runtime/contract/Tape.h"

#include <cstdint>
#include <span>

namespace cpflex {

/// What is computed: alike on all ranks. Functions, masks and captures see global positions, heads and batch rows.
struct RankCall {
  float scale = 1.0f;
  AttentionProblem::Normalization normalization = AttentionProblem::Normalization::Softmax;
  const Tape *tape = nullptr;                       ///< the mask; null: evaluateTile decides, or all pairs attend
  std::span<const CaptureDeclaration> declarations; ///< verified facts of the captures, for the tape
  std::span<const Residual> residuals;              ///< of the tape, for partial tiles on the CPU; may be empty
  const HostFunctions *functions = nullptr;
  const Bindings *bindings = nullptr;
  CaptureSummaries *summaries = nullptr; ///< of the captures, shared by ranks and calls; null: built for each mask
  const float *sink = nullptr;           ///< one logit per global query head, or null
  int64_t batchOffset = 0;               ///< global index of the call's batch row 0
  int64_t headOffset = 0;                ///< global index of the call's query head 0
};

/// The shards of one rank: [batch, heads, shardSize, ...] in the schedule's type, rows in the order of its layouts.
struct RankForwardTensors {
  TensorView q, k, v;
  TensorView out;
  TensorView lse; ///< f32 [batch, qHeads, shardSize, 1]; optional
};

/// Shards of a backward call. Gradients are written, not added to.
struct RankBackwardTensors {
  TensorView q, k, v, out;
  TensorView lse; ///< f32, from forward; not read without softmax
  TensorView dOut;
  TensorView dLse;       ///< optional, f32
  TensorView dQ, dK, dV; ///< in the schedule's type or f32
  /// Null, or one dense f32 array (or null) per capture, see HostFunctions.h: every rank gets the sum over all ranks.
  float *const *captureGradients = nullptr;
  int numCaptures = 0;
  float *sinkGradient = nullptr; ///< null, or f32 per global query head; only this call's heads are written
};

/// How a rank runs.
struct ExecutorOptions {
  double deadlineSeconds = 60.0;        ///< for each step's messages
  HostAttentionOptions attention;       ///< threads of this rank, on the CPU
  ExecutionDevice *device = nullptr;    ///< where the tensors lie and attention runs; null: the CPU
  PreparedComputes *prepared = nullptr; ///< kept from run to run when given
  RunReport *report = nullptr;          ///< filled when given
  /// Whether a run returns when its work is done, or when all of it has lined up on the device; then the report has no
  /// spans.
  enum class Completion : uint8_t { Done, LinedUp } completion = Completion::Done;
};

/// Runs this rank's part of a forward schedule. The result is the same in every run of one schedule; with ascending
/// keys it equals that of one device. Errors of the transport name rank, step and peer; after one, the outputs are
/// undefined.
Status runForward(const Schedule &schedule, const RankCall &call, const RankForwardTensors &tensors,
                  Communicator &communicator, const ExecutorOptions &options = {});

/// Runs this rank's part of a backward schedule. Gradients accumulate in f32: an owner adds its own partials, then
/// those of the ranks after it, then those of the ranks before it, each in rank order, since that is the order in which
/// schedules of the planner bring them; captures and sinks are summed in rank order.
Status runBackward(const Schedule &schedule, const RankCall &call, const RankBackwardTensors &tensors,
                   Communicator &communicator, const ExecutorOptions &options = {});

} // namespace cpflex
