// Forward attention on the CPU against the dense double-precision reference, and the promises about bits.
#include "test/runtime/Host/AttentionCase.h"

#include <gtest/gtest.h>

using namespace cpflex;
using namespace cpflex::test;

namespace {

constexpr double kTolerance = 2e-6;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Outputs {
  Tensor out, lse, rowMax;
};

Outputs runForward(AttentionCase &test, Tensor &q, Tensor &k, Tensor &v, ElementType outType = ElementType::F32,
                   HostAttentionOptions options = {.numThreads = 2}) {
  Outputs outputs = {test.makeOut(outType), test.makeRow(), test.makeRow()};
  HostForwardTensors tensors{.q = q.view(), .k = k.view(), .v = v.view()};
  tensors.out = outputs.out.view();
  if (test.problem.normalization == AttentionProblem::Normalization::Softmax)
    tensors.lse = outputs.lse.view(), tensors.rowMax = outputs.rowMax.view();
  Status status = hostAttentionForward(test.problem, tensors, options);
  EXPECT_TRUE(status.isOk()) << status.message();
  return outputs;
}

void expectMatchesReference(AttentionCase &test, Tensor &q, Tensor &k, Tensor &v, double tolerance = kTolerance,
                            ElementType outType = ElementType::F32) {
  Outputs outputs = runForward(test, q, k, v, outType);
  StatusOr<ReferenceForward> expected = referenceAttentionForward(test.problem, q.view(), k.view(), v.view());
  ASSERT_TRUE(expected.isOk()) << expected.status().message();
  EXPECT_LE(relativeError(outputs.out.view(), expected->out, outputs.out.sizes()), tolerance);
  if (test.problem.normalization == AttentionProblem::Normalization::None)
    return;
  EXPECT_LE(relativeError(outputs.rowMax.view(), expected->rowMax, outputs.rowMax.sizes()), kTolerance);
  EXPECT_LE(relativeError(outputs.lse.view(), expected->lse, outputs.lse.sizes()), kTolerance);
}

void expectMatchesReference(AttentionCase &test, double tolerance = kTolerance,
                            ElementType outType = ElementType::F32) {
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  expectMatchesReference(test, q, k, v, tolerance, outType);
}

TEST(HostForward, DenseMatchesReferenceAt2048) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 2048, 2048, 128);
  expectMatchesReference(test);
}

TEST(HostForward, LargeScoresMatchReference) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 300, 700, 64);
  test.deviation = 3.0f;
  expectMatchesReference(test);
}

TEST(HostForward, CausalMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 700, 700, 64);
  test.setMask<causal>();
  expectMatchesReference(test);
}

TEST(HostForward, OddLengthsMatchReference) {
  for (auto [qLen, kvLen] : {std::pair<int64_t, int64_t>{1, 1}, {1, 333}, {129, 1}, {127, 257}, {200, 13}}) {
    AttentionCase test;
    test.problem = problemOf(1, 2, 1, qLen, kvLen, 40);
    test.setMask<window>();
    expectMatchesReference(test);
  }
}

TEST(HostForward, HeadSizesMatchReference) {
  for (auto [headDim, vHeadDim] :
       {std::pair<int64_t, int64_t>{1, 3}, {16, 512}, {17, 96}, {80, 80}, {192, 128}, {256, 33}, {512, 130}}) {
    AttentionCase test;
    test.problem = problemOf(1, 1, 1, 140, 150, headDim, vHeadDim);
    test.setMask<causal>();
    expectMatchesReference(test);
  }
}

TEST(HostForward, GroupedHeadsMatchReference) {
  for (int64_t kvHeads : {1, 2, 3, 6}) {
    AttentionCase test;
    test.problem = problemOf(2, 6, kvHeads, 150, 170, 32);
    test.setMask<perHead>();
    test.setScore<alibi>();
    expectMatchesReference(test);
  }
}

TEST(HostForward, BatchAndHeadOffsetsReachTheFunctions) {
  AttentionCase test;
  test.problem = problemOf(2, 3, 3, 150, 150, 32);
  test.problem.batchOffset = 3;
  test.problem.headOffset = 5;
  test.setMask<perHead>();
  test.setScore<alibi>();
  expectMatchesReference(test);
}

TEST(HostForward, SoftCapMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 300, 300, 64);
  test.deviation = 2.0f;
  test.setMask<causal>();
  test.setScore<softCap>();
  expectMatchesReference(test);
}

