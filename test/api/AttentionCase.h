// One attention problem of the C interface with its answer in double, computed densely and without any tiles.
#pragma once

#include "test/api/CInterface.h"

#include <cmath>
#include <functional>
#include <limits>
#include <random>

namespace capi {

/// Sizes of a case.
struct CaseSizes {
  int64_t batch = 1, heads = 4, kvHeads = 2, qLen = 70, kvLen = 90, headDim = 16, vHeadDim = 24;
};

/// Owned f32 tensors of a call, dense in b, h, s, d.
struct AttentionCase {
  CaseSizes sizes;
  std::vector<float> q, k, v, out, lse, rowMax, dOut, dLse, dQ, dK, dV;

  explicit AttentionCase(CaseSizes given = {}) : sizes(given) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto filled = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float &value : values)
        value = normal(random);
      return values;
    };
    const CaseSizes &s = sizes;
    q = filled(s.batch * s.heads * s.qLen * s.headDim);
    k = filled(s.batch * s.kvHeads * s.kvLen * s.headDim);
    v = filled(s.batch * s.kvHeads * s.kvLen * s.vHeadDim);
    dOut = filled(s.batch * s.heads * s.qLen * s.vHeadDim);
    dLse = filled(s.batch * s.heads * s.qLen);
    out.assign(dOut.size(), -7);
    lse.assign(dLse.size(), -7);
    rowMax = lse;
    dQ.assign(q.size(), -7);
    dK.assign(k.size(), -7);
    dV.assign(v.size(), -7);
  }

  cpflex_forward_tensors forward() {
    const CaseSizes &s = sizes;
    cpflex_forward_tensors tensors{};
    tensors.q = dense(q, {s.batch, s.heads, s.qLen, s.headDim});
    tensors.k = dense(k, {s.batch, s.kvHeads, s.kvLen, s.headDim});
    tensors.v = dense(v, {s.batch, s.kvHeads, s.kvLen, s.vHeadDim});
    tensors.out = dense(out, {s.batch, s.heads, s.qLen, s.vHeadDim});
    tensors.lse = dense(lse, {s.batch, s.heads, s.qLen});
    tensors.row_max = dense(rowMax, {s.batch, s.heads, s.qLen});
    return tensors;
  }

  cpflex_backward_tensors backward() {
    const CaseSizes &s = sizes;
    const cpflex_forward_tensors given = forward();
    cpflex_backward_tensors tensors{};
    tensors.q = given.q, tensors.k = given.k, tensors.v = given.v, tensors.out = given.out, tensors.lse = given.lse;
    tensors.d_out = dense(dOut, {s.batch, s.heads, s.qLen, s.vHeadDim});
    tensors.d_lse = dense(dLse, {s.batch, s.heads, s.qLen});
    tensors.d_q = dense(dQ, {s.batch, s.heads, s.qLen, s.headDim});
    tensors.d_k = dense(dK, {s.batch, s.kvHeads, s.kvLen, s.headDim});
    tensors.d_v = dense(dV, {s.batch, s.kvHeads, s.kvLen, s.vHeadDim});
    return tensors;
  }

  cpflex_sizes bindSizes() const { return {sizes.batch, sizes.heads, sizes.kvHeads, sizes.qLen, sizes.kvLen}; }
};

/// What attention is, in double: a mask, a score function with its derivative in s, sinks.
struct Meaning {
  std::function<bool(int64_t b, int64_t h, int64_t q, int64_t kv)> mask = [](auto...) { return true; };
  std::function<double(double s, int64_t b, int64_t h, int64_t q, int64_t kv)> score = [](double s, auto...) {
    return s;
  };
  std::function<double(double s)> scoreGradient = [](double) { return 1.0; };
  std::vector<float> sinks;
  double scale = 1;
};

/// The answer for every tensor.
struct Answer {
  std::vector<double> out, lse, rowMax, dQ, dK, dV, dSinks;
  /// Gradient in the result of the score function, [b, h, q, kv]: what gradients of captures are sums of.
  std::vector<double> dScores;
};

