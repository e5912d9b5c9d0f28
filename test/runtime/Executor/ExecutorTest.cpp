// Do ranks together compute what one device computes, forward and backward, under every layout and rotation?
#include "../Plan/TestMasks.h"
#include "runtime/Executor/ContextParallelRun.h"
#include "runtime/Host/PartialAttention.h"
#include "runtime/Host/ReferenceAttention.h"
#include "runtime/Plan/Planner.h"

#include <cmath>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <random>

using namespace cpflex;
using namespace cpflex::test;

namespace {

/// Relative to the fp64 reference: f32 arithmetic in another order, and rounding to 8 or 11 bits.
double toleranceOf(ElementType type) {
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
void alibi(const Bindings *bindings, const TileCoordinates *tile, float *scores, int64_t rowStride) {
  const float slope = static_cast<const float *>(bindings->captures[1].data)[tile->h];
  for (int64_t i = 0; i < tile->qCount; ++i)
    for (int64_t j = 0; j < tile->kvCount; ++j)
      scores[i * rowStride + j] +=
          slope * float(tile->kvBegin + j * tile->kvStep - tile->qBegin - i * tile->qStep);
}

void alibiGradient(const Bindings *, const TileCoordinates *tile, const float *, float *gradients, int64_t rowStride,
                   float *const *captureGradients) {
  if (captureGradients && captureGradients[1])
    for (int64_t i = 0; i < tile->qCount; ++i)
      for (int64_t j = 0; j < tile->kvCount; ++j)
        captureGradients[1][tile->h] +=
            gradients[i * rowStride + j] * float(tile->kvBegin + j * tile->kvStep - tile->qBegin - i * tile->qStep);
}

/// One attention call with everything it needs, its reference, and results to compare.
struct Case {
  Case(MaskRule rule, CallShape shape, bool hasScore = false, bool hasSink = false)
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
            mask.mask.rowSetOf[size_t((mask.mask.batch == 1 ? 0 : b) * mask.mask.heads + (mask.mask.heads == 1 ? 0 : h))]);
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
  Case(const Case &) = delete;

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
    StatusOr<Schedule> forwardSchedule = planContextParallel(request);
    ASSERT_TRUE(forwardSchedule.isOk()) << forwardSchedule.status().message();
    StatusOr<Schedule> backwardSchedule = planBackward(request, *forwardSchedule);
    ASSERT_TRUE(backwardSchedule.isOk()) << backwardSchedule.status().message();
    for (TestTensor *each : {&out, &lse, &dQ, &dK, &dV})
      std::fill(each->bytes.begin(), each->bytes.end(), uint8_t(0xcd));
    Status status = runContextParallelHost(*forwardSchedule, &*backwardSchedule, call, tensors(), {}, reports);
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

CallShape shapeOf(int64_t batch, int64_t qHeads, int64_t kvHeads, int64_t qLen, int64_t kvLen,
                  ElementType type = ElementType::F32) {
  return {.batch = batch, .qHeads = qHeads, .kvHeads = kvHeads, .qLen = qLen, .kvLen = kvLen, .headDim = 32,
          .vHeadDim = 24, .type = type};
}

constexpr LayoutKind kLayouts[] = {LayoutKind::Contiguous, LayoutKind::HeadTail, LayoutKind::Striped,
                                   LayoutKind::PerDocument, LayoutKind::Ptrr, LayoutKind::Solved};
constexpr Rotation kRotations[] = {Rotation::Ring, Rotation::AllGather, Rotation::Selective, Rotation::Ulysses};

TEST(Executor, CausalMasksUnderEveryLayoutAndRotation) {
  Case each(MaskRule::Causal, shapeOf(1, 4, 2, 300, 300));
  each.computeReference();
  for (LayoutKind layout : kLayouts)
    for (Rotation rotation : kRotations)
      for (int32_t worldSize : {2, 3}) {
        SCOPED_TRACE(std::string(toString(layout)) + " " + std::string(toString(rotation)));
        PlanRequest request = each.request(worldSize);
        request.layout = layout;
        request.rotation = rotation;
        each.expectRight(request);
      }
}

TEST(Executor, DocumentMasksThatDifferByBatchRow) {
  // The grid of PyTorch's document test, and odd lengths.
  for (int64_t batch : {2, 4, 8})
    for (int64_t length : {512, 259}) {
      Case each(MaskRule::Document, shapeOf(batch, 2, 1, length, length));
      each.computeReference();
      for (LayoutKind layout : kLayouts) {
        SCOPED_TRACE(std::string(toString(layout)) + " " + std::to_string(batch) + " " + std::to_string(length));
        PlanRequest request = each.request(2);
        request.layout = layout;
        request.rotation = layout == LayoutKind::HeadTail ? Rotation::Ring : Rotation::Selective;
        each.expectRight(request);
      }
    }
}

TEST(Executor, EveryNumberOfRanks) {
  Case each(MaskRule::Document, shapeOf(2, 4, 2, 203, 203), /*hasScore=*/true);
  each.computeReference();
  for (int32_t worldSize = 1; worldSize <= 8; ++worldSize)
    for (Rotation rotation : kRotations) {
      SCOPED_TRACE(worldSize);
      PlanRequest request = each.request(worldSize);
      request.layout = LayoutKind::HeadTail;
      request.rotation = rotation;
      each.expectRight(request);
    }
}

TEST(Executor, MoreRanksThanTokensOrHeads) {
  Case each(MaskRule::Causal, shapeOf(1, 2, 1, 5, 5));
  each.computeReference();
  for (Rotation rotation : kRotations) {
    PlanRequest request = each.request(8);
    request.layout = LayoutKind::Contiguous;
    request.rotation = rotation;
    each.expectRight(request);
  }
}

TEST(Executor, OtherMasksTypesAndExtras) {
  struct Variant {
    MaskRule rule;
    CallShape shape;
    bool hasScore, hasSink;
  };
  const Variant variants[] = {
      {MaskRule::Full, shapeOf(1, 4, 4, 190, 190), false, false},
      {MaskRule::Window, shapeOf(2, 4, 2, 301, 301), true, true},
      {MaskRule::Prefix, shapeOf(1, 4, 2, 255, 255, ElementType::BF16), false, false},
      {MaskRule::PerHead, shapeOf(1, 4, 2, 260, 260), true, false},
      {MaskRule::Holes, shapeOf(1, 4, 2, 260, 260), false, false},
      {MaskRule::Holes, shapeOf(1, 3, 1, 260, 260), false, true},
      {MaskRule::Cross, shapeOf(1, 4, 2, 150, 333), false, false},
      {MaskRule::Document, shapeOf(2, 4, 1, 260, 260, ElementType::F16), true, true},
  };
  for (const Variant &variant : variants) {
    Case each(variant.rule, variant.shape, variant.hasScore, variant.hasSink);
    each.computeReference();
    for (Rotation rotation : kRotations)
      for (LayoutKind layout : {LayoutKind::Striped, LayoutKind::Solved})
        for (NeedPrecision precision : {NeedPrecision::Tile, NeedPrecision::Token}) {
          SCOPED_TRACE(std::to_string(int(variant.rule)) + " " + std::string(toString(rotation)));
          PlanRequest request = each.request(3);
          request.layout = layout;
          request.rotation = rotation;
          request.needPrecision = precision;
          each.expectRight(request);
        }
  }
}

TEST(Executor, WithoutSoftmax) {
  Case each(MaskRule::Causal, shapeOf(1, 2, 1, 140, 140));
  each.call.normalization = AttentionProblem::Normalization::None;
  AttentionProblem problem = each.problem();
  problem.normalization = AttentionProblem::Normalization::None;
  each.forward = *referenceAttentionForward(problem, each.q.view, each.k.view, each.v.view);
  each.backward = *referenceAttentionBackward(problem, each.q.view, each.k.view, each.v.view, each.dOut.view, {});
  for (Rotation rotation : kRotations) {
    PlanRequest request = each.request(3);
    request.rotation = rotation;
    request.layout = LayoutKind::HeadTail;
    Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    WholeTensors tensors = each.tensors();
    tensors.lse = tensors.dLse = {};
    Status status = runContextParallelHost(forward, &backward, each.call, tensors);
    ASSERT_TRUE(status.isOk()) << status.message();
    EXPECT_LE(relativeError(each.out.view, each.forward.out, each.out.sizes), 2e-6);
    EXPECT_LE(relativeError(each.dQ.view, each.backward.dQ, each.dQ.sizes), 2e-6);
    EXPECT_LE(relativeError(each.dK.view, each.backward.dK, each.dK.sizes), 2e-6);
    EXPECT_LE(relativeError(each.dV.view, each.backward.dV, each.dV.sizes), 2e-6);
  }
}

TEST(Executor, AscendingKeysGiveTheBitsOfOneDevice) {
  for (MaskRule rule : {MaskRule::Causal, MaskRule::Document, MaskRule::Window})
    for (ElementType type : {ElementType::F32, ElementType::BF16}) {
      Case each(rule, shapeOf(2, 4, 2, 515, 515, type), /*hasScore=*/true, /*hasSink=*/true);
      TestTensor out(type, 2, 4, 515, 24, 0), lse(ElementType::F32, 2, 4, 515, 1, 0);
      HostForwardTensors single;
      single.q = each.q.view;
      single.k = each.k.view;
      single.v = each.v.view;
      single.out = out.view;
      single.lse = lse.view;
      ASSERT_TRUE(hostAttentionForward(each.problem(), single).isOk());
      for (LayoutKind layout : kLayouts)
        for (Rotation rotation : {Rotation::AllGather, Rotation::Selective, Rotation::Ulysses}) {
          SCOPED_TRACE(std::string(toString(layout)) + " " + std::string(toString(rotation)));
          PlanRequest request = each.request(3);
          request.layout = layout;
          request.rotation = rotation;
          request.keyOrder = KeyOrder::Ascending;
          Schedule schedule = *planContextParallel(request);
          Status status = runContextParallelHost(schedule, nullptr, each.call, each.tensors());
          ASSERT_TRUE(status.isOk()) << status.message();
          EXPECT_TRUE(out.bytes == each.out.bytes);
          EXPECT_TRUE(lse.bytes == each.lse.bytes);
        }
    }
}

TEST(Executor, EveryRunOfOnePlanGivesTheSameBits) {
  Case each(MaskRule::Document, shapeOf(2, 4, 2, 300, 300, ElementType::BF16), /*hasScore=*/true);
  for (Rotation rotation : kRotations) {
    PlanRequest request = each.request(4);
    request.rotation = rotation;
    Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    std::vector<std::vector<uint8_t>> first;
    for (int repeat = 0; repeat < 3; ++repeat) {
      ASSERT_TRUE(runContextParallelHost(forward, &backward, each.call, each.tensors()).isOk());
      std::vector<std::vector<uint8_t>> results;
      for (TestTensor *tensor : {&each.out, &each.lse, &each.dQ, &each.dK, &each.dV})
        results.push_back(tensor->bytes);
      if (repeat == 0)
        first = results;
      EXPECT_TRUE(results == first);
    }
  }
}

TEST(Executor, MovesTheBytesOfThePlan) {
  Case each(MaskRule::Document, shapeOf(2, 4, 2, 400, 400, ElementType::BF16));
  each.computeReference();
  for (Rotation rotation : kRotations)
    for (int32_t worldSize : {2, 5}) {
      PlanRequest request = each.request(worldSize);
      request.layout = LayoutKind::HeadTail;
      request.rotation = rotation;
      Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
      for (const Schedule *schedule : {&forward, &backward}) {
        std::vector<RunReport> reports;
        WholeTensors tensors = each.tensors();
        std::vector<RunReport> both;
        ASSERT_TRUE(runContextParallelHost(forward, schedule == &backward ? &backward : nullptr, each.call, tensors, {},
                                           &both)
                        .isOk());
        for (const RunReport &report : both) {
          int64_t sent = 0, received = 0;
          for (const auto &[key, counter] : report.sent)
            sent += counter.bytes;
          for (const auto &[key, counter] : report.received)
            received += counter.bytes;
          const RankLoad &load = forward.certificate.ranks[size_t(report.rank)];
          const RankLoad &second = backward.certificate.ranks[size_t(report.rank)];
          const bool isBoth = schedule == &backward;
          EXPECT_EQ(sent, load.bytesSent + (isBoth ? second.bytesSent : 0));
          EXPECT_EQ(received, load.bytesReceived + (isBoth ? second.bytesReceived : 0));
          // Planned memory is what is measured.
          const int64_t planned = std::max(load.peakBytes, isBoth ? second.peakBytes : 0);
          EXPECT_NEAR(double(report.peakBytes), double(planned), 0.05 * double(planned));
        }
      }
    }
}

TEST(Executor, DenseRingSendsAsOftenAsPyTorch) {
  Case each(MaskRule::Full, shapeOf(1, 2, 2, 256, 256));
  PlanRequest request = each.request(4);
  request.layout = LayoutKind::HeadTail;
  request.rotation = Rotation::Ring;
  Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
  std::vector<RunReport> reports;
  ASSERT_TRUE(runContextParallelHost(forward, &backward, each.call, each.tensors(), {}, &reports).isOk());
  for (const RunReport &report : reports) {
    int64_t numKeys = 0, numGradients = 0;
    for (const auto &[key, counter] : report.sent)
      (key.first == "kv" ? numKeys : numGradients) += counter.messages;
    EXPECT_EQ(numKeys, 3 + 3);
    EXPECT_EQ(numGradients, 3);
  }
}

TEST(Executor, OffsetsMakeMasksAndScoresSeeTheWholeJob) {
  // Heads 2 and 3 and batch row 1 of a larger call, as a job that splits heads and batch elsewhere has them.
  Case whole(MaskRule::Document, shapeOf(2, 4, 4, 200, 200), /*hasScore=*/true);
  whole.computeReference();
  CallShape part = whole.shape;
  part.batch = 1;
  part.qHeads = part.kvHeads = 2;
  PlanRequest request;
  request.shape = part;
  request.worldSize = 3;
  request.layout = LayoutKind::HeadTail;
  request.rotation = Rotation::Selective;
  Schedule schedule = *planContextParallel(request);
  RankCall call = whole.call;
  call.batchOffset = 1;
  call.headOffset = 2;
  auto partOf = [&](const TestTensor &tensor) {
    TensorView view = tensor.view;
    view.data = const_cast<uint8_t *>(tensor.bytes.data()) +
                (view.strides[0] + 2 * view.strides[1]) * sizeInBytes(view.type);
    return view;
  };
  WholeTensors tensors;
  tensors.q = partOf(whole.q);
  tensors.k = partOf(whole.k);
  tensors.v = partOf(whole.v);
  tensors.out = partOf(whole.out);
  Status status = runContextParallelHost(schedule, nullptr, call, tensors);
  ASSERT_TRUE(status.isOk()) << status.message();
  const int64_t rows = 200 * 24;
  std::vector<double> expected(whole.forward.out.begin() + 6 * rows, whole.forward.out.end());
  const int64_t sizes[4] = {1, 2, 200, 24};
  EXPECT_LE(relativeError(partOf(whole.out), expected, sizes), 2e-6);
}

TEST(Executor, MasksFromTapesAreDerivedOnEveryRank) {
  Case each(MaskRule::Causal, shapeOf(2, 4, 2, 300, 300));
  each.computeReference();
  Tape tape;
  tape.name = "causal";
  auto coordinate = [](int which) {
    TapeInstruction instruction;
    instruction.operation = Operation::Coordinate;
    instruction.immediate = which;
    return instruction;
  };
  TapeInstruction compare;
  compare.operation = Operation::Le;
  compare.resultType = ValueType::Bool;
  compare.operands[0] = 0;
  compare.operands[1] = 1;
  tape.instructions = {coordinate(3), coordinate(2), compare};
  tape.result = 2;
  each.call.tape = &tape;
  for (LayoutKind layout : {LayoutKind::HeadTail, LayoutKind::Striped})
    for (Rotation rotation : kRotations) {
      PlanRequest request = each.request(3);
      request.layout = layout;
      request.rotation = rotation;
      each.expectRight(request);
    }
}

TEST(Executor, TracesHoldComputesAndTransfersOfEveryRank) {
  Case each(MaskRule::Causal, shapeOf(1, 2, 2, 200, 200));
  PlanRequest request = each.request(3);
  request.rotation = Rotation::Ring;
  Schedule forward = *planContextParallel(request);
  std::vector<RunReport> reports;
  ASSERT_TRUE(runContextParallelHost(forward, nullptr, each.call, each.tensors(), {}, &reports).isOk());
  nlohmann::json trace = nlohmann::json::parse(toTraceJson(reports));
  std::map<int, int> computes, transfers;
  for (const auto &event : trace["traceEvents"])
    if (event["ph"] == "X")
      ++(event["tid"] == 0 ? computes : transfers)[event["pid"].get<int>()];
  EXPECT_EQ(computes.size(), 3u);
  EXPECT_EQ(transfers.size(), 3u);
}

TEST(Executor, FaultsOfCallersAreNamed) {
  Case each(MaskRule::Causal, shapeOf(1, 2, 2, 64, 64));
  PlanRequest request = each.request(2);
  Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
  auto messageOf = [&](auto &&change) {
    WholeTensors tensors = each.tensors();
    change(tensors);
    return runContextParallelHost(forward, &backward, each.call, tensors).message();
  };
  EXPECT_EQ(messageOf([](WholeTensors &t) { t.q.type = ElementType::BF16; }),
            "'q' is missing or of another type; expected f32");
  EXPECT_EQ(messageOf([](WholeTensors &t) { t.dOut.data = nullptr; }),
            "'dOut' is missing or of another type; expected f32");
  PlanRequest other = request;
  other.layout = LayoutKind::Striped;
  Schedule striped = *planContextParallel(other), stripedBackward = *planBackward(other, striped);
  EXPECT_EQ(runContextParallelHost(forward, &stripedBackward, each.call, each.tensors()).message(),
            "forward and backward schedules with different layouts; expected the same");
  EXPECT_EQ(runContextParallelHost(backward, nullptr, each.call, each.tensors()).message(),
            "a backward schedule for a forward pass; expected a forward schedule");
  EXPECT_EQ(runContextParallelHost(forward, &forward, each.call, each.tensors()).message(),
            "a forward schedule for a backward pass; expected a backward schedule");
  RankCall noBindings = each.call;
  Tape tape;
  noBindings.tape = &tape;
  noBindings.bindings = nullptr;
  EXPECT_EQ(runContextParallelHost(forward, nullptr, noBindings, each.tensors()).message(),
            "a mask without bindings; expected the arrays that it reads");
}

} // namespace
