// The gradients of a score function: in the incoming score for each pair, and in captured arrays, whose elements
// receive what many pairs contribute.
#include "lib/CodeGen/Host/HostLowering.h"

#include "lib/CodeGen/Host/HostCode.h"
#include "runtime/contract/HostFunctions.h"

using namespace mlir;

namespace cpflex {

/// Scattered gradients of one mask.scatter_add, kept for a stretch of keys before they are added.
struct HostLowering::ScatterBuffer {
  mask::ScatterAddOp op;
  mlir::Value gradients;     ///< pointer of the capture's gradient array, maybe null
  mlir::Value offsets;       ///< int64_t[kStretch], -1 where nothing is to be added; null for one element per row
  mlir::Value contributions; ///< float[kStretch]
};

/// Keys that scoreGradient handles before it adds to the gradients of captures: two buffers of this length stay in L1.
static constexpr int64_t kStretch = 256;

mlir::Value HostLowering::isNull(mlir::Value pointer, Location loc) {
  mlir::Value null = LLVM::ZeroOp::create(builder, loc, pointerType());
  return LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::eq, pointer, null);
}

bool HostLowering::differsBetweenPairs(mlir::Value value) {
  if (auto blockArgument = dyn_cast<BlockArgument>(value)) {
    // The arguments of mask.score_gradient are (gradient, s, b, h, q, kv); a reduction counts alike for every pair.
    int index = blockArgument.getArgNumber();
    return isa<mask::ScoreGradientOp>(blockArgument.getOwner()->getParentOp()) && (index < 2 || index == 5);
  }
  mlir::Operation *op = value.getDefiningOp();
  if (auto found = levels.find(op); found != levels.end())
    return found->second == LoopLevel::Pair;
  bool differs = false;
  op->walk([&](mlir::Operation *inner) {
    differs |= llvm::any_of(inner->getOperands(), [&](mlir::Value operand) {
      // A value of the operation's own regions is decided by what it is computed from.
      bool isInternal = operand.getDefiningOp() && op->isProperAncestor(operand.getDefiningOp());
      return !isInternal && differsBetweenPairs(operand);
    });
  });
  return differs;
}

void HostLowering::addTo(mlir::Value gradients, mlir::Value offset, mlir::Value contribution, Location loc) {
  mlir::Type f32 = builder.getF32Type();
  mlir::Value address = element(gradients, f32, offset, loc);
  mlir::Value old = LLVM::LoadOp::create(builder, loc, f32, address);
  LLVM::StoreOp::create(builder, loc, LLVM::FAddOp::create(builder, loc, old, contribution), address);
}

void HostLowering::runIf(ExpressionEmitter &emitter, mlir::Value condition, Location loc,
                         llvm::function_ref<void()> code) {
  mlir::Value unused = emitter.constantInt(loc, builder.getI1Type(), 0);
  emitter.emitGuarded(loc, condition, unused, [&] {
    code();
    return unused;
  });
}

mlir::Value HostLowering::gradientsOf(ExpressionEmitter &emitter, mlir::Value captureGradients, mask::ScatterAddOp op) {
  Location loc = op.getLoc();
  mlir::Value slot = emitter.constantInt(loc, builder.getI64Type(), captureSlot(signature, op.getCapture()));
  // Without a table no gradient is wanted: then what is read is a null pointer of our own.
  mlir::Value none = LLVM::AllocaOp::create(builder, loc, pointerType(), pointerType(),
                                            emitter.constantInt(loc, builder.getI64Type(), 1));
  LLVM::StoreOp::create(builder, loc, LLVM::ZeroOp::create(builder, loc, pointerType()), none);
  mlir::Value given = element(captureGradients, pointerType(), slot, loc);
  mlir::Value address = LLVM::SelectOp::create(builder, loc, isNull(captureGradients, loc), none, given);
  return LLVM::LoadOp::create(builder, loc, pointerType(), address);
}

mlir::Value HostLowering::isWanted(ExpressionEmitter &emitter, mlir::Value gradients, Location loc) {
  return LLVM::XOrOp::create(builder, loc, isNull(gradients, loc), emitter.constantInt(loc, builder.getI1Type(), 1));
}

