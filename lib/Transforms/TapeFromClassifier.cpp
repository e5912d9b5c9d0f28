// Numbers the values of a function in order of their operations and writes each as one instruction.
#include "lib/Transforms/TapeFromClassifier.h"

#include "lib/Analysis/ExpressionText.h"
#include "lib/Analysis/ProgramSignature.h"
#include "lib/Analysis/Residuals.h"

#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/DenseSet.h"

using namespace mlir;

namespace cpflex {
namespace {

class TapeWriter {
public:
  TapeWriter(Tape &tape, const Signature &signature) : tape(tape), signature(signature) {}

  /// Per instruction the source that its line is of.
  std::vector<std::string> files;

  LogicalResult write(FunctionOpInterface function) {
    Block &body = function.getFunctionBody().front();
    markLive(body);
    for (BlockArgument argument : body.getArguments())
      if (live.contains(argument))
        define(argument, Operation::Coordinate, argument.getArgNumber(), argument.getLoc());
    if (failed(writeBlock(body)))
      return failure();
    tape.result = values.lookup(body.getTerminator()->getOperand(0));
    return success();
  }

  /// The instruction that computes a value that the result needs.
  int32_t instructionOf(Value value) const { return values.lookup(value); }

private:
  /// Marks the values that the results of the block, and of the reductions in it, need.
  void markLive(Block &block) {
    for (Value value : block.getTerminator()->getOperands())
      live.insert(value);
    for (mlir::Operation &op : llvm::reverse(block.without_terminator())) {
      if (op.getNumResults() != 1 || !live.contains(op.getResult(0)))
        continue;
      live.insert(op.operand_begin(), op.operand_end());
      for (Region &region : op.getRegions())
        markLive(region.front());
    }
  }

  LogicalResult writeBlock(Block &block) {
    for (mlir::Operation &op : block.without_terminator())
      if (op.getNumResults() == 1 && live.contains(op.getResult(0)))
        if (failed(writeOperation(&op)))
          return failure();
    return success();
  }

  /// Appends the instruction of a leaf.
  TapeInstruction &define(Value value, Operation operation, ScalarSlot immediate, Location loc) {
    TapeInstruction instruction;
    instruction.operation = operation;
    instruction.resultType = instruction.operandType = mask::toValueType(value.getType());
    instruction.immediate = immediate;
    auto position = loc->findInstanceOf<FileLineColRange>();
    if (position) {
      instruction.line = static_cast<int32_t>(position.getStartLine());
      instruction.column = static_cast<int32_t>(position.getStartColumn());
    }
    files.push_back(position ? position.getFilename().str() : std::string());
    values[value] = static_cast<int32_t>(tape.instructions.size());
    return tape.instructions.emplace_back(instruction);
  }

  void setOperands(TapeInstruction &instruction, ValueRange operands) {
    for (auto [index, operand] : llvm::enumerate(operands))
      instruction.operands[index] = values.lookup(operand);
  }

  /// Appends the instruction of a leaf that is found by name.
  LogicalResult defineNamed(mlir::Operation *op, Operation operation, int slot, StringRef name) {
    if (slot < 0)
      return op->emitOpError("reads '") << name << "', which the program's signature lacks";
    define(op->getResult(0), operation, slot, op->getLoc());
    return success();
  }

  LogicalResult writeOperation(mlir::Operation *op) {
    Value result = op->getResult(0);
    if (auto constant = llvm::dyn_cast<mask::ConstantOp>(op)) {
      define(result, Operation::Constant, mask::toScalarSlot(constant.getValue()), op->getLoc());
      return success();
    }
    if (auto param = llvm::dyn_cast<mask::ParamValueOp>(op))
      return defineNamed(op, Operation::Param, paramSlot(signature, param.getParam()), param.getParam());
    if (auto dim = llvm::dyn_cast<mask::DimOp>(op))
      return defineNamed(op, Operation::Dim, dimSlot(signature, dim.getName()), dim.getName());
    if (auto load = llvm::dyn_cast<mask::LoadOp>(op)) {
      if (failed(defineNamed(op, Operation::Load, captureSlot(signature, load.getCapture()), load.getCapture())))
        return failure();
      setOperands(tape.instructions.back(), load.getIndices());
      return success();
    }
    if (auto reduction = llvm::dyn_cast<mask::ReduceOp>(op))
      return writeReduction(reduction);
    auto entry = llvm::cast<mask::TableOpInterface>(op).getTableOperation();
    TapeInstruction &instruction = define(result, entry, 0, op->getLoc());
    // The last operand is an arm of Select and any operand of the others.
    instruction.operandType = mask::toValueType(op->getOperands().back().getType());
    setOperands(instruction, op->getOperands());
    return success();
  }

  LogicalResult writeReduction(mask::ReduceOp op) {
    static_assert(static_cast<int>(Operation::ReduceMax) - static_cast<int>(Operation::ReduceAny) ==
                  static_cast<int>(mask::ReductionKind::Max) - static_cast<int>(mask::ReductionKind::Any));
    auto operation = static_cast<Operation>(static_cast<int>(Operation::ReduceAny) + static_cast<int>(op.getKind()));
    int32_t count = values.lookup(op.getCount());
    define(op.getResult(), operation, 0, op.getLoc());
    size_t position = tape.instructions.size() - 1;
    Block &body = op.getBody().front();
    define(body.getArgument(0), Operation::Induction, 0, op.getLoc());
    if (failed(writeBlock(body)))
      return failure();
    TapeInstruction &reduction = tape.instructions[position];
    reduction.operands[0] = count;
    reduction.operands[1] = static_cast<int32_t>(tape.instructions.size());
    reduction.operands[2] = values.lookup(body.getTerminator()->getOperand(0));
    return success();
  }

  Tape &tape;
  const Signature &signature;
  llvm::DenseSet<Value> live;
  llvm::DenseMap<Value, int32_t> values;
};

FailureOr<Tape> toTape(FunctionOpInterface function, StringRef name, const Signature &signature) {
  Tape tape;
  tape.name = name.str();
  if (failed(TapeWriter(tape, signature).write(function)))
    return failure();
  return tape;
}

} // namespace

FailureOr<TapeWithResiduals> tapeWithResiduals(mask::PredicateOp predicate, const Signature &signature) {
  TapeWithResiduals result;
  result.tape.name = predicate.getSymName().str();
  TapeWriter writer(result.tape, signature);
  if (failed(writer.write(predicate)))
    return failure();
  result.files = std::move(writer.files);
  for (const ResidualExpression &expression : residualsOf(predicate)) {
    Residual residual;
    for (auto [value, assumed] : expression.assumptions)
      residual.assumptions.push_back({writer.instructionOf(value), assumed});
    residual.result = writer.instructionOf(expression.value);
    residual.isNegated = expression.isNegated;
    residual.text = expression.isNegated ? complementText(expression.value) : expressionText(expression.value);
    result.residuals.push_back(std::move(residual));
  }
  return result;
}

FailureOr<Tape> tapeFromPredicate(mask::PredicateOp predicate, const Signature &signature) {
  return toTape(predicate, predicate.getSymName(), signature);
}

FailureOr<Tape> tapeFromPredicate(mask::ClassifierOp classifier, const Signature &signature) {
  StringRef name = classifier.getSymName();
  name.consume_back(".classifier");
  return toTape(classifier, name, signature);
}

} // namespace cpflex
