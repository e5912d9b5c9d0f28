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
    2^30. Whoever runs the code checks the assumptions when arrays and params are bound. Never changes a value. Meant for
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
    predicates in canonical form and not narrowed; leaves them as they are. A classifier of that name is replaced.

    Before: `mask.predicate @causal`. After: also `mask.classifier @causal.classifier` with
    `mask.le %kv, %q : !mask.interval<i64>`.
  }];
}


#endif