void HostLowering::addScattered(ExpressionEmitter &emitter, ScatterBuffer &buffer, mlir::Value count, Location loc) {
  mlir::Type f32 = builder.getF32Type(), i64 = builder.getI64Type();
  mlir::Value zero = emitter.constantInt(loc, i64, 0);
  runIf(emitter, isWanted(emitter, buffer.gradients, loc), loc, [&] {
    if (buffer.offsets) {
      emitter.emitLoop(loc, count, {}, {}, [&](mlir::Value j, ValueRange) -> SmallVector<mlir::Value> {
        mlir::Value offset = LLVM::LoadOp::create(builder, loc, i64, element(buffer.offsets, i64, j, loc));
        mlir::Value contribution = LLVM::LoadOp::create(builder, loc, f32, element(buffer.contributions, f32, j, loc));
        mlir::Value isInside = LLVM::ICmpOp::create(builder, loc, LLVM::ICmpPredicate::sge, offset, zero);
        runIf(emitter, isInside, loc, [&] { addTo(buffer.gradients, offset, contribution, loc); });
        return {};
      });
      return;
    }
    // One element for the whole row: the sum of the stretch first, in any order, so that few roundings meet a large
    // sum.
    const HostCapture &array = emitter.capture(buffer.op.getCapture());
    SmallVector<mlir::Value> indices = emitter.widenedIndices(buffer.op.getIndices(), loc);
    runIf(emitter, emitter.isInside(array, indices, loc), loc, [&] {
      mlir::Value start = LLVM::ConstantOp::create(builder, loc, f32, builder.getF32FloatAttr(0.0f));
      mlir::Value sum = emitter.emitLoop(loc, count, start, {}, [&](mlir::Value j, ValueRange carried) {
        mlir::Value term = LLVM::LoadOp::create(builder, loc, f32, element(buffer.contributions, f32, j, loc));
        auto add = LLVM::FAddOp::create(builder, loc, carried[0], term);
        add.setFastmathFlags(LLVM::FastmathFlags::reassoc);
        return SmallVector<mlir::Value>{add};
      })[0];
      addTo(buffer.gradients, emitter.denseOffset(array, indices, loc), sum, loc);
    });
  });
}

