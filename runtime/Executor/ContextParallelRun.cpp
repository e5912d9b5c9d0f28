// Cuts whole arrays in shards and puts them together; see ContextParallelRun.h.
#include "runtime/Executor/ContextParallelRun.h"
#include "runtime/Comm/ThreadsCommunicator.h"
#include "runtime/Executor/RowStore.h"
#include "runtime/Host/TileTensors.h"

#include <fmt/format.h>
#include <functional>
#include <optional>

namespace cpflex {
namespace {

/// One sequence tensor: whole, and the shard of one rank.
struct ShardedTensor {
  TensorView whole, local;
  const Layout *layout = nullptr;
  int64_t batch = 0, heads = 0, width = 0;
  std::vector<uint8_t> memory;

  ShardedTensor(const TensorView &whole, const Layout &layout, int32_t rank, int64_t batch, int64_t heads, int64_t width)
      : whole(whole), layout(&layout), batch(batch), heads(heads), width(width) {
    if (!whole.data)
      return;
    const int64_t rows = layout.shardSize(rank);
    memory.resize(size_t(std::max<int64_t>(1, batch * heads * rows * width * sizeInBytes(whole.type))));
    local = denseView(memory.data(), whole.type, heads, rows, width);
  }

  /// Calls visit(part of whole, part of local, number of rows) for each affine piece of each batch row.
  void visit(int32_t rank, const std::function<void(const TensorView &, const TensorView &, int64_t)> &visit) const {
    for (int64_t b = 0; whole.data && b < batch; ++b) {
      int64_t row = 0;
      for (const AffinePiece &piece : layout->shard(b, rank).pieces) {
        TensorView from = partOf(whole, b, 0, piece.begin);
        from.strides[2] *= piece.step;
        visit(from, partOf(local, b, 0, row), piece.count);
        row += piece.count;
      }
    }
  }
  void take(int32_t rank) const {
    visit(rank, [&](const TensorView &from, const TensorView &to, int64_t rows) {
      copyRows(from, to, 1, heads, rows, width);
    });
  }
  void put(int32_t rank) const {
    visit(rank, [&](const TensorView &to, const TensorView &from, int64_t rows) {
      copyRows(from, to, 1, heads, rows, width);
    });
  }
  int64_t sizeInLocalBytes() const { return whole.data ? int64_t(memory.size()) : 0; }
};

/// All sequence tensors of a call on one rank.
struct RankShards {
  RankShards(const Schedule &schedule, const WholeTensors &tensors, int32_t rank, bool isBackward) {
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
    for (const ShardedTensor &input : inputs)
      input.take(rank);
    // Backward needs the log-sum-exp even when the caller does not.
    if (!outputs[1].whole.data) {
      spareLse.resize(size_t(std::max<int64_t>(1, shape.batch * shape.qHeads * qLayout.shardSize(rank))));
      outputs[1].local = denseView(spareLse.data(), ElementType::F32, shape.qHeads, qLayout.shardSize(rank), 1);
    }
  }
  std::vector<ShardedTensor> inputs;  ///< q, k, v, dOut, dLse
  std::vector<ShardedTensor> outputs; ///< out, lse, dQ, dK, dV
  std::vector<float> spareLse;
};

Status runShards(const Schedule &forward, const Schedule *backward, const RankCall &call, const WholeTensors &tensors,
                 RankShards &shards, Communicator &communicator, const ExecutorOptions &options) {
  const auto &in = shards.inputs;
  const auto &out = shards.outputs;
  CPFLEX_RETURN_IF_ERROR(runForward(forward, call, {in[0].local, in[1].local, in[2].local, out[0].local, out[1].local},
                                    communicator, options));
  if (!backward)
    return Status::ok();
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
  return runBackward(*backward, call, gradients, communicator, options);
}

Status checkWhole(const Schedule &forward, const Schedule *backward, const WholeTensors &tensors) {
  for (auto [view, name] : {std::pair(&tensors.q, "q"), std::pair(&tensors.k, "k"), std::pair(&tensors.v, "v"),
                            std::pair(&tensors.out, "out")})
    if (!view->data || view->type != forward.shape.type)
      return Status::invalid(fmt::format("'{}' is missing or of another type; expected {}", name,
                                         toString(forward.shape.type)));
  if (!backward)
    return Status::ok();
  for (auto [view, name] : {std::pair(&tensors.dOut, "dOut"), std::pair(&tensors.dQ, "dQ"), std::pair(&tensors.dK, "dK"),
                            std::pair(&tensors.dV, "dV")})
    if (!view->data || view->type != forward.shape.type)
      return Status::invalid(fmt::format("'{}' is missing or of another type; expected {}", name,
                                         toString(forward.shape.type)));
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
    const int32_t rank = communicator.rank();
    ExecutorOptions mine = options;
    mine.report = reports ? &(*reports)[size_t(rank)] : nullptr;
    mine.attention.threads = nullptr;
    mine.attention.workspace = nullptr;
    if (mine.attention.numThreads == 0)
      mine.attention.numThreads = 1;
    RankShards shards(forward, tensors, rank, backward != nullptr);
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
    CPFLEX_RETURN_IF_ERROR(runShards(forward, backward, call, local, shards, communicator, mine));
    // Ranks own different rows, so they write the whole arrays side by side.
    for (const ShardedTensor &output : shards.outputs)
      output.put(rank);
    return Status::ok();
  }));
}

Status runContextParallelRank(const Schedule &forward, const Schedule *backward, const RankCall &call,
                              const WholeTensors &tensors, Communicator &communicator, const ExecutorOptions &options) {
  CPFLEX_RETURN_IF_ERROR(checkWhole(forward, backward, tensors));
  const int32_t rank = communicator.rank();
  RankShards shards(forward, tensors, rank, backward != nullptr);
  CPFLEX_RETURN_IF_ERROR(runShards(forward, backward, call, tensors, shards, communicator, options));
  for (const ShardedTensor &output : shards.outputs)
    output.put(rank);
  // The other ranks' shards come to rank 0 one after the other.
  for (int32_t source = 1; source < forward.worldSize; ++source) {
    if (rank != 0 && rank != source)
      continue;
    std::optional<RankShards> foreign;
    if (rank == 0)
      foreign.emplace(forward, tensors, source, backward != nullptr);
    MessageGroup group{source, "results", {}, {}};
    for (size_t i = 0; i < shards.outputs.size(); ++i) {
      if (rank == source && shards.outputs[i].whole.data)
        group.sends.push_back({0, shards.outputs[i].memory.data(), shards.outputs[i].sizeInLocalBytes()});
      if (rank == 0 && foreign->outputs[i].whole.data)
        group.receives.push_back({source, foreign->outputs[i].memory.data(), foreign->outputs[i].sizeInLocalBytes()});
    }
    CPFLEX_RETURN_IF_ERROR(exchange(communicator, group, deadlineIn(options.deadlineSeconds)));
    if (rank == 0)
      for (const ShardedTensor &output : foreign->outputs)
        output.put(source);
  }
  return Status::ok();
}

} // namespace cpflex
