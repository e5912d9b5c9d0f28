// Operations of the `mask` dialect. Expression operations are in one-to-one relation with
// runtime/contract/Operations.def: same mnemonic, same operands, same meaning.
#ifndef CPFLEX_DIALECT_MASK_MASKOPS_TD
#define CPFLEX_DIALECT_MASK_MASKOPS_TD

include "dialect/Mask/MaskDialect.td"
include "mlir/IR/BuiltinAttributeInterfaces.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/OpAsmInterface.td"
include "mlir/Interfaces/ControlFlowInterfaces.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/FunctionInterfaces.td"
include "mlir/Interfaces/InferTypeOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

class Mask_IntervalOf<string elementPredicate, string name> : Type<
  And<[CPred<"::llvm::isa<::cpflex::mask::IntervalType>($_self)">,
       SubstLeaves<"$_self", "::llvm::cast<::cpflex::mask::IntervalType>($_self).getElement()",
                   CPred<elementPredicate>>]>, "interval of " # name>;

def Mask_BoolInterval : Mask_IntervalOf<"$_self.isInteger(1)", "bool">;
def Mask_UI32 : Type<CPred<"$_self.isUnsignedInteger(32)">, "u32">, BuildableType<"$_builder.getIntegerType(32, false)">;
def Mask_Bool : AnyTypeOf<[I1, Mask_BoolInterval], "bool">;
def Mask_AnyInterval : Type<CPred<"::llvm::isa<::cpflex::mask::IntervalType>($_self)">, "interval">;
def Mask_Int : AnyTypeOf<[I64, I32, Mask_UI32, Mask_AnyInterval], "int or u32">;
def Mask_U32 : AnyTypeOf<[Mask_UI32, Mask_AnyInterval], "u32">;
def Mask_Number : AnyTypeOf<[I64, I32, Mask_UI32, F32, Mask_AnyInterval], "int, u32 or float">;
def Mask_Float : AnyTypeOf<[F32, Mask_AnyInterval], "float">;
def Mask_BoolOrInt : AnyTypeOf<[I1, I64, I32, Mask_UI32, Mask_AnyInterval], "bool, int or u32">;
def Mask_Value : AnyTypeOf<[I1, I64, I32, Mask_UI32, F32, Mask_AnyInterval], "value">;

//===----------------------------------------------------------------------===//
// Base classes
//===----------------------------------------------------------------------===//

def Mask_TableOpInterface : OpInterface<"TableOpInterface"> {
  let cppNamespace = "::cpflex::mask";
  let description = [{ An operation that is an entry of runtime/contract/Operations.def. }];
  let methods = [
    InterfaceMethod<"The entry of the table of operations.", "::cpflex::Operation", "getTableOperation", (ins)>
  ];
}

class Mask_Op<string mnemonic, list<Trait> traits = []> : Op<Mask_Dialect, mnemonic, traits>;

class Mask_TableOp<string mnemonic, string enumerator, list<Trait> traits>
    : Mask_Op<mnemonic, !listconcat([Pure, DeclareOpInterfaceMethods<Mask_TableOpInterface>], traits)> {
  let hasFolder = 1;
  let hasVerifier = 1;
  let extraClassDefinition = [{
    ::llvm::LogicalResult $cppClass::verify() { return ::cpflex::mask::verifyTableOperation(getOperation()); }
    ::cpflex::Operation $cppClass::getTableOperation() { return ::cpflex::Operation::}] # enumerator # [{; }
    ::mlir::OpFoldResult $cppClass::fold(FoldAdaptor adaptor) {
      return ::cpflex::mask::foldTableOperation(getOperation(), adaptor.getOperands());
    }
  }];
}

