// The CPU as an execution device; see HostExecutionDevice.h.
#include "runtime/Executor/HostExecutionDevice.h"
#include "runtime/Executor/RowStore.h"
#include "runtime/Host/PartialAttention.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fmt/format.h>

namespace cpflex {
namespace {

constexpr size_t kAlignment = 64;

} // namespace

void *HostExecutionDevice::allocate(int64_t sizeInBytes, Contents contents, DeviceQueue) {
  const size_t bytes = (size_t(std::max<int64_t>(1, sizeInBytes)) + kAlignment - 1) / kAlignment * kAlignment;
  void *memory = status_.isOk() ? std::aligned_alloc(kAlignment, bytes) : nullptr;
  if (!memory && status_.isOk())
    status_ = Status(StatusCode::OutOfMemory, fmt::format("no memory for a buffer of {} bytes", sizeInBytes));
  if (memory && contents == Contents::Zero)
    std::memset(memory, 0, bytes);
  return memory;
}

void HostExecutionDevice::release(void *memory) { std::free(memory); }

void HostExecutionDevice::copyRows(DeviceQueue, const TensorView &from, const TensorView &to, const RowBlock &rows) {
  if (status_.isOk())
    cpflex::copyRows(from, to, rows.batch, rows.heads, rows.rows, rows.width);
}

void HostExecutionDevice::addRows(const TensorView &from, const TensorView &to, const RowBlock &rows) {
  if (status_.isOk())
    cpflex::addRows(from, to, rows.batch, rows.heads, rows.rows, rows.width);
}

Status HostExecutionDevice::copyIn(void *device, const void *host, int64_t sizeInBytes) {
  if (sizeInBytes > 0)
    std::memcpy(device, host, size_t(sizeInBytes));
  return Status::ok();
}

Status HostExecutionDevice::copyOut(void *host, const void *device, int64_t sizeInBytes) {
  return copyIn(host, device, sizeInBytes);
}

Status HostExecutionDevice::forward(PreparedCompute &compute, const HostForwardTensors &tensors) {
  return hostAttentionForward(compute.problem, tensors, options_);
}

Status HostExecutionDevice::backward(PreparedCompute &compute, const HostBackwardTensors &tensors) {
  return hostAttentionBackward(compute.problem, tensors, options_);
}

Status HostExecutionDevice::rowTerm(const AttentionProblem &problem, const TensorView &out, const TensorView &dOut,
                                    const TensorView &dLse, const TensorView &rowTerm) {
  return hostAttentionRowTerm(problem, out, dOut, dLse, rowTerm, options_);
}

Status HostExecutionDevice::convert(const TensorView &from, const TensorView &to, const RowBlock &rows) {
  const int64_t sizes[4] = {rows.batch, rows.heads, rows.rows, rows.width};
  return convertTensor(from, to, sizes);
}

int64_t HostExecutionDevice::mark(DeviceQueue) {
  marks_.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count());
  return int64_t(marks_.size()) - 1;
}

} // namespace cpflex
