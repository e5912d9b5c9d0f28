// Cuts whole arrays in shards and puts them together; see ContextParallelRun.h.
#include "runtime/Executor/ContextParallelRun.h"
#include "runtime/Comm/ThreadsCommunicator.h"
#include "runtime/Executor/HostExecutionDevice.h"
#include "runtime/Executor/RowStore.h"
#include "runtime/Host/TileTensors.h"

#include <fmt/format.h>
#include <functional>
#include <initializer_list>
#include <optional>

namespace cpflex {
namespace {

/// One sequence tensor: whole in host memory, and the shard of one rank where the rank computes.
struct ShardedTensor {
  TensorView whole, local;
  const Layout *layout = nullptr;
  int64_t batch = 0, heads = 0, width = 0;
  std::vector<uint8_t> memory; ///< of the shard, on the host

  ShardedTensor(const TensorView &whole, const Layout &layout, int32_t rank, int64_t batch, int64_t heads,
                int64_t width)
      : whole(whole), layout(&layout), batch(batch), heads(heads), width(width) {
    local.type = whole.type; // also of a tensor without rows
    if (!whole.data)
      return;
    const int64_t rows = layout.shardSize(rank);
    memory.resize(size_t(std::max<int64_t>(1, batch * heads * rows * width * sizeInBytes(whole.type))));
    local = denseView(memory.data(), whole.type, heads, rows, width);
  }

  /// Calls visit(part of whole, part of the shard on the host, number of rows) for each affine piece of each batch row.
  void visit(int32_t rank, const std::function<void(const TensorView &, const TensorView &, int64_t)> &visit) {
    TensorView shard = local;
    shard.data = memory.data();
    for (int64_t b = 0; whole.data && b < batch; ++b) {
      int64_t row = 0;
      for (const AffinePiece &piece : layout->shard(b, rank).pieces) {
        TensorView from = partOf(whole, b, 0, piece.begin);
        from.strides[2] *= piece.step;
        visit(from, partOf(shard, b, 0, row), piece.count);
        row += piece.count;
      }
    }
  }
  void take(int32_t rank) {
    visit(rank, [&](const TensorView &from, const TensorView &to, int64_t rows) {
      copyRows(from, to, 1, heads, rows, width);
    });
  }
  void put(int32_t rank) {
    visit(rank, [&](const TensorView &to, const TensorView &from, int64_t rows) {
      copyRows(from, to, 1, heads, rows, width);
    });
  }
  int64_t sizeInLocalBytes() const { return whole.data ? int64_t(memory.size()) : 0; }
};

/// All sequence tensors of a call on one rank.
class RankShards {
public:
  RankShards(const Schedule &schedule, const WholeTensors &tensors, int32_t rank, bool isBackward,
             ExecutionDevice &device)
      : rank_(rank), device_(device) {
    const CallShape &shape = schedule.shape;
    auto add = [&](const TensorView &view, const Layout &layout, int64_t heads, int64_t width) {
      return ShardedTensor(view, layout, rank, shape.batch, heads, width);
    };
    const Layout &qLayout = schedule.qLayout, &kvLayout = schedule.kvLayout;
    const TensorView none;
    inputs.push_back(add(tensors.q, qLayout, shape.qHeads, shape.headDim));
    inputs.push_back(add(tensors.k, kvLayout, shape.kvHeads, shape.headDim));
    inputs.push_back(add(tensors.v, kvLayout, shape.kvHeads, shape.vHeadDim));
    inputs.push_back(add(isBackward ? tensors.dOut : none, qLayout, shape.qHeads, shape.vHeadDim));
    inputs.push_back(add(isBackward ? tensors.dLse : none, qLayout, shape.qHeads, 1));
    outputs.push_back(add(tensors.out, qLayout, shape.qHeads, shape.vHeadDim));
    outputs.push_back(add(tensors.lse, qLayout, shape.qHeads, 1));
    outputs.push_back(add(isBackward ? tensors.dQ : none, qLayout, shape.qHeads, shape.headDim));
    outputs.push_back(add(isBackward ? tensors.dK : none, kvLayout, shape.kvHeads, shape.headDim));
    outputs.push_back(add(isBackward ? tensors.dV : none, kvLayout, shape.kvHeads, shape.vHeadDim));
    // Backward needs the log-sum-exp even when the caller does not.
    if (!outputs[1].whole.data) {
      const int64_t rows = qLayout.shardSize(rank);
      outputs[1].memory.resize(
          size_t(std::max<int64_t>(1, shape.batch * shape.qHeads * rows * sizeInBytes(ElementType::F32))));
      outputs[1].local = denseView(outputs[1].memory.data(), ElementType::F32, shape.qHeads, rows, 1);
    }
  }
  ~RankShards() {
    for (void *memory : onDevice_)
      device_.release(memory);
  }
  RankShards(const RankShards &) = delete;

