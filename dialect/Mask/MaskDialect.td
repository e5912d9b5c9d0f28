// The `mask` dialect: which (q, kv) pairs attend, and how scores change.
#ifndef CPFLEX_DIALECT_MASK_MASKDIALECT_TD
#define CPFLEX_DIALECT_MASK_MASKDIALECT_TD

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/BuiltinTypeInterfaces.td"

def Mask_Dialect : Dialect {
  let name = "mask";
  let cppNamespace = "::cpflex::mask";
  let summary = "which (q, kv) pairs attend, and how scores change";
  let description = [{
    A program is a module of declarations (`mask.capture`, `mask.param`), functions of one (batch, head, query, key)
    coordinate (`mask.predicate`, `mask.score`) and entry points (`mask.attention`). Function bodies are straight-line
    expressions without side effects; the only regions are bounded reductions.

    Values are `i1` (bool), `i64` (int, wrapping), `i32` (an int that was proved to fit), `ui32` (u32, wrapping) and
    `f32` (float). The concrete meaning of every operation is the function of the same name in
    `runtime/contract/Operations.h`. A pass that derives a tile classifier gives the same operations over
    `!mask.interval<T>`: sets of values between two bounds.
  }];
  let useDefaultTypePrinterParser = 1;
  let hasConstantMaterializer = 1;
  let hasCanonicalizer = 1;
}

class Mask_Type<string name, string typeMnemonic> : TypeDef<Mask_Dialect, name> {
  let mnemonic = typeMnemonic;
}

def Mask_IntervalType : Mask_Type<"Interval", "interval"> {
  let summary = "a set of values between two bounds";
  let description = [{
    What a value may be for some pair of a tile: for numbers the closed range between a lower and an upper bound, for
    bools whether some pair may give true and some pair may give false.
  }];
  let parameters = (ins "::mlir::Type":$element);
  let genVerifyDecl = 1;
  let assemblyFormat = "`<` $element `>`";
}

#endif
