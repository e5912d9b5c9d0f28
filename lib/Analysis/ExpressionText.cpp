// Prints operands recursively, each with the precedence of the operator around it.
#include "lib/Analysis/ExpressionText.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/raw_ostream.h"

using namespace mlir;

namespace cpflex {
namespace {

/// Binding strength of Python's operators, weakest first.
enum Precedence : int {
  kConditional,
  kOr,
  kAnd,
  kNot,
  kCompare,
  kBitOr,
  kBitXor,
  kBitAnd,
  kShift,
  kSum,
  kProduct,
  kUnary,
  kAtom
};

struct Operator {
  const char *text;
  Precedence precedence;
};

/// The infix operator of a binary entry; no text for entries that are written as calls.
Operator infixOperator(Operation entry, bool isBool) {
  switch (entry) {
  case Operation::Add: return {" + ", kSum};
  case Operation::Sub: return {" - ", kSum};
  case Operation::Mul: return {" * ", kProduct};
  case Operation::Div: return {" / ", kProduct};
  case Operation::FloorDiv: return {" // ", kProduct};
  case Operation::Mod: return {" % ", kProduct};
  case Operation::And: return isBool ? Operator{" and ", kAnd} : Operator{" & ", kBitAnd};
  case Operation::Or: return isBool ? Operator{" or ", kOr} : Operator{" | ", kBitOr};
  case Operation::Xor: return isBool ? Operator{" != ", kCompare} : Operator{" ^ ", kBitXor};
  case Operation::Shl: return {" << ", kShift};
  case Operation::Shr: return {" >> ", kShift};
  case Operation::Eq: return {" == ", kCompare};
  case Operation::Ne: return {" != ", kCompare};
  case Operation::Lt: return {" < ", kCompare};
  case Operation::Le: return {" <= ", kCompare};
  case Operation::Gt: return {" > ", kCompare};
  case Operation::Ge: return {" >= ", kCompare};
  default: return {nullptr, kAtom};
  }
}

/// The name of an entry that is written as a call.
StringRef functionName(mlir::Operation *op) {
  switch (llvm::cast<mask::TableOpInterface>(op).getTableOperation()) {
  case Operation::ToBool: return "bool";
  case Operation::ToInt: return "int";
  case Operation::ToU32: return "u32";
  case Operation::ToFloat: return "float";
  default: return op->getName().stripDialect();
  }
}

class Printer {
public:
  Printer(std::string &text, int mostOperations) : stream(text), operationsLeft(mostOperations) {}

  void print(Value value, Precedence around) {
    if (auto argument = llvm::dyn_cast<BlockArgument>(value))
      return printArgument(argument);
    mlir::Operation *op = value.getDefiningOp();
    if (auto constant = llvm::dyn_cast<mask::ConstantOp>(op))
      return printConstant(constant);
    if (auto param = llvm::dyn_cast<mask::ParamValueOp>(op))
      stream << param.getParam();
    else if (auto dim = llvm::dyn_cast<mask::DimOp>(op))
      stream << dim.getName();
    else if (operationsLeft-- <= 0)
      stream << "...";
    else if (auto load = llvm::dyn_cast<mask::LoadOp>(op))
      printList(load.getCapture(), "[", load.getIndices(), "]");
    else if (auto reduction = llvm::dyn_cast<mask::ReduceOp>(op))
      printReduction(reduction);
    else
      printTableOperation(op, around);
  }

  /// Prints a comparison with another operator than its own.
  void printComparison(mlir::Operation *op, StringRef operatorText) {
    print(op->getOperand(0), kBitOr);
    stream << operatorText;
    print(op->getOperand(1), kBitOr);
  }

private:
  void printArgument(BlockArgument argument) {
    if (llvm::isa<mask::ReduceOp>(argument.getOwner()->getParentOp())) {
      // Nested indices have different letters.
      int depth = 0;
      for (mlir::Operation *op = argument.getOwner()->getParentOp()->getParentOp(); llvm::isa<mask::ReduceOp>(op);
           op = op->getParentOp())
        ++depth;
      stream << "ijkl"[depth % 4];
      return;
    }
    static constexpr StringRef kNames[] = {"kv", "q", "h", "b", "s", "gradient"};
    stream << kNames[argument.getOwner()->getNumArguments() - 1 - argument.getArgNumber()];
  }

