// What is wrong with a tensor of a call before a runtime sees it: its shape, device, alignment or type. The runtimes
// check the rest.
#pragma once

#include "lib/API/cpflex.h"

namespace cpflex {

/// A tensor argument, its name in messages and the shape that it has to have.
struct NamedTensor {
  const char *name;
  const CallTensor &tensor;
  const int64_t (&shape)[4];
};

/// InvalidArgument unless a tensor that is given has its shape, lies on the device and at a multiple of its element
/// size.
Status checkTensor(const NamedTensor &argument, DeviceId device);

/// InvalidArgument unless the elements of each row of a tensor that is given lie side by side, as kernels read them.
Status checkRows(const NamedTensor &argument);

/// InvalidArgument unless a tensor that is given has the type that the executable was loaded for.
Status checkType(const char *name, const CallTensor &tensor, ElementType type);

/// InvalidArgument unless arrays are given for captures with gradients only.
Status checkCaptureGradients(const Program &program, const BackwardCallTensors &tensors);

} // namespace cpflex
