// Backward attention on the CPU against the dense double-precision reference, the reference against finite differences,
// and the promises about bits.
#include "test/runtime/Host/BackwardRun.h"

using namespace cpflex;
using namespace cpflex::test;

namespace {

void expectMatchesReference(AttentionCase &test, double tolerance = kTolerance) {
  BackwardRun run(test);
  run.run();
  run.expectMatchesReference(tolerance);
}

// Scores with gradients.
float softCapGradient(const Bindings *, float score, float gradient, int64_t, int64_t, int64_t, int64_t,
                      float *const *) {
  float t = std::tanh(score / 5.0f);
  return gradient * (1.0f - t * t);
}
/// s * slope[h] + bias[q - kv] * bias[0]: a factor per head and a table that every pair reads twice.
const float *floats(const Bindings *bindings, int capture) {
  return static_cast<const float *>(bindings->captures[capture].data);
}
int64_t distance(int64_t q, int64_t kv) { return std::min<int64_t>(std::abs(q - kv), 63); }
float learned(const Bindings *bindings, float score, int64_t, int64_t h, int64_t q, int64_t kv) {
  const float *slope = floats(bindings, 0), *bias = floats(bindings, 1);
  return score * slope[h] + bias[distance(q, kv)] * bias[0];
}
float learnedGradient(const Bindings *bindings, float score, float gradient, int64_t, int64_t h, int64_t q, int64_t kv,
                      float *const *captureGradients) {
  const float *slope = floats(bindings, 0), *bias = floats(bindings, 1);
  if (captureGradients && captureGradients[0])
    captureGradients[0][h] += gradient * score;
  if (captureGradients && captureGradients[1]) {
    captureGradients[1][distance(q, kv)] += gradient * bias[0];
    captureGradients[1][0] += gradient * bias[distance(q, kv)];
  }
  return gradient * slope[h];
}

struct LearnedCaptures {
  std::vector<float> slope = {0.9f, 1.1f, 0.7f, 1.3f}, bias;
  CaptureView views[2];
  LearnedCaptures() {
    for (int i = 0; i < 64; ++i)
      bias.push_back(std::sin(float(i)) + 0.5f);
    views[0] = {slope.data(), {4}, {1}, ElementType::F32, 1};
    views[1] = {bias.data(), {64}, {1}, ElementType::F32, 1};
  }
};

TEST(HostBackward, DenseMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 300, 400, 64);
  expectMatchesReference(test);
}

TEST(ReferenceBackward, WhatCancelsHasTheSizeOfItsTerms) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 1, 1, 64); // one key, so that dQ and dK are 0
  BackwardRun run(test);
  StatusOr<ReferenceBackward> expected =
      referenceAttentionBackward(test.problem, run.q.view(), run.k.view(), run.v.view(), run.dOut.view(), {});
  ASSERT_TRUE(expected.isOk()) << expected.status().message();
  for (auto [terms, gradient] : {std::pair(expected->termsOfDQ, &expected->dQ), {expected->termsOfDK, &expected->dK}}) {
    ASSERT_GT(terms, 0.0);
    std::vector<float> wrong(64, 0.0f);
    wrong[0] = float(terms * 1e-3);
    const TensorView view{wrong.data(), ElementType::F32, {0, 0, 0, 1}};
    EXPECT_NEAR(relativeError(view, *gradient, {1, 1, 1, 64}, terms), 1e-3, 1e-6);
  }
}

TEST(HostBackward, CausalMatchesReferenceAt1024) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 1024, 1024, 128);
  test.setMask<causal>();
  expectMatchesReference(test);
}

TEST(HostBackward, OddShapesMatchReference) {
  for (auto [qLen, kvLen, headDim, vHeadDim] : {std::array<int64_t, 4>{1, 1, 1, 1},
                                                {1, 333, 16, 20},
                                                {129, 1, 17, 9},
                                                {127, 257, 80, 96},
                                                {140, 150, 192, 128},
                                                {130, 135, 512, 260}}) {
    AttentionCase test;
    test.problem = problemOf(1, 2, 1, qLen, kvLen, headDim, vHeadDim);
    test.setMask<window>();
    expectMatchesReference(test);
  }
}

