// What the executor needs of the place where a rank computes: memory, copies of rows, attention calls, clocks. The CPU
// and GPUs provide it, so that one walk through a schedule serves both.
#pragma once

#include "runtime/Comm/Communicator.h"
#include "runtime/Host/HostAttention.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/Schedule.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

namespace cpflex {

/// Where work of a device lines up. Work of one queue runs in order; queues run beside each other.
enum class DeviceQueue : uint8_t { Compute, Transfer };

/// How many rows a copy moves: [batch, heads, rows], each `width` elements.
struct RowBlock {
  int64_t batch = 0, heads = 0, rows = 0, width = 0;
};

/// One compute of a schedule made ready: its mask and whatever the device bound for it.
struct PreparedCompute {
  Compute compute;
  BlockMask mask;
  AttentionProblem problem;          ///< its `mask` points to the mask above, or is null
  std::shared_ptr<void> deviceState; ///< the device's own; null until first run
};

/// The prepared computes of one rank for one pair of schedules and one call. Handed to every run of them, it saves
/// building masks and binding kernels again; made anew when the arrays that the mask reads change. Used by one run at a
/// time; outlived by its device.
struct PreparedComputes {
  std::map<std::pair<Pass, int64_t>, std::unique_ptr<PreparedCompute>> computes; ///< by pass and index in the schedule
};

/// Where one rank computes. One thread uses it. Memory is the device's; views of calls point into it. What fails in a
/// function without a Status makes every later call do nothing and is told by status(). Work may run after a function
/// returned; synchronize() waits for it.
class ExecutionDevice {
public:
  virtual ~ExecutionDevice() = default;
  enum class Memory : uint8_t { Host, Own };
  /// Whether the host reads and writes the device's memory as its own.
  virtual Memory memory() const = 0;

  enum class Contents : uint8_t { Undefined, Zero };
  /// Memory at a multiple of 16 bytes, for work of `queue` at first; null after a failure.
  virtual void *allocate(int64_t sizeInBytes, Contents contents, DeviceQueue queue) = 0;
  /// Gives memory back after the work that lines up for computing so far; transfers with it must be done.
  virtual void release(void *memory) = 0;

  /// Copies elements between views of one type.
  virtual void copyRows(DeviceQueue queue, const TensorView &from, const TensorView &to, const RowBlock &rows) = 0;
  /// Adds f32 elements, in the compute queue.
  virtual void addRows(const TensorView &from, const TensorView &to, const RowBlock &rows) = 0;
  /// Copies [0, sizeInBytes) between host and device memory and waits for it.
  virtual Status copyIn(void *device, const void *host, int64_t sizeInBytes) = 0;
  virtual Status copyOut(void *host, const void *device, int64_t sizeInBytes) = 0;

  /// Work of the transfer queue that follows waits for the compute work so far.
  virtual void transferAfterCompute() = 0;
  virtual Status status() const = 0;
  /// Waits for all work and says what went wrong in it.
  virtual Status synchronize() = 0;

  /// One attention call, or one that continues from a partial; see hostAttentionForward.
  virtual Status forward(PreparedCompute &compute, const HostForwardTensors &tensors) = 0;
  /// One backward call that stores or adds to f32 gradients, its row terms given; see hostAttentionBackward. Gradients
  /// of captures and sinks are arrays in host memory and added to.
  virtual Status backward(PreparedCompute &compute, const HostBackwardTensors &tensors) = 0;
  /// D = rowsum(dOut * out) - dLse; see hostAttentionRowTerm.
  virtual Status rowTerm(const AttentionProblem &problem, const TensorView &out, const TensorView &dOut,
                         const TensorView &dLse, const TensorView &rowTerm) = 0;
  /// Copies elements, rounding f32 to the type of `to`.
  virtual Status convert(const TensorView &from, const TensorView &to, const RowBlock &rows) = 0;

  /// Notes the moment at which the work of a queue so far is done; the number is for secondsAt().
  virtual int64_t mark(DeviceQueue queue) = 0;
  /// The moment of a mark in seconds on the steady clock, once synchronize() has returned. Marks before the last
  /// forgetMarks() are gone.
  virtual double secondsAt(int64_t mark) const = 0;
  virtual void forgetMarks() = 0;
};

/// Starts a group whose messages lie in host memory and waits for it, through memory of the device.
Status exchangeHostBytes(ExecutionDevice &device, Communicator &communicator, const MessageGroup &group,
                         Deadline deadline);

} // namespace cpflex
