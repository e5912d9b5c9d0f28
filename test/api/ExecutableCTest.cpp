// The C interface's executables against attention in double: forward and backward, strides, types, parts, threads.
#include "test/api/AttentionCase.h"

#include <atomic>
#include <cstring>
#include <thread>

using namespace capi;

namespace {

constexpr const char *kProgram = "W: param[int] = 30\nbias: tensor[f32, H, KV_LEN](grad=True)\n"
                                 "sinks: tensor[f32, H](grad=True)\n"
                                 "@mask\ndef window(b, h, q, kv):\n    return (q >= kv) & (q - kv < W + 4 * h)\n"
                                 "@score\ndef shaped(s, b, h, q, kv):\n    return 4 * tanh(s / 4) + bias[h, kv]\n"
                                 "attention(\"main\", mask=window, score=shaped, sink=sinks)\n"
                                 "attention(\"plain\", mask=window)\n"
                                 "attention(\"linear\", mask=window, softmax=False)\n";

/// A bound program over one case.
struct Bound {
  AttentionCase given;
  std::vector<float> bias, sinks;
  Program program = compile(kProgram);
  Binding binding;
  Meaning meaning;

  explicit Bound(CaseSizes sizes = {}) : given(sizes) {
    for (int64_t i = 0; i < sizes.heads * sizes.kvLen; ++i)
      bias.push_back(0.01f * float(i % 37));
    for (int64_t h = 0; h < sizes.heads; ++h)
      sinks.push_back(0.5f * float(h) - 1);
    const Request wanted = request(program, given.bindSizes());
    const cpflex_array biasArray = dense(bias, {sizes.heads, sizes.kvLen}), sinkArray = dense(sinks, {sizes.heads});
    EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "bias", &biasArray, CPFLEX_BORROW)), "");
    EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "sinks", &sinkArray, CPFLEX_BORROW)), "");
    binding = bindAll(wanted);
    meaning.mask = [](int64_t, int64_t h, int64_t q, int64_t kv) { return q >= kv && q - kv < 30 + 4 * h; };
    meaning.scale = 1 / std::sqrt(double(sizes.headDim));
  }

  Meaning shaped() const {
    Meaning full = meaning;
    full.score = [this](double s, int64_t, int64_t h, int64_t, int64_t kv) {
      return 4 * std::tanh(s / 4) + bias[size_t(h * given.sizes.kvLen + kv)];
    };
    full.scoreGradient = [](double s) { return 1 - std::tanh(s / 4) * std::tanh(s / 4); };
    full.sinks = sinks;
    return full;
  }
};

TEST(ExecutableC, ForwardAndBackwardAgreeWithDouble) {
  Bound bound;
  const Executable executable = load(bound.binding, loadOptions(bound.given), "main");
  EXPECT_EQ(cpflex_executable_device_bytes(executable.get()), 0) << "a CPU";
  std::vector<char> workspace(size_t(cpflex_executable_workspace_bytes(executable.get(), CPFLEX_FORWARD)));
  const cpflex_forward_tensors forward = bound.given.forward();
  ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, workspace.data(), int64_t(workspace.size()), nullptr)),
            "");
  const Answer expected = answer(bound.given, bound.shaped());
  EXPECT_LT(distance(bound.given.out, expected.out), kTolerance);
  EXPECT_LT(distance(bound.given.lse, expected.lse), kTolerance);
  EXPECT_LT(distance(bound.given.rowMax, expected.rowMax), kTolerance);

  workspace.resize(size_t(cpflex_executable_workspace_bytes(executable.get(), CPFLEX_BACKWARD)));
  cpflex_backward_tensors backward = bound.given.backward();
  std::vector<float> dBias(bound.bias.size(), 9), dSinks(bound.sinks.size(), 9);
  cpflex_capture first{};
  ASSERT_EQ(message(cpflex_program_capture(bound.program.get(), 0, &first)), "");
  const bool isBiasFirst = std::string(first.name) == "bias";
  float *const gradients[] = {isBiasFirst ? dBias.data() : nullptr, isBiasFirst ? nullptr : dBias.data()};
  backward.capture_gradients = gradients;
  backward.num_capture_gradients = 2;
  backward.sink_gradient = dSinks.data();
  ASSERT_EQ(message(cpflex_backward(executable.get(), &backward, workspace.data(), int64_t(workspace.size()), nullptr)),
            "");
  EXPECT_LT(distance(bound.given.dQ, expected.dQ), kTolerance);
  EXPECT_LT(distance(bound.given.dK, expected.dK), kTolerance);
  EXPECT_LT(distance(bound.given.dV, expected.dV), kTolerance);
  EXPECT_LT(distance(dSinks, expected.dSinks), kTolerance);
  const CaseSizes &s = bound.given.sizes;
  std::vector<double> expectedBias(bound.bias.size(), 0);
  for (int64_t h = 0; h < s.heads; ++h)
    for (int64_t i = 0; i < s.qLen; ++i)
      for (int64_t j = 0; j < s.kvLen; ++j)
        expectedBias[size_t(h * s.kvLen + j)] += expected.dScores[size_t((h * s.qLen + i) * s.kvLen + j)];
  EXPECT_LT(distance(dBias, expectedBias), kTolerance);
}

