// Operations of the `mask` dialect in the LLVM dialect. Operations whose meaning is one instruction are that
// instruction; all others call the function of Operations.cpp named `cpflex_<mnemonic>_<type>`.
#include "lib/CodeGen/Host/ExpressionEmitter.h"

#include "lib/Analysis/ProgramSignature.h"

#include "llvm/ADT/Twine.h"

#include <cstddef>

using namespace mlir;

namespace cpflex {

mlir::Type hostType(mlir::Type type) {
  if (type.isUnsignedInteger(32))
    return IntegerType::get(type.getContext(), 32);
  if (type.isSignlessInteger(1) || type.isSignlessInteger(32) || type.isSignlessInteger(64) || type.isF32())
    return type;
  return {};
}

/// The last part of the names in Operations.cpp.
static llvm::StringRef typeSuffix(mlir::Type type) {
  if (type.isF32())
    return "f32";
  if (type.isUnsignedInteger(32))
    return "u32";
  return type.isSignlessInteger(32) ? "i32" : "i64";
}

static llvm::StringRef mnemonicOf(Operation operation) {
  switch (operation) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  case Operation::Enumerator: return #mnemonic;
#include "runtime/contract/Operations.def"
  default: return "";
  }
}

ExpressionEmitter::ExpressionEmitter(OpBuilder &builder, ModuleOp module, const Signature &signature,
                                     mlir::Value bindings)
    : builder(builder), module(module), signature(signature), bindings(bindings) {}

mlir::Value ExpressionEmitter::constantInt(Location loc, mlir::Type type, int64_t value) {
  return LLVM::ConstantOp::create(builder, loc, type, builder.getIntegerAttr(type, value));
}

void ExpressionEmitter::annotate(mlir::Operation *access) {
  if (!accessGroup)
    return;
  if (auto group = dyn_cast<LLVM::AccessGroupOpInterface>(access))
    group.setAccessGroups(builder.getArrayAttr({accessGroup}));
}

mlir::Value ExpressionEmitter::readField(mlir::Value base, int64_t offset, mlir::Type type, Location loc) {
  auto pointerType = LLVM::LLVMPointerType::get(builder.getContext());
  mlir::Value address = LLVM::GEPOp::create(builder, loc, pointerType, builder.getI8Type(), base,
                                            ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(offset)});
  auto load = LLVM::LoadOp::create(builder, loc, type, address);
  load.setInvariant(true);
  return load;
}

LogicalResult ExpressionEmitter::readBindings(Block &body) {
  auto pointerType = LLVM::LLVMPointerType::get(builder.getContext());
  mlir::Type i64 = builder.getI64Type();
  Location loc = builder.getUnknownLoc();
  auto readCapture = [&](llvm::StringRef name) {
    if (captures.count(name))
      return;
    int slot = captureSlot(signature, name);
    const CaptureDeclaration &declaration = signature.captures[slot];
    mlir::Value views = readField(bindings, offsetof(Bindings, captures), pointerType, loc);
    int64_t view = slot * static_cast<int64_t>(sizeof(CaptureView));
    HostCapture &result = captures[name];
    result.type = declaration.type;
    result.data = readField(views, view + offsetof(CaptureView, data), pointerType, loc);
    for (size_t axis = 0; axis < declaration.dims.size(); ++axis) {
      int64_t member = axis * sizeof(int64_t);
      result.shape.push_back(readField(views, view + offsetof(CaptureView, shape) + member, i64, loc));
      result.strides.push_back(readField(views, view + offsetof(CaptureView, strides) + member, i64, loc));
    }
  };
  auto readSlot = [&](llvm::StringMap<mlir::Value> &slots, llvm::StringRef name, int slot, size_t table) {
    if (slots.count(name))
      return;
    mlir::Value base = readField(bindings, table, pointerType, loc);
    slots[name] = readField(base, slot * static_cast<int64_t>(sizeof(int64_t)), i64, loc);
  };
  body.walk([&](mlir::Operation *op) {
    if (auto load = dyn_cast<mask::LoadOp>(op))
      readCapture(load.getCapture());
    else if (auto scatter = dyn_cast<mask::ScatterAddOp>(op))
      readCapture(scatter.getCapture());
    else if (auto param = dyn_cast<mask::ParamValueOp>(op))
      readSlot(params, param.getParam(), paramSlot(signature, param.getParam()), offsetof(Bindings, params));
    else if (auto dim = dyn_cast<mask::DimOp>(op))
      readSlot(dims, dim.getName(), dimSlot(signature, dim.getName()), offsetof(Bindings, dims));
  });
  return success();
}

