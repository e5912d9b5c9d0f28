// Lays arrays out in one allocation on each side, and fills the host's side.
#include "runtime/Cuda/StagedCopies.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

namespace cpflex {

static constexpr int64_t kArrayAlignment = 256;

ElementSpan elementSpan(const CaptureView &view) {
  int64_t begin = 0, end = 1; // offsets of the outermost elements from `data`
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] == 0)
      return {};
    const int64_t reach = (view.shape[axis] - 1) * view.strides[axis];
    (reach < 0 ? begin : end) += reach;
  }
  const int64_t element = sizeInBytes(view.type);
  return view.data ? ElementSpan{begin * element, end * element} : ElementSpan{};
}

StatusOr<StagedCopies> StagedCopies::reserve(const std::shared_ptr<const CudaDevice> &device,
                                             std::span<const int64_t> sizesInBytes) {
  StagedCopies copies;
  int64_t total = 0;
  for (const int64_t size : sizesInBytes) {
    copies.places_.push_back({total, size});
    total += (size + kArrayAlignment - 1) / kArrayAlignment * kArrayAlignment;
  }
  StatusOr<CudaBuffer> memory = CudaBuffer::allocate(device, total);
  if (!memory)
    return memory.status();
  copies.memory_ = std::move(*memory);
  StatusOr<PinnedBuffer> staging = PinnedBuffer::allocate(device, total);
  if (!staging)
    return staging.status();
  copies.staging_ = std::move(*staging);
  return copies;
}

StatusOr<void *> StagedCopies::stage(size_t index, const std::string &name, const void *bytes, int64_t sizeInBytes) {
  const Place &place = places_[index];
  if (sizeInBytes > place.capacityInBytes)
    return Status::invalid(fmt::format("{} takes {} bytes on the GPU; expected at most {}, which are reserved for it",
                                       name, sizeInBytes, place.capacityInBytes));
  std::byte *staged = static_cast<std::byte *>(staging_.data()) + place.offset;
  std::memcpy(staged, bytes, static_cast<size_t>(sizeInBytes));
  const cuda::DeviceAddress to = memory_.address() + static_cast<cuda::DeviceAddress>(place.offset);
  uploads_.push_back({.to = to, .from = staged, .sizeInBytes = sizeInBytes});
  return reinterpret_cast<void *>(to);
}

StatusOr<CaptureView> StagedCopies::stage(size_t index, const std::string &name, CaptureView view) {
  const ElementSpan span = elementSpan(view);
  if (span.size() == 0)
    return view;
  StatusOr<void *> data = stage(index, name, static_cast<const std::byte *>(view.data) + span.begin, span.size());
  if (!data)
    return data.status();
  view.data = static_cast<std::byte *>(*data) - span.begin;
  return view;
}

std::vector<CudaUpload> StagedCopies::takeUploads() { return std::exchange(uploads_, {}); }

} // namespace cpflex
