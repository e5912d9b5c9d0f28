// The loops over rows and keys around a mask or score function. What does not depend on the key is computed once per
// row, what depends on neither once per call; the loop over keys is declared free of dependences, so that it vectorises.
#include "lib/CodeGen/Host/HostCode.h"

#include "lib/Analysis/ProgramSignature.h"
#include "lib/CodeGen/Host/ExpressionEmitter.h"
#include "runtime/contract/HostFunctions.h"

#include <cstddef>

using namespace mlir;

namespace cpflex {
namespace {

/// Where in the loops an operation is computed: once per call, once per row, or for each pair.
enum class Level { Call, Row, Pair };

/// What the coordinates of a call are.
struct TileFields {
  mlir::Value b, h, qBegin, qCount, qStep, kvBegin, kvCount, kvStep;
};

/// Scattered gradients of one mask.scatter_add, kept for a stretch of keys before they are added.
struct ScatterBuffer {
  mask::ScatterAddOp op;
  mlir::Value gradients;     ///< pointer of the capture's gradient array, maybe null
  mlir::Value offsets;       ///< int64_t[kStretch], -1 where nothing is to be added; null for one element per row
  mlir::Value contributions; ///< float[kStretch]
};

/// Keys that scoreGradient handles before it adds to the gradients of captures: two buffers of this length stay in L1.
constexpr int64_t kStretch = 256;

/// Builds the functions of one entry point.
class HostLowering {
public:
  HostLowering(ModuleOp module, ModuleOp hostModule)
      : module(module), builder(module.getContext()), hostModule(hostModule), signature(signatureOf(module)) {}

  LogicalResult buildEvaluateTile(mask::PredicateOp predicate);
  LogicalResult buildScore(mask::ScoreOp score);
  LogicalResult buildScoreGradient(mask::ScoreGradientOp gradient);

private:
  mlir::Value startFunction(llvm::StringRef name, Location loc, int numArguments, llvm::ArrayRef<int> exclusive);
  TileFields readTile(mlir::Value tile, Location loc);
  void computeLevels(Block &body, llvm::ArrayRef<Level> argumentLevels);
  LogicalResult emitLevel(ExpressionEmitter &emitter, Block &body, Level level);
  mlir::Value element(mlir::Value base, mlir::Type type, mlir::Value index, Location loc);
  mlir::Value position(mlir::Value begin, mlir::Value step, mlir::Value index, Location loc);
  LLVM::LoopAnnotationAttr startPairLoop(ExpressionEmitter &emitter);
  mlir::Value isNull(mlir::Value pointer, Location loc);
  void addScattered(ExpressionEmitter &emitter, ScatterBuffer &buffer, mlir::Value count, Location loc);

  mlir::Type pointerType() { return LLVM::LLVMPointerType::get(builder.getContext()); }
  mlir::Value argument(int index) { return function.getArgument(index); }

