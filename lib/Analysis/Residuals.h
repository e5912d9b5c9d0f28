// Which few expressions can a mask come down to in a tile, once other parts of it are decided there?
#pragma once

#include "dialect/Mask/MaskDialect.h"

#include <vector>

namespace cpflex {

/// Discardable attribute of a predicate that is a residual of another one.
inline constexpr const char *kResidualAttribute = "mask.residual";

/// Residual n of predicate `@f` is named `@f.residual<n>`.
inline constexpr const char *kResidualSuffix = ".residual";

/// In tiles where every assumed value is as stated for all pairs, the predicate is `value`, or its complement.
struct ResidualExpression {
  mlir::Value value;
  bool isNegated = false;
  llvm::SmallVector<std::pair<mlir::Value, bool>> assumptions;
};

/// The residuals of a predicate by number - 1, cheapest first, at most kMostResiduals - 1: operands of the logic that
/// the predicate ends in, each under the assumption that the operands beside its path decide nothing.
std::vector<ResidualExpression> residualsOf(mask::PredicateOp predicate);

/// The relative cost of evaluating a value for a pair: operations, each counted once, loads and reductions for more.
int64_t evaluationCost(mlir::Value value);

} // namespace cpflex
