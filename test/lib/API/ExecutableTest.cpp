// The C++ interface's executables: what the C tests do not reach, since C cannot express it.
#include "lib/API/cpflex.h"

#include <gtest/gtest.h>

#include <cmath>

using namespace cpflex;

namespace {

std::shared_ptr<Program> compiled(const std::string &text) {
  CompileOptions options;
  options.cacheDir = "";
  return compileText("test.cpf", text, options).program;
}

CallTensor tensorOf(std::vector<float> &values, int64_t rows, int64_t columns) {
  values.resize(size_t(rows * columns), 0.5f);
  return {.data = values.data(),
          .type = ElementType::F32,
          .shape = {1, 1, rows, columns},
          .strides = {rows * columns, rows * columns, columns, 1},
          .device = {}};
}

TEST(Executable, NullIsNamed) {
  const auto program = compiled("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
  const EntryPoint &entry = program->entries()[0];
  EXPECT_EQ(Executable::load(nullptr, entry, nullptr, nullptr, {}).status().message(), "'program' is null");
  EXPECT_EQ(Executable::load(program, entry, nullptr, nullptr, {}).status().message(), "'binding' is null");
}

TEST(Executable, StridesAndSizesOfAViewAreAsMany) {
  const auto program = compiled("doc: tensor[i32, KV_LEN]\n@mask\ndef f(b, h, q, kv):\n    return doc[kv] == 0\n");
  const int32_t values[4] = {};
  BindRequest request;
  request.views["doc"] = {
      .data = values, .type = ElementType::I32, .shape = {4}, .strides = {1, 1}, .device = {}, .owner = nullptr};
  EXPECT_EQ(Binding::create(*program, request).status().message(),
            "array for 'doc' has 1 sizes and 2 strides; expected as many");
}

TEST(Executable, TheProblemIsTold) {
  const auto program = compiled("sinks: tensor[f32, H]\n@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n"
                                "attention(\"a\", mask=causal, sink=sinks, scale=0.5)\n");
  const float sinks[1] = {2};
  BindRequest request;
  request.views["sinks"] = {
      .data = sinks, .type = ElementType::F32, .shape = {1}, .strides = {1}, .device = {}, .owner = nullptr};
  request.sizes = {.qLen = 8, .kvLen = 8};
  const auto binding = Binding::create(*program, request);
  ASSERT_TRUE(binding) << binding.status().message();
  LoadOptions options;
  options.headDim = 4;
  const auto executable = Executable::load(program, program->entries()[0], *binding, nullptr, options);
  ASSERT_TRUE(executable) << executable.status().message();
  const AttentionProblem &problem = (*executable)->problem();
  EXPECT_EQ(problem.scale, 0.5f);
  EXPECT_EQ(problem.vHeadDim, 4);
  EXPECT_EQ(problem.sink[0], 2.0f);
  EXPECT_EQ(problem.mask->qLen, 8);
  EXPECT_EQ((*executable)->type(), ElementType::F32);
  std::vector<float> q, k, v, out, lse;
  ForwardCallTensors tensors;
  tensors.q = tensorOf(q, 8, 4), tensors.k = tensorOf(k, 8, 4), tensors.v = tensorOf(v, 8, 4);
  tensors.out = tensorOf(out, 8, 4), tensors.lse = tensorOf(lse, 8, 1);
  ASSERT_TRUE((*executable)->forward(tensors, nullptr, 0));
  // Row 0 sees key 0 with score 0.5 * 4 * 0.25 and the sink with 2.
  EXPECT_FLOAT_EQ(lse[0], float(std::log(std::exp(0.5) + std::exp(2.0))));
  EXPECT_FLOAT_EQ(out[0], float(0.5 * std::exp(0.5) / (std::exp(0.5) + std::exp(2.0))));
}

} // namespace