TEST(HostForward, DocumentsInACaptureMatchReference) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 400, 400, 32);
  std::vector<int32_t> documents(400);
  for (int i = 0; i < 400; ++i)
    documents[i] = i / 90;
  CaptureView capture{documents.data(), {400}, {1}, ElementType::I32, 1};
  test.bindings.captures = &capture;
  test.setMask<sameDocument>();
  expectMatchesReference(test);
}

TEST(HostForward, HalfPrecisionInputsMatchReference) {
  for (ElementType type : {ElementType::BF16, ElementType::F16}) {
    AttentionCase test;
    test.problem = problemOf(1, 2, 1, 200, 300, 48);
    test.type = type;
    test.setMask<causal>();
    expectMatchesReference(test, kTolerance, ElementType::F32);
    // Half of the last place of an output that is rounded once.
    expectMatchesReference(test, type == ElementType::BF16 ? 0x1p-8 : 0x1p-11, type);
  }
}

TEST(HostForward, HalfPrecisionOfAnyHeadSizeMatchesReference) {
  // Even sizes may be multiplied in pairs, odd ones not; 300 pairs span two blocks.
  for (int64_t headDim : {1, 33, 130, 600}) {
    AttentionCase test;
    test.problem = problemOf(1, 2, 2, 130, 140, headDim, 20);
    test.type = ElementType::BF16;
    test.setMask<causal>();
    expectMatchesReference(test);
  }
}

TEST(HostForward, AnyMemoryOrderMatchesReference) {
  for (const char *order : {"bshd", "bhds", "dshb", "sbhd"}) {
    for (ElementType type : {ElementType::F32, ElementType::BF16}) {
      AttentionCase test;
      test.problem = problemOf(2, 2, 1, 140, 135, 24);
      test.type = type;
      test.order = order;
      test.setMask<causal>();
      expectMatchesReference(test);
    }
  }
}

TEST(HostForward, BroadcastBatchMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(3, 2, 2, 70, 140, 32);
  test.setMask<perHead>();
  Tensor q = test.makeQ(), k({1, 2, 140, 32}), v({1, 2, 140, 32});
  k.randomize(5), v.randomize(6);
  TensorView kView = k.view(), vView = v.view();
  kView.strides[0] = vView.strides[0] = 0;
  Tensor out = test.makeOut(ElementType::F32);
  HostForwardTensors tensors{.q = q.view(), .k = kView, .v = vView, .out = out.view()};
  ASSERT_TRUE(hostAttentionForward(test.problem, tensors).isOk());
  StatusOr<ReferenceForward> expected = referenceAttentionForward(test.problem, q.view(), kView, vView);
  EXPECT_LE(relativeError(out.view(), expected->out, out.sizes()), kTolerance);
}

TEST(HostForward, PositionMapsReachTheFunctions) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 200, 260, 32);
  test.problem.qPositions = {{{30, 50, 1}, {400, 0, 1}, {200, 100, 2}, {500, 50, 1}}};
  test.problem.kvPositions = {{{7, 130, 3}, {0, 1, 1}, {450, 129, 1}}};
  test.setMask<causal>();
  test.setScore<alibi>();
  expectMatchesReference(test);
}

TEST(HostForward, MaskTilesOfAnySizeMatchReference) {
  for (auto [tileQ, tileKV] : {std::pair<int64_t, int64_t>{64, 64}, {256, 128}, {32, 300}, {100, 48}, {1000, 1000}}) {
    AttentionCase test;
    test.problem = problemOf(1, 2, 2, 400, 410, 32);
    test.setMask<window>(tileQ, tileKV);
    expectMatchesReference(test);
  }
}

TEST(HostForward, NoSoftmaxMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 1, 300, 280, 32);
  test.problem.normalization = AttentionProblem::Normalization::None;
  test.setMask<sparseRows>();
  test.setScore<alibi>();
  expectMatchesReference(test);
}

TEST(HostForward, SinksMatchReference) {
  AttentionCase test;
  test.problem = problemOf(1, 3, 3, 200, 200, 32);
  test.problem.headOffset = 1;
  const float sinks[] = {99.0f, 1.5f, -kInfinity, 20.0f};
  test.problem.sink = sinks;
  test.setMask<sparseRows>();
  expectMatchesReference(test);
}

