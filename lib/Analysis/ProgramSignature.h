// What must be bound before a program in the `mask` dialect can run, and in which slot order generated code finds it.
#pragma once

#include "runtime/contract/Bindings.h"

#include "mlir/IR/BuiltinOps.h"

namespace cpflex {

/// The slots of `module`: captures and params in the order of their declarations, dims with the built-in ones first and
/// then every other name that a capture's axis or a `mask.dim` mentions, in order of appearance.
Signature signatureOf(mlir::ModuleOp module);

/// Slot of a name, -1 when there is none.
int captureSlot(const Signature &signature, llvm::StringRef name);
int paramSlot(const Signature &signature, llvm::StringRef name);
int dimSlot(const Signature &signature, llvm::StringRef name);

} // namespace cpflex
