// A GPU as an execution device; see CudaExecutionDevice.h. The module of row kernels is in PartialRowKernels.cpp.
#include "runtime/Executor/CudaExecutionDevice.h"
#include "runtime/Cuda/DeviceTensor.h"
#include "runtime/Executor/RowStore.h"
#include "runtime/Host/TileTensors.h"
#include "runtime/contract/PartialArguments.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <limits>
#include <optional>
#include <span>

namespace cpflex {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kRowsPerBlock = kThreads / 32;
/// Blocks along rows; they loop over what is left.
constexpr int64_t kMostBlocks = 2048;
constexpr int64_t kZeroBytes = 1024;

RowElement toRowElement(ElementType type) {
  return type == ElementType::BF16 ? RowElement::BF16 : type == ElementType::F16 ? RowElement::F16 : RowElement::F32;
}

RowBytesArgument toRowBytes(const TensorView &view) {
  const int64_t element = sizeInBytes(view.type);
  return {view.data, view.strides[0] * element, view.strides[1] * element, view.strides[2] * element};
}

/// The widest unit that divides everything.
int unitBytes(const RowBytesArgument &from, const RowBytesArgument &to, int64_t rowBytes) {
  uint64_t bits = uint64_t(rowBytes);
  for (const RowBytesArgument *side : {&from, &to})
    bits |= reinterpret_cast<uint64_t>(side->data) | uint64_t(side->strideB) | uint64_t(side->strideH) |
            uint64_t(side->strideS);
  for (int unit : {16, 8, 4})
    if (bits % uint64_t(unit) == 0)
      return unit;
  return 2;
}

/// Memory of the device for the duration of a call.
class Scratch {
public:
  Scratch(ExecutionDevice &device, int64_t sizeInBytes)
      : device_(device),
        data_(device.allocate(sizeInBytes, ExecutionDevice::Contents::Undefined, DeviceQueue::Compute)) {}
  ~Scratch() { device_.release(data_); }
  Scratch(const Scratch &) = delete;
  void *data() const { return data_; }

private:
  ExecutionDevice &device_;
  void *data_;
};

/// A dense f32 tensor [batch, heads, rows, width] for the duration of a call.
class ScratchTensor : public Scratch {
public:
  ScratchTensor(ExecutionDevice &device, const RowBlock &rows)
      : Scratch(device, rows.batch * rows.heads * rows.rows * rows.width * int64_t(sizeof(float))),
        view(denseView(data(), ElementType::F32, rows.heads, rows.rows, rows.width)) {}
  TensorView view;
};

/// What is bound for one prepared compute.
struct BoundCompute {
  std::shared_ptr<CudaExecutable> executable;
  CudaProgramOptions::CaptureGradients captureGradients;
};

} // namespace

StatusOr<std::unique_ptr<CudaExecutionDevice>>
CudaExecutionDevice::create(const CudaMachine &machine, const CudaCall &call, std::shared_ptr<const CudaPort> port) {
  std::unique_ptr<CudaExecutionDevice> device(new CudaExecutionDevice(machine, std::move(port)));
  CPFLEX_RETURN_IF_ERROR(device->open(call));
  return device;
}

Status CudaExecutionDevice::open(const CudaCall &call) {
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = device_->driver();
  CPFLEX_RETURN_IF_ERROR(driver.status(driver.streamCreate(&compute_, cuda::kStreamNonBlocking), "cuStreamCreate"));
  StatusOr<CudaEvent> computed = CudaEvent::create(device_, CudaEvent::Timing::Off);
  StatusOr<CudaEvent> base = CudaEvent::create(device_, CudaEvent::Timing::On);
  if (!computed || !base)
    return computed ? base.status() : computed.status();
  computed_ = std::move(*computed);
  base_ = std::move(*base);
  StatusOr<std::shared_ptr<const PartialRowKernels>> rows = call.programs->rowKernels(machine_);
  if (!rows)
    return rows.status();
  rows_ = *rows;
  CPFLEX_RETURN_IF_ERROR(addCaptures(call));
  zeros_ = allocate(kZeroBytes, Contents::Zero, DeviceQueue::Compute);
  CPFLEX_RETURN_IF_ERROR(base_.record(compute_));
  CPFLEX_RETURN_IF_ERROR(synchronize());
  baseSeconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  return Status::ok();
}

