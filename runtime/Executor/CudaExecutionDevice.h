// A rank that computes on a GPU: attention kernels and row kernels in one stream, transfers in another, memory from a
// pool in stream order.
#pragma once

#include "runtime/Comm/CudaCommunicator.h"
#include "runtime/Cuda/CudaAttention.h"
#include "runtime/Cuda/CudaExecutable.h"
#include "runtime/Cuda/DeviceCopies.h"
#include "runtime/Executor/ExecutionDevice.h"
#include "runtime/Executor/RankPrograms.h"
#include "runtime/contract/DeviceFunctions.h"

#include <memory>
#include <string>
#include <vector>

namespace cpflex {

/// What a GPU computes for a call: the device's side of RankCall.
struct CudaCall {
  DeviceFunctions functions;
  const Bindings *bindings = nullptr; ///< host memory; copied to the GPU when the device is made
  /// One per capture, or empty: those with data lie in the GPU's memory and are read there instead.
  std::vector<CaptureView> onDevice = {};
  const float *sink = nullptr; ///< host memory, one logit per global query head, or null
  int64_t numSinks = 0;        ///< logits behind `sink`
  std::shared_ptr<RankPrograms> programs = std::make_shared<RankPrograms>();
};

/// One rank on one GPU; several ranks may share a GPU. Tensors are bf16 or f16 with the last stride 1 and rows at
/// multiples of 16 bytes. Gradients of captures and sinks are brought to the host call by call, which waits. Transfers
/// line up in the stream of a port, and memory comes from its pool.
class CudaExecutionDevice : public ExecutionDevice {
public:
  /// Copies captures and sinks to the GPU. `port` is the one of the communicator that carries the rank's messages.
  static StatusOr<std::unique_ptr<CudaExecutionDevice>> create(const CudaMachine &machine, const CudaCall &call,
                                                               std::shared_ptr<const CudaPort> port);
  ~CudaExecutionDevice() override;

  const std::shared_ptr<const CudaDevice> &device() const { return device_; }
  cuda::Stream stream(DeviceQueue queue) const { return queue == DeviceQueue::Compute ? compute_ : transfer_; }

  /// All work from here on waits for the work so far in the caller's `stream`.
  Status startAfter(cuda::Stream stream);
  /// Work that follows in the caller's `stream` waits for all work so far.
  Status finishBefore(cuda::Stream stream);

  Memory memory() const override { return Memory::Own; }
  void *allocate(int64_t sizeInBytes, Contents contents, DeviceQueue queue) override;
  void release(void *memory) override;
  void copyRows(DeviceQueue queue, const TensorView &from, const TensorView &to, const RowBlock &rows) override;
  void addRows(const TensorView &from, const TensorView &to, const RowBlock &rows) override;
  Status copyIn(void *device, const void *host, int64_t sizeInBytes) override;
  Status copyOut(void *host, const void *device, int64_t sizeInBytes) override;
  void transferAfterCompute() override;
  Status status() const override { return status_; }
  Status synchronize() override;
  Status forward(PreparedCompute &compute, const HostForwardTensors &tensors) override;
  Status backward(PreparedCompute &compute, const HostBackwardTensors &tensors) override;
  Status rowTerm(const AttentionProblem &problem, const TensorView &out, const TensorView &dOut, const TensorView &dLse,
                 const TensorView &rowTerm) override;
  Status convert(const TensorView &from, const TensorView &to, const RowBlock &rows) override;
  int64_t mark(DeviceQueue queue) override;
  double secondsAt(int64_t mark) const override;
  void forgetMarks() override { marks_.clear(); }

  /// Bytes that it holds on the GPU as long as it lives, or until computes are bound anew: captures that were copied,
  /// tables of masks. Nothing of the port's pool.
  int64_t heldInBytes() const { return copies_.sizeInBytes() + boundInBytes_; }

  /// Everything the kernel cache could not do, for one warning to the user.
  const std::vector<std::string> &warnings() const { return warnings_; }

private:
  CudaExecutionDevice(const CudaMachine &machine, std::shared_ptr<const CudaPort> port)
      : machine_(machine), device_(machine.device), port_(std::move(port)), transfer_(port_->stream()),
        pool_(port_->pool()) {}
  Status open(const CudaCall &call);
  Status addCaptures(const CudaCall &call);
  enum class Purpose : uint8_t { Whole, Partial, Gradients, GradientsOfCapturesToo };
  StatusOr<CudaExecutable *> bound(PreparedCompute &compute, ElementType element, Purpose purpose);
  Status launch(cuda::Function function, void *arguments, int64_t units, int64_t groups, DeviceQueue queue,
                const char *name);
  Status combine(cuda::Function function, const TensorView &from, const TensorView &to, float factor,
                 const RowBlock &rows, const char *name);
  Status merge(const AttentionProblem &problem, const PartialAttention &first, const PartialAttention &second,
               const TensorView &out, const TensorView &lse, const float *sink);
  void note(Status status);

  CudaMachine machine_;
  std::shared_ptr<const CudaDevice> device_;
  std::shared_ptr<const CudaPort> port_;
  std::shared_ptr<const PartialRowKernels> rows_;
  cuda::Stream compute_ = nullptr, transfer_ = nullptr; ///< the latter is the port's
  cuda::MemoryPool pool_ = nullptr;                     ///< the port's
  CudaEvent computed_, base_;
  double baseSeconds_ = 0;
  std::vector<CudaEvent> marks_;
  Status status_;
  DeviceFunctions functions_;
  DeviceCopies copies_;
  std::vector<CaptureView> captures_;
  Bindings bindings_;
  bool hasBindings_ = false;
  const float *sink_ = nullptr; ///< device memory
  int64_t boundInBytes_ = 0;    ///< of the computes that were bound
  void *zeros_ = nullptr;       ///< one row of zeros
  std::shared_ptr<RankPrograms> programs_;
  std::vector<std::string> warnings_;
};

} // namespace cpflex