class Mask_Unary<string mnemonic, string enumerator, Type type, string meaning>
    : Mask_TableOp<mnemonic, enumerator, [SameOperandsAndResultType]> {
  let summary = meaning;
  let description = "Example: `%1 = mask." # mnemonic # " %0 : i64`.";
  let arguments = (ins type:$operand);
  let results = (outs type:$result);
  let assemblyFormat = "$operand attr-dict `:` type($result)";
}

class Mask_Binary<string mnemonic, string enumerator, Type type, string meaning, list<Trait> traits = []>
    : Mask_TableOp<mnemonic, enumerator, !listconcat([SameOperandsAndResultType], traits)> {
  let summary = meaning;
  let description = "Example: `%2 = mask." # mnemonic # " %0, %1 : i64`.";
  let arguments = (ins type:$lhs, type:$rhs);
  let results = (outs type:$result);
  let assemblyFormat = "$lhs `,` $rhs attr-dict `:` type($result)";
}

class Mask_Compare<string mnemonic, string enumerator, Type type, string meaning, list<Trait> traits = []>
    : Mask_TableOp<mnemonic, enumerator, !listconcat([SameTypeOperands,
        DeclareOpInterfaceMethods<InferTypeOpInterface>], traits)> {
  let summary = meaning;
  let description = "Example: `%2 = mask." # mnemonic # " %0, %1 : i64`. The result is `i1`, or its interval for intervals.";
  let arguments = (ins type:$lhs, type:$rhs);
  let results = (outs Mask_Bool:$result);
  let assemblyFormat = "$lhs `,` $rhs attr-dict `:` type($lhs)";
  let extraClassDefinition = [{
    ::llvm::LogicalResult $cppClass::verify() { return ::cpflex::mask::verifyTableOperation(getOperation()); }
    ::cpflex::Operation $cppClass::getTableOperation() { return ::cpflex::Operation::}] # enumerator # [{; }
    ::mlir::OpFoldResult $cppClass::fold(FoldAdaptor adaptor) {
      return ::cpflex::mask::foldTableOperation(getOperation(), adaptor.getOperands());
    }
    ::llvm::LogicalResult $cppClass::inferReturnTypes(::mlir::MLIRContext *ctx, ::std::optional<::mlir::Location>,
        ::mlir::ValueRange operands, ::mlir::DictionaryAttr, ::mlir::OpaqueProperties, ::mlir::RegionRange,
        ::llvm::SmallVectorImpl<::mlir::Type> &types) {
      types.push_back(::cpflex::mask::comparisonResultType(operands[0].getType()));
      return ::llvm::success();
    }
  }];
}

class Mask_Cast<string mnemonic, string enumerator, Type type, string meaning>
    : Mask_TableOp<mnemonic, enumerator, []> {
  let summary = meaning;
  let description = "Example: `%1 = mask." # mnemonic # " %0 : i64 -> f32`.";
  let arguments = (ins Mask_Value:$operand);
  let results = (outs type:$result);
  let assemblyFormat = "$operand attr-dict `:` type($operand) `->` type($result)";
}

//===----------------------------------------------------------------------===//
// Expressions: the table of operations
//===----------------------------------------------------------------------===//

