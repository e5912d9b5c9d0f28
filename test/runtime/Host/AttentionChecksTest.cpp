// Every message that bad arguments of CPU attention give.
#include "test/runtime/Host/AttentionCase.h"

#include <gtest/gtest.h>

#if !defined(__has_feature)
#define __has_feature(name) 0
#endif

using namespace cpflex;
using namespace cpflex::test;

namespace {

/// A problem that is right until a test breaks it.
struct ForwardArguments {
  AttentionCase test;
  Tensor q, k, v, out, lse;
  HostForwardTensors tensors;
  HostAttentionOptions options;

  ForwardArguments() : ForwardArguments(problemOf(2, 4, 2, 10, 12, 8)) {}
  explicit ForwardArguments(const AttentionProblem &problem)
      : q((test.problem = problem, test.makeQ())), k(test.makeK()), v(test.makeV()),
        out(test.makeOut(ElementType::F32)), lse(test.makeRow()) {
    tensors = {.q = q.view(), .k = k.view(), .v = v.view(), .out = out.view(), .lse = lse.view()};
  }
  Status run() const { return hostAttentionForward(test.problem, tensors, options); }
};

void expectMessage(const Status &status, const std::string &message) { EXPECT_EQ(status.message(), message); }

TEST(AttentionChecks, AcceptsAProblemThatIsRight) {
  ForwardArguments arguments;
  expectMessage(arguments.run(), "");
}

TEST(AttentionChecks, NegativeCount) {
  ForwardArguments arguments;
  arguments.test.problem.kvLen = -1;
  expectMessage(arguments.run(), "'kvLen' is -1; expected 0 or more");
}

TEST(AttentionChecks, HeadSizeOfZero) {
  ForwardArguments arguments;
  arguments.test.problem.vHeadDim = 0;
  expectMessage(arguments.run(), "'vHeadDim' is 0; expected 1 or more");
}

TEST(AttentionChecks, HeadsThatDoNotDivide) {
  ForwardArguments arguments;
  arguments.test.problem.kvHeads = 3;
  expectMessage(arguments.run(), "'qHeads' is 4 and 'kvHeads' is 3; expected 'qHeads' to be a multiple of 'kvHeads'");
  arguments.test.problem.kvHeads = 0;
  expectMessage(arguments.run(), "'qHeads' is 4 and 'kvHeads' is 0; expected 'qHeads' to be a multiple of 'kvHeads'");
}

TEST(AttentionChecks, SinkWithoutSoftmax) {
  ForwardArguments arguments;
  const float sinks[4] = {};
  arguments.test.problem.sink = sinks;
  arguments.test.problem.normalization = AttentionProblem::Normalization::None;
  expectMessage(arguments.run(), "'sink' is given without softmax; expected null, since a sink is part of the softmax");
}

TEST(AttentionChecks, Positions) {
  ForwardArguments arguments;
  arguments.test.problem.qPositions = {{{0, 9, 1}}};
  expectMessage(arguments.run(), "'qPositions' covers 9 rows; expected 10");
  arguments.test.problem.qPositions = {{{0, 9, 1}, {0, 1, 0}}};
  expectMessage(arguments.run(), "step of piece 1 of 'qPositions' is 0; expected 1 or more");
  arguments.test.problem.qPositions = {};
  arguments.test.problem.kvPositions = {{{0, -2, 1}}};
  expectMessage(arguments.run(), "count of piece 0 of 'kvPositions' is -2; expected 0 or more");
}

TEST(AttentionChecks, MaskOfAnotherProblem) {
  ForwardArguments arguments;
  arguments.test.setMask<causal>();
  arguments.test.problem.qLen = 9;
  expectMessage(arguments.run(),
                "'mask' is for 2 batch rows, 4 heads, 10 queries and 12 keys; expected 2, 4, 9 and 12");
}

TEST(AttentionChecks, DamagedMask) {
  ForwardArguments arguments;
  arguments.test.setMask<causal>();
  arguments.test.mask.rowSets[0].runs[0].end = 2;
  expectMessage(arguments.run(),
                "'mask' has runs that are out of order or outside its tiles; expected a BlockMask as built");
}

TEST(AttentionChecks, PartialTilesWithoutFunctions) {
  ForwardArguments arguments;
  arguments.test.setMask<causal>();
  arguments.test.problem.functions = nullptr;
  expectMessage(arguments.run(),
                "'mask' has partial tiles, but 'functions' has no evaluateTile; expected the functions "
                "that the mask was built from");
}

TEST(AttentionChecks, NullTensor) {
  ForwardArguments arguments;
  arguments.tensors.k.data = nullptr;
  expectMessage(arguments.run(), "data of 'k' is null; expected an array of 2x2x12x8 elements");
}

TEST(AttentionChecks, ElementTypes) {
  ForwardArguments mixed, lse, out;
  mixed.tensors.v.type = ElementType::BF16;
  expectMessage(mixed.run(), "'v' has element type bf16; expected f32, the type of 'q'");
  lse.tensors.lse.type = ElementType::F16;
  expectMessage(lse.run(), "'lse' has element type f16; expected f32");
  out.tensors.out.type = ElementType::I32;
  expectMessage(out.run(), "'out' has element type i32; expected f32, bf16 or f16");
}

TEST(AttentionChecks, LseWithoutSoftmax) {
  ForwardArguments arguments;
  arguments.test.problem.normalization = AttentionProblem::Normalization::None;
  expectMessage(arguments.run(), "'lse' is given without softmax; expected null, since it is not defined then");
}

TEST(AttentionChecks, OutputThatIsBroadcast) {
  ForwardArguments arguments;
  arguments.tensors.out.strides[1] = 0;
  expectMessage(arguments.run(),
                "'out' has stride 0 along axis 1 of size 4; expected an output whose elements are distinct");
}

TEST(AttentionChecks, OutputWithElementsThatCoincide) {
  ForwardArguments arguments;
  arguments.tensors.lse.strides[1] = arguments.tensors.lse.strides[2];
  expectMessage(arguments.run(),
                "'lse' has strides 1 and 1 along axes 1 and 2, with which elements coincide; expected an "
                "output whose elements are distinct");
}

TEST(AttentionChecks, OverlappingTensors) {
  ForwardArguments input, output;
  input.tensors.out.data = static_cast<float *>(input.tensors.q.data) + 8;
  expectMessage(input.run(), "'out' overlaps 'q'; expected separate memory");
  output.tensors.lse.data = output.tensors.out.data;
  expectMessage(output.run(), "'out' overlaps 'lse'; expected separate memory");
}

TEST(AttentionChecks, InterleavedTensorsDoNotOverlap) {
  // q and out as two of the columns of one array [b, s, 2, h, d].
  ForwardArguments arguments(problemOf(1, 2, 2, 5, 5, 4));
  std::vector<float> both(5 * 2 * 2 * 4);
  arguments.tensors.q = {both.data(), ElementType::F32, {80, 4, 16, 1}};
  arguments.tensors.out = {both.data() + 8, ElementType::F32, {80, 4, 16, 1}};
  expectMessage(arguments.run(), "");
}

TEST(AttentionChecks, SmallWorkspace) {
  ForwardArguments arguments;
  char memory[16];
  arguments.options = {.numThreads = 1, .workspace = memory, .workspaceInBytes = 16};
  const int64_t needed = hostAttentionForwardWorkspaceInBytes(arguments.test.problem, arguments.options);
  expectMessage(arguments.run(), "'workspace' holds 16 bytes; expected at least " + std::to_string(needed));
}

TEST(AttentionChecks, NumberOfThreads) {
  ForwardArguments arguments;
  arguments.options.numThreads = -2;
  expectMessage(arguments.run(), "'numThreads' is -2; expected 0 to 4096");
}

TEST(AttentionChecks, InstructionSetThatIsMissing) {
  ForwardArguments arguments;
  arguments.options.instructionSet = InstructionSet(99);
  Status status = arguments.run();
  EXPECT_EQ(status.code(), StatusCode::Unsupported);
  expectMessage(status, "'instructionSet' is unknown, which this processor or build lacks; expected native");
}

TEST(AttentionChecks, InitialPartialNeedsItsLse) {
  ForwardArguments arguments;
  arguments.tensors.initial.out = arguments.tensors.out;
  expectMessage(arguments.run(), "data of 'initial.lse' is null; expected an array of 2x4x10x1 elements");
}

/// The arguments of backward, right until a test breaks them.
struct BackwardArguments : ForwardArguments {
  Tensor dOut, dQ, dK, dV;
  HostBackwardTensors gradients;

