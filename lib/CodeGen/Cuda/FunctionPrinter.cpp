// Operations as C++ expressions: a plain operator where that is the operation's meaning and nothing can wrap that must
// not, a function of cpflex::ops otherwise.
#include "lib/CodeGen/Cuda/FunctionPrinter.h"

#include "lib/Analysis/ProgramSignature.h"

#include "mlir/IR/Location.h"
#include "mlir/IR/Matchers.h"
#include "llvm/Support/Path.h"

#include <fmt/format.h>

#include <cmath>

using namespace mlir;

namespace cpflex {

/// Expressions longer than this get a name of their own.
constexpr size_t kLongestInlined = 90;

/// The user's name of a value, empty where there is none.
static llvm::StringRef userName(Location loc) {
  if (auto named = dyn_cast<NameLoc>(loc))
    return named.getName().getValue();
  return {};
}

std::string FunctionPrinter::nameArgument(BlockArgument argument, llvm::StringRef fallback) {
  llvm::StringRef name = userName(argument.getLoc());
  std::string unique = names.unique(name.empty() ? fallback : name);
  // Coordinates arrive as int; programs that were not narrowed compute in 64 bits.
  if (argument.getType().isInteger(64))
    values[argument] = {"(long long)" + unique, /*isAtom=*/true};
  else
    values[argument] = {unique, /*isAtom=*/true};
  return unique;
}

std::string FunctionPrinter::lineComment(Location loc) {
  std::string line;
  loc->walk([&](Location inner) {
    if (auto position = dyn_cast<FileLineColRange>(inner)) {
      line = fmt::format("{}:{}", llvm::sys::path::filename(position.getFilename()).str(), position.getStartLine());
      return WalkResult::interrupt();
    }
    return WalkResult::advance();
  });
  if (line.empty() || line == lastLine)
    return "";
  lastLine = line;
  return " // " + line;
}

void FunctionPrinter::markNeeded(mlir::Value value) {
  mlir::Operation *op = value.getDefiningOp();
  if (!op || !needed.insert(op).second)
    return;
  for (mlir::Value operand : op->getOperands())
    markNeeded(operand);
  for (Region &region : op->getRegions())
    for (mlir::Value operand : region.front().getTerminator()->getOperands())
      markNeeded(operand);
}

std::string FunctionPrinter::operand(mlir::Value value) {
  const Expression &found = values[value];
  return found.isAtom ? found.text : "(" + found.text + ")";
}

std::string FunctionPrinter::argumentText(mlir::Value value) { return values[value].text; }

void FunctionPrinter::printBody(Block &body, std::string &text) {
  mlir::Value result = body.getTerminator()->getOperand(0);
  markNeeded(result);
  printBlock(body, text);
  text += fmt::format("    return {};{}\n", argumentText(result), lineComment(body.getTerminator()->getLoc()));
}

void FunctionPrinter::printScatter(mask::ScatterAddOp scatter, Block &body, std::string &text) {
  needed.insert(scatter);
  for (mlir::Value operand : scatter->getOperands())
    markNeeded(operand);
  for (mlir::Operation *op = scatter->getParentOp(); op != body.getParentOp(); op = op->getParentOp())
    markNeeded(op->getResult(0));
  printBlock(body, text);
}

void FunctionPrinter::printAdd(mask::ScatterAddOp scatter, std::string &text) {
  std::string indices;
  for (mlir::Value index : scatter.getIndices())
    indices += ", " + argumentText(index);
  text += fmt::format("{:{}}add(cpflex::denseOffset(captures.{}{}), {});{}\n", "", 2 * depth,
                      members.captures.lookup(scatter.getCapture()), indices, argumentText(scatter.getValue()),
                      lineComment(scatter.getLoc()));
}

void FunctionPrinter::printBlock(Block &block, std::string &text) {
  for (mlir::Operation &op : block.without_terminator()) {
    if (!needed.contains(&op))
      continue;
    if (auto scatter = dyn_cast<mask::ScatterAddOp>(op)) {
      printAdd(scatter, text);
      continue;
    }
    assert(!cudaType(op.getResult(0).getType()).empty() && "predicates and scores hold single values");
    if (auto reduce = dyn_cast<mask::ReduceOp>(op)) {
      printReduce(reduce, text);
      continue;
    }
    Expression value = expression(&op);
    if (isInlined(&op, value))
      values[op.getResult(0)] = std::move(value);
    else
      define(&op, value, text);
  }
}

bool FunctionPrinter::isInlined(mlir::Operation *op, const Expression &expression) {
  if (isa<mask::ConstantOp>(op))
    return true;
  if (!userName(op->getLoc()).empty() || expression.text.size() > kLongestInlined)
    return false;
  if (isa<mask::DimOp, mask::ParamValueOp>(op))
    return true;
  mlir::Value result = op->getResult(0);
  return result.hasOneUse() && (*result.user_begin())->getBlock() == op->getBlock();
}

void FunctionPrinter::define(mlir::Operation *op, const Expression &expression, std::string &text) {
  llvm::StringRef wanted = userName(op->getLoc());
  std::string name = names.unique(wanted.empty() ? "t" : wanted);
  mlir::Value result = op->getResult(0);
  text += fmt::format("{:{}}const {} {} = {};{}\n", "", 2 * depth, cudaType(result.getType()).str(), name,
                      expression.text, lineComment(op->getLoc()));
  values[result] = {name, /*isAtom=*/true};
}

void FunctionPrinter::printReduce(mask::ReduceOp reduce, std::string &text) {
  mask::ReductionKind kind = reduce.getKind();
  Block &body = reduce.getBody().front();
  llvm::StringRef wanted = userName(reduce.getLoc());
  std::string total = names.unique(wanted.empty() ? stringifyReductionKind(kind) : wanted);
  llvm::StringRef wantedIndex = userName(body.getArgument(0).getLoc());
  std::string index = names.unique(wantedIndex.empty() ? "i" : wantedIndex);
  mlir::Type type = reduce.getType();
  std::string indexType = cudaType(body.getArgument(0).getType()).str();
  bool isAny = kind == mask::ReductionKind::Any, isAll = kind == mask::ReductionKind::All;

  std::string indent(2 * depth, ' ');
  text += fmt::format("{}{} {} = {};{}\n", indent, cudaType(type).str(), total,
                      isAll   ? "true"
                      : isAny ? "false"
                              : "0",
                      lineComment(reduce.getLoc()));
  // A decided any or all needs no further elements.
  std::string condition = isAny ? " && !" + total : isAll ? " && " + total : "";
  // Every accumulator of a thread has its copy of this loop; written out as well, long ones take minutes to compile.
  constexpr int64_t kMostUnrolled = 4;
  llvm::APInt turns;
  if (!matchPattern(reduce.getCount(), m_ConstantInt(&turns)) || turns.sgt(kMostUnrolled))
    text += fmt::format("{}#pragma unroll 1\n", indent);
  text += fmt::format("{}for ({} {} = 0; {} < {}{}; ++{}) {{\n", indent, indexType, index, index,
                      operand(reduce.getCount()), condition, index);
  values[body.getArgument(0)] = {index, /*isAtom=*/true};
  ++depth;
  printBlock(body, text);
  --depth;
  std::string element = operand(body.getTerminator()->getOperand(0));
  std::string next;
  switch (kind) {
  case mask::ReductionKind::Any:
  case mask::ReductionKind::All: next = element; break;
  case mask::ReductionKind::Sum: {
    bool wraps = type.isInteger(64) || (type.isF32() && arithmetic == CudaArithmetic::Exact);
    next = wraps ? fmt::format("ops::add({}, {})", total, element) : fmt::format("{} + {}", total, element);
    break;
  }
  case mask::ReductionKind::Min:
  case mask::ReductionKind::Max:
    next = fmt::format("{} == 0 ? {} : ops::{}({}, {})", index, element, stringifyReductionKind(kind).str(), total,
                       element);
    break;
  }
  text += fmt::format("{}  {} = {};\n{}}}\n", indent, total, next, indent);
  values[reduce.getResult()] = {total, /*isAtom=*/true};
}

//===----------------------------------------------------------------------===//
// Expressions
//===----------------------------------------------------------------------===//

FunctionPrinter::Expression FunctionPrinter::slotExpression(std::string slot, mlir::Type type) {
  if (type.isInteger(1))
    return {slot + " != 0", /*isAtom=*/false};
  if (type.isF32())
    return {"ops::floatFromBits((unsigned)" + slot + ")"};
  if (type.isInteger(64))
    return {slot};
  return {fmt::format("({}){}", cudaType(type).str(), slot)};
}

FunctionPrinter::Expression FunctionPrinter::loadExpression(mask::LoadOp load) {
  const CaptureDeclaration &declaration = signature.captures[captureSlot(signature, load.getCapture())];
  std::string indices;
  for (mlir::Value index : load.getIndices())
    indices += ", " + argumentText(index);
  std::string element = fmt::format("cpflex::elementAt<{}>(captures.{}{})", cudaStorageType(declaration.type).str(),
                                    members.captures.lookup(load.getCapture()), indices);
  switch (declaration.type) {
  case ElementType::Bool: return {element + " != 0", /*isAtom=*/false};
  case ElementType::F16: return {"ops::fromF16(" + element + ")"};
  case ElementType::BF16: return {"ops::fromBF16(" + element + ")"};
  case ElementType::F32:
  case ElementType::U32: return {element};
  default: break;
  }
  bool isSameType = load.getType().isInteger(64) ? declaration.type == ElementType::I64
                                                 : sizeInBytes(declaration.type) <= sizeInBytes(ElementType::I32);
  return isSameType ? Expression{element} : Expression{fmt::format("({}){}", cudaType(load.getType()).str(), element)};
}

FunctionPrinter::Expression FunctionPrinter::castExpression(Operation operation, mlir::Type from, mlir::Type to,
                                                            mlir::Value value) {
  if (from == to)
    return values[value];
  if (operation == Operation::ToBool)
    return {operand(value) + (from.isF32() ? " != 0.0f" : " != 0"), /*isAtom=*/false};
  if (from.isF32()) {
    std::string whole =
        fmt::format("ops::{}({})", operation == Operation::ToU32 ? "toU32" : "toInt", argumentText(value));
    return {to.isSignlessInteger(32) ? "(int)" + whole : whole};
  }
  return {fmt::format("({}){}", cudaType(to).str(), operand(value))};
}

static llvm::StringRef functionOf(Operation operation) {
  switch (operation) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  case Operation::Enumerator: return #function;
#include "runtime/contract/Operations.def"
  default: return "";
  }
}