def Mask_AddOp : Mask_Binary<"add", "Add", Mask_Number, "sum; ints wrap", [Commutative]>;
def Mask_SubOp : Mask_Binary<"sub", "Sub", Mask_Number, "difference; ints wrap">;
def Mask_MulOp : Mask_Binary<"mul", "Mul", Mask_Number, "product; ints wrap", [Commutative]>;
def Mask_DivOp : Mask_Binary<"div", "Div", Mask_Float, "float quotient; 0 when the divisor is 0">;
def Mask_FloorDivOp : Mask_Binary<"floordiv", "FloorDiv", Mask_Number, "quotient rounded down; 0 when the divisor is 0">;
def Mask_ModOp : Mask_Binary<"mod", "Mod", Mask_Number, "remainder with the divisor's sign; 0 when the divisor is 0">;
def Mask_NegOp : Mask_Unary<"neg", "Neg", Mask_Number, "negation; ints wrap">;
def Mask_AbsOp : Mask_Unary<"abs", "Abs", Mask_Number, "absolute value; ints wrap">;
def Mask_MinOp : Mask_Binary<"min", "Min", Mask_Number, "smaller operand; a NaN wins", [Commutative]>;
def Mask_MaxOp : Mask_Binary<"max", "Max", Mask_Number, "larger operand; a NaN wins", [Commutative]>;
def Mask_AndOp : Mask_Binary<"and", "And", Mask_BoolOrInt, "bitwise and", [Commutative]>;
def Mask_OrOp : Mask_Binary<"or", "Or", Mask_BoolOrInt, "bitwise or", [Commutative]>;
def Mask_XorOp : Mask_Binary<"xor", "Xor", Mask_BoolOrInt, "bitwise exclusive or", [Commutative]>;
def Mask_NotOp : Mask_Unary<"not", "Not", Mask_BoolOrInt, "bitwise complement">;
def Mask_ShlOp : Mask_Binary<"shl", "Shl", Mask_Int, "left shift, as if unbounded then cut to the type">;
def Mask_ShrOp : Mask_Binary<"shr", "Shr", Mask_Int, "right shift, as if unbounded">;
def Mask_ILog2Op : Mask_Unary<"ilog2", "ILog2", Mask_Int, "position of the highest set bit; 0 below 1">;
def Mask_ExpOp : Mask_Unary<"exp", "Exp", Mask_Float, "e to the power of">;
def Mask_Exp2Op : Mask_Unary<"exp2", "Exp2", Mask_Float, "2 to the power of">;
def Mask_LogOp : Mask_Unary<"log", "Log", Mask_Float, "natural logarithm">;
def Mask_Log1pOp : Mask_Unary<"log1p", "Log1p", Mask_Float, "natural logarithm of 1 plus the operand">;
def Mask_TanhOp : Mask_Unary<"tanh", "Tanh", Mask_Float, "hyperbolic tangent">;
def Mask_SigmoidOp : Mask_Unary<"sigmoid", "Sigmoid", Mask_Float, "1 / (1 + exp(-x))">;
def Mask_SqrtOp : Mask_Unary<"sqrt", "Sqrt", Mask_Float, "square root">;
def Mask_RsqrtOp : Mask_Unary<"rsqrt", "Rsqrt", Mask_Float, "1 / square root">;
def Mask_SinOp : Mask_Unary<"sin", "Sin", Mask_Float, "sine of radians">;
def Mask_CosOp : Mask_Unary<"cos", "Cos", Mask_Float, "cosine of radians">;
def Mask_FloorOp : Mask_Unary<"floor", "Floor", Mask_Float, "largest whole number not above">;
def Mask_PowOp : Mask_Binary<"pow", "Pow", Mask_Float, "power">;
def Mask_EqOp : Mask_Compare<"eq", "Eq", Mask_Value, "equal", [Commutative]>;
def Mask_NeOp : Mask_Compare<"ne", "Ne", Mask_Value, "not equal", [Commutative]>;
def Mask_LtOp : Mask_Compare<"lt", "Lt", Mask_Number, "less">;
def Mask_LeOp : Mask_Compare<"le", "Le", Mask_Number, "less or equal">;
def Mask_GtOp : Mask_Compare<"gt", "Gt", Mask_Number, "greater">;
def Mask_GeOp : Mask_Compare<"ge", "Ge", Mask_Number, "greater or equal">;

def Mask_SelectOp : Mask_TableOp<"select", "Select", [AllTypesMatch<["trueValue", "falseValue", "result"]>]> {
  let summary = "one of two values";
  let description = "Example: `%3 = mask.select %c, %1, %2 : i1, i64`.";
  let arguments = (ins Mask_Bool:$condition, Mask_Value:$trueValue, Mask_Value:$falseValue);
  let results = (outs Mask_Value:$result);
  let assemblyFormat = "$condition `,` $trueValue `,` $falseValue attr-dict `:` type($condition) `,` type($result)";
}