  BackwardArguments() : dOut(test.makeOut(ElementType::F32)), dQ(test.makeQ()), dK(test.makeK()), dV(test.makeV()) {
    gradients = {
        .q = q.view(), .k = k.view(), .v = v.view(), .out = out.view(), .lse = lse.view(), .dOut = dOut.view()};
    gradients.dQ = dQ.view(), gradients.dK = dK.view(), gradients.dV = dV.view();
  }
  Status run() const { return hostAttentionBackward(test.problem, gradients, options); }
};

TEST(AttentionChecks, BackwardThatIsRight) {
  BackwardArguments arguments;
  expectMessage(arguments.run(), "");
}

TEST(AttentionChecks, BackwardWithoutLse) {
  BackwardArguments arguments;
  arguments.gradients.lse = {};
  expectMessage(arguments.run(), "data of 'lse' is null; expected an array of 2x4x10x1 elements");
  EXPECT_EQ(hostAttentionBackwardWorkspaceInBytes(arguments.test.problem, arguments.gradients), 0);
}

TEST(AttentionChecks, AddingToHalfPrecision) {
  BackwardArguments arguments;
  arguments.gradients.dK.type = ElementType::BF16;
  arguments.gradients.keyWrite = GradientWrite::Add;
  expectMessage(arguments.run(), "'dK' has element type bf16; expected f32");
}

TEST(AttentionChecks, OverlappingGradients) {
  BackwardArguments arguments;
  arguments.gradients.dV.data = arguments.gradients.dK.data;
  expectMessage(arguments.run(), "'dK' overlaps 'dV'; expected separate memory");
}

TEST(AttentionChecks, CaptureGradientsWithoutCaptures) {
  BackwardArguments arguments;
  float *arrays[2] = {};
  arguments.gradients.captureGradients = arrays;
  arguments.gradients.numCaptures = 2;
  expectMessage(arguments.run(),
                "'captureGradients' has 2 entries, but 'bindings' has no captures; expected the captures "
                "that the functions read");
  arguments.gradients.numCaptures = -1;
  expectMessage(arguments.run(), "'numCaptures' is -1; expected 0 or more");
}

TEST(AttentionChecks, SinkGradientWithoutSink) {
  BackwardArguments arguments;
  float gradient[4];
  arguments.gradients.sinkGradient = gradient;
  expectMessage(arguments.run(), "'sinkGradient' is given without 'sink'; expected null");
}

#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kAllocatorMayFail = false;
#else
constexpr bool kAllocatorMayFail = true;
#endif

TEST(AttentionChecks, WorkspaceThatTheSystemLacks) {
  if (!kAllocatorMayFail)
    GTEST_SKIP() << "a sanitizer ends the program where malloc would return null";
  // 2^50 keys: the tile classes of one row alone take 2^43 bytes.
  AttentionProblem problem = problemOf(1, 1, 1, 1, int64_t(1) << 50, 8);
  float element = 0, outElements[8];
  HostForwardTensors tensors;
  tensors.q = {outElements, ElementType::F32, {}};
  tensors.k = tensors.v = {&element, ElementType::F32, {}};
  std::vector<float> out(8);
  tensors.out = {out.data(), ElementType::F32, {8, 8, 8, 1}};
  HostAttentionOptions options{.numThreads = 1024};
  Status status = hostAttentionForward(problem, tensors, options);
  EXPECT_EQ(status.code(), StatusCode::OutOfMemory);
  expectMessage(status, "no memory for a workspace of " +
                            std::to_string(hostAttentionForwardWorkspaceInBytes(problem, options)) + " bytes");
}

} // namespace
