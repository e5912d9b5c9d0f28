// Compares tensors of a call with what an executable expects.
#include "lib/API/TensorChecks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace cpflex {

static std::string nameOf(DeviceId device) {
  return device.type == DeviceType::Cuda ? fmt::format("cuda:{}", device.index) : "cpu";
}

Status checkTensor(const NamedTensor &argument, DeviceId device) {
  const CallTensor &tensor = argument.tensor;
  if (!tensor.data)
    return Status::ok();
  if (!std::ranges::equal(tensor.shape, argument.shape))
    return Status::invalid(fmt::format("'{}' has shape {}; expected {}", argument.name, fmt::join(tensor.shape, "x"),
                                       fmt::join(argument.shape, "x")));
  if (tensor.device.type != DeviceType::Unknown && tensor.device != device)
    return Status::invalid(
        fmt::format("'{}' is on {}; expected {}", argument.name, nameOf(tensor.device), nameOf(device)));
  if (reinterpret_cast<uintptr_t>(tensor.data) % uintptr_t(sizeInBytes(tensor.type)) != 0)
    return Status::invalid(fmt::format("'{}' is at address {}; expected a multiple of {}, the size of its elements",
                                       argument.name, fmt::ptr(tensor.data), sizeInBytes(tensor.type)));
  return Status::ok();
}

Status checkRows(const NamedTensor &argument) {
  if (argument.tensor.data && argument.shape[3] > 1 && argument.tensor.strides[3] != 1)
    return Status::invalid(
        fmt::format("'{}' has last stride {}; expected 1 on a GPU", argument.name, argument.tensor.strides[3]));
  return Status::ok();
}

Status checkType(const char *name, const CallTensor &tensor, ElementType type) {
  if (tensor.data && tensor.type != type)
    return Status::invalid(
        fmt::format("'{}' has element type {}; expected {}, the type that the executable was loaded for", name,
                    toString(tensor.type), toString(type)));
  return Status::ok();
}

Status checkCaptureGradients(const Program &program, const BackwardCallTensors &tensors) {
  const std::vector<CaptureDeclaration> &captures = program.signature().captures;
  if (!tensors.captureGradients.empty() && tensors.captureGradients.size() != captures.size())
    return Status::invalid(fmt::format("'captureGradients' has {} entries; expected none or {}, one for each capture",
                                       tensors.captureGradients.size(), captures.size()));
  for (size_t slot = 0; slot < tensors.captureGradients.size(); ++slot)
    if (tensors.captureGradients[slot] && !captures[slot].needsGradient)
      return Status::invalid(
          fmt::format("'captureGradients' has an entry for array '{}'; expected null, since it is not declared "
                      "with grad=True",
                      captures[slot].name));
  return Status::ok();
}

} // namespace cpflex
