// A value of the `mask` dialect as an expression in the language's syntax, for people to read.
#pragma once

#include "dialect/Mask/MaskDialect.h"

#include <string>

namespace cpflex {

/// The expression that computes `value` from coordinates, captures and params, with the parentheses that Python needs;
/// parts beyond `mostOperations` operations are shown as `...`.
std::string expressionText(mlir::Value value, int mostOperations = 40);

/// The complement of a bool: a comparison of ints with the opposite operator, `not (...)` otherwise.
std::string complementText(mlir::Value value, int mostOperations = 40);

} // namespace cpflex
