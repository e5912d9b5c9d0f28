// Finds, copies and adds rows; see RowStore.h.
#include "runtime/Executor/RowStore.h"
#include "runtime/Plan/Planner.h"
#include "runtime/Plan/Rotations.h"

#include <algorithm>
#include <cstring>

namespace cpflex {

Buffer::Buffer(BufferSource source, int64_t sizeInBytes, ExecutionDevice::Contents contents, DeviceQueue queue)
    : source_(source), sizeInBytes_(sizeInBytes),
      data_(static_cast<uint8_t *>(source.device.allocate(sizeInBytes, contents, queue))) {
  source_.ledger.add(sizeInBytes_);
}

Buffer::~Buffer() {
  source_.ledger.add(-sizeInBytes_);
  source_.device.release(data_);
}

std::vector<PayloadTensor> tensorsOf(Payload payload, const CallShape &shape) {
  const PayloadTensor single = {1, ElementType::F32};
  switch (payload) {
  case Payload::KV: return {{shape.headDim, shape.type}, {shape.vHeadDim, shape.type}};
  case Payload::Q: return {{shape.headDim, shape.type}};
  case Payload::Out: return {{shape.vHeadDim, shape.type}, single};
  case Payload::QGradient: return {{shape.headDim, shape.type}, {shape.vHeadDim, shape.type}, single, single};
  case Payload::DQ: return {{shape.headDim, ElementType::F32}};
  case Payload::DKV: return {{shape.headDim, ElementType::F32}, {shape.vHeadDim, ElementType::F32}};
  }
  return {};
}

uint8_t *addressOf(const TensorView &view, int64_t b, int64_t h, int64_t row) {
  return static_cast<uint8_t *>(view.data) +
         (b * view.strides[0] + h * view.strides[1] + row * view.strides[2]) * sizeInBytes(view.type);
}

TensorView partOf(const TensorView &view, int64_t b, int64_t h, int64_t row) {
  TensorView part = view;
  part.data = view.data ? addressOf(view, b, h, row) : nullptr;
  return part;
}

TensorView denseView(void *data, ElementType type, int64_t heads, int64_t rows, int64_t width) {
  return {data, type, {heads * rows * width, rows * width, width, 1}};
}

void copyRows(const TensorView &from, const TensorView &to, int64_t batch, int64_t heads, int64_t rows, int64_t width) {
  const int64_t element = sizeInBytes(from.type);
  const bool isPacked = (from.strides[3] == 1 || width == 1) && (to.strides[3] == 1 || width == 1);
  const bool isOneRun = isPacked && from.strides[2] == width && to.strides[2] == width;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      if (isOneRun) {
        std::memcpy(addressOf(to, b, h, 0), addressOf(from, b, h, 0), size_t(rows * width * element));
        continue;
      }
      for (int64_t row = 0; row < rows; ++row) {
        const uint8_t *source = addressOf(from, b, h, row);
        uint8_t *target = addressOf(to, b, h, row);
        if (isPacked)
          std::memcpy(target, source, size_t(width * element));
        else
          for (int64_t i = 0; i < width; ++i)
            std::memcpy(target + i * to.strides[3] * element, source + i * from.strides[3] * element, size_t(element));
      }
    }
}

void addRows(const TensorView &from, const TensorView &to, int64_t batch, int64_t heads, int64_t rows, int64_t width) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t row = 0; row < rows; ++row) {
        const float *source = reinterpret_cast<const float *>(addressOf(from, b, h, row));
        float *target = reinterpret_cast<float *>(addressOf(to, b, h, row));
        for (int64_t i = 0; i < width; ++i)
          target[i * to.strides[3]] += source[i * from.strides[3]];
      }
}

Parcel::Parcel(const Transfer &transfer, const CallShape &shape, BufferSource source,
               ExecutionDevice::Contents contents, DeviceQueue queue)
    : transfer_(transfer), shape_(shape), buffer_(source, transfer.sizeInBytes, contents, queue) {
  int64_t offset = 0;
  for (const Slab &slab : transfer.slabs) {
    offsets_.push_back(offset);
    offset += slab.batch.size() * slab.heads.size() * slab.rows.size() * bytesPerRow(transfer.payload, shape);
  }
}

TensorView Parcel::view(size_t slab, size_t tensor) {
  const Slab &wanted = transfer_.slabs[slab];
  const std::vector<PayloadTensor> tensors = tensorsOf(transfer_.payload, shape_);
  int64_t offset = offsets_[slab];
  for (size_t before = 0; before < tensor; ++before)
    offset += wanted.batch.size() * wanted.heads.size() * wanted.rows.size() * tensors[before].width *
              sizeInBytes(tensors[before].type);
  return denseView(buffer_.data() + offset, tensors[tensor].type, wanted.heads.size(), wanted.rows.size(),
                   tensors[tensor].width);
}

TensorView RowStore::find(size_t tensor, const Slab &wanted) const {
  if (wanted.owner == rank_)
    return partOf(own_[tensor], wanted.batch.begin, wanted.heads.begin, wanted.rows.begin);
  for (const auto &[index, parcel] : parcels_)
    for (size_t i = 0; i < parcel->numSlabs(); ++i)
      if (const Slab &slab = parcel->slab(i); commonPart(slab, wanted) == wanted) {
        TensorView view = parcel->view(i, tensor);
        return partOf(view, wanted.batch.begin - slab.batch.begin, wanted.heads.begin - slab.heads.begin,
                      wanted.rows.begin - slab.rows.begin);
      }
  return {};
}

void RowStore::gather(ExecutionDevice &device, DeviceQueue queue, size_t tensor, const Slab &wanted,
                      const TensorView &to) const {
  const int64_t width = tensors_[tensor].width;
  if (TensorView whole = find(tensor, wanted); whole.data) {
    device.copyRows(queue, whole, to, {wanted.batch.size(), wanted.heads.size(), wanted.rows.size(), width});
    return;
  }
  for (const auto &[index, parcel] : parcels_)
    for (size_t i = 0; i < parcel->numSlabs(); ++i) {
      const Slab &slab = parcel->slab(i);
      const Slab common = commonPart(slab, wanted);
      if (isEmpty(common))
        continue;
      device.copyRows(queue,
                      partOf(parcel->view(i, tensor), common.batch.begin - slab.batch.begin,
                             common.heads.begin - slab.heads.begin, common.rows.begin - slab.rows.begin),
                      partOf(to, common.batch.begin - wanted.batch.begin, common.heads.begin - wanted.heads.begin,
                             common.rows.begin - wanted.rows.begin),
                      {common.batch.size(), common.heads.size(), common.rows.size(), width});
    }
}

} // namespace cpflex