/// The operator of C++ that means `operation` on operands of `type`, empty where only a function of cpflex::ops does.
static llvm::StringRef plainOperator(Operation operation, mlir::Type type, CudaArithmetic arithmetic) {
  bool isBool = type.isInteger(1);
  // Signed 64-bit ints wrap, which C++ leaves undefined; those that were proved to fit in 32 bits do not wrap.
  bool mayUsePlain = type.isF32() ? arithmetic == CudaArithmetic::Contract : !type.isInteger(64);
  switch (operation) {
  case Operation::Add: return mayUsePlain ? "+" : "";
  case Operation::Sub: return mayUsePlain ? "-" : "";
  case Operation::Mul: return mayUsePlain ? "*" : "";
  case Operation::And: return isBool ? "&&" : "&";
  case Operation::Or: return isBool ? "||" : "|";
  case Operation::Xor: return isBool ? "!=" : "^";
  case Operation::Eq: return "==";
  case Operation::Ne: return "!=";
  case Operation::Lt: return "<";
  case Operation::Le: return "<=";
  case Operation::Gt: return ">";
  case Operation::Ge: return ">=";
  default: return "";
  }
}

/// The constant that `value` is, when it is one.
template <typename AttributeType> static AttributeType constantOf(mlir::Value value) {
  auto constant = value.getDefiningOp<mask::ConstantOp>();
  return constant ? dyn_cast<AttributeType>(constant.getValue()) : AttributeType();
}