TEST(ExecutableC, AnotherBindingIsTaken) {
  Bound bound;
  const Executable executable = load(bound.binding, loadOptions(bound.given), "plain");
  const Request wanted = request(bound.program, bound.given.bindSizes());
  const cpflex_array bias = dense(bound.bias, {bound.given.sizes.heads, bound.given.sizes.kvLen});
  const cpflex_array sinks = dense(bound.sinks, {bound.given.sizes.heads});
  EXPECT_EQ(message(cpflex_bind_request_stream(wanted.get(), nullptr)), "");
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "bias", &bias, CPFLEX_BORROW)), "");
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "sinks", &sinks, CPFLEX_BORROW)), "");
  EXPECT_EQ(message(cpflex_bind_request_int(wanted.get(), "W", 7)), "");
  const Binding narrow = bindAll(wanted);
  cpflex_block_mask *handle = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_build(narrow.get(), "plain", nullptr, &handle)), "");
  const Mask mask(handle);
  bound.meaning.mask = [](int64_t, int64_t h, int64_t q, int64_t kv) { return q >= kv && q - kv < 7 + 4 * h; };
  const Answer expected = answer(bound.given, bound.meaning);
  for (const cpflex_block_mask *given : {static_cast<cpflex_block_mask *>(nullptr), mask.get()}) {
    ASSERT_EQ(message(cpflex_executable_update(executable.get(), narrow.get(), given, nullptr)), "");
    const cpflex_forward_tensors forward = bound.given.forward();
    ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)), "");
    EXPECT_LT(distance(bound.given.out, expected.out), kTolerance);
    ASSERT_EQ(message(cpflex_executable_update(executable.get(), bound.binding.get(), nullptr, nullptr)), "");
  }
}

TEST(ExecutableC, EntriesWithoutSoftmaxSumScores) {
  Bound bound;
  const Executable executable = load(bound.binding, loadOptions(bound.given), "linear");
  cpflex_forward_tensors forward = bound.given.forward();
  EXPECT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)),
            "'lse' is given without softmax; expected null, since it is not defined then");
  forward.lse.data = forward.row_max.data = nullptr;
  ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)), "");
  const CaseSizes &s = bound.given.sizes;
  std::vector<double> expected(bound.given.out.size(), 0);
  for (int64_t h = 0; h < s.heads; ++h)
    for (int64_t i = 0; i < s.qLen; ++i)
      for (int64_t j = 0; j < s.kvLen; ++j) {
        if (!bound.meaning.mask(0, h, i, j))
          continue;
        double score = 0;
        for (int64_t d = 0; d < s.headDim; ++d)
          score += bound.meaning.scale * bound.given.q[size_t((h * s.qLen + i) * s.headDim + d)] *
                   bound.given.k[size_t((h / 2 * s.kvLen + j) * s.headDim + d)];
        for (int64_t d = 0; d < s.vHeadDim; ++d)
          expected[size_t((h * s.qLen + i) * s.vHeadDim + d)] +=
              score * bound.given.v[size_t((h / 2 * s.kvLen + j) * s.vHeadDim + d)];
      }
  EXPECT_LT(distance(bound.given.out, expected), kTolerance);
}