mlir::Value ExpressionEmitter::coordinate(mlir::Value position, mlir::Type type, Location loc) {
  if (hostType(type).isInteger(32))
    return LLVM::TruncOp::create(builder, loc, builder.getI32Type(), position);
  return position;
}

LogicalResult ExpressionEmitter::emit(mlir::Operation *op) {
  assert(hostType(op->getResult(0).getType()) && "predicates and scores hold single values");
  Location loc = op->getLoc();
  FailureOr<mlir::Value> result = failure();
  if (isa<mask::TableOpInterface>(op)) {
    result = emitTableOperation(op);
  } else if (auto constant = dyn_cast<mask::ConstantOp>(op)) {
    result = emitConstant(constant);
  } else if (auto load = dyn_cast<mask::LoadOp>(op)) {
    result = emitLoad(load);
  } else if (auto reduce = dyn_cast<mask::ReduceOp>(op)) {
    result = emitReduce(reduce);
  } else if (auto dim = dyn_cast<mask::DimOp>(op)) {
    result = coordinate(dims[dim.getName()], dim.getType(), loc);
  } else {
    auto param = cast<mask::ParamValueOp>(op);
    mlir::Value slot = params[param.getParam()];
    mlir::Type type = hostType(param.getType());
    if (type.isInteger(1)) {
      result = mlir::Value(
          LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::ne, slot, constantInt(loc, slot.getType(), 0)));
    } else if (type.isF32()) {
      mlir::Value bits = LLVM::TruncOp::create(builder, loc, builder.getI32Type(), slot);
      result = mlir::Value(LLVM::BitcastOp::create(builder, loc, type, bits));
    } else {
      result = coordinate(slot, type, loc);
    }
  }
  if (failed(result))
    return failure();
  values[op->getResult(0)] = *result;
  return success();
}

FailureOr<mlir::Value> ExpressionEmitter::emitConstant(mask::ConstantOp op) {
  mlir::Type type = hostType(op.getType());
  if (auto integer = dyn_cast<IntegerAttr>(op.getValue()))
    return mlir::Value(
        LLVM::ConstantOp::create(builder, op.getLoc(), type, IntegerAttr::get(type, integer.getValue())));
  return mlir::Value(LLVM::ConstantOp::create(builder, op.getLoc(), type, op.getValue()));
}

//===----------------------------------------------------------------------===//
// The table of operations
//===----------------------------------------------------------------------===//

mlir::Value ExpressionEmitter::callOperation(llvm::StringRef mnemonic, mlir::Type operandType, mlir::Type resultType,
                                             ValueRange operands, Location loc) {
  std::string name = ("cpflex_" + mnemonic + "_" + typeSuffix(operandType)).str();
  auto hostModule = builder.getBlock()->getParent()->getParentOfType<ModuleOp>();
  if (!hostModule.lookupSymbol(name)) {
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPointToStart(hostModule.getBody());
    SmallVector<mlir::Type> types(operands.getTypes());
    LLVM::LLVMFuncOp::create(builder, builder.getUnknownLoc(), name, LLVM::LLVMFunctionType::get(resultType, types));
  }
  return LLVM::CallOp::create(builder, loc, TypeRange{resultType}, name, operands).getResult();
}

