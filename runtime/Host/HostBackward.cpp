// Backward attention on the CPU. A task owns some tiles of keys of one (b, kv head): it holds their dK and dV while it
// walks the rows that see them, and adds their part of dQ to an f32 copy that no other task touches. The copies are
// added in order at the end. How keys are cut into tasks depends on the problem alone, so the bits do not depend on
// threads.
#include "runtime/Host/BackwardBuffers.h"
#include "runtime/Host/TileTensors.h"
#include "runtime/Host/WeightScale.h"

#include <cmath>
#include <cstring>
#include <fmt/format.h>
#include <limits>

namespace cpflex {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

class BackwardCall {
public:
  BackwardCall(const AttentionProblem &problem, const HostBackwardTensors &tensors, const HostKernels &kernels,
               const TileClasses &classes, const BackwardLayout &layout)
      : problem_(problem), tensors_(tensors), kernels_(kernels), classes_(classes), layout_(layout),
        scoreProduct_(kernels, tensors.q, tensors.k, problem.headDim),
        weightProduct_(kernels, tensors.dOut, tensors.v, problem.vHeadDim),
        isSoftmax_(problem.normalization == AttentionProblem::Normalization::Softmax),
        headsPerGroup_(problem.kvHeads > 0 ? problem.qHeads / problem.kvHeads : 0) {}

  /// All keys of one task; `lane` is used by no other running task, or null.
  void runUnit(int64_t unit, BackwardBuffers &buffers, const CaptureLane *lane) const;
  /// dQ of one tile of rows from the copies.
  void sumQueryGradients(int64_t task) const;
  void sumSinkGradient(int64_t h) const;

private:
  /// One pair of tiles.
  struct Pair {
    int64_t b, h, kvHead;
    TileArea area;
    bool isPartial;
    float *queryGradients; ///< first row of the tile in the task's copy of dQ
    TileExtent extent;
    int numRows() const { return int(area.q.size()); }
    int numKeys() const { return int(area.kv.size()); }
  };
  struct Finiteness {
    bool q, k, dOut;
  };
  /// What the weights or gradients of a pair of tiles are multiplied with and added to. `isTransposed`: rows of the
  /// result are keys, otherwise queries.
  struct Target {
    bool isTransposed;
    const float *operand; ///< blocks
    float *result;
    int64_t stride, blockStep; ///< floats between rows, and between blocks of columns, of the result
    int64_t numColumns;
    float alpha;
  };

  Range tilesOf(int64_t b, int64_t kvHead, int64_t slot) const;
  void runColumn(int64_t b, int64_t kvHead, int64_t slot, int64_t kvTile, BackwardBuffers &buffers,
                 const CaptureLane *lane) const;
  void visitPair(Pair &pair, Finiteness finiteness, BackwardBuffers &buffers, const CaptureLane *lane) const;
  void scoresAndWeights(const Pair &pair, const uint8_t *mask, uint8_t *allowed, BackwardBuffers &buffers) const;
  void gradientsOfScores(const Pair &pair, const uint8_t *allowed, BackwardBuffers &buffers,
                         const CaptureLane *lane) const;
  void addProducts(const Pair &pair, const float *pairs, Target target, const uint8_t *allowed) const;

