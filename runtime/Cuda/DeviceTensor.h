// What a tensor in device memory must be before a kernel touches it, checked on the host, and its form as a kernel
// argument and as a tensor map.
#pragma once

#include "runtime/Cuda/CudaDevice.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/KernelArguments.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <string_view>
#include <vector>

namespace cpflex {

/// A named tensor of a call with its sizes [b, h, s, d].
struct DeviceTensor {
  enum class Use { Input, Output };
  std::string_view name; ///< as in messages: `q`
  TensorView view;
  ElementType type; ///< that it must have
  int64_t sizes[4];
  Use use;
};

/// Type, alignment, strides and place: InvalidArgument says what is wrong with which tensor. A tensor without elements
/// passes. `device` null skips the question where the memory is.
Status checkTensor(const DeviceTensor &tensor, const CudaDevice *device);

/// InvalidArgument unless `data` is memory of `device`; `name` stands first in the message.
Status checkPlace(std::string_view name, const void *data, const CudaDevice &device);

/// InvalidArgument when an output shares an element with another tensor. Tensors that interleave in one allocation with
/// the same strides, such as packed dQ, dK and dV, pass.
Status checkOverlap(const std::vector<DeviceTensor> &tensors);

/// The tensor as kernels take it.
TensorArgument toTensorArgument(const TensorView &view);
/// An LSE-like tensor (d = 1) as kernels take it.
RowArgument toRowArgument(const TensorView &view);

/// The tensor map of a bf16 or f16 tensor with boxes of 64 columns and `boxRows` rows. Axes without elements count as
/// one: no kernel reads them then. `fallback` is an address that may be named where the tensor has no memory.
Status encodeTensorMap(const CudaDriver &driver, const DeviceTensor &tensor, int boxRows, void *fallback,
                       TensorMapArgument &map);

} // namespace cpflex
