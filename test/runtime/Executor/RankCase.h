// One attention call with tensors, a hand-written mask, an fp64 reference and a comparison, for tests of the executor
// on any device.
#pragma once

#include "../Plan/TestMasks.h"
#include "runtime/Executor/ContextParallelRun.h"
#include "runtime/Host/PartialAttention.h"
#include "runtime/Host/ReferenceAttention.h"
#include "runtime/Plan/Planner.h"

#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <random>

namespace cpflex::test {

/// Relative to the fp64 reference: f32 arithmetic in another order, and rounding to 8 or 11 bits.
inline double toleranceOf(ElementType type) {
  return type == ElementType::F32 ? 2e-6 : type == ElementType::F16 ? 2e-3 : 1.6e-2;
}

/// A tensor [batch, heads, rows, width] with random values.
struct TestTensor {
  TestTensor(ElementType type, int64_t batch, int64_t heads, int64_t rows, int64_t width, uint32_t seed)
      : sizes{batch, heads, rows, width}, bytes(size_t(batch * heads * rows * width * sizeInBytes(type)) + 1) {
    view = {bytes.data(), type, {heads * rows * width, rows * width, width, 1}};
    if (seed == 0)
      return;
    std::mt19937 random(seed);
    std::vector<float> values(size_t(batch * heads * rows * width));
    for (float &value : values)
      value = float(int(random() % 2001) - 1000) * 1e-3f;
    TensorView from = {values.data(), ElementType::F32, {heads * rows * width, rows * width, width, 1}};
    EXPECT_TRUE(convertTensor(from, view, sizes).isOk());
  }
  int64_t sizes[4];
  std::vector<uint8_t> bytes;
  TensorView view;
};

/// score + slope[h] * (kv - q) with slope a captured gradient: ALiBi that shows wrong positions at once.
inline void alibi(const Bindings *bindings, const TileCoordinates *tile, float *scores, int64_t rowStride) {
  const float slope = static_cast<const float *>(bindings->captures[1].data)[tile->h];
  for (int64_t i = 0; i < tile->qCount; ++i)
    for (int64_t j = 0; j < tile->kvCount; ++j)
      scores[i * rowStride + j] += slope * float(tile->kvBegin + j * tile->kvStep - tile->qBegin - i * tile->qStep);
}

inline void alibiGradient(const Bindings *, const TileCoordinates *tile, const float *, float *gradients,
                          int64_t rowStride, float *const *captureGradients) {
  if (captureGradients && captureGradients[1])
    for (int64_t i = 0; i < tile->qCount; ++i)
      for (int64_t j = 0; j < tile->kvCount; ++j)
        captureGradients[1][tile->h] +=
            gradients[i * rowStride + j] * float(tile->kvBegin + j * tile->kvStep - tile->qBegin - i * tile->qStep);
}

/// One attention call with everything it needs, its reference, and results to compare.
struct RankCase {
  RankCase(MaskRule rule, CallShape shape, bool hasScore = false, bool hasSink = false)
      : shape(shape), mask(rule, shape.batch, shape.qHeads, shape.qLen, shape.kvLen, 128),
        q(shape.type, shape.batch, shape.qHeads, shape.qLen, shape.headDim, 11),
        k(shape.type, shape.batch, shape.kvHeads, shape.kvLen, shape.headDim, 12),
        v(shape.type, shape.batch, shape.kvHeads, shape.kvLen, shape.vHeadDim, 13),
        dOut(shape.type, shape.batch, shape.qHeads, shape.qLen, shape.vHeadDim, 14),
        dLse(ElementType::F32, shape.batch, shape.qHeads, shape.qLen, 1, 15),
        out(shape.type, shape.batch, shape.qHeads, shape.qLen, shape.vHeadDim, 0),
        lse(ElementType::F32, shape.batch, shape.qHeads, shape.qLen, 1, 0),
        dQ(shape.type, shape.batch, shape.qHeads, shape.qLen, shape.headDim, 0),
        dK(shape.type, shape.batch, shape.kvHeads, shape.kvLen, shape.headDim, 0),
        dV(shape.type, shape.batch, shape.kvHeads, shape.kvLen, shape.vHeadDim, 0) {
    for (int64_t h = 0; h < shape.qHeads; ++h) {
      slopes.push_back(0.01f * float(h + 1));
      sink.push_back(0.3f * float(h) - 0.5f);
    }
    wholeMask = mask.mask;
    wholeMask.batch = shape.batch;
    wholeMask.heads = shape.qHeads;
    wholeMask.rowSetOf.clear();
    for (int64_t b = 0; b < shape.batch; ++b)
      for (int64_t h = 0; h < shape.qHeads; ++h)
        wholeMask.rowSetOf.push_back(
            mask.mask
                .rowSetOf[size_t((mask.mask.batch == 1 ? 0 : b) * mask.mask.heads + (mask.mask.heads == 1 ? 0 : h))]);
    captures[0] = mask.capture;
    captures[1].data = slopes.data();
    captures[1].type = ElementType::F32;
    captures[1].shape[0] = shape.qHeads;
    captures[1].strides[0] = 1;
    captures[1].rank = 1;
    mask.bindings.captures = captures;
    if (hasScore) {
      mask.functions.score = alibi;
      mask.functions.scoreGradient = alibiGradient;
    }
    call.scale = 1.0f / std::sqrt(float(shape.headDim));
    call.functions = &mask.functions;
    call.bindings = &mask.bindings;
    call.sink = hasSink ? sink.data() : nullptr;
    slopeGradient.resize(size_t(shape.qHeads));
    sinkGradient.resize(size_t(shape.qHeads));
    captureGradients[1] = hasScore ? slopeGradient.data() : nullptr;
  }
  RankCase(const RankCase &) = delete;

