// The passes over the `mask` dialect. Each is one class, one file, one flag and one test of the same name.
#ifndef CPFLEX_LIB_TRANSFORMS_PASSES_TD
#define CPFLEX_LIB_TRANSFORMS_PASSES_TD

include "mlir/Pass/PassBase.td"

def ApplyRanges : Pass<"mask-apply-ranges", "::mlir::ModuleOp"> {
  let summary = "replaces what the bounds of ints decide";
  let description = [{
    Comparisons that always or never hold become constants; `x % n`, `x // n`, `abs`, `min` and `max` disappear where
    bounds decide them; a term that both sides of a comparison add is dropped where no side can wrap. Assumes that
    dimensions are at most 2^40, B and H at most 2^20, and that declared facts hold. Never changes a value.

    Before: `%a = mask.sub %q, %o` and `%b = mask.sub %kv, %o` and `mask.ge %a, %b` with `%o` from an i32 array.
    After: `mask.ge %q, %kv`.
  }];
}

def NarrowIntegers : Pass<"mask-narrow-integers", "::mlir::ModuleOp"> {
  let summary = "computes ints in 32 bits where that is proved";
  let description = [{
    Retypes coordinates to i32 and every i64 expression whose operands and result fit. Assumes dimensions of at most
    2^30, B and H at most 2^20 and that declared facts hold; with `bounded-params` also int params between -2^30 and
    2^30. Whoever runs the code checks the assumptions (runtime/contract/NarrowCode.h). Never changes a value. Meant for
    code that runs, not for the tape.

    Before: `%0 = mask.sub %q, %kv : i64`. After: `%0 = mask.sub %q, %kv : i32`.
  }];
  let options = [Option<"boundedParams", "bounded-params", "bool", /*default=*/"false",
                        "int params are between -2^30 and 2^30">];
}

def DeriveClassifier : Pass<"mask-derive-classifier", "::mlir::ModuleOp"> {
  let summary = "gives each predicate its meaning over tiles";
  let description = [{
    For each `mask.predicate @f` adds `mask.classifier @f.classifier`: the same operations over intervals. Expects
    predicates in canonical form and not narrowed; leaves them, and residuals, as they are. A classifier of that name
    is replaced.

    Before: `mask.predicate @causal`. After: also `mask.classifier @causal.classifier` with
    `mask.le %kv, %q : !mask.interval<i64>`.
  }];
}


def EnumerateResiduals : Pass<"mask-enumerate-residuals", "::mlir::ModuleOp"> {
  let summary = "adds what is left of each predicate where parts of it are decided";
  let description = [{
    For each `mask.predicate @f` adds `@f.residual1`, `@f.residual2`, ..., at most 7, cheapest first: the operands of the
    logic that `@f` ends in. In tiles where interval analysis decides the operands beside it, a residual equals the
    predicate. lib/Analysis/Residuals.h says which assumptions belong to each. Predicates are left as they are; residuals
    of an earlier run are replaced.

    Before: `@f` with `mask.and %causal, %sameDocument`. After: also `@f.residual1` that yields `%causal` and
    `@f.residual2` that yields `%sameDocument`.
  }];
}

def DifferentiateScores : Pass<"mask-differentiate-scores", "::mlir::ModuleOp"> {
  let summary = "gives each score function its gradient";
  let description = [{
    For each `mask.score @f` adds `mask.score_gradient @f.gradient`, by reverse accumulation: the gradient in the
    incoming score, and a `mask.scatter_add` for each load from a capture declared with `grad`. A pair whose incoming
    gradient is 0 contributes exactly 0, and so does an arm of a select that is not taken, whatever the values on the
    way. Sub-gradients: `abs` has 0 at 0; of equal operands of `min` and `max` the left one takes the gradient; `min` and
    `max` reductions pass it to the first element that attains the result; `floor`, `//`, comparisons and conversions to
    bool, int and u32 pass none; the divisor of a float `%` takes `-floor(x / y)` of it. A derivative that divides by 0
    is 0, as division is. A reduction that scatters is written out where its count is a small constant, and is a reduction
    with a `mask.scatter_add` inside otherwise. Score functions are left as they are; a gradient of that name is replaced.

    Before: `mask.score @f` with `mask.mul %s, %c`. After: also `mask.score_gradient @f.gradient` with
    `mask.mul %gradient, %c`.
  }];
}

#endif
