// An executable that takes another binding: results on the CPU, what a GPU's driver is asked for, and what is refused.
#include "lib/API/CudaPrograms.h"
#include "lib/API/ProgramState.h"
#include "lib/API/cpflex.h"
#include "runtime/contract/CaptureArgument.h"
#include "runtime/contract/KernelArguments.h"
#include "test/runtime/Cuda/FakeGpu.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <unistd.h>

using namespace cpflex;

namespace {

constexpr int64_t kLength = 300;
constexpr const char *kProgram = "doc: tensor[i32, KV_LEN]\nslopes: tensor[f32, N]\nsinks: tensor[f32, H]\n"
                                 "W: param[int] = 40\n"
                                 "@mask\ndef near(b, h, q, kv):\n"
                                 "    return (doc[q] == doc[kv]) & (q - kv < W) & (kv - q < W)\n"
                                 "@score\ndef biased(s, b, h, q, kv):\n    return s + slopes[kv % N]\n"
                                 "attention(\"main\", mask=near, score=biased, sink=sinks)\n";

std::shared_ptr<Program> compiled(const std::string &text) {
  CompileOptions options;
  options.cacheDir = "";
  return compileText("test.cpf", text, options).program;
}

template <typename T> Array arrayOf(const std::vector<T> &values, ElementType type) {
  const auto *bytes = reinterpret_cast<const char *>(values.data());
  return {type, {int64_t(values.size())}, {bytes, bytes + values.size() * sizeof(T)}};
}

/// What is bound in one step: documents of `documentLength` tokens, and values that follow `seed`.
struct Step {
  int documentLength = 50;
  int seed = 1;
  std::string window = "40";
  int64_t numSlopes = 7;
  int64_t heads = 2;
  int64_t length = kLength;
};

BindRequest requestOf(const Step &step) {
  std::vector<int32_t> documents;
  for (int64_t i = 0; i < step.length; ++i)
    documents.push_back(int32_t(i / step.documentLength));
  std::vector<float> slopes, sinks;
  for (int64_t i = 0; i < step.numSlopes; ++i)
    slopes.push_back(0.1f * float(step.seed * i % 5));
  for (int64_t h = 0; h < step.heads; ++h)
    sinks.push_back(0.5f * float(step.seed + h));
  BindRequest request;
  request.arrays["doc"] = arrayOf(documents, ElementType::I32);
  request.arrays["slopes"] = arrayOf(slopes, ElementType::F32);
  request.arrays["sinks"] = arrayOf(sinks, ElementType::F32);
  request.params["W"] = step.window;
  request.sizes = {.batch = 1, .heads = step.heads, .kvHeads = 1, .qLen = step.length, .kvLen = step.length};
  return request;
}

class Update : public testing::Test {
protected:
  void SetUp() override { ASSERT_TRUE(program); }

  std::shared_ptr<Binding> bound(const Step &step) const {
    auto binding = Binding::create(*program, requestOf(step));
    EXPECT_TRUE(binding) << binding.status().message();
    return binding ? *binding : nullptr;
  }
  std::shared_ptr<Executable> loaded(std::shared_ptr<const Binding> binding, LoadOptions options = {}) const {
    auto executable = Executable::load(program, program->entries()[0], std::move(binding), nullptr, options);
    EXPECT_TRUE(executable) << executable.status().message();
    return executable ? *executable : nullptr;
  }
  static CallTensor tensor(void *data, ElementType type, int64_t heads, int64_t columns) {
    return {.data = data,
            .type = type,
            .shape = {1, heads, kLength, columns},
            .strides = {heads * kLength * columns, kLength * columns, columns, 1},
            .device = {}};
  }
  /// The outputs of a forward call with the LSE behind them.
  static std::vector<float> outputs(const Executable &executable) {
    std::vector<float> q(2 * kLength * 64), k(kLength * 64), v(kLength * 64), result(2 * kLength * 65, -7);
    for (size_t i = 0; i < q.size(); ++i)
      q[i] = float(int64_t(i * 37 % 101) - 50) / 40;
    for (size_t i = 0; i < k.size(); ++i)
      k[i] = float(int64_t(i * 53 % 97) - 48) / 40, v[i] = float(int64_t(i * 29 % 89) - 44) / 40;
    ForwardCallTensors call;
    call.q = tensor(q.data(), ElementType::F32, 2, 64);
    call.k = tensor(k.data(), ElementType::F32, 1, 64), call.v = tensor(v.data(), ElementType::F32, 1, 64);
    call.out = tensor(result.data(), ElementType::F32, 2, 64);
    call.lse = tensor(result.data() + 2 * kLength * 64, ElementType::F32, 2, 1);
    const Status status = executable.forward(call, nullptr, 0);
    EXPECT_TRUE(status) << status.message();
    return result;
  }