mlir::Value ExpressionEmitter::emitCompare(Operation operation, mlir::Type operandType, mlir::Value lhs,
                                           mlir::Value rhs, Location loc) {
  if (operandType.isF32()) {
    LLVM::FCmpPredicate predicate;
    switch (operation) {
    case Operation::Eq: predicate = LLVM::FCmpPredicate::oeq; break;
    case Operation::Ne: predicate = LLVM::FCmpPredicate::une; break;
    case Operation::Lt: predicate = LLVM::FCmpPredicate::olt; break;
    case Operation::Le: predicate = LLVM::FCmpPredicate::ole; break;
    case Operation::Gt: predicate = LLVM::FCmpPredicate::ogt; break;
    default: predicate = LLVM::FCmpPredicate::oge; break;
    }
    return LLVM::FCmpOp::create(builder, loc, predicate, lhs, rhs);
  }
  bool isUnsigned = operandType.isUnsignedInteger(32);
  LLVM::ICmpPredicate predicate;
  switch (operation) {
  case Operation::Eq: predicate = LLVM::ICmpPredicate::eq; break;
  case Operation::Ne: predicate = LLVM::ICmpPredicate::ne; break;
  case Operation::Lt: predicate = isUnsigned ? LLVM::ICmpPredicate::ult : LLVM::ICmpPredicate::slt; break;
  case Operation::Le: predicate = isUnsigned ? LLVM::ICmpPredicate::ule : LLVM::ICmpPredicate::sle; break;
  case Operation::Gt: predicate = isUnsigned ? LLVM::ICmpPredicate::ugt : LLVM::ICmpPredicate::sgt; break;
  default: predicate = isUnsigned ? LLVM::ICmpPredicate::uge : LLVM::ICmpPredicate::sge; break;
  }
  return LLVM::ICmpOp::create(builder, loc, predicate, lhs, rhs);
}

mlir::Value ExpressionEmitter::emitCast(Operation operation, mlir::Type from, mlir::Type to, mlir::Value value,
                                        Location loc) {
  mlir::Type result = hostType(to);
  if (operation == Operation::ToBool) {
    if (from.isInteger(1))
      return value;
    if (from.isF32()) {
      mlir::Value zero = LLVM::ConstantOp::create(builder, loc, from, builder.getF32FloatAttr(0.0f));
      return LLVM::FCmpOp::create(builder, loc, LLVM::FCmpPredicate::une, value, zero);
    }
    return LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::ne, value, constantInt(loc, value.getType(), 0));
  }
  bool isUnsigned = from.isInteger(1) || from.isUnsignedInteger(32);
  if (operation == Operation::ToFloat) {
    if (from.isF32())
      return value;
    return isUnsigned ? LLVM::UIToFPOp::create(builder, loc, result, value).getResult()
                      : LLVM::SIToFPOp::create(builder, loc, result, value).getResult();
  }
  // To an integer: a float goes through its 64-bit meaning.
  if (from.isF32())
    value = callOperation("to_int", from, builder.getI64Type(), value, loc);
  unsigned width = value.getType().getIntOrFloatBitWidth();
  if (width == result.getIntOrFloatBitWidth())
    return value;
  if (width > result.getIntOrFloatBitWidth())
    return LLVM::TruncOp::create(builder, loc, result, value);
  return isUnsigned ? LLVM::ZExtOp::create(builder, loc, result, value).getResult()
                    : LLVM::SExtOp::create(builder, loc, result, value).getResult();
}

mlir::Value ExpressionEmitter::emitDivisionByPowerOfTwo(mlir::Operation *op) {
  auto divisor = op->getOperand(1).getDefiningOp<mask::ConstantOp>();
  auto value = divisor ? dyn_cast<IntegerAttr>(divisor.getValue()) : IntegerAttr();
  if (!value || !value.getValue().isPowerOf2() || value.getValue().isNegative())
    return {};
  Location loc = op->getLoc();
  mlir::Value lhs = lookup(op->getOperand(0));
  if (isa<mask::ModOp>(op))
    return LLVM::AndOp::create(builder, loc, lhs,
                               constantInt(loc, lhs.getType(), (value.getValue() - 1).getZExtValue()));
  mlir::Value shift = constantInt(loc, lhs.getType(), value.getValue().logBase2());
  if (op->getOperand(0).getType().isUnsignedInteger())
    return LLVM::LShrOp::create(builder, loc, lhs, shift);
  return LLVM::AShrOp::create(builder, loc, lhs, shift);
}

