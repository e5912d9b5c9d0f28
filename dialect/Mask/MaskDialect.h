// The `mask` dialect: its types, operations and the few functions that give its operations their common behaviour.
#pragma once

#include "runtime/contract/Tape.h"

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/PatternMatch.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/ControlFlowInterfaces.h"
#include "mlir/Interfaces/FunctionImplementation.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "mlir/Interfaces/InferTypeOpInterface.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "dialect/Mask/MaskDialect.h.inc"
#include "dialect/Mask/MaskEnums.h.inc"
#define GET_TYPEDEF_CLASSES
#include "dialect/Mask/MaskInterfaces.h.inc"
#include "dialect/Mask/MaskTypes.h.inc"
#define GET_OP_CLASSES
#include "dialect/Mask/MaskOps.h.inc"

namespace cpflex::mask {

/// Folds an entry of the table of operations over constant operands, null when some operand is unknown. The meaning is
/// that of runtime/contract/Operations.h.
mlir::OpFoldResult foldTableOperation(mlir::Operation *op, llvm::ArrayRef<mlir::Attribute> operands);

/// Whether the operand types are among the table's domains and all operands and results are intervals or none is.
llvm::LogicalResult verifyTableOperation(mlir::Operation *op);

/// `i1`, or the interval of `i1` when `operandType` is an interval.
mlir::Type comparisonResultType(mlir::Type operandType);

/// Parses `@name(%a: type, ...) -> type attributes { body }`, shared by the dialect's functions.
mlir::ParseResult parseFunction(mlir::OpAsmParser &parser, mlir::OperationState &result,
                                mlir::StringAttr functionTypeName, mlir::StringAttr argAttrsName,
                                mlir::StringAttr resAttrsName);

/// Names the arguments of a function as the dialect's text form does: b, h, q, kv, before them s, before that gradient.
void nameArguments(mlir::Region &body, mlir::OpAsmSetValueNameFn setName);

/// `type`, or what an interval type is an interval of.
mlir::Type elementTypeOf(mlir::Type type);

/// `element`, or its interval when `like` is an interval.
mlir::Type withIntervalLike(mlir::Type element, mlir::Type like);

/// The value type that a load from an array of `elementType` gives: i1, i64, ui32 or f32.
mlir::Type loadedType(mlir::Type elementType);

/// The contract's names for the dialect's types. The type must be one of a value or of a captured element.
ValueType toValueType(mlir::Type type);
ElementType toElementType(mlir::Type type);

/// A constant as the slot of a runtime argument or of a tape: floats as their f32 bits.
ScalarSlot toScalarSlot(mlir::Attribute value);

/// The dialect's type for an element type of a captured array: i1, i8..i64, ui8..ui64, f16, bf16, f32.
mlir::Type toType(mlir::MLIRContext *ctx, ElementType type);

} // namespace cpflex::mask
