// Forward attention on the CPU: an online softmax for each tile of 128 rows over the tiles of keys that the mask
// leaves, in ascending order. A task takes a few such tiles that share keys, packs the keys once for all, and reads
// nothing that another task writes, so neither threads nor the cut into tasks can change a bit.
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

/// Most tiles of rows that a task takes.
constexpr int64_t kMaxRowsPerTask = 4;
/// Bytes of blocks that a task may use: most of the second-level cache of a core.
constexpr int64_t kCacheBytes = 800 * 1024;
/// Tasks wanted for each thread, so that the last ones to end do not leave the others waiting long.
constexpr int64_t kTasksPerThread = 4;

/// How a problem is cut. The tiles of rows of one (b, kv head) are numbered tile * headsPerGroup + head, so that
/// neighbours see the same keys; a task takes rowsPerTask of them.
struct ForwardCut {
  ForwardCut(const AttentionProblem &problem, int numThreads) {
    headsPerGroup = problem.kvHeads > 0 ? problem.qHeads / problem.kvHeads : 0;
    numRows = headsPerGroup * ceilDivide(problem.qLen, kBlockSize);
    const int64_t numGroups = problem.batch * problem.kvHeads;
    const int64_t blocks = ceilDivide(problem.headDim, kBlockSize) + ceilDivide(problem.vHeadDim, kBlockSize);
    rowsPerTask = kMaxRowsPerTask;
    auto isTooMuch = [&] {
      const int64_t bytes = ((rowsPerTask + 1) * blocks + 1) * kBlockFloats * int64_t(sizeof(float));
      return bytes > kCacheBytes || numGroups * ceilDivide(numRows, rowsPerTask) < kTasksPerThread * numThreads;
    };
    while (rowsPerTask > 1 && isTooMuch())
      rowsPerTask /= 2;
    tasksPerGroup = ceilDivide(numRows, rowsPerTask);
    numTasks = numGroups * tasksPerGroup;
  }
  int64_t headsPerGroup, numRows, rowsPerTask, tasksPerGroup, numTasks;
};

/// One task and how many tiles it has to visit.
struct ForwardTask {
  int64_t index; ///< (b * kvHeads + kvHead) * tasksPerGroup + number within the group
  int64_t numTiles;
};

/// The running state of one tile of rows.
struct RowState {
  int64_t b, h, qTile;
  Range q;
  float *packedQ, *out, *rowMax, *rowSum;
  TileClass *classes;
  int numRows() const { return int(q.size()); }
};

/// The buffers of one thread.
struct ForwardBuffers {
  ForwardBuffers(const AttentionProblem &problem, int64_t rowsPerTask, WorkspaceCursor &cursor) {
    const int64_t headBlocks = ceilDivide(problem.headDim, kBlockSize);
    const int64_t valueBlocks = ceilDivide(problem.vHeadDim, kBlockSize);
    const int64_t numKVTiles = ceilDivide(problem.kvLen, kBlockSize);
    for (int64_t i = 0; i < rowsPerTask; ++i) {
      rows[i].packedQ = cursor.take<float>(headBlocks * kBlockFloats);
      rows[i].out = cursor.take<float>(valueBlocks * kBlockFloats);
      rows[i].rowMax = cursor.take<float>(kBlockSize);
      rows[i].rowSum = cursor.take<float>(kBlockSize);
      rows[i].classes = cursor.take<TileClass>(numKVTiles);
    }
    k = cursor.take<float>(headBlocks * kBlockFloats);
    v = cursor.take<float>(valueBlocks * kBlockFloats);
    scores = cursor.take<float>(kBlockFloats);
    rowScale = cursor.take<float>(kBlockSize);
    mask = cursor.take<uint8_t>(kBlockSize * kBlockSize);
    allowed = cursor.take<uint8_t>(kBlockSize * kBlockSize);
    coverage = cursor.take<int32_t>(numKVTiles);
  }

  RowState rows[kMaxRowsPerTask] = {};
  float *k, *v, *scores, *rowScale;
  uint8_t *mask, *allowed;
  int32_t *coverage;
};

/// All that a call keeps in its workspace.
struct ForwardLayout {
  ForwardLayout(const AttentionProblem &problem, const ForwardCut &cut, int numThreads, WorkspaceCursor &cursor) {
    const int64_t numQTiles = ceilDivide(problem.qLen, kBlockSize);
    tasks = cursor.take<ForwardTask>(cut.numTasks);
    rowCosts = cursor.take<int64_t>((problem.mask ? int64_t(problem.mask->rowSets.size()) : 1) * numQTiles);
    threadBuffers.reserve(numThreads);
    for (int thread = 0; thread < numThreads; ++thread)
      threadBuffers.emplace_back(problem, cut.rowsPerTask, cursor);
  }

