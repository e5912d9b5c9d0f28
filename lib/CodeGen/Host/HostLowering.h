// The builder of one entry point's host functions: HostCode.cpp builds predicates and score functions with it,
// HostGradients.cpp the gradients of score functions.
#pragma once

#include "lib/Analysis/ProgramSignature.h"
#include "lib/CodeGen/Host/ExpressionEmitter.h"

#include <cstddef>

namespace cpflex {

/// Where in the loops an operation is computed: once per call, once per row, or for each pair.
enum class LoopLevel { Call, Row, Pair };

/// What the coordinates of a call are.
struct TileFields {
  mlir::Value b, h, qBegin, qCount, qStep, kvBegin, kvCount, kvStep;
};

/// Builds the functions of one entry point.
class HostLowering {
public:
  HostLowering(mlir::ModuleOp module, mlir::ModuleOp hostModule)
      : module(module), builder(module.getContext()), hostModule(hostModule), signature(signatureOf(module)) {}

  /// Builds the function `name`, an EvaluateTileFunction of the predicate.
  mlir::LogicalResult buildEvaluateTile(mask::PredicateOp predicate, llvm::StringRef name);
  mlir::LogicalResult buildScore(mask::ScoreOp score);
  mlir::LogicalResult buildScoreGradient(mask::ScoreGradientOp gradient);

private:
  mlir::Value startFunction(llvm::StringRef name, mlir::Location loc, int numArguments, llvm::ArrayRef<int> exclusive);
  TileFields readTile(mlir::Value tile, mlir::Location loc);
  void computeLevels(mlir::Block &body, llvm::ArrayRef<LoopLevel> argumentLevels);
  mlir::LogicalResult emitLevel(ExpressionEmitter &emitter, mlir::Block &body, LoopLevel level);
  mlir::Value element(mlir::Value base, mlir::Type type, mlir::Value index, mlir::Location loc);
  mlir::Value position(mlir::Value begin, mlir::Value step, mlir::Value index, mlir::Location loc);
  mlir::LLVM::LoopAnnotationAttr startPairLoop(ExpressionEmitter &emitter);
  mlir::Value isNull(mlir::Value pointer, mlir::Location loc);
  bool differsBetweenPairs(mlir::Value value);
  void addTo(mlir::Value gradients, mlir::Value offset, mlir::Value contribution, mlir::Location loc);
  void runIf(ExpressionEmitter &emitter, mlir::Value condition, mlir::Location loc, llvm::function_ref<void()> code);
  mlir::Value gradientsOf(ExpressionEmitter &emitter, mlir::Value captureGradients, mask::ScatterAddOp op);
  mlir::Value isWanted(ExpressionEmitter &emitter, mlir::Value gradients, mlir::Location loc);
  struct ScatterBuffer;
  void addScattered(ExpressionEmitter &emitter, ScatterBuffer &buffer, mlir::Value count, mlir::Location loc);
  mlir::LogicalResult addScatteredByReduction(ExpressionEmitter &emitter, mask::ScatterAddOp op, mlir::Value gradients,
                                              mlir::Value count, llvm::function_ref<mlir::Value(mlir::Value)> emitPair);

  mlir::Type pointerType() { return mlir::LLVM::LLVMPointerType::get(builder.getContext()); }
  mlir::Value argument(int index) { return function.getArgument(index); }

  mlir::ModuleOp module;
  mlir::OpBuilder builder;
  mlir::ModuleOp hostModule;
  Signature signature;
  mlir::LLVM::LLVMFuncOp function;
  llvm::DenseMap<mlir::Operation *, LoopLevel> levels;
};

/// Moves what a reduction's body computes alike in every turn to before the reduction.
void hoistOutOfReductions(mlir::Block &body);

} // namespace cpflex