inline Answer answer(const AttentionCase &given, const Meaning &meaning) {
  const CaseSizes &s = given.sizes;
  const double none = -std::numeric_limits<double>::infinity();
  Answer result;
  result.out.assign(given.out.size(), 0);
  result.lse.assign(given.lse.size(), none);
  result.rowMax.assign(given.lse.size(), none);
  result.dQ.assign(given.q.size(), 0);
  result.dK.assign(given.k.size(), 0);
  result.dV.assign(given.v.size(), 0);
  result.dSinks.assign(size_t(s.heads), 0);
  result.dScores.assign(size_t(s.batch * s.heads * s.qLen * s.kvLen), 0);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.qLen; ++i) {
        const int64_t kvHead = h / (s.heads / s.kvHeads), row = (b * s.heads + h) * s.qLen + i;
        const float *q = &given.q[size_t(row * s.headDim)], *dOut = &given.dOut[size_t(row * s.vHeadDim)];
        std::vector<double> before(size_t(s.kvLen), 0), scores(size_t(s.kvLen), none);
        double sum = meaning.sinks.empty() ? 0 : std::exp(double(meaning.sinks[size_t(h)]));
        for (int64_t j = 0; j < s.kvLen; ++j) {
          if (!meaning.mask(b, h, i, j))
            continue;
          for (int64_t d = 0; d < s.headDim; ++d)
            before[size_t(j)] +=
                meaning.scale * q[d] * given.k[size_t(((b * s.kvHeads + kvHead) * s.kvLen + j) * s.headDim + d)];
          scores[size_t(j)] = meaning.score(before[size_t(j)], b, h, i, j);
          sum += std::exp(scores[size_t(j)]);
          result.rowMax[size_t(row)] = std::max(result.rowMax[size_t(row)], scores[size_t(j)]);
        }
        result.lse[size_t(row)] = std::log(sum);
        double dot = -double(given.dLse[size_t(row)]);
        for (int64_t j = 0; j < s.kvLen; ++j)
          for (int64_t d = 0; d < s.vHeadDim && scores[size_t(j)] > none; ++d) {
            const double weight = std::exp(scores[size_t(j)]) / sum;
            const size_t value = size_t(((b * s.kvHeads + kvHead) * s.kvLen + j) * s.vHeadDim + d);
            result.out[size_t(row * s.vHeadDim + d)] += weight * given.v[value];
            result.dV[value] += weight * dOut[d];
            dot += weight * given.v[value] * dOut[d];
          }
        if (!meaning.sinks.empty())
          result.dSinks[size_t(h)] -= std::exp(double(meaning.sinks[size_t(h)])) / sum * dot;
        for (int64_t j = 0; j < s.kvLen; ++j) {
          if (scores[size_t(j)] == none)
            continue;
          const size_t key = size_t(((b * s.kvHeads + kvHead) * s.kvLen + j));
          double incoming = 0;
          for (int64_t d = 0; d < s.vHeadDim; ++d)
            incoming += dOut[d] * double(given.v[key * size_t(s.vHeadDim) + size_t(d)]);
          const double dScore = std::exp(scores[size_t(j)]) / sum * (incoming - dot);
          result.dScores[size_t(row * s.kvLen + j)] = dScore;
          const double dBefore = dScore * meaning.scoreGradient(before[size_t(j)]) * meaning.scale;
          for (int64_t d = 0; d < s.headDim; ++d) {
            result.dQ[size_t(row * s.headDim + d)] += dBefore * given.k[key * size_t(s.headDim) + size_t(d)];
            result.dK[key * size_t(s.headDim) + size_t(d)] += dBefore * q[d];
          }
        }
      }
  return result;
}

/// Relative Frobenius distance; entries that are infinite must be equal.
inline double distance(const std::vector<float> &seen, const std::vector<double> &expected) {
  double error = 0, norm = 0;
  if (seen.size() != expected.size())
    return std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < seen.size(); ++i) {
    if (std::isinf(expected[i]) && double(seen[i]) == expected[i])
      continue;
    error += (seen[i] - expected[i]) * (seen[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

/// What f32 attention of these sizes may differ by.
inline constexpr double kTolerance = 2e-6;

inline Executable load(const Binding &binding, cpflex_load_options options, const char *entry = nullptr,
                       const cpflex_block_mask *mask = nullptr) {
  cpflex_executable *executable = nullptr;
  EXPECT_EQ(message(cpflex_load(binding.get(), entry, mask, &options, &executable)), "");
  return Executable(executable);
}

inline cpflex_load_options loadOptions(const AttentionCase &given) {
  cpflex_load_options options{};
  options.head_dim = given.sizes.headDim;
  options.v_head_dim = given.sizes.vHeadDim;
  options.has_backward = 1;
  options.num_threads = 2;
  return options;
}

} // namespace capi
