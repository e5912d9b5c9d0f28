// Implements the dense reference row by row; nothing here is shared with the fast path except the checks and the
// addressing of positions.
#include "runtime/Host/ReferenceAttention.h"

#include "runtime/Host/AttentionChecks.h"
#include "runtime/Host/TileClasses.h"
#include "runtime/Host/TileTensors.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

namespace cpflex {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double toDouble(uint16_t bits, ElementType type) {
  if (type == ElementType::BF16) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31)
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * kInfinity;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

double valueAt(const TensorView &view, int64_t b, int64_t h, int64_t s, int64_t d) {
  const int64_t index = b * view.strides[0] + h * view.strides[1] + s * view.strides[2] + d * view.strides[3];
  if (view.type == ElementType::F32)
    return static_cast<const float *>(view.data)[index];
  return toDouble(static_cast<const uint16_t *>(view.data)[index], view.type);
}

/// A row-major copy of a tensor in double.
class DenseTensor {
public:
  DenseTensor(const TensorView &view, const int64_t (&sizes)[4])
      : heads_(sizes[1]), rows_(sizes[2]), columns_(sizes[3]) {
    values_.reserve(sizes[0] * sizes[1] * sizes[2] * sizes[3]);
    for (int64_t b = 0; b < sizes[0]; ++b)
      for (int64_t h = 0; h < sizes[1]; ++h)
        for (int64_t s = 0; s < sizes[2]; ++s)
          for (int64_t d = 0; d < sizes[3]; ++d)
            values_.push_back(valueAt(view, b, h, s, d));
  }
  const double *row(int64_t b, int64_t h, int64_t s) const {
    return &values_[((b * heads_ + h) * rows_ + s) * columns_];
  }

private:
  int64_t heads_, rows_, columns_;
  std::vector<double> values_;
};

/// One row of scores: before and after the score function, which keys are allowed, and what softmax makes of them.
struct ScoreRow {
  explicit ScoreRow(int64_t kvLen) : incoming(kvLen), scores(kvLen), weights(kvLen), allowed(kvLen) {}
  std::vector<double> incoming, scores, weights;
  std::vector<uint8_t> allowed;
  double largest = -kInfinity, lse = -kInfinity;
};

class DenseAttention {
public:
  DenseAttention(const AttentionProblem &problem, const TensorView &q, const TensorView &k, const TensorView &v)
      : q(q, AttentionShapes(problem).q), k(k, AttentionShapes(problem).k), v(v, AttentionShapes(problem).v),
        problem_(problem), classes_(problem),
        isSoftmax_(problem.normalization == AttentionProblem::Normalization::Softmax) {}

  void fillRow(int64_t b, int64_t h, int64_t row, ScoreRow &result) const;
  int64_t kvHeadOf(int64_t h) const { return h / (problem_.qHeads / problem_.kvHeads); }
  TileArea areaOf(int64_t row) const { return {{row, row + 1}, {0, problem_.kvLen}}; }
  const TileClasses &classes() const { return classes_; }
  bool isSoftmax() const { return isSoftmax_; }

  const DenseTensor q, k, v;

private:
  void fillAllowed(int64_t b, int64_t h, int64_t row, ScoreRow &result) const;

