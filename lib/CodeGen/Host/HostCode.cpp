// The loops over rows and keys around a mask or score function. What does not depend on the key is computed once per
// row, what depends on neither once per call; the loop over keys is declared free of dependences, so that it
// vectorises.
#include "lib/CodeGen/Host/HostCode.h"

#include "lib/Analysis/Residuals.h"
#include "lib/CodeGen/Host/HostLowering.h"
#include "runtime/contract/HostFunctions.h"

#include <cstddef>

using namespace mlir;

namespace cpflex {

void hoistOutOfReductions(Block &body) {
  body.walk([](mask::ReduceOp reduce) {
    for (mlir::Operation &op : llvm::make_early_inc_range(reduce.getBody().front().without_terminator())) {
      bool isInvariant = true;
      op.walk([&](mlir::Operation *inner) {
        for (mlir::Value operand : inner->getOperands()) {
          Region *region = operand.getParentRegion();
          bool isWithinOp = region != &reduce.getBody() && reduce.getBody().isProperAncestor(region);
          if (region == &reduce.getBody() || (isWithinOp && !op.isAncestor(region->getParentOp())))
            isInvariant = false;
        }
      });
      if (isInvariant)
        op.moveBefore(reduce);
    }
  });
}

mlir::Value HostLowering::startFunction(llvm::StringRef name, Location loc, int numArguments,
                                        llvm::ArrayRef<int> exclusive) {
  // (bindings, tile, arrays..., rowStride [, captureGradients]): all pointers but rowStride.
  SmallVector<mlir::Type> types(numArguments, pointerType());
  int rowStride = numArguments == 6 ? 4 : 3;
  types[rowStride] = builder.getI64Type();
  builder.setInsertionPointToEnd(hostModule.getBody());
  auto type = LLVM::LLVMFunctionType::get(LLVM::LLVMVoidType::get(builder.getContext()), types);
  function = LLVM::LLVMFuncOp::create(builder, loc, name, type);
  for (int index : exclusive)
    function.setArgAttr(index, LLVM::LLVMDialect::getNoAliasAttrName(), builder.getUnitAttr());
  Block *entry = function.addEntryBlock(builder);
  builder.setInsertionPointToStart(entry);
  return argument(rowStride);
}

TileFields HostLowering::readTile(mlir::Value tile, Location loc) {
  auto read = [&](size_t offset) -> mlir::Value {
    mlir::Value address = LLVM::GEPOp::create(builder, loc, pointerType(), builder.getI8Type(), tile,
                                              ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(offset)});
    return LLVM::LoadOp::create(builder, loc, builder.getI64Type(), address);
  };
  TileFields fields;
  fields.b = read(offsetof(TileCoordinates, b));
  fields.h = read(offsetof(TileCoordinates, h));
  fields.qBegin = read(offsetof(TileCoordinates, qBegin));
  fields.qCount = read(offsetof(TileCoordinates, qCount));
  fields.qStep = read(offsetof(TileCoordinates, qStep));
  fields.kvBegin = read(offsetof(TileCoordinates, kvBegin));
  fields.kvCount = read(offsetof(TileCoordinates, kvCount));
  fields.kvStep = read(offsetof(TileCoordinates, kvStep));
  return fields;
}

void HostLowering::computeLevels(Block &body, llvm::ArrayRef<LoopLevel> argumentLevels) {
  levels.clear();
  for (mlir::Operation &op : body.without_terminator()) {
    LoopLevel level = isa<mask::ScatterAddOp>(op) ? LoopLevel::Pair : LoopLevel::Call;
    op.walk([&](mlir::Operation *inner) {
      for (mlir::Value operand : inner->getOperands()) {
        LoopLevel operandLevel = LoopLevel::Call;
        if (auto blockArgument = dyn_cast<BlockArgument>(operand)) {
          if (blockArgument.getOwner() == &body)
            operandLevel = argumentLevels[blockArgument.getArgNumber()];
        } else if (operand.getDefiningOp()->getBlock() == &body) {
          operandLevel = levels.lookup(operand.getDefiningOp());
        }
        level = std::max(level, operandLevel);
      }
    });
    levels[&op] = level;
  }
}

LogicalResult HostLowering::emitLevel(ExpressionEmitter &emitter, Block &body, LoopLevel level) {
  for (mlir::Operation &op : body.without_terminator())
    if (levels[&op] == level && !isa<mask::ScatterAddOp>(op))
      if (failed(emitter.emit(&op)))
        return failure();
  return success();
}

