// What a well-formed program in the `mask` dialect is: registration, verifiers, and the text form of its functions.
// How operations fold is MaskFolds.cpp's; how they are rewritten, MaskCanonicalization.cpp's.
#include "dialect/Mask/MaskDialect.h"

#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;

namespace cpflex::mask {

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

Type elementTypeOf(Type type) {
  if (auto interval = llvm::dyn_cast<IntervalType>(type))
    return interval.getElement();
  return type;
}

Type withIntervalLike(Type element, Type like) {
  return llvm::isa<IntervalType>(like) ? IntervalType::get(element.getContext(), element) : element;
}

Type comparisonResultType(Type operandType) {
  return withIntervalLike(IntegerType::get(operandType.getContext(), 1), operandType);
}

static bool isValueType(Type type) {
  return type.isInteger(1) || type.isSignlessInteger(32) || type.isSignlessInteger(64) || type.isUnsignedInteger(32) ||
         type.isF32();
}

static bool isElementType(Type type) {
  auto integer = llvm::dyn_cast<IntegerType>(type);
  if (!integer)
    return type.isF16() || type.isBF16() || type.isF32();
  unsigned width = integer.getWidth();
  return (width == 1 && integer.isSignless()) ||
         (!integer.isSigned() && (width == 8 || width == 16 || width == 32 || width == 64));
}

LogicalResult IntervalType::verify(function_ref<InFlightDiagnostic()> emitError, Type element) {
  if (isValueType(element))
    return success();
  return emitError() << "an interval of " << element << "; expected i1, i32, i64, ui32 or f32";
}

Type loadedType(Type elementType) {
  MLIRContext *ctx = elementType.getContext();
  if (llvm::isa<FloatType>(elementType))
    return Float32Type::get(ctx);
  if (elementType.isInteger(1))
    return elementType;
  if (elementType.isUnsignedInteger(32))
    return elementType;
  return IntegerType::get(ctx, 64);
}

ValueType toValueType(Type type) {
  type = elementTypeOf(type);
  if (llvm::isa<FloatType>(type))
    return ValueType::Float;
  if (type.isInteger(1))
    return ValueType::Bool;
  return type.isUnsignedInteger(32) ? ValueType::U32 : ValueType::Int;
}

ElementType toElementType(Type type) {
  if (type.isF16())
    return ElementType::F16;
  if (type.isBF16())
    return ElementType::BF16;
  if (type.isF32())
    return ElementType::F32;
  auto integer = llvm::cast<IntegerType>(type);
  switch (integer.getWidth()) {
  case 1: return ElementType::Bool;
  case 8: return integer.isUnsigned() ? ElementType::U8 : ElementType::I8;
  case 16: return integer.isUnsigned() ? ElementType::U16 : ElementType::I16;
  case 32: return integer.isUnsigned() ? ElementType::U32 : ElementType::I32;
  default: return integer.isUnsigned() ? ElementType::U64 : ElementType::I64;
  }
}

ScalarSlot toScalarSlot(Attribute value) {
  if (auto number = llvm::dyn_cast<FloatAttr>(value))
    return static_cast<ScalarSlot>(number.getValue().bitcastToAPInt().getZExtValue());
  auto integer = llvm::cast<IntegerAttr>(value);
  // Bool is 0 or 1, u32 its value, ints keep their sign.
  bool isSigned = !integer.getType().isInteger(1) && !integer.getType().isUnsignedInteger();
  return isSigned ? integer.getValue().getSExtValue() : static_cast<ScalarSlot>(integer.getValue().getZExtValue());
}

Type toType(MLIRContext *ctx, ElementType type) {
  auto signless = [&](unsigned width) { return IntegerType::get(ctx, width); };
  auto unsignedOf = [&](unsigned width) { return IntegerType::get(ctx, width, IntegerType::Unsigned); };
  switch (type) {
  case ElementType::Bool: return signless(1);
  case ElementType::I8: return signless(8);
  case ElementType::I16: return signless(16);
  case ElementType::I32: return signless(32);
  case ElementType::I64: return signless(64);
  case ElementType::U8: return unsignedOf(8);
  case ElementType::U16: return unsignedOf(16);
  case ElementType::U32: return unsignedOf(32);
  case ElementType::U64: return unsignedOf(64);
  case ElementType::F16: return Float16Type::get(ctx);
  case ElementType::BF16: return BFloat16Type::get(ctx);
  case ElementType::F32: return Float32Type::get(ctx);
  }
  return {};
}

//===----------------------------------------------------------------------===//
// Expressions
//===----------------------------------------------------------------------===//

LogicalResult verifyTableOperation(mlir::Operation *op) {
  Operation entry = llvm::cast<TableOpInterface>(op).getTableOperation();
  StringRef domains;
  switch (entry) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, operandDomains)                                        \
  case Operation::Enumerator: domains = operandDomains; break;
#include "runtime/contract/Operations.def"
  default: break;
  }
  bool isInterval = llvm::isa<IntervalType>(op->getResult(0).getType());
  for (auto [index, type] : llvm::enumerate(op->getOperandTypes())) {
    if (llvm::isa<IntervalType>(type) != isInterval)
      return op->emitOpError("mixes intervals with single values");
    if (entry == Operation::Select && index == 0)
      continue;
    char letter = "BIUF"[static_cast<int>(toValueType(type))];
    if (!domains.contains(letter))
      return op->emitOpError("is not defined for ") << type;
  }
  return success();
}

