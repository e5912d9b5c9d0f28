// What forward and backward share while a rank walks through a schedule: messages of a step, operands of a compute,
// local masks, clocks. Internal to the executor.
#pragma once

#include "runtime/Comm/Communicator.h"
#include "runtime/Executor/Executor.h"
#include "runtime/Executor/HostExecutionDevice.h"
#include "runtime/Executor/RowStore.h"
#include "runtime/Executor/WrittenParts.h"
#include "runtime/contract/Schedule.h"

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace cpflex {

/// One side of a compute, ready to be read.
struct Operand {
  std::vector<OwnedRows> rows;   ///< in the order of the local rows
  PositionMap positions;         ///< of the local rows
  int64_t count = 0;             ///< local rows
  Range batch, heads;            ///< heads of this side
  bool isOwnPiece = false;       ///< one run of the rank's own shard
  std::vector<TensorView> views; ///< one per tensor of the side
  std::vector<std::unique_ptr<Buffer>> buffers;
};

/// Where a compute leaves its results in a message itself.
struct ResultPlace {
  std::vector<TensorView> views; ///< one per tensor of the payload
  GradientWrite write = GradientWrite::Add;
};

/// A rank's walk through a schedule.
class RankRun {
public:
  RankRun(const Schedule &schedule, const RankCall &call, Communicator &communicator, const ExecutorOptions &options);

  /// Checks the schedule, the communicator and the call's functions.
  Status check() const;

  int32_t rank() const { return rank_; }
  const Schedule &schedule() const { return schedule_; }
  const RankCall &call() const { return call_; }
  const ExecutorOptions &options() const { return options_; }
  ByteLedger &ledger() { return ledger_; }
  ExecutionDevice &device() { return device_; }
  BufferSource buffers() { return {device_, ledger_}; }

  /// The computes of this rank, by step.
  const std::vector<const Compute *> &computes() const { return computes_; }
  /// Those of one step.
  std::span<const Compute *const> computesOf(int32_t step) const;

  /// Sends and posts the messages of a step. `stores` are the sides that inputs are read from and arrive in.
  Status startStep(int32_t step, RowStore &keys, RowStore &queries);
  /// Waits for the step's messages; results that arrived are returned in order of rank, from the one after this rank
  /// on.
  StatusOr<std::vector<std::shared_ptr<Parcel>>> finishStep(int32_t step, RowStore &keys, RowStore &queries);

  /// Where results that arrive in one step stand in the order in which they are taken home.
  std::pair<int32_t, Payload> turnOf(const Transfer &transfer) const;

  /// The rows of the key side (Payload::KV) or of the query side of a compute, without their tensors.
  Operand rowsOf(const Compute &compute, Payload side) const;
  /// The query or key side of a compute; gathered unless it lies in one piece.
  Operand operand(const Compute &compute, const RowStore &store);

  /// The place of a compute's results over the operand's rows in the message that carries them home, if one slab has
  /// them all; nothing is left to post then.
  std::optional<ResultPlace> resultPlace(const Compute &compute, Payload payload, const Operand &operand);
  /// Brings rows of a local result to the messages that carry them home: sums of gradients, copies else. `views` are
  /// the tensors of the payload over the operand's rows.
  void post(const Compute &compute, Payload payload, const Operand &operand, const std::vector<TensorView> &views);

  /// The attention problem of a compute, its mask built, or as an earlier run of the schedule left it.
  StatusOr<PreparedCompute *> prepared(const Compute &compute, const Operand &q, const Operand &kv, const float *sink);

  /// The moment, and a record of a span for the report.
  int64_t mark(DeviceQueue queue) { return hasSpans() ? device_.mark(queue) : 0; }
  void record(TraceEvent::Lane lane, const std::string &name, int32_t step, int64_t beginMark, int64_t bytes);
  /// Waits for the device unless work may be lined up only, and writes spans, peak and identity to the report; call it
  /// last.
  Status finish();

  /// Sums f32 values over ranks and counts the bytes.
  Status sum(float *values, int64_t count, const std::string &purpose);

private:
  /// A message that is being filled.
  struct Outgoing {
    std::shared_ptr<Parcel> parcel;
    WrittenParts written;
  };
  Outgoing &outgoing(int32_t index, int32_t step);
  bool hasSpans() const { return options_.report && options_.completion == ExecutorOptions::Completion::Done; }

  const Schedule &schedule_;
  const RankCall &call_;
  Communicator &communicator_;
  const ExecutorOptions &options_;
  HostExecutionDevice host_; ///< where the options name no device
  ExecutionDevice &device_;
  PreparedComputes ownPrepared_; ///< where the options bring none
  PreparedComputes &prepared_;
  int32_t rank_;
  ByteLedger ledger_;
  std::vector<int32_t> lastUse_;
  std::vector<const Compute *> computes_;
  std::vector<int32_t> results_;                        ///< transfers of this rank's results
  std::map<int32_t, Outgoing> outgoing_;                ///< results under way home, by transfer
  std::map<int32_t, std::shared_ptr<Parcel>> arriving_; ///< of the current step, by transfer
  std::vector<std::shared_ptr<Parcel>> leaving_;        ///< of the current step
  int64_t ticket_ = 0;
  int64_t stepBegin_ = 0; ///< mark
  /// A span whose marks are not read yet.
  struct OpenSpan {
    TraceEvent event;
    int64_t beginMark, endMark;
  };
  std::vector<OpenSpan> spans_;
};

} // namespace cpflex