  std::shared_ptr<Program> program = compiled(kProgram);
};

TEST_F(Update, CallsThatFollowSeeAnotherBinding) {
  const Step first, second{.documentLength = 70, .seed = 3, .window = "100", .numSlopes = 4};
  const auto executable = loaded(bound(first));
  const std::vector<float> before = outputs(*executable);
  ASSERT_TRUE(executable->update(bound(second), nullptr));
  EXPECT_EQ(outputs(*executable), outputs(*loaded(bound(second))));
  ASSERT_TRUE(executable->update(bound(first), nullptr));
  EXPECT_EQ(outputs(*executable), before);
}

TEST_F(Update, AMaskMayBeGiven) {
  const Step second{.documentLength = 70};
  const auto executable = loaded(bound({}));
  const auto binding = bound(second);
  auto built = buildBlockMask(*program, program->entries()[0], *binding, 64, 32, /*threads=*/1);
  ASSERT_TRUE(built);
  ASSERT_TRUE(executable->update(binding, std::make_shared<const BlockMask>(std::move(built->mask))));
  EXPECT_EQ(executable->problem().mask->tileKV, 32);
  EXPECT_EQ(outputs(*executable), outputs(*loaded(binding)));
}

TEST_F(Update, AnotherVersionOfABindingIsTaken) {
  std::vector<int32_t> documents(kLength, 0);
  BindRequest request = requestOf({});
  request.arrays.erase("doc");
  request.views["doc"] = {.data = documents.data(),
                          .type = ElementType::I32,
                          .shape = {kLength},
                          .strides = {1},
                          .device = {},
                          .owner = nullptr};
  const auto binding = Binding::create(*program, request);
  ASSERT_TRUE(binding) << binding.status().message();
  const auto executable = loaded(*binding);
  std::fill(documents.begin() + 100, documents.end(), 1);
  ASSERT_TRUE((*binding)->setVersion(1));
  ASSERT_TRUE(executable->update(*binding, nullptr));
  EXPECT_EQ(outputs(*executable), outputs(*loaded(*binding)));
}

TEST_F(Update, WhatDoesNotFitIsRefused) {
  const auto executable = loaded(bound({}));
  const std::vector<float> before = outputs(*executable);
  const auto message = [&](std::shared_ptr<const Binding> binding, std::shared_ptr<const BlockMask> mask = nullptr,
                           void *stream = nullptr) { return executable->update(binding, mask, stream).message(); };
  EXPECT_EQ(message(nullptr), "'binding' is null");
  EXPECT_EQ(message(bound({.length = 200})),
            "the binding has 200 queries; expected 300, for which the executable was loaded");
  EXPECT_EQ(message(bound({.heads = 4})),
            "the binding has 4 query heads; expected 2, for which the executable was loaded");
  EXPECT_EQ(
      message(bound({.window = "2000000000"})),
      "a param or dimension of the binding is beyond 2^30; expected smaller ones, as those that the executable was "
      "loaded with");
  char stream = 0;
  EXPECT_EQ(message(bound({}), nullptr, &stream), "'stream' is given for the cpu; expected null");
  auto other = std::make_shared<BlockMask>();
  other->qLen = other->kvLen = 64;
  EXPECT_EQ(message(bound({}), other).find("'mask' is for "), 0u) << message(bound({}), other);
  const auto elsewhere = compiled("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
  const auto foreign = Binding::create(*elsewhere, {.sizes = {.heads = 2, .kvHeads = 1, .qLen = kLength}});
  ASSERT_TRUE(foreign);
  EXPECT_EQ(message(*foreign), "'binding' was made for another program; expected one made for that of the executable");
  EXPECT_EQ(Executable::load(program, program->entries()[0], *foreign, nullptr, {}).status().message(),
            "'binding' was made for another program; expected one made for that of the executable");
  EXPECT_EQ(outputs(*executable), before) << "it is as it was";
  ASSERT_TRUE(ContextParallelPlan::create(executable, {.worldSize = 2}));
  EXPECT_EQ(message(bound({})),
            "the executable is that of a plan for several ranks; expected one that no plan was made of");
}

/// Executables on a driver in host memory.
class UpdateOnCuda : public Update {
protected:
  void SetUp() override {
    Update::SetUp();
    folder = std::filesystem::temp_directory_path() / ("cpflex-update-" + std::to_string(getpid()));
    first = bound({});
    const auto onHost = loaded(first);
    auto functions = program->deviceFunctions(program->entries()[0], first->bindings());
    ASSERT_TRUE(functions);
    CudaProgramOptions options = CudaProgramOptions::of(onHost->problem(), ElementType::BF16);
    options.captureGradients = CudaProgramOptions::CaptureGradients::Computed;
    options.positions = positionMode(onHost->problem(), *functions, options, gpu.capability);
    program->state().cudaPrograms.adopt(
        {.device = gpu.device(), .toolchain = test::FakeGpu::toolchain(folder, *functions, options, gpu.capability)});
    executable = loaded(first, {.device = "cuda"});
    ASSERT_TRUE(executable);
    gpu.captureBytes = 3 * sizeof(CaptureArgument) + 8;
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  void forward() {
    const auto at = [&](size_t offset) { return memory.data() + offset / 64 * 64; };
    const int64_t bytes = 2 * kLength * 64 * 2;
    ForwardCallTensors call;
    call.q = tensor(at(64), ElementType::BF16, 2, 64), call.k = tensor(at(bytes + 128), ElementType::BF16, 1, 64);
    call.v = tensor(at(2 * bytes + 192), ElementType::BF16, 1, 64);
    call.out = tensor(at(3 * bytes + 256), ElementType::BF16, 2, 64);
    alignas(256) static thread_local char workspace[1 << 12];
    const Status status = executable->forward(call, workspace, sizeof(workspace));
    ASSERT_TRUE(status) << status.message();
  }
  /// What a launch reads of capture `slot`.
  CaptureArgument capture(size_t launch, size_t slot) const {
    CaptureArgument argument;
    std::memcpy(&argument, gpu.launches[launch].captures.data() + slot * sizeof(argument), sizeof(argument));
    return argument;
  }
  long long param(size_t launch) const {
    const long long *params = nullptr;
    std::memcpy(&params, gpu.launches[launch].captures.data() + 3 * sizeof(CaptureArgument), sizeof(params));
    return params[0];
  }
  size_t lastLaunch() const { return gpu.launches.size() - 1; }

  test::FakeGpu gpu;
  std::filesystem::path folder;
  std::vector<char> memory = std::vector<char>(1 << 20);
  std::shared_ptr<Binding> first;
  std::shared_ptr<Executable> executable;
};

TEST_F(UpdateOnCuda, NothingIsAllocatedFreedOrWaitedFor) {
  forward();
  gpu.numAllocations = gpu.numFrees = gpu.numSynchronizations = 0;
  const size_t numModules = gpu.moduleNames.size();
  for (int seed = 2; seed < 6; ++seed) {
    ASSERT_TRUE(executable->update(bound({.documentLength = 50 + seed, .seed = seed}), nullptr));
    forward();
  }
  EXPECT_EQ(gpu.numAllocations, 0);
  EXPECT_EQ(gpu.numFrees, 0);
  EXPECT_EQ(gpu.numSynchronizations, 0);
  EXPECT_EQ(gpu.moduleNames.size(), numModules) << "nothing is compiled or loaded";
}

TEST_F(UpdateOnCuda, ReplayedLaunchesSeeTheNewBinding) {
  forward();
  const size_t launch = lastLaunch();
  ASSERT_EQ(gpu.launches[launch].function, "attention_forward");
  const auto documents = static_cast<const int32_t *>(capture(launch, 0).data);
  const auto slopes = static_cast<const float *>(capture(launch, 1).data);
  const float *sinks = gpu.launches[launch].argumentsAs<ForwardArguments>().sink;
  EXPECT_EQ(documents[60], 1);
  EXPECT_EQ(param(launch), 40);
  ASSERT_TRUE(executable->update(bound({.documentLength = 20, .seed = 3, .window = "9"}), nullptr));
  EXPECT_EQ(documents[60], 3);
  EXPECT_FLOAT_EQ(slopes[1], 0.3f);
  EXPECT_FLOAT_EQ(sinks[1], 2.0f);
  EXPECT_EQ(param(launch), 9);
  forward();
  EXPECT_EQ(capture(lastLaunch(), 0).data, documents) << "at the same place";
}

TEST_F(UpdateOnCuda, TheOldBindingLivesWhileItsCallsMayRun) {
  const std::weak_ptr<Binding> old = first;
  first.reset();
  ASSERT_TRUE(executable->update(bound({}), nullptr));
  EXPECT_FALSE(old.expired());
  ASSERT_TRUE(executable->update(bound({}), nullptr));
  EXPECT_TRUE(old.expired()) << "the second update waited for the uploads of the first, which are behind them";
}

TEST_F(UpdateOnCuda, WhatHasNoRoomIsRefused) {
  forward();
  const auto documents = static_cast<const int32_t *>(capture(lastLaunch(), 0).data);
  EXPECT_EQ(executable->update(bound({.documentLength = 20, .numSlopes = 9}), nullptr).message(),
            "array 'slopes' takes 36 bytes on the GPU; expected at most 28, which are reserved for it");
  const auto other = bound({.documentLength = 20});
  auto coarse = buildBlockMask(*program, program->entries()[0], *other, 384, 384, /*threads=*/1);
  ASSERT_TRUE(coarse);
  EXPECT_EQ(executable->update(other, std::make_shared<const BlockMask>(std::move(coarse->mask))).message(),
            "the block mask has other tiles than the one bound first; make a new executable for it");
  EXPECT_EQ(documents[60], 1) << "nothing was uploaded";
  EXPECT_TRUE(executable->update(bound({.documentLength = 20, .numSlopes = 5}), nullptr))
      << "and the next good update works";
  EXPECT_EQ(documents[60], 3);
}

} // namespace
