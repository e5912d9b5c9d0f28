// Type-checks a syntax tree and turns it into a module of the `mask` dialect (stage 2): imports
// resolved, calls and mask combinators inlined, constants folded.
#pragma once

#include "lib/Frontend/Diagnostic.h"
#include "lib/Frontend/ImportedFiles.h"
#include "lib/Frontend/ast.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"

#include <map>
#include <string>
#include <vector>

namespace cpflex {

/// Discardable attribute of the module: a dictionary with the value of every `const` declaration in
/// use.
inline constexpr const char *kConstantsAttribute = "mask.constants";

struct ImportOptions {
  /// Where `from X import` looks after the importing file's own folder and before `cpflex.std`.
  std::vector<std::string> includeDirs;
  /// Values for `const` declarations by name, as text (`-D name=value`). Names that are no `const`
  /// of the program are left to the caller: they may be params.
  std::map<std::string, std::string> constants;
  /// Where not null: the files that there are, as findImportedFiles gives them; else they are read from disk.
  const ImportedFiles *files = nullptr;
  /// Where not null: gets the texts that the program was made of, the main file's first.
  std::vector<std::string> *texts = nullptr;
};

/// The module of a parsed file: `mask.capture` and `mask.param` declarations, per entry point E
/// `mask.predicate @E.mask`, `mask.score @E.score` and `mask.attention @E`. A file without
/// `attention(...)` has one entry point per mask. Loads the dialect into `ctx`. Null after an
/// error; then `diagnostics` says what is wrong.
mlir::OwningOpRef<mlir::ModuleOp> importProgram(const ast::File &file, mlir::MLIRContext &ctx,
                                                const ImportOptions &options, DiagnosticList &diagnostics);

} // namespace cpflex