CudaExecutionDevice::~CudaExecutionDevice() {
  CurrentContext current(*device_);
  if (!current.status())
    return;
  const CudaDriver &driver = device_->driver();
  if (zeros_)
    release(zeros_);
  (void)driver.streamSynchronize(transfer_);
  if (compute_) {
    (void)driver.streamSynchronize(compute_);
    (void)driver.streamDestroy(compute_);
  }
}

Status CudaExecutionDevice::addCaptures(const CudaCall &call) {
  functions_ = call.functions;
  programs_ = call.programs;
  if (call.sink) {
    StatusOr<void *> sink = copies_.add(device_, call.sink, call.numSinks * int64_t(sizeof(float)), compute_);
    if (!sink)
      return sink.status();
    sink_ = static_cast<const float *>(*sink);
  }
  if (!call.bindings)
    return Status::ok();
  for (int i = 0; i < functions_.numCaptures; ++i) {
    if (size_t(i) < call.onDevice.size() && call.onDevice[size_t(i)].data) {
      captures_.push_back(call.onDevice[size_t(i)]);
      continue;
    }
    StatusOr<CaptureView> copy = copies_.add(device_, call.bindings->captures[i], compute_);
    if (!copy)
      return copy.status();
    captures_.push_back(*copy);
  }
  bindings_ = *call.bindings;
  bindings_.captures = captures_.data();
  hasBindings_ = true;
  return Status::ok();
}

void CudaExecutionDevice::note(Status status) {
  if (status_.isOk() && !status.isOk())
    status_ = std::move(status);
}

void *CudaExecutionDevice::allocate(int64_t sizeInBytes, Contents contents, DeviceQueue queue) {
  CurrentContext current(*device_);
  note(current.status());
  if (!status_)
    return nullptr;
  const CudaDriver &driver = device_->driver();
  const size_t bytes = size_t(std::max<int64_t>(1, sizeInBytes));
  cuda::DeviceAddress address = 0;
  const cuda::Result result = driver.memAllocFromPoolAsync(&address, bytes, pool_, stream(queue));
  if (result == cuda::kOutOfMemory) {
    note(Status(StatusCode::OutOfMemory,
                fmt::format("no memory for a buffer of {} bytes on GPU {}; use more ranks or shorter sequences",
                            sizeInBytes, device_->description().index)));
    return nullptr;
  }
  note(driver.status(result, "cuMemAllocFromPoolAsync"));
  if (status_ && contents == Contents::Zero)
    note(driver.status(driver.memsetD8Async(address, 0, bytes, stream(queue)), "cuMemsetD8Async"));
  return reinterpret_cast<void *>(address);
}

void CudaExecutionDevice::release(void *memory) {
  if (!memory)
    return;
  CurrentContext current(*device_);
  const CudaDriver &driver = device_->driver();
  note(driver.status(driver.memFreeAsync(reinterpret_cast<cuda::DeviceAddress>(memory), compute_), "cuMemFreeAsync"));
}

Status CudaExecutionDevice::launch(cuda::Function function, void *arguments, int64_t units, int64_t groups,
                                   DeviceQueue queue, const char *name) {
  CPFLEX_RETURN_IF_ERROR(status_);
  if (units == 0 || groups == 0)
    return Status::ok();
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  if (units > std::numeric_limits<int32_t>::max() || groups > cuda::kMostBlocksAlongY)
    return Status::unsupported(fmt::format("'{}' of {} units in {} (b, h); a GPU takes at most 2147483647 and {}", name,
                                           units, groups, cuda::kMostBlocksAlongY));
  const CudaDriver &driver = device_->driver();
  void *parameters[] = {arguments};
  const unsigned blocks = unsigned(std::min(ceilDivide(units, int64_t(kThreads)), kMostBlocks));
  return driver.status(
      driver.launchKernel(function, blocks, unsigned(groups), 1, kThreads, 1, 1, 0, stream(queue), parameters, nullptr),
      fmt::format("cuLaunchKernel of '{}'", name));
}

