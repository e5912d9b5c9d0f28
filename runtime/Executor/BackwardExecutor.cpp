// The backward pass of one rank; see Executor.h. Every part of the keys is independent once the log-sum-exp over all
// keys and the row terms D = rowsum(dO * O) - dLSE are known; gradients add up in f32, the first one at its place
// stored.
#include "runtime/Executor/Executor.h"
#include "runtime/Executor/RankRun.h"
#include "runtime/Host/TileTensors.h"
#include "runtime/Plan/Certificate.h"

#include <algorithm>
#include <fmt/format.h>
#include <optional>

namespace cpflex {
namespace {

/// Where a compute writes the gradients of one side.
struct GradientPlace {
  std::vector<TensorView> views; ///< one per tensor of the payload
  GradientWrite write = GradientWrite::Overwrite;
  std::vector<std::unique_ptr<Buffer>> buffers; ///< behind the views when the rows are dealt out afterwards, else none
};

class BackwardPass {
public:
  BackwardPass(RankRun &run, const RankBackwardTensors &tensors) : run_(run), tensors_(tensors) {}
  Status runAll();

private:
  Status prepare();
  void planSums();
  Status compute(const Compute &compute);
  std::vector<TensorView> accumulators(Payload payload) const;
  WrittenParts &written(Payload payload) { return payload == Payload::DQ ? queryParts_ : keyParts_; }
  GradientPlace place(const Compute &compute, const Operand &operand, Payload payload);
  void dealOut(const Compute &compute, const Operand &operand, Payload payload, const GradientPlace &place);
  void bring(Payload payload, const Slab &rows, const std::vector<TensorView> &from, int64_t local);
  Status finishGradients();
  bool isFirstOfRows(const Compute &compute) const;

