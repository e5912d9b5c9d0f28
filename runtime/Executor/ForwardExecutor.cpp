// The forward pass of one rank; see Executor.h. Calls on the same query rows continue each other in f32; the last one
// adds the sink and rounds to the output's type.
#include "runtime/Executor/Executor.h"
#include "runtime/Executor/RankRun.h"
#include "runtime/Plan/Certificate.h"

#include <algorithm>
#include <fmt/format.h>
#include <optional>

namespace cpflex {
namespace {

bool isSameChain(const Compute &a, const Compute &b) {
  return a.rank == b.rank && a.q == b.q && a.batch == b.batch && a.heads == b.heads;
}

class ForwardPass {
public:
  ForwardPass(RankRun &run, const RankForwardTensors &tensors) : run_(run), tensors_(tensors) {}
  Status runAll();

private:
  Status compute(const Compute &compute);
  bool hasBefore(const Compute &compute) const;
  bool hasAfter(const Compute &compute) const;
  Status takeHome(Parcel &parcel);

  RankRun &run_;
  const RankForwardTensors &tensors_;
  ByteLedger counted_; ///< of buffers that the planner counts among the resident bytes
  std::optional<Buffer> partialBuffer_, lseBuffer_;
  TensorView partial_, lse_; ///< f32, of the whole shard
  std::unique_ptr<RowStore> keys_, queries_;
};

bool ForwardPass::hasBefore(const Compute &compute) const {
  return std::ranges::any_of(run_.computes(), [&](const Compute *other) {
    return other->step < compute.step && isSameChain(*other, compute);
  });
}

bool ForwardPass::hasAfter(const Compute &compute) const {
  return std::ranges::any_of(run_.computes(), [&](const Compute *other) {
    return other->step > compute.step && isSameChain(*other, compute);
  });
}

Status ForwardPass::compute(const Compute &compute) {
  const CallShape &shape = run_.schedule().shape;
  const bool isContinued = hasBefore(compute), isLast = !hasAfter(compute);
  Operand q = run_.operand(compute, *queries_), kv = run_.operand(compute, *keys_);
  if (!q.isOwnPiece && (isContinued || !isLast))
    return Status::unsupported(
        fmt::format("the compute of step {} on rank {} continues on query rows that are not one run "
                    "of its own shard; expected all of their keys in one compute",
                    compute.step, run_.rank()));
  StatusOr<PreparedCompute *> prepared = run_.prepared(compute, q, kv, isLast ? run_.call().sink : nullptr);
  if (!prepared)
    return prepared.status();
  ExecutionDevice &device = run_.device();

  HostForwardTensors call;
  call.q = q.views[0];
  call.k = kv.views[0];
  call.v = kv.views[1];
  std::optional<Buffer> outBuffer, lseBuffer;
  if (q.isOwnPiece) {
    const int64_t b = compute.batch.begin, h = compute.heads.begin, row = q.rows[0].rows.begin;
    call.lse = partOf(lse_, b, h, row);
    if (isContinued)
      call.initial = {partOf(partial_, b, h, row), call.lse};
    call.out = isLast ? partOf(tensors_.out, b, h, row) : partOf(partial_, b, h, row);
  } else {
    const int64_t numRows = compute.batch.size() * q.heads.size() * q.count;
    outBuffer.emplace(run_.buffers(), numRows * shape.vHeadDim * sizeInBytes(shape.type),
                      ExecutionDevice::Contents::Undefined);
    lseBuffer.emplace(run_.buffers(), numRows * sizeInBytes(ElementType::F32), ExecutionDevice::Contents::Zero);
    call.out = denseView(outBuffer->data(), shape.type, q.heads.size(), q.count, shape.vHeadDim);
    call.lse = denseView(lseBuffer->data(), ElementType::F32, q.heads.size(), q.count, 1);
  }
  // Without softmax there is no log-sum-exp; what stands in its place when results travel is 0.
  const TensorView lse = call.lse;
  if ((*prepared)->problem.normalization == AttentionProblem::Normalization::None)
    call.lse = call.initial.lse = {};
  CPFLEX_RETURN_IF_ERROR(device.status());
  CPFLEX_RETURN_IF_ERROR(device.forward(**prepared, call));
  if (q.isOwnPiece)
    return Status::ok();
  // Rows of this rank stay, the others go home.
  int64_t local = 0;
  for (const OwnedRows &rows : q.rows) {
    if (rows.owner == run_.rank())
      for (auto [from, to, width] :
           {std::tuple(call.out, tensors_.out, shape.vHeadDim), std::tuple(lse, lse_, int64_t(1))})
        device.copyRows(DeviceQueue::Compute, partOf(from, 0, 0, local),
                        partOf(to, compute.batch.begin, compute.heads.begin, rows.rows.begin),
                        {compute.batch.size(), q.heads.size(), rows.rows.size(), width});
    local += rows.rows.size();
  }
  run_.post(compute, Payload::Out, q, {call.out, lse});
  return Status::ok();
}

Status ForwardPass::takeHome(Parcel &parcel) {
  const std::vector<PayloadTensor> kinds = tensorsOf(Payload::Out, run_.schedule().shape);
  for (size_t slab = 0; slab < parcel.numSlabs(); ++slab) {
    const Slab &rows = parcel.slab(slab);
    for (size_t tensor = 0; tensor < kinds.size(); ++tensor)
      run_.device().copyRows(
          DeviceQueue::Compute, parcel.view(slab, tensor),
          partOf(tensor == 0 ? tensors_.out : lse_, rows.batch.begin, rows.heads.begin, rows.rows.begin),
          {rows.batch.size(), rows.heads.size(), rows.rows.size(), kinds[tensor].width});
  }
  return Status::ok();
}

Status ForwardPass::runAll() {
  const Schedule &schedule = run_.schedule();
  const CallShape &shape = schedule.shape;
  const int64_t qRows = schedule.qLayout.shardSize(run_.rank());
  const int64_t numRows = shape.batch * shape.qHeads * qRows;
  run_.ledger().add(residentBytes(schedule, run_.rank()));
  keys_ = std::make_unique<RowStore>(run_.rank(), Payload::KV, shape, std::vector{tensors_.k, tensors_.v});
  queries_ = std::make_unique<RowStore>(run_.rank(), Payload::Q, shape, std::vector{tensors_.q});
  // Partials live in the output where its type allows. The planner counted both buffers among the resident bytes.
  partial_ = tensors_.out;
  if (needsPartials(schedule, run_.rank())) {
    partialBuffer_.emplace(BufferSource{run_.device(), counted_},
                           numRows * shape.vHeadDim * sizeInBytes(ElementType::F32),
                           ExecutionDevice::Contents::Undefined);
    partial_ = denseView(partialBuffer_->data(), ElementType::F32, shape.qHeads, qRows, shape.vHeadDim);
  }
  lse_ = tensors_.lse;
  if (!lse_.data) {
    lseBuffer_.emplace(BufferSource{run_.device(), counted_}, numRows * sizeInBytes(ElementType::F32),
                       ExecutionDevice::Contents::Undefined);
    lse_ = denseView(lseBuffer_->data(), ElementType::F32, shape.qHeads, qRows, 1);
  }
  for (int32_t step = 0; step < schedule.numSteps; ++step) {
    CPFLEX_RETURN_IF_ERROR(run_.startStep(step, *keys_, *queries_));
    for (const Compute *each : run_.computesOf(step)) {
      const int64_t begin = run_.mark(DeviceQueue::Compute);
      CPFLEX_RETURN_IF_ERROR(compute(*each));
      run_.record(TraceEvent::Lane::Compute, "forward", step, begin, 0);
    }
    auto results = run_.finishStep(step, *keys_, *queries_);
    if (!results)
      return results.status();
    for (const std::shared_ptr<Parcel> &parcel : *results)
      CPFLEX_RETURN_IF_ERROR(takeHome(*parcel));
  }
  return run_.finish();
}

} // namespace

Status runForward(const Schedule &schedule, const RankCall &call, const RankForwardTensors &tensors,
                  Communicator &communicator, const ExecutorOptions &options) {
  RankRun run(schedule, call, communicator, options);
  CPFLEX_RETURN_IF_ERROR(run.check());
  if (schedule.pass != Pass::Forward)
    return Status::invalid("a backward schedule for a forward pass; expected a forward schedule");
  for (auto [view, name] : {std::pair(&tensors.q, "q"), std::pair(&tensors.k, "k"), std::pair(&tensors.v, "v"),
                            std::pair(&tensors.out, "out")})
    if (view->type != schedule.shape.type)
      return Status::invalid(fmt::format("'{}' is {}; expected {}, the type of the schedule", name,
                                         toString(view->type), toString(schedule.shape.type)));
  return ForwardPass(run, tensors).runAll();
}

} // namespace cpflex
