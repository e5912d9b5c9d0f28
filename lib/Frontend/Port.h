// Translates a mask or score function that was written in Python for FlexAttention into a `.cpf`
// program: what it closes over becomes declarations, the functions that it calls come along.
#pragma once

#include "lib/Frontend/Diagnostic.h"

#include "mlir/IR/MLIRContext.h"

#include <string>

namespace cpflex {

/// The `.cpf` text for `function` of the Python file `path` with contents `text`; functions inside
/// functions are found too, lambdas and what partial, and_masks and or_masks make of functions; of a
/// factory it is the function that it returns. Types of what it closes over are guessed from their
/// use, with a warning each where the file does not tell. What the language cannot express is
/// reported as errors at its place in the Python file; the text is returned all the same, and is empty
/// only when there is nothing to translate.
std::string portFunction(const std::string &path, const std::string &text, const std::string &function,
                         mlir::MLIRContext &ctx, DiagnosticList &diagnostics);

} // namespace cpflex