def Mask_ToBoolOp : Mask_Cast<"to_bool", "ToBool", Mask_Bool, "whether not zero">;
def Mask_ToIntOp : Mask_Cast<"to_int", "ToInt", Mask_Int, "int toward zero; NaN is 0; saturates">;
def Mask_ToU32Op : Mask_Cast<"to_u32", "ToU32", Mask_U32, "low 32 bits of the int">;
def Mask_ToFloatOp : Mask_Cast<"to_float", "ToFloat", Mask_Float, "nearest f32">;

//===----------------------------------------------------------------------===//
// Leaves and reductions
//===----------------------------------------------------------------------===//

def Mask_ConstantOp : Mask_Op<"constant", [Pure, ConstantLike]> {
  let summary = "a literal, or the interval that holds only it";
  let description = [{
    Examples: `%0 = mask.constant 7 : i64` and `%1 = mask.constant interval 7 : i64`, of type `!mask.interval<i64>`.
  }];
  let arguments = (ins TypedAttrInterface:$value);
  let results = (outs Mask_Value:$result);
  let assemblyFormat = "attr-dict custom<ConstantValue>($value, type($result))";
  let hasFolder = 1;
  let hasVerifier = 1;
  let builders = [OpBuilder<(ins "::mlir::TypedAttr":$value), [{
    build($_builder, $_state, value.getType(), value);
  }]>];
}

def Mask_ParamValueOp : Mask_Op<"param_value", [Pure, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "the value of a runtime argument";
  let description = "Example: `%0 = mask.param_value @W : i64`.";
  let arguments = (ins FlatSymbolRefAttr:$param);
  let results = (outs Mask_Value:$result);
  let assemblyFormat = "$param attr-dict `:` type($result)";
}

def Mask_DimOp : Mask_Op<"dim", [Pure]> {
  let summary = "the size of a built-in or named dimension";
  let description = [{
    Built-in names are `B`, `H`, `HKV`, `Q_LEN` and `KV_LEN`; others come from the shapes of captures.
    Example: `%0 = mask.dim "KV_LEN" : i64`.
  }];
  let arguments = (ins StrAttr:$name);
  let results = (outs Mask_Int:$result);
  let assemblyFormat = "$name attr-dict `:` type($result)";
}

def Mask_LoadOp : Mask_Op<"load", [Pure, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "an element of a captured array; 0 or false outside of it";
  let description = [{
    Integer arrays of any width give `i64` (u64 keeps its bits), `u32` arrays give `ui32`, float arrays give `f32`, bool
    arrays give `i1`. One index per axis; an index below 0 or past the end gives 0.
    Example: `%2 = mask.load @doc[%b, %q] : (i64, i64) -> i64`.
  }];
  let arguments = (ins FlatSymbolRefAttr:$capture, Variadic<Mask_Int>:$indices);
  let results = (outs Mask_Value:$result);
  let assemblyFormat = "$capture `[` $indices `]` attr-dict `:` functional-type($indices, $result)";
}

def Mask_ReductionKind : I32EnumAttr<"ReductionKind", "how a reduction combines", [
    I32EnumAttrCase<"Any", 0, "any">, I32EnumAttrCase<"All", 1, "all">, I32EnumAttrCase<"Sum", 2, "sum">,
    I32EnumAttrCase<"Min", 3, "min">, I32EnumAttrCase<"Max", 4, "max">]> {
  let cppNamespace = "::cpflex::mask";
}