TEST(HostForward, RowsWithoutKeysAreZero) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 140, 140, 16);
  test.setMask<sparseRows>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  Outputs outputs = runForward(test, q, k, v);
  EXPECT_EQ(outputs.lse.get(0, 0, 3, 0), -kInfinity);
  EXPECT_EQ(outputs.rowMax.get(0, 0, 3, 0), -kInfinity);
  EXPECT_EQ(outputs.out.get(0, 0, 3, 7), 0.0f);
  const float sink = 0.25f;
  test.problem.sink = &sink;
  outputs = runForward(test, q, k, v);
  EXPECT_EQ(outputs.lse.get(0, 0, 3, 0), 0.25f);
  EXPECT_EQ(outputs.out.get(0, 0, 3, 7), 0.0f);
}

TEST(HostForward, NoKeysAtAllGivesEmptyRows) {
  AttentionCase test;
  test.problem = problemOf(2, 2, 2, 3, 0, 16);
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  Outputs outputs = runForward(test, q, k, v);
  EXPECT_EQ(outputs.lse.get(1, 1, 2, 0), -kInfinity);
  EXPECT_EQ(outputs.out.get(1, 1, 2, 15), 0.0f);
}

TEST(HostForward, NoRowsAtAllIsFine) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 0, 5, 16);
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  runForward(test, q, k, v);
}

/// NaN for key 5, +inf for key 6, -inf for key 9 of every row.
float poisonedScore(const Bindings *, float score, int64_t, int64_t, int64_t q, int64_t kv) {
  return kv == 5 ? std::nanf("") : kv == 6 ? kInfinity : kv == 9 ? -kInfinity : score;
}
bool hidesPoison(const Bindings *, int64_t, int64_t, int64_t q, int64_t kv) { return (kv != 5 && kv != 6) || q >= 100; }

TEST(HostForward, ForbiddenNaNScoresAreNotObserved) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 120, 140, 16);
  test.setMask<hidesPoison>();
  test.setScore<poisonedScore>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  expectMatchesReference(test, q, k, v);
  Outputs outputs = runForward(test, q, k, v);
  EXPECT_TRUE(std::isfinite(outputs.out.get(0, 0, 99, 3)));
  EXPECT_TRUE(std::isnan(outputs.out.get(0, 0, 100, 3)));
  EXPECT_TRUE(std::isnan(outputs.lse.get(0, 0, 100, 0)));
}

float minusInfinityForOddRows(const Bindings *, float score, int64_t, int64_t, int64_t q, int64_t) {
  return q % 2 ? -kInfinity : score;
}

TEST(HostForward, MinusInfinityActsAsMasked) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 10, 140, 16);
  test.setScore<minusInfinityForOddRows>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  expectMatchesReference(test, q, k, v);
  Outputs outputs = runForward(test, q, k, v);
  EXPECT_EQ(outputs.lse.get(0, 0, 1, 0), -kInfinity);
  EXPECT_EQ(outputs.out.get(0, 0, 1, 0), 0.0f);
}

TEST(HostForward, ForbiddenNaNKeysAndValuesAreNotObserved) {
  for (auto normalization : {AttentionProblem::Normalization::Softmax, AttentionProblem::Normalization::None}) {
    AttentionCase test;
    test.problem = problemOf(1, 1, 1, 120, 140, 16);
    test.problem.normalization = normalization;
    test.setMask<hidesPoison>();
    Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
    k.set(0, 0, 5, 3, std::nanf(""));
    v.set(0, 0, 6, 4, kInfinity);
    v.set(0, 0, 5, 4, std::nanf(""));
    Outputs outputs = runForward(test, q, k, v);
    StatusOr<ReferenceForward> expected = referenceAttentionForward(test.problem, q.view(), k.view(), v.view());
    EXPECT_LE(relativeError(outputs.out.view(), expected->out, outputs.out.sizes()), kTolerance);
    EXPECT_TRUE(std::isfinite(outputs.out.get(0, 0, 99, 4)));
    EXPECT_TRUE(std::isnan(outputs.out.get(0, 0, 100, 4)));
  }
}

TEST(HostForward, ThreadsDoNotChangeBits) {
  AttentionCase test;
  test.problem = problemOf(1, 4, 2, 500, 500, 64);
  test.setMask<perHead>();
  test.setScore<softCap>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  Outputs one = runForward(test, q, k, v, ElementType::F32, {.numThreads = 1});
  for (int numThreads : {2, 3, 7}) {
    Outputs many = runForward(test, q, k, v, ElementType::F32, {.numThreads = numThreads});
    EXPECT_TRUE(one.out == many.out && one.lse == many.lse && one.rowMax == many.rowMax);
  }
  HostThreads threads(3);
  for (int repetition = 0; repetition < 3; ++repetition) {
    Outputs pooled = runForward(test, q, k, v, ElementType::F32, {.threads = &threads});
    EXPECT_TRUE(one.out == pooled.out && one.lse == pooled.lse);
  }
}