  void printConstant(mask::ConstantOp op) {
    Type type = mask::elementTypeOf(op.getType());
    if (type.isInteger(1)) {
      stream << (mask::toScalarSlot(op.getValue()) ? "True" : "False");
    } else if (auto number = llvm::dyn_cast<FloatAttr>(op.getValue())) {
      llvm::SmallString<16> digits;
      number.getValue().toString(digits);
      stream << llvm::StringRef(digits).lower();
    } else {
      stream << mask::toScalarSlot(op.getValue());
    }
  }

  void printList(StringRef before, StringRef open, ValueRange values, StringRef close) {
    stream << before << open;
    llvm::interleaveComma(values, stream, [&](Value value) { print(value, kConditional); });
    stream << close;
  }

  void printReduction(mask::ReduceOp op) {
    Block &body = op.getBody().front();
    stream << mask::stringifyReductionKind(op.getKind()) << "(";
    print(body.getTerminator()->getOperand(0), kConditional);
    stream << " for ";
    printArgument(body.getArgument(0));
    stream << " in range(";
    print(op.getCount(), kConditional);
    stream << "))";
  }

  void printTableOperation(mlir::Operation *op, Precedence around) {
    Operation entry = llvm::cast<mask::TableOpInterface>(op).getTableOperation();
    bool isBool = mask::toValueType(op->getOperands().back().getType()) == ValueType::Bool;
    auto parenthesized = [&](Precedence own, auto printInside) {
      bool needsParentheses = own < around;
      stream << (needsParentheses ? "(" : "");
      printInside();
      stream << (needsParentheses ? ")" : "");
    };
    if (Operator infix = infixOperator(entry, isBool); infix.text)
      return parenthesized(infix.precedence, [&] {
        // Comparisons chain in Python, and the right operand of - is not part of the sum before it.
        auto tighter = static_cast<Precedence>(infix.precedence + 1);
        print(op->getOperand(0), infix.precedence == kCompare ? tighter : infix.precedence);
        stream << infix.text;
        print(op->getOperand(1), tighter);
      });
    switch (entry) {
    case Operation::Neg:
      return parenthesized(kUnary, [&] {
        stream << "-";
        print(op->getOperand(0), kUnary);
      });
    case Operation::Not:
      return parenthesized(isBool ? kNot : kUnary, [&] {
        stream << (isBool ? "not " : "~");
        print(op->getOperand(0), isBool ? kNot : kUnary);
      });
    case Operation::Select:
      return parenthesized(kConditional, [&] {
        print(op->getOperand(1), kOr);
        stream << " if ";
        print(op->getOperand(0), kOr);
        stream << " else ";
        print(op->getOperand(2), kConditional);
      });
    default: return printList(functionName(op), "(", op->getOperands(), ")");
    }
  }

  llvm::raw_string_ostream stream;
  int operationsLeft;
};

} // namespace

std::string expressionText(Value value, int mostOperations) {
  std::string text;
  Printer(text, mostOperations).print(value, kConditional);
  return text;
}

std::string complementText(Value value, int mostOperations) {
  auto opposite = [&]() -> StringRef {
    auto op = value.getDefiningOp<mask::TableOpInterface>();
    if (!op || mask::toValueType(op->getOperand(0).getType()) == ValueType::Float)
      return {};
    switch (op.getTableOperation()) {
    case Operation::Eq: return " != ";
    case Operation::Ne: return " == ";
    case Operation::Lt: return " >= ";
    case Operation::Le: return " > ";
    case Operation::Gt: return " <= ";
    case Operation::Ge: return " < ";
    default: return {};
    }
  }();
  if (opposite.empty())
    return "not (" + expressionText(value, mostOperations) + ")";
  std::string text;
  Printer(text, mostOperations).printComparison(value.getDefiningOp(), opposite);
  return text;
}

} // namespace cpflex