void CudaExecutionDevice::copyRows(DeviceQueue queue, const TensorView &from, const TensorView &to,
                                   const RowBlock &rows) {
  const int64_t element = sizeInBytes(from.type);
  CopyRowsArguments arguments{.from = toRowBytes(from),
                              .to = toRowBytes(to),
                              .heads = int(rows.heads),
                              .rows = 0,
                              .unitsPerRow = 0,
                              .unitBytes = 0};
  int64_t numRows = rows.rows, rowBytes = rows.width * element;
  if (rows.width > 1 && (from.strides[3] != 1 || to.strides[3] != 1))
    return note(
        Status::unsupported("a tensor whose last stride is not 1 on a GPU; expected rows of adjacent elements"));
  if (arguments.from.strideS == rowBytes && arguments.to.strideS == rowBytes) {
    rowBytes *= numRows;
    numRows = 1;
    arguments.from.strideS = arguments.to.strideS = 0;
  }
  arguments.unitBytes = unitBytes(arguments.from, arguments.to, rowBytes);
  arguments.rows = unsigned(numRows);
  arguments.unitsPerRow = unsigned(rowBytes / arguments.unitBytes);
  note(launch(rows_->copyRows, &arguments, numRows * (rowBytes / arguments.unitBytes), rows.batch * rows.heads, queue,
              "copy_rows"));
}

Status CudaExecutionDevice::combine(cuda::Function function, const TensorView &from, const TensorView &to, float factor,
                                    const RowBlock &rows, const char *name) {
  CombineRowsArguments arguments{.from = toRowBytes(from),
                                 .to = toRowBytes(to),
                                 .heads = int(rows.heads),
                                 .rows = unsigned(rows.rows),
                                 .width = unsigned(rows.width),
                                 .factor = factor,
                                 .toElement = toRowElement(to.type)};
  return launch(function, &arguments, rows.rows * rows.width, rows.batch * rows.heads, DeviceQueue::Compute, name);
}

void CudaExecutionDevice::addRows(const TensorView &from, const TensorView &to, const RowBlock &rows) {
  note(combine(rows_->addRows, from, to, 1.0f, rows, "add_rows"));
}

Status CudaExecutionDevice::convert(const TensorView &from, const TensorView &to, const RowBlock &rows) {
  return combine(rows_->convertRows, from, to, 1.0f, rows, "convert_rows");
}

Status CudaExecutionDevice::copyIn(void *device, const void *host, int64_t sizeInBytes) {
  CPFLEX_RETURN_IF_ERROR(status_);
  return copyToDevice(*device_, reinterpret_cast<cuda::DeviceAddress>(device), host, sizeInBytes, transfer_);
}

Status CudaExecutionDevice::copyOut(void *host, const void *device, int64_t sizeInBytes) {
  CPFLEX_RETURN_IF_ERROR(status_);
  return copyToHost(*device_, host, reinterpret_cast<cuda::DeviceAddress>(device), sizeInBytes, transfer_);
}

void CudaExecutionDevice::transferAfterCompute() {
  if (!status_)
    return;
  note(computed_.record(compute_));
  note(computed_.delay(transfer_));
}

Status CudaExecutionDevice::synchronize() {
  CPFLEX_RETURN_IF_ERROR(status_);
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = device_->driver();
  for (cuda::Stream stream : {compute_, transfer_})
    note(driver.status(driver.streamSynchronize(stream), "cuStreamSynchronize"));
  return status_;
}

Status CudaExecutionDevice::startAfter(cuda::Stream stream) {
  CPFLEX_RETURN_IF_ERROR(status_);
  CPFLEX_RETURN_IF_ERROR(computed_.record(stream));
  CPFLEX_RETURN_IF_ERROR(computed_.delay(compute_));
  return computed_.delay(transfer_);
}