  ForwardTask *tasks;
  int64_t *rowCosts; ///< non-empty tiles of each row of each row set
  std::vector<ForwardBuffers> threadBuffers;
};

class ForwardCall {
public:
  ForwardCall(const AttentionProblem &problem, const HostForwardTensors &tensors, const HostKernels &kernels,
              const TileClasses &classes, const ForwardCut &cut)
      : problem_(problem), tensors_(tensors), kernels_(kernels), classes_(classes), cut_(cut),
        scoreProduct_(kernels, tensors.q, tensors.k, problem.headDim),
        isSoftmax_(problem.normalization == AttentionProblem::Normalization::Softmax) {}

  void run(int64_t task, ForwardBuffers &buffers) const;

private:
  void start(RowState &row, int32_t *coverage) const;
  bool packKeys(int64_t b, int64_t kvHead, Range keys, ForwardBuffers &buffers) const;
  void visitTile(const RowState &row, int64_t kvTile, bool isFinite, ForwardBuffers &buffers) const;
  void addValues(const RowState &row, int numKeys, bool isFinite, const TileExtent &extent,
                 ForwardBuffers &buffers) const;
  void finish(const RowState &row, ForwardBuffers &buffers) const;

  const AttentionProblem &problem_;
  const HostForwardTensors &tensors_;
  const HostKernels &kernels_;
  const TileClasses &classes_;
  const ForwardCut &cut_;
  const RowProduct scoreProduct_;
  const bool isSoftmax_;
};

void ForwardCall::run(int64_t task, ForwardBuffers &buffers) const {
  const int64_t group = task / cut_.tasksPerGroup, b = group / problem_.kvHeads, kvHead = group % problem_.kvHeads;
  const int64_t begin = task % cut_.tasksPerGroup * cut_.rowsPerTask;
  const int64_t numRowTiles = std::min(cut_.rowsPerTask, cut_.numRows - begin);
  for (int64_t i = 0; i < numRowTiles; ++i) {
    RowState &row = buffers.rows[i];
    row.b = b;
    row.h = kvHead * cut_.headsPerGroup + (begin + i) % cut_.headsPerGroup;
    row.qTile = (begin + i) / cut_.headsPerGroup;
    row.q = classes_.area(row.qTile, 0).q;
    start(row, buffers.coverage);
  }
  for (int64_t kvTile = 0; kvTile < classes_.numKVTiles(); ++kvTile) {
    bool isPacked = false, isFinite = true;
    for (int64_t i = 0; i < numRowTiles; ++i) {
      const RowState &row = buffers.rows[i];
      if (row.classes[kvTile] == TileClass::Empty)
        continue;
      if (!isPacked)
        isFinite = packKeys(b, kvHead, classes_.area(0, kvTile).kv, buffers);
      isPacked = true;
      visitTile(row, kvTile, isFinite, buffers);
    }
  }
  for (int64_t i = 0; i < numRowTiles; ++i)
    finish(buffers.rows[i], buffers);
}

/// Packs a tile of K transposed and of V; returns whether V is finite.
bool ForwardCall::packKeys(int64_t b, int64_t kvHead, Range keys, ForwardBuffers &buffers) const {
  const int numKeys = int(keys.size());
  scoreProduct_.packB(matrixOf(tensors_.k, b, kvHead, keys.begin), numKeys, buffers.k);
  return kernels_.packRows(matrixOf(tensors_.v, b, kvHead, keys.begin), numKeys, int(problem_.vHeadDim), buffers.v);
}

