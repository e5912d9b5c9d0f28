// Where the rows that a rank holds lie: its own shards and the parcels it has received, found by owner, row, head and
// batch row. Internal to the executor.
#pragma once

#include "runtime/Executor/ExecutionDevice.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/Schedule.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace cpflex {

/// Bytes held by a run, and the most so far.
class ByteLedger {
public:
  void add(int64_t bytes) {
    held_ += bytes;
    peak_ = std::max(peak_, held_);
  }
  int64_t peak() const { return peak_; }

private:
  int64_t held_ = 0, peak_ = 0;
};

/// Where buffers come from: the device that holds them, and the ledger that counts them.
struct BufferSource {
  ExecutionDevice &device;
  ByteLedger &ledger;
};

/// Memory of a device that is on the ledger as long as it lives. Without memory after a failure of the device.
class Buffer {
public:
  Buffer(BufferSource source, int64_t sizeInBytes, ExecutionDevice::Contents contents,
         DeviceQueue queue = DeviceQueue::Compute);
  ~Buffer();
  Buffer(const Buffer &) = delete;
  uint8_t *data() { return data_; }

private:
  BufferSource source_;
  int64_t sizeInBytes_;
  uint8_t *data_;
};

/// One tensor of a payload: row width in elements, and type.
struct PayloadTensor {
  int64_t width = 1;
  ElementType type = ElementType::F32;
};

/// The tensors of a payload in the order in which a slab packs them.
std::vector<PayloadTensor> tensorsOf(Payload payload, const CallShape &shape);

/// The memory of an element of a view.
uint8_t *addressOf(const TensorView &view, int64_t b, int64_t h, int64_t row);
/// A view of part of a view: batch rows, heads and rows from the given ones on.
TensorView partOf(const TensorView &view, int64_t b, int64_t h, int64_t row);
/// A dense view [batch, heads, rows, width].
TensorView denseView(void *data, ElementType type, int64_t heads, int64_t rows, int64_t width);

/// Copies [batch, heads, rows, width] elements between views of one type in host memory.
void copyRows(const TensorView &from, const TensorView &to, int64_t batch, int64_t heads, int64_t rows, int64_t width);
/// Adds f32 elements in host memory.
void addRows(const TensorView &from, const TensorView &to, int64_t batch, int64_t heads, int64_t rows, int64_t width);

/// The slabs of one transfer in one buffer.
class Parcel {
public:
  Parcel(const Transfer &transfer, const CallShape &shape, BufferSource source, ExecutionDevice::Contents contents,
         DeviceQueue queue);
  const Transfer &transfer() const { return transfer_; }
  uint8_t *data() { return buffer_.data(); }
  size_t numSlabs() const { return transfer_.slabs.size(); }
  const Slab &slab(size_t index) const { return transfer_.slabs[index]; }
  /// Tensor `tensor` of a slab, dense; its elements may be unaligned.
  TensorView view(size_t slab, size_t tensor);

private:
  const Transfer &transfer_;
  CallShape shape_;
  std::vector<int64_t> offsets_; ///< of slabs
  Buffer buffer_;
};

/// The rows of one side (keys, or queries) that a rank can read.
class RowStore {
public:
  /// `own` are the rank's shards, one view per tensor of `payload`.
  RowStore(int32_t rank, Payload payload, const CallShape &shape, std::vector<TensorView> own)
      : rank_(rank), payload_(payload), tensors_(tensorsOf(payload, shape)), own_(std::move(own)) {}

  Payload payload() const { return payload_; }
  const std::vector<PayloadTensor> &tensors() const { return tensors_; }
  void add(int32_t index, std::shared_ptr<Parcel> parcel) { parcels_[index] = std::move(parcel); }
  void drop(int32_t index) { parcels_.erase(index); }

  /// The rows as they lie, when one shard or slab has them all; else a view without data.
  TensorView find(size_t tensor, const Slab &wanted) const;
  /// Copies the rows to a view [batch, heads, rows, width].
  void gather(ExecutionDevice &device, DeviceQueue queue, size_t tensor, const Slab &wanted,
              const TensorView &to) const;

private:
  int32_t rank_;
  Payload payload_;
  std::vector<PayloadTensor> tensors_;
  std::vector<TensorView> own_;
  std::map<int32_t, std::shared_ptr<Parcel>> parcels_; ///< by transfer
};

} // namespace cpflex
