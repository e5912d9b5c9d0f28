// A rank that computes on a GPU: attention kernels and row kernels in one stream, transfers in another, memory from a pool
// in stream order.
#pragma once

#include "runtime/Cuda/CudaAttention.h"
#include "runtime/Cuda/CudaExecutable.h"
#include "runtime/Cuda/DeviceCopies.h"
#include "runtime/Executor/ExecutionDevice.h"
#include "runtime/contract/DeviceFunctions.h"

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace cpflex {

/// The kernels of partial_rows.cuh on one GPU. Shared freely between threads.
class PartialRowKernels {
public:
  static StatusOr<std::shared_ptr<const PartialRowKernels>> create(const CudaMachine &machine);
  /// The text of the module, for compiling ahead and tests. Needs no GPU.
  static KernelSource source(int computeCapability);
  ~PartialRowKernels();
  PartialRowKernels(const PartialRowKernels &) = delete;

  cuda::Function copyRows = nullptr, addRows = nullptr, convertRows = nullptr, mergePartials = nullptr,
                 rowTerms = nullptr;

private:
  explicit PartialRowKernels(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  std::shared_ptr<const CudaDevice> device_;
  cuda::Module module_ = nullptr;
};

/// The programs of the ranks on one GPU for one functor, kept from call to call and shared by them.
class RankPrograms {
public:
  /// The program with these options, made at the first request. Warnings of its making are added to `warnings`.
  StatusOr<std::shared_ptr<const CudaProgram>> get(const CudaMachine &machine, const DeviceFunctions &functions,
                                                   const CudaProgramOptions &options,
                                                   std::vector<std::string> &warnings);

private:
  std::mutex mutex_;
  std::vector<std::pair<CudaProgramOptions, std::shared_ptr<const CudaProgram>>> programs_;
};

/// What a GPU computes for a call: the device's side of RankCall.
struct CudaCall {
  DeviceFunctions functions;
  const Bindings *bindings = nullptr; ///< host memory; copied to the GPU when the device is made
  const float *sink = nullptr;        ///< host memory, one logit per global query head, or null
  int64_t numSinks = 0;               ///< logits behind `sink`
  std::shared_ptr<RankPrograms> programs = std::make_shared<RankPrograms>();
};

/// One rank on one GPU; several ranks may share a GPU. Tensors are bf16 or f16 with the last stride 1 and rows at
/// multiples of 16 bytes. Gradients of captures and sinks are brought to the host call by call, which waits.
class CudaExecutionDevice : public ExecutionDevice {
public:
  /// Copies captures and sinks to the GPU; other ranks' GPUs may read this one's memory when `peers` names them.
  static StatusOr<std::unique_ptr<CudaExecutionDevice>> create(const CudaMachine &machine, const CudaCall &call,
                                                               const std::vector<int> &peers = {});
  ~CudaExecutionDevice() override;

  const std::shared_ptr<const CudaDevice> &device() const { return device_; }
  cuda::Stream stream(DeviceQueue queue) const { return queue == DeviceQueue::Compute ? compute_ : transfer_; }

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

  /// Everything the kernel cache could not do, for one warning to the user.
  const std::vector<std::string> &warnings() const { return warnings_; }

private:
  explicit CudaExecutionDevice(const CudaMachine &machine) : machine_(machine), device_(machine.device) {}
  Status open(const CudaCall &call, const std::vector<int> &peers);
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
  std::shared_ptr<const PartialRowKernels> rows_;
  cuda::Stream compute_ = nullptr, transfer_ = nullptr;
  cuda::MemoryPool pool_ = nullptr;
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
  void *zeros_ = nullptr;       ///< one row of zeros
  std::shared_ptr<RankPrograms> programs_;
  std::vector<std::string> warnings_;
};

} // namespace cpflex
