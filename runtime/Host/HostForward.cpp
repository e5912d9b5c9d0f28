// Forward attention on the CPU: one task per (b, h, 128 rows of Q), each an online softmax over the tiles of keys that
// the mask leaves, in ascending order. A task reads nothing that another writes, so threads cannot change a bit.
#include "runtime/Host/AttentionChecks.h"
#include "runtime/Host/HostKernels.h"
#include "runtime/Host/TileClasses.h"
#include "runtime/Host/TileTensors.h"
#include "runtime/Host/Workspace.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <limits>
#include <optional>

namespace cpflex {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

/// One task and how many tiles it has to visit.
struct RowTask {
  int64_t index; ///< (b * qHeads + h) * numQTiles + qTile
  int64_t numTiles;
};

/// The buffers of one thread.
struct ForwardBuffers {
  ForwardBuffers(const AttentionProblem &problem, WorkspaceCursor &cursor) {
    const int64_t headBlocks = ceilDivide(problem.headDim, kBlockSize);
    const int64_t valueBlocks = ceilDivide(problem.vHeadDim, kBlockSize);
    const int64_t numKVTiles = ceilDivide(problem.kvLen, kBlockSize);
    q = cursor.take<float>(headBlocks * kBlockFloats);
    k = cursor.take<float>(headBlocks * kBlockFloats);
    v = cursor.take<float>(valueBlocks * kBlockFloats);
    out = cursor.take<float>(valueBlocks * kBlockFloats);
    scores = cursor.take<float>(kBlockFloats);
    rowMax = cursor.take<float>(kBlockSize);
    rowSum = cursor.take<float>(kBlockSize);
    rowScale = cursor.take<float>(kBlockSize);
    mask = cursor.take<uint8_t>(kBlockSize * kBlockSize);
    allowed = cursor.take<uint8_t>(kBlockSize * kBlockSize);
    classes = cursor.take<TileClass>(numKVTiles);
    coverage = cursor.take<int32_t>(numKVTiles);
  }

  float *q, *k, *v, *out, *scores;
  float *rowMax, *rowSum, *rowScale;
  uint8_t *mask, *allowed;
  TileClass *classes;
  int32_t *coverage;
};

/// All that a call keeps in its workspace.
struct ForwardLayout {
  ForwardLayout(const AttentionProblem &problem, int numThreads, WorkspaceCursor &cursor) {
    const int64_t numQTiles = ceilDivide(problem.qLen, kBlockSize);
    tasks = cursor.take<RowTask>(problem.batch * problem.qHeads * numQTiles);
    rowCosts = cursor.take<int64_t>((problem.mask ? int64_t(problem.mask->rowSets.size()) : 1) * numQTiles);
    threadBuffers.reserve(numThreads);
    for (int thread = 0; thread < numThreads; ++thread)
      threadBuffers.emplace_back(problem, cursor);
  }

  RowTask *tasks;
  int64_t *rowCosts; ///< non-empty tiles of each row of each row set
  std::vector<ForwardBuffers> threadBuffers;
};

class ForwardCall {
public:
  ForwardCall(const AttentionProblem &problem, const HostForwardTensors &tensors, const HostKernels &kernels,
              const TileClasses &classes)
      : problem_(problem), tensors_(tensors), kernels_(kernels), classes_(classes),
        isSoftmax_(problem.normalization == AttentionProblem::Normalization::Softmax) {}

  void run(int64_t task, ForwardBuffers &buffers) const;

private:
  struct Row {
    int64_t b, h, qTile;
    Range q;
    int numRows() const { return int(q.size()); }
  };

  void start(const Row &row, ForwardBuffers &buffers) const;
  void visitTile(const Row &row, int64_t kvTile, TileClass tileClass, ForwardBuffers &buffers) const;
  void addValues(const Row &row, int numKeys, bool isFinite, ForwardBuffers &buffers) const;
  void finish(const Row &row, ForwardBuffers &buffers) const;

