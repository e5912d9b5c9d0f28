// Implements the sums of the rows that need them: forward's pass over Q K^T, without V, a tile of rows at a time.
#include "runtime/Host/WeightScale.h"

#include "runtime/Host/TileTensors.h"

#include <cmath>
#include <limits>

namespace cpflex {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

/// From here on half a unit in the last place of LSE changes the weights of a row by more than 1e-6.
constexpr float kLargeLse = 32.0f;
/// Beyond this exp(score - LSE as stored) may leave the range of f32, and no factor brings it back.
constexpr double kLargestDifference = 64.0;

/// One unit in the last place of f32.
double unitInLastPlace(float value) { return std::ldexp(1.0, std::max(std::ilogb(value), -126) - 23); }

class RowSums {
public:
  RowSums(const AttentionProblem &problem, const HostBackwardTensors &tensors, const HostKernels &kernels,
          const TileClasses &classes)
      : problem_(problem), tensors_(tensors), kernels_(kernels), classes_(classes),
        scoreProduct_(kernels, tensors.q, tensors.k, problem.headDim) {}

  /// Whether a row's LSE is large: finite, and as said above.
  bool isLarge(int64_t b, int64_t h, int64_t row) const {
    const float magnitude = std::abs(floatAt(tensors_.lse, b, h, row));
    return magnitude >= kLargeLse && std::isfinite(magnitude);
  }
  void scaleTile(int64_t b, int64_t h, int64_t qTile, const BackwardBuffers &buffers,
                 const TensorView &weightScale) const;

private:
  void addTile(int64_t b, int64_t h, TileArea area, TileClass tileClass, const BackwardBuffers &buffers, float *rowMax,
               float *rowSum) const;

  const AttentionProblem &problem_;
  const HostBackwardTensors &tensors_;
  const HostKernels &kernels_;
  const TileClasses &classes_;
  const RowProduct scoreProduct_;
};

/// Adds one pair of tiles to the running maxima and sums of its rows.
void RowSums::addTile(int64_t b, int64_t h, TileArea area, TileClass tileClass, const BackwardBuffers &buffers,
                      float *rowMax, float *rowSum) const {
  const int numRows = int(area.q.size()), numKeys = int(area.kv.size());
  const bool isPartial = tileClass == TileClass::Partial;
  TileExtent extent = TileExtent::whole(numRows, numKeys);
  if (isPartial && !classes_.fillMask(b, h, area, buffers.mask, extent))
    return;
  const int64_t kvHead = h / (problem_.qHeads / problem_.kvHeads);
  scoreProduct_.packB(matrixOf(tensors_.k, b, kvHead, area.kv.begin), numKeys, buffers.kTransposed);
  scoreProduct_.multiply(scoreProduct_.isPaired() ? buffers.qPairs : buffers.q, buffers.kTransposed, buffers.weights,
                         numRows, extent, problem_.scale);
  if (problem_.functions && problem_.functions->score)
    classes_.forEachPiece(b, h, area, [&](const TileCoordinates &coordinates, int64_t i, int64_t j) {
      problem_.functions->score(problem_.bindings, &coordinates, buffers.weights + i * kBlockStride + j, kBlockStride);
    });
  float rowScale[kBlockSize];
  kernels_.softmaxStep(buffers.weights, numRows, numKeys, isPartial ? buffers.mask : nullptr, rowMax, rowSum, rowScale,
                       /*allowed=*/nullptr);
}

void RowSums::scaleTile(int64_t b, int64_t h, int64_t qTile, const BackwardBuffers &buffers,
                        const TensorView &weightScale) const {
  // 1. The sums over the keys of the call.
  const Range rows = classes_.area(qTile, 0).q;
  float rowMax[kBlockSize], rowSum[kBlockSize] = {};
  std::fill_n(rowMax, kBlockSize, kNegativeInfinity);
  classes_.classifyRow(classes_.rowSetOf(b, h), qTile, buffers.classes, buffers.coverage);
  scoreProduct_.packA(matrixOf(tensors_.q, b, h, rows.begin), int(rows.size()),
                      scoreProduct_.isPaired() ? buffers.qPairs : buffers.q);
  for (int64_t kvTile = 0; kvTile < classes_.numKVTiles(); ++kvTile)
    if (buffers.classes[kvTile] != TileClass::Empty)
      addTile(b, h, classes_.area(qTile, kvTile), buffers.classes[kvTile], buffers, rowMax, rowSum);
  // 2. The factor, where rounding alone explains the LSE as stored.
  const float sink = problem_.sink ? problem_.sink[h + problem_.headOffset] : kNegativeInfinity;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (!isLarge(b, h, row))
      continue;
    const float stored = floatAt(tensors_.lse, b, h, row);
    const double difference = stored - endSoftmax(rowMax[row - rows.begin], rowSum[row - rows.begin], sink).lse;
    if (std::abs(difference) <= std::min(unitInLastPlace(stored), kLargestDifference))
      floatAt(weightScale, b, h, row) = float(std::exp(difference));
  }
}

} // namespace

void computeWeightScale(const AttentionProblem &problem, const HostBackwardTensors &tensors, const HostKernels &kernels,
                        const TileClasses &classes, const BackwardLayout &layout, HostThreads &threads) {
  const RowSums sums(problem, tensors, kernels, classes);
  const int64_t numQTiles = classes.numQTiles();
  threads.run(problem.batch * problem.qHeads * numQTiles, [&](int64_t task, int thread) {
    const int64_t head = task / numQTiles, b = head / problem.qHeads, h = head % problem.qHeads;
    const int64_t qTile = task % numQTiles;
    bool isAnyLarge = false;
    for (int64_t row = qTile * kBlockSize; row < std::min((qTile + 1) * kBlockSize, problem.qLen); ++row) {
      floatAt(layout.weightScale, b, h, row) = 1.0f;
      isAnyLarge |= sums.isLarge(b, h, row);
    }
    if (isAnyLarge)
      sums.scaleTile(b, h, qTile, layout.threadBuffers[thread], layout.weightScale);
  });
}

} // namespace cpflex
