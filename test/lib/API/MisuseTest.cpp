// Bad use of the C++ interface: each mistake gives a Status that names the argument, what it was and what was expected.
// MisuseCTest.cpp has the same for C.
#include "lib/API/cpflex.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

using namespace cpflex;

namespace {

constexpr const char *kProgram = "doc: tensor[i32, KV_LEN]\nbias: tensor[f32, KV_LEN](grad=True)\n"
                                 "@mask\ndef f(b, h, q, kv):\n    return (q >= kv) & (doc[kv] >= 0)\n"
                                 "@score\ndef g(s, b, h, q, kv):\n    return s + bias[kv]\n"
                                 "attention(\"f\", mask=f, score=g)\n";

std::shared_ptr<Program> compiled(const std::string &path, const std::string &text) {
  CompileOptions options;
  options.cacheDir = "";
  return compileText(path, text, options).program;
}

template <typename T> ArrayView viewOf(const std::vector<T> &values, ElementType type) {
  return {.data = values.data(),
          .type = type,
          .shape = {int64_t(values.size())},
          .strides = {1},
          .device = {},
          .owner = nullptr};
}

/// The tensors of a call with 4 query heads over 2 kv heads, dense in b, h, s, d.
struct Tensors {
  explicit Tensors(int64_t length = 70) : length(length) {
    for (std::vector<float> *tensor : {&q, &k, &v, &out, &dOut, &dQ, &dK, &dV})
      tensor->assign(size_t(4 * length * 16), 0.25f);
    lse.assign(size_t(4 * length), 0.0f);
  }
  CallTensor tensor(std::vector<float> &values, int64_t heads, int64_t columns) const {
    return {.data = values.data(),
            .type = ElementType::F32,
            .shape = {1, heads, length, columns},
            .strides = {heads * length * columns, length * columns, columns, 1},
            .device = {}};
  }
  ForwardCallTensors forward() {
    return {.q = tensor(q, 4, 16),
            .k = tensor(k, 2, 16),
            .v = tensor(v, 2, 16),
            .out = tensor(out, 4, 16),
            .lse = tensor(lse, 4, 1),
            .rowMax = {}};
  }
  BackwardCallTensors backward() {
    BackwardCallTensors call;
    call.q = tensor(q, 4, 16), call.k = tensor(k, 2, 16), call.v = tensor(v, 2, 16), call.out = tensor(out, 4, 16);
    call.lse = tensor(lse, 4, 1), call.dOut = tensor(dOut, 4, 16);
    call.dQ = tensor(dQ, 4, 16), call.dK = tensor(dK, 2, 16), call.dV = tensor(dV, 2, 16);
    return call;
  }
  int64_t length;
  std::vector<float> q, k, v, out, lse, dOut, dQ, dK, dV;
};

class Misuse : public testing::Test {
protected:
  void SetUp() override {
    program_ = compiled("test.cpf", kProgram);
    ASSERT_TRUE(program_);
    executable_ = load({.headDim = 16, .passes = CallPasses::ForwardAndBackward});
    ASSERT_TRUE(executable_);
  }
  BindRequest request() const {
    BindRequest request;
    request.views["doc"] = viewOf(doc_, ElementType::I32);
    request.views["bias"] = viewOf(bias_, ElementType::F32);
    request.sizes = {.heads = 4, .kvHeads = 2, .qLen = 70};
    return request;
  }
  StatusOr<std::shared_ptr<Executable>> tryLoad(const LoadOptions &options) {
    auto binding = Binding::create(*program_, request());
    EXPECT_TRUE(binding) << binding.status().message();
    binding_ = *binding;
    return Executable::load(program_, program_->entries()[0], binding_, mask_, options);
  }
  std::shared_ptr<Executable> load(const LoadOptions &options) {
    auto loaded = tryLoad(options);
    EXPECT_TRUE(loaded) << loaded.status().message();
    return loaded ? *loaded : nullptr;
  }
  std::string loadMessage(const LoadOptions &options) { return tryLoad(options).status().message(); }
  std::string bindMessage(const BindRequest &request) const {
    return Binding::create(*program_, request).status().message();
  }
  std::string forwardMessage(const ForwardCallTensors &call, void *workspace = nullptr, int64_t bytes = 0,
                             void *stream = nullptr) {
    return executable_->forward(call, workspace, bytes, stream).message();
  }
  std::string backwardMessage(const BackwardCallTensors &call) {
    return executable_->backward(call, nullptr, 0).message();
  }

