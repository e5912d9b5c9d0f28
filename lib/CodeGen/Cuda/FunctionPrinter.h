// How the body of one mask function is written in CUDA C++.
#pragma once

#include "dialect/Mask/MaskDialect.h"
#include "lib/CodeGen/Cuda/CudaText.h"

#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/DenseSet.h"

#include <string>

namespace cpflex {

/// How to reach the members of Program::Captures, params by way of a pointer.
struct CaptureMembers {
  llvm::StringMap<std::string> captures, params, dims;
};

/// How floats are computed.
enum class CudaArithmetic {
  Exact,    ///< every operation rounds by itself, as in a mask
  Contract, ///< the compiler may contract; divisions by constants and params become products, as in a score
};

/// Prints the statements of one function, with the user's names and lines.
class FunctionPrinter {
public:
  FunctionPrinter(const Signature &signature, const CaptureMembers &members, CudaArithmetic arithmetic)
      : signature(signature), members(members), arithmetic(arithmetic) {}

  /// Gives an argument of the function a name, the user's where known; returns it. Its C++ type is `int` for
  /// coordinates, `float` for scores.
  std::string nameArgument(mlir::BlockArgument argument, llvm::StringRef fallback);

  /// Appends to `text` what computes the value that `body` yields, and returns it. Operations that the value does not
  /// need are left out.
  void printBody(mlir::Block &body, std::string &text);

  /// Appends what calls `add(offset, value)` for each contribution of `scatter`, which stands in `body` or in a
  /// reduction of it.
  void printScatter(mask::ScatterAddOp scatter, mlir::Block &body, std::string &text);

private:
  /// An expression, and whether it may be an operand as it is.
  struct Expression {
    std::string text;
    bool isAtom = true;
  };

  void printBlock(mlir::Block &block, std::string &text);
  void printReduce(mask::ReduceOp reduce, std::string &text);
  void printAdd(mask::ScatterAddOp scatter, std::string &text);
  Expression expression(mlir::Operation *op);
  Expression tableExpression(mlir::Operation *op);
  Expression loadExpression(mask::LoadOp load);
  Expression castExpression(Operation operation, mlir::Type from, mlir::Type to, mlir::Value operand);
  Expression slotExpression(std::string slot, mlir::Type type);
  std::string operand(mlir::Value value);
  std::string argumentText(mlir::Value value);
  bool isInlined(mlir::Operation *op, const Expression &expression);
  void define(mlir::Operation *op, const Expression &expression, std::string &text);
  std::string lineComment(mlir::Location loc);
  void markNeeded(mlir::Value value);

  const Signature &signature;
  const CaptureMembers &members;
  CudaArithmetic arithmetic;
  CudaNames names;
  llvm::DenseMap<mlir::Value, Expression> values;
  llvm::DenseSet<mlir::Operation *> needed;
  std::string lastLine;
  int depth = 2; ///< of indentation, two spaces each
};

} // namespace cpflex