def Mask_ReduceOp : Mask_Op<"reduce", [RecursiveMemoryEffects, SingleBlockImplicitTerminator<"YieldOp">]> {
  let summary = "combines an expression over the indices 0 .. count - 1";
  let description = [{
    The region has one argument, the index, and yields the element; it may use values from outside. Elements are
    combined in ascending order. An empty reduction is false (`any`), true (`all`) or 0.
    Example:
    ```mlir
    %r = mask.reduce any %n : i64 -> i1 {
    ^bb0(%i: i64):
      %x = mask.load @idx[%i] : (i64) -> i64
      %e = mask.eq %x, %kv : i64
      mask.yield %e : i1
    }
    ```
  }];
  let arguments = (ins Mask_ReductionKind:$kind, Mask_Int:$count);
  let results = (outs Mask_Value:$result);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$kind $count attr-dict `:` type($count) `->` type($result) $body";
  let hasVerifier = 1;
}

def Mask_YieldOp : Mask_Op<"yield", [Pure, Terminator, ReturnLike]> {
  let summary = "ends a function or a reduction's body with its value";
  let description = "Example: `mask.yield %0 : i1`.";
  let arguments = (ins Variadic<Mask_Value>:$values);
  let assemblyFormat = "($values^ `:` type($values))? attr-dict";
  let builders = [OpBuilder<(ins)>];
}

//===----------------------------------------------------------------------===//
// Declarations, functions and entry points
//===----------------------------------------------------------------------===//

def Mask_CaptureOp : Mask_Op<"capture", [Symbol]> {
  let summary = "declares a captured array";
  let description = [{
    `dims` names each axis: a literal, a dimension name, or an expression as the user wrote it. `facts` may hold
    `sorted`, `lo`, `hi` and `grad`.
    Example: `mask.capture @doc : i32 ["B", "KV_LEN"] {sorted}`.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, TypeAttr:$element_type, StrArrayAttr:$dims);
  let assemblyFormat = "$sym_name `:` $element_type $dims attr-dict";
  let hasVerifier = 1;
}

def Mask_ParamOp : Mask_Op<"param", [Symbol]> {
  let summary = "declares a runtime argument";
  let description = "Example: `mask.param @W : i64 = 1024 : i64`.";
  let arguments = (ins SymbolNameAttr:$sym_name, TypeAttr:$type, OptionalAttr<TypedAttrInterface>:$default_value);
  let assemblyFormat = "$sym_name `:` $type (`=` $default_value^)? attr-dict";
  let hasVerifier = 1;
}

class Mask_Function<string mnemonic, string meaning, string example>
    : Mask_Op<mnemonic, [FunctionOpInterface, IsolatedFromAbove, SingleBlock,
                         DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmBlockArgumentNames"]>]> {
  let summary = meaning;
  let description = "Example:\n```mlir\n" # example # "\n```";
  let arguments = (ins SymbolNameAttr:$sym_name, TypeAttrOf<FunctionType>:$function_type,
                       OptionalAttr<StrAttr>:$sym_visibility,
                       OptionalAttr<DictArrayAttr>:$arg_attrs, OptionalAttr<DictArrayAttr>:$res_attrs);
  let regions = (region SizedRegion<1>:$body);
  let hasCustomAssemblyFormat = 1;
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    ::mlir::ArrayRef<::mlir::Type> getArgumentTypes() { return getFunctionType().getInputs(); }
    ::mlir::ArrayRef<::mlir::Type> getResultTypes() { return getFunctionType().getResults(); }
    ::mlir::Region *getCallableRegion() { return &getBody(); }
    ::mlir::Value getYieldedValue() { return getBody().front().getTerminator()->getOperand(0); }
  }];
  let extraClassDefinition = [{
    ::mlir::ParseResult $cppClass::parse(::mlir::OpAsmParser &parser, ::mlir::OperationState &result) {
      return ::cpflex::mask::parseFunction(parser, result, getFunctionTypeAttrName(result.name),
                                           getArgAttrsAttrName(result.name), getResAttrsAttrName(result.name));
    }
    void $cppClass::print(::mlir::OpAsmPrinter &printer) {
      ::mlir::function_interface_impl::printFunctionOp(printer, *this, /*isVariadic=*/false, "function_type",
                                                       getArgAttrsAttrName(), getResAttrsAttrName());
    }
    void $cppClass::getAsmBlockArgumentNames(::mlir::Region &region, ::mlir::OpAsmSetValueNameFn setName) {
      ::cpflex::mask::nameArguments(region, setName);
    }
  }];
  let builders = [OpBuilder<(ins "::llvm::StringRef":$name, "::mlir::FunctionType":$type), [{
    $_state.addAttribute("sym_name", $_builder.getStringAttr(name));
    $_state.addAttribute("function_type", ::mlir::TypeAttr::get(type));
    ::mlir::Region *body = $_state.addRegion();
    ::mlir::Block &entry = body->emplaceBlock();
    for (::mlir::Type input : type.getInputs())
      entry.addArgument(input, $_state.location);
  }]>];
}