/// Packs Q, classifies the row's tiles and sets the running maximum, sum and output: empty, or what the initial partial
/// holds.
void ForwardCall::start(RowState &row, int32_t *coverage) const {
  const int numRows = row.numRows();
  classes_.classifyRow(classes_.rowSetOf(row.b, row.h), row.qTile, row.classes, coverage);
  scoreProduct_.packA(matrixOf(tensors_.q, row.b, row.h, row.q.begin), numRows, row.packedQ);
  std::fill(row.rowMax, row.rowMax + numRows, kNegativeInfinity);
  std::fill(row.rowSum, row.rowSum + numRows, 0.0f);
  if (!tensors_.initial.out.data) {
    std::fill(row.out, row.out + ceilDivide(problem_.vHeadDim, kBlockSize) * kBlockFloats, 0.0f);
    return;
  }
  // A partial is a running state with sum 1 and its LSE as the maximum; without keys its output does not count.
  kernels_.packRows(matrixOf(tensors_.initial.out, row.b, row.h, row.q.begin), numRows, int(problem_.vHeadDim),
                    row.out);
  for (int r = 0; r < numRows && isSoftmax_; ++r) {
    row.rowMax[r] = floatAt(tensors_.initial.lse, row.b, row.h, row.q.begin + r);
    row.rowSum[r] = row.rowMax[r] == kNegativeInfinity ? 0.0f : 1.0f;
    for (int64_t block = 0; block < ceilDivide(problem_.vHeadDim, kBlockSize) && row.rowSum[r] == 0.0f; ++block)
      std::fill_n(row.out + block * kBlockFloats + r * kBlockStride, kBlockSize, 0.0f);
  }
}

void ForwardCall::visitTile(const RowState &row, int64_t kvTile, bool isFinite, ForwardBuffers &buffers) const {
  const TileArea area = classes_.area(row.qTile, kvTile);
  const int numRows = row.numRows(), numKeys = int(area.kv.size());
  const uint8_t *mask = nullptr;
  TileExtent extent = TileExtent::whole(numRows, numKeys);
  if (row.classes[kvTile] == TileClass::Partial) {
    if (!classes_.fillMask(row.b, row.h, area, buffers.mask, extent))
      return;
    mask = buffers.mask;
  }

  // scores = score(scale * Q K^T)
  scoreProduct_.multiply(row.packedQ, buffers.k, buffers.scores, numRows, extent, problem_.scale);
  if (problem_.functions && problem_.functions->score)
    classes_.forEachPiece(row.b, row.h, area, [&](const TileCoordinates &coordinates, int64_t i, int64_t j) {
      problem_.functions->score(problem_.bindings, &coordinates, buffers.scores + i * kBlockStride + j, kBlockStride);
    });

  uint8_t *allowed = isFinite ? nullptr : buffers.allowed;
  if (isSoftmax_) {
    kernels_.softmaxStep(buffers.scores, numRows, numKeys, mask, row.rowMax, row.rowSum, buffers.rowScale, allowed);
  } else {
    kernels_.plainWeights(buffers.scores, numRows, numKeys, mask, allowed);
    std::fill(buffers.rowScale, buffers.rowScale + numRows, 1.0f);
  }
  addValues(row, numKeys, isFinite, extent, buffers);
}

/// out = rowScale * out + weights V. Rows without an allowed pair in the tile keep what they have: their scale is 1.
/// With an infinity or NaN in V, a weight of 0 does not hide it, so pairs that the mask forbids are left out one by
/// one.
void ForwardCall::addValues(const RowState &row, int numKeys, bool isFinite, const TileExtent &extent,
                            ForwardBuffers &buffers) const {
  for (int64_t begin = 0; begin < problem_.vHeadDim; begin += kBlockSize) {
    const int numColumns = int(std::min<int64_t>(kBlockSize, problem_.vHeadDim - begin));
    const float *values = buffers.v + begin / kBlockSize * kBlockFloats;
    float *out = row.out + begin / kBlockSize * kBlockFloats;
    for (int i = 0; i < TileExtent::kNumStripes && isFinite; ++i) {
      const Range rows = extent.stripe(i, row.numRows()), keys = extent.columns[i];
      if (!rows.isEmpty() && !keys.isEmpty())
        kernels_.multiply({.a = buffers.scores + rows.begin * kBlockStride + keys.begin,
                           .isATransposed = false,
                           .b = values + keys.begin * kBlockStride,
                           .c = out + rows.begin * kBlockStride,
                           .cStride = kBlockStride,
                           .numRows = int(rows.size()),
                           .numColumns = paddedColumns(numColumns),
                           .depth = int(keys.size()),
                           .use = ProductUse::ScaleRows,
                           .alpha = 1.0f,
                           .rowScale = buffers.rowScale + rows.begin});
    }
    if (isFinite)
      continue;
    for (int r = 0; r < row.numRows(); ++r)
      for (int c = 0; c < numColumns; ++c)
        out[r * kBlockStride + c] *= buffers.rowScale[r];
    addAllowedProducts({.a = buffers.scores,
                        .isATransposed = false,
                        .b = values,
                        .c = out,
                        .cStride = kBlockStride,
                        .numRows = row.numRows(),
                        .numColumns = numColumns,
                        .depth = numKeys,
                        .use = ProductUse::Add,
                        .alpha = 1.0f,
                        .rowScale = nullptr},
                       buffers.allowed);
  }
}

