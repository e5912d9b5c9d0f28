// A rank that computes on the CPU: every call is done when it returns.
#pragma once

#include "runtime/Executor/ExecutionDevice.h"

#include <vector>

namespace cpflex {

/// Memory of the process and CPU attention with these options.
class HostExecutionDevice : public ExecutionDevice {
public:
  explicit HostExecutionDevice(HostAttentionOptions options) : options_(options) {}
  Memory memory() const override { return Memory::Host; }
  void *allocate(int64_t sizeInBytes, Contents contents, DeviceQueue queue) override;
  void release(void *memory) override;
  void copyRows(DeviceQueue queue, const TensorView &from, const TensorView &to, const RowBlock &rows) override;
  void addRows(const TensorView &from, const TensorView &to, const RowBlock &rows) override;
  Status copyIn(void *device, const void *host, int64_t sizeInBytes) override;
  Status copyOut(void *host, const void *device, int64_t sizeInBytes) override;
  void transferAfterCompute() override {}
  Status status() const override { return status_; }
  Status synchronize() override { return status_; }
  Status forward(PreparedCompute &compute, const HostForwardTensors &tensors) override;
  Status backward(PreparedCompute &compute, const HostBackwardTensors &tensors) override;
  Status rowTerm(const AttentionProblem &problem, const TensorView &out, const TensorView &dOut, const TensorView &dLse,
                 const TensorView &rowTerm) override;
  Status convert(const TensorView &from, const TensorView &to, const RowBlock &rows) override;
  int64_t mark(DeviceQueue queue) override;
  double secondsAt(int64_t mark) const override { return marks_[size_t(mark)]; }
  void forgetMarks() override { marks_.clear(); }

private:
  HostAttentionOptions options_;
  Status status_;
  std::vector<double> marks_;
};

} // namespace cpflex
