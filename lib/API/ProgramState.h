// What a Program keeps: its modules, its entry points and the code that was compiled from them.
#pragma once

#include "lib/API/CudaPrograms.h"
#include "lib/API/HostCodeCache.h"
#include "lib/API/cpflex.h"
#include "runtime/contract/NarrowCode.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"

#include <mutex>
#include <tuple>

namespace cpflex {

struct Program::State {
  State() : ctx(mlir::MLIRContext::Threading::DISABLED) {}

  /// The variant of the code that these bindings may run: ints in 32 bits, or in 64.
  mlir::ModuleOp codeModule(const Bindings &bindings) {
    return mayRunNarrowCode(signature, bindings) ? *narrow : *differentiated;
  }

  /// Held by whoever uses the context, its modules or `hostFunctions`.
  mutable std::mutex mutex;
  mlir::MLIRContext ctx;
  std::string path, text;              ///< the main file
  std::vector<Diagnostic> syntaxLints; ///< found while importing
  std::string astText;
  mlir::OwningOpRef<mlir::ModuleOp> imported, simplified, differentiated, narrow;
  Signature signature;
  std::vector<EntryPoint> entries;
  /// By entry point, whether ints are narrow, and passes.
  std::map<std::tuple<std::string, bool, CallPasses>, HostFunctions> hostFunctions;
  std::string sourceDigest;
  std::optional<HostCodeCache> cache;
  bool hasWarnedOfCache = false;
  CudaPrograms cudaPrograms;
  Log log;
};

} // namespace cpflex
