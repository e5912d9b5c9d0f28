// What the tests of CPU attention are made from: hand-written mask and score functions, a brute-force BlockMask, random
// tensors of any type and strides, and a case that owns them all.
#pragma once

#include "runtime/Host/HostAttention.h"
#include "runtime/Host/ReferenceAttention.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace cpflex::test {

inline uint16_t bfloat16From(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline uint16_t float16From(float value) {
  _Float16 half = _Float16(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

/// An owned tensor [b, h, s, d].
class Tensor {
public:
  /// `order` lists the axes from slowest to fastest; `padding` elements follow every run of the fastest axis.
  Tensor(std::vector<int64_t> sizes, ElementType type = ElementType::F32, const std::string &order = "bhsd",
         int64_t padding = 0)
      : type_(type) {
    int64_t stride = 1;
    for (int i = 3; i >= 0; --i) {
      int axis = int(std::string("bhsd").find(order[i]));
      strides_[axis] = stride;
      stride = stride * sizes[axis] + (i == 3 ? padding : 0);
    }
    for (int axis = 0; axis < 4; ++axis)
      sizes_[axis] = sizes[axis];
    bytes_.resize((stride + 1) * sizeInBytes(type));
  }

  TensorView view() {
    TensorView result{bytes_.data(), type_, {}};
    std::copy(strides_, strides_ + 4, result.strides);
    return result;
  }
  const int64_t (&sizes() const)[4] { return sizes_; }

  void set(int64_t b, int64_t h, int64_t s, int64_t d, float value) {
    int64_t i = b * strides_[0] + h * strides_[1] + s * strides_[2] + d * strides_[3];
    if (type_ == ElementType::F32)
      reinterpret_cast<float *>(bytes_.data())[i] = value;
    else
      reinterpret_cast<uint16_t *>(bytes_.data())[i] =
          type_ == ElementType::BF16 ? bfloat16From(value) : float16From(value);
  }
  float get(int64_t b, int64_t h, int64_t s, int64_t d) const {
    int64_t i = b * strides_[0] + h * strides_[1] + s * strides_[2] + d * strides_[3];
    return reinterpret_cast<const float *>(bytes_.data())[i];
  }
  Tensor &fill(float value) {
    return apply([&] { return value; });
  }
  Tensor &randomize(uint32_t seed, float deviation = 1.0f) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0.0f, deviation);
    return apply([&] { return normal(generator); });
  }
  bool operator==(const Tensor &other) const { return bytes_ == other.bytes_; }

private:
  template <typename Source> Tensor &apply(Source source) {
    for (int64_t b = 0; b < sizes_[0]; ++b)
      for (int64_t h = 0; h < sizes_[1]; ++h)
        for (int64_t s = 0; s < sizes_[2]; ++s)
          for (int64_t d = 0; d < sizes_[3]; ++d)
            set(b, h, s, d, source());
    return *this;
  }

  ElementType type_;
  int64_t sizes_[4], strides_[4];
  std::vector<char> bytes_;
};

using Predicate = bool (*)(const Bindings *bindings, int64_t b, int64_t h, int64_t q, int64_t kv);
using ScoreFormula = float (*)(const Bindings *bindings, float score, int64_t b, int64_t h, int64_t q, int64_t kv);
/// Returns the gradient in the score and adds those of captures.
using ScoreDerivativeFormula = float (*)(const Bindings *bindings, float score, float gradient, int64_t b, int64_t h,
                                         int64_t q, int64_t kv, float *const *captureGradients);

template <Predicate predicate>
void evaluateTile(const Bindings *bindings, const TileCoordinates *tile, uint8_t *out, int64_t rowStride) {
  for (int64_t i = 0; i < tile->qCount; ++i)
    for (int64_t j = 0; j < tile->kvCount; ++j)
      out[i * rowStride + j] =
          predicate(bindings, tile->b, tile->h, tile->qBegin + i * tile->qStep, tile->kvBegin + j * tile->kvStep);
}
template <ScoreFormula formula>
void scoreTile(const Bindings *bindings, const TileCoordinates *tile, float *scores, int64_t rowStride) {
  for (int64_t i = 0; i < tile->qCount; ++i)
    for (int64_t j = 0; j < tile->kvCount; ++j)
      scores[i * rowStride + j] = formula(bindings, scores[i * rowStride + j], tile->b, tile->h,
                                          tile->qBegin + i * tile->qStep, tile->kvBegin + j * tile->kvStep);
}
template <ScoreDerivativeFormula formula>
void scoreGradientTile(const Bindings *bindings, const TileCoordinates *tile, const float *scores, float *gradients,
                       int64_t rowStride, float *const *captureGradients) {
  for (int64_t i = 0; i < tile->qCount; ++i)
    for (int64_t j = 0; j < tile->kvCount; ++j) {
      float &gradient = gradients[i * rowStride + j];
      if (gradient != 0.0f)
        gradient = formula(bindings, scores[i * rowStride + j], gradient, tile->b, tile->h,
                           tile->qBegin + i * tile->qStep, tile->kvBegin + j * tile->kvStep, captureGradients);
    }
}

/// How the tiles that brute force finds full are stored.
enum class FullTiles { AsFull, AsPartial };

/// The positions that a map gives to local rows.
inline std::vector<int64_t> positionsOf(const PositionMap &map, int64_t length) {
  std::vector<int64_t> result;
  for (const AffinePiece &piece : (map.pieces.empty() ? PositionMap::identity(length) : map).pieces)
    for (int64_t i = 0; i < piece.count; ++i)
      result.push_back(piece.begin + i * piece.step);
  return result;
}

/// Classifies every tile by asking about every pair.
inline BlockMask bruteForceMask(const AttentionProblem &problem, Predicate predicate, int64_t tileQ = 128,
                                int64_t tileKV = 128, FullTiles fullTiles = FullTiles::AsFull) {
  BlockMask mask;
  mask.qLen = problem.qLen, mask.kvLen = problem.kvLen, mask.tileQ = tileQ, mask.tileKV = tileKV;
  mask.batch = problem.batch, mask.heads = problem.qHeads;
  const std::vector<int64_t> q = positionsOf(problem.qPositions, problem.qLen);
  const std::vector<int64_t> kv = positionsOf(problem.kvPositions, problem.kvLen);
  for (int64_t b = 0; b < problem.batch; ++b)
    for (int64_t h = 0; h < problem.qHeads; ++h) {
      TileRows rows;
      rows.rowBegin.push_back(0);
      for (int64_t i = 0; i < mask.numQTiles(); ++i) {
        for (int64_t j = 0; j < mask.numKVTiles(); ++j) {
          int64_t allowed = 0, total = 0;
          for (int64_t x = i * tileQ; x < std::min((i + 1) * tileQ, problem.qLen); ++x)
            for (int64_t y = j * tileKV; y < std::min((j + 1) * tileKV, problem.kvLen); ++y, ++total)
              allowed += predicate(problem.bindings, b + problem.batchOffset, h + problem.headOffset, q[x], kv[y]);
          if (allowed == 0)
            continue;
          TileClass tileClass =
              allowed == total && fullTiles == FullTiles::AsFull ? TileClass::Full : TileClass::Partial;
          bool isNewRow = int32_t(rows.runs.size()) == rows.rowBegin.back();
          if (!isNewRow && rows.runs.back().end == j && rows.runs.back().tileClass == tileClass)
            ++rows.runs.back().end;
          else
            rows.runs.push_back({int32_t(j), int32_t(j + 1), tileClass, 0});
        }
        rows.rowBegin.push_back(int32_t(rows.runs.size()));
      }
      mask.rowSetOf.push_back(int32_t(mask.rowSets.size()));
      mask.rowSets.push_back(std::move(rows));
    }
  return mask;
}

/// One attention problem with its tensors, mask and functions. Not copyable: the problem points into it.
struct AttentionCase {
  AttentionProblem problem;
  ElementType type = ElementType::F32;
  std::string order = "bhsd";
  float deviation = 1.0f;
  BlockMask mask;
  HostFunctions functions;
  Bindings bindings;

  AttentionCase() = default;
  AttentionCase(const AttentionCase &) = delete;
  AttentionCase &operator=(const AttentionCase &) = delete;

  template <Predicate predicate>
  void setMask(int64_t tileQ = 128, int64_t tileKV = 128, FullTiles fullTiles = FullTiles::AsFull) {
    problem.bindings = &bindings;
    mask = bruteForceMask(problem, predicate, tileQ, tileKV, fullTiles);
    problem.mask = &mask;
    functions.evaluateTile = evaluateTile<predicate>;
    problem.functions = &functions;
  }
  template <ScoreFormula formula> void setScore() {
    problem.bindings = &bindings;
    functions.score = scoreTile<formula>;
    problem.functions = &functions;
  }
  template <ScoreDerivativeFormula formula> void setScoreGradient() {
    functions.scoreGradient = scoreGradientTile<formula>;
  }

  Tensor makeQ() const { return make(problem.qHeads, problem.qLen, problem.headDim).randomize(1, deviation); }
  Tensor makeK() const { return make(problem.kvHeads, problem.kvLen, problem.headDim).randomize(2, deviation); }
  Tensor makeV() const { return make(problem.kvHeads, problem.kvLen, problem.vHeadDim).randomize(3); }
  Tensor makeOut(ElementType outType) const {
    return Tensor({problem.batch, problem.qHeads, problem.qLen, problem.vHeadDim}, outType, order);
  }
  Tensor makeRow() const { return Tensor({problem.batch, problem.qHeads, problem.qLen, 1}); }

private:
  Tensor make(int64_t heads, int64_t length, int64_t dim) const {
    return Tensor({problem.batch, heads, length, dim}, type, order);
  }
};

/// A problem of equal head sizes with the usual scale.
inline AttentionProblem problemOf(int64_t batch, int64_t qHeads, int64_t kvHeads, int64_t qLen, int64_t kvLen,
                                  int64_t headDim, int64_t vHeadDim = 0) {
  AttentionProblem problem;
  problem.batch = batch, problem.qHeads = qHeads, problem.kvHeads = kvHeads;
  problem.qLen = qLen, problem.kvLen = kvLen;
  problem.headDim = headDim, problem.vHeadDim = vHeadDim ? vHeadDim : headDim;
  problem.scale = 1.0f / std::sqrt(float(headDim));
  return problem;
}

// Masks and scores that several tests use.
inline bool allPairs(const Bindings *, int64_t, int64_t, int64_t, int64_t) { return true; }
inline bool causal(const Bindings *, int64_t, int64_t, int64_t q, int64_t kv) { return kv <= q; }
inline bool window(const Bindings *, int64_t, int64_t, int64_t q, int64_t kv) { return kv <= q && q - kv < 100; }
/// Rows 0..4 of every 7 see nothing.
inline bool sparseRows(const Bindings *, int64_t, int64_t, int64_t q, int64_t kv) { return q % 7 > 4 && kv % 3 != 1; }
inline bool perHead(const Bindings *, int64_t b, int64_t h, int64_t q, int64_t kv) {
  return (h % 2 ? kv <= q : q - kv < 50 && kv - q < 30) && (kv + b) % 5 != 0;
}
/// Document ids in capture 0, an i32 array [positions].
inline bool sameDocument(const Bindings *bindings, int64_t, int64_t, int64_t q, int64_t kv) {
  const int32_t *documents = static_cast<const int32_t *>(bindings->captures[0].data);
  return documents[q] == documents[kv] && kv <= q;
}

inline float alibi(const Bindings *, float score, int64_t, int64_t h, int64_t q, int64_t kv) {
  return score + std::exp2(-float(h + 1)) * float(kv - q);
}
inline float softCap(const Bindings *, float score, int64_t, int64_t, int64_t, int64_t) {
  return 5.0f * std::tanh(score / 5.0f);
}

} // namespace cpflex::test
