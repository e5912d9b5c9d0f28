// Which loops a compiled mask or score function becomes on the CPU: the lowering of one entry point from the `mask`
// dialect to the LLVM dialect, in the form that HostFunctions promises.
#pragma once

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"

namespace cpflex {

/// Names of the functions of a lowered module. Each is there only when the entry point needs it.
inline constexpr char kEvaluateTileName[] = "evaluateTile";
inline constexpr char kEvaluateResidualName[] = "evaluateResidual"; ///< followed by the residual's number
inline constexpr char kScoreName[] = "score";
inline constexpr char kScoreGradientName[] = "scoreGradient";

/// Whether lowerToHost makes scoreGradient.
enum class HostGradient { Omit, Include };

/// Lowers the entry point `entry` of `module` (in the `mask` dialect, not changed) to a module in the LLVM dialect. It
/// calls functions of Operations.cpp, declared but not defined there: see hostOperationsBitcode(). The gradient of
/// score function `@f` is the `mask.score_gradient` named `@f.gradient`; without one there is no scoreGradient. The
/// residuals of mask `@m` are the predicates `@m.residual1` and so on that EnumerateResiduals adds; each that costs at
/// most half of the mask gets a function.
mlir::FailureOr<mlir::OwningOpRef<mlir::ModuleOp>> lowerToHost(mlir::ModuleOp module, llvm::StringRef entry,
                                                               HostGradient gradient);

/// LLVM bitcode of the functions that lowered modules call, compiled from Operations.cpp. Static storage.
llvm::StringRef hostOperationsBitcode();

} // namespace cpflex
