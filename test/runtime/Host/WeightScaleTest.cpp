// Backward of rows whose LSE is so large that its rounding to f32 would show in every weight. Queries and keys are
// multiples of 1/4 and the scale is 1/8, so that every score is exact and only LSE is rounded.
#include "test/runtime/Host/BackwardRun.h"

using namespace cpflex;
using namespace cpflex::test;

namespace {

template <int shift> float shifted(const Bindings *, float score, int64_t, int64_t, int64_t, int64_t) {
  return score + float(shift);
}

void fillWithQuarters(Tensor &tensor, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  const int64_t (&sizes)[4] = tensor.sizes();
  for (int64_t b = 0; b < sizes[0]; ++b)
    for (int64_t h = 0; h < sizes[1]; ++h)
      for (int64_t s = 0; s < sizes[2]; ++s)
        for (int64_t d = 0; d < sizes[3]; ++d)
          tensor.set(b, h, s, d, std::round(4.0f * normal(generator)) / 4.0f);
}

/// Grouped heads, two tiles of rows and three of keys, scores up to about `shift` + 6.
template <int shift> struct LargeCase : AttentionCase {
  LargeCase() {
    problem = problemOf(1, 2, 1, 200, 300, 64);
    setMask<causal>();
    setScore<shifted<shift>>();
  }
};

struct LargeRun : BackwardRun {
  explicit LargeRun(AttentionCase &test) : BackwardRun(test) {
    fillWithQuarters(q, 1);
    fillWithQuarters(k, 2);
  }
};

template <int shift> void expectLargeMatchesReference() {
  LargeCase<shift> test;
  {
    LargeRun run(test);
    run.run();
    run.expectMatchesReference();
  }
  const float sinks[] = {float(shift) + 3.0f, float(shift) - 2.0f};
  test.problem.sink = sinks;
  LargeRun run(test);
  run.run();
  run.expectMatchesReference();
}

TEST(WeightScale, LseOf255GivesGradientsAsExactAsASmallOne) { expectLargeMatchesReference<255>(); }
TEST(WeightScale, LseOf10000GivesGradientsAsExactAsASmallOne) { expectLargeMatchesReference<10000>(); }
TEST(WeightScale, LseOfMinus10000GivesGradientsAsExactAsASmallOne) { expectLargeMatchesReference<-10000>(); }

TEST(WeightScale, EveryInstructionSetMatchesReference) {
  LargeCase<10000> test;
  for (InstructionSet set :
       {InstructionSet::Baseline, InstructionSet::Avx2, InstructionSet::Avx512, InstructionSet::Avx512BFloat16})
    if (isSupported(set)) {
      SCOPED_TRACE(toString(set));
      LargeRun run(test);
      run.run({}, {.numThreads = 1, .instructionSet = set});
      run.expectMatchesReference();
    }
}

TEST(WeightScale, HalfPrecisionWithF32GradientsMatchesReference) {
  for (ElementType type : {ElementType::BF16, ElementType::F16}) {
    LargeCase<10000> test;
    test.type = type;
    LargeRun run(test);
    run.run();
    run.expectMatchesReference();
  }
}

TEST(WeightScale, ThreadsDoNotChangeBits) {
  LargeCase<255> test;
  LargeRun one(test), three(test);
  one.run({}, {.numThreads = 1});
  three.run({}, {.numThreads = 3});
  EXPECT_TRUE(one.dQ == three.dQ && one.dK == three.dK && one.dV == three.dV);
}

/// Backward over keys in calls that begin at `begins`, each adding its part, from a row term that is given.
template <int shift> void runParts(LargeCase<shift> &whole, LargeRun &run, std::vector<int64_t> begins) {
  run.forward();
  Tensor rowTerm = whole.makeRow();
  ASSERT_TRUE(
      hostAttentionRowTerm(whole.problem, run.out.view(), run.dOut.view(), run.dLse.view(), rowTerm.view()).isOk());
  run.dQ.fill(0.0f), run.dK.fill(0.0f), run.dV.fill(0.0f);
  for (size_t i = 0; i < begins.size(); ++i) {
    LargeCase<shift> part;
    part.problem.kvLen = (i + 1 < begins.size() ? begins[i + 1] : whole.problem.kvLen) - begins[i];
    part.problem.kvPositions = {{{begins[i], part.problem.kvLen, 1}}};
    part.template setMask<causal>();
    HostBackwardTensors tensors = run.tensors();
    tensors.out = {}, tensors.dLse = {}, tensors.rowTerm = rowTerm.view();
    tensors.queryWrite = tensors.keyWrite = tensors.arrayWrite = GradientWrite::Add;
    for (TensorView *view : {&tensors.k, &tensors.v, &tensors.dK, &tensors.dV})
      view->data = static_cast<float *>(view->data) + begins[i] * view->strides[2];
    const Status status = hostAttentionBackward(part.problem, tensors);
    ASSERT_TRUE(status.isOk()) << status.message();
  }
}

TEST(WeightScale, ACallThatSeesAllKeysNeedsNoMoreThanItsRowTerm) {
  LargeCase<10000> whole;
  LargeRun run(whole);
  runParts(whole, run, {0});
  run.expectMatchesReference();
}

TEST(WeightScale, PartsOfTheKeysTakeLseAsStored) {
  LargeCase<255> whole;
  LargeRun run(whole);
  runParts(whole, run, {0, 100, 170});
  // Half a unit in the last place of LSE.
  run.expectMatchesReference(kTolerance + 0x1p-17);
}

} // namespace
