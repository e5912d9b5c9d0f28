// The backward pass of one rank; see Executor.h. Every part of the keys is independent once the log-sum-exp over all keys
// and the row terms D = rowsum(dO * O) - dLSE are known; gradients add up in f32.
#include "runtime/Executor/Executor.h"
#include "runtime/Executor/RankRun.h"
#include "runtime/Host/TileTensors.h"
#include "runtime/Plan/Certificate.h"

#include <algorithm>
#include <fmt/format.h>
#include <optional>

namespace cpflex {
namespace {

class BackwardPass {
public:
  BackwardPass(RankRun &run, const RankBackwardTensors &tensors) : run_(run), tensors_(tensors) {}
  Status runAll();

private:
  Status prepare();
  Status compute(const Compute &compute);
  void takeHome(Parcel &parcel);
  void addOwn(const Compute &compute, const Operand &operand, const TensorView &from, const TensorView &to, int64_t width);
  Status finishGradients();
  bool isFirstOfRows(const Compute &compute) const;

  RankRun &run_;
  const RankBackwardTensors &tensors_;
  ByteLedger counted_; ///< of buffers that the planner counts among the resident bytes
  std::vector<std::unique_ptr<Buffer>> buffers_;
  TensorView rowTerm_, lse_;
  TensorView dQ_, dK_, dV_; ///< f32 accumulators of the whole shards
  std::unique_ptr<RowStore> keys_, queries_;
};

/// Whether no earlier compute has seen these query rows: sinks count once for each row.
bool BackwardPass::isFirstOfRows(const Compute &compute) const {
  for (const Compute &other : run_.schedule().computes) {
    if (other.step >= compute.step)
      return true;
    if (other.rank == compute.rank && other.q == compute.q && other.batch == compute.batch &&
        other.heads == compute.heads)
      return false;
  }
  return true;
}

Status BackwardPass::prepare() {
  const Schedule &schedule = run_.schedule();
  const CallShape &shape = schedule.shape;
  const int64_t qRows = schedule.qLayout.shardSize(run_.rank()), kvRows = schedule.kvLayout.shardSize(run_.rank());
  run_.ledger().add(residentBytes(schedule, run_.rank()));
  auto single = [&](int64_t heads, int64_t rows, int64_t width) {
    buffers_.push_back(std::make_unique<Buffer>(BufferSource{run_.device(), counted_},
                                                shape.batch * heads * rows * width * int64_t(sizeof(float)),
                                                ExecutionDevice::Contents::Zero));
    return denseView(buffers_.back()->data(), ElementType::F32, heads, rows, width);
  };
  dQ_ = single(shape.qHeads, qRows, shape.headDim);
  dK_ = single(shape.kvHeads, kvRows, shape.headDim);
  dV_ = single(shape.kvHeads, kvRows, shape.vHeadDim);
  rowTerm_ = single(shape.qHeads, qRows, 1);
  const bool isSoftmax = run_.call().normalization == AttentionProblem::Normalization::Softmax;
  lse_ = isSoftmax ? tensors_.lse : single(shape.qHeads, qRows, 1);
  if (isSoftmax && qRows > 0) {
    AttentionProblem problem;
    problem.batch = shape.batch;
    problem.qHeads = shape.qHeads;
    problem.kvHeads = shape.kvHeads;
    problem.qLen = qRows;
    problem.kvLen = kvRows;
    problem.headDim = shape.headDim;
    problem.vHeadDim = shape.vHeadDim;
    CPFLEX_RETURN_IF_ERROR(
        run_.device().rowTerm(problem, tensors_.out, tensors_.dOut, tensors_.dLse, rowTerm_));
  }
  keys_ = std::make_unique<RowStore>(run_.rank(), Payload::KV, shape, std::vector{tensors_.k, tensors_.v});
  queries_ = std::make_unique<RowStore>(run_.rank(), Payload::QGradient, shape,
                                        std::vector{tensors_.q, tensors_.dOut, lse_, rowTerm_});
  if (tensors_.captureGradients)
    for (int capture = 0; capture < tensors_.numCaptures; ++capture)
      if (float *gradient = tensors_.captureGradients[capture])
        std::fill(gradient, gradient + numOwnElements(run_.call().bindings->captures[capture]), 0.0f);
  if (tensors_.sinkGradient)
    std::fill_n(tensors_.sinkGradient + run_.call().headOffset, shape.qHeads, 0.0f);
  return Status::ok();
}

void BackwardPass::addOwn(const Compute &compute, const Operand &operand, const TensorView &from, const TensorView &to,
                          int64_t width) {
  int64_t local = 0;
  for (const OwnedRows &rows : operand.rows) {
    if (rows.owner == run_.rank())
      run_.device().addRows(partOf(from, 0, 0, local),
                            partOf(to, compute.batch.begin, operand.heads.begin, rows.rows.begin),
                            {compute.batch.size(), operand.heads.size(), rows.rows.size(), width});
    local += rows.rows.size();
  }
}

Status BackwardPass::compute(const Compute &compute) {
  const CallShape &shape = run_.schedule().shape;
  Operand q = run_.operand(compute, *queries_), kv = run_.operand(compute, *keys_);
  StatusOr<PreparedCompute *> prepared = run_.prepared(compute, q, kv, run_.call().sink);
  if (!prepared)
    return prepared.status();

  HostBackwardTensors call;
  call.q = q.views[0];
  call.dOut = q.views[1];
  if ((*prepared)->problem.normalization == AttentionProblem::Normalization::Softmax) {
    call.lse = q.views[2];
    call.rowTerm = q.views[3];
  }
  call.k = kv.views[0];
  call.v = kv.views[1];
  call.write = GradientWrite::Add;
  call.captureGradients = tensors_.captureGradients;
  call.numCaptures = tensors_.numCaptures;
  if (isFirstOfRows(compute))
    call.sinkGradient = tensors_.sinkGradient;

  // Gradients of rows in one run of the own shard add up in place, others in zeroed buffers that are dealt out below.
  std::vector<std::unique_ptr<Buffer>> buffers;
  auto target = [&](const Operand &operand, const TensorView &own, int64_t width) {
    if (operand.isOwnPiece)
      return partOf(own, compute.batch.begin, operand.heads.begin, operand.rows[0].rows.begin);
    buffers.push_back(std::make_unique<Buffer>(
        run_.buffers(), compute.batch.size() * operand.heads.size() * operand.count * width * int64_t(sizeof(float)),
        ExecutionDevice::Contents::Zero));
    return denseView(buffers.back()->data(), ElementType::F32, operand.heads.size(), operand.count, width);
  };
  call.dQ = target(q, dQ_, shape.headDim);
  call.dK = target(kv, dK_, shape.headDim);
  call.dV = target(kv, dV_, shape.vHeadDim);
  CPFLEX_RETURN_IF_ERROR(run_.device().status());
  CPFLEX_RETURN_IF_ERROR(run_.device().backward(**prepared, call));
  if (!q.isOwnPiece) {
    addOwn(compute, q, call.dQ, dQ_, shape.headDim);
    run_.post(compute, Payload::DQ, q, {call.dQ});
  }
  if (!kv.isOwnPiece) {
    addOwn(compute, kv, call.dK, dK_, shape.headDim);
    addOwn(compute, kv, call.dV, dV_, shape.vHeadDim);
    run_.post(compute, Payload::DKV, kv, {call.dK, call.dV});
  }
  return Status::ok();
}

void BackwardPass::takeHome(Parcel &parcel) {
  const Payload payload = parcel.transfer().payload;
  const std::vector<PayloadTensor> kinds = tensorsOf(payload, run_.schedule().shape);
  for (size_t slab = 0; slab < parcel.numSlabs(); ++slab) {
    const Slab &rows = parcel.slab(slab);
    for (size_t tensor = 0; tensor < kinds.size(); ++tensor) {
      const TensorView &to = payload == Payload::DQ ? dQ_ : tensor == 0 ? dK_ : dV_;
      run_.device().addRows(parcel.view(slab, tensor),
                            partOf(to, rows.batch.begin, rows.heads.begin, rows.rows.begin),
                            {rows.batch.size(), rows.heads.size(), rows.rows.size(), kinds[tensor].width});
    }
  }
}

Status BackwardPass::finishGradients() {
  const Schedule &schedule = run_.schedule();
  const CallShape &shape = schedule.shape;
  const int64_t qRows = schedule.qLayout.shardSize(run_.rank()), kvRows = schedule.kvLayout.shardSize(run_.rank());
  ExecutionDevice &device = run_.device();
  CPFLEX_RETURN_IF_ERROR(device.convert(dQ_, tensors_.dQ, {shape.batch, shape.qHeads, qRows, shape.headDim}));
  CPFLEX_RETURN_IF_ERROR(device.convert(dK_, tensors_.dK, {shape.batch, shape.kvHeads, kvRows, shape.headDim}));
  CPFLEX_RETURN_IF_ERROR(device.convert(dV_, tensors_.dV, {shape.batch, shape.kvHeads, kvRows, shape.vHeadDim}));
  if (tensors_.captureGradients)
    for (int capture = 0; capture < tensors_.numCaptures; ++capture)
      if (float *gradient = tensors_.captureGradients[capture])
        CPFLEX_RETURN_IF_ERROR(run_.sum(gradient, numOwnElements(run_.call().bindings->captures[capture]),
                                        fmt::format("gradient of capture {}", capture)));
  if (tensors_.sinkGradient)
    return run_.sum(tensors_.sinkGradient + run_.call().headOffset, shape.qHeads, "gradient of the sink");
  return Status::ok();
}

Status BackwardPass::runAll() {
  CPFLEX_RETURN_IF_ERROR(prepare());
  // Row terms leave with the first messages.
  run_.device().transferAfterCompute();
  for (int32_t step = 0; step < run_.schedule().numSteps; ++step) {
    CPFLEX_RETURN_IF_ERROR(run_.startStep(step, *keys_, *queries_));
    for (const Compute *each : run_.computesOf(step)) {
      const int64_t begin = run_.mark(DeviceQueue::Compute);
      CPFLEX_RETURN_IF_ERROR(compute(*each));
      run_.record(TraceEvent::Lane::Compute, "backward", step, begin, 0);
    }
    auto results = run_.finishStep(step, *keys_, *queries_);
    if (!results)
      return results.status();
    for (const std::shared_ptr<Parcel> &parcel : *results)
      takeHome(*parcel);
  }
  CPFLEX_RETURN_IF_ERROR(finishGradients());
  return run_.finish();
}

} // namespace

Status runBackward(const Schedule &schedule, const RankCall &call, const RankBackwardTensors &tensors,
                   Communicator &communicator, const ExecutorOptions &options) {
  RankRun run(schedule, call, communicator, options);
  CPFLEX_RETURN_IF_ERROR(run.check());
  if (schedule.pass != Pass::Backward)
    return Status::invalid("a forward schedule for a backward pass; expected a backward schedule");
  if (tensors.captureGradients && tensors.numCaptures > 0 && !call.bindings)
    return Status::invalid("gradients of captures without bindings; expected the arrays");
  for (auto [view, name] : {std::pair(&tensors.q, "q"), std::pair(&tensors.k, "k"), std::pair(&tensors.v, "v"),
                            std::pair(&tensors.dOut, "dOut")})
    if (view->type != schedule.shape.type)
      return Status::invalid(fmt::format("'{}' is {}; expected {}, the type of the schedule", name, toString(view->type),
                                         toString(schedule.shape.type)));
  return BackwardPass(run, tensors).runAll();
}

} // namespace cpflex