TEST(HostForward, SplitInFullAndPartialDoesNotChangeBits) {
  AttentionCase full, partial, finer;
  for (AttentionCase *test : {&full, &partial, &finer})
    test->problem = problemOf(1, 2, 2, 450, 470, 64);
  full.setMask<window>();
  partial.setMask<window>(128, 128, FullTiles::AsPartial);
  finer.setMask<window>(32, 16);
  Tensor q = full.makeQ(), k = full.makeK(), v = full.makeV();
  Outputs expected = runForward(full, q, k, v);
  for (AttentionCase *test : {&partial, &finer}) {
    Outputs actual = runForward(*test, q, k, v);
    EXPECT_TRUE(expected.out == actual.out && expected.lse == actual.lse && expected.rowMax == actual.rowMax);
  }
}

TEST(HostForward, DenseEqualsAMaskOfAllPairs) {
  AttentionCase dense, masked;
  dense.problem = masked.problem = problemOf(1, 2, 2, 300, 310, 64);
  masked.setMask<allPairs>(128, 128, FullTiles::AsPartial);
  Tensor q = dense.makeQ(), k = dense.makeK(), v = dense.makeV();
  Outputs expected = runForward(dense, q, k, v), actual = runForward(masked, q, k, v);
  EXPECT_TRUE(expected.out == actual.out && expected.lse == actual.lse);
}

TEST(HostForward, BitsOfARowDoNotDependOnItsNeighbours) {
  AttentionCase many, one;
  many.problem = problemOf(1, 1, 1, 77, 300, 64);
  one.problem = problemOf(1, 1, 1, 1, 300, 64);
  Tensor q = many.makeQ(), k = many.makeK(), v = many.makeV(), row({1, 1, 1, 64});
  for (int d = 0; d < 64; ++d)
    row.set(0, 0, 0, d, q.get(0, 0, 76, d));
  Outputs all = runForward(many, q, k, v), alone = runForward(one, row, k, v);
  for (int d = 0; d < 64; ++d)
    EXPECT_EQ(all.out.get(0, 0, 76, d), alone.out.get(0, 0, 0, d));
}

class HostForwardOfType : public testing::TestWithParam<ElementType> {};

TEST_P(HostForwardOfType, EveryInstructionSetMatchesReference) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 1, 200, 300, 72, 40);
  test.type = GetParam();
  test.setMask<causal>();
  test.setScore<alibi>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  StatusOr<ReferenceForward> expected = referenceAttentionForward(test.problem, q.view(), k.view(), v.view());
  for (InstructionSet set :
       {InstructionSet::Baseline, InstructionSet::Avx2, InstructionSet::Avx512, InstructionSet::Avx512BFloat16}) {
    if (!isSupported(set))
      continue;
    Outputs one = runForward(test, q, k, v, ElementType::F32, {.numThreads = 1, .instructionSet = set});
    EXPECT_LE(relativeError(one.out.view(), expected->out, one.out.sizes()), kTolerance) << toString(set);
    Outputs many = runForward(test, q, k, v, ElementType::F32, {.numThreads = 3, .instructionSet = set});
    EXPECT_TRUE(one.out == many.out && one.lse == many.lse) << toString(set);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, HostForwardOfType,
                         testing::Values(ElementType::F32, ElementType::BF16, ElementType::F16),
                         [](const auto &tested) { return std::string(toString(tested.param)); });

TEST(HostForward, SplitInFullAndPartialDoesNotChangeBitsOfBFloat16) {
  AttentionCase full, partial, finer;
  for (AttentionCase *test : {&full, &partial, &finer}) {
    test->problem = problemOf(1, 2, 2, 450, 470, 64);
    test->type = ElementType::BF16;
  }
  full.setMask<window>();
  partial.setMask<window>(128, 128, FullTiles::AsPartial);
  finer.setMask<window>(32, 16);
  Tensor q = full.makeQ(), k = full.makeK(), v = full.makeV();
  Outputs expected = runForward(full, q, k, v, ElementType::F32);
  for (AttentionCase *test : {&partial, &finer}) {
    Outputs actual = runForward(*test, q, k, v, ElementType::F32);
    EXPECT_TRUE(expected.out == actual.out && expected.lse == actual.lse);
  }
}