  ModuleOp module;
  OpBuilder builder;
  ModuleOp hostModule;
  Signature signature;
  LLVM::LLVMFuncOp function;
  llvm::DenseMap<mlir::Operation *, Level> levels;
};

/// Moves what a reduction's body computes alike in every turn to before the reduction.
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

void HostLowering::computeLevels(Block &body, llvm::ArrayRef<Level> argumentLevels) {
  levels.clear();
  for (mlir::Operation &op : body.without_terminator()) {
    Level level = isa<mask::ScatterAddOp>(op) ? Level::Pair : Level::Call;
    op.walk([&](mlir::Operation *inner) {
      for (mlir::Value operand : inner->getOperands()) {
        Level operandLevel = Level::Call;
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

LogicalResult HostLowering::emitLevel(ExpressionEmitter &emitter, Block &body, Level level) {
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

LogicalResult HostLowering::buildEvaluateTile(mask::PredicateOp predicate) {
  OwningOpRef<mask::PredicateOp> copy = predicate.clone();
  Block &body = copy->getBody().front();
  hoistOutOfReductions(body);
  Location loc = predicate.getLoc();
  mlir::Value rowStride = startFunction(kEvaluateTileName, loc, /*numArguments=*/4, /*exclusive=*/{2});
  mlir::Value out = argument(2);
  ExpressionEmitter emitter(builder, module, signature, argument(0));
  TileFields tile = readTile(argument(1), loc);
  if (failed(emitter.readBindings(body)))
    return failure();
  computeLevels(body, {Level::Call, Level::Call, Level::Row, Level::Pair});
  auto bind = [&](int index, mlir::Value value) {
    emitter.map(body.getArgument(index), emitter.coordinate(value, body.getArgument(index).getType(), loc));
  };
  bind(0, tile.b);
  bind(1, tile.h);
  LogicalResult status = emitLevel(emitter, body, Level::Call);
  emitter.emitLoop(loc, tile.qCount, {}, {}, [&](mlir::Value i, ValueRange) -> SmallVector<mlir::Value> {
    bind(2, position(tile.qBegin, tile.qStep, i, loc));
    mlir::Value row = element(out, builder.getI8Type(), LLVM::MulOp::create(builder, loc, i, rowStride), loc);
    if (succeeded(status))
      status = emitLevel(emitter, body, Level::Row);
    LLVM::LoopAnnotationAttr annotation = startPairLoop(emitter);
    emitter.emitLoop(loc, tile.kvCount, {}, annotation, [&](mlir::Value j, ValueRange) -> SmallVector<mlir::Value> {
      bind(3, position(tile.kvBegin, tile.kvStep, j, loc));
      if (succeeded(status))
        status = emitLevel(emitter, body, Level::Pair);
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
  computeLevels(body, {Level::Pair, Level::Call, Level::Call, Level::Row, Level::Pair});
  auto bind = [&](int index, mlir::Value value) {
    emitter.map(body.getArgument(index), emitter.coordinate(value, body.getArgument(index).getType(), loc));
  };
  bind(1, tile.b);
  bind(2, tile.h);
  LogicalResult status = emitLevel(emitter, body, Level::Call);
  emitter.emitLoop(loc, tile.qCount, {}, {}, [&](mlir::Value i, ValueRange) -> SmallVector<mlir::Value> {
    bind(3, position(tile.qBegin, tile.qStep, i, loc));
    mlir::Value row = element(scores, f32, LLVM::MulOp::create(builder, loc, i, rowStride), loc);
    if (succeeded(status))
      status = emitLevel(emitter, body, Level::Row);
    LLVM::LoopAnnotationAttr annotation = startPairLoop(emitter);
    emitter.emitLoop(loc, tile.kvCount, {}, annotation, [&](mlir::Value j, ValueRange) -> SmallVector<mlir::Value> {
      bind(4, position(tile.kvBegin, tile.kvStep, j, loc));
      mlir::Value address = element(row, f32, j, loc);
      auto load = LLVM::LoadOp::create(builder, loc, f32, address);
      emitter.annotate(load);
      emitter.map(body.getArgument(0), load);
      if (succeeded(status))
        status = emitLevel(emitter, body, Level::Pair);
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

//===----------------------------------------------------------------------===//
// Gradients
//===----------------------------------------------------------------------===//

mlir::Value HostLowering::isNull(mlir::Value pointer, Location loc) {
  mlir::Value null = LLVM::ZeroOp::create(builder, loc, pointerType());
  return LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::eq, pointer, null);
}

void HostLowering::addScattered(ExpressionEmitter &emitter, ScatterBuffer &buffer, mlir::Value count, Location loc) {
  mlir::Type f32 = builder.getF32Type(), i64 = builder.getI64Type();
  mlir::Value zero = emitter.constantInt(loc, i64, 0);
  auto addTo = [&](mlir::Value offset, mlir::Value contribution) {
    mlir::Value address = element(buffer.gradients, f32, offset, loc);
    mlir::Value old = LLVM::LoadOp::create(builder, loc, f32, address);
    LLVM::StoreOp::create(builder, loc, LLVM::FAddOp::create(builder, loc, old, contribution), address);
  };
  // Runs `code` where the array is wanted and the offset is inside; yields nothing.
  auto runIf = [&](mlir::Value condition, llvm::function_ref<void()> code) {
    mlir::Value unused = emitter.constantInt(loc, builder.getI1Type(), 0);
    emitter.emitGuarded(loc, condition, unused, [&] {
      code();
      return unused;
    });
  };
  mlir::Value isWanted = LLVM::XOrOp::create(builder, loc, isNull(buffer.gradients, loc),
                                             emitter.constantInt(loc, builder.getI1Type(), 1));
  runIf(isWanted, [&] {
    if (buffer.offsets) {
      emitter.emitLoop(loc, count, {}, {}, [&](mlir::Value j, ValueRange) -> SmallVector<mlir::Value> {
        mlir::Value offset = LLVM::LoadOp::create(builder, loc, i64, element(buffer.offsets, i64, j, loc));
        mlir::Value contribution = LLVM::LoadOp::create(builder, loc, f32, element(buffer.contributions, f32, j, loc));
        mlir::Value isInside = LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::sge, offset, zero);
        runIf(isInside, [&] { addTo(offset, contribution); });
        return {};
      });
      return;
    }
    // One element for the whole row: the sum of the stretch first, in any order, so that few roundings meet a large sum.
    const HostCapture &array = emitter.capture(buffer.op.getCapture());
    SmallVector<mlir::Value> indices = emitter.widenedIndices(buffer.op.getIndices(), loc);
    runIf(emitter.isInside(array, indices, loc), [&] {
      mlir::Value start = LLVM::ConstantOp::create(builder, loc, f32, builder.getF32FloatAttr(0.0f));
      mlir::Value sum = emitter.emitLoop(loc, count, start, {}, [&](mlir::Value j, ValueRange carried) {
        mlir::Value term = LLVM::LoadOp::create(builder, loc, f32, element(buffer.contributions, f32, j, loc));
        auto add = LLVM::FAddOp::create(builder, loc, carried[0], term);
        add.setFastmathFlags(LLVM::FastmathFlags::reassoc);
        return SmallVector<mlir::Value>{add};
      })[0];
      addTo(emitter.denseOffset(array, indices, loc), sum);
    });
  });
}

LogicalResult HostLowering::buildScoreGradient(mask::ScoreGradientOp gradient) {
  OwningOpRef<mask::ScoreGradientOp> copy = gradient.clone();
  Block &body = copy->getBody().front();
  hoistOutOfReductions(body);
  Location loc = gradient.getLoc();
  mlir::Type f32 = builder.getF32Type(), i64 = builder.getI64Type();
  mlir::Value rowStride = startFunction(kScoreGradientName, loc, /*numArguments=*/6, /*exclusive=*/{3});
  mlir::Value scores = argument(2), gradients = argument(3), captureGradients = argument(5);
  ExpressionEmitter emitter(builder, module, signature, argument(0));
  TileFields tile = readTile(argument(1), loc);
  if (failed(emitter.readBindings(body)))
    return failure();
  computeLevels(body, {Level::Pair, Level::Pair, Level::Call, Level::Call, Level::Row, Level::Pair});
  auto bind = [&](int index, mlir::Value value) {
    emitter.map(body.getArgument(index), emitter.coordinate(value, body.getArgument(index).getType(), loc));
  };
  auto levelOf = [&](mlir::Value value) {
    if (auto blockArgument = dyn_cast<BlockArgument>(value)) {
      int index = blockArgument.getArgNumber();
      return index == 2 || index == 3 ? Level::Call : index == 4 ? Level::Row : Level::Pair;
    }
    return levels.lookup(value.getDefiningOp());
  };

  SmallVector<ScatterBuffer> buffers;
  for (auto scatter : body.getOps<mask::ScatterAddOp>()) {
    ScatterBuffer &buffer = buffers.emplace_back();
    buffer.op = scatter;
    mlir::Value slot = emitter.constantInt(loc, i64, captureSlot(signature, scatter.getCapture()));
    buffer.gradients =
        LLVM::LoadOp::create(builder, loc, pointerType(), element(captureGradients, pointerType(), slot, loc));
    mlir::Value length = emitter.constantInt(loc, i64, kStretch);
    buffer.contributions = LLVM::AllocaOp::create(builder, loc, pointerType(), f32, length, /*alignment=*/64);
    if (llvm::any_of(scatter.getIndices(), [&](mlir::Value index) { return levelOf(index) == Level::Pair; }))
      buffer.offsets = LLVM::AllocaOp::create(builder, loc, pointerType(), i64, length, /*alignment=*/64);
  }
  bind(2, tile.b);
  bind(3, tile.h);
  LogicalResult status = emitLevel(emitter, body, Level::Call);
  mlir::Value zeroFloat = LLVM::ConstantOp::create(builder, loc, f32, builder.getF32FloatAttr(0.0f));
  mlir::Value minusOne = emitter.constantInt(loc, i64, -1);

  auto emitPair = [&](mlir::Value scoreRow, mlir::Value gradientRow, mlir::Value first, mlir::Value j) {
    mlir::Value column = LLVM::AddOp::create(builder, loc, first, j, LLVM::IntegerOverflowFlags::nsw);
    bind(5, position(tile.kvBegin, tile.kvStep, column, loc));
    mlir::Value gradientAddress = element(gradientRow, f32, column, loc);
    auto incoming = LLVM::LoadOp::create(builder, loc, f32, gradientAddress);
    auto scoreValue = LLVM::LoadOp::create(builder, loc, f32, element(scoreRow, f32, column, loc));
    emitter.annotate(incoming);
    emitter.annotate(scoreValue);
    emitter.map(body.getArgument(0), incoming);
    emitter.map(body.getArgument(1), scoreValue);
    if (succeeded(status))
      status = emitLevel(emitter, body, Level::Pair);
    if (failed(status))
      return;
    // A pair without incoming gradient contributes 0 even where the derivative is not finite.
    mlir::Value isIdle = LLVM::FCmpOp::create(builder, loc, LLVM::FCmpPredicate::oeq, incoming, zeroFloat);
    auto unlessIdle = [&](mlir::Value value) -> mlir::Value {
      return LLVM::SelectOp::create(builder, loc, isIdle, zeroFloat, value);
    };
    mlir::Value result = unlessIdle(emitter.lookup(body.getTerminator()->getOperand(0)));
    emitter.annotate(LLVM::StoreOp::create(builder, loc, result, gradientAddress));
    for (ScatterBuffer &buffer : buffers) {
      mlir::Value contribution = unlessIdle(emitter.lookup(buffer.op.getValue()));
      emitter.annotate(
          LLVM::StoreOp::create(builder, loc, contribution, element(buffer.contributions, f32, j, loc)));
      if (!buffer.offsets)
        continue;
      const HostCapture &array = emitter.capture(buffer.op.getCapture());
      SmallVector<mlir::Value> indices = emitter.widenedIndices(buffer.op.getIndices(), loc);
      mlir::Value offset =
          LLVM::SelectOp::create(builder, loc, emitter.isInside(array, indices, loc),
                                 emitter.denseOffset(array, indices, loc), minusOne);
      emitter.annotate(LLVM::StoreOp::create(builder, loc, offset, element(buffer.offsets, i64, j, loc)));
    }
  };

  emitter.emitLoop(loc, tile.qCount, {}, {}, [&](mlir::Value i, ValueRange) -> SmallVector<mlir::Value> {
    bind(4, position(tile.qBegin, tile.qStep, i, loc));
    mlir::Value rowOffset = LLVM::MulOp::create(builder, loc, i, rowStride);
    mlir::Value scoreRow = element(scores, f32, rowOffset, loc), gradientRow = element(gradients, f32, rowOffset, loc);
    if (succeeded(status))
      status = emitLevel(emitter, body, Level::Row);
    mlir::Value stretch = emitter.constantInt(loc, i64, kStretch);
    mlir::Value last = emitter.constantInt(loc, i64, kStretch - 1);
    mlir::Value numStretches = LLVM::SDivOp::create(
        builder, loc, LLVM::AddOp::create(builder, loc, tile.kvCount, last), stretch);
    emitter.emitLoop(loc, numStretches, {}, {}, [&](mlir::Value n, ValueRange) -> SmallVector<mlir::Value> {
      mlir::Value first = LLVM::MulOp::create(builder, loc, n, stretch, LLVM::IntegerOverflowFlags::nsw);
      mlir::Value left = LLVM::SubOp::create(builder, loc, tile.kvCount, first);
      mlir::Value count = LLVM::SMinOp::create(builder, loc, left, stretch);
      LLVM::LoopAnnotationAttr annotation = startPairLoop(emitter);
      emitter.emitLoop(loc, count, {}, annotation, [&](mlir::Value j, ValueRange) -> SmallVector<mlir::Value> {
        emitPair(scoreRow, gradientRow, first, j);
        return {};
      });
      emitter.setAccessGroup({});
      if (succeeded(status))
        for (ScatterBuffer &buffer : buffers)
          addScattered(emitter, buffer, count, loc);
      return {};
    });
    return {};
  });
  LLVM::ReturnOp::create(builder, loc, ValueRange{});
  return status;
}

} // namespace

FailureOr<OwningOpRef<ModuleOp>> lowerToHost(ModuleOp module, llvm::StringRef entry, HostGradient gradient) {
  auto attention = SymbolTable::lookupNearestSymbolFrom<mask::AttentionOp>(
      module, StringAttr::get(module.getContext(), entry));
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
    if (failed(lowering.buildEvaluateTile(predicate)))
      return failure();
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