  RankRun &run_;
  const RankBackwardTensors &tensors_;
  ByteLedger counted_; ///< of buffers that the planner counts among the resident bytes
  std::vector<std::unique_ptr<Buffer>> buffers_;
  TensorView rowTerm_, lse_;
  TensorView dQ_, dK_, dV_;            ///< f32 accumulators of the whole shards
  WrittenParts queryParts_, keyParts_; ///< of dQ_; of dK_ and dV_
  std::unique_ptr<RowStore> keys_, queries_;
};

/// Whether no earlier compute has seen these query rows: sinks count once for each row.
bool BackwardPass::isFirstOfRows(const Compute &compute) const {
  return std::ranges::none_of(run_.computes(), [&](const Compute *other) {
    return other->step < compute.step && other->q == compute.q && other->batch == compute.batch &&
           other->heads == compute.heads;
  });
}

/// Notes what comes to the accumulators in the order in which runAll() brings it.
void BackwardPass::planSums() {
  std::vector<const Transfer *> results;
  for (const Transfer &transfer : run_.schedule().transfers)
    if (transfer.destination == run_.rank() && (transfer.payload == Payload::DQ || transfer.payload == Payload::DKV))
      results.push_back(&transfer);
  std::ranges::sort(results, {},
                    [&](const Transfer *transfer) { return std::pair(transfer->step, run_.turnOf(*transfer)); });
  auto result = results.begin();
  for (int32_t step = 0; step < run_.schedule().numSteps; ++step) {
    for (const Compute *compute : run_.computesOf(step))
      for (auto [side, payload] : {std::pair(Payload::Q, Payload::DQ), std::pair(Payload::KV, Payload::DKV)}) {
        const Operand operand = run_.rowsOf(*compute, side);
        for (const OwnedRows &rows : operand.rows)
          if (rows.owner == run_.rank())
            written(payload).plan({rows.owner, operand.batch, operand.heads, rows.rows});
      }
    for (; result != results.end() && (*result)->step == step; ++result)
      for (const Slab &slab : (*result)->slabs)
        written((*result)->payload).plan(slab);
  }
}

Status BackwardPass::prepare() {
  const Schedule &schedule = run_.schedule();
  const CallShape &shape = schedule.shape;
  const int64_t qRows = schedule.qLayout.shardSize(run_.rank()), kvRows = schedule.kvLayout.shardSize(run_.rank());
  run_.ledger().add(residentBytes(schedule, run_.rank()));
  using Contents = ExecutionDevice::Contents;
  auto single = [&](int64_t heads, int64_t rows, int64_t width, Contents contents) {
    buffers_.push_back(std::make_unique<Buffer>(BufferSource{run_.device(), counted_},
                                                shape.batch * heads * rows * width * int64_t(sizeof(float)), contents));
    return denseView(buffers_.back()->data(), ElementType::F32, heads, rows, width);
  };
  planSums();
  const Contents queryStart = queryParts_.startOf(shape.batch * shape.qHeads * qRows);
  const Contents keyStart = keyParts_.startOf(shape.batch * shape.kvHeads * kvRows);
  dQ_ = single(shape.qHeads, qRows, shape.headDim, queryStart);
  dK_ = single(shape.kvHeads, kvRows, shape.headDim, keyStart);
  dV_ = single(shape.kvHeads, kvRows, shape.vHeadDim, keyStart);
  rowTerm_ = single(shape.qHeads, qRows, 1, Contents::Zero);
  const bool isSoftmax = run_.call().normalization == AttentionProblem::Normalization::Softmax;
  lse_ = isSoftmax ? tensors_.lse : single(shape.qHeads, qRows, 1, Contents::Zero);
  if (isSoftmax && qRows > 0) {
    AttentionProblem problem;
    problem.batch = shape.batch;
    problem.qHeads = shape.qHeads;
    problem.kvHeads = shape.kvHeads;
    problem.qLen = qRows;
    problem.kvLen = kvRows;
    problem.headDim = shape.headDim;
    problem.vHeadDim = shape.vHeadDim;
    CPFLEX_RETURN_IF_ERROR(run_.device().rowTerm(problem, tensors_.out, tensors_.dOut, tensors_.dLse, rowTerm_));
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

std::vector<TensorView> BackwardPass::accumulators(Payload payload) const {
  return payload == Payload::DQ ? std::vector{dQ_} : std::vector{dK_, dV_};
}

/// Stores or adds a contribution to rows of the own shard; it begins at row `local` of `from`.
void BackwardPass::bring(Payload payload, const Slab &rows, const std::vector<TensorView> &from, int64_t local) {
  const bool isFirst = written(payload).next(rows) == GradientWrite::Overwrite;
  const std::vector<PayloadTensor> kinds = tensorsOf(payload, run_.schedule().shape);
  const std::vector<TensorView> sums = accumulators(payload);
  for (size_t tensor = 0; tensor < kinds.size(); ++tensor) {
    const TensorView to = partOf(sums[tensor], rows.batch.begin, rows.heads.begin, rows.rows.begin);
    const RowBlock block = {rows.batch.size(), rows.heads.size(), rows.rows.size(), kinds[tensor].width};
    if (isFirst)
      run_.device().copyRows(DeviceQueue::Compute, partOf(from[tensor], 0, 0, local), to, block);
    else
      run_.device().addRows(partOf(from[tensor], 0, 0, local), to, block);
  }
}

/// One run of the own shard is written where it adds up and one slab of a message in the message; other rows go to
/// buffers.
GradientPlace BackwardPass::place(const Compute &compute, const Operand &operand, Payload payload) {
  GradientPlace place;
  if (operand.isOwnPiece) {
    const Range rows = operand.rows[0].rows;
    place.write = written(payload).next({run_.rank(), compute.batch, operand.heads, rows});
    for (const TensorView &sum : accumulators(payload))
      place.views.push_back(partOf(sum, compute.batch.begin, operand.heads.begin, rows.begin));
  } else if (std::optional<ResultPlace> message = run_.resultPlace(compute, payload, operand)) {
    place.write = message->write;
    place.views = std::move(message->views);
  } else {
    for (const PayloadTensor &kind : tensorsOf(payload, run_.schedule().shape)) {
      place.buffers.push_back(std::make_unique<Buffer>(run_.buffers(),
                                                       compute.batch.size() * operand.heads.size() * operand.count *
                                                           kind.width * int64_t(sizeof(float)),
                                                       ExecutionDevice::Contents::Undefined));
      place.views.push_back(
          denseView(place.buffers.back()->data(), ElementType::F32, operand.heads.size(), operand.count, kind.width));
    }
  }
  return place;
}

/// Brings rows from buffers to where they add up, here and on other ranks.
void BackwardPass::dealOut(const Compute &compute, const Operand &operand, Payload payload,
                           const GradientPlace &place) {
  if (place.buffers.empty())
    return;
  int64_t local = 0;
  for (const OwnedRows &rows : operand.rows) {
    if (rows.owner == run_.rank())
      bring(payload, {rows.owner, compute.batch, operand.heads, rows.rows}, place.views, local);
    local += rows.rows.size();
  }
  run_.post(compute, payload, operand, place.views);
}

Status BackwardPass::compute(const Compute &compute) {
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
  call.arrayWrite = GradientWrite::Add;
  call.captureGradients = tensors_.captureGradients;
  call.numCaptures = tensors_.numCaptures;
  if (isFirstOfRows(compute))
    call.sinkGradient = tensors_.sinkGradient;

  const GradientPlace queries = place(compute, q, Payload::DQ), keys = place(compute, kv, Payload::DKV);
  call.dQ = queries.views[0];
  call.dK = keys.views[0];
  call.dV = keys.views[1];
  call.queryWrite = queries.write;
  call.keyWrite = keys.write;
  CPFLEX_RETURN_IF_ERROR(run_.device().status());
  CPFLEX_RETURN_IF_ERROR(run_.device().backward(**prepared, call));
  dealOut(compute, q, Payload::DQ, queries);
  dealOut(compute, kv, Payload::DKV, keys);
  return Status::ok();
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
      for (size_t slab = 0; slab < parcel->numSlabs(); ++slab) {
        const Payload payload = parcel->transfer().payload;
        std::vector<TensorView> gradients;
        for (size_t tensor = 0; tensor < accumulators(payload).size(); ++tensor)
          gradients.push_back(parcel->view(slab, tensor));
        bring(payload, parcel->slab(slab), gradients, /*local=*/0);
      }
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
      return Status::invalid(fmt::format("'{}' is {}; expected {}, the type of the schedule", name,
                                         toString(view->type), toString(schedule.shape.type)));
  return BackwardPass(run, tensors).runAll();
}

} // namespace cpflex