  const AttentionProblem &problem_;
  const HostBackwardTensors &tensors_;
  const HostKernels &kernels_;
  const TileClasses &classes_;
  const BackwardLayout &layout_;
  const RowProduct scoreProduct_;  ///< Q K^T
  const RowProduct weightProduct_; ///< dOut V^T
  const bool isSoftmax_;
  const int64_t headsPerGroup_;
};

/// The tiles of keys of one slot: slots share the work (counted in pairs of tiles) of a (b, kv head) evenly.
Range BackwardCall::tilesOf(int64_t b, int64_t kvHead, int64_t slot) const {
  const int64_t numKVTiles = classes_.numKVTiles();
  auto workOf = [&](int64_t kvTile) {
    int64_t work = 1;
    for (int64_t h = kvHead * headsPerGroup_; h < (kvHead + 1) * headsPerGroup_; ++h)
      work += layout_.columns.numTiles(classes_.rowSetOf(b, h), kvTile);
    return work;
  };
  int64_t total = 0;
  for (int64_t kvTile = 0; kvTile < numKVTiles; ++kvTile)
    total += workOf(kvTile);
  Range tiles = {numKVTiles, numKVTiles};
  int64_t before = 0;
  for (int64_t kvTile = 0; kvTile < numKVTiles; ++kvTile) {
    const int64_t slotOfTile = before * layout_.numSlots / total;
    if (slotOfTile == slot && kvTile < tiles.begin)
      tiles.begin = kvTile;
    if (slotOfTile > slot) {
      tiles.end = kvTile;
      break;
    }
    before += workOf(kvTile);
  }
  return {std::min(tiles.begin, tiles.end), tiles.end};
}

void BackwardCall::runUnit(int64_t unit, BackwardBuffers &buffers, const CaptureLane *lane) const {
  const int64_t slot = unit % layout_.numSlots, group = unit / layout_.numSlots;
  const int64_t b = group / problem_.kvHeads, kvHead = group % problem_.kvHeads;
  if (layout_.queryGradients)
    for (int64_t h = kvHead * headsPerGroup_; h < (kvHead + 1) * headsPerGroup_; ++h)
      std::fill_n(layout_.queryGradientRows(slot, b, h, 0), problem_.qLen * layout_.queryGradientStride, 0.0f);
  const Range tiles = tilesOf(b, kvHead, slot);
  for (int64_t kvTile = tiles.begin; kvTile < tiles.end; ++kvTile)
    runColumn(b, kvHead, slot, kvTile, buffers, lane);
}

void BackwardCall::runColumn(int64_t b, int64_t kvHead, int64_t slot, int64_t kvTile, BackwardBuffers &buffers,
                             const CaptureLane *lane) const {
  const Range keys = classes_.area(0, kvTile).kv;
  const int numKeys = int(keys.size()), headDim = int(problem_.headDim), vHeadDim = int(problem_.vHeadDim);
  const MatrixView kMatrix = matrixOf(tensors_.k, b, kvHead, keys.begin);
  Finiteness finiteness = {};
  finiteness.k = kernels_.packRows(kMatrix, numKeys, headDim, buffers.k);
  scoreProduct_.packB(kMatrix, numKeys, buffers.kTransposed);
  weightProduct_.packB(matrixOf(tensors_.v, b, kvHead, keys.begin), numKeys, buffers.vTransposed);
  std::fill_n(buffers.dK, ceilDivide(headDim, kBlockSize) * kBlockFloats, 0.0f);
  std::fill_n(buffers.dV, ceilDivide(vHeadDim, kBlockSize) * kBlockFloats, 0.0f);

  for (int64_t h = kvHead * headsPerGroup_; h < (kvHead + 1) * headsPerGroup_; ++h) {
    const int64_t rowSet = classes_.rowSetOf(b, h);
    for (int64_t i = 0; i < layout_.columns.numTiles(rowSet, kvTile); ++i) {
      const ColumnTile tile = layout_.columns.tile(rowSet, kvTile, i);
      Pair pair = {b, h, kvHead, classes_.area(tile.qTile, kvTile), tile.isPartial != 0, nullptr, {}};
      if (layout_.queryGradients)
        pair.queryGradients = layout_.queryGradientRows(slot, b, h, pair.area.q.begin);
      const MatrixView qMatrix = matrixOf(tensors_.q, b, h, pair.area.q.begin);
      const MatrixView dOutMatrix = matrixOf(tensors_.dOut, b, h, pair.area.q.begin);
      finiteness.q = kernels_.packRows(qMatrix, pair.numRows(), headDim, buffers.q);
      finiteness.dOut = kernels_.packRows(dOutMatrix, pair.numRows(), vHeadDim, buffers.dOut);
      if (scoreProduct_.isPaired())
        scoreProduct_.packA(qMatrix, pair.numRows(), buffers.qPairs);
      if (weightProduct_.isPaired())
        weightProduct_.packA(dOutMatrix, pair.numRows(), buffers.dOutPairs);
      visitPair(pair, finiteness, buffers, lane);
    }
  }
  const bool isAdding = tensors_.keyWrite == GradientWrite::Add;
  if (tensors_.dK.data)
    kernels_.unpackRows(buffers.dK, kBlockStride, kBlockFloats, nullptr, numKeys, headDim, isAdding,
                        matrixOf(tensors_.dK, b, kvHead, keys.begin));
  if (tensors_.dV.data)
    kernels_.unpackRows(buffers.dV, kBlockStride, kBlockFloats, nullptr, numKeys, vHeadDim, isAdding,
                        matrixOf(tensors_.dV, b, kvHead, keys.begin));
}

/// S = scale Q K^T, its score, and what forward made of it: weightScale exp(score - LSE), or the score itself without
/// softmax.
void BackwardCall::scoresAndWeights(const Pair &pair, const uint8_t *mask, uint8_t *allowed,
                                    BackwardBuffers &buffers) const {
  scoreProduct_.multiply(scoreProduct_.isPaired() ? buffers.qPairs : buffers.q, buffers.kTransposed, buffers.weights,
                         pair.numRows(), pair.extent, problem_.scale);
  if (problem_.functions && problem_.functions->scoreGradient)
    std::memcpy(buffers.incoming, buffers.weights, size_t(pair.numRows()) * kBlockStride * sizeof(float));
  if (problem_.functions && problem_.functions->score)
    classes_.forEachPiece(pair.b, pair.h, pair.area, [&](const TileCoordinates &coordinates, int64_t i, int64_t j) {
      problem_.functions->score(problem_.bindings, &coordinates, buffers.weights + i * kBlockStride + j, kBlockStride);
    });
  if (!isSoftmax_) {
    kernels_.plainWeights(buffers.weights, pair.numRows(), pair.numKeys(), mask, allowed);
    return;
  }
  float lse[kBlockSize];
  for (int r = 0; r < pair.numRows(); ++r)
    lse[r] = floatAt(tensors_.lse, pair.b, pair.h, pair.area.q.begin + r);
  kernels_.probabilities(buffers.weights, pair.numRows(), pair.numKeys(), mask, lse, allowed);
  for (int r = 0; r < pair.numRows(); ++r) {
    const float scale = floatAt(layout_.weightScale, pair.b, pair.h, pair.area.q.begin + r);
    float *row = buffers.weights + r * kBlockStride;
    for (int c = 0; c < pair.numKeys() && scale != 1.0f; ++c)
      row[c] *= scale;
  }
}

/// dP = dOut V^T; dS = P (dP - rowTerm) with softmax, dP without; then through the score function.
void BackwardCall::gradientsOfScores(const Pair &pair, const uint8_t *allowed, BackwardBuffers &buffers,
                                     const CaptureLane *lane) const {
  weightProduct_.multiply(weightProduct_.isPaired() ? buffers.dOutPairs : buffers.dOut, buffers.vTransposed,
                          buffers.gradients, pair.numRows(), pair.extent, /*alpha=*/1.0f);
  if (isSoftmax_) {
    float rowTerm[kBlockSize];
    for (int r = 0; r < pair.numRows(); ++r)
      rowTerm[r] = floatAt(layout_.rowTerm, pair.b, pair.h, pair.area.q.begin + r);
    kernels_.scoreGradients(buffers.weights, buffers.gradients, pair.numRows(), pair.numKeys(), rowTerm);
  } else {
    kernels_.clearForbidden(buffers.gradients, pair.numRows(), pair.numKeys(), allowed);
  }
  if (problem_.functions && problem_.functions->scoreGradient)
    classes_.forEachPiece(pair.b, pair.h, pair.area, [&](const TileCoordinates &coordinates, int64_t i, int64_t j) {
      const int64_t corner = i * kBlockStride + j;
      problem_.functions->scoreGradient(problem_.bindings, &coordinates, buffers.incoming + corner,
                                        buffers.gradients + corner, kBlockStride, lane ? lane->arrays.data() : nullptr);
    });
  if (lane)
    lane->flush(layout_.captureSizes);
}

/// result += alpha * pairs * operand (or with pairs transposed) where the extent has pairs; only the pairs of
/// `allowed`, one by one, when it is given.
void BackwardCall::addProducts(const Pair &pair, const float *pairs, Target target, const uint8_t *allowed) const {
  const TileExtent extent = allowed ? TileExtent::whole(pair.numRows(), pair.numKeys()) : pair.extent;
  for (int i = 0; i < TileExtent::kNumStripes; ++i) {
    const Range rows = extent.stripe(i, target.isTransposed ? pair.numKeys() : pair.numRows());
    const Range depth = target.isTransposed ? extent.rows[i] : extent.columns[i];
    if (rows.isEmpty() || depth.isEmpty())
      continue;
    const int64_t corner =
        target.isTransposed ? depth.begin * kBlockStride + rows.begin : rows.begin * kBlockStride + depth.begin;
    for (int64_t begin = 0; begin < target.numColumns; begin += kBlockSize) {
      const int64_t block = begin / kBlockSize;
      const Product product = {.a = pairs + corner,
                               .isATransposed = target.isTransposed,
                               .b = target.operand + block * kBlockFloats + depth.begin * kBlockStride,
                               .c = target.result + block * target.blockStep + rows.begin * target.stride,
                               .cStride = target.stride,
                               .numRows = int(rows.size()),
                               .numColumns = paddedColumns(std::min<int64_t>(kBlockSize, target.numColumns - begin)),
                               .depth = int(depth.size()),
                               .use = ProductUse::Add,
                               .alpha = target.alpha,
                               .rowScale = nullptr};
      if (allowed)
        addAllowedProducts(product, allowed);
      else
        kernels_.multiply(product);
    }
  }
}

void BackwardCall::visitPair(Pair &pair, Finiteness finiteness, BackwardBuffers &buffers,
                             const CaptureLane *lane) const {
  const uint8_t *mask = nullptr;
  pair.extent = TileExtent::whole(pair.numRows(), pair.numKeys());
  if (pair.isPartial) {
    if (!classes_.fillMask(pair.b, pair.h, pair.area, buffers.mask, pair.extent))
      return;
    mask = buffers.mask;
  }
  // A weight of 0 does not hide an infinity or NaN of an operand; pairs that the mask forbids are left out then.
  const bool isAllFinite = finiteness.q && finiteness.k && finiteness.dOut;
  uint8_t *allowed = isAllFinite && isSoftmax_ ? nullptr : buffers.allowed;
  scoresAndWeights(pair, mask, allowed, buffers);
  if (tensors_.dV.data)
    addProducts(pair, buffers.weights,
                {.isTransposed = true,
                 .operand = buffers.dOut,
                 .result = buffers.dV,
                 .stride = kBlockStride,
                 .blockStep = kBlockFloats,
                 .numColumns = problem_.vHeadDim,
                 .alpha = 1.0f},
                finiteness.dOut ? nullptr : allowed);
  if (!tensors_.dQ.data && !tensors_.dK.data && !lane)
    return;
  gradientsOfScores(pair, allowed, buffers, lane);
  if (tensors_.dQ.data)
    addProducts(pair, buffers.gradients,
                {.isTransposed = false,
                 .operand = buffers.k,
                 .result = pair.queryGradients,
                 .stride = layout_.queryGradientStride,
                 .blockStep = kBlockSize,
                 .numColumns = problem_.headDim,
                 .alpha = problem_.scale},
                finiteness.k ? nullptr : allowed);
  if (tensors_.dK.data)
    addProducts(pair, buffers.gradients,
                {.isTransposed = true,
                 .operand = buffers.q,
                 .result = buffers.dK,
                 .stride = kBlockStride,
                 .blockStep = kBlockFloats,
                 .numColumns = problem_.headDim,
                 .alpha = problem_.scale},
                finiteness.q ? nullptr : allowed);
}

void BackwardCall::sumQueryGradients(int64_t task) const {
  const int64_t numQTiles = classes_.numQTiles(), head = task / numQTiles;
  const int64_t b = head / problem_.qHeads, h = head % problem_.qHeads;
  const Range rows = {task % numQTiles * kBlockSize, std::min((task % numQTiles + 1) * kBlockSize, problem_.qLen)};
  float *sums = layout_.queryGradientRows(/*slot=*/0, b, h, rows.begin);
  for (int64_t slot = 1; slot < layout_.numSlots; ++slot) {
    const float *copy = layout_.queryGradientRows(slot, b, h, rows.begin);
    for (int64_t i = 0; i < rows.size() * layout_.queryGradientStride; ++i)
      sums[i] += copy[i];
  }
  kernels_.unpackRows(sums, layout_.queryGradientStride, kBlockSize, nullptr, int(rows.size()), int(problem_.headDim),
                      tensors_.queryWrite == GradientWrite::Add, matrixOf(tensors_.dQ, b, h, rows.begin));
}

/// d loss / d sink = -sum over rows of weightScale exp(sink - LSE) rowTerm.
void BackwardCall::sumSinkGradient(int64_t h) const {
  const int64_t globalHead = h + problem_.headOffset;
  double sum = 0;
  for (int64_t b = 0; b < problem_.batch; ++b)
    for (int64_t row = 0; row < problem_.qLen; ++row) {
      const float lse = floatAt(tensors_.lse, b, h, row);
      if (problem_.sink[globalHead] != kNegativeInfinity && lse != kNegativeInfinity)
        sum -= std::exp(double(problem_.sink[globalHead]) - lse) * floatAt(layout_.weightScale, b, h, row) *
               floatAt(layout_.rowTerm, b, h, row);
    }
  float &gradient = tensors_.sinkGradient[globalHead];
  gradient = float(sum) + (tensors_.arrayWrite == GradientWrite::Add ? gradient : 0.0f);
}

/// One row's dot(dOut, out), in eight chains of f32 whose sum is in double.
double dotOfRows(const HostKernels &kernels, MatrixView a, MatrixView b, int64_t numColumns) {
  double total = 0;
  for (int64_t begin = 0; begin < numColumns; begin += kBlockSize) {
    float left[kBlockStride] = {}, right[kBlockStride] = {}, sums[8] = {};
    const int count = int(std::min<int64_t>(kBlockSize, numColumns - begin));
    kernels.packRows(a, 1, count, left);
    kernels.packRows(b, 1, count, right);
    for (int c = 0; c < paddedColumns(count); c += 8)
      for (int lane = 0; lane < 8; ++lane)
        sums[lane] += left[c + lane] * right[c + lane];
    for (float sum : sums)
      total += sum;
    a.data = static_cast<char *>(a.data) + kBlockSize * a.columnStride * sizeInBytes(a.type);
    b.data = static_cast<char *>(b.data) + kBlockSize * b.columnStride * sizeInBytes(b.type);
  }
  return total;
}

void computeRowTerm(const AttentionProblem &problem, const TensorView &out, const TensorView &dOut,
                    const TensorView &dLse, const TensorView &rowTerm, const HostKernels &kernels,
                    HostThreads &threads) {
  const int64_t blocksPerHead = ceilDivide(problem.qLen, kBlockSize);
  threads.run(problem.batch * problem.qHeads * blocksPerHead, [&](int64_t task, int) {
    const int64_t head = task / blocksPerHead, b = head / problem.qHeads, h = head % problem.qHeads;
    const int64_t begin = task % blocksPerHead * kBlockSize;
    for (int64_t row = begin; row < std::min(begin + kBlockSize, problem.qLen); ++row) {
      double term = dotOfRows(kernels, matrixOf(dOut, b, h, row), matrixOf(out, b, h, row), problem.vHeadDim);
      if (dLse.data)
        term -= floatAt(dLse, b, h, row);
      floatAt(rowTerm, b, h, row) = float(term);
    }
  });
}

void clearCaptureCopies(const BackwardLayout &layout) {
  for (const CaptureLane &lane : layout.lanes)
    for (size_t capture = 0; capture < layout.captureSizes.size(); ++capture) {
      if (lane.arrays[capture])
        std::fill_n(lane.arrays[capture], layout.captureSizes[capture], 0.0f);
      if (lane.sums[capture])
        std::fill_n(lane.sums[capture], layout.captureSizes[capture], 0.0);
    }
}

/// Adds the copies of one capture's gradient in order and hands the sum to the caller.
void writeCaptureGradient(const BackwardLayout &layout, const HostBackwardTensors &tensors, int capture) {
  float *to = tensors.captureGradients[capture];
  for (int64_t i = 0; i < layout.captureSizes[capture]; ++i) {
    double sum = 0.0;
    for (const CaptureLane &lane : layout.lanes)
      sum += lane.sums[capture] ? lane.sums[capture][i] : double(lane.arrays[capture][i]);
    to[i] = tensors.arrayWrite == GradientWrite::Add ? to[i] + float(sum) : float(sum);
  }
}

Status checkBackward(const AttentionProblem &problem, const HostBackwardTensors &tensors) {
  using Argument = CheckedTensor;
  const AttentionShapes shapes(problem);
  const bool isSoftmax = problem.normalization == AttentionProblem::Normalization::Softmax;
  const bool isOutNeeded = isSoftmax && !tensors.rowTerm.data;
  const auto typesOf = [](GradientWrite write) {
    return write == GradientWrite::Add ? Argument::Types::F32 : Argument::Types::Any;
  };
  const Argument arguments[] = {
      tensorArgument("q", tensors.q, shapes.q),
      tensorArgument("k", tensors.k, shapes.k, Argument::Types::LikeFirst),
      tensorArgument("v", tensors.v, shapes.v, Argument::Types::LikeFirst),
      tensorArgument("out", tensors.out, shapes.out, Argument::Types::Any, Argument::Role::Input, !isOutNeeded),
      tensorArgument("lse", tensors.lse, shapes.row, Argument::Types::F32, Argument::Role::Input, !isSoftmax),
      tensorArgument("dOut", tensors.dOut, shapes.out),
      tensorArgument("dLse", tensors.dLse, shapes.row, Argument::Types::F32, Argument::Role::Input,
                     /*isOptional=*/true),
      tensorArgument("rowTerm", tensors.rowTerm, shapes.row, Argument::Types::F32, Argument::Role::Input,
                     /*isOptional=*/true),
      tensorArgument("dQ", tensors.dQ, shapes.q, typesOf(tensors.queryWrite), Argument::Role::Output,
                     /*isOptional=*/true),
      tensorArgument("dK", tensors.dK, shapes.k, typesOf(tensors.keyWrite), Argument::Role::Output,
                     /*isOptional=*/true),
      tensorArgument("dV", tensors.dV, shapes.v, typesOf(tensors.keyWrite), Argument::Role::Output,
                     /*isOptional=*/true)};
  CPFLEX_RETURN_IF_ERROR(checkTensors(arguments));
  if (tensors.numCaptures < 0)
    return Status::invalid(fmt::format("'numCaptures' is {}; expected 0 or more", tensors.numCaptures));
  if (tensors.captureGradients && tensors.numCaptures > 0 && (!problem.bindings || !problem.bindings->captures))
    return Status::invalid(
        fmt::format("'captureGradients' has {} entries, but 'bindings' has no captures; expected the "
                    "captures that the functions read",
                    tensors.numCaptures));
  if (tensors.sinkGradient && (!problem.sink || !isSoftmax))
    return Status::invalid("'sinkGradient' is given without 'sink'; expected null");
  return Status::ok();
}

} // namespace