TEST(HostBackward, GroupedHeadsBatchesAndOffsetsMatchReference) {
  for (int64_t kvHeads : {1, 2, 4}) {
    AttentionCase test;
    test.problem = problemOf(2, 4, kvHeads, 150, 300, 32);
    test.problem.batchOffset = 1;
    test.problem.headOffset = 3;
    test.setMask<perHead>(64, 48);
    test.setScore<alibi>();
    expectMatchesReference(test);
  }
}

TEST(HostBackward, SoftCapMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 300, 300, 64);
  test.deviation = 2.0f;
  test.setMask<causal>();
  test.setScore<softCap>();
  test.setScoreGradient<softCapGradient>();
  expectMatchesReference(test);
}

TEST(HostBackward, CaptureGradientsMatchReference) {
  AttentionCase test;
  LearnedCaptures captures;
  test.bindings.captures = captures.views;
  test.problem = problemOf(2, 4, 2, 200, 300, 32);
  test.setMask<causal>();
  test.setScore<learned>();
  test.setScoreGradient<learnedGradient>();
  BackwardRun run(test);
  run.run({4, 64});
  run.expectMatchesReference();
  BackwardRun one(test);
  one.run({0, 64});
  one.expectMatchesReference();
}

TEST(HostBackward, PositionMapsReachTheFunctions) {
  AttentionCase test;
  LearnedCaptures captures;
  test.bindings.captures = captures.views;
  test.problem = problemOf(1, 2, 2, 200, 260, 32);
  test.problem.qPositions = {{{30, 50, 1}, {200, 100, 2}, {500, 50, 1}}};
  test.problem.kvPositions = {{{7, 130, 3}, {0, 1, 1}, {450, 129, 1}}};
  test.setMask<causal>();
  test.setScore<learned>();
  test.setScoreGradient<learnedGradient>();
  BackwardRun run(test);
  run.run({4, 64});
  run.expectMatchesReference();
}

TEST(HostBackward, HalfPrecisionMatchesReference) {
  for (ElementType type : {ElementType::BF16, ElementType::F16}) {
    AttentionCase test;
    test.problem = problemOf(1, 2, 1, 200, 300, 48);
    test.type = type;
    test.setMask<causal>();
    BackwardRun wide(test), narrow(test, type);
    wide.run();
    wide.expectMatchesReference();
    narrow.run();
    narrow.expectMatchesReference(type == ElementType::BF16 ? 0x1p-8 : 0x1p-11);
  }
}

TEST(HostBackward, AnyMemoryOrderMatchesReference) {
  for (const char *order : {"bshd", "bhds"}) {
    AttentionCase test;
    test.problem = problemOf(2, 2, 1, 140, 135, 24);
    test.order = order;
    test.setMask<causal>();
    expectMatchesReference(test);
  }
}

TEST(HostBackward, SinksMatchReference) {
  AttentionCase test;
  test.problem = problemOf(2, 3, 3, 200, 200, 32);
  test.problem.headOffset = 1;
  const float sinks[] = {99.0f, 1.5f, -kInfinity, 4.0f};
  test.problem.sink = sinks;
  test.setMask<sparseRows>();
  BackwardRun run(test);
  run.run();
  run.expectMatchesReference();
  EXPECT_EQ(run.sink[0], -7.0f);
  EXPECT_EQ(run.sink[2], 0.0f);
}

TEST(HostBackward, NoSoftmaxMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 1, 200, 280, 32);
  test.problem.normalization = AttentionProblem::Normalization::None;
  test.setMask<sparseRows>();
  test.setScore<softCap>();
  test.setScoreGradient<softCapGradient>();
  expectMatchesReference(test);
}

TEST(HostBackward, RowsWithoutKeysGiveAndReceiveZero) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 140, 140, 16);
  test.setMask<sparseRows>();
  BackwardRun run(test);
  // Row 3 sees nothing, so not even an infinite gradient of it matters.
  run.dOut.set(0, 0, 3, 2, kInfinity);
  run.run();
  for (int d = 0; d < 16; ++d) {
    EXPECT_EQ(run.dQ.get(0, 0, 3, d), 0.0f);
    EXPECT_EQ(run.dK.get(0, 0, 1, d), 0.0f);
    EXPECT_EQ(run.dV.get(0, 0, 1, d), 0.0f);
  }
  run.expectMatchesReference();
}