TEST(ExecutableC, TheScaleCanBeGiven) {
  Bound bound;
  cpflex_load_options options = loadOptions(bound.given);
  options.has_scale = 1;
  options.scale = 0.125f;
  const Executable executable = load(bound.binding, options, "plain");
  const cpflex_forward_tensors forward = bound.given.forward();
  ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)), "");
  bound.meaning.scale = 0.125;
  EXPECT_LT(distance(bound.given.out, answer(bound.given, bound.meaning).out), kTolerance);
}

TEST(ExecutableC, StridesOrderTheAxes) {
  Bound bound;
  const Executable executable = load(bound.binding, loadOptions(bound.given), "plain");
  cpflex_forward_tensors forward = bound.given.forward();
  ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)), "");
  const CaseSizes &s = bound.given.sizes;
  // The same queries and outputs as [b, s, h, d].
  std::vector<float> q(bound.given.q.size()), out(bound.given.out.size());
  for (int64_t h = 0; h < s.heads; ++h)
    for (int64_t i = 0; i < s.qLen; ++i)
      for (int64_t d = 0; d < s.headDim; ++d)
        q[size_t((i * s.heads + h) * s.headDim + d)] = bound.given.q[size_t((h * s.qLen + i) * s.headDim + d)];
  forward.q.data = q.data();
  forward.q.strides[1] = s.headDim, forward.q.strides[2] = s.heads * s.headDim;
  forward.out.data = out.data();
  forward.out.strides[1] = s.vHeadDim, forward.out.strides[2] = s.heads * s.vHeadDim;
  ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)), "");
  for (int64_t h = 0; h < s.heads; ++h)
    for (int64_t i = 0; i < s.qLen; ++i)
      for (int64_t d = 0; d < s.vHeadDim; ++d)
        ASSERT_EQ(out[size_t((i * s.heads + h) * s.vHeadDim + d)],
                  bound.given.out[size_t((h * s.qLen + i) * s.vHeadDim + d)]);
}

TEST(ExecutableC, BFloat16IsComputedInFloat) {
  Bound bound;
  cpflex_load_options options = loadOptions(bound.given);
  options.dtype = CPFLEX_BF16;
  const Executable executable = load(bound.binding, options, "plain");
  // Values that bf16 holds exactly, so that only the output is rounded.
  const auto narrowed = [](std::vector<float> &values) {
    std::vector<uint16_t> bits;
    for (float &value : values) {
      uint32_t whole = 0;
      std::memcpy(&whole, &value, sizeof(whole));
      whole &= 0xffff0000u;
      std::memcpy(&value, &whole, sizeof(value));
      bits.push_back(uint16_t(whole >> 16));
    }
    return bits;
  };
  std::vector<uint16_t> q = narrowed(bound.given.q), k = narrowed(bound.given.k), v = narrowed(bound.given.v);
  std::vector<uint16_t> out(bound.given.out.size());
  cpflex_forward_tensors forward = bound.given.forward();
  for (auto [tensor, bits] : {std::pair(&forward.q, &q), {&forward.k, &k}, {&forward.v, &v}, {&forward.out, &out}}) {
    tensor->data = bits->data();
    tensor->dtype = CPFLEX_BF16;
  }
  ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)), "");
  std::vector<float> widened;
  for (uint16_t bits : out) {
    const uint32_t whole = uint32_t(bits) << 16;
    float value = 0;
    std::memcpy(&value, &whole, sizeof(value));
    widened.push_back(value);
  }
  EXPECT_LT(distance(widened, answer(bound.given, bound.meaning).out), 1e-2);
}