TEST(HostForward, WorksInTheWorkspaceItAskedFor) {
  AttentionCase test;
  test.problem = problemOf(1, 2, 2, 200, 300, 64);
  test.setMask<causal>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  Outputs expected = runForward(test, q, k, v);
  HostAttentionOptions options{.numThreads = 2};
  options.workspaceInBytes = hostAttentionForwardWorkspaceInBytes(test.problem, options);
  std::vector<char> memory(options.workspaceInBytes + 9, 'x');
  options.workspace = memory.data() + 1;
  Outputs actual = runForward(test, q, k, v, ElementType::F32, options);
  EXPECT_TRUE(expected.out == actual.out);
  EXPECT_EQ(std::string(memory.end() - 8, memory.end()), "xxxxxxxx");
}

TEST(HostForward, WorkspaceDoesNotGrowWithThePairs) {
  // 131072 x 131072 pairs: the blocks of one thread, the tasks and the tile classes of a few rows.
  AttentionProblem problem = problemOf(1, 1, 1, 131072, 131072, 128);
  EXPECT_LT(hostAttentionForwardWorkspaceInBytes(problem, {.numThreads = 1}), 1024 * 1024);
}

TEST(HostForward, ContinuesFromAPartial) {
  for (auto normalization : {AttentionProblem::Normalization::Softmax, AttentionProblem::Normalization::None}) {
    AttentionCase whole;
    whole.problem = problemOf(1, 2, 1, 150, 256, 32);
    whole.problem.normalization = normalization;
    whole.setMask<sparseRows>();
    Tensor q = whole.makeQ(), k = whole.makeK(), v = whole.makeV();
    StatusOr<ReferenceForward> expected = referenceAttentionForward(whole.problem, q.view(), k.view(), v.view());
    Tensor out = whole.makeOut(ElementType::F32), lse = whole.makeRow();
    const bool isSoftmax = normalization == AttentionProblem::Normalization::Softmax;
    for (int64_t begin : {0, 100}) {
      // A row that has seen no key may hold anything.
      if (begin && isSoftmax)
        out.set(0, 0, 0, 3, std::nanf(""));
      AttentionCase part;
      part.problem = whole.problem;
      part.problem.kvLen = begin ? 156 : 100;
      part.problem.kvPositions = {{{begin, part.problem.kvLen, 1}}};
      part.setMask<sparseRows>();
      HostForwardTensors tensors{.q = q.view(), .k = k.view(), .v = v.view()};
      tensors.k.data = static_cast<float *>(tensors.k.data) + begin * tensors.k.strides[2];
      tensors.v.data = static_cast<float *>(tensors.v.data) + begin * tensors.v.strides[2];
      tensors.out = out.view();
      if (normalization == AttentionProblem::Normalization::Softmax)
        tensors.lse = lse.view();
      if (begin)
        tensors.initial = {out.view(), lse.view()};
      Status status = hostAttentionForward(part.problem, tensors);
      ASSERT_TRUE(status.isOk()) << status.message();
    }
    EXPECT_LE(relativeError(out.view(), expected->out, out.sizes()), kTolerance);
    if (normalization == AttentionProblem::Normalization::Softmax)
      EXPECT_LE(relativeError(lse.view(), expected->lse, lse.sizes()), kTolerance);
  }
}

bool isNever(const Bindings *, int64_t, int64_t, int64_t, int64_t) { return false; }

TEST(HostForward, PartialRunsAreDecidedByTheirResidual) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 300, 300, 32);
  test.setMask<causal>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV();
  const Outputs whole = runForward(test, q, k, v);
  // A residual that equals the mask beside a whole mask that is wrong: who is asked shows.
  for (TileRows &rows : test.mask.rowSets)
    for (TileRun &run : rows.runs)
      run.residual = run.tileClass == TileClass::Partial ? 2 : 0;
  test.mask.residualKey = 77;
  test.functions.evaluateTile = evaluateTile<isNever>;
  test.functions.evaluateResidual[1] = evaluateTile<causal>;
  const Outputs without = runForward(test, q, k, v);
  EXPECT_FALSE(without.out == whole.out) << "the functions number other residuals";
  test.functions.residualKey = 77;
  const Outputs with = runForward(test, q, k, v);
  EXPECT_TRUE(with.out == whole.out);
  EXPECT_TRUE(with.lse == whole.lse);
  // Without code for the number the whole mask decides.
  test.functions.evaluateResidual[1] = nullptr;
  EXPECT_TRUE(runForward(test, q, k, v).out == without.out);
}

} // namespace
