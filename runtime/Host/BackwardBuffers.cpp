// Implements the cut of a backward call into slots and lanes, and the layout of its workspace.
#include "runtime/Host/BackwardBuffers.h"

#include "runtime/Host/TileTensors.h"

#include <algorithm>

namespace cpflex {

/// Units that a problem is cut into where it has fewer (b, kv head): enough for the processors of one host.
static constexpr int64_t kWantedUnits = 32;
/// Most copies of dQ.
static constexpr int64_t kMaxSlots = 8;
/// Most copies of the capture gradients, and most bytes of them beyond the first copy.
static constexpr int64_t kMaxLanes = 16;
static constexpr int64_t kMaxLaneBytes = 256 << 20;
/// Gradients up to this size are summed in double: no more elements than a pair of tiles has scores.
static constexpr int64_t kMaxSummedInDouble = kBlockSize * kBlockSize;

BackwardBuffers::BackwardBuffers(const AttentionProblem &problem, const HostBackwardTensors &tensors,
                                 WorkspaceCursor &cursor) {
  const int64_t headFloats = ceilDivide(problem.headDim, kBlockSize) * kBlockFloats;
  const int64_t valueFloats = ceilDivide(problem.vHeadDim, kBlockSize) * kBlockFloats;
  for (float **blocks : {&q, &k, &kTransposed, &dK})
    *blocks = cursor.take<float>(headFloats);
  for (float **blocks : {&vTransposed, &dOut, &dV})
    *blocks = cursor.take<float>(valueFloats);
  const bool isNarrow = tensors.q.type == ElementType::BF16;
  qPairs = isNarrow ? cursor.take<float>(ceilDivide(problem.headDim, 2 * kBlockSize) * kBlockFloats) : nullptr;
  dOutPairs = isNarrow ? cursor.take<float>(ceilDivide(problem.vHeadDim, 2 * kBlockSize) * kBlockFloats) : nullptr;
  for (float **block : {&incoming, &weights, &gradients})
    *block = cursor.take<float>(kBlockFloats);
  mask = cursor.take<uint8_t>(kBlockSize * kBlockSize);
  allowed = cursor.take<uint8_t>(kBlockSize * kBlockSize);
  const int64_t numKVTiles = ceilDivide(problem.kvLen, kBlockSize);
  classes = cursor.take<TileClass>(numKVTiles);
  coverage = cursor.take<int32_t>(numKVTiles);
}

void CaptureLane::flush(const std::vector<int64_t> &sizes) const {
  for (size_t capture = 0; capture < sizes.size(); ++capture) {
    if (!sums[capture])
      continue;
    for (int64_t i = 0; i < sizes[capture]; ++i) {
      sums[capture][i] += double(arrays[capture][i]);
      arrays[capture][i] = 0.0f;
    }
  }
}

BackwardLayout::BackwardLayout(const AttentionProblem &problem, const HostBackwardTensors &tensors, int numThreads,
                               WorkspaceCursor &cursor)
    : batch(problem.batch), qHeads(problem.qHeads), qLen(problem.qLen), rowTerm(tensors.rowTerm),
      columns(problem, cursor) {
  const int64_t numKVTiles = ceilDivide(problem.kvLen, kBlockSize);
  const int64_t numGroups = problem.batch * problem.kvHeads;
  numSlots = std::clamp<int64_t>(std::min(ceilDivide(kWantedUnits, std::max<int64_t>(numGroups, 1)), numKVTiles), 1,
                                 kMaxSlots);
  queryGradientStride = ceilDivide(problem.headDim, kColumnPadding) * kColumnPadding;
  if (tensors.dQ.data)
    queryGradients = cursor.take<float>(numSlots * batch * qHeads * qLen * queryGradientStride);
  const auto takeRows = [&] {
    return TensorView{cursor.take<float>(batch * qHeads * qLen), ElementType::F32, {qHeads * qLen, qLen, 1, 1}};
  };
  if (!rowTerm.data)
    rowTerm = takeRows();
  if (problem.normalization == AttentionProblem::Normalization::Softmax)
    weightScale = takeRows();

  int64_t captureBytes = 0;
  for (int capture = 0; capture < tensors.numCaptures && tensors.captureGradients; ++capture) {
    const bool isWanted = tensors.captureGradients[capture] != nullptr;
    captureSizes.push_back(isWanted ? numOwnElements(problem.bindings->captures[capture]) : 0);
    captureBytes += captureSizes.back() * int64_t(sizeof(float));
  }
  if (captureBytes > 0) {
    const int64_t numUnits = std::max<int64_t>(numGroups * numSlots, 1);
    const int64_t numLanes = std::min({1 + kMaxLaneBytes / captureBytes, kMaxLanes, numUnits});
    for (int64_t lane = 0; lane < numLanes; ++lane) {
      CaptureLane &copies = lanes.emplace_back();
      for (int64_t size : captureSizes) {
        copies.arrays.push_back(size > 0 ? cursor.take<float>(size) : nullptr);
        copies.sums.push_back(size > 0 && size <= kMaxSummedInDouble ? cursor.take<double>(size) : nullptr);
      }
    }
  }
  threadBuffers.reserve(numThreads);
  for (int thread = 0; thread < numThreads; ++thread)
    threadBuffers.emplace_back(problem, tensors, cursor);
}

} // namespace cpflex
