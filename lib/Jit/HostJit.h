// How a program in the `mask` dialect becomes functions that this process can call: the LLVM pipeline for the host CPU
// and the ORC JIT behind HostFunctions. What the functions do is lib/CodeGen/Host's business.
#pragma once

#include "runtime/contract/HostFunctions.h"

#include "mlir/IR/BuiltinOps.h"

#include <string>

namespace cpflex {

/// Which functions of an entry point are compiled.
enum class HostFunctionSet {
  Forward,            ///< evaluateTile and score
  ForwardAndBackward, ///< scoreGradient too
};

/// How host code is compiled. Results do not depend on it, bit for bit.
struct JitOptions {
  /// 0 compiles fastest, 2 vectorises.
  int optimizationLevel = 2;
  HostFunctionSet functions = HostFunctionSet::ForwardAndBackward;
};

/// Machine code of one entry point, which may be stored and loaded again on the same kind of CPU.
struct HostObject {
  std::string bytes;             ///< a relocatable object file
  bool hasEvaluateTile = false;  ///< false: every pair attends
  uint32_t residuals = 0;        ///< bit n - 1: there is code for residual n
  bool hasScore = false;         ///< false: scores stay as they are
  bool hasScoreGradient = false; ///< false: not asked for, no score function, or no mask.score_gradient for it
};

/// Compiles the entry point `entry` of `module`, a module in the `mask` dialect that is not changed. The gradient of
/// score function `@f` is the `mask.score_gradient` named `@f.gradient`; residuals are named as lowerToHost says, and
/// HostFunctions::residualKey is left 0. Errors are diagnostics of the module's context.
/// Calls on modules of different contexts may run at the same time.
mlir::FailureOr<HostFunctions> compileHost(mlir::ModuleOp module, llvm::StringRef entry,
                                           const JitOptions &options = {});

/// The first half of compileHost: machine code, to be stored in a cache beside hostTargetName().
mlir::FailureOr<HostObject> compileHostObject(mlir::ModuleOp module, llvm::StringRef entry,
                                              const JitOptions &options = {});

/// The second half of compileHost; needs no MLIR context. On failure returns false and says why in `error`.
bool loadHostObject(const HostObject &object, HostFunctions &functions, std::string &error);

/// The CPU and its features that compileHost compiles for; part of the key of a cache of HostObjects.
std::string hostTargetName();

/// What compileHost runs, as text: the LLVM dialect before translation (`--emit=llvm`).
mlir::FailureOr<std::string> emitLLVM(mlir::ModuleOp module, llvm::StringRef entry);

/// The assembly for the host CPU that compileHost would run with these options.
mlir::FailureOr<std::string> emitAssembly(mlir::ModuleOp module, llvm::StringRef entry, const JitOptions &options = {});

} // namespace cpflex