FailureOr<mlir::Value> ExpressionEmitter::emitTableOperation(mlir::Operation *op) {
  Location loc = op->getLoc();
  Operation operation = cast<mask::TableOpInterface>(op).getTableOperation();
  SmallVector<mlir::Value> operands;
  for (mlir::Value operand : op->getOperands())
    operands.push_back(lookup(operand));
  mlir::Type type = op->getOperand(0).getType();
  mlir::Type resultType = op->getResult(0).getType();
  bool isFloat = type.isF32(), isUnsigned = type.isUnsignedInteger(32);
  mlir::Value lhs = operands[0], rhs = operands.size() > 1 ? operands[1] : mlir::Value();

  switch (operation) {
  case Operation::Add:
    return isFloat ? LLVM::FAddOp::create(builder, loc, lhs, rhs).getResult()
                   : LLVM::AddOp::create(builder, loc, lhs, rhs).getResult();
  case Operation::Sub:
    return isFloat ? LLVM::FSubOp::create(builder, loc, lhs, rhs).getResult()
                   : LLVM::SubOp::create(builder, loc, lhs, rhs).getResult();
  case Operation::Mul:
    return isFloat ? LLVM::FMulOp::create(builder, loc, lhs, rhs).getResult()
                   : LLVM::MulOp::create(builder, loc, lhs, rhs).getResult();
  case Operation::Neg:
    if (isFloat)
      return LLVM::FNegOp::create(builder, loc, lhs).getResult();
    return LLVM::SubOp::create(builder, loc, constantInt(loc, lhs.getType(), 0), lhs).getResult();
  case Operation::Min:
    if (isFloat)
      break;
    return isUnsigned ? LLVM::UMinOp::create(builder, loc, lhs, rhs).getResult()
                      : LLVM::SMinOp::create(builder, loc, lhs, rhs).getResult();
  case Operation::Max:
    if (isFloat)
      break;
    return isUnsigned ? LLVM::UMaxOp::create(builder, loc, lhs, rhs).getResult()
                      : LLVM::SMaxOp::create(builder, loc, lhs, rhs).getResult();
  case Operation::And: return LLVM::AndOp::create(builder, loc, lhs, rhs).getResult();
  case Operation::Or: return LLVM::OrOp::create(builder, loc, lhs, rhs).getResult();
  case Operation::Xor: return LLVM::XOrOp::create(builder, loc, lhs, rhs).getResult();
  case Operation::Not: return LLVM::XOrOp::create(builder, loc, lhs, constantInt(loc, lhs.getType(), -1)).getResult();
  case Operation::FloorDiv:
  case Operation::Mod:
    if (mlir::Value result = isFloat ? mlir::Value() : emitDivisionByPowerOfTwo(op))
      return result;
    break;
  case Operation::Eq:
  case Operation::Ne:
  case Operation::Lt:
  case Operation::Le:
  case Operation::Gt:
  case Operation::Ge: return emitCompare(operation, type, lhs, rhs, loc);
  case Operation::Select: return LLVM::SelectOp::create(builder, loc, lhs, rhs, operands[2]).getResult();
  case Operation::ToBool:
  case Operation::ToInt:
  case Operation::ToU32:
  case Operation::ToFloat: return emitCast(operation, type, resultType, lhs, loc);
  default: break;
  }
  return callOperation(mnemonicOf(operation), type, hostType(resultType), operands, loc);
}

//===----------------------------------------------------------------------===//
// Loads
//===----------------------------------------------------------------------===//