int64_t hostAttentionBackwardWorkspaceInBytes(const AttentionProblem &problem, const HostBackwardTensors &tensors,
                                              const HostAttentionOptions &options) {
  if (!checkProblem(problem).isOk() || !checkBackward(problem, tensors).isOk())
    return 0;
  WorkspaceCursor cursor(nullptr);
  BackwardLayout(problem, tensors, numThreadsOf(options), cursor);
  return cursor.neededInBytes();
}

Status hostAttentionBackward(const AttentionProblem &problem, const HostBackwardTensors &tensors,
                             const HostAttentionOptions &options) {
  CPFLEX_RETURN_IF_ERROR(checkProblem(problem));
  CPFLEX_RETURN_IF_ERROR(checkOptions(options));
  CPFLEX_RETURN_IF_ERROR(checkBackward(problem, tensors));
  const int64_t neededInBytes = hostAttentionBackwardWorkspaceInBytes(problem, tensors, options);
  CPFLEX_RETURN_IF_ERROR(checkWorkspace(options, neededInBytes));
  const Workspace workspace(options.workspace, neededInBytes);
  if (!workspace.begin())
    return outOfMemory(neededInBytes);
  WorkspaceCursor cursor(workspace.begin());
  BackwardLayout layout(problem, tensors, numThreadsOf(options), cursor);
  const HostKernels &kernels = *hostKernels(options.instructionSet);
  const TileClasses classes(problem);
  layout.columns.build(classes, layout.threadBuffers.front().classes, layout.threadBuffers.front().coverage);
  const int64_t numUnits = problem.batch * problem.kvHeads * layout.numSlots;
  const int64_t numQTasks = problem.batch * problem.qHeads * classes.numQTiles();
  CallThreads threads(options, std::max(numUnits, numQTasks));

  // 1. rowTerm = dot(dOut, out) - dLse, unless the caller has it; what the rounding of LSE does to the weights.
  const bool isSoftmax = problem.normalization == AttentionProblem::Normalization::Softmax;
  if (isSoftmax && !tensors.rowTerm.data)
    computeRowTerm(problem, tensors.out, tensors.dOut, tensors.dLse, layout.rowTerm, kernels, threads.get());
  if (isSoftmax)
    computeWeightScale(problem, tensors, kernels, classes, layout, threads.get());
  // 2. dK, dV, the copies of dQ and of the captures' gradients. Units of one lane run one after the other.
  const BackwardCall call(problem, tensors, kernels, classes, layout);
  clearCaptureCopies(layout);
  const int64_t numLanes = int64_t(layout.lanes.size());
  if (numLanes == 0)
    threads->run(numUnits,
                 [&](int64_t unit, int thread) { call.runUnit(unit, layout.threadBuffers[thread], /*lane=*/nullptr); });
  else
    threads->run(numLanes, [&](int64_t lane, int thread) {
      for (int64_t unit = lane; unit < numUnits; unit += numLanes)
        call.runUnit(unit, layout.threadBuffers[thread], &layout.lanes[lane]);
    });
  // 3. The sums of the copies.
  if (tensors.dQ.data)
    threads->run(numQTasks, [&](int64_t task, int) { call.sumQueryGradients(task); });
  for (int capture = 0; capture < int(layout.captureSizes.size()); ++capture)
    if (tensors.captureGradients[capture])
      writeCaptureGradient(layout, tensors, capture);
  if (tensors.sinkGradient)
    threads->run(problem.qHeads, [&](int64_t h, int) { call.sumSinkGradient(h); });
  return Status::ok();
}

Status hostAttentionRowTerm(const AttentionProblem &problem, const TensorView &out, const TensorView &dOut,
                            const TensorView &dLse, const TensorView &rowTerm, const HostAttentionOptions &options) {
  using Argument = CheckedTensor;
  CPFLEX_RETURN_IF_ERROR(checkOptions(options));
  const AttentionShapes shapes(problem);
  const Argument arguments[] = {
      tensorArgument("out", out, shapes.out), tensorArgument("dOut", dOut, shapes.out),
      tensorArgument("dLse", dLse, shapes.row, Argument::Types::F32, Argument::Role::Input, /*isOptional=*/true),
      tensorArgument("rowTerm", rowTerm, shapes.row, Argument::Types::F32, Argument::Role::Output)};
  CPFLEX_RETURN_IF_ERROR(checkTensors(arguments));
  CallThreads threads(options, problem.batch * problem.qHeads * ceilDivide(problem.qLen, kBlockSize));
  computeRowTerm(problem, out, dOut, dLse, rowTerm, *hostKernels(options.instructionSet), threads.get());
  return Status::ok();
}

} // namespace cpflex
