// Translates element types, devices and ownership between DLPack and views.
#include "lib/API/DLPackArrays.h"

#include <fmt/format.h>

#include <optional>

namespace cpflex {

namespace {

struct TypeRow {
  ElementType type;
  DLDataTypeCode code;
  uint8_t bits;
};
constexpr TypeRow kTypes[] = {
    {ElementType::Bool, kDLBool, 8},  {ElementType::I8, kDLInt, 8},       {ElementType::I16, kDLInt, 16},
    {ElementType::I32, kDLInt, 32},   {ElementType::I64, kDLInt, 64},     {ElementType::U8, kDLUInt, 8},
    {ElementType::U16, kDLUInt, 16},  {ElementType::U32, kDLUInt, 32},    {ElementType::U64, kDLUInt, 64},
    {ElementType::F16, kDLFloat, 16}, {ElementType::BF16, kDLBfloat, 16}, {ElementType::F32, kDLFloat, 32}};

std::optional<ElementType> typeOf(DLDataType type) {
  for (const TypeRow &row : kTypes)
    if (row.code == type.code && row.bits == type.bits && type.lanes == 1)
      return row.type;
  return std::nullopt;
}

std::optional<DeviceId> deviceOf(DLDevice device) {
  switch (int32_t(device.device_type)) {
  case kDLCPU:
  case kDLCUDAHost: return DeviceId{DeviceType::Cpu, 0};
  case kDLCUDA:
  case kDLCUDAManaged: return DeviceId{DeviceType::Cuda, device.device_id};
  default: return std::nullopt;
  }
}

template <typename Managed> StatusOr<ArrayView> take(Managed *tensor) {
  std::shared_ptr<const void> owner(tensor, [](Managed *owned) {
    if (owned->deleter)
      owned->deleter(owned);
  });
  StatusOr<ArrayView> view = viewOfDLTensor(tensor->dl_tensor);
  if (view)
    view->owner = std::move(owner);
  return view;
}

/// What a tensor that was handed out lives on.
template <typename Managed> struct Exported {
  Managed tensor{};
  ArrayView view;
};

template <typename Managed> Managed *give(const ArrayView &view) {
  auto *exported = new Exported<Managed>{{}, view};
  DLTensor &tensor = exported->tensor.dl_tensor;
  tensor.data = const_cast<void *>(view.data);
  tensor.device.device_type = view.device.type == DeviceType::Cuda ? kDLCUDA : kDLCPU;
  tensor.device.device_id = view.device.index;
  tensor.ndim = int32_t(view.shape.size());
  for (const TypeRow &row : kTypes)
    if (row.type == view.type)
      tensor.dtype = {uint8_t(row.code), row.bits, 1};
  tensor.shape = exported->view.shape.data();
  tensor.strides = exported->view.strides.data();
  exported->tensor.manager_ctx = exported;
  exported->tensor.deleter = [](Managed *self) { delete static_cast<Exported<Managed> *>(self->manager_ctx); };
  return &exported->tensor;
}

} // namespace

StatusOr<ArrayView> viewOfDLTensor(const DLTensor &tensor) {
  const std::optional<ElementType> type = typeOf(tensor.dtype);
  if (!type)
    return Status::invalid(
        fmt::format("the DLPack tensor has elements of code {}, {} bits and {} lanes; expected bool, ints "
                    "of 8 to 64 bits, f16, bf16 or f32",
                    tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes));
  const std::optional<DeviceId> device = deviceOf(tensor.device);
  if (!device)
    return Status::unsupported(
        fmt::format("the DLPack tensor is on a device of type {}; expected a CPU (1) or CUDA (2)",
                    int32_t(tensor.device.device_type)));
  if (tensor.ndim < 0 || tensor.ndim > kMaxCaptureRank)
    return Status::invalid(
        fmt::format("the DLPack tensor has {} axes; expected 0 to {}", tensor.ndim, kMaxCaptureRank));
  ArrayView view{.data = static_cast<const char *>(tensor.data) + tensor.byte_offset,
                 .type = *type,
                 .shape = {},
                 .strides = {},
                 .device = *device,
                 .owner = nullptr};
  view.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  view.strides.assign(tensor.ndim, 1);
  for (int32_t axis = tensor.ndim; axis-- > 0;)
    view.strides[axis] = tensor.strides           ? tensor.strides[axis]
                         : axis + 1 < tensor.ndim ? view.strides[axis + 1] * view.shape[axis + 1]
                                                  : 1;
  return view;
}

StatusOr<ArrayView> takeDLPack(DLManagedTensor *tensor) { return take(tensor); }

StatusOr<ArrayView> takeDLPack(DLManagedTensorVersioned *tensor) {
  if (tensor->version.major == DLPACK_MAJOR_VERSION)
    return take(tensor);
  const Status status =
      Status::unsupported(fmt::format("the DLPack tensor has version {}.{}; expected {}.x", tensor->version.major,
                                      tensor->version.minor, DLPACK_MAJOR_VERSION));
  // Of another version only the deleter's place is known.
  if (tensor->deleter)
    tensor->deleter(tensor);
  return status;
}

DLManagedTensor *toDLPack(const ArrayView &view) { return give<DLManagedTensor>(view); }

DLManagedTensorVersioned *toDLPackVersioned(const ArrayView &view) {
  DLManagedTensorVersioned *tensor = give<DLManagedTensorVersioned>(view);
  tensor->version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
  tensor->flags = DLPACK_FLAG_BITMASK_READ_ONLY;
  return tensor;
}

} // namespace cpflex