TEST(HostBackward, NoKeysAtAllGivesZeroQueryGradients) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 5, 0, 16);
  BackwardRun run(test);
  run.dQ.fill(3.0f);
  run.run();
  EXPECT_EQ(run.dQ.get(0, 0, 4, 15), 0.0f);
}

TEST(HostBackward, KeysThatNobodySeesGetZero) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 5, 300, 16);
  test.setMask<causal>();
  BackwardRun run(test);
  run.dK.fill(3.0f), run.dV.fill(3.0f);
  run.run();
  EXPECT_EQ(run.dK.get(0, 0, 299, 15), 0.0f);
  EXPECT_EQ(run.dV.get(0, 0, 5, 0), 0.0f);
}

float poisonedScore(const Bindings *, float score, int64_t, int64_t, int64_t, int64_t kv) {
  return kv == 5 ? std::nanf("") : kv == 6 ? kInfinity : kv == 9 ? -kInfinity : score;
}
float poisonedGradient(const Bindings *, float, float gradient, int64_t, int64_t, int64_t, int64_t kv, float *const *) {
  return kv == 5 || kv == 6 || kv == 9 ? std::nanf("") : gradient;
}
bool hidesPoison(const Bindings *, int64_t, int64_t, int64_t q, int64_t kv) { return (kv != 5 && kv != 6) || q >= 100; }

TEST(HostBackward, ForbiddenNaNNeverReachesAGradient) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 100, 140, 16);
  test.setMask<hidesPoison>();
  test.setScore<poisonedScore>();
  test.setScoreGradient<poisonedGradient>();
  BackwardRun run(test);
  // Keys and values that nobody may see hold NaN as well.
  run.k.set(0, 0, 5, 3, std::nanf(""));
  run.v.set(0, 0, 6, 3, kInfinity);
  run.run();
  for (Tensor *gradient : {&run.dQ, &run.dK, &run.dV})
    for (int64_t s = 0; s < gradient->sizes()[2]; ++s)
      for (int64_t d = 0; d < 16; ++d)
        ASSERT_TRUE(std::isfinite(gradient->get(0, 0, s, d))) << s << " " << d;
  run.expectMatchesReference();
}

TEST(HostBackward, AllowedNaNReachesItsGradients) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 150, 150, 16);
  test.setMask<causal>();
  BackwardRun run(test);
  run.dOut.set(0, 0, 70, 3, std::nanf(""));
  run.run();
  EXPECT_TRUE(std::isnan(run.dV.get(0, 0, 70, 3)));
  EXPECT_TRUE(std::isnan(run.dQ.get(0, 0, 70, 0)));
  EXPECT_TRUE(std::isnan(run.dK.get(0, 0, 2, 0)));
  EXPECT_TRUE(std::isfinite(run.dV.get(0, 0, 71, 3)));
  EXPECT_TRUE(std::isfinite(run.dQ.get(0, 0, 71, 0)));
  EXPECT_TRUE(std::isfinite(run.dK.get(0, 0, 71, 0)));
}

TEST(HostBackward, ThreadsDoNotChangeBits) {
  AttentionCase test;
  LearnedCaptures captures;
  test.bindings.captures = captures.views;
  test.problem = problemOf(1, 4, 2, 500, 500, 32);
  test.setMask<perHead>();
  test.setScore<learned>();
  test.setScoreGradient<learnedGradient>();
  BackwardRun one(test);
  one.run({4, 64}, {.numThreads = 1});
  for (int numThreads : {2, 5}) {
    BackwardRun many(test);
    many.run({4, 64}, {.numThreads = numThreads});
    EXPECT_TRUE(one.dQ == many.dQ && one.dK == many.dK && one.dV == many.dV);
    EXPECT_EQ(one.captures, many.captures);
  }
}

