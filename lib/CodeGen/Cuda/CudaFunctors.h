// What a mask and a score function look like in CUDA C++: the text of `struct Program` that kernels call.
#pragma once

#include "runtime/contract/DeviceFunctions.h"

#include "mlir/IR/BuiltinOps.h"

namespace cpflex {

/// Which functions of an entry point are printed.
enum class CudaFunctionSet {
  Forward,            ///< mask and score
  ForwardAndBackward, ///< scoreGradient and scatters too
};

struct CudaOptions {
  CudaFunctionSet functions = CudaFunctionSet::ForwardAndBackward;
};

/// Prints the functor of the entry point `entry` of `module`, a module in the `mask` dialect that is not changed; ints
/// that were narrowed to i32 are computed in 32 bits. The text is CUDA C++ for NVRTC and, where `__device__` and
/// `__forceinline__` are defined away, C++; it needs Operations.h, CaptureArgument.h and KernelArguments.h before it.
/// The gradient of score function `@f` is the `mask.score_gradient` named `@f.gradient`; where it is missing, or not
/// asked for, scoreGradient() and the scatters are not printed. Errors are diagnostics of the module's context.
mlir::FailureOr<DeviceFunctions> emitCudaFunctors(mlir::ModuleOp module, llvm::StringRef entry,
                                                  const CudaOptions &options = {});

} // namespace cpflex
