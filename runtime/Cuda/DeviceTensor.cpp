// Checks and descriptors of tensors in device memory.
#include "runtime/Cuda/DeviceTensor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace cpflex {
namespace {

constexpr int64_t kAlignmentInBytes = 16;
constexpr const char *kAxisNames[] = {"b", "h", "s", "d"};
constexpr int kBoxColumns = 64;

bool isEmpty(const DeviceTensor &tensor) { return std::ranges::count(tensor.sizes, 0) > 0; }

/// One past the last element, counted from the first; strides are not negative.
int64_t extentInElements(const DeviceTensor &tensor) {
  int64_t extent = 1;
  for (int axis = 0; axis < 4; ++axis)
    extent += (tensor.sizes[axis] - 1) * tensor.view.strides[axis];
  return extent;
}

/// Whether two tensors with equal strides share an element: whether `distance` elements (from the start of `a` to that
/// of `b`) are a sum of steps that both can make. Axes from `axis` on remain.
bool sharesElement(const DeviceTensor &a, const DeviceTensor &b, int64_t distance, const int (&order)[4], int axis) {
  if (axis == 4)
    return distance == 0;
  int i = order[axis];
  int64_t stride = a.view.strides[i];
  if (stride == 0)
    return sharesElement(a, b, distance, order, axis + 1);
  int64_t forward = 0, backward = 0; // how far the remaining axes of a and b reach
  for (int rest = axis + 1; rest < 4; ++rest) {
    forward += (a.sizes[order[rest]] - 1) * a.view.strides[order[rest]];
    backward += (b.sizes[order[rest]] - 1) * b.view.strides[order[rest]];
  }
  auto floorDivide = [](int64_t value, int64_t divisor) { return value / divisor - (value % divisor < 0); };
  // distance - steps * stride must lie in [-backward, forward].
  int64_t first = std::max(-floorDivide(-(distance - forward), stride), -(b.sizes[i] - 1));
  int64_t last = std::min(floorDivide(distance + backward, stride), a.sizes[i] - 1);
  for (int64_t steps = first; steps <= last; ++steps)
    if (sharesElement(a, b, distance - steps * stride, order, axis + 1))
      return true;
  return false;
}

bool overlaps(const DeviceTensor &a, const DeviceTensor &b) {
  auto *aBegin = static_cast<const char *>(a.view.data), *bBegin = static_cast<const char *>(b.view.data);
  const char *aEnd = aBegin + extentInElements(a) * sizeInBytes(a.view.type);
  const char *bEnd = bBegin + extentInElements(b) * sizeInBytes(b.view.type);
  if (aEnd <= bBegin || bEnd <= aBegin)
    return false;
  int64_t element = sizeInBytes(a.view.type);
  if (a.view.type != b.view.type || !std::ranges::equal(a.view.strides, b.view.strides) ||
      (bBegin - aBegin) % element != 0)
    return true;
  int order[4] = {0, 1, 2, 3};
  std::ranges::sort(order, [&](int x, int y) {
    return a.view.strides[x] != a.view.strides[y] ? a.view.strides[x] > a.view.strides[y] : x < y;
  });
  return sharesElement(a, b, (bBegin - aBegin) / element, order, 0);
}

} // namespace

Status checkPlace(std::string_view name, const void *data, const CudaDevice &device) {
  const CudaDriver &driver = device.driver();
  auto address = reinterpret_cast<cuda::DeviceAddress>(data);
  unsigned memoryType = 0;
  if (driver.pointerGetAttribute(&memoryType, cuda::kPointerMemoryType, address) != cuda::kSuccess ||
      memoryType != cuda::kMemoryTypeDevice)
    return Status::invalid(fmt::format("{} is not in GPU memory", name));
  int ordinal = 0;
  CPFLEX_RETURN_IF_ERROR(driver.status(driver.pointerGetAttribute(&ordinal, cuda::kPointerDeviceOrdinal, address),
                                       "cuPointerGetAttribute"));
  if (ordinal != device.description().index)
    return Status::invalid(fmt::format("{} is on GPU {}; expected GPU {}", name, ordinal, device.description().index));
  return Status::ok();
}