/// Divides by the sum, to which the sink adds exp(sink), and writes out, LSE and maximum.
void ForwardCall::finish(const RowState &row, ForwardBuffers &buffers) const {
  const int numRows = row.numRows();
  for (int r = 0; r < numRows; ++r) {
    float lse = kNegativeInfinity;
    const float largest = row.rowMax[r], sum = row.rowSum[r];
    if (isSoftmax_) {
      const float sink = problem_.sink ? problem_.sink[row.h + problem_.headOffset] : kNegativeInfinity;
      const SoftmaxEnd end = endSoftmax(largest, sum, sink);
      buffers.rowScale[r] = end.outScale;
      lse = float(end.lse);
    } else {
      buffers.rowScale[r] = 1.0f;
    }
    if (tensors_.lse.data)
      floatAt(tensors_.lse, row.b, row.h, row.q.begin + r) = lse;
    // A maximum never takes a NaN score, but the sum does.
    if (tensors_.rowMax.data)
      floatAt(tensors_.rowMax, row.b, row.h, row.q.begin + r) = std::isnan(sum) && !std::isinf(largest) ? sum : largest;
  }
  kernels_.unpackRows(row.out, kBlockStride, kBlockFloats, buffers.rowScale, numRows, int(problem_.vHeadDim),
                      /*isAdding=*/false, matrixOf(tensors_.out, row.b, row.h, row.q.begin));
}

/// Fills in the tasks, those with most tiles first.
void orderTasks(const AttentionProblem &problem, const TileClasses &classes, const ForwardCut &cut,
                ForwardLayout &layout) {
  const int64_t numQTiles = classes.numQTiles(), numKVTiles = classes.numKVTiles();
  ForwardBuffers &buffers = layout.threadBuffers.front();
  for (int64_t rowSet = 0; rowSet < classes.numRowSets(); ++rowSet)
    for (int64_t qTile = 0; qTile < numQTiles; ++qTile) {
      int64_t &cost = layout.rowCosts[rowSet * numQTiles + qTile];
      cost = numKVTiles;
      if (problem.mask) {
        TileClass *row = buffers.rows[0].classes;
        classes.classifyRow(rowSet, qTile, row, buffers.coverage);
        cost -= std::count(row, row + numKVTiles, TileClass::Empty);
      }
    }
  for (int64_t task = 0; task < cut.numTasks; ++task) {
    const int64_t group = task / cut.tasksPerGroup, b = group / problem.kvHeads, kvHead = group % problem.kvHeads;
    const int64_t begin = task % cut.tasksPerGroup * cut.rowsPerTask;
    layout.tasks[task] = {task, 0};
    for (int64_t i = begin; i < std::min(begin + cut.rowsPerTask, cut.numRows); ++i) {
      const int64_t h = kvHead * cut.headsPerGroup + i % cut.headsPerGroup;
      layout.tasks[task].numTiles += layout.rowCosts[classes.rowSetOf(b, h) * numQTiles + i / cut.headsPerGroup];
    }
  }
  std::sort(layout.tasks, layout.tasks + cut.numTasks, [](const ForwardTask &a, const ForwardTask &b) {
    return a.numTiles != b.numTiles ? a.numTiles > b.numTiles : a.index < b.index;
  });
}

} // namespace

int64_t hostAttentionForwardWorkspaceInBytes(const AttentionProblem &problem, const HostAttentionOptions &options) {
  if (!checkProblem(problem).isOk())
    return 0;
  WorkspaceCursor cursor(nullptr);
  const int numThreads = numThreadsOf(options);
  ForwardLayout(problem, ForwardCut(problem, numThreads), numThreads, cursor);
  return cursor.neededInBytes();
}

Status hostAttentionForward(const AttentionProblem &problem, const HostForwardTensors &tensors,
                            const HostAttentionOptions &options) {
  using Argument = CheckedTensor;
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
  const ForwardCut cut(problem, numThreadsOf(options));
  ForwardLayout layout(problem, cut, numThreadsOf(options), cursor);
  const TileClasses classes(problem);
  orderTasks(problem, classes, cut, layout);

  const ForwardCall call(problem, tensors, *hostKernels(options.instructionSet), classes, cut);
  CallThreads threads(options, cut.numTasks);
  threads->run(cut.numTasks,
               [&](int64_t index, int thread) { call.run(layout.tasks[index].index, layout.threadBuffers[thread]); });
  return Status::ok();
}

} // namespace cpflex
