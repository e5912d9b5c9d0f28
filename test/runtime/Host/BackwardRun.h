// Forward and backward of one case on the CPU with everything they need, and the comparison with the dense reference.
#pragma once

#include "test/runtime/Host/AttentionCase.h"

#include <gtest/gtest.h>
#include <limits>

namespace cpflex::test {

inline constexpr double kTolerance = 2e-6;
/// Gradients of captures are sums of thousands of terms of both signs, which the functions of the tests add one by one
/// in f32.
inline constexpr double kCaptureTolerance = 1e-5;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Forward, then backward, of one case; owns everything.
struct BackwardRun {
  AttentionCase &test;
  Tensor q, k, v, dOut, dLse, out, lse, dQ, dK, dV;
  std::vector<std::vector<float>> captures;
  std::vector<float> sink;
  bool isSoftmax;

  explicit BackwardRun(AttentionCase &test, ElementType gradientType = ElementType::F32)
      : test(test), q(test.makeQ()), k(test.makeK()), v(test.makeV()), dOut(test.makeOut(test.type).randomize(11)),
        dLse(test.makeRow().randomize(12)), out(test.makeOut(ElementType::F32)), lse(test.makeRow()),
        dQ(like(q, gradientType)), dK(like(k, gradientType)), dV(like(v, gradientType)),
        isSoftmax(test.problem.normalization == AttentionProblem::Normalization::Softmax) {}

  Tensor like(const Tensor &tensor, ElementType type) const {
    return Tensor({tensor.sizes(), tensor.sizes() + 4}, type, test.order);
  }

  HostBackwardTensors tensors() {
    HostBackwardTensors result{.q = q.view(), .k = k.view(), .v = v.view(), .dOut = dOut.view()};
    result.dQ = dQ.view(), result.dK = dK.view(), result.dV = dV.view();
    if (isSoftmax)
      result.out = out.view(), result.lse = lse.view(), result.dLse = dLse.view();
    return result;
  }

  void forward() {
    HostForwardTensors tensors{.q = q.view(), .k = k.view(), .v = v.view(), .out = out.view()};
    if (isSoftmax)
      tensors.lse = lse.view();
    Status status = hostAttentionForward(test.problem, tensors);
    ASSERT_TRUE(status.isOk()) << status.message();
  }

  /// `captureSizes`: elements of each capture's gradient, 0 where it is not asked for.
  void run(std::vector<int64_t> captureSizes = {}, HostAttentionOptions options = {.numThreads = 2}) {
    forward();
    HostBackwardTensors all = tensors();
    std::vector<float *> pointers;
    captures.clear();
    for (int64_t size : captureSizes) {
      captures.emplace_back(size, -7.0f);
      pointers.push_back(size ? captures.back().data() : nullptr);
    }
    if (!captureSizes.empty())
      all.captureGradients = pointers.data(), all.numCaptures = int(pointers.size());
    if (test.problem.sink) {
      sink.assign(test.problem.headOffset + test.problem.qHeads, -7.0f);
      all.sinkGradient = sink.data();
    }
    Status status = hostAttentionBackward(test.problem, all, options);
    ASSERT_TRUE(status.isOk()) << status.message();
  }

  void expectMatchesReference(double tolerance = kTolerance) {
    std::vector<bool> wanted;
    for (const std::vector<float> &capture : captures)
      wanted.push_back(!capture.empty());
    StatusOr<ReferenceBackward> expected = referenceAttentionBackward(
        test.problem, q.view(), k.view(), v.view(), dOut.view(), isSoftmax ? dLse.view() : TensorView{}, wanted);
    ASSERT_TRUE(expected.isOk()) << expected.status().message();
    EXPECT_LE(relativeError(dQ.view(), expected->dQ, dQ.sizes()), tolerance);
    EXPECT_LE(relativeError(dK.view(), expected->dK, dK.sizes()), tolerance);
    EXPECT_LE(relativeError(dV.view(), expected->dV, dV.sizes()), tolerance);
    for (size_t c = 0; c < captures.size(); ++c)
      if (!captures[c].empty()) {
        TensorView view{captures[c].data(), ElementType::F32, {0, 0, 0, 1}};
        EXPECT_LE(relativeError(view, expected->captures[c], {1, 1, 1, int64_t(captures[c].size())}),
                  kCaptureTolerance);
      }
    if (test.problem.sink) {
      TensorView view{sink.data() + test.problem.headOffset, ElementType::F32, {0, 0, 0, 1}};
      EXPECT_LE(relativeError(view, expected->sink, {1, 1, 1, test.problem.qHeads}), tolerance);
    }
  }
};

} // namespace cpflex::test
