// Are arrays converted, dimensions unified and facts verified, and does every mismatch have a message that names the
// array?
#include "lib/API/cpflex.h"

#include <gtest/gtest.h>

#include <cstring>

using namespace cpflex;

namespace {

constexpr const char *kProgram =
    "W: param[int]\nF: param[float] = 0.5\nON: param[bool] = True\n"
    "doc: tensor[i32, B, KV_LEN](sorted)\ntab: tensor[f32, H, 2*N+1]\nlim: tensor[i32, N]\n"
    "@mask\ndef f(b, h, q, kv):\n"
    "    return (doc[b, kv] < W) & (tab[h, 0] > F) & (lim[0] > 0) & ON\n";

template <typename T> Array arrayOf(ElementType type, std::vector<int64_t> shape, T value) {
  Array array{type, std::move(shape), {}};
  array.bytes.resize(array.numElements() * sizeof(T));
  for (int64_t i = 0; i < array.numElements(); ++i)
    std::memcpy(&array.bytes[i * sizeof(T)], &value, sizeof(T));
  return array;
}

BindRequest goodRequest() {
  BindRequest request;
  request.params["W"] = "7";
  request.arrays["doc"] = arrayOf<int64_t>(ElementType::I64, {1, 8}, 3);
  request.arrays["tab"] = arrayOf<float>(ElementType::F32, {4, 7}, 1.0f);
  request.arrays["lim"] = arrayOf<int32_t>(ElementType::I32, {3}, 1);
  return request;
}

class BindingTest : public testing::Test {
protected:
  void SetUp() override {
    CompileResult result = compileText("binding.cpf", kProgram);
    ASSERT_TRUE(result.program) << result.diagnostics[0].message;
    program_ = result.program;
  }
  void expectMessage(const BindRequest &request, const std::string &message) {
    auto binding = Binding::create(*program_, request);
    ASSERT_FALSE(binding.isOk());
    EXPECT_EQ(binding.status().message(), message);
  }
  std::shared_ptr<Program> program_;
};

TEST_F(BindingTest, DimensionsComeFromArraysAndDefaults) {
  auto binding = Binding::create(*program_, goodRequest());
  ASSERT_TRUE(binding.isOk()) << binding.status().message();
  EXPECT_EQ((*binding)->sizes().batch, 1);
  EXPECT_EQ((*binding)->sizes().heads, 4);
  EXPECT_EQ((*binding)->sizes().kvHeads, 4);
  EXPECT_EQ((*binding)->sizes().qLen, 8);
  EXPECT_EQ((*binding)->bindings().captures[0].type, ElementType::I32);
  EXPECT_EQ((*binding)->bindings().params[0], 7);
}

TEST_F(BindingTest, SizeOneBroadcastsToABuiltinDimension) {
  BindRequest request = goodRequest();
  request.sizes.batch = 5;
  auto binding = Binding::create(*program_, request);
  ASSERT_TRUE(binding.isOk()) << binding.status().message();
  EXPECT_EQ((*binding)->bindings().captures[0].shape[0], 5);
  EXPECT_EQ((*binding)->bindings().captures[0].strides[0], 0);
}

TEST_F(BindingTest, MismatchesAreNamed) {
  BindRequest request = goodRequest();
  request.params.clear();
  expectMessage(request, "param 'W' has no value; expected one, since it has no default");
  request.params["W"] = "wide";
  expectMessage(request, "value of 'W' is 'wide'; expected a whole number");
  request.params["W"] = "1";
  request.params["F"] = "x";
  expectMessage(request, "value of 'F' is 'x'; expected a number");
  request.params["F"] = "1.5";
  request.params["ON"] = "maybe";
  expectMessage(request, "value of 'ON' is 'maybe'; expected True or False");
  request.params.erase("ON");
  request.params["X"] = "1";
  expectMessage(request, "the program declares no param or const 'X'");

  request = goodRequest();
  request.arrays["dok"] = request.arrays["doc"];
  expectMessage(request, "the program declares no array 'dok'");
  request = goodRequest();
  request.arrays.erase("tab");
  expectMessage(request, "array 'tab' is not bound; expected one of f32 with axes [H, (2 * N) + 1]");
  request = goodRequest();
  request.arrays["doc"].shape = {8};
  expectMessage(request, "array for 'doc' has 1 dimensions; expected 2");
  request = goodRequest();
  request.arrays["doc"] = arrayOf<float>(ElementType::F32, {1, 8}, 1.0f);
  expectMessage(request, "array for 'doc' has elements of type f32; expected i32");
  request = goodRequest();
  request.arrays["doc"] = arrayOf<int64_t>(ElementType::I64, {1, 8}, int64_t(1) << 40);
  expectMessage(request, "array for 'doc' holds 1099511627776 at element 0, which does not fit i32");
  request = goodRequest();
  request.sizes.kvLen = 9;
  expectMessage(request, "dimension 'KV_LEN' is 9 in the call and 8 in axis 1 of 'doc'");
  request = goodRequest();
  request.arrays["tab"] = arrayOf<float>(ElementType::F32, {4, 6}, 1.0f);
  auto binding = Binding::create(*program_, request);
  ASSERT_FALSE(binding.isOk());
  EXPECT_NE(binding.status().message().find("axis 1 of 'tab' has size 6; expected"), std::string::npos)
      << binding.status().message();
}

TEST_F(BindingTest, StatedFactsAreVerified) {
  BindRequest request = goodRequest();
  request.arrays["doc"] = arrayOf<int32_t>(ElementType::I32, {1, 8}, 3);
  const int32_t smaller = 2;
  std::memcpy(&request.arrays["doc"].bytes[5 * 4], &smaller, 4);
  auto binding = Binding::create(*program_, request);
  ASSERT_FALSE(binding.isOk());
  EXPECT_NE(binding.status().message().find("'doc'"), std::string::npos) << binding.status().message();
}

TEST(BindingSizes, UnknownLengthsAndWrongCountsAreErrors) {
  auto program = compileText("c.cpf", "@mask\ndef causal(b, h, q, kv):\n    return kv <= q\n").program;
  ASSERT_TRUE(program);
  EXPECT_EQ(Binding::create(*program, {}).status().message(),
            "the lengths are unknown; expected that of the queries, or an array with an axis Q_LEN or KV_LEN");
  EXPECT_EQ(Binding::create(*program, {.sizes = {.batch = 0, .qLen = 4}}).status().message(),
            "dimension 'B' is 0; expected 1 to 1048576");
  EXPECT_EQ(Binding::create(*program, {.sizes = {.qLen = int64_t(1) << 50}}).status().message(),
            "dimension 'Q_LEN' is 1125899906842624; expected 0 to 1099511627776");
}

} // namespace
