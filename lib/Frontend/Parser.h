// Turns `.cpf` text into its syntax tree (stage 1). Names, types and files that it imports are left
// to the importer.
#pragma once

#include "lib/Frontend/Diagnostic.h"
#include "lib/Frontend/ast.h"

namespace cpflex {

/// Parses `text`; `path` is only for messages. Always returns a tree; after an error the statement
/// that holds it is left out and parsing goes on. Time and memory are bounded by a multiple of the
/// text's size.
ast::File parseFile(std::string path, std::string text, DiagnosticList &diagnostics);

} // namespace cpflex
