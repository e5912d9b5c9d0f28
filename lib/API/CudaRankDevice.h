// The GPU side of a rank: a plan's call on the GPU of a communicator.
#pragma once

#include "lib/API/cpflex.h"
#include "runtime/Executor/CudaExecutionDevice.h"

#include <memory>

namespace cpflex {

/// Where a rank computes the call of `executable`, which may have been loaded on the CPU: only its program, binding,
/// type and sinks are read. Captures in the memory of that GPU are read in place. InvalidArgument for f32.
StatusOr<std::unique_ptr<CudaExecutionDevice>> openRankDevice(const Executable &executable,
                                                              std::shared_ptr<const CudaPort> port);

} // namespace cpflex
