// The plain-data program that the runtime evaluates over tiles and points, from a predicate or its classifier. What an
// operation means over intervals is the runtime's business.
#pragma once

#include "dialect/Mask/MaskDialect.h"
#include "runtime/contract/Residual.h"
#include "runtime/contract/Tape.h"

namespace cpflex {

/// The tape of a predicate: one instruction per value that the result needs, slots as in `signature`, which is that of
/// the function's module. Fails with a located diagnostic on a name that `signature` lacks.
mlir::FailureOr<Tape> tapeFromPredicate(mask::PredicateOp predicate, const Signature &signature);

/// The same of a classifier; its tape is that of the predicate it was derived from.
mlir::FailureOr<Tape> tapeFromPredicate(mask::ClassifierOp classifier, const Signature &signature);

/// A tape and the residuals of its predicate, by number - 1.
struct TapeWithResiduals {
  Tape tape;
  std::vector<std::string> files; ///< per instruction the source that its line is of, empty when unknown
  std::vector<Residual> residuals;
};

/// The tape of a predicate with what residualsOf(predicate) finds, in its order: residual i is the function
/// `@<predicate>.residual<i + 1>` that EnumerateResiduals adds.
mlir::FailureOr<TapeWithResiduals> tapeWithResiduals(mask::PredicateOp predicate, const Signature &signature);

} // namespace cpflex