  const AttentionProblem &problem_;
  TileClasses classes_;
  const bool isSoftmax_;
};

void DenseAttention::fillAllowed(int64_t b, int64_t h, int64_t row, ScoreRow &result) const {
  if (!problem_.mask) {
    std::fill(result.allowed.begin(), result.allowed.end(), 1);
    return;
  }
  if (problem_.functions && problem_.functions->evaluateTile) {
    classes_.forEachPiece(b, h, areaOf(row), [&](const TileCoordinates &coordinates, int64_t, int64_t column) {
      problem_.functions->evaluateTile(problem_.bindings, &coordinates, result.allowed.data() + column, problem_.kvLen);
    });
    return;
  }
  std::fill(result.allowed.begin(), result.allowed.end(), 0);
  const BlockMask &mask = *problem_.mask;
  const TileRows &rows = mask.rows(b, h);
  for (int32_t i = rows.rowBegin[row / mask.tileQ]; i < rows.rowBegin[row / mask.tileQ + 1]; ++i)
    for (int64_t kv = rows.runs[i].begin * mask.tileKV; kv < std::min(rows.runs[i].end * mask.tileKV, mask.kvLen); ++kv)
      result.allowed[kv] = 1;
}

void DenseAttention::fillRow(int64_t b, int64_t h, int64_t row, ScoreRow &result) const {
  const double *queryRow = problem_.kvLen > 0 ? q.row(b, h, row) : nullptr;
  for (int64_t kv = 0; kv < problem_.kvLen; ++kv) {
    const double *keyRow = k.row(b, kvHeadOf(h), kv);
    double sum = 0;
    for (int64_t d = 0; d < problem_.headDim; ++d)
      sum += queryRow[d] * keyRow[d];
    result.incoming[kv] = sum * double(problem_.scale);
  }
  result.scores = result.incoming;
  if (problem_.functions && problem_.functions->score) {
    std::vector<float> rounded(result.incoming.begin(), result.incoming.end());
    classes_.forEachPiece(b, h, areaOf(row), [&](const TileCoordinates &coordinates, int64_t, int64_t column) {
      problem_.functions->score(problem_.bindings, &coordinates, rounded.data() + column, problem_.kvLen);
    });
    result.scores.assign(rounded.begin(), rounded.end());
  }
  fillAllowed(b, h, row, result);
  result.largest = -kInfinity;
  bool isNaN = false;
  for (int64_t kv = 0; kv < problem_.kvLen; ++kv) {
    result.allowed[kv] = result.allowed[kv] && result.scores[kv] != -kInfinity;
    if (!result.allowed[kv])
      continue;
    isNaN |= std::isnan(result.scores[kv]);
    result.largest = std::max(result.largest, result.scores[kv]);
  }
  if (isNaN && !std::isinf(result.largest))
    result.largest = std::numeric_limits<double>::quiet_NaN();
  if (!isSoftmax_) {
    for (int64_t kv = 0; kv < problem_.kvLen; ++kv)
      result.weights[kv] = result.allowed[kv] ? result.scores[kv] : 0.0;
    return;
  }
  const double sink = problem_.sink ? double(problem_.sink[h + problem_.headOffset]) : -kInfinity;
  const double base = std::isnan(result.largest) ? result.largest : std::max(result.largest, sink);
  double sum = sink == -kInfinity ? 0.0 : std::exp(sink - base);
  for (int64_t kv = 0; kv < problem_.kvLen; ++kv) {
    result.weights[kv] = result.allowed[kv] ? std::exp(result.scores[kv] - base) : 0.0;
    sum += result.weights[kv];
  }
  result.lse = sum == 0.0 ? -kInfinity : base + std::log(sum);
  for (int64_t kv = 0; kv < problem_.kvLen; ++kv)
    if (result.allowed[kv])
      result.weights[kv] /= sum;
}

Status checkInputs(const AttentionProblem &problem, const TensorView &q, const TensorView &k, const TensorView &v) {
  CPFLEX_RETURN_IF_ERROR(checkProblem(problem));
  const AttentionShapes shapes(problem);
  const CheckedTensor arguments[] = {tensorArgument("q", q, shapes.q), tensorArgument("k", k, shapes.k),
                                     tensorArgument("v", v, shapes.v)};
  return checkTensors(arguments);
}

/// Turns gradients in the score function's result into gradients in its input, and adds those of captures.
class ScoreDerivative {
public:
  ScoreDerivative(const AttentionProblem &problem, const std::vector<bool> &wanted, ReferenceBackward &result)
      : problem_(problem), result_(result), arrays_(wanted.size()), pointers_(wanted.size()) {
    result.captures.resize(wanted.size());
    result.captureMagnitudes.resize(wanted.size());
    for (size_t c = 0; c < wanted.size(); ++c)
      if (wanted[c]) {
        arrays_[c].resize(numOwnElements(problem.bindings->captures[c]));
        result.captures[c].assign(arrays_[c].size(), 0.0);
        result.captureMagnitudes[c].assign(arrays_[c].size(), 0.0);
        pointers_[c] = arrays_[c].data();
      }
  }