  const AttentionProblem &problem_;
  const HostForwardTensors &tensors_;
  const HostKernels &kernels_;
  const TileClasses &classes_;
  const bool isSoftmax_;
};

void ForwardCall::run(int64_t task, ForwardBuffers &buffers) const {
  const int64_t numQTiles = classes_.numQTiles();
  Row row = {task / numQTiles / problem_.qHeads, task / numQTiles % problem_.qHeads, task % numQTiles, {}};
  row.q = classes_.area(row.qTile, 0).q;
  start(row, buffers);
  classes_.classifyRow(classes_.rowSetOf(row.b, row.h), row.qTile, buffers.classes, buffers.coverage);
  for (int64_t kvTile = 0; kvTile < classes_.numKVTiles(); ++kvTile)
    if (buffers.classes[kvTile] != TileClass::Empty)
      visitTile(row, kvTile, buffers.classes[kvTile], buffers);
  finish(row, buffers);
}

/// Packs Q and sets the running maximum, sum and output: empty, or what the initial partial holds.
void ForwardCall::start(const Row &row, ForwardBuffers &buffers) const {
  const int numRows = row.numRows();
  kernels_.packRows(matrixOf(tensors_.q, row.b, row.h, row.q.begin), numRows, int(problem_.headDim), buffers.q);
  std::fill(buffers.rowMax, buffers.rowMax + numRows, kNegativeInfinity);
  std::fill(buffers.rowSum, buffers.rowSum + numRows, 0.0f);
  if (!tensors_.initial.out.data) {
    std::fill(buffers.out, buffers.out + ceilDivide(problem_.vHeadDim, kBlockSize) * kBlockFloats, 0.0f);
    return;
  }
  // A partial is a running state with sum 1 and its LSE as the maximum.
  kernels_.packRows(matrixOf(tensors_.initial.out, row.b, row.h, row.q.begin), numRows, int(problem_.vHeadDim),
                    buffers.out);
  for (int r = 0; r < numRows && isSoftmax_; ++r) {
    buffers.rowMax[r] = floatAt(tensors_.initial.lse, row.b, row.h, row.q.begin + r);
    buffers.rowSum[r] = buffers.rowMax[r] == kNegativeInfinity ? 0.0f : 1.0f;
  }
}

void ForwardCall::visitTile(const Row &row, int64_t kvTile, TileClass tileClass, ForwardBuffers &buffers) const {
  const TileArea area = classes_.area(row.qTile, kvTile);
  const uint8_t *mask = nullptr;
  if (tileClass == TileClass::Partial) {
    if (!classes_.fillMask(row.b, row.h, area, buffers.mask))
      return;
    mask = buffers.mask;
  }
  const int64_t kvHead = row.h / (problem_.qHeads / problem_.kvHeads);
  const int numRows = row.numRows(), numKeys = int(area.kv.size());
  kernels_.packColumns(matrixOf(tensors_.k, row.b, kvHead, area.kv.begin), numKeys, int(problem_.headDim), buffers.k);
  const bool isFinite =
      kernels_.packRows(matrixOf(tensors_.v, row.b, kvHead, area.kv.begin), numKeys, int(problem_.vHeadDim), buffers.v);

  // scores = score(scale * Q K^T)
  multiplyBlocks(kernels_, buffers.q, buffers.k, buffers.scores, numRows, numKeys, problem_.headDim, problem_.scale);
  if (problem_.functions && problem_.functions->score)
    classes_.forEachPiece(row.b, row.h, area, [&](const TileCoordinates &coordinates, int64_t i, int64_t j) {
      problem_.functions->score(problem_.bindings, &coordinates, buffers.scores + i * kBlockStride + j, kBlockStride);
    });

  uint8_t *allowed = isFinite ? nullptr : buffers.allowed;
  if (isSoftmax_) {
    kernels_.softmaxStep(buffers.scores, numRows, numKeys, mask, buffers.rowMax, buffers.rowSum, buffers.rowScale, allowed);
  } else {
    kernels_.plainWeights(buffers.scores, numRows, numKeys, mask, allowed);
    std::fill(buffers.rowScale, buffers.rowScale + numRows, 1.0f);
  }
  addValues(row, numKeys, isFinite, buffers);
}

/// out = rowScale * out + weights V. With an infinity or NaN in V, a weight of 0 does not hide it, so pairs that the mask
/// forbids are left out one by one.
void ForwardCall::addValues(const Row &row, int numKeys, bool isFinite, ForwardBuffers &buffers) const {
  for (int64_t begin = 0; begin < problem_.vHeadDim; begin += kBlockSize) {
    const int numColumns = int(std::min<int64_t>(kBlockSize, problem_.vHeadDim - begin));
    float *values = buffers.v + begin / kBlockSize * kBlockFloats;
    float *out = buffers.out + begin / kBlockSize * kBlockFloats;
    if (isFinite) {
      kernels_.multiply({.a = buffers.scores, .isATransposed = false, .b = values, .c = out, .cStride = kBlockStride,
                         .numRows = row.numRows(), .numColumns = paddedColumns(numColumns), .depth = numKeys,
                         .use = ProductUse::ScaleRows, .alpha = 1.0f, .rowScale = buffers.rowScale});
      continue;
    }
    for (int r = 0; r < row.numRows(); ++r)
      for (int c = 0; c < numColumns; ++c)
        out[r * kBlockStride + c] *= buffers.rowScale[r];
    addAllowedProducts({.a = buffers.scores, .isATransposed = false, .b = values, .c = out, .cStride = kBlockStride,
                        .numRows = row.numRows(), .numColumns = numColumns, .depth = numKeys,
                        .use = ProductUse::Add, .alpha = 1.0f, .rowScale = nullptr},
                       buffers.allowed);
  }
}

/// Divides by the sum, to which the sink adds exp(sink), and writes out, LSE and maximum.
void ForwardCall::finish(const Row &row, ForwardBuffers &buffers) const {
  const int numRows = row.numRows();
  for (int r = 0; r < numRows; ++r) {
    float lse = kNegativeInfinity;
    const float largest = buffers.rowMax[r], sum = buffers.rowSum[r];
    if (isSoftmax_) {
      const float sink = problem_.sink ? problem_.sink[row.h + problem_.headOffset] : kNegativeInfinity;
      const SoftmaxEnd end = endSoftmax(largest, sum, sink);
      buffers.rowScale[r] = end.outScale;
      lse = end.lse;
    } else {
      buffers.rowScale[r] = 1.0f;
    }
    if (tensors_.lse.data)
      floatAt(tensors_.lse, row.b, row.h, row.q.begin + r) = lse;
    // A maximum never takes a NaN score, but the sum does.
    if (tensors_.rowMax.data)
      floatAt(tensors_.rowMax, row.b, row.h, row.q.begin + r) = std::isnan(sum) && !std::isinf(largest) ? sum : largest;
  }
  kernels_.unpackRows(buffers.out, kBlockStride, kBlockFloats, buffers.rowScale, numRows, int(problem_.vHeadDim),
                      /*isAdding=*/false, matrixOf(tensors_.out, row.b, row.h, row.q.begin));
}

/// Fills in the tasks, those with most tiles first.
void orderTasks(const AttentionProblem &problem, const TileClasses &classes, ForwardLayout &layout) {
  const int64_t numQTiles = classes.numQTiles(), numKVTiles = classes.numKVTiles();
  ForwardBuffers &buffers = layout.threadBuffers.front();
  for (int64_t rowSet = 0; rowSet < classes.numRowSets(); ++rowSet)
    for (int64_t qTile = 0; qTile < numQTiles; ++qTile) {
      int64_t &cost = layout.rowCosts[rowSet * numQTiles + qTile];
      cost = numKVTiles;
      if (problem.mask) {
        classes.classifyRow(rowSet, qTile, buffers.classes, buffers.coverage);
        cost -= std::count(buffers.classes, buffers.classes + numKVTiles, TileClass::Empty);
      }
    }
  const int64_t numTasks = problem.batch * problem.qHeads * numQTiles;
  for (int64_t task = 0; task < numTasks; ++task) {
    int64_t head = task / numQTiles;
    int64_t rowSet = classes.rowSetOf(head / problem.qHeads, head % problem.qHeads);
    layout.tasks[task] = {task, layout.rowCosts[rowSet * numQTiles + task % numQTiles]};
  }
  std::sort(layout.tasks, layout.tasks + numTasks, [](const RowTask &a, const RowTask &b) {
    return a.numTiles != b.numTiles ? a.numTiles > b.numTiles : a.index < b.index;
  });
}

} // namespace