static ParseResult parseConstantValue(OpAsmParser &parser, TypedAttr &value, Type &result) {
  bool isInterval = succeeded(parser.parseOptionalKeyword("interval"));
  SMLoc loc = parser.getCurrentLocation();
  Attribute attribute;
  if (parser.parseAttribute(attribute))
    return failure();
  value = llvm::dyn_cast<TypedAttr>(attribute);
  if (!value || !isValueType(value.getType()))
    return parser.emitError(loc, "a constant of another kind; expected a number or a bool with its type");
  result = isInterval ? IntervalType::get(parser.getContext(), value.getType()) : value.getType();
  return success();
}

static void printConstantValue(OpAsmPrinter &printer, ConstantOp op, TypedAttr value, Type result) {
  if (llvm::isa<IntervalType>(result))
    printer << "interval ";
  printer << value;
}

LogicalResult ConstantOp::verify() {
  if (getValue().getType() != elementTypeOf(getType()))
    return emitOpError("of type ") << getValue().getType() << " gives " << getType();
  return success();
}

/// The declaration that `name` refers to, or null after a diagnostic.
template <typename DeclarationOp>
static DeclarationOp declarationOf(mlir::Operation *op, SymbolTableCollection &symbols, FlatSymbolRefAttr name,
                                   StringRef kind) {
  auto declaration = symbols.lookupNearestSymbolFrom<DeclarationOp>(op, name);
  if (!declaration)
    op->emitOpError("names ") << name << ", which is no " << kind;
  return declaration;
}

LogicalResult ParamValueOp::verifySymbolUses(SymbolTableCollection &symbols) {
  auto param = declarationOf<ParamOp>(*this, symbols, getParamAttr(), "mask.param");
  if (!param)
    return failure();
  Type type = elementTypeOf(getType());
  bool isNarrowed = type.isSignlessInteger(32) && param.getType().isSignlessInteger(64);
  if (type != param.getType() && !isNarrowed)
    return emitOpError("has type ") << getType() << "; the param has type " << param.getType();
  return success();
}

/// Checks the number and the types of a load's or scatter's indices.
static LogicalResult verifyIndices(mlir::Operation *op, CaptureOp capture, ValueRange indices) {
  if (indices.size() != capture.getDims().size())
    return op->emitOpError("has ") << indices.size() << " indices; '" << capture.getSymName() << "' has "
                                   << capture.getDims().size() << " dimensions";
  for (Value index : indices)
    if (toValueType(index.getType()) != ValueType::Int)
      return op->emitOpError("has an index of type ") << index.getType() << "; expected an int";
  return success();
}

LogicalResult LoadOp::verifySymbolUses(SymbolTableCollection &symbols) {
  auto capture = declarationOf<CaptureOp>(*this, symbols, getCaptureAttr(), "mask.capture");
  if (!capture || failed(verifyIndices(*this, capture, getIndices())))
    return failure();
  bool isInterval = llvm::isa<IntervalType>(getType());
  for (Value index : getIndices())
    if (llvm::isa<IntervalType>(index.getType()) != isInterval)
      return emitOpError("mixes intervals with single values");
  Type type = elementTypeOf(getType());
  Type expected = loadedType(capture.getElementType());
  bool isNarrowed = type.isSignlessInteger(32) && expected.isSignlessInteger(64);
  if (type != expected && !isNarrowed)
    return emitOpError("gives ") << getType() << "; an array of " << capture.getElementType() << " gives " << expected;
  return success();
}