  Tensors tensors_;
  std::vector<int32_t> doc_ = std::vector<int32_t>(70);
  std::vector<float> bias_ = std::vector<float>(70);
  std::shared_ptr<Program> program_;
  std::shared_ptr<Binding> binding_;
  std::shared_ptr<const BlockMask> mask_;
  std::shared_ptr<Executable> executable_;
};

TEST_F(Misuse, RightUseIsAccepted) {
  EXPECT_EQ(forwardMessage(tensors_.forward()), "");
  EXPECT_EQ(backwardMessage(tensors_.backward()), "");
}

TEST_F(Misuse, Shapes) {
  ForwardCallTensors call = tensors_.forward();
  call.k.shape[2] = 69;
  EXPECT_EQ(forwardMessage(call), "'k' has shape 1x2x69x16; expected 1x2x70x16");
  BackwardCallTensors backward = tensors_.backward();
  backward.dV.shape[3] = 24;
  EXPECT_EQ(backwardMessage(backward), "'dV' has shape 1x2x70x24; expected 1x2x70x16");
}

TEST_F(Misuse, Types) {
  ForwardCallTensors call = tensors_.forward();
  call.v.type = ElementType::BF16;
  EXPECT_EQ(forwardMessage(call),
            "'v' has element type bf16; expected f32, the type that the executable was loaded for");
  call = tensors_.forward();
  call.lse.type = ElementType::F16;
  EXPECT_EQ(forwardMessage(call), "'lse' has element type f16; expected f32");
}

TEST_F(Misuse, Strides) {
  ForwardCallTensors call = tensors_.forward();
  call.out.strides[2] = 0;
  EXPECT_EQ(forwardMessage(call),
            "'out' has stride 0 along axis 2 of size 70; expected an output whose elements are distinct");
  call = tensors_.forward();
  call.lse.strides[1] = 1;
  EXPECT_EQ(forwardMessage(call),
            "'lse' has strides 1 and 1 along axes 1 and 2, with which elements coincide; expected an "
            "output whose elements are distinct");
}

TEST_F(Misuse, Null) {
  ForwardCallTensors call = tensors_.forward();
  call.q.data = nullptr;
  EXPECT_EQ(forwardMessage(call), "data of 'q' is null; expected an array of 1x4x70x16 elements");
  BackwardCallTensors backward = tensors_.backward();
  backward.lse.data = nullptr;
  EXPECT_EQ(backwardMessage(backward), "data of 'lse' is null; expected an array of 1x4x70x1 elements");
}

TEST_F(Misuse, OverlapAlignmentAndPlace) {
  ForwardCallTensors call = tensors_.forward();
  call.out.data = call.q.data;
  EXPECT_EQ(forwardMessage(call), "'out' overlaps 'q'; expected separate memory");
  BackwardCallTensors backward = tensors_.backward();
  backward.dK.data = backward.dV.data;
  EXPECT_EQ(backwardMessage(backward), "'dK' overlaps 'dV'; expected separate memory");
  call = tensors_.forward();
  call.k.data = reinterpret_cast<char *>(0x1002);
  EXPECT_EQ(forwardMessage(call), "'k' is at address 0x1002; expected a multiple of 4, the size of its elements");
  call = tensors_.forward();
  call.v.device = {DeviceType::Cuda, 0};
  EXPECT_EQ(forwardMessage(call), "'v' is on cuda:0; expected cpu");
}

TEST_F(Misuse, WorkspaceAndStream) {
  char small[16];
  const int64_t needed = executable_->workspaceInBytes(Executable::Pass::Forward);
  EXPECT_EQ(forwardMessage(tensors_.forward(), small, sizeof small),
            "'workspace' holds 16 bytes; expected at least " + std::to_string(needed));
  EXPECT_EQ(forwardMessage(tensors_.forward(), nullptr, 0, small), "'stream' is given for the cpu; expected null");
}

TEST_F(Misuse, Bindings) {
  BindRequest wrong = request();
  wrong.views.erase("bias");
  EXPECT_EQ(bindMessage(wrong), "array 'bias' is not bound; expected one of f32 with axes [KV_LEN]");
  wrong = request();
  wrong.views["doc"].data = nullptr;
  EXPECT_EQ(bindMessage(wrong), "data of the array for 'doc' is null; expected its elements");
  wrong = request();
  wrong.views["doc"].type = ElementType::F32;
  EXPECT_EQ(bindMessage(wrong), "array for 'doc' has elements of type f32; expected i32");
  wrong = request();
  wrong.views["doc"].shape = {70, 1}, wrong.views["doc"].strides = {1, 1};
  EXPECT_EQ(bindMessage(wrong), "array for 'doc' has 2 dimensions; expected 1");
}

TEST_F(Misuse, LoadOptions) {
  EXPECT_EQ(loadMessage({.device = "tpu", .headDim = 16}), "device is 'tpu'; expected cpu, cuda or cuda:N");
  EXPECT_EQ(loadMessage({.type = ElementType::I32, .headDim = 16}), "'type' is i32; expected f32, bf16 or f16");
  EXPECT_EQ(loadMessage({.headDim = 0}), "head sizes are 0 and 0; expected 1 to 4096");
  EXPECT_EQ(loadMessage({.headDim = 16, .numThreads = -1}), "'numThreads' is -1; expected 0 to 4096");
  auto other = std::make_shared<BlockMask>();
  other->qLen = other->kvLen = 64;
  mask_ = other;
  EXPECT_EQ(loadMessage({.headDim = 16}).find("'mask' is for "), 0u) << loadMessage({.headDim = 16});
}

TEST_F(Misuse, PassesAndGradients) {
  BackwardCallTensors call = tensors_.backward();
  call.captureGradients = {nullptr};
  EXPECT_EQ(backwardMessage(call), "'captureGradients' has 1 entries; expected none or 2, one for each capture");
  float gradient[70];
  call.captureGradients = {gradient, nullptr};
  EXPECT_EQ(backwardMessage(call),
            "'captureGradients' has an entry for array 'doc'; expected null, since it is not declared with grad=True");
  executable_ = load({.headDim = 16});
  EXPECT_EQ(backwardMessage(tensors_.backward()),
            "the executable was loaded for forward only; expected one loaded for backward too");
}

TEST_F(Misuse, ChangedBinding) {
  ASSERT_TRUE(binding_->setVersion(3));
  EXPECT_EQ(forwardMessage(tensors_.forward()),
            "the binding has version 3 and the executable was loaded for version 0; load it again");
}

TEST_F(Misuse, OneExecutableFromTwoThreads) {
  // Calls with workspaces of their own compute what a call alone computes.
  for (size_t i = 0; i < tensors_.q.size(); ++i)
    tensors_.q[i] = tensors_.k[i] = tensors_.v[i] = float(int64_t(i * 37 % 101) - 50) / 40;
  ASSERT_EQ(forwardMessage(tensors_.forward()), "");
  std::atomic<int> numWrong = 0;
  const auto work = [&] {
    for (int i = 0; i < 20; ++i) {
      Tensors own = tensors_;
      own.out.assign(own.out.size(), -7.0f);
      numWrong +=
          !executable_->forward(own.forward(), nullptr, 0) || own.out != tensors_.out || own.lse != tensors_.lse;
    }
  };
  std::thread first(work), second(work);
  first.join();
  second.join();
  EXPECT_EQ(numWrong, 0);
}

TEST_F(Misuse, OneWorkspaceInTwoThreads) {
  const auto program = compiled("test.cpf", "@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
  const auto binding = Binding::create(*program, {.sizes = {.heads = 4, .kvHeads = 2, .qLen = 1024}});
  ASSERT_TRUE(binding);
  const auto executable =
      Executable::load(program, program->entries()[0], *binding, nullptr, {.headDim = 16, .numThreads = 1});
  ASSERT_TRUE(executable);
  std::vector<char> workspace(size_t((*executable)->workspaceInBytes(Executable::Pass::Forward)));
  // Every call computes or is refused, and some are refused.
  std::atomic<int> numRefused = 0, numOther = 0;
  const auto work = [&] {
    Tensors own(1024);
    for (int i = 0; i < 2000 && numRefused == 0; ++i) {
      const std::string message =
          (*executable)->forward(own.forward(), workspace.data(), int64_t(workspace.size())).message();
      if (message == "'workspace' is in use by another call; expected one workspace for each call at a time")
        ++numRefused;
      else if (!message.empty())
        ++numOther;
    }
  };
  std::thread first(work), second(work);
  first.join();
  second.join();
  EXPECT_GT(numRefused, 0);
  EXPECT_EQ(numOther, 0);
}

TEST(MisuseOfFiles, AProgramOutlivesItsFiles) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "outlived";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "near.cpf") << "def near(q, kv):\n    return q - kv < 8\n";
  std::ofstream(folder / "main.cpf") << "from near import near\n@mask\ndef m(b, h, q, kv):\n    return near(q, kv)\n";
  CompileOptions options;
  options.cacheDir = "";
  const auto program = compileFile((folder / "main.cpf").string(), options).program;
  ASSERT_TRUE(program);
  std::filesystem::remove_all(folder);
  const EntryPoint &entry = program->entries()[0];
  const auto binding = Binding::create(*program, {.sizes = {.qLen = 32}});
  ASSERT_TRUE(binding);
  EXPECT_TRUE(program->hostFunctions(entry, (*binding)->bindings()));
  EXPECT_TRUE(program->emit(Stage::Mask, entry));
  const std::string path = (folder / "main.cpf").string();
  EXPECT_NE(compileFile(path, options).diagnostics.at(0).message.find(path), std::string::npos);
}

} // namespace