SmallVector<mlir::Value> ExpressionEmitter::widenedIndices(ValueRange indices, Location loc) {
  SmallVector<mlir::Value> widened;
  for (mlir::Value index : indices)
    widened.push_back(emitCast(Operation::ToInt, index.getType(), builder.getI64Type(), lookup(index), loc));
  return widened;
}

mlir::Value ExpressionEmitter::isInside(const HostCapture &capture, ValueRange indices, Location loc) {
  mlir::Value inside;
  for (auto [axis, index] : llvm::enumerate(indices)) {
    // An index below 0 is a large one when taken as unsigned.
    mlir::Value isBelow = LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::ult, index, capture.shape[axis]);
    inside = inside ? LLVM::AndOp::create(builder, loc, inside, isBelow).getResult() : isBelow;
  }
  return inside ? inside : constantInt(loc, builder.getI1Type(), 1);
}

mlir::Value ExpressionEmitter::stridedOffset(const HostCapture &capture, ValueRange indices, Location loc) {
  mlir::Value offset = constantInt(loc, builder.getI64Type(), 0);
  for (auto [axis, index] : llvm::enumerate(indices))
    offset = LLVM::AddOp::create(builder, loc, offset, LLVM::MulOp::create(builder, loc, index, capture.strides[axis]));
  return offset;
}

mlir::Value ExpressionEmitter::denseOffset(const HostCapture &capture, ValueRange indices, Location loc) {
  mlir::Value zero = constantInt(loc, builder.getI64Type(), 0), offset = zero;
  for (auto [axis, index] : llvm::enumerate(indices)) {
    // An axis that is broadcast has one element of its own.
    mlir::Value isBroadcast = LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::eq, capture.strides[axis], zero);
    mlir::Value product = LLVM::MulOp::create(builder, loc, offset, capture.shape[axis]);
    mlir::Value next = LLVM::AddOp::create(builder, loc, product, index);
    offset = LLVM::SelectOp::create(builder, loc, isBroadcast, offset, next);
  }
  return offset;
}

mlir::Value ExpressionEmitter::emitGuarded(Location loc, mlir::Value condition, mlir::Value otherwise,
                                           llvm::function_ref<mlir::Value()> value) {
  Region *region = builder.getBlock()->getParent();
  Block *before = builder.getBlock();
  Block *taken = builder.createBlock(region, region->end());
  mlir::Value result = value();
  Block *takenEnd = builder.getBlock();
  Block *after = builder.createBlock(region, region->end(), {result.getType()}, {loc});
  builder.setInsertionPointToEnd(takenEnd);
  LLVM::BrOp::create(builder, loc, ValueRange{result}, after);
  builder.setInsertionPointToEnd(before);
  LLVM::CondBrOp::create(builder, loc, condition, taken, ValueRange{}, after, ValueRange{otherwise});
  builder.setInsertionPointToStart(after);
  return after->getArgument(0);
}

/// An element as it lies in memory.
static mlir::Type storageType(OpBuilder &builder, ElementType type) {
  if (type == ElementType::F32)
    return builder.getF32Type();
  return builder.getIntegerType(8 * sizeInBytes(type));
}

mlir::Value ExpressionEmitter::convertElement(ElementType type, mlir::Value raw, Location loc) {
  switch (type) {
  case ElementType::Bool:
    return LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::ne, raw, constantInt(loc, raw.getType(), 0));
  case ElementType::I8:
  case ElementType::I16:
  case ElementType::I32: return LLVM::SExtOp::create(builder, loc, builder.getI64Type(), raw);
  case ElementType::U8:
  case ElementType::U16: return LLVM::ZExtOp::create(builder, loc, builder.getI64Type(), raw);
  case ElementType::F16:
  case ElementType::BF16: {
    // Widened first: Operations.cpp takes 32-bit arguments, so that no calling convention extends them.
    mlir::Value bits = LLVM::ZExtOp::create(builder, loc, builder.getI32Type(), raw);
    llvm::StringRef name = type == ElementType::F16 ? "from_f16" : "from_bf16";
    return callOperation(name, builder.getIntegerType(32, /*isSigned=*/false), builder.getF32Type(), bits, loc);
  }
  default: return raw;
  }
}