def Mask_PredicateOp : Mask_Function<"predicate", "which pairs attend: (b, h, q, kv) to bool", [{
mask.predicate @causal(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.le %kv, %q : i64
  mask.yield %0 : i1
}
}]>;

def Mask_ScoreOp : Mask_Function<"score", "how a score changes: (score, b, h, q, kv) to float", [{
mask.score @double(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.add %s, %s : f32
  mask.yield %0 : f32
}
}]>;

def Mask_ClassifierOp : Mask_Function<"classifier", "what a predicate may be over a tile: coordinates' intervals to an interval of bool", [{
mask.classifier @causal(%b: !mask.interval<i64>, %h: !mask.interval<i64>, %q: !mask.interval<i64>,
                        %kv: !mask.interval<i64>) -> !mask.interval<i1> {
  %0 = mask.le %kv, %q : !mask.interval<i64>
  mask.yield %0 : !mask.interval<i1>
}
}]>;

def Mask_ScoreGradientOp : Mask_Function<"score_gradient", "the gradient of a score function: (gradient, score, b, h, q, kv) to the gradient in the incoming score", [{
mask.score_gradient @double(%g: f32, %s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.constant 2.0 : f32
  %1 = mask.mul %g, %0 : f32
  mask.yield %1 : f32
}
}]>;

def Mask_ScatterAddOp : Mask_Op<"scatter_add", [DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "adds to the gradient of an element of a captured array; nothing outside of it";
  let description = [{
    Only inside `mask.score_gradient`. Example: `mask.scatter_add %g, @tab[%h] : f32[i64]`.
  }];
  let arguments = (ins F32:$value, FlatSymbolRefAttr:$capture, Variadic<Mask_Int>:$indices);
  let assemblyFormat = "$value `,` $capture `[` $indices `]` attr-dict `:` type($value) `[` type($indices) `]`";
}

def Mask_AttentionOp : Mask_Op<"attention", [Symbol, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "an entry point: a mask, a score function and how scores become weights";
  let description = [{
    Without `mask` every pair attends; without `score` scores stay as they are. `sink` names a float capture of shape
    [H]. `scale` multiplies the dot products; the default is 1 / sqrt(head size). `no_softmax` makes O the plain sum of
    score * V.
    Example: `mask.attention @main mask(@main.mask) score(@main.score) sink(@sinks)`.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, OptionalAttr<FlatSymbolRefAttr>:$mask,
                       OptionalAttr<FlatSymbolRefAttr>:$score, OptionalAttr<FlatSymbolRefAttr>:$sink,
                       OptionalAttr<F32Attr>:$scale, UnitAttr:$no_softmax);
  let assemblyFormat = [{
    $sym_name (`mask` `(` $mask^ `)`)? (`score` `(` $score^ `)`)? (`sink` `(` $sink^ `)`)? (`scale` `(` $scale^ `)`)?
    (`no_softmax` $no_softmax^)? attr-dict
  }];
}

#endif
