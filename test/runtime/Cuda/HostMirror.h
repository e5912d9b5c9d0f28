// The functors of TestFunctors.h as host functions, so that results on a GPU have a reference, and their block masks.
#pragma once

#include "runtime/contract/Attention.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/HostFunctions.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

namespace cpflex::test {

/// Reads captures and parameters as the functors do.
struct BoundReader {
  const Bindings &bindings;
  int64_t integer(int capture, int64_t i, int64_t j) const {
    const CaptureView &view = bindings.captures[capture];
    return static_cast<const int32_t *>(view.data)[i * view.strides[0] + j * view.strides[1]];
  }
  float number(int capture, int64_t i, int64_t j) const {
    const CaptureView &view = bindings.captures[capture];
    return static_cast<const float *>(view.data)[i * view.strides[0] + j * view.strides[1]];
  }
  int64_t param(int i) const { return bindings.params[i]; }
  float floatParam(int i) const { return std::bit_cast<float>(static_cast<uint32_t>(bindings.params[i])); }
};

template <typename Predicate> void forEachPair(const TileCoordinates *tile, Predicate predicate) {
  for (int64_t i = 0; i < tile->qCount; ++i)
    for (int64_t j = 0; j < tile->kvCount; ++j)
      predicate(i, j, tile->qBegin + i * tile->qStep, tile->kvBegin + j * tile->kvStep);
}

inline bool isSameDocument(const BoundReader &bound, int64_t b, int64_t q, int64_t kv) {
  return bound.integer(0, b, q) == bound.integer(0, b, kv);
}

inline HostFunctions hostFunctions(const std::string &name) {
  HostFunctions functions;
  if (name == "causal" || name == "soft_cap")
    functions.evaluateTile = [](const Bindings *, const TileCoordinates *tile, uint8_t *out, int64_t stride) {
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t q, int64_t kv) { out[i * stride + j] = kv <= q; });
    };
  if (name == "document_causal")
    functions.evaluateTile = [](const Bindings *bindings, const TileCoordinates *tile, uint8_t *out, int64_t stride) {
      BoundReader bound{*bindings};
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t q, int64_t kv) {
        out[i * stride + j] = kv <= q && isSameDocument(bound, tile->b, q, kv);
      });
    };
  if (name == "large")
    functions.evaluateTile = [](const Bindings *bindings, const TileCoordinates *tile, uint8_t *out, int64_t stride) {
      BoundReader bound{*bindings};
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t q, int64_t kv) {
        bool near =
            q - kv < bound.param(0) || kv < bound.param(1) || (q - kv) % std::max<int64_t>(1, bound.param(0)) == 0;
        out[i * stride + j] = kv <= q && isSameDocument(bound, tile->b, q, kv) && near;
      });
    };
  if (name == "soft_cap") {
    functions.score = [](const Bindings *bindings, const TileCoordinates *tile, float *scores, int64_t stride) {
      float cap = BoundReader{*bindings}.floatParam(0);
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t, int64_t) {
        scores[i * stride + j] = cap * std::tanh(scores[i * stride + j] / cap);
      });
    };
    functions.scoreGradient = [](const Bindings *bindings, const TileCoordinates *tile, const float *scores,
                                 float *gradients, int64_t stride, float *const *) {
      float cap = BoundReader{*bindings}.floatParam(0);
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t, int64_t) {
        float t = std::tanh(scores[i * stride + j] / cap);
        gradients[i * stride + j] *= 1.0f - t * t;
      });
    };
  }
  if (name == "temperature") {
    functions.score = [](const Bindings *bindings, const TileCoordinates *tile, float *scores, int64_t stride) {
      float factor = static_cast<const float *>(bindings->captures[0].data)[tile->h];
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t, int64_t) { scores[i * stride + j] *= factor; });
    };
    functions.scoreGradient = [](const Bindings *bindings, const TileCoordinates *tile, const float *, float *gradients,
                                 int64_t stride, float *const *) {
      float factor = static_cast<const float *>(bindings->captures[0].data)[tile->h];
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t, int64_t) { gradients[i * stride + j] *= factor; });
    };
  }
  if (name == "large") {
    functions.score = [](const Bindings *bindings, const TileCoordinates *tile, float *scores, int64_t stride) {
      BoundReader bound{*bindings};
      float cap = bound.floatParam(2);
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t q, int64_t kv) {
        float shifted = scores[i * stride + j] + bound.number(1, tile->h, std::clamp<int64_t>(q - kv, -31, 31) + 31) +
                        bound.number(2, tile->h, 0) * static_cast<float>(kv - q);
        scores[i * stride + j] = cap * std::tanh(shifted / cap);
      });
    };
    functions.scoreGradient = [](const Bindings *bindings, const TileCoordinates *tile, const float *scores,
                                 float *gradients, int64_t stride, float *const *) {
      BoundReader bound{*bindings};
      float cap = bound.floatParam(2);
      forEachPair(tile, [&](int64_t i, int64_t j, int64_t q, int64_t kv) {
        float shifted = scores[i * stride + j] + bound.number(1, tile->h, std::clamp<int64_t>(q - kv, -31, 31) + 31) +
                        bound.number(2, tile->h, 0) * static_cast<float>(kv - q);
        float t = std::tanh(shifted / cap);
        gradients[i * stride + j] *= 1.0f - t * t;
      });
    };
  }
  return functions;
}