FailureOr<mlir::Value> ExpressionEmitter::emitLoad(mask::LoadOp op) {
  Location loc = op.getLoc();
  const HostCapture &array = captures[op.getCapture()];
  SmallVector<mlir::Value> indices = widenedIndices(op.getIndices(), loc);
  mlir::Type storage = storageType(builder, array.type);
  auto readElement = [&]() -> mlir::Value {
    auto pointerType = LLVM::LLVMPointerType::get(builder.getContext());
    mlir::Value address =
        LLVM::GEPOp::create(builder, loc, pointerType, storage, array.data,
                            ArrayRef<LLVM::GEPArg>{stridedOffset(array, indices, loc)}, LLVM::GEPNoWrapFlags::inbounds);
    auto load = LLVM::LoadOp::create(builder, loc, storage, address);
    annotate(load);
    return load;
  };
  mlir::Value raw;
  if (indices.empty()) {
    raw = readElement();
  } else {
    mlir::Value zero = LLVM::ConstantOp::create(builder, loc, storage, builder.getZeroAttr(storage));
    raw = emitGuarded(loc, isInside(array, indices, loc), zero, readElement);
  }
  mlir::Value element = convertElement(array.type, raw, loc);
  // A load that was proved to fit in 32 bits.
  if (element.getType().isInteger(64) && hostType(op.getType()).isInteger(32))
    element = LLVM::TruncOp::create(builder, loc, builder.getI32Type(), element);
  return element;
}

//===----------------------------------------------------------------------===//
// Reductions and loops
//===----------------------------------------------------------------------===//

SmallVector<mlir::Value>
ExpressionEmitter::emitLoop(Location loc, mlir::Value count, ValueRange initial, LLVM::LoopAnnotationAttr annotation,
                            llvm::function_ref<SmallVector<mlir::Value>(mlir::Value, ValueRange)> body) {
  Region *region = builder.getBlock()->getParent();
  mlir::Value zero = constantInt(loc, count.getType(), 0);
  SmallVector<mlir::Value> start{zero};
  llvm::append_range(start, initial);
  SmallVector<mlir::Type> types(ValueRange(start).getTypes());
  Block *before = builder.getBlock();
  Block *header = builder.createBlock(region, region->end(), types, SmallVector<Location>(types.size(), loc));
  builder.setInsertionPointToEnd(before);
  LLVM::BrOp::create(builder, loc, start, header);
  builder.setInsertionPointToStart(header);
  mlir::Value index = header->getArgument(0);
  mlir::Value isInRange = LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::slt, index, count);

  Block *bodyBlock = builder.createBlock(region, region->end());
  SmallVector<mlir::Value> next = body(index, header->getArguments().drop_front());
  mlir::Value following = LLVM::AddOp::create(builder, loc, index, constantInt(loc, count.getType(), 1),
                                              LLVM::IntegerOverflowFlags::nsw | LLVM::IntegerOverflowFlags::nuw);
  next.insert(next.begin(), following);
  auto latch = LLVM::BrOp::create(builder, loc, next, header);
  if (annotation)
    latch.setLoopAnnotationAttr(annotation);

  Block *exit = builder.createBlock(region, region->end());
  builder.setInsertionPointToEnd(header);
  LLVM::CondBrOp::create(builder, loc, isInRange, bodyBlock, ValueRange{}, exit, ValueRange{});
  builder.setInsertionPointToStart(exit);
  return SmallVector<mlir::Value>(header->getArguments().drop_front());
}

