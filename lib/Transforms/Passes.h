// The passes over the `mask` dialect, by name, and the sequences that stages of the compiler run.
#pragma once

#include "mlir/Pass/Pass.h"

#include <memory>

namespace mlir {
class OpPassManager;
class ModuleOp;
} // namespace mlir

namespace cpflex {

#define GEN_PASS_DECL
#include "lib/Transforms/Passes.h.inc"

#define GEN_PASS_REGISTRATION
#include "lib/Transforms/Passes.h.inc"

/// Stage 3: canonical form, common subexpressions, and what ranges decide.
void addSimplification(mlir::OpPassManager &passes);

/// Stage 5: stage 3's result with a classifier and residuals per predicate.
void addClassifierDerivation(mlir::OpPassManager &passes);

/// Stage 4: stage 3's result with a gradient per score function.
void addScoreDifferentiation(mlir::OpPassManager &passes);

/// Narrows ints of functions that host or device code is generated from, and simplifies what that uncovers.
void addIntegerNarrowing(mlir::OpPassManager &passes, const NarrowIntegersOptions &options = {});

} // namespace cpflex