  AttentionProblem problem() const {
    AttentionProblem problem;
    problem.batch = shape.batch;
    problem.qHeads = shape.qHeads;
    problem.kvHeads = shape.kvHeads;
    problem.qLen = shape.qLen;
    problem.kvLen = shape.kvLen;
    problem.headDim = shape.headDim;
    problem.vHeadDim = shape.vHeadDim;
    problem.scale = call.scale;
    problem.mask = &wholeMask;
    problem.functions = &mask.functions;
    problem.bindings = &mask.bindings;
    problem.sink = call.sink;
    return problem;
  }

  PlanRequest request(int32_t worldSize) const {
    PlanRequest request;
    request.shape = shape;
    request.worldSize = worldSize;
    request.mask = &mask.mask;
    request.functions = &mask.functions;
    request.bindings = &mask.bindings;
    request.documentOffsets = mask.offsets;
    return request;
  }

  WholeTensors tensors() {
    WholeTensors tensors;
    tensors.q = q.view;
    tensors.k = k.view;
    tensors.v = v.view;
    tensors.out = out.view;
    tensors.lse = lse.view;
    tensors.dOut = dOut.view;
    tensors.dLse = dLse.view;
    tensors.dQ = dQ.view;
    tensors.dK = dK.view;
    tensors.dV = dV.view;
    if (mask.functions.score) {
      tensors.captureGradients = captureGradients;
      tensors.numCaptures = 2;
    }
    tensors.sinkGradient = call.sink ? sinkGradient.data() : nullptr;
    return tensors;
  }

  void computeReference() {
    StatusOr<ReferenceForward> expected = referenceAttentionForward(problem(), q.view, k.view, v.view);
    ASSERT_TRUE(expected.isOk()) << expected.status().message();
    forward = std::move(*expected);
    StatusOr<ReferenceBackward> gradients = referenceAttentionBackward(
        problem(), q.view, k.view, v.view, dOut.view, dLse.view, {false, mask.functions.score != nullptr});
    ASSERT_TRUE(gradients.isOk()) << gradients.status().message();
    backward = std::move(*gradients);
  }

  /// Plans, runs, and compares the five tensors and the gradients of captures and sinks with the reference.
  void expectRight(const PlanRequest &request, std::vector<RunReport> *reports = nullptr) {
    expectRight(request, [&](const Schedule &forward, const Schedule *backward) {
      return runContextParallelHost(forward, backward, call, tensors(), {}, reports);
    });
  }

  /// The same with another way to run the ranks.
  void expectRight(const PlanRequest &request,
                   const std::function<Status(const Schedule &forward, const Schedule *backward)> &run) {
    StatusOr<Schedule> forwardSchedule = planContextParallel(request);
    ASSERT_TRUE(forwardSchedule.isOk()) << forwardSchedule.status().message();
    StatusOr<Schedule> backwardSchedule = planBackward(request, *forwardSchedule);
    ASSERT_TRUE(backwardSchedule.isOk()) << backwardSchedule.status().message();
    for (TestTensor *each : {&out, &lse, &dQ, &dK, &dV})
      std::fill(each->bytes.begin(), each->bytes.end(), uint8_t(0xcd));
    Status status = run(*forwardSchedule, &*backwardSchedule);
    ASSERT_TRUE(status.isOk()) << status.message();
    const double tolerance = toleranceOf(shape.type);
    EXPECT_LE(relativeError(out.view, forward.out, out.sizes), tolerance);
    EXPECT_LE(relativeError(lse.view, forward.lse, lse.sizes), 2e-6);
    EXPECT_LE(relativeError(dQ.view, backward.dQ, dQ.sizes), tolerance * 3);
    EXPECT_LE(relativeError(dK.view, backward.dK, dK.sizes), tolerance * 3);
    EXPECT_LE(relativeError(dV.view, backward.dV, dV.sizes), tolerance * 3);
    const int64_t perHead[4] = {1, 1, 1, shape.qHeads};
    if (mask.functions.score) {
      EXPECT_LE(relativeError({slopeGradient.data(), ElementType::F32, {0, 0, 0, 1}}, backward.captures[1], perHead),
                tolerance * 20);
    }
    if (call.sink) {
      EXPECT_LE(relativeError({sinkGradient.data(), ElementType::F32, {0, 0, 0, 1}}, backward.sink, perHead),
                tolerance * 20);
    }
  }

  CallShape shape;
  TestMask mask;
  TestTensor q, k, v, dOut, dLse, out, lse, dQ, dK, dV;
  std::vector<float> slopes, sink, slopeGradient, sinkGradient;
  CaptureView captures[2];
  float *captureGradients[2] = {};
  BlockMask wholeMask; ///< the mask for every (b, h)
  RankCall call;
  ReferenceForward forward;
  ReferenceBackward backward;
};

inline CallShape shapeOf(int64_t batch, int64_t qHeads, int64_t kvHeads, int64_t qLen, int64_t kvLen,
                         ElementType type = ElementType::F32) {
  return {.batch = batch,
          .qHeads = qHeads,
          .kvHeads = kvHeads,
          .qLen = qLen,
          .kvLen = kvLen,
          .headDim = 32,
          .vHeadDim = 24,
          .type = type};
}

} // namespace cpflex::test
