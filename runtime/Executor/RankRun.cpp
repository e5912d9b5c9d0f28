// The parts of a rank's walk that both passes share; see RankRun.h.
#include "runtime/Executor/RankRun.h"
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/Executor/LocalMask.h"
#include "runtime/Plan/Certificate.h"
#include "runtime/Plan/Layouts.h"
#include "runtime/Plan/Rotations.h"
#include "runtime/Plan/VerifySchedule.h"

#include <algorithm>
#include <fmt/format.h>

namespace cpflex {
namespace {

bool isKeySide(Payload payload) { return payload == Payload::KV; }
bool isResult(Payload payload) { return payload == Payload::Out || payload == Payload::DQ || payload == Payload::DKV; }

/// Rows in ascending position: pieces as they are when they are runs, row by row when they are strided.
std::vector<OwnedRows> ascending(const std::vector<OwnedRows> &rows, const Layout &layout, int64_t b) {
  std::vector<std::pair<int64_t, OwnedRows>> keyed;
  for (const OwnedRows &each : rows) {
    int64_t row = each.rows.begin;
    for (const AffinePiece &piece : slice(layout.shard(b, each.owner), each.rows).pieces) {
      if (piece.step == 1) {
        keyed.push_back({piece.begin, {each.owner, {row, row + piece.count}}});
      } else {
        for (int64_t i = 0; i < piece.count; ++i)
          keyed.push_back({piece.begin + i * piece.step, {each.owner, {row + i, row + i + 1}}});
      }
      row += piece.count;
    }
  }
  std::sort(keyed.begin(), keyed.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
  std::vector<OwnedRows> result;
  for (const auto &[position, each] : keyed)
    result.push_back(each);
  return result;
}

} // namespace

RankRun::RankRun(const Schedule &schedule, const RankCall &call, Communicator &communicator,
                 const ExecutorOptions &options)
    : schedule_(schedule), call_(call), communicator_(communicator), options_(options), host_(options.attention),
      device_(options.device ? *options.device : host_), prepared_(options.prepared ? *options.prepared : ownPrepared_),
      rank_(communicator.rank()) {
  for (const Compute &compute : schedule.computes)
    if (compute.rank == rank_)
      computes_.push_back(&compute);
  for (size_t index = 0; index < schedule.transfers.size(); ++index)
    if (schedule.transfers[index].source == rank_ && isResult(schedule.transfers[index].payload))
      results_.push_back(int32_t(index));
}

Status RankRun::check() const {
  CPFLEX_RETURN_IF_ERROR(verifySchedule(schedule_));
  if (communicator_.worldSize() != schedule_.worldSize)
    return Status::invalid(fmt::format("a schedule for {} ranks on {} ranks; expected as many", schedule_.worldSize,
                                       communicator_.worldSize()));
  if (call_.tape && !call_.bindings)
    return Status::invalid("a mask without bindings; expected the arrays that it reads");
  return Status::ok();
}

std::span<const Compute *const> RankRun::computesOf(int32_t step) const {
  const auto found = std::ranges::equal_range(computes_, step, {}, &Compute::step);
  return {found.begin(), found.end()};
}

Status RankRun::startStep(int32_t step, RowStore &keys, RowStore &queries) {
  if (lastUse_.empty())
    lastUse_ = lastUses(schedule_);
  // Results were computed; what else leaves lay there before this step's computes.
  const bool hasResults = std::any_of(outgoing_.begin(), outgoing_.end(), [&](const auto &entry) {
    return schedule_.transfers[size_t(entry.first)].step == step;
  });
  if (hasResults)
    device_.transferAfterCompute();
  stepBegin_ = mark(DeviceQueue::Transfer);
  MessageGroup group{step, "", {}, {}};
  auto first = std::partition_point(schedule_.transfers.begin(), schedule_.transfers.end(),
                                    [&](const Transfer &transfer) { return transfer.step < step; });
  for (; first != schedule_.transfers.end() && first->step == step; ++first) {
    const Transfer &transfer = *first;
    const int32_t index = int32_t(first - schedule_.transfers.begin());
    if (transfer.source == rank_) {
      auto found = outgoing_.find(index);
      std::shared_ptr<Parcel> parcel =
          found != outgoing_.end()
              ? found->second.parcel
              : std::make_shared<Parcel>(transfer, schedule_.shape, buffers(), ExecutionDevice::Contents::Undefined,
                                         DeviceQueue::Transfer);
      if (found != outgoing_.end())
        outgoing_.erase(found);
      if (!isResult(transfer.payload)) {
        const RowStore &store = isKeySide(transfer.payload) ? keys : queries;
        for (size_t slab = 0; slab < parcel->numSlabs(); ++slab)
          for (size_t tensor = 0; tensor < store.tensors().size(); ++tensor)
            store.gather(device_, DeviceQueue::Transfer, tensor, parcel->slab(slab), parcel->view(slab, tensor));
      }
      group.sends.push_back({transfer.destination, parcel->data(), transfer.sizeInBytes});
      if (options_.report) {
        TrafficCounter &counter =
            options_.report->sent[{std::string(toString(transfer.payload)), transfer.destination}];
        ++counter.messages;
        counter.bytes += transfer.sizeInBytes;
      }
      leaving_.push_back(std::move(parcel));
    } else if (transfer.destination == rank_) {
      auto parcel = std::make_shared<Parcel>(transfer, schedule_.shape, buffers(), ExecutionDevice::Contents::Undefined,
                                             DeviceQueue::Transfer);
      group.receives.push_back({transfer.source, parcel->data(), transfer.sizeInBytes});
      arriving_[index] = std::move(parcel);
    }
    if ((transfer.source == rank_ || transfer.destination == rank_) &&
        group.purpose.find(toString(transfer.payload)) == std::string::npos)
      group.purpose += (group.purpose.empty() ? "" : ", ") + std::string(toString(transfer.payload));
  }
  CPFLEX_RETURN_IF_ERROR(device_.status());
  StatusOr<int64_t> ticket = communicator_.start(group);
  if (!ticket)
    return ticket.status();
  ticket_ = *ticket;
  return Status::ok();
}

StatusOr<std::vector<std::shared_ptr<Parcel>>> RankRun::finishStep(int32_t step, RowStore &keys, RowStore &queries) {
  CPFLEX_RETURN_IF_ERROR(communicator_.wait(ticket_, deadlineIn(options_.deadlineSeconds)));
  int64_t bytes = 0;
  std::vector<std::shared_ptr<Parcel>> results;
  for (auto &[index, parcel] : arriving_) {
    const Transfer &transfer = parcel->transfer();
    bytes += transfer.sizeInBytes;
    if (options_.report) {
      TrafficCounter &counter = options_.report->received[{std::string(toString(transfer.payload)), transfer.source}];
      ++counter.messages;
      counter.bytes += transfer.sizeInBytes;
    }
    if (isResult(transfer.payload))
      results.push_back(std::move(parcel));
    else
      (isKeySide(transfer.payload) ? keys : queries).add(index, std::move(parcel));
  }
  arriving_.clear();
  // Own gradients came first; the ranks after this one follow, then those before it.
  std::ranges::sort(results, {}, [&](const std::shared_ptr<Parcel> &parcel) { return turnOf(parcel->transfer()); });
  if (bytes > 0 || !leaving_.empty())
    record(TraceEvent::Lane::Transfer, "exchange", step, stepBegin_, bytes);
  leaving_.clear();
  for (size_t index = 0; index < lastUse_.size(); ++index)
    if (schedule_.transfers[index].destination == rank_ && lastUse_[index] <= step) {
      keys.drop(int32_t(index));
      queries.drop(int32_t(index));
    }
  return results;
}

std::pair<int32_t, Payload> RankRun::turnOf(const Transfer &transfer) const {
  return {(transfer.source - rank_ + schedule_.worldSize) % schedule_.worldSize, transfer.payload};
}

Operand RankRun::rowsOf(const Compute &compute, Payload side) const {
  const bool isKey = isKeySide(side);
  const Layout &layout = isKey ? schedule_.kvLayout : schedule_.qLayout;
  const CallShape &shape = schedule_.shape;
  const int64_t headsPerKV = shape.qHeads / shape.kvHeads;
  const std::vector<OwnedRows> &listed = isKey ? compute.kv : compute.q;
  Operand operand;
  operand.batch = compute.batch;
  operand.heads =
      isKey ? Range{compute.heads.begin / headsPerKV, (compute.heads.end - 1) / headsPerKV + 1} : compute.heads;
  operand.rows = joined(listed);
  const bool isPiece = operand.rows.size() == 1;
  if (!isPiece && schedule_.keyOrder == KeyOrder::Ascending)
    operand.rows = ascending(listed, layout, compute.batch.begin);
  for (const OwnedRows &rows : operand.rows)
    operand.count += rows.rows.size();
  operand.isOwnPiece = isPiece && operand.rows[0].owner == rank_;
  return operand;
}

Operand RankRun::operand(const Compute &compute, const RowStore &store) {
  const bool isKey = isKeySide(store.payload());
  const Layout &layout = isKey ? schedule_.kvLayout : schedule_.qLayout;
  Operand operand = rowsOf(compute, store.payload());
  const bool isPiece = operand.rows.size() == 1;
  for (const OwnedRows &rows : operand.rows) {
    PositionMap part = slice(layout.shard(compute.batch.begin, rows.owner), rows.rows);
    operand.positions.pieces.insert(operand.positions.pieces.end(), part.pieces.begin(), part.pieces.end());
  }
  operand.positions = compacted(std::move(operand.positions));
  for (size_t tensor = 0; tensor < store.tensors().size(); ++tensor) {
    const PayloadTensor &kind = store.tensors()[tensor];
    // Packed rows of mixed types may be unaligned, so only keys are read where a message left them.
    if (operand.isOwnPiece || (isPiece && isKey))
      if (TensorView view =
              store.find(tensor, {operand.rows[0].owner, compute.batch, operand.heads, operand.rows[0].rows});
          view.data) {
        operand.views.push_back(view);
        continue;
      }
    operand.buffers.push_back(std::make_unique<Buffer>(
        buffers(), compute.batch.size() * operand.heads.size() * operand.count * kind.width * sizeInBytes(kind.type),
        ExecutionDevice::Contents::Undefined));
    TensorView view =
        denseView(operand.buffers.back()->data(), kind.type, operand.heads.size(), operand.count, kind.width);
    int64_t local = 0;
    for (const OwnedRows &rows : operand.rows) {
      store.gather(device_, DeviceQueue::Compute, tensor, {rows.owner, compute.batch, operand.heads, rows.rows},
                   partOf(view, 0, 0, local));
      local += rows.rows.size();
    }
    operand.views.push_back(view);
  }
  return operand;
}

RankRun::Outgoing &RankRun::outgoing(int32_t index, int32_t step) {
  Outgoing &entry = outgoing_[index];
  if (entry.parcel)
    return entry;
  // What this and later computes bring, in the order in which post() or resultPlace() will ask for it.
  const Transfer &transfer = schedule_.transfers[size_t(index)];
  const Payload side = transfer.payload == Payload::DKV ? Payload::KV : Payload::Q;
  for (; step < transfer.step; ++step)
    for (const Compute *compute : computesOf(step)) {
      const Operand operand = rowsOf(*compute, side);
      for (const OwnedRows &rows : operand.rows)
        for (const Slab &slab : transfer.slabs)
          entry.written.plan(commonPart(slab, {rows.owner, operand.batch, operand.heads, rows.rows}));
    }
  int64_t numRows = 0;
  for (const Slab &slab : transfer.slabs)
    numRows += slab.batch.size() * slab.heads.size() * slab.rows.size();
  entry.parcel = std::make_shared<Parcel>(transfer, schedule_.shape, buffers(), entry.written.startOf(numRows),
                                          DeviceQueue::Compute);
  return entry;
}

std::optional<ResultPlace> RankRun::resultPlace(const Compute &compute, Payload payload, const Operand &operand) {
  if (operand.rows.size() != 1)
    return std::nullopt;
  const Slab part = {operand.rows[0].owner, operand.batch, operand.heads, operand.rows[0].rows};
  const std::optional<SlabPlace> place = placeOf(part, payload, compute.step, schedule_, results_);
  if (!place)
    return std::nullopt;
  Outgoing &message = outgoing(place->transfer, compute.step);
  const Slab &whole = message.parcel->slab(place->slab);
  ResultPlace result{{}, message.written.next(part)};
  for (size_t tensor = 0; tensor < tensorsOf(payload, schedule_.shape).size(); ++tensor)
    result.views.push_back(partOf(message.parcel->view(place->slab, tensor), part.batch.begin - whole.batch.begin,
                                  part.heads.begin - whole.heads.begin, part.rows.begin - whole.rows.begin));
  return result;
}

void RankRun::post(const Compute &compute, Payload payload, const Operand &operand,
                   const std::vector<TensorView> &views) {
  const std::vector<PayloadTensor> tensors = tensorsOf(payload, schedule_.shape);
  for (int32_t index : results_) {
    const Transfer &transfer = schedule_.transfers[size_t(index)];
    if (transfer.payload != payload || transfer.step <= compute.step)
      continue;
    int64_t local = 0;
    for (const OwnedRows &rows : operand.rows) {
      const Slab part = {rows.owner, operand.batch, operand.heads, rows.rows};
      for (size_t slab = 0; slab < transfer.slabs.size(); ++slab) {
        const Slab &whole = transfer.slabs[slab];
        const Slab common = commonPart(whole, part);
        if (isEmpty(common))
          continue;
        Outgoing &message = outgoing(index, compute.step);
        const bool isCopied = message.written.next(common) == GradientWrite::Overwrite || payload == Payload::Out;
        for (size_t tensor = 0; tensor < tensors.size(); ++tensor) {
          const TensorView from =
              partOf(views[tensor], common.batch.begin - part.batch.begin, common.heads.begin - part.heads.begin,
                     local + common.rows.begin - part.rows.begin);
          const TensorView to = partOf(message.parcel->view(slab, tensor), common.batch.begin - whole.batch.begin,
                                       common.heads.begin - whole.heads.begin, common.rows.begin - whole.rows.begin);
          const RowBlock block = {common.batch.size(), common.heads.size(), common.rows.size(), tensors[tensor].width};
          if (isCopied)
            device_.copyRows(DeviceQueue::Compute, from, to, block);
          else
            device_.addRows(from, to, block);
        }
      }
      local += rows.rows.size();
    }
  }
}

StatusOr<PreparedCompute *> RankRun::prepared(const Compute &compute, const Operand &q, const Operand &kv,
                                              const float *sink) {
  std::unique_ptr<PreparedCompute> &entry = prepared_.computes[{schedule_.pass, &compute - schedule_.computes.data()}];
  if (entry && entry->compute == compute && entry->problem.sink == sink)
    return entry.get();
  entry = std::make_unique<PreparedCompute>();
  entry->compute = compute;
  AttentionProblem &problem = entry->problem;
  problem.batch = compute.batch.size();
  problem.qHeads = q.heads.size();
  problem.kvHeads = kv.heads.size();
  problem.qLen = q.count;
  problem.kvLen = kv.count;
  problem.headDim = schedule_.shape.headDim;
  problem.vHeadDim = schedule_.shape.vHeadDim;
  problem.scale = call_.scale;
  problem.normalization = call_.normalization;
  problem.batchOffset = call_.batchOffset + compute.batch.begin;
  problem.headOffset = call_.headOffset + compute.heads.begin;
  problem.qPositions = q.positions;
  problem.kvPositions = kv.positions;
  problem.functions = call_.functions;
  problem.bindings = call_.bindings;
  problem.sink = sink;
  if (call_.tape) {
    BlockMaskOptions options;
    options.batch = problem.batch;
    options.heads = problem.qHeads;
    options.qLen = problem.qLen;
    options.kvLen = problem.kvLen;
    options.qPositions = q.positions;
    options.kvPositions = kv.positions;
    options.batchOffset = problem.batchOffset;
    options.headOffset = problem.headOffset;
    options.declarations = call_.declarations;
    options.summaries = call_.summaries;
    options.residuals = call_.residuals;
    StatusOr<BlockMaskResult> built = buildBlockMask(call_.tape, *call_.bindings, options);
    if (!built)
      return built.status();
    entry->mask = std::move(built->mask);
    problem.mask = &entry->mask;
  } else if (call_.functions && call_.functions->evaluateTile) {
    entry->mask = evaluatedMask(problem);
    problem.mask = &entry->mask;
  }
  return entry.get();
}

void RankRun::record(TraceEvent::Lane lane, const std::string &name, int32_t step, int64_t beginMark, int64_t bytes) {
  if (!hasSpans())
    return;
  const int64_t endMark =
      device_.mark(lane == TraceEvent::Lane::Compute ? DeviceQueue::Compute : DeviceQueue::Transfer);
  spans_.push_back({{lane, name, step, 0.0, 0.0, bytes}, beginMark, endMark});
}

Status RankRun::finish() {
  CPFLEX_RETURN_IF_ERROR(options_.completion == ExecutorOptions::Completion::Done ? device_.synchronize()
                                                                                  : device_.status());
  if (!options_.report)
    return Status::ok();
  for (OpenSpan &span : spans_) {
    span.event.beginSeconds = device_.secondsAt(span.beginMark);
    span.event.durationSeconds = device_.secondsAt(span.endMark) - span.event.beginSeconds;
    options_.report->events.push_back(std::move(span.event));
  }
  spans_.clear();
  device_.forgetMarks();
  options_.report->rank = rank_;
  options_.report->peakBytes = std::max(options_.report->peakBytes, ledger_.peak());
  return Status::ok();
}

Status RankRun::sum(float *values, int64_t count, const std::string &purpose) {
  const int64_t begin = mark(DeviceQueue::Transfer);
  const Deadline deadline = deadlineIn(options_.deadlineSeconds);
  CPFLEX_RETURN_IF_ERROR(
      sumOverRanks(rank_, schedule_.worldSize, values, count, purpose, [&](const MessageGroup &group) {
        return exchangeHostBytes(device_, communicator_, group, deadline);
      }));
  const int64_t bytes = count * int64_t(sizeof(float));
  if (options_.report && schedule_.worldSize > 1)
    for (int32_t peer = 0; peer < schedule_.worldSize; ++peer)
      if (peer != rank_ && (rank_ == 0 || peer == 0))
        for (auto *counters : {&options_.report->sent, &options_.report->received}) {
          TrafficCounter &counter = (*counters)[{purpose, peer}];
          ++counter.messages;
          counter.bytes += bytes;
        }
  record(TraceEvent::Lane::Transfer, purpose, schedule_.numSteps, begin, bytes);
  return Status::ok();
}

} // namespace cpflex