int64_t hostAttentionForwardWorkspaceInBytes(const AttentionProblem &problem, const HostAttentionOptions &options) {
  if (!checkProblem(problem).isOk())
    return 0;
  WorkspaceCursor cursor(nullptr);
  ForwardLayout(problem, numThreadsOf(options), cursor);
  return cursor.neededInBytes();
}

Status hostAttentionForward(const AttentionProblem &problem, const HostForwardTensors &tensors,
                            const HostAttentionOptions &options) {
  using Argument = TensorArgument;
  CPFLEX_RETURN_IF_ERROR(checkProblem(problem));
  CPFLEX_RETURN_IF_ERROR(checkOptions(options));
  const AttentionShapes shapes(problem);
  const bool isSoftmax = problem.normalization == AttentionProblem::Normalization::Softmax;
  if (!isSoftmax && (tensors.lse.data || tensors.rowMax.data))
    return Status::invalid(fmt::format("'{}' is given without softmax; expected null, since it is not defined then",
                                       tensors.lse.data ? "lse" : "rowMax"));
  const bool hasInitial = tensors.initial.out.data != nullptr;
  const Argument arguments[] = {
      tensorArgument("q", tensors.q, shapes.q),
      tensorArgument("k", tensors.k, shapes.k, Argument::Types::LikeFirst),
      tensorArgument("v", tensors.v, shapes.v, Argument::Types::LikeFirst),
      tensorArgument("out", tensors.out, shapes.out, Argument::Types::Any, Argument::Role::Output),
      tensorArgument("lse", tensors.lse, shapes.row, Argument::Types::F32, Argument::Role::Output, /*isOptional=*/true),
      tensorArgument("rowMax", tensors.rowMax, shapes.row, Argument::Types::F32, Argument::Role::Output,
                     /*isOptional=*/true),
      tensorArgument("initial.out", tensors.initial.out, shapes.out, Argument::Types::F32, Argument::Role::InPlace,
                     /*isOptional=*/true),
      tensorArgument("initial.lse", tensors.initial.lse, shapes.row, Argument::Types::F32, Argument::Role::InPlace,
                     /*isOptional=*/!hasInitial || !isSoftmax)};
  CPFLEX_RETURN_IF_ERROR(checkTensors(arguments));
  const int64_t neededInBytes = hostAttentionForwardWorkspaceInBytes(problem, options);
  CPFLEX_RETURN_IF_ERROR(checkWorkspace(options, neededInBytes));

  const Workspace workspace(options.workspace, neededInBytes);
  if (!workspace.begin())
    return outOfMemory(neededInBytes);
  WorkspaceCursor cursor(workspace.begin());
  ForwardLayout layout(problem, numThreadsOf(options), cursor);
  const TileClasses classes(problem);
  orderTasks(problem, classes, layout);

  const ForwardCall call(problem, tensors, *hostKernels(options.instructionSet), classes);
  const int64_t numTasks = problem.batch * problem.qHeads * classes.numQTiles();
  CallThreads threads(options, numTasks);
  threads->run(numTasks,
               [&](int64_t index, int thread) { call.run(layout.tasks[index].index, layout.threadBuffers[thread]); });
  return Status::ok();
}

} // namespace cpflex
