// Merging of partial results: equal to attention over all keys, and right where parts or rows are empty.
#include "runtime/Host/PartialAttention.h"
#include "test/runtime/Host/AttentionCase.h"

#include <gtest/gtest.h>

using namespace cpflex;
using namespace cpflex::test;

namespace {

constexpr double kTolerance = 2e-6;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A partial with its memory.
struct OwnedPartial {
  Tensor out, lse;
  explicit OwnedPartial(const AttentionProblem &problem)
      : out({problem.batch, problem.qHeads, problem.qLen, problem.vHeadDim}),
        lse({problem.batch, problem.qHeads, problem.qLen, 1}) {}
  PartialAttention view() { return {out.view(), lse.view()}; }
};

/// Partials of a case over keys [0, 100), [100, 101) and [101, 300).
std::vector<OwnedPartial> partialsOf(const AttentionCase &whole, Tensor &q, Tensor &k, Tensor &v) {
  std::vector<OwnedPartial> partials;
  const bool isSoftmax = whole.problem.normalization == AttentionProblem::Normalization::Softmax;
  for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 100}, {100, 101}, {101, 300}}) {
    AttentionCase part;
    part.problem = whole.problem;
    part.problem.sink = nullptr;
    part.problem.kvLen = end - begin;
    part.problem.kvPositions = {{{begin, end - begin, 1}}};
    part.setMask<sparseRows>();
    OwnedPartial &partial = partials.emplace_back(part.problem);
    HostForwardTensors tensors{.q = q.view(), .k = k.view(), .v = v.view(), .out = partial.out.view()};
    if (isSoftmax)
      tensors.lse = partial.lse.view();
    for (TensorView *view : {&tensors.k, &tensors.v})
      view->data = static_cast<float *>(view->data) + begin * view->strides[2];
    Status status = hostAttentionForward(part.problem, tensors);
    EXPECT_TRUE(status.isOk()) << status.message();
  }
  return partials;
}

std::vector<PartialAttention> viewsOf(std::vector<OwnedPartial> &partials) {
  std::vector<PartialAttention> views;
  for (OwnedPartial &partial : partials)
    views.push_back(partial.view());
  return views;
}

TEST(MergePartials, EqualsAttentionOverAllKeysWithItsSink) {
  AttentionCase test;
  test.problem = problemOf(2, 2, 1, 150, 300, 32, 140);
  test.problem.headOffset = 1;
  const float sinks[] = {9.0f, 0.5f, -kInfinity};
  test.problem.sink = sinks;
  test.setMask<sparseRows>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV(), out = test.makeOut(ElementType::F32),
         lse = test.makeRow();
  std::vector<OwnedPartial> partials = partialsOf(test, q, k, v);
  ASSERT_TRUE(mergePartials(test.problem, viewsOf(partials), sinks, out.view(), lse.view()).isOk());
  StatusOr<ReferenceForward> expected = referenceAttentionForward(test.problem, q.view(), k.view(), v.view());
  EXPECT_LE(relativeError(out.view(), expected->out, out.sizes()), kTolerance);
  EXPECT_LE(relativeError(lse.view(), expected->lse, lse.sizes()), kTolerance);
}

TEST(MergePartials, MayWriteOverAPart) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 20, 300, 16);
  test.setMask<sparseRows>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV(), out = test.makeOut(ElementType::F32),
         lse = test.makeRow();
  std::vector<OwnedPartial> partials = partialsOf(test, q, k, v);
  ASSERT_TRUE(mergePartials(test.problem, viewsOf(partials), nullptr, out.view(), lse.view()).isOk());
  PartialAttention first = partials[0].view();
  ASSERT_TRUE(mergePartials(test.problem, viewsOf(partials), nullptr, first.out, first.lse).isOk());
  EXPECT_TRUE(partials[0].out == out && partials[0].lse == lse);
}

TEST(MergePartials, SumsWithoutSoftmax) {
  AttentionCase test;
  test.problem = problemOf(1, 1, 1, 50, 300, 16);
  test.problem.normalization = AttentionProblem::Normalization::None;
  test.setMask<sparseRows>();
  Tensor q = test.makeQ(), k = test.makeK(), v = test.makeV(), out = test.makeOut(ElementType::F32);
  std::vector<OwnedPartial> partials = partialsOf(test, q, k, v);
  ASSERT_TRUE(mergePartials(test.problem, viewsOf(partials), nullptr, out.view(), {}).isOk());
  StatusOr<ReferenceForward> expected = referenceAttentionForward(test.problem, q.view(), k.view(), v.view());
  EXPECT_LE(relativeError(out.view(), expected->out, out.sizes()), kTolerance);
}