TEST(HostBackward, SplitInFullAndPartialDoesNotChangeBits) {
  AttentionCase full, partial;
  full.problem = partial.problem = problemOf(1, 2, 2, 450, 470, 64);
  full.setMask<window>();
  partial.setMask<window>(128, 128, FullTiles::AsPartial);
  BackwardRun expected(full), actual(partial);
  expected.run();
  actual.run();
  EXPECT_TRUE(expected.dQ == actual.dQ && expected.dK == actual.dK && expected.dV == actual.dV);
}

TEST(HostBackward, EveryInstructionSetMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 1, 150, 200, 40);
  test.setMask<causal>();
  for (InstructionSet set :
       {InstructionSet::Baseline, InstructionSet::Avx2, InstructionSet::Avx512, InstructionSet::Avx512BFloat16}) {
    if (!isSupported(set))
      continue;
    BackwardRun run(test);
    run.run({}, {.numThreads = 1, .instructionSet = set});
    run.expectMatchesReference();
  }
}

TEST(HostBackward, WorksInTheWorkspaceItAskedFor) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 200, 300, 64);
  test.setMask<causal>(16, 32);
  BackwardRun expected(test), actual(test);
  expected.run();
  HostAttentionOptions options{.numThreads = 2};
  options.workspaceInBytes = hostAttentionBackwardWorkspaceInBytes(test.problem, actual.tensors(), options);
  std::vector<char> memory(options.workspaceInBytes + 9, 'x');
  options.workspace = memory.data() + 1;
  actual.run({}, options);
  EXPECT_TRUE(expected.dQ == actual.dQ && expected.dK == actual.dK);
  EXPECT_EQ(std::string(memory.end() - 8, memory.end()), "xxxxxxxx");
}

TEST(HostBackward, AddsPartsOfTheKeysWithAGivenRowTerm) {
  AttentionCase whole;
  whole.problem = problemOf(1, 2, 1, 150, 256, 32);
  whole.setMask<sparseRows>();
  BackwardRun run(whole);
  run.forward();
  Tensor rowTerm = whole.makeRow();
  ASSERT_TRUE(
      hostAttentionRowTerm(whole.problem, run.out.view(), run.dOut.view(), run.dLse.view(), rowTerm.view()).isOk());
  run.dQ.fill(0.0f), run.dK.fill(0.0f), run.dV.fill(0.0f);
  for (int64_t begin : {0, 100}) {
    AttentionCase part;
    part.problem = whole.problem;
    part.problem.kvLen = begin ? 156 : 100;
    part.problem.kvPositions = {{{begin, part.problem.kvLen, 1}}};
    part.setMask<sparseRows>();
    HostBackwardTensors tensors = run.tensors();
    tensors.out = {}, tensors.dLse = {}, tensors.rowTerm = rowTerm.view();
    tensors.queryWrite = tensors.keyWrite = tensors.arrayWrite = GradientWrite::Add;
    for (TensorView *view : {&tensors.k, &tensors.v, &tensors.dK, &tensors.dV})
      view->data = static_cast<float *>(view->data) + begin * view->strides[2];
    Status status = hostAttentionBackward(part.problem, tensors);
    ASSERT_TRUE(status.isOk()) << status.message();
  }
  run.expectMatchesReference();
}

TEST(HostBackward, ComputesOnlyWhatIsAskedFor) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 150, 200, 32);
  test.setMask<causal>();
  BackwardRun all(test);
  all.run();
  for (int only : {0, 1, 2}) {
    BackwardRun one(test);
    one.forward();
    HostBackwardTensors tensors = one.tensors();
    TensorView *views[] = {&tensors.dQ, &tensors.dK, &tensors.dV};
    for (int i = 0; i < 3; ++i)
      if (i != only)
        views[i]->data = nullptr;
    ASSERT_TRUE(hostAttentionBackward(test.problem, tensors).isOk());
    Tensor *expected[] = {&all.dQ, &all.dK, &all.dV}, *actual[] = {&one.dQ, &one.dK, &one.dV};
    EXPECT_TRUE(*expected[only] == *actual[only]);
  }
}