  void apply(const DenseAttention &dense, int64_t b, int64_t h, int64_t row, const ScoreRow &scores,
             std::vector<double> &gradients) {
    if (!problem_.functions || !problem_.functions->scoreGradient)
      return;
    std::vector<float> incoming(scores.incoming.begin(), scores.incoming.end());
    const auto run = [&](std::vector<float> &through) {
      dense.classes().forEachPiece(
          b, h, dense.areaOf(row), [&](const TileCoordinates &coordinates, int64_t, int64_t column) {
            problem_.functions->scoreGradient(problem_.bindings, &coordinates, incoming.data() + column,
                                              through.data() + column, problem_.kvLen,
                                              pointers_.empty() ? nullptr : pointers_.data());
          });
    };
    // The f32 arrays are emptied row by row, so that long sums are in double.
    const auto takeArrays = [&](auto &&add) {
      for (size_t c = 0; c < arrays_.size(); ++c)
        for (size_t i = 0; i < arrays_[c].size(); ++i)
          add(c, i, std::exchange(arrays_[c][i], 0.0f));
    };
    std::vector<float> rounded(gradients.begin(), gradients.end()), positive(gradients.size());
    if (!arrays_.empty()) {
      std::transform(rounded.begin(), rounded.end(), positive.begin(), [](float value) { return std::abs(value); });
      run(positive);
      takeArrays([&](size_t c, size_t i, float value) { result_.captureMagnitudes[c][i] += std::abs(value); });
    }
    run(rounded);
    takeArrays([&](size_t c, size_t i, float value) { result_.captures[c][i] += value; });
    gradients.assign(rounded.begin(), rounded.end());
  }

private:
  const AttentionProblem &problem_;
  ReferenceBackward &result_;
  std::vector<std::vector<float>> arrays_;
  std::vector<float *> pointers_;
};

} // namespace

StatusOr<ReferenceForward> referenceAttentionForward(const AttentionProblem &problem, const TensorView &q,
                                                     const TensorView &k, const TensorView &v) {
  CPFLEX_RETURN_IF_ERROR(checkInputs(problem, q, k, v));
  const DenseAttention dense(problem, q, k, v);
  const int64_t numRows = problem.batch * problem.qHeads * problem.qLen;
  ReferenceForward result;
  result.out.assign(numRows * problem.vHeadDim, 0.0);
  result.lse.assign(numRows, -kInfinity);
  result.rowMax.assign(numRows, -kInfinity);
  ScoreRow scores(problem.kvLen);
  for (int64_t i = 0; i < numRows; ++i) {
    const int64_t b = i / problem.qLen / problem.qHeads, h = i / problem.qLen % problem.qHeads, row = i % problem.qLen;
    dense.fillRow(b, h, row, scores);
    if (dense.isSoftmax())
      result.lse[i] = scores.lse;
    result.rowMax[i] = scores.largest;
    for (int64_t kv = 0; kv < problem.kvLen; ++kv)
      if (scores.allowed[kv])
        for (int64_t d = 0; d < problem.vHeadDim; ++d)
          result.out[i * problem.vHeadDim + d] += scores.weights[kv] * dense.v.row(b, dense.kvHeadOf(h), kv)[d];
  }
  return result;
}