Status checkTensor(const DeviceTensor &tensor, const CudaDevice *device) {
  if (isEmpty(tensor))
    return Status::ok();
  const TensorView &view = tensor.view;
  if (!view.data)
    return Status::invalid(fmt::format("'{}' has no memory", tensor.name));
  if (view.type != tensor.type)
    return Status::invalid(fmt::format("'{}' has element type '{}'; expected '{}'", tensor.name, toString(view.type),
                                       toString(tensor.type)));
  bool isRow = tensor.sizes[3] == 1;
  int64_t element = sizeInBytes(view.type), alignment = isRow ? element : kAlignmentInBytes;
  if (reinterpret_cast<uintptr_t>(view.data) % alignment != 0)
    return Status::invalid(
        fmt::format("'{}' starts at {}; expected a multiple of {} bytes", tensor.name, view.data, alignment));
  int unitAxis = isRow ? 2 : 3;
  if (tensor.sizes[unitAxis] > 1 && view.strides[unitAxis] != 1)
    return Status::invalid(fmt::format("stride of '{}' along {} is {}; expected 1", tensor.name, kAxisNames[unitAxis],
                                       view.strides[unitAxis]));
  for (int axis = 0; axis < unitAxis; ++axis) {
    if (tensor.sizes[axis] == 1)
      continue;
    if (view.strides[axis] < 0 || view.strides[axis] * element % alignment != 0)
      return Status::invalid(
          fmt::format("stride of '{}' along {} is {} elements; expected a multiple of {}, not negative", tensor.name,
                      kAxisNames[axis], view.strides[axis], alignment / element));
    if (tensor.use == DeviceTensor::Use::Output && view.strides[axis] == 0)
      return Status::invalid(fmt::format("output '{}' is broadcast along {}", tensor.name, kAxisNames[axis]));
  }
  return device ? checkPlace(fmt::format("'{}'", tensor.name), view.data, *device) : Status::ok();
}

Status checkOverlap(const std::vector<DeviceTensor> &tensors) {
  for (size_t i = 0; i < tensors.size(); ++i)
    for (size_t j = 0; j < tensors.size(); ++j) {
      const DeviceTensor &output = tensors[i], &other = tensors[j];
      bool isPairSeen = other.use == DeviceTensor::Use::Output && j < i;
      if (i == j || output.use != DeviceTensor::Use::Output || isPairSeen || isEmpty(output) || isEmpty(other) ||
          !output.view.data || !other.view.data)
        continue;
      if (overlaps(output, other))
        return Status::invalid(fmt::format("output '{}' overlaps '{}'", output.name, other.name));
    }
  return Status::ok();
}

TensorArgument toTensorArgument(const TensorView &view) {
  return {view.data, view.strides[0], view.strides[1], view.strides[2]};
}

RowArgument toRowArgument(const TensorView &view) {
  return {static_cast<float *>(view.data), view.strides[0], view.strides[1]};
}

Status encodeTensorMap(const CudaDriver &driver, const DeviceTensor &tensor, int boxRows, void *fallback,
                       TensorMapArgument &map) {
  if (!driver.tensorMapEncodeTiled)
    return Status::unavailable("the driver has no 'cuTensorMapEncodeTiled'; update it to serve CUDA 12.0 or newer");
  static_assert(sizeof(TensorMapArgument) == sizeof(cuda::TensorMap));
  int64_t element = sizeInBytes(tensor.type);
  // {d, s, h, b}; the stride of an axis of one element is never used and must only be well formed.
  const int axes[] = {3, 2, 1, 0};
  uint64_t sizes[4], strides[3];
  uint32_t box[4] = {kBoxColumns, static_cast<uint32_t>(boxRows), 1, 1}, elementStrides[4] = {1, 1, 1, 1};
  for (int i = 0; i < 4; ++i) {
    sizes[i] = i > 0 && isEmpty(tensor) ? 1 : static_cast<uint64_t>(std::max<int64_t>(tensor.sizes[axes[i]], 1));
    if (i > 0)
      strides[i - 1] =
          sizes[i] == 1
              ? kAlignmentInBytes * static_cast<uint64_t>(ceilDivide(tensor.sizes[3] * element, kAlignmentInBytes))
              : static_cast<uint64_t>(tensor.view.strides[axes[i]] * element);
  }
  void *address = tensor.view.data && !isEmpty(tensor) ? tensor.view.data : fallback;
  cuda::TensorMap encoded;
  CPFLEX_RETURN_IF_ERROR(
      driver.status(driver.tensorMapEncodeTiled(
                        &encoded, tensor.type == ElementType::BF16 ? cuda::kTensorMapBFloat16 : cuda::kTensorMapFloat16,
                        4, address, sizes, strides, box, elementStrides, cuda::kTensorMapInterleaveNone,
                        cuda::kTensorMapSwizzle128B, cuda::kTensorMapL2Promotion256B, cuda::kTensorMapFillZeros),
                    fmt::format("cuTensorMapEncodeTiled of '{}'", tensor.name)));
  std::memcpy(&map, &encoded, sizeof(map));
  return Status::ok();
}

} // namespace cpflex