mlir::Value HostLowering::element(mlir::Value base, mlir::Type type, mlir::Value index, Location loc) {
  return LLVM::GEPOp::create(builder, loc, pointerType(), type, base, ArrayRef<LLVM::GEPArg>{index},
                             LLVM::GEPNoWrapFlags::inbounds);
}

mlir::Value HostLowering::position(mlir::Value begin, mlir::Value step, mlir::Value index, Location loc) {
  // Positions are below 2^62, so this never wraps.
  auto flags = LLVM::IntegerOverflowFlags::nsw;
  mlir::Value distance = LLVM::MulOp::create(builder, loc, index, step, flags);
  return LLVM::AddOp::create(builder, loc, begin, distance, flags);
}

LLVM::LoopAnnotationAttr HostLowering::startPairLoop(ExpressionEmitter &emitter) {
  MLIRContext *ctx = builder.getContext();
  auto group = LLVM::AccessGroupAttr::get(ctx, DistinctAttr::create(builder.getUnitAttr()));
  emitter.setAccessGroup(group);
  return LLVM::LoopAnnotationAttr::get(ctx, /*disableNonforced=*/{}, /*vectorize=*/{}, /*interleave=*/{},
                                       /*unroll=*/{}, /*unrollAndJam=*/{}, /*licm=*/{}, /*distribute=*/{},
                                       /*pipeline=*/{}, /*peeled=*/{}, /*unswitch=*/{}, /*mustProgress=*/{},
                                       /*isVectorized=*/{}, /*startLoc=*/{}, /*endLoc=*/{},
                                       ArrayRef<LLVM::AccessGroupAttr>{group});
}

//===----------------------------------------------------------------------===//
// Masks and scores
//===----------------------------------------------------------------------===//

LogicalResult HostLowering::buildEvaluateTile(mask::PredicateOp predicate, llvm::StringRef name) {
  OwningOpRef<mask::PredicateOp> copy = predicate.clone();
  Block &body = copy->getBody().front();
  hoistOutOfReductions(body);
  Location loc = predicate.getLoc();
  mlir::Value rowStride = startFunction(name, loc, /*numArguments=*/4, /*exclusive=*/{2});
  mlir::Value out = argument(2);
  ExpressionEmitter emitter(builder, module, signature, argument(0));
  TileFields tile = readTile(argument(1), loc);
  if (failed(emitter.readBindings(body)))
    return failure();
  computeLevels(body, {LoopLevel::Call, LoopLevel::Call, LoopLevel::Row, LoopLevel::Pair});
  auto bind = [&](int index, mlir::Value value) {
    emitter.map(body.getArgument(index), emitter.coordinate(value, body.getArgument(index).getType(), loc));
  };
  bind(0, tile.b);
  bind(1, tile.h);
  LogicalResult status = emitLevel(emitter, body, LoopLevel::Call);
  emitter.emitLoop(loc, tile.qCount, {}, {}, [&](mlir::Value i, ValueRange) -> SmallVector<mlir::Value> {
    bind(2, position(tile.qBegin, tile.qStep, i, loc));
    mlir::Value row = element(out, builder.getI8Type(), LLVM::MulOp::create(builder, loc, i, rowStride), loc);
    if (succeeded(status))
      status = emitLevel(emitter, body, LoopLevel::Row);
    LLVM::LoopAnnotationAttr annotation = startPairLoop(emitter);
    emitter.emitLoop(loc, tile.kvCount, {}, annotation, [&](mlir::Value j, ValueRange) -> SmallVector<mlir::Value> {
      bind(3, position(tile.kvBegin, tile.kvStep, j, loc));
      if (succeeded(status))
        status = emitLevel(emitter, body, LoopLevel::Pair);
      if (failed(status))
        return {};
      mlir::Value attends = emitter.lookup(body.getTerminator()->getOperand(0));
      mlir::Value byte = LLVM::ZExtOp::create(builder, loc, builder.getI8Type(), attends);
      emitter.annotate(LLVM::StoreOp::create(builder, loc, byte, element(row, builder.getI8Type(), j, loc)));
      return {};
    });
    emitter.setAccessGroup({});
    return {};
  });
  LLVM::ReturnOp::create(builder, loc, ValueRange{});
  return status;
}

