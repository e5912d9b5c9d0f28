// Which reductions read captures that a gradient is wanted of, and which of them are short enough to be written out?
#pragma once

#include "dialect/Mask/MaskDialect.h"

namespace cpflex {

/// Whether `op` loads from a capture of `module` that is declared with `grad`.
bool isDifferentiatedLoad(mlir::Operation *op, mlir::ModuleOp module);

/// Writes out float reductions over few constant indices that hold such a load, so that the scatters of their gradient
/// stand outside of loops, where generated code can order them. The value stays the same, bit for bit.
void unrollDifferentiatedReductions(mlir::Block &body, mlir::ModuleOp module);

} // namespace cpflex