Status CudaExecutionDevice::finishBefore(cuda::Stream stream) {
  for (cuda::Stream own : {transfer_, compute_}) {
    CPFLEX_RETURN_IF_ERROR(computed_.record(own));
    CPFLEX_RETURN_IF_ERROR(computed_.delay(stream));
  }
  return status_;
}

StatusOr<CudaExecutable *> CudaExecutionDevice::bound(PreparedCompute &compute, ElementType element, Purpose purpose) {
  using CaptureGradients = CudaProgramOptions::CaptureGradients;
  const CaptureGradients captureGradients =
      purpose == Purpose::GradientsOfCapturesToo ? CaptureGradients::Computed : CaptureGradients::None;
  if (auto *state = static_cast<BoundCompute *>(compute.deviceState.get());
      state && (state->captureGradients == captureGradients || captureGradients == CaptureGradients::None))
    return state->executable.get();
  AttentionProblem problem = compute.problem;
  CudaProgramOptions options = CudaProgramOptions::of(problem, element);
  options.output = purpose == Purpose::Whole ? OutputForm::Element : OutputForm::F32;
  options.captureGradients = captureGradients;
  if (purpose == Purpose::Gradients || purpose == Purpose::GradientsOfCapturesToo)
    options.passes = CudaProgramOptions::Passes::Backward;
  options.positions = positionMode(problem, functions_, options, device_->description().computeCapability);
  StatusOr<std::shared_ptr<const CudaProgram>> compiled = programs_->get(machine_, functions_, options, warnings_);
  if (!compiled)
    return compiled.status();
  problem.functions = nullptr;
  problem.bindings = hasBindings_ ? &bindings_ : nullptr;
  // The last call of a row adds the sink; a merge does it where there is one.
  problem.sink = problem.sink && purpose != Purpose::Partial ? sink_ : nullptr;
  StatusOr<std::shared_ptr<CudaExecutable>> executable = CudaExecutable::bind(*compiled, problem, compute_);
  if (!executable)
    return executable.status();
  if (const auto *replaced = static_cast<const BoundCompute *>(compute.deviceState.get()))
    boundInBytes_ -= replaced->executable->sizeInBytes();
  boundInBytes_ += (*executable)->sizeInBytes();
  auto state = std::make_shared<BoundCompute>(BoundCompute{*executable, captureGradients});
  compute.deviceState = state;
  return state->executable.get();
}

Status CudaExecutionDevice::merge(const AttentionProblem &problem, const PartialAttention &first,
                                  const PartialAttention &second, const TensorView &out, const TensorView &lse,
                                  const float *sink) {
  MergePartialsArguments arguments{.first = toTensorArgument(first.out),
                                   .second = toTensorArgument(second.out),
                                   .firstLse = toRowArgument(first.lse),
                                   .secondLse = toRowArgument(second.lse),
                                   .out = toTensorArgument(out),
                                   .lse = toRowArgument(lse),
                                   .sink = sink,
                                   .heads = int(problem.qHeads),
                                   .headOffset = int(problem.headOffset),
                                   .rows = int(problem.qLen),
                                   .width = int(problem.vHeadDim),
                                   .outElement = toRowElement(out.type),
                                   .hasSoftmax = problem.normalization == AttentionProblem::Normalization::Softmax};
  return launch(rows_->mergePartials, &arguments, ceilDivide(problem.qLen, kRowsPerBlock) * int64_t(kThreads),
                problem.batch * problem.qHeads, DeviceQueue::Compute, "merge_partials");
}