LogicalResult HostLowering::buildScore(mask::ScoreOp score) {
  OwningOpRef<mask::ScoreOp> copy = score.clone();
  Block &body = copy->getBody().front();
  hoistOutOfReductions(body);
  Location loc = score.getLoc();
  mlir::Type f32 = builder.getF32Type();
  mlir::Value rowStride = startFunction(kScoreName, loc, /*numArguments=*/4, /*exclusive=*/{2});
  mlir::Value scores = argument(2);
  ExpressionEmitter emitter(builder, module, signature, argument(0));
  TileFields tile = readTile(argument(1), loc);
  if (failed(emitter.readBindings(body)))
    return failure();
  computeLevels(body, {LoopLevel::Pair, LoopLevel::Call, LoopLevel::Call, LoopLevel::Row, LoopLevel::Pair});
  auto bind = [&](int index, mlir::Value value) {
    emitter.map(body.getArgument(index), emitter.coordinate(value, body.getArgument(index).getType(), loc));
  };
  bind(1, tile.b);
  bind(2, tile.h);
  LogicalResult status = emitLevel(emitter, body, LoopLevel::Call);
  emitter.emitLoop(loc, tile.qCount, {}, {}, [&](mlir::Value i, ValueRange) -> SmallVector<mlir::Value> {
    bind(3, position(tile.qBegin, tile.qStep, i, loc));
    mlir::Value row = element(scores, f32, LLVM::MulOp::create(builder, loc, i, rowStride), loc);
    if (succeeded(status))
      status = emitLevel(emitter, body, LoopLevel::Row);
    LLVM::LoopAnnotationAttr annotation = startPairLoop(emitter);
    emitter.emitLoop(loc, tile.kvCount, {}, annotation, [&](mlir::Value j, ValueRange) -> SmallVector<mlir::Value> {
      bind(4, position(tile.kvBegin, tile.kvStep, j, loc));
      mlir::Value address = element(row, f32, j, loc);
      auto load = LLVM::LoadOp::create(builder, loc, f32, address);
      emitter.annotate(load);
      emitter.map(body.getArgument(0), load);
      if (succeeded(status))
        status = emitLevel(emitter, body, LoopLevel::Pair);
      if (failed(status))
        return {};
      mlir::Value result = emitter.lookup(body.getTerminator()->getOperand(0));
      emitter.annotate(LLVM::StoreOp::create(builder, loc, result, address));
      return {};
    });
    emitter.setAccessGroup({});
    return {};
  });
  LLVM::ReturnOp::create(builder, loc, ValueRange{});
  return status;
}

/// Whether a residual is so much cheaper than the mask that its code earns the time that LLVM takes for it.
static bool isWorthCode(mask::PredicateOp residual, mask::PredicateOp mask) {
  return 2 * evaluationCost(residual.getYieldedValue()) <= evaluationCost(mask.getYieldedValue());
}

FailureOr<OwningOpRef<ModuleOp>> lowerToHost(ModuleOp module, llvm::StringRef entry, HostGradient gradient) {
  auto attention =
      SymbolTable::lookupNearestSymbolFrom<mask::AttentionOp>(module, StringAttr::get(module.getContext(), entry));
  if (!attention)
    return module.emitError() << "no entry point is named '" << entry << "'";
  module.getContext()->getOrLoadDialect<LLVM::LLVMDialect>();
  OwningOpRef<ModuleOp> hostModule = ModuleOp::create(module.getLoc());
  HostLowering lowering(module, *hostModule);
  auto find = [&]<typename FunctionOp>(llvm::StringRef name, FunctionOp *) {
    return SymbolTable::lookupNearestSymbolFrom<FunctionOp>(module, StringAttr::get(module.getContext(), name));
  };
  if (attention.getMask()) {
    auto predicate = find(*attention.getMask(), static_cast<mask::PredicateOp *>(nullptr));
    assert(predicate && "the verifier of mask.attention checks its symbols");
    if (failed(lowering.buildEvaluateTile(predicate, kEvaluateTileName)))
      return failure();
    for (int number = 1; number < kMostResiduals; ++number) {
      auto residual = find((*attention.getMask() + kResidualSuffix + Twine(number)).str(),
                           static_cast<mask::PredicateOp *>(nullptr));
      if (residual && isWorthCode(residual, predicate) &&
          failed(lowering.buildEvaluateTile(residual, (kEvaluateResidualName + Twine(number)).str())))
        return failure();
    }
  }
  if (attention.getScore()) {
    auto score = find(*attention.getScore(), static_cast<mask::ScoreOp *>(nullptr));
    assert(score && "the verifier of mask.attention checks its symbols");
    if (failed(lowering.buildScore(score)))
      return failure();
    auto derivative = find((*attention.getScore() + ".gradient").str(), static_cast<mask::ScoreGradientOp *>(nullptr));
    if (derivative && gradient == HostGradient::Include && failed(lowering.buildScoreGradient(derivative)))
      return failure();
  }
  return hostModule;
}

} // namespace cpflex