// Adds what one mask.scatter_add within reductions contributes over a stretch of `count` pairs of one row. `emitPair`
// emits everything outside the reductions for the pair of an index, and gives its incoming gradient.
LogicalResult HostLowering::addScatteredByReduction(ExpressionEmitter &emitter, mask::ScatterAddOp op,
                                                    mlir::Value gradients, mlir::Value count,
                                                    llvm::function_ref<mlir::Value(mlir::Value)> emitPair) {
  Location loc = op.getLoc();
  mlir::Value zero = LLVM::ConstantOp::create(builder, loc, builder.getF32Type(), builder.getF32FloatAttr(0.0f));
  SmallVector<mask::ReduceOp> reductions; // outermost first
  for (auto reduce = op->getParentOfType<mask::ReduceOp>(); reduce; reduce = reduce->getParentOfType<mask::ReduceOp>())
    reductions.insert(reductions.begin(), reduce);
  SmallVector<mlir::Value> turns(reductions.size());
  LogicalResult status = success();
  enum class Part { SameForAllPairs, Everything };
  auto emitBody = [&](size_t depth, Part part) {
    Block &block = reductions[depth].getBody().front();
    emitter.map(block.getArgument(0), emitter.coordinate(turns[depth], block.getArgument(0).getType(), loc));
    for (mlir::Operation &inner : block.without_terminator())
      if (!isa<mask::ScatterAddOp>(inner) && (part == Part::Everything || !differsBetweenPairs(inner.getResult(0))))
        if (succeeded(status))
          status = emitter.emit(&inner);
  };
  // Builds the loops of the reductions from number `depth` on around `code`. Their lengths are the same for all pairs.
  auto emitReductionLoops = [&](auto &self, size_t depth, llvm::function_ref<void()> code) -> void {
    if (depth == reductions.size()) {
      if (succeeded(status))
        code();
      return;
    }
    mlir::Value numTurns = emitter.widenedIndices(reductions[depth].getCount(), loc)[0];
    emitter.emitLoop(loc, numTurns, {}, {}, [&](mlir::Value turn, ValueRange) -> SmallVector<mlir::Value> {
      turns[depth] = turn;
      emitBody(depth, Part::SameForAllPairs);
      if (succeeded(status))
        self(self, depth + 1, code);
      return {};
    });
  };
  auto contributionOf = [&](mlir::Value incoming) -> mlir::Value {
    mlir::Value isIdle = LLVM::FCmpOp::create(builder, loc, LLVM::FCmpPredicate::oeq, incoming, zero);
    return LLVM::SelectOp::create(builder, loc, isIdle, zero, emitter.lookup(op.getValue()));
  };
  // Runs `code` with the offset of the element in its dense array, where there is such an element.
  const HostCapture &array = emitter.capture(op.getCapture());
  auto withOffset = [&](llvm::function_ref<void(mlir::Value)> code) {
    SmallVector<mlir::Value> indices = emitter.widenedIndices(op.getIndices(), loc);
    mlir::Value offset = emitter.denseOffset(array, indices, loc);
    runIf(emitter, emitter.isInside(array, indices, loc), loc, [&] { code(offset); });
  };

  // The loop over pairs inside: it can be vectorised, and one element of all pairs is summed up before it is added.
  using PairCode = llvm::function_ref<SmallVector<mlir::Value>(mlir::Value contribution, ValueRange carried)>;
  auto emitPairLoop = [&](ValueRange initial, PairCode code) {
    return emitter.emitLoop(loc, count, initial, {}, [&](mlir::Value j, ValueRange carried) {
      mlir::Value incoming = emitPair(j);
      for (size_t depth = 0; depth < reductions.size(); ++depth)
        emitBody(depth, Part::Everything);
      return succeeded(status) ? code(contributionOf(incoming), carried) : SmallVector<mlir::Value>(carried);
    });
  };
  const bool isSameElement =
      llvm::none_of(op.getIndices(), [&](mlir::Value index) { return differsBetweenPairs(index); });
  emitReductionLoops(emitReductionLoops, 0, [&] {
    if (!isSameElement) {
      emitPairLoop({}, [&](mlir::Value contribution, ValueRange) -> SmallVector<mlir::Value> {
        withOffset([&](mlir::Value offset) { addTo(gradients, offset, contribution, loc); });
        return {};
      });
      return;
    }
    withOffset([&](mlir::Value offset) {
      mlir::Value sum = emitPairLoop(zero, [&](mlir::Value contribution, ValueRange carried) {
        auto add = LLVM::FAddOp::create(builder, loc, carried[0], contribution);
        add.setFastmathFlags(LLVM::FastmathFlags::reassoc);
        return SmallVector<mlir::Value>{add};
      })[0];
      addTo(gradients, offset, sum, loc);
    });
  });
  return status;
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
  computeLevels(body,
                {LoopLevel::Pair, LoopLevel::Pair, LoopLevel::Call, LoopLevel::Call, LoopLevel::Row, LoopLevel::Pair});
  auto bind = [&](int index, mlir::Value value) {
    emitter.map(body.getArgument(index), emitter.coordinate(value, body.getArgument(index).getType(), loc));
  };
  auto levelOf = [&](mlir::Value value) {
    if (auto blockArgument = dyn_cast<BlockArgument>(value)) {
      int index = blockArgument.getArgNumber();
      return index == 2 || index == 3 ? LoopLevel::Call : index == 4 ? LoopLevel::Row : LoopLevel::Pair;
    }
    return levels.lookup(value.getDefiningOp());
  };

  mlir::Value length = emitter.constantInt(loc, i64, kStretch);
  SmallVector<std::pair<mask::ScatterAddOp, mlir::Value>> reduced; // within reductions, with their gradient arrays
  body.walk([&](mask::ScatterAddOp scatter) {
    if (scatter->getBlock() != &body)
      reduced.push_back({scatter, gradientsOf(emitter, captureGradients, scatter)});
  });
  // The incoming gradients of a stretch: what reductions scatter is computed after they were overwritten.
  mlir::Value kept;
  if (!reduced.empty())
    kept = LLVM::AllocaOp::create(builder, loc, pointerType(), f32, length, /*alignment=*/64);
  SmallVector<ScatterBuffer> buffers;
  for (auto scatter : body.getOps<mask::ScatterAddOp>()) {
    ScatterBuffer &buffer = buffers.emplace_back();
    buffer.op = scatter;
    buffer.gradients = gradientsOf(emitter, captureGradients, scatter);
    buffer.contributions = LLVM::AllocaOp::create(builder, loc, pointerType(), f32, length, /*alignment=*/64);
    if (llvm::any_of(scatter.getIndices(), [&](mlir::Value index) { return levelOf(index) == LoopLevel::Pair; }))
      buffer.offsets = LLVM::AllocaOp::create(builder, loc, pointerType(), i64, length, /*alignment=*/64);
  }
  bind(2, tile.b);
  bind(3, tile.h);
  LogicalResult status = emitLevel(emitter, body, LoopLevel::Call);
  mlir::Value zeroFloat = LLVM::ConstantOp::create(builder, loc, f32, builder.getF32FloatAttr(0.0f));
  mlir::Value minusOne = emitter.constantInt(loc, i64, -1);

  // Emits what differs between pairs for the pair in `column`; gives its incoming gradient.
  auto emitPairValues = [&](mlir::Value scoreRow, mlir::Value column, mlir::Value gradientAddress) -> mlir::Value {
    bind(5, position(tile.kvBegin, tile.kvStep, column, loc));
    auto incoming = LLVM::LoadOp::create(builder, loc, f32, gradientAddress);
    auto scoreValue = LLVM::LoadOp::create(builder, loc, f32, element(scoreRow, f32, column, loc));
    emitter.annotate(incoming);
    emitter.annotate(scoreValue);
    emitter.map(body.getArgument(0), incoming);
    emitter.map(body.getArgument(1), scoreValue);
    if (succeeded(status))
      status = emitLevel(emitter, body, LoopLevel::Pair);
    return incoming;
  };
  auto emitPair = [&](mlir::Value scoreRow, mlir::Value gradientRow, mlir::Value first, mlir::Value j) {
    mlir::Value column = LLVM::AddOp::create(builder, loc, first, j, LLVM::IntegerOverflowFlags::nsw);
    mlir::Value gradientAddress = element(gradientRow, f32, column, loc);
    mlir::Value incoming = emitPairValues(scoreRow, column, gradientAddress);
    if (failed(status))
      return;
    if (kept)
      emitter.annotate(LLVM::StoreOp::create(builder, loc, incoming, element(kept, f32, j, loc)));
    // A pair without incoming gradient contributes 0 even where the derivative is not finite.
    mlir::Value isIdle = LLVM::FCmpOp::create(builder, loc, LLVM::FCmpPredicate::oeq, incoming, zeroFloat);
    auto unlessIdle = [&](mlir::Value value) -> mlir::Value {
      return LLVM::SelectOp::create(builder, loc, isIdle, zeroFloat, value);
    };
    mlir::Value result = unlessIdle(emitter.lookup(body.getTerminator()->getOperand(0)));
    emitter.annotate(LLVM::StoreOp::create(builder, loc, result, gradientAddress));
    for (ScatterBuffer &buffer : buffers) {
      mlir::Value contribution = unlessIdle(emitter.lookup(buffer.op.getValue()));
      emitter.annotate(LLVM::StoreOp::create(builder, loc, contribution, element(buffer.contributions, f32, j, loc)));
      if (!buffer.offsets)
        continue;
      const HostCapture &array = emitter.capture(buffer.op.getCapture());
      SmallVector<mlir::Value> indices = emitter.widenedIndices(buffer.op.getIndices(), loc);
      mlir::Value offset = LLVM::SelectOp::create(builder, loc, emitter.isInside(array, indices, loc),
                                                  emitter.denseOffset(array, indices, loc), minusOne);
      emitter.annotate(LLVM::StoreOp::create(builder, loc, offset, element(buffer.offsets, i64, j, loc)));
    }
  };

  emitter.emitLoop(loc, tile.qCount, {}, {}, [&](mlir::Value i, ValueRange) -> SmallVector<mlir::Value> {
    bind(4, position(tile.qBegin, tile.qStep, i, loc));
    mlir::Value rowOffset = LLVM::MulOp::create(builder, loc, i, rowStride);
    mlir::Value scoreRow = element(scores, f32, rowOffset, loc), gradientRow = element(gradients, f32, rowOffset, loc);
    if (succeeded(status))
      status = emitLevel(emitter, body, LoopLevel::Row);
    mlir::Value stretch = emitter.constantInt(loc, i64, kStretch);
    mlir::Value last = emitter.constantInt(loc, i64, kStretch - 1);
    mlir::Value numStretches =
        LLVM::SDivOp::create(builder, loc, LLVM::AddOp::create(builder, loc, tile.kvCount, last), stretch);
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
      for (auto &[scatter, gradients] : reduced)
        runIf(emitter, isWanted(emitter, gradients, loc), loc, [&] {
          auto keptPair = [&](mlir::Value j) {
            mlir::Value column = LLVM::AddOp::create(builder, loc, first, j, LLVM::IntegerOverflowFlags::nsw);
            return emitPairValues(scoreRow, column, element(kept, f32, j, loc));
          };
          if (succeeded(status))
            status = addScatteredByReduction(emitter, scatter, gradients, count, keptPair);
        });
      return {};
    });
    return {};
  });
  LLVM::ReturnOp::create(builder, loc, ValueRange{});
  return status;
}

} // namespace cpflex
