// Which predicates to classify over bound arrays so that their BlockMasks tell where a program's loads leave their
// arrays and which conditions decide nothing.
#pragma once

#include "dialect/Mask/MaskDialect.h"

#include <functional>
#include <string>
#include <vector>

namespace cpflex {

/// What the pairs of a question's predicate are.
enum class LintQuestionKind {
  IndexNegative,  ///< where an index is below 0 and its load counts
  IndexPastEnd,   ///< where an index is the size of its axis or more and its load counts
  ConditionHolds, ///< where one condition of the mask holds, taken alone
};

/// One predicate that was added to a module, and the place that it is about.
struct LintQuestion {
  LintQuestionKind kind;
  mask::PredicateOp predicate;
  mlir::Location loc;
  std::string text;    ///< the index or the condition, as an expression
  std::string capture; ///< the array that is indexed; empty for conditions
  unsigned axis = 0;   ///< which index
  int64_t size = 0;    ///< of that axis
};

/// Adds to `module`, as imported, a predicate per question about one entry point. `axisSize` gives the bound size of an
/// axis of a capture. A load counts where no select or short-circuit before it makes its value irrelevant, and, in a
/// score function, where the mask allows the pair. Indices that depend on the score are left out.
std::vector<LintQuestion>
addLintQuestions(mlir::ModuleOp module, mask::AttentionOp entry,
                 const std::function<int64_t(llvm::StringRef capture, unsigned axis)> &axisSize);

} // namespace cpflex