TEST(ExecutableC, APartIsItsShareOfTheWhole) {
  Bound bound;
  const Executable whole = load(bound.binding, loadOptions(bound.given), "main");
  cpflex_forward_tensors forward = bound.given.forward();
  ASSERT_EQ(message(cpflex_forward(whole.get(), &forward, nullptr, 0, nullptr)), "");
  const std::vector<float> expected = bound.given.out;
  const CaseSizes &s = bound.given.sizes;
  // Heads 2 and 3, queries from 40 on.
  cpflex_load_options options = loadOptions(bound.given);
  options.part.head_begin = 2, options.part.head_end = 4;
  options.part.q_begin = 40, options.part.q_end = 70;
  cpflex_block_mask_options maskOptions{};
  maskOptions.part = options.part;
  cpflex_block_mask *handle = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_build(bound.binding.get(), "main", &maskOptions, &handle)), "");
  const Mask mask(handle);
  const Executable part = load(bound.binding, options, "main", mask.get());
  forward.q.data = &bound.given.q[size_t((2 * s.qLen + 40) * s.headDim)];
  forward.k.data = &bound.given.k[size_t(s.kvLen * s.headDim)];
  forward.v.data = &bound.given.v[size_t(s.kvLen * s.vHeadDim)];
  forward.q.shape[1] = forward.out.shape[1] = 2;
  forward.k.shape[1] = forward.v.shape[1] = 1;
  forward.q.shape[2] = forward.out.shape[2] = 30;
  std::vector<float> out(bound.given.out.size(), 0);
  forward.out.data = &out[size_t((2 * s.qLen + 40) * s.vHeadDim)];
  forward.lse.data = forward.row_max.data = nullptr;
  ASSERT_EQ(message(cpflex_forward(part.get(), &forward, nullptr, 0, nullptr)), "");
  for (int64_t h = 2; h < 4; ++h)
    for (int64_t i = 40; i < 70; ++i)
      for (int64_t d = 0; d < s.vHeadDim; ++d) {
        const size_t at = size_t((h * s.qLen + i) * s.vHeadDim + d);
        ASSERT_EQ(out[at], expected[at]);
      }
}

TEST(ExecutableC, ThreadsShareAnExecutable) {
  Bound bound;
  const Executable executable = load(bound.binding, loadOptions(bound.given), "main");
  const cpflex_forward_tensors forward = bound.given.forward();
  ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)), "");
  std::vector<std::thread> threads;
  std::atomic<int> numGood = 0;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      std::vector<float> out(bound.given.out.size());
      std::vector<char> workspace(size_t(cpflex_executable_workspace_bytes(executable.get(), CPFLEX_FORWARD)));
      cpflex_forward_tensors own = forward;
      own.out.data = out.data();
      own.lse.data = own.row_max.data = nullptr;
      for (int repetition = 0; repetition < 5; ++repetition) {
        const bool isDone =
            message(cpflex_forward(executable.get(), &own, workspace.data(), int64_t(workspace.size()), nullptr)) == "";
        numGood += isDone && out == bound.given.out;
      }
    });
  for (std::thread &thread : threads)
    thread.join();
  EXPECT_EQ(numGood, 20);
}

TEST(ExecutableC, LoadingKeepsWhatItNeeds) {
  Executable executable;
  AttentionCase given;
  {
    const Program program = compile("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
    const Binding binding = bindAll(request(program, given.bindSizes()));
    executable = load(binding, loadOptions(given));
  }
  const cpflex_forward_tensors forward = given.forward();
  ASSERT_EQ(message(cpflex_forward(executable.get(), &forward, nullptr, 0, nullptr)), "");
  Meaning meaning;
  meaning.mask = [](int64_t, int64_t, int64_t q, int64_t kv) { return q >= kv; };
  meaning.scale = 0.25;
  EXPECT_LT(distance(given.out, answer(given, meaning).out), kTolerance);
}

} // namespace
