// Emits operations of the `mask` dialect: the table of operations with constants folded, leaves and
// reductions.
#include "lib/Frontend/ImporterState.h"

#include "dialect/Mask/MaskDialect.h"

#include <fmt/format.h>

namespace cpflex {

namespace {

struct OperationEntry {
  const char *opName;
  const char *mnemonic;
};
constexpr OperationEntry kOperationNames[] = {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains) {"mask." #mnemonic, #mnemonic},
#include "runtime/contract/Operations.def"
};

bool isComparison(Operation operation) { return operation >= Operation::Eq && operation <= Operation::Ge; }

ValueType resultType(Operation operation, ValueType operandType) {
  if (isComparison(operation))
    return ValueType::Bool;
  switch (operation) {
  case Operation::ToBool: return ValueType::Bool;
  case Operation::ToInt: return ValueType::Int;
  case Operation::ToU32: return ValueType::U32;
  case Operation::ToFloat: return ValueType::Float;
  default: return operandType;
  }
}

} // namespace

// A tile that is full by the classifier's arithmetic must be full by the kernel's: only operations
// that every target rounds alike are let into masks.
bool Importer::checkMaskFloat(Operation operation, ValueType type, SourceRange range) {
  if (!isInMask_ || type != ValueType::Float || isComparison(operation))
    return true;
  switch (operation) {
  case Operation::Add:
  case Operation::Sub:
  case Operation::Mul:
  case Operation::Div:
  case Operation::Neg:
  case Operation::Abs:
  case Operation::Min:
  case Operation::Max:
  case Operation::Select:
  case Operation::ToFloat: return true;
  default:
    error(range, fmt::format("'{}' of a float in a mask; CPU and GPU may round it differently, so "
                             "masks use + - * / and comparisons of floats only; "
                             "compute it into an array, or move it to a score function",
                             kOperationNames[int(operation)].mnemonic));
    return false;
  }
}

Entity Importer::emit(Operation operation, std::span<const Entity> operands, SourceRange range) {
  std::vector<Constant> constants;
  for (const Entity &operand : operands) {
    if (operand.isError())
      return {};
    if (operand.isConstant())
      constants.push_back(*operand.constant);
  }
  if (constants.size() == operands.size())
    if (std::optional<Constant> folded = foldConstants(operation, constants))
      return Entity::ofConstant(*folded);
  ValueType type = operands.back().type;
  if (!checkMaskFloat(operation, type, range))
    return {};
  if (!hasBody_)
    return fail(range, "an expression that is known only when the program runs; expected a constant");
  mlir::OperationState state(location(range), kOperationNames[int(operation)].opName);
  for (const Entity &operand : operands)
    state.addOperands(materialize(operand, range));
  return emitLeaf(state, resultType(operation, type));
}

Entity Importer::emitLeaf(mlir::OperationState &state, ValueType type) {
  if (++numOperations_ > kMaxOperations) {
    if (!isExhausted_)
      error(frame().callRange, fmt::format("the program inlines to more than {} operations", kMaxOperations));
    isExhausted_ = true;
    return {};
  }
  state.addTypes(dialectType(ctx_, type));
  Entity entity;
  entity.kind = EntityKind::Scalar;
  entity.type = type;
  entity.value = builder_.create(state)->getResult(0);
  return entity;
}

mlir::Value Importer::materialize(const Entity &entity, SourceRange range) {
  if (!entity.isConstant())
    return entity.value;
  mlir::OperationState state(location(range), "mask.constant");
  mlir::Type type = dialectType(ctx_, entity.type);
  mlir::Attribute value;
  if (entity.type == ValueType::Float)
    value = mlir::FloatAttr::get(type, llvm::APFloat(entity.constant->asFloat()));
  else
    value = mlir::IntegerAttr::get(type, llvm::APInt(type.getIntOrFloatBitWidth(), uint64_t(entity.constant->bits),
                                                     /*isSigned=*/false, /*implicitTrunc=*/true));
  state.addAttribute("value", value);
  state.addTypes(type);
  return builder_.create(state)->getResult(0);
}

bool Importer::isUniform(mlir::Value value) const {
  mlir::Operation *op = value.getDefiningOp();
  if (!op)
    return false;
  if (llvm::isa<mask::ConstantOp, mask::DimOp>(op))
    return true;
  if (!llvm::isa<mask::TableOpInterface>(op))
    return false;
  return llvm::all_of(op->getOperands(), [&](mlir::Value operand) { return isUniform(operand); });
}

Entity Importer::reduce(int kind, const Entity &count, SourceRange range,
                        const std::function<Entity(Entity)> &element) {
  if (!hasBody_)
    return fail(range, "a generator inside a constant; expected a constant");
  if (!count.isConstant() && !isUniform(count.value))
    return fail(range, "the number of elements depends on the pair or on an argument; expected a "
                       "constant or a dimension in range(...)");
  mlir::Value countValue = materialize(count, range);
  auto region = std::make_unique<mlir::Region>();
  mlir::Block &body = region->emplaceBlock();
  Entity index;
  index.kind = EntityKind::Scalar;
  index.type = ValueType::Int;
  index.value = body.addArgument(dialectType(ctx_, ValueType::Int), location(range));
  mlir::Value yielded;
  Entity result;
  {
    mlir::OpBuilder::InsertionGuard guard(builder_);
    builder_.setInsertionPointToEnd(&body);
    result = element(index);
    if (result.isError())
      return {};
    yielded = materialize(result, range);
    mlir::OperationState yield(location(range), "mask.yield");
    yield.addOperands(yielded);
    builder_.create(yield);
  }
  mlir::OperationState state(location(range), "mask.reduce");
  state.addOperands(countValue);
  state.addAttribute("kind", mask::ReductionKindAttr::get(&ctx_, mask::ReductionKind(kind)));
  state.addRegion(std::move(region));
  return emitLeaf(state, result.type);
}

} // namespace cpflex