LogicalResult ScatterAddOp::verifySymbolUses(SymbolTableCollection &symbols) {
  if (!(*this)->getParentOfType<ScoreGradientOp>())
    return emitOpError("outside of a mask.score_gradient");
  auto capture = declarationOf<CaptureOp>(*this, symbols, getCaptureAttr(), "mask.capture");
  if (!capture || failed(verifyIndices(*this, capture, getIndices())))
    return failure();
  if (!capture->hasAttr("grad"))
    return emitOpError("adds to '") << capture.getSymName() << "', which is not declared with grad";
  return success();
}

void YieldOp::build(OpBuilder &, OperationState &) {}

LogicalResult ReduceOp::verify() {
  Block &body = getBody().front();
  if (body.getNumArguments() != 1 || body.getArgument(0).getType() != getCount().getType())
    return emitOpError("has a body with other arguments than one index of the count's type");
  auto yield = llvm::cast<YieldOp>(body.getTerminator());
  bool isVoid = yield.getValues().empty();
  if (isVoid || yield.getValues().size() != 1 || yield.getValues().front().getType() != getType())
    return emitOpError("has a body that does not yield one value of the result's type ") << getType();
  bool isBoolKind = getKind() == ReductionKind::Any || getKind() == ReductionKind::All;
  if (isBoolKind != (toValueType(getType()) == ValueType::Bool))
    return emitOpError("combines ") << getType() << " by '" << stringifyReductionKind(getKind())
                                    << "'; expected any or all of bools, or sum, min or max of numbers";
  if (toValueType(getCount().getType()) != ValueType::Int)
    return emitOpError("has a count of type ") << getCount().getType() << "; expected an int";
  return success();
}

//===----------------------------------------------------------------------===//
// Declarations, functions and entry points
//===----------------------------------------------------------------------===//

LogicalResult CaptureOp::verify() {
  if (!isElementType(getElementType()))
    return emitOpError("has elements of ")
           << getElementType() << "; expected i1, i8 to i64, ui8 to ui64, f16, bf16 or f32";
  if (getDims().size() > static_cast<size_t>(kMaxCaptureRank))
    return emitOpError("has ") << getDims().size() << " dimensions; expected at most " << kMaxCaptureRank;
  bool isFloat = llvm::isa<FloatType>(getElementType());
  if ((*this)->hasAttr("grad") && !isFloat)
    return emitOpError("is declared with grad; expected float elements");
  for (StringRef fact : {"lo", "hi"})
    if (mlir::Attribute value = (*this)->getAttr(fact))
      if (auto integer = llvm::dyn_cast<IntegerAttr>(value); !integer || !integer.getType().isInteger(64) || isFloat)
        return emitOpError("has '") << fact << "' = " << value << "; expected an i64 for an array of ints";
  return success();
}

LogicalResult ParamOp::verify() {
  if (!isValueType(getType()) || getType().isSignlessInteger(32))
    return emitOpError("has type ") << getType() << "; expected i1, i64, ui32 or f32";
  if (auto value = getDefaultValueAttr(); value && value.getType() != getType())
    return emitOpError("has type ") << getType() << " and a default value of type " << value.getType();
  return success();
}

ParseResult parseFunction(OpAsmParser &parser, OperationState &result, StringAttr functionTypeName,
                          StringAttr argAttrsName, StringAttr resAttrsName) {
  auto toFunctionType = [](Builder &builder, ArrayRef<Type> inputs, ArrayRef<Type> results,
                           function_interface_impl::VariadicFlag,
                           std::string &) -> Type { return builder.getFunctionType(inputs, results); };
  return function_interface_impl::parseFunctionOp(parser, result, /*allowVariadic=*/false, functionTypeName,
                                                  toFunctionType, argAttrsName, resAttrsName);
}

void nameArguments(Region &body, OpAsmSetValueNameFn setName) {
  constexpr StringRef kNames[] = {"kv", "q", "h", "b", "s", "gradient"};
  if (!body.empty())
    for (auto [argument, name] : llvm::zip(llvm::reverse(body.front().getArguments()), kNames))
      setName(argument, name);
}

static bool isCoordinateType(Type type) { return type.isSignlessInteger(64) || type.isSignlessInteger(32); }

