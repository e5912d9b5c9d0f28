// Allocating and copying what DeviceCopies keeps.
#include "runtime/Cuda/DeviceCopies.h"

#include "runtime/Cuda/StagedCopies.h"

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
  const ElementSpan span = elementSpan(view);
  if (span.size() == 0)
    return view;
  StatusOr<void *> data = add(device, static_cast<const std::byte *>(view.data) + span.begin, span.size(), stream);
  if (!data)
    return data.status();
  view.data = static_cast<std::byte *>(*data) - span.begin;
  return view;
}

int64_t DeviceCopies::sizeInBytes() const {
  int64_t size = 0;
  for (const CudaBuffer &buffer : buffers_)
    size += buffer.sizeInBytes();
  return size;
}

} // namespace cpflex
