// Gathers strided elements, from the host or through a copy of the bytes that a CUDA array spans.
#include "lib/API/ArrayViews.h"

#include "runtime/Cuda/CudaDevice.h"

#include <fmt/format.h>

#include <cstring>
#include <numeric>

namespace cpflex {

Status checkView(const std::string &name, const ArrayView &view) {
  if (view.shape.size() != view.strides.size())
    return Status::invalid(fmt::format("array for '{}' has {} sizes and {} strides; expected as many", name,
                                       view.shape.size(), view.strides.size()));
  int64_t count = 1;
  for (size_t axis = 0; axis < view.shape.size(); ++axis) {
    if (view.shape[axis] < 0)
      return Status::invalid(
          fmt::format("axis {} of the array for '{}' has size {}; expected 0 or more", axis, name, view.shape[axis]));
    count = view.shape[axis] == 0 ? 0 : count;
  }
  if (count > 0 && !view.data)
    return Status::invalid(fmt::format("data of the array for '{}' is null; expected its elements", name));
  return Status::ok();
}

bool isOnHost(const ArrayView &view) { return view.device.type != DeviceType::Cuda; }

// The elements of a host view, in C order, to `to`.
static void gather(const ArrayView &view, const char *data, char *to) {
  const int64_t size = sizeInBytes(view.type);
  const size_t rank = view.shape.size();
  std::vector<int64_t> index(rank, 0);
  const int64_t count = std::accumulate(view.shape.begin(), view.shape.end(), int64_t(1), std::multiplies<>());
  int64_t offset = 0;
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * size, data + offset * size, size_t(size));
    for (size_t axis = rank; axis-- > 0;) {
      offset += view.strides[axis];
      if (++index[axis] < view.shape[axis])
        break;
      offset -= view.strides[axis] * view.shape[axis];
      index[axis] = 0;
    }
  }
}

// The bytes between the first and past the last element of a CUDA array, and where the element at index 0 lies in them.
static Status copySpan(const ArrayView &view, std::vector<char> &bytes, int64_t &origin, void *stream) {
  int64_t low = 0, high = 0;
  for (size_t axis = 0; axis < view.shape.size(); ++axis)
    (view.strides[axis] < 0 ? low : high) += view.strides[axis] * (view.shape[axis] - 1);
  const int64_t size = sizeInBytes(view.type);
  bytes.resize(size_t((high - low + 1) * size));
  origin = -low * size;
  StatusOr<std::shared_ptr<const CudaDriver>> driver = CudaDriver::load();
  if (!driver)
    return driver.status();
  StatusOr<std::shared_ptr<const CudaDevice>> device = CudaDevice::open(*driver, view.device.index);
  if (!device)
    return device.status();
  return copyToHost(**device, bytes.data(), reinterpret_cast<cuda::DeviceAddress>(view.data) + low * size,
                    int64_t(bytes.size()), static_cast<cuda::Stream>(stream));
}

StatusOr<Array> denseCopy(const ArrayView &view, void *stream) {
  Array array{view.type, view.shape, {}};
  if (array.numElements() == 0)
    return array;
  array.bytes.resize(size_t(array.numElements() * sizeInBytes(view.type)));
  if (isOnHost(view)) {
    gather(view, static_cast<const char *>(view.data), array.bytes.data());
    return array;
  }
  std::vector<char> span;
  int64_t origin = 0;
  CPFLEX_RETURN_IF_ERROR(copySpan(view, span, origin, stream));
  gather(view, span.data() + origin, array.bytes.data());
  return array;
}

ArrayView viewOfArray(Array array) {
  auto owner = std::make_shared<const Array>(std::move(array));
  ArrayView view{.data = owner->bytes.data(),
                 .type = owner->type,
                 .shape = owner->shape,
                 .strides = {},
                 .device = {DeviceType::Cpu, 0},
                 .owner = owner};
  view.strides.resize(view.shape.size());
  int64_t stride = 1;
  for (size_t axis = view.shape.size(); axis-- > 0;) {
    view.strides[axis] = stride;
    stride *= view.shape[axis];
  }
  return view;
}

} // namespace cpflex