Status CudaExecutionDevice::forward(PreparedCompute &compute, const HostForwardTensors &tensors) {
  CPFLEX_RETURN_IF_ERROR(status_);
  const AttentionProblem &problem = compute.problem;
  const bool isContinued = tensors.initial.out.data != nullptr;
  const bool isPartial = isContinued || tensors.out.type == ElementType::F32;
  if (problem.batch * problem.qHeads * problem.qLen == 0)
    return Status::ok();
  StatusOr<CudaExecutable *> executable = bound(compute, tensors.q.type, isPartial ? Purpose::Partial : Purpose::Whole);
  if (!executable)
    return executable.status();
  Scratch workspace(*this, (*executable)->workspaceInBytes(CudaExecutable::Pass::Forward));
  CPFLEX_RETURN_IF_ERROR(status_);
  if (!isContinued)
    return (*executable)
        ->forward({tensors.q, tensors.k, tensors.v, tensors.out, tensors.lse}, workspace.data(), compute_);
  const bool hasSoftmax = problem.normalization == AttentionProblem::Normalization::Softmax;
  ScratchTensor out(*this, {problem.batch, problem.qHeads, problem.qLen, problem.vHeadDim});
  ScratchTensor lse(*this, {problem.batch, problem.qHeads, hasSoftmax ? problem.qLen : 0, 1});
  CPFLEX_RETURN_IF_ERROR(status_);
  const TensorView partLse = hasSoftmax ? lse.view : TensorView();
  CPFLEX_RETURN_IF_ERROR(
      (*executable)->forward({tensors.q, tensors.k, tensors.v, out.view, partLse}, workspace.data(), compute_));
  return merge(problem, tensors.initial, {out.view, partLse}, tensors.out, tensors.lse, problem.sink ? sink_ : nullptr);
}

Status CudaExecutionDevice::backward(PreparedCompute &compute, const HostBackwardTensors &tensors) {
  CPFLEX_RETURN_IF_ERROR(status_);
  const AttentionProblem &p = compute.problem;
  const std::span<float *const> wanted(tensors.captureGradients,
                                       tensors.captureGradients ? size_t(tensors.numCaptures) : 0);
  const bool wantsCaptures = std::ranges::any_of(wanted, [](const float *gradient) { return gradient != nullptr; });
  if (wanted.size() > captures_.size())
    return Status::invalid(
        fmt::format("gradients of {} captures; the program has {}", wanted.size(), captures_.size()));
  const RowBlock dQRows = {p.batch, p.qHeads, p.qLen, p.headDim}, dKRows = {p.batch, p.kvHeads, p.kvLen, p.headDim};
  const RowBlock dVRows = {p.batch, p.kvHeads, p.kvLen, p.vHeadDim}, rows = {p.batch, p.qHeads, p.qLen, 1};
  if (p.batch * p.qHeads * p.qLen == 0) {
    const TensorView zeros = {zeros_, ElementType::F32, {0, 0, 0, 1}};
    if (tensors.keyWrite == GradientWrite::Overwrite) {
      copyRows(DeviceQueue::Compute, zeros, tensors.dK, dKRows);
      copyRows(DeviceQueue::Compute, zeros, tensors.dV, dVRows);
    }
    return status_;
  }
  StatusOr<CudaExecutable *> executable =
      bound(compute, tensors.q.type, wantsCaptures ? Purpose::GradientsOfCapturesToo : Purpose::Gradients);
  if (!executable)
    return executable.status();
  Scratch workspace(*this, (*executable)->workspaceInBytes(CudaExecutable::Pass::Backward));
  ScratchTensor minusRowTerm(*this, rows);
  // Gradients that replace are written to their place, others to scratch first.
  std::optional<ScratchTensor> dQ, dK, dV;
  const auto target = [&](std::optional<ScratchTensor> &scratch, const TensorView &place, const RowBlock &block,
                          GradientWrite write) {
    return write == GradientWrite::Overwrite ? place : scratch.emplace(*this, block).view;
  };
  Scratch sinkGradient(*this, p.qHeads * int64_t(sizeof(float)));
  std::vector<std::unique_ptr<Scratch>> captureScratch(wanted.size());
  std::vector<float *> captureGradients(wanted.size(), nullptr);
  for (size_t i = 0; i < wanted.size(); ++i)
    if (wanted[i]) {
      captureScratch[i] = std::make_unique<Scratch>(*this, numOwnElements(captures_[i]) * int64_t(sizeof(float)));
      captureGradients[i] = static_cast<float *>(captureScratch[i]->data());
    }
  CudaBackwardTensors call{.q = tensors.q,
                           .k = tensors.k,
                           .v = tensors.v,
                           .o = {},
                           .lse = {},
                           .dO = tensors.dOut,
                           .dLse = {},
                           .dQ = target(dQ, tensors.dQ, dQRows, tensors.queryWrite),
                           .dK = target(dK, tensors.dK, dKRows, tensors.keyWrite),
                           .dV = target(dV, tensors.dV, dVRows, tensors.keyWrite)};
  CPFLEX_RETURN_IF_ERROR(status_);
  if (p.normalization == AttentionProblem::Normalization::Softmax) {
    // The kernels compute rowsum(dO * O) - dLSE; with O = 0 and dLSE = -D that is the row term as it was given.
    CPFLEX_RETURN_IF_ERROR(
        combine(rows_->convertRows, tensors.rowTerm, minusRowTerm.view, -1.0f, rows, "convert_rows"));
    call.o = {zeros_, tensors.q.type, {0, 0, 0, 1}};
    call.lse = tensors.lse;
    call.dLse = minusRowTerm.view;
    if (tensors.sinkGradient && p.sink)
      call.dSink = static_cast<float *>(sinkGradient.data());
  }
  if (wantsCaptures)
    call.dCaptures = captureGradients;
  CPFLEX_RETURN_IF_ERROR((*executable)->backward(call, workspace.data(), compute_));
  if (dQ)
    addRows(dQ->view, tensors.dQ, dQRows);
  if (dK)
    addRows(dK->view, tensors.dK, dKRows);
  if (dV)
    addRows(dV->view, tensors.dV, dVRows);
  // Small arrays of the host, summed there.
  const auto addOnHost = [&](float *to, const float *from, int64_t count) -> Status {
    std::vector<float> part(static_cast<size_t>(count));
    CPFLEX_RETURN_IF_ERROR(copyToHost(*device_, part.data(), reinterpret_cast<cuda::DeviceAddress>(from),
                                      count * int64_t(sizeof(float)), compute_));
    for (int64_t i = 0; i < count; ++i)
      to[i] += part[size_t(i)];
    return Status::ok();
  };
  if (call.dSink)
    CPFLEX_RETURN_IF_ERROR(addOnHost(tensors.sinkGradient + p.headOffset, call.dSink, p.qHeads));
  for (size_t i = 0; i < wanted.size(); ++i)
    if (wanted[i])
      CPFLEX_RETURN_IF_ERROR(addOnHost(wanted[i], captureGradients[i], numOwnElements(captures_[i])));
  return status_;
}

