// Parses and imports programs that a test holds as text.
#pragma once

#include "lib/Frontend/Importer.h"
#include "lib/Frontend/Parser.h"

#include "mlir/IR/Verifier.h"
#include "llvm/Support/raw_ostream.h"

#include <string>

namespace cpflex {

/// What became of one program: the module as text, empty after an error, and the diagnostics.
struct ImportedProgram {
  std::string module;
  DiagnosticList diagnostics;
  bool isValid = false; ///< the module passes the dialect's verifiers
};

inline ImportedProgram importText(const std::string &text, const ImportOptions &options = {},
                                  const std::string &path = "test.cpf") {
  ImportedProgram result;
  ast::File file = parseFile(path, text, result.diagnostics);
  mlir::MLIRContext ctx;
  mlir::OwningOpRef<mlir::ModuleOp> module = importProgram(file, ctx, options, result.diagnostics);
  if (!module)
    return result;
  result.isValid = mlir::succeeded(mlir::verify(*module));
  llvm::raw_string_ostream stream(result.module);
  module->print(stream);
  return result;
}

} // namespace cpflex