/// The global position of each local row.
inline std::vector<int64_t> positionsOf(const PositionMap &map, int64_t length) {
  std::vector<int64_t> positions;
  for (const AffinePiece &piece : (map.pieces.empty() ? PositionMap::identity(length) : map).pieces)
    for (int64_t i = 0; i < piece.count; ++i)
      positions.push_back(piece.begin + i * piece.step);
  return positions;
}

/// The block mask of a problem by evaluating every pair.
inline BlockMask bruteForceMask(const AttentionProblem &problem, int64_t tileQ, int64_t tileKV) {
  BlockMask mask;
  mask.qLen = problem.qLen, mask.kvLen = problem.kvLen, mask.tileQ = tileQ, mask.tileKV = tileKV;
  mask.batch = problem.batch, mask.heads = problem.qHeads;
  std::vector<int64_t> qs = positionsOf(problem.qPositions, problem.qLen),
                       kvs = positionsOf(problem.kvPositions, problem.kvLen);
  for (int64_t b = 0; b < problem.batch; ++b) {
    TileRows rows;
    rows.rowBegin = {0};
    for (int64_t row = 0; row < mask.numQTiles(); ++row) {
      for (int64_t column = 0; column < mask.numKVTiles(); ++column) {
        int64_t allowed = 0, pairs = 0;
        for (int64_t q = row * tileQ; q < std::min(problem.qLen, (row + 1) * tileQ); ++q)
          for (int64_t kv = column * tileKV; kv < std::min(problem.kvLen, (column + 1) * tileKV); ++kv) {
            TileCoordinates pair{b + problem.batchOffset, problem.headOffset, qs[q], 1, 1, kvs[kv], 1, 1};
            uint8_t attends = 1;
            if (problem.functions->evaluateTile)
              problem.functions->evaluateTile(problem.bindings, &pair, &attends, 1);
            allowed += attends, ++pairs;
          }
        if (allowed > 0)
          rows.runs.push_back({static_cast<int32_t>(column), static_cast<int32_t>(column + 1),
                               allowed == pairs ? TileClass::Full : TileClass::Partial, 0});
      }
      rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
    }
    mask.rowSets.push_back(std::move(rows));
    for (int64_t h = 0; h < problem.qHeads; ++h)
      mask.rowSetOf.push_back(static_cast<int32_t>(b));
  }
  return mask;
}

} // namespace cpflex::test