StatusOr<ReferenceBackward> referenceAttentionBackward(const AttentionProblem &problem, const TensorView &q,
                                                       const TensorView &k, const TensorView &v, const TensorView &dOut,
                                                       const TensorView &dLse,
                                                       const std::vector<bool> &captureGradientsWanted) {
  CPFLEX_RETURN_IF_ERROR(checkInputs(problem, q, k, v));
  const AttentionShapes shapes(problem);
  const CheckedTensor arguments[] = {tensorArgument("dOut", dOut, shapes.out),
                                     tensorArgument("dLse", dLse, shapes.row, CheckedTensor::Types::F32,
                                                    CheckedTensor::Role::Input, /*isOptional=*/true)};
  CPFLEX_RETURN_IF_ERROR(checkTensors(arguments));
  const DenseAttention dense(problem, q, k, v);
  const DenseTensor gradientsOfOut(dOut, shapes.out);
  const int64_t headDim = problem.headDim, vHeadDim = problem.vHeadDim;
  ReferenceBackward result;
  result.dQ.assign(problem.batch * problem.qHeads * problem.qLen * headDim, 0.0);
  result.dK.assign(problem.batch * problem.kvHeads * problem.kvLen * headDim, 0.0);
  result.dV.assign(problem.batch * problem.kvHeads * problem.kvLen * vHeadDim, 0.0);
  result.sink.assign(problem.qHeads, 0.0);
  ScoreDerivative derivative(problem, captureGradientsWanted, result);
  ScoreRow scores(problem.kvLen);
  std::vector<double> gradients(problem.kvLen), terms(problem.kvLen);
  const auto squaredNorm = [&](const double *row) { return std::inner_product(row, row + headDim, row, 0.0); };
  const int64_t numRows = problem.batch * problem.qHeads * problem.qLen;
  for (int64_t i = 0; i < numRows; ++i) {
    const int64_t b = i / problem.qLen / problem.qHeads, h = i / problem.qLen % problem.qHeads, row = i % problem.qLen;
    const int64_t kvHead = dense.kvHeadOf(h);
    dense.fillRow(b, h, row, scores);
    // gradients = d loss / d weight, and dV += weight * dOut.
    double rowTerm = 0;
    for (int64_t kv = 0; kv < problem.kvLen; ++kv) {
      gradients[kv] = 0;
      if (!scores.allowed[kv])
        continue;
      const double *dO = gradientsOfOut.row(b, h, row), *values = dense.v.row(b, kvHead, kv);
      for (int64_t d = 0; d < vHeadDim; ++d) {
        gradients[kv] += dO[d] * values[d];
        result.dV[((b * problem.kvHeads + kvHead) * problem.kvLen + kv) * vHeadDim + d] += scores.weights[kv] * dO[d];
      }
      rowTerm += scores.weights[kv] * gradients[kv];
    }
    for (int64_t kv = 0; kv < problem.kvLen; ++kv)
      terms[kv] = dense.isSoftmax() ? scores.weights[kv] * (std::abs(gradients[kv]) + std::abs(rowTerm))
                                    : std::abs(gradients[kv]);
    // d loss / d score = weight * (d weight - rowTerm), rowTerm = dot(dOut, out) - dLse.
    if (dense.isSoftmax()) {
      if (dLse.data)
        rowTerm -= valueAt(dLse, b, h, row, 0);
      for (int64_t kv = 0; kv < problem.kvLen; ++kv)
        gradients[kv] = scores.weights[kv] == 0.0 ? 0.0 : scores.weights[kv] * (gradients[kv] - rowTerm);
      if (problem.sink && scores.lse != -kInfinity)
        result.sink[h] -= std::exp(double(problem.sink[h + problem.headOffset]) - scores.lse) * rowTerm;
    }
    derivative.apply(dense, b, h, row, scores, gradients);
    for (int64_t kv = 0; kv < problem.kvLen; ++kv) {
      if (!scores.allowed[kv])
        continue;
      const double gradient = gradients[kv] * double(problem.scale), term = terms[kv] * double(problem.scale);
      result.termsOfDQ += term * term * squaredNorm(dense.k.row(b, kvHead, kv));
      result.termsOfDK += term * term * squaredNorm(dense.q.row(b, h, row));
      for (int64_t d = 0; d < headDim; ++d) {
        result.dQ[i * headDim + d] += gradient * dense.k.row(b, kvHead, kv)[d];
        result.dK[((b * problem.kvHeads + kvHead) * problem.kvLen + kv) * headDim + d] +=
            gradient * dense.q.row(b, h, row)[d];
      }
    }
  }
  result.termsOfDQ = std::sqrt(result.termsOfDQ);
  result.termsOfDK = std::sqrt(result.termsOfDK);
  return result;
}

double relativeError(const TensorView &actual, const std::vector<double> &expected, const int64_t (&sizes)[4],
                     double terms) {
  double difference = 0, norm = 0;
  size_t i = 0;
  for (int64_t b = 0; b < sizes[0]; ++b)
    for (int64_t h = 0; h < sizes[1]; ++h)
      for (int64_t s = 0; s < sizes[2]; ++s)
        for (int64_t d = 0; d < sizes[3]; ++d, ++i) {
          const double a = valueAt(actual, b, h, s, d), e = expected[i];
          if (a == e || (std::isnan(a) && std::isnan(e)))
            continue;
          if (!std::isfinite(a) || !std::isfinite(e))
            return kInfinity;
          difference += (a - e) * (a - e);
        }
  for (double e : expected)
    norm += std::isfinite(e) ? e * e : 0.0;
  if (difference == 0.0)
    return 0.0;
  const double scale = std::max(std::sqrt(norm), terms);
  return scale == 0.0 ? kInfinity : std::sqrt(difference) / scale;
}

double errorOfSums(const float *actual, const std::vector<double> &expected, const std::vector<double> &magnitudes) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += magnitudes[i] * magnitudes[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

} // namespace cpflex
