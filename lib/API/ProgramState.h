// What a Program keeps: its modules, its entry points and the code that was compiled from them.
#pragma once

#include "lib/API/CudaPrograms.h"
#include "lib/API/HostCodeCache.h"
#include "lib/API/ProgramCache.h"
#include "lib/API/cpflex.h"
#include "lib/Frontend/Source.h"
#include "runtime/contract/NarrowCode.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"
#include "mlir/IR/SymbolTable.h"

#include <mutex>
#include <tuple>

namespace cpflex {

struct Program::State {
  /// Makes the modules unless there are any: those of a program from the cache are made when they are asked for. Thread
  /// safe. InvalidArgument when the compiler fails on what it compiled before.
  Status needModules();
  /// Makes the modules from a parsed file. On an error returns what is wrong, or says it in `diagnostics`.
  std::optional<std::string> makeModules(const ast::File &file, DiagnosticList &diagnostics,
                                         std::vector<std::string> *texts);
  mlir::ModuleOp importedModule() {
    (void)needModules();
    return *imported;
  }
  /// What importedModule() declares under a name; null where that is no such operation.
  template <typename Op> Op declaration(llvm::StringRef name) {
    (void)needModules();
    return importedSymbols->lookup<Op>(name);
  }

  /// The variant of the code that these bindings may run: ints in 32 bits, or in 64.
  mlir::ModuleOp codeModule(const Bindings &bindings) {
    return mayRunNarrowCode(summary.signature, bindings) ? *narrow : *differentiated;
  }

  /// What host code is compiled from, made at the first call: codeModule and the residuals of its masks. Null when a
  /// pass failed, which the context's handler has been told.
  mlir::ModuleOp hostModule(bool isNarrow);

  /// Held by whoever uses the context, its modules, `hostFunctions` or `deviceFunctions`.
  mutable std::mutex mutex;
  SourceRef source; ///< the main file
  CompileOptions options;
  ImportedFiles files; ///< as they were when the program was compiled
  std::string astText;
  ProgramSummary summary;

  std::once_flag modulesOnce;
  Status modulesStatus;
  std::unique_ptr<mlir::MLIRContext> ctx; ///< null until modules are made, as they are
  mlir::OwningOpRef<mlir::ModuleOp> imported, simplified, differentiated, narrow;
  std::optional<mlir::SymbolTable> importedSymbols;       ///< of `imported`
  mlir::OwningOpRef<mlir::ModuleOp> hostNarrow, hostWide; ///< see hostModule
  std::vector<Diagnostic> syntaxLints;                    ///< found while importing

  /// By entry point, whether ints are narrow, and passes.
  std::map<std::tuple<std::string, bool, CallPasses>, HostFunctions> hostFunctions;
  /// By entry point and whether ints are narrow.
  std::map<std::pair<std::string, bool>, DeviceFunctions> deviceFunctions;
  std::optional<HostCodeCache> codeCache;
  std::string programKey; ///< of the summary; empty when it is kept already, or not to be kept
  bool hasWarnedOfCache = false;
  CudaPrograms cudaPrograms;
};

} // namespace cpflex
