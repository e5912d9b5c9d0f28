// What in the `mask` dialect form of a program is probably a mistake, whatever is bound: for `cpflexc check`.
#pragma once

#include "dialect/Mask/MaskDialect.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Location.h"

#include <string>
#include <vector>

namespace cpflex {

/// One remark and the place that it is about.
struct Lint {
  mlir::Location loc;
  std::string message;
};

/// Scores of -inf that a mask could forbid. These functions expect a module as imported, whose operations still are
/// what the user wrote.
std::vector<Lint> maskingScoresOf(mlir::ModuleOp module);

/// Comparisons that are always true or false, and loads that may leave their arrays and have no condition around them,
/// whatever is bound. LintQuestions.h asks the same of what is bound.
std::vector<Lint> lintsWithoutBinding(mlir::ModuleOp module);

/// Advice on a mask of which every tile is partial: an order of tokens that is known to make tiles full or empty; empty
/// when none is known, or the mask is null.
std::string reorderingAdvice(mask::PredicateOp function);

} // namespace cpflex