/// The value that leaves every element unchanged when combined with it.
static TypedAttr neutralElement(OpBuilder &builder, mask::ReductionKind kind, mlir::Type declared) {
  mlir::Type type = hostType(declared);
  if (kind == mask::ReductionKind::Any || kind == mask::ReductionKind::All)
    return builder.getIntegerAttr(type, kind == mask::ReductionKind::All ? 1 : 0);
  if (kind == mask::ReductionKind::Sum && type.isF32())
    return builder.getFloatAttr(type, llvm::APFloat::getZero(llvm::APFloat::IEEEsingle(), /*Negative=*/true));
  if (kind == mask::ReductionKind::Sum)
    return cast<TypedAttr>(builder.getZeroAttr(type));
  bool isMin = kind == mask::ReductionKind::Min;
  if (auto floatType = dyn_cast<FloatType>(type))
    return builder.getFloatAttr(type, llvm::APFloat::getInf(floatType.getFloatSemantics(), /*Negative=*/!isMin));
  unsigned width = type.getIntOrFloatBitWidth();
  bool isUnsigned = declared.isUnsignedInteger();
  llvm::APInt value = isMin ? (isUnsigned ? llvm::APInt::getMaxValue(width) : llvm::APInt::getSignedMaxValue(width))
                            : (isUnsigned ? llvm::APInt::getMinValue(width) : llvm::APInt::getSignedMinValue(width));
  return builder.getIntegerAttr(type, value);
}

FailureOr<mlir::Value> ExpressionEmitter::emitReduce(mask::ReduceOp op) {
  Location loc = op.getLoc();
  mask::ReductionKind kind = op.getKind();
  mlir::Type declared = op.getType(), type = hostType(declared);
  mlir::Type countType = op.getCount().getType();
  mlir::Value count = emitCast(Operation::ToInt, countType, builder.getI64Type(), lookup(op.getCount()), loc);
  mlir::Value initial = LLVM::ConstantOp::create(builder, loc, type, neutralElement(builder, kind, declared));
  LogicalResult status = success();
  auto turn = [&](mlir::Value index, ValueRange carried) -> SmallVector<mlir::Value> {
    Block &block = op.getBody().front();
    map(block.getArgument(0), coordinate(index, block.getArgument(0).getType(), loc));
    for (mlir::Operation &inner : block.without_terminator())
      if (succeeded(status) && !isa<mask::ScatterAddOp>(inner))
        status = emit(&inner);
    if (failed(status))
      return {initial};
    mlir::Value element = lookup(block.getTerminator()->getOperand(0)), total = carried[0];
    switch (kind) {
    case mask::ReductionKind::Any: return {LLVM::OrOp::create(builder, loc, total, element)};
    case mask::ReductionKind::All: return {LLVM::AndOp::create(builder, loc, total, element)};
    case mask::ReductionKind::Sum:
      return {type.isF32() ? LLVM::FAddOp::create(builder, loc, total, element).getResult()
                           : LLVM::AddOp::create(builder, loc, total, element).getResult()};
    case mask::ReductionKind::Min:
    case mask::ReductionKind::Max: {
      bool isMin = kind == mask::ReductionKind::Min;
      if (type.isF32())
        return {callOperation(isMin ? "min" : "max", declared, type, {total, element}, loc)};
      if (declared.isUnsignedInteger())
        return {isMin ? LLVM::UMinOp::create(builder, loc, total, element).getResult()
                      : LLVM::UMaxOp::create(builder, loc, total, element).getResult()};
      return {isMin ? LLVM::SMinOp::create(builder, loc, total, element).getResult()
                    : LLVM::SMaxOp::create(builder, loc, total, element).getResult()};
    }
    }
    return {total};
  };
  mlir::Value result = emitLoop(loc, count, initial, /*annotation=*/{}, turn)[0];
  if (failed(status))
    return failure();
  bool isExtreme = kind == mask::ReductionKind::Min || kind == mask::ReductionKind::Max;
  if (!isExtreme && !type.isF32())
    return result;
  // The least of nothing is 0; a float sum starts at -0, which leaves every first element as it is.
  mlir::Value isEmpty =
      LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::sle, count, constantInt(loc, count.getType(), 0));
  mlir::Value zero = LLVM::ConstantOp::create(builder, loc, type, builder.getZeroAttr(type));
  return LLVM::SelectOp::create(builder, loc, isEmpty, zero, result).getResult();
}

} // namespace cpflex