  /// Fills the inputs from the whole arrays, where the rank computes.
  Status take() {
    for (ShardedTensor &input : inputs)
      input.take(rank_);
    if (device_.memory() == ExecutionDevice::Memory::Host)
      return Status::ok();
    for (auto *tensors : {&inputs, &outputs})
      for (ShardedTensor &tensor : *tensors) {
        if (!tensor.local.data)
          continue;
        const int64_t bytes = int64_t(tensor.memory.size());
        tensor.local.data = device_.allocate(bytes, ExecutionDevice::Contents::Undefined, DeviceQueue::Transfer);
        onDevice_.push_back(tensor.local.data);
        if (tensors == &inputs)
          CPFLEX_RETURN_IF_ERROR(device_.copyIn(tensor.local.data, tensor.memory.data(), bytes));
      }
    return device_.synchronize();
  }

  /// Brings the outputs to host memory.
  Status fetch() {
    if (device_.memory() == ExecutionDevice::Memory::Own)
      for (ShardedTensor &output : outputs)
        if (output.whole.data)
          CPFLEX_RETURN_IF_ERROR(
              device_.copyOut(output.memory.data(), output.local.data, int64_t(output.memory.size())));
    return Status::ok();
  }

  /// Writes the outputs' rows in the whole arrays.
  void put() {
    for (ShardedTensor &output : outputs)
      output.put(rank_);
  }