Status CudaExecutionDevice::rowTerm(const AttentionProblem &problem, const TensorView &out, const TensorView &dOut,
                                    const TensorView &dLse, const TensorView &rowTerm) {
  RowTermArguments arguments{.out = toTensorArgument(out),
                             .dOut = toTensorArgument(dOut),
                             .dLse = toRowArgument(dLse),
                             .rowTerm = toRowArgument(rowTerm),
                             .heads = int(problem.qHeads),
                             .rows = int(problem.qLen),
                             .width = int(problem.vHeadDim),
                             .element = toRowElement(out.type)};
  return launch(rows_->rowTerms, &arguments, ceilDivide(problem.qLen, kRowsPerBlock) * int64_t(kThreads),
                problem.batch * problem.qHeads, DeviceQueue::Compute, "row_terms");
}

int64_t CudaExecutionDevice::mark(DeviceQueue queue) {
  StatusOr<CudaEvent> event = CudaEvent::create(device_, CudaEvent::Timing::On);
  note(event ? event->record(stream(queue)) : event.status());
  marks_.push_back(event ? std::move(*event) : CudaEvent());
  return int64_t(marks_.size()) - 1;
}

double CudaExecutionDevice::secondsAt(int64_t mark) const {
  if (!status_)
    return baseSeconds_;
  StatusOr<float> milliseconds = marks_[size_t(mark)].millisecondsSince(base_);
  return baseSeconds_ + (milliseconds ? double(*milliseconds) * 1e-3 : 0.0);
}

} // namespace cpflex