/// Checks a function's type, which `isExpected` judges and `expected` spells, and that its body yields its result.
static LogicalResult verifyFunction(FunctionOpInterface function, bool isExpected, StringRef expected) {
  auto type = llvm::cast<FunctionType>(function.getFunctionType());
  if (!isExpected)
    return function.emitOpError("has type ") << type << "; expected " << expected;
  Region &body = function.getFunctionBody();
  auto yield = llvm::dyn_cast_or_null<YieldOp>(body.empty() || body.front().empty() ? nullptr : &body.front().back());
  if (!yield || yield.getValues().getTypes() != type.getResults())
    return function.emitOpError("has a body that does not yield one value of type ") << type.getResults();
  return success();
}

/// Whether `type` takes `numFloats` floats and four coordinates and gives a value that `isResult` accepts.
static bool isFunctionOf(FunctionType type, unsigned numFloats, function_ref<bool(Type)> isCoordinate,
                         function_ref<bool(Type)> isResult) {
  constexpr unsigned kNumCoordinates = 4;
  if (type.getNumInputs() != numFloats + kNumCoordinates || type.getNumResults() != 1)
    return false;
  return llvm::all_of(type.getInputs().take_front(numFloats), [](Type input) { return input.isF32(); }) &&
         llvm::all_of(type.getInputs().drop_front(numFloats), isCoordinate) && isResult(type.getResult(0));
}

LogicalResult PredicateOp::verify() {
  return verifyFunction(
      *this,
      isFunctionOf(getFunctionType(), /*numFloats=*/0, isCoordinateType, [](Type type) { return type.isInteger(1); }),
      "(i64, i64, i64, i64) -> i1");
}

LogicalResult ScoreOp::verify() {
  return verifyFunction(
      *this, isFunctionOf(getFunctionType(), /*numFloats=*/1, isCoordinateType, [](Type type) { return type.isF32(); }),
      "(f32, i64, i64, i64, i64) -> f32");
}

LogicalResult ScoreGradientOp::verify() {
  return verifyFunction(
      *this, isFunctionOf(getFunctionType(), /*numFloats=*/2, isCoordinateType, [](Type type) { return type.isF32(); }),
      "(f32, f32, i64, i64, i64, i64) -> f32");
}

LogicalResult ClassifierOp::verify() {
  auto isIntervalOf = [](Type type, unsigned width) {
    return llvm::isa<IntervalType>(type) && elementTypeOf(type).isSignlessInteger(width);
  };
  return verifyFunction(*this,
                        isFunctionOf(
                            getFunctionType(), /*numFloats=*/0,
                            [&](Type type) { return isIntervalOf(type, /*width=*/64); },
                            [&](Type type) { return isIntervalOf(type, /*width=*/1); }),
                        "four intervals of i64 to an interval of i1");
}

LogicalResult AttentionOp::verifySymbolUses(SymbolTableCollection &symbols) {
  if (auto mask = getMaskAttr(); mask && !declarationOf<PredicateOp>(*this, symbols, mask, "mask.predicate"))
    return failure();
  if (auto score = getScoreAttr(); score && !declarationOf<ScoreOp>(*this, symbols, score, "mask.score"))
    return failure();
  if (auto sink = getSinkAttr()) {
    auto capture = declarationOf<CaptureOp>(*this, symbols, sink, "mask.capture");
    if (!capture)
      return failure();
    if (!llvm::isa<FloatType>(capture.getElementType()) || capture.getDims().size() != 1)
      return emitOpError("has the sink '") << capture.getSymName() << "'; expected a float array of one dimension";
  }
  return success();
}

//===----------------------------------------------------------------------===//
// Dialect
//===----------------------------------------------------------------------===//

mlir::Operation *MaskDialect::materializeConstant(OpBuilder &builder, Attribute value, Type type, Location loc) {
  auto typed = llvm::dyn_cast<TypedAttr>(value);
  if (!typed || typed.getType() != elementTypeOf(type))
    return nullptr;
  return ConstantOp::create(builder, loc, type, typed);
}

void MaskDialect::initialize() {
  addTypes<
#define GET_TYPEDEF_LIST
#include "dialect/Mask/MaskTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialect/Mask/MaskOps.cpp.inc"
      >();
}

} // namespace cpflex::mask

#include "dialect/Mask/MaskDialect.cpp.inc"
#include "dialect/Mask/MaskEnums.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "dialect/Mask/MaskInterfaces.cpp.inc"
#include "dialect/Mask/MaskTypes.cpp.inc"
#define GET_OP_CLASSES
#include "dialect/Mask/MaskOps.cpp.inc"