/// Whether a value is made of constants, params and dimensions alone, so that it is the same for a whole call.
static bool isCallConstant(mlir::Value value) {
  mlir::Operation *op = value.getDefiningOp();
  if (!op || !isa<mask::ConstantOp, mask::ParamValueOp, mask::DimOp, mask::TableOpInterface>(op))
    return false;
  return llvm::all_of(op->getOperands(), isCallConstant);
}

FunctionPrinter::Expression FunctionPrinter::tableExpression(mlir::Operation *op) {
  Operation operation = cast<mask::TableOpInterface>(op).getTableOperation();
  mlir::Type type = op->getOperand(0).getType(), resultType = op->getResult(0).getType();
  llvm::StringRef plain = plainOperator(operation, type, arithmetic);
  if (!plain.empty())
    return Expression{fmt::format("{} {} {}", operand(op->getOperand(0)), plain.str(), operand(op->getOperand(1))),
                      /*isAtom=*/false};
  switch (operation) {
  case Operation::Not: return Expression{(type.isInteger(1) ? "!" : "~") + operand(op->getOperand(0))};
  case Operation::Neg:
    if (type.isInteger(64))
      break;
    // An unsigned negation is written as a difference, which no compiler warns of.
    if (type.isUnsignedInteger())
      return Expression{"0u - " + operand(op->getOperand(0)), /*isAtom=*/false};
    return Expression{"-" + operand(op->getOperand(0)), /*isAtom=*/false};
  case Operation::Select:
    return Expression{
        fmt::format("{} ? {} : {}", operand(op->getOperand(0)), operand(op->getOperand(1)), operand(op->getOperand(2))),
        /*isAtom=*/false};
  case Operation::ToBool:
  case Operation::ToInt:
  case Operation::ToU32:
  case Operation::ToFloat: return castExpression(operation, type, resultType, op->getOperand(0));
  case Operation::FloorDiv:
  case Operation::Mod: {
    auto divisor = constantOf<IntegerAttr>(op->getOperand(1));
    if (!divisor || !divisor.getValue().isPowerOf2() || divisor.getValue().isNegative())
      break;
    std::string left = operand(op->getOperand(0));
    if (operation == Operation::FloorDiv)
      return Expression{fmt::format("{} >> {}", left, divisor.getValue().logBase2()), /*isAtom=*/false};
    return Expression{fmt::format("{} & {}", left, (divisor.getValue() - 1).getZExtValue()), /*isAtom=*/false};
  }
  case Operation::Div: {
    auto divisor = constantOf<FloatAttr>(op->getOperand(1));
    if (arithmetic == CudaArithmetic::Exact)
      break;
    if (!divisor && isCallConstant(op->getOperand(1)))
      return Expression{fmt::format("ops::divideByUniform({}, {})", argumentText(op->getOperand(0)),
                                    argumentText(op->getOperand(1)))};
    if (!divisor)
      break;
    float reciprocal = 1.0f / divisor.getValue().convertToFloat();
    // x * (1 / c) is within 1.5 ulp of x / c while neither is subnormal.
    if (std::isnormal(reciprocal) && std::isnormal(1.0f / reciprocal))
      return Expression{fmt::format("{} * {}", operand(op->getOperand(0)), cudaLiteral(reciprocal)), /*isAtom=*/false};
    break;
  }
  default: break;
  }
  std::string arguments;
  for (mlir::Value value : op->getOperands())
    arguments += (arguments.empty() ? "" : ", ") + argumentText(value);
  return Expression{fmt::format("ops::{}({})", functionOf(operation).str(), arguments)};
}

FunctionPrinter::Expression FunctionPrinter::expression(mlir::Operation *op) {
  if (isa<mask::TableOpInterface>(op))
    return tableExpression(op);
  if (auto constant = dyn_cast<mask::ConstantOp>(op))
    return Expression{cudaLiteral(constant.getValue())};
  if (auto load = dyn_cast<mask::LoadOp>(op))
    return loadExpression(load);
  if (auto param = dyn_cast<mask::ParamValueOp>(op))
    return slotExpression(fmt::format("cpflex::paramAt(&captures.{})", members.params.lookup(param.getParam())),
                          param.getType());
  auto dim = cast<mask::DimOp>(op);
  return slotExpression("captures." + members.dims.lookup(dim.getName()), dim.getType());
}

} // namespace cpflex