/// sum(dOut * out) + sum(dLse * lse) in double.
double lossOf(BackwardRun &run) {
  StatusOr<ReferenceForward> result =
      referenceAttentionForward(run.test.problem, run.q.view(), run.k.view(), run.v.view());
  const AttentionProblem &problem = run.test.problem;
  double loss = 0;
  int64_t row = 0;
  for (int64_t b = 0; b < problem.batch; ++b)
    for (int64_t h = 0; h < problem.qHeads; ++h)
      for (int64_t s = 0; s < problem.qLen; ++s, ++row) {
        for (int64_t d = 0; d < problem.vHeadDim; ++d)
          loss += run.dOut.get(b, h, s, d) * result->out[row * problem.vHeadDim + d];
        if (result->lse[row] != -kInfinity)
          loss += run.dLse.get(b, h, s, 0) * result->lse[row];
      }
  return loss;
}

TEST(ReferenceAttention, GradientsMatchFiniteDifferences) {
  AttentionCase test;
  LearnedCaptures captures;
  test.bindings.captures = captures.views;
  test.problem = problemOf(2, 4, 2, 13, 17, 8, 6);
  float sinks[] = {0.5f, -1.0f, 2.0f, 0.0f};
  test.problem.sink = sinks;
  test.setMask<sparseRows>();
  BackwardRun run(test);
  // Central differences; the steps are powers of two, so that the inputs move by exactly that.
  const float step = 0x1p-6f;
  auto slopeOf = [&](auto move) {
    move(step);
    double above = lossOf(run);
    move(-2 * step);
    double below = lossOf(run);
    move(step);
    return (above - below) / (2 * step);
  };
  StatusOr<ReferenceBackward> gradients = referenceAttentionBackward(test.problem, run.q.view(), run.k.view(),
                                                                     run.v.view(), run.dOut.view(), run.dLse.view());
  ASSERT_TRUE(gradients.isOk());
  for (int sample = 0; sample < 6; ++sample) {
    const int64_t b = sample % 2, h = sample % 2, row = sample + 5, d = sample;
    std::pair<Tensor *, std::vector<double> *> tensors[] = {
        {&run.q, &gradients->dQ}, {&run.k, &gradients->dK}, {&run.v, &gradients->dV}};
    for (auto [tensor, gradient] : tensors) {
      const auto &sizes = tensor->sizes();
      double slope = slopeOf([&](float by) { tensor->set(b, h, row, d, tensor->get(b, h, row, d) + by); });
      EXPECT_NEAR(slope, (*gradient)[((b * sizes[1] + h) * sizes[2] + row) * sizes[3] + d], 2e-4);
    }
  }
  for (int h = 0; h < 4; ++h)
    EXPECT_NEAR(slopeOf([&](float by) { sinks[h] += by; }), gradients->sink[h], 2e-4);
}

TEST(ReferenceAttention, CaptureGradientsMatchFiniteDifferences) {
  AttentionCase test;
  LearnedCaptures captures;
  test.bindings.captures = captures.views;
  test.problem = problemOf(1, 4, 4, 13, 17, 8);
  test.setMask<sparseRows>();
  test.setScore<learned>();
  test.setScoreGradient<learnedGradient>();
  BackwardRun run(test);
  StatusOr<ReferenceBackward> gradients = referenceAttentionBackward(
      test.problem, run.q.view(), run.k.view(), run.v.view(), run.dOut.view(), run.dLse.view(), {true, true});
  ASSERT_TRUE(gradients.isOk());
  // Scores pass through f32, so differences of them carry 2^-24 / step.
  const float step = 0x1p-6f;
  for (auto [capture, element] : {std::pair<int, int>{0, 0}, {0, 3}, {1, 0}, {1, 4}, {1, 9}}) {
    float &value = (capture == 0 ? captures.slope : captures.bias)[element];
    value += step;
    double above = lossOf(run);
    value -= 2 * step;
    double below = lossOf(run);
    value += step;
    EXPECT_NEAR((above - below) / (2 * step), gradients->captures[capture][element], 1e-3);
  }
}

} // namespace