  std::vector<ShardedTensor> inputs;  ///< q, k, v, dOut, dLse
  std::vector<ShardedTensor> outputs; ///< out, lse, dQ, dK, dV

private:
  int32_t rank_;
  ExecutionDevice &device_;
  std::vector<void *> onDevice_;
};

Status runShards(const Schedule &forward, const Schedule *backward, const RankCall &call, const WholeTensors &tensors,
                 RankShards &shards, Communicator &communicator, const ExecutorOptions &options) {
  CPFLEX_RETURN_IF_ERROR(shards.take());
  const auto &in = shards.inputs;
  const auto &out = shards.outputs;
  CPFLEX_RETURN_IF_ERROR(runForward(forward, call, {in[0].local, in[1].local, in[2].local, out[0].local, out[1].local},
                                    communicator, options));
  if (!backward)
    return shards.fetch();
  RankBackwardTensors gradients;
  gradients.q = in[0].local;
  gradients.k = in[1].local;
  gradients.v = in[2].local;
  gradients.dOut = in[3].local;
  gradients.dLse = in[4].local;
  gradients.out = out[0].local;
  gradients.lse = out[1].local;
  gradients.dQ = out[2].local;
  gradients.dK = out[3].local;
  gradients.dV = out[4].local;
  gradients.captureGradients = tensors.captureGradients;
  gradients.numCaptures = tensors.numCaptures;
  gradients.sinkGradient = tensors.sinkGradient;
  CPFLEX_RETURN_IF_ERROR(runBackward(*backward, call, gradients, communicator, options));
  return shards.fetch();
}

/// Brings the reports of all ranks to rank 0.
Status gatherReports(const RunReport &mine, Communicator &communicator, ExecutionDevice &device, double deadlineSeconds,
                     std::vector<RunReport> &reports) {
  const auto move = [&](const MessageGroup &group) {
    return exchangeHostBytes(device, communicator, group, deadlineIn(deadlineSeconds));
  };
  if (communicator.rank() != 0) {
    const std::string bytes = toBytes(mine);
    const int64_t size = int64_t(bytes.size());
    CPFLEX_RETURN_IF_ERROR(move({0, "report", {{0, &size, int64_t(sizeof(size))}}, {}}));
    return move({1, "report", {{0, bytes.data(), size}}, {}});
  }
  reports = {mine};
  for (int32_t source = 1; source < communicator.worldSize(); ++source) {
    int64_t size = 0;
    CPFLEX_RETURN_IF_ERROR(move({0, "report", {}, {{source, &size, int64_t(sizeof(size))}}}));
    constexpr int64_t kLargestReport = int64_t(1) << 30;
    if (size < 0 || size > kLargestReport)
      return Status(StatusCode::DataLoss,
                    fmt::format("the report of rank {} has {} bytes; expected 0 to {}", source, size, kLargestReport));
    std::string bytes(size_t(size), 0);
    CPFLEX_RETURN_IF_ERROR(move({1, "report", {}, {{source, bytes.data(), size}}}));
    StatusOr<RunReport> report = reportFromBytes(bytes);
    if (!report)
      return report.status();
    reports.push_back(std::move(*report));
  }
  return Status::ok();
}

// Whether all views hold elements of `type`; where there are none, a view need not point anywhere.
Status checkViews(std::initializer_list<std::pair<const TensorView *, const char *>> views, ElementType type,
                  int64_t numRows) {
  for (auto [view, name] : views)
    if ((!view->data && numRows > 0) || view->type != type)
      return Status::invalid(fmt::format("'{}' is missing or of another type; expected {}", name, toString(type)));
  return Status::ok();
}

Status checkWhole(const Schedule &forward, const Schedule *backward, const WholeTensors &tensors) {
  const CallShape &shape = forward.shape;
  const int64_t qRows = shape.batch * shape.qHeads * shape.qLen, kvRows = shape.batch * shape.kvHeads * shape.kvLen;
  CPFLEX_RETURN_IF_ERROR(checkViews({{&tensors.q, "q"}, {&tensors.out, "out"}}, shape.type, qRows));
  CPFLEX_RETURN_IF_ERROR(checkViews({{&tensors.k, "k"}, {&tensors.v, "v"}}, shape.type, kvRows));
  if (!backward)
    return Status::ok();
  CPFLEX_RETURN_IF_ERROR(checkViews({{&tensors.dOut, "dOut"}, {&tensors.dQ, "dQ"}}, shape.type, qRows));
  CPFLEX_RETURN_IF_ERROR(checkViews({{&tensors.dK, "dK"}, {&tensors.dV, "dV"}}, shape.type, kvRows));
  if (!(backward->qLayout == forward.qLayout) || !(backward->kvLayout == forward.kvLayout))
    return Status::invalid("forward and backward schedules with different layouts; expected the same");
  return Status::ok();
}

} // namespace

Status runContextParallelHost(const Schedule &forward, const Schedule *backward, const RankCall &call,
                              const WholeTensors &tensors, const ExecutorOptions &options,
                              std::vector<RunReport> *reports) {
  CPFLEX_RETURN_IF_ERROR(checkWhole(forward, backward, tensors));
  if (reports)
    reports->assign(size_t(forward.worldSize), {});
  return firstFailure(runRanksInThreads(forward.worldSize, [&](Communicator &communicator) -> Status {
    ExecutorOptions mine = options;
    mine.report = reports ? &(*reports)[size_t(communicator.rank())] : nullptr;
    mine.attention.threads = nullptr;
    mine.attention.workspace = nullptr;
    if (mine.attention.numThreads == 0)
      mine.attention.numThreads = 1;
    return runContextParallelThread(forward, backward, call, tensors, communicator, mine);
  }));
}

Status runContextParallelThread(const Schedule &forward, const Schedule *backward, const RankCall &call,
                                const WholeTensors &tensors, Communicator &communicator,
                                const ExecutorOptions &options) {
  CPFLEX_RETURN_IF_ERROR(checkWhole(forward, backward, tensors));
  const int32_t rank = communicator.rank();
  HostExecutionDevice host(options.attention);
  RankShards shards(forward, tensors, rank, backward != nullptr, options.device ? *options.device : host);
  // Rank 0 sums into the caller's arrays, the others into their own.
  WholeTensors local = tensors;
  std::vector<std::vector<float>> spare;
  std::vector<float *> captures;
  if (rank != 0 && tensors.captureGradients) {
    for (int capture = 0; capture < tensors.numCaptures; ++capture) {
      const bool isWanted = tensors.captureGradients[capture] != nullptr;
      spare.emplace_back(isWanted ? size_t(numOwnElements(call.bindings->captures[capture])) : 0);
      captures.push_back(isWanted ? spare.back().data() : nullptr);
    }
    local.captureGradients = captures.data();
  }
  std::vector<float> sink;
  if (rank != 0 && tensors.sinkGradient) {
    sink.resize(size_t(call.headOffset + forward.shape.qHeads));
    local.sinkGradient = sink.data();
  }
  CPFLEX_RETURN_IF_ERROR(runShards(forward, backward, call, local, shards, communicator, options));
  // Ranks own different rows, so they write the whole arrays side by side.
  shards.put();
  return Status::ok();
}

Status runContextParallelRank(const Schedule &forward, const Schedule *backward, const RankCall &call,
                              const WholeTensors &tensors, Communicator &communicator, const ExecutorOptions &options,
                              std::vector<RunReport> *reports) {
  CPFLEX_RETURN_IF_ERROR(checkWhole(forward, backward, tensors));
  const int32_t rank = communicator.rank();
  HostExecutionDevice host(options.attention);
  ExecutionDevice &device = options.device ? *options.device : host;
  RankShards shards(forward, tensors, rank, backward != nullptr, device);
  ExecutorOptions mine = options;
  RunReport report;
  if (reports)
    mine.report = &report;
  CPFLEX_RETURN_IF_ERROR(runShards(forward, backward, call, tensors, shards, communicator, mine));
  shards.put();
  // The other ranks' shards come to rank 0 one after the other.
  for (int32_t source = 1; source < forward.worldSize; ++source) {
    if (rank != 0 && rank != source)
      continue;
    std::optional<RankShards> foreign;
    if (rank == 0)
      foreign.emplace(forward, tensors, source, backward != nullptr, device);
    MessageGroup group{source, "results", {}, {}};
    for (size_t i = 0; i < shards.outputs.size(); ++i) {
      if (rank == source && shards.outputs[i].whole.data)
        group.sends.push_back({0, shards.outputs[i].memory.data(), shards.outputs[i].sizeInLocalBytes()});
      if (rank == 0 && foreign->outputs[i].whole.data)
        group.receives.push_back({source, foreign->outputs[i].memory.data(), foreign->outputs[i].sizeInLocalBytes()});
    }
    CPFLEX_RETURN_IF_ERROR(exchangeHostBytes(device, communicator, group, deadlineIn(options.deadlineSeconds)));
    if (rank == 0)
      foreign->put();
  }
  return reports ? gatherReports(report, communicator, device, options.deadlineSeconds, *reports) : Status::ok();
}

} // namespace cpflex