TEST(MergePartials, EmptyPartsWeighNothing) {
  AttentionProblem problem = problemOf(1, 1, 1, 4, 0, 2);
  OwnedPartial empty(problem), full(problem), merged(problem);
  ASSERT_TRUE(clearPartial(problem, empty.view()).isOk());
  ASSERT_TRUE(clearPartial(problem, full.view()).isOk());
  // Row 0: both empty. Row 1: one has keys, the empty one holds garbage. Row 2: NaN. Row 3: both have keys.
  full.out.set(0, 0, 1, 0, 2.0f), full.lse.set(0, 0, 1, 0, -3.0f), empty.out.set(0, 0, 1, 0, std::nanf(""));
  full.lse.set(0, 0, 2, 0, std::nanf(""));
  full.out.set(0, 0, 3, 0, 2.0f), full.lse.set(0, 0, 3, 0, 1.0f);
  empty.out.set(0, 0, 3, 0, 4.0f), empty.lse.set(0, 0, 3, 0, 1.0f);
  const PartialAttention parts[] = {empty.view(), full.view()};
  ASSERT_TRUE(mergePartials(problem, parts, nullptr, merged.out.view(), merged.lse.view()).isOk());
  EXPECT_EQ(merged.out.get(0, 0, 0, 0), 0.0f);
  EXPECT_EQ(merged.lse.get(0, 0, 0, 0), -kInfinity);
  EXPECT_EQ(merged.out.get(0, 0, 1, 0), 2.0f);
  EXPECT_EQ(merged.lse.get(0, 0, 1, 0), -3.0f);
  EXPECT_TRUE(std::isnan(merged.lse.get(0, 0, 2, 0)));
  EXPECT_TRUE(std::isnan(merged.out.get(0, 0, 2, 0)));
  EXPECT_EQ(merged.out.get(0, 0, 3, 0), 3.0f);
  EXPECT_FLOAT_EQ(merged.lse.get(0, 0, 3, 0), 1.0f + std::log(2.0f));
  const float sink = 0.5f;
  ASSERT_TRUE(mergePartials(problem, parts, &sink, merged.out.view(), merged.lse.view()).isOk());
  EXPECT_EQ(merged.out.get(0, 0, 0, 0), 0.0f);
  EXPECT_EQ(merged.lse.get(0, 0, 0, 0), 0.5f);
}

TEST(MergePartials, NoPartsGiveEmptyRows) {
  AttentionProblem problem = problemOf(1, 1, 1, 2, 0, 2);
  OwnedPartial merged(problem);
  merged.out.fill(7.0f);
  ASSERT_TRUE(mergePartials(problem, {}, nullptr, merged.out.view(), merged.lse.view()).isOk());
  EXPECT_EQ(merged.out.get(0, 0, 1, 1), 0.0f);
  EXPECT_EQ(merged.lse.get(0, 0, 1, 0), -kInfinity);
}

TEST(MergePartials, NamesThePartThatIsWrong) {
  AttentionProblem problem = problemOf(1, 1, 1, 2, 0, 2);
  OwnedPartial first(problem), merged(problem);
  const PartialAttention parts[] = {first.view(), {first.out.view(), {}}};
  EXPECT_EQ(mergePartials(problem, parts, nullptr, merged.out.view(), merged.lse.view()).message(),
            "data of 'parts[1].lse' is null; expected an array of 1x1x2x1 elements");
}

TEST(ConvertTensor, RoundsToNearestEven) {
  Tensor wide({1, 1, 1, 300}), narrow({1, 1, 1, 300}, ElementType::BF16), back({1, 1, 1, 300});
  wide.randomize(4);
  wide.set(0, 0, 0, 0, 1.0f + 0x1p-8f);
  wide.set(0, 0, 0, 1, 1.0f + 3 * 0x1p-8f);
  const int64_t sizes[4] = {1, 1, 1, 300};
  ASSERT_TRUE(convertTensor(wide.view(), narrow.view(), sizes).isOk());
  ASSERT_TRUE(convertTensor(narrow.view(), back.view(), sizes).isOk());
  EXPECT_EQ(back.get(0, 0, 0, 0), 1.0f);
  EXPECT_EQ(back.get(0, 0, 0, 1), 1.0f + 4 * 0x1p-8f);
  for (int d = 0; d < 300; ++d)
    EXPECT_LE(std::abs(back.get(0, 0, 0, d) - wide.get(0, 0, 0, d)), std::abs(wide.get(0, 0, 0, d)) * 0x1p-8f);
}

} // namespace
