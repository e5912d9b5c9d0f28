// Allocating and copying what DeviceCopies keeps.
#include "runtime/Cuda/DeviceCopies.h"

namespace cpflex {

StatusOr<void *> DeviceCopies::add(const std::shared_ptr<const CudaDevice> &device, const void *bytes,
                                   int64_t sizeInBytes, cuda::Stream stream) {
  StatusOr<CudaBuffer> memory = CudaBuffer::allocate(device, sizeInBytes);
  if (!memory)
    return memory.status();
  CPFLEX_RETURN_IF_ERROR(copyToDevice(*device, memory->address(), bytes, sizeInBytes, stream));
  buffers_.push_back(std::move(*memory));
  return buffers_.back().data();
}

StatusOr<CaptureView> DeviceCopies::add(const std::shared_ptr<const CudaDevice> &device, CaptureView view,
                                        cuda::Stream stream) {
  int64_t begin = 0, end = 1; // offsets of the outermost elements from `data`
  bool isEmpty = !view.data;
  for (int axis = 0; axis < view.rank; ++axis) {
    isEmpty = isEmpty || view.shape[axis] == 0;
    const int64_t reach = (view.shape[axis] - 1) * view.strides[axis];
    (reach < 0 ? begin : end) += reach;
  }
  if (isEmpty)
    return view;
  const int64_t element = cpflex::sizeInBytes(view.type);
  StatusOr<void *> data =
      add(device, static_cast<const std::byte *>(view.data) + begin * element, (end - begin) * element, stream);
  if (!data)
    return data.status();
  view.data = static_cast<std::byte *>(*data) - begin * element;
  return view;
}

int64_t DeviceCopies::sizeInBytes() const {
  int64_t size = 0;
  for (const CudaBuffer &buffer : buffers_)
    size += buffer.sizeInBytes();
  return size;
}

} // namespace cpflex
