// Bad use of the C interface: each mistake gives an error that names the argument, what it was and what was expected.
#include "test/api/AttentionCase.h"

#include <atomic>
#include <thread>

using namespace capi;

namespace {

constexpr const char *kProgram = "doc: tensor[i32, KV_LEN]\nbias: tensor[f32, KV_LEN](grad=True)\n"
                                 "@mask\ndef f(b, h, q, kv):\n    return (q >= kv) & (doc[kv] >= 0)\n"
                                 "@score\ndef g(s, b, h, q, kv):\n    return s + bias[kv]\n"
                                 "attention(\"f\", mask=f, score=g)\nattention(\"other\", mask=f)\n";

class MisuseC : public testing::Test {
protected:
  void SetUp() override {
    doc_.assign(90, 0);
    bias_.assign(90, 0);
    const Request wanted = request(program_, given_.bindSizes());
    const cpflex_array doc = dense(doc_, {90}), bias = dense(bias_, {90});
    ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &doc, CPFLEX_BORROW)), "");
    ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "bias", &bias, CPFLEX_BORROW)), "");
    binding_ = bindAll(wanted);
    executable_ = load(binding_, loadOptions(given_), "f");
  }
  std::string forwardMessage(const cpflex_forward_tensors &tensors, void *workspace = nullptr, int64_t bytes = 0,
                             void *stream = nullptr) {
    return message(cpflex_forward(executable_.get(), &tensors, workspace, bytes, stream));
  }
  std::string backwardMessage(const cpflex_backward_tensors &tensors) {
    return message(cpflex_backward(executable_.get(), &tensors, nullptr, 0, nullptr));
  }
  std::string loadMessage(const cpflex_load_options &options, const char *entry = "f", const Mask &mask = {}) {
    cpflex_executable *executable = nullptr;
    return message(cpflex_load(binding_.get(), entry, mask.get(), &options, &executable));
  }

  AttentionCase given_;
  std::vector<int32_t> doc_;
  std::vector<float> bias_;
  Program program_ = compile(kProgram);
  Binding binding_;
  Executable executable_;
};

TEST_F(MisuseC, Shapes) {
  cpflex_forward_tensors tensors = given_.forward();
  tensors.k.shape[2] = 89;
  EXPECT_EQ(forwardMessage(tensors), "'k' has shape 1x2x89x16; expected 1x2x90x16");
  tensors = given_.forward();
  tensors.lse.shape[2] = 7;
  EXPECT_EQ(forwardMessage(tensors), "'lse' has shape 1x4x7x1; expected 1x4x70x1");
  tensors = given_.forward();
  tensors.v.rank = 3;
  EXPECT_EQ(forwardMessage(tensors), "'v' has 3 axes; expected 4");
  cpflex_backward_tensors backward = given_.backward();
  backward.d_v.shape[3] = 16;
  EXPECT_EQ(backwardMessage(backward), "'d_v' has shape 1x2x90x16; expected 1x2x90x24");
}

TEST_F(MisuseC, Types) {
  cpflex_forward_tensors tensors = given_.forward();
  tensors.q.dtype = CPFLEX_BF16;
  EXPECT_EQ(forwardMessage(tensors),
            "'q' has element type bf16; expected f32, the type that the executable was loaded for");
  tensors = given_.forward();
  tensors.lse.dtype = CPFLEX_F16;
  EXPECT_EQ(forwardMessage(tensors), "'lse' has element type f16; expected f32");
  tensors = given_.forward();
  tensors.k.dtype = 40;
  EXPECT_EQ(forwardMessage(tensors), "'k' has dtype 40; expected 0 to 11");
}

TEST_F(MisuseC, Strides) {
  cpflex_forward_tensors tensors = given_.forward();
  tensors.out.strides[1] = 0;
  EXPECT_EQ(forwardMessage(tensors),
            "'out' has stride 0 along axis 1 of size 4; expected an output whose elements are distinct");
  cpflex_backward_tensors backward = given_.backward();
  backward.d_q.strides[2] = 8;
  EXPECT_EQ(backwardMessage(backward),
            "'d_q' has strides 8 and 1 along axes 2 and 3, with which elements coincide; expected "
            "an output whose elements are distinct");
}

TEST_F(MisuseC, Null) {
  cpflex_forward_tensors tensors = given_.forward();
  tensors.k.data = nullptr;
  EXPECT_EQ(forwardMessage(tensors), "data of 'k' is null; expected an array of 1x2x90x16 elements");
  EXPECT_EQ(message(cpflex_forward(executable_.get(), nullptr, nullptr, 0, nullptr)),
            "'tensors' is null; expected a value");
  EXPECT_EQ(message(cpflex_forward(nullptr, &tensors, nullptr, 0, nullptr)), "'executable' is null; expected a value");
  EXPECT_EQ(message(cpflex_compile_file(nullptr, nullptr, nullptr)), "'path' is null; expected a value");
  EXPECT_EQ(message(cpflex_bind(nullptr, nullptr)), "'request' is null; expected a value");
  EXPECT_EQ(message(cpflex_block_mask_build(binding_.get(), "f", nullptr, nullptr)),
            "'mask' is null; expected a value");
  cpflex_executable_free(nullptr);
  EXPECT_EQ(cpflex_executable_workspace_bytes(nullptr, CPFLEX_FORWARD), 0);
  EXPECT_EQ(cpflex_executable_device_bytes(nullptr), 0);
}

TEST_F(MisuseC, ArgumentsHaveTheirNamesInC) {
  cpflex_backward_tensors backward = given_.backward();
  backward.d_k.data = backward.d_v.data;
  EXPECT_EQ(backwardMessage(backward), "'d_k' overlaps 'd_v'; expected separate memory");
  backward = given_.backward();
  backward.d_out.data = nullptr;
  EXPECT_EQ(backwardMessage(backward), "data of 'd_out' is null; expected an array of 1x4x70x24 elements");
  cpflex_forward_tensors tensors = given_.forward();
  tensors.row_max.dtype = CPFLEX_BF16;
  EXPECT_EQ(forwardMessage(tensors), "'row_max' has element type bf16; expected f32");
  cpflex_load_options options = loadOptions(given_);
  options.num_threads = -1;
  EXPECT_EQ(loadMessage(options).find("'num_threads' is -1"), 0u) << loadMessage(options);
}

TEST_F(MisuseC, ArraysOfTheProgramKeepTheirNames) {
  program_ = compile("dQ: tensor[i32, KV_LEN]\n@mask\ndef f(b, h, q, kv):\n    return dQ[kv] >= 0\n");
  const Request wanted = request(program_, given_.bindSizes());
  const cpflex_array array = dense(doc_, {90});
  ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "dQ", &array, CPFLEX_BORROW)), "");
  binding_ = bindAll(wanted);
  executable_ = load(binding_, loadOptions(given_));
  cpflex_backward_tensors tensors = given_.backward();
  float gradient[90];
  float *gradients[1] = {gradient};
  tensors.capture_gradients = gradients;
  tensors.num_capture_gradients = 1;
  EXPECT_EQ(backwardMessage(tensors),
            "'capture_gradients' has an entry for array 'dQ'; expected null, since it is not declared with grad=True");
}

TEST_F(MisuseC, OverlapAlignmentAndPlace) {
  cpflex_forward_tensors tensors = given_.forward();
  tensors.out.data = tensors.v.data;
  EXPECT_EQ(forwardMessage(tensors), "'out' overlaps 'v'; expected separate memory");
  tensors = given_.forward();
  tensors.q.data = reinterpret_cast<char *>(0x1001);
  EXPECT_EQ(forwardMessage(tensors), "'q' is at address 0x1001; expected a multiple of 4, the size of its elements");
  tensors = given_.forward();
  tensors.q.device_type = CPFLEX_DEVICE_CUDA;
  tensors.q.device_index = 1;
  EXPECT_EQ(forwardMessage(tensors), "'q' is on cuda:1; expected cpu");
}

TEST_F(MisuseC, WorkspaceAndStream) {
  const cpflex_forward_tensors tensors = given_.forward();
  char small[16];
  const int64_t needed = cpflex_executable_workspace_bytes(executable_.get(), CPFLEX_FORWARD);
  EXPECT_EQ(forwardMessage(tensors, small, sizeof(small)),
            "'workspace' holds 16 bytes; expected at least " + std::to_string(needed));
  EXPECT_EQ(forwardMessage(tensors, nullptr, 0, small), "'stream' is given for the cpu; expected null");
}

TEST_F(MisuseC, OneWorkspaceInTwoThreads) {
  const AttentionCase large(CaseSizes{.batch = 1, .heads = 4, .kvHeads = 2, .qLen = 1024, .kvLen = 1024});
  const Program program = compile("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
  const Binding binding = bindAll(request(program, large.bindSizes()));
  cpflex_load_options options = loadOptions(large);
  options.num_threads = 1;
  const Executable executable = load(binding, options);
  std::vector<char> workspace(size_t(cpflex_executable_workspace_bytes(executable.get(), CPFLEX_FORWARD)));
  // Two threads share one workspace: every call computes or is refused, and some are refused.
  std::atomic<int> numRefused = 0, numOther = 0;
  const auto work = [&] {
    AttentionCase own = large;
    const cpflex_forward_tensors tensors = own.forward();
    for (int i = 0; i < 2000 && numRefused == 0; ++i) {
      const std::string text =
          message(cpflex_forward(executable.get(), &tensors, workspace.data(), int64_t(workspace.size()), nullptr));
      if (text == "'workspace' is in use by another call; expected one workspace for each call at a time")
        ++numRefused;
      else if (!text.empty())
        ++numOther;
    }
  };
  std::thread first(work), second(work);
  first.join();
  second.join();
  EXPECT_GT(numRefused, 0);
  EXPECT_EQ(numOther, 0);
}

TEST_F(MisuseC, ChangedBinding) {
  cpflex_block_mask *handle = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_build(binding_.get(), "f", nullptr, &handle)), "");
  const Mask mask(handle);
  ASSERT_EQ(message(cpflex_binding_set_version(binding_.get(), 3)), "");
  EXPECT_EQ(forwardMessage(given_.forward()),
            "the binding has version 3 and the executable was loaded for version 0; load it again");
  EXPECT_EQ(loadMessage(loadOptions(given_), "f", mask),
            "'mask' was built for version 0 of the binding, which has version 3; build it again");
}

TEST_F(MisuseC, Updates) {
  const auto update = [&](const Binding &binding, const Mask &mask = {}, void *stream = nullptr) {
    return message(cpflex_executable_update(executable_.get(), binding.get(), mask.get(), stream));
  };
  EXPECT_EQ(message(cpflex_executable_update(nullptr, binding_.get(), nullptr, nullptr)),
            "'executable' is null; expected a value");
  EXPECT_EQ(message(cpflex_bind_request_stream(nullptr, nullptr)), "'request' is null; expected a value");
  EXPECT_EQ(update({}), "'binding' is null; expected a value");
  EXPECT_EQ(update(binding_, {}, &doc_), "'stream' is given for the cpu; expected null");
  cpflex_block_mask *handle = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_build(binding_.get(), "other", nullptr, &handle)), "");
  EXPECT_EQ(update(binding_, Mask(handle)), "'mask' is that of entry point 'other'; expected that of 'f'");
  const Program program = compile("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
  EXPECT_EQ(update(bindAll(request(program, given_.bindSizes()))),
            "'binding' was made for another program; expected one made for that of the executable");
  const Request wanted = request(program_, {1, 4, 2, 60, 90});
  const cpflex_array doc = dense(doc_, {90}), bias = dense(bias_, {90});
  ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &doc, CPFLEX_BORROW)), "");
  ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "bias", &bias, CPFLEX_BORROW)), "");
  EXPECT_EQ(update(bindAll(wanted)), "the binding has 60 queries; expected 70, for which the executable was loaded");
  EXPECT_EQ(forwardMessage(given_.forward()), "");
}

TEST_F(MisuseC, MasksOfOthers) {
  cpflex_block_mask *handle = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_build(binding_.get(), "f", nullptr, &handle)), "");
  const Mask mask(handle);
  EXPECT_EQ(loadMessage(loadOptions(given_), "other", mask),
            "'mask' is that of entry point 'f'; expected that of 'other'");
  cpflex_load_options options = loadOptions(given_);
  options.part.q_begin = 10;
  EXPECT_EQ(loadMessage(options, "f", mask),
            "'mask' was built for another part of the problem; expected that of the executable");
  const Program program = compile("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
  const Binding elsewhere = bindAll(request(program, {1, 4, 2, 64, 64}));
  ASSERT_EQ(message(cpflex_block_mask_build(elsewhere.get(), nullptr, nullptr, &handle)), "");
  const Mask foreign(handle);
  EXPECT_EQ(loadMessage(loadOptions(given_), "f", foreign),
            "'mask' was built over another binding; expected one built over 'binding'");
  const std::string path = testing::TempDir() + "foreign.mask";
  ASSERT_EQ(message(cpflex_block_mask_save(foreign.get(), path.c_str())), "");
  ASSERT_EQ(message(cpflex_block_mask_read(path.c_str(), &handle)), "");
  const Mask read(handle);
  EXPECT_EQ(loadMessage(loadOptions(given_), "f", read),
            "'mask' is for 1 batch rows, 4 heads, 64 queries and 64 keys; expected 1, 4, 70 and 90");
}

TEST_F(MisuseC, LoadOptions) {
  cpflex_load_options options = loadOptions(given_);
  options.device = "tpu";
  EXPECT_EQ(loadMessage(options), "device is 'tpu'; expected cpu, cuda or cuda:N");
  options = loadOptions(given_);
  options.dtype = CPFLEX_I32;
  EXPECT_EQ(loadMessage(options), "'dtype' is i32; expected f32, bf16 or f16");
  options.dtype = -1;
  EXPECT_EQ(loadMessage(options), "'dtype' is -1; expected 9, 10 or 11");
  options = loadOptions(given_);
  options.head_dim = 0;
  EXPECT_EQ(loadMessage(options), "head sizes are 0 and 24; expected 1 to 4096");
  options = loadOptions(given_);
  options.part.head_end = 3;
  EXPECT_EQ(loadMessage(options), "the part has heads 0 to 3; expected multiples of 2, the heads of one kv head");
  options = loadOptions(given_);
  options.stream = &options;
  EXPECT_EQ(loadMessage(options), "'stream' is given for the cpu; expected null");
  EXPECT_NE(loadMessage(loadOptions(given_), "none").find("there is no entry point 'none'"), std::string::npos);
  const Binding odd = bindAll([&] {
    const Program program = compile("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
    return request(program, {1, 3, 2, 8, 8});
  }());
  cpflex_executable *executable = nullptr;
  options = loadOptions(given_);
  EXPECT_EQ(message(cpflex_load(odd.get(), nullptr, nullptr, &options, &executable)),
            "3 query heads do not divide over 2 kv heads");
}

TEST_F(MisuseC, Gradients) {
  cpflex_load_options options = loadOptions(given_);
  options.has_backward = 0;
  executable_ = load(binding_, options, "f");
  EXPECT_EQ(backwardMessage(given_.backward()),
            "the executable was loaded for forward only; expected one loaded for backward too");
  executable_ = load(binding_, loadOptions(given_), "f");
  ASSERT_EQ(forwardMessage(given_.forward()), "");
  EXPECT_EQ(backwardMessage(given_.backward()), ""); // gradients of captures are not wanted
  cpflex_backward_tensors tensors = given_.backward();
  float gradient[90];
  float *gradients[2] = {gradient, gradient};
  tensors.capture_gradients = gradients;
  tensors.num_capture_gradients = 1;
  EXPECT_EQ(backwardMessage(tensors), "'capture_gradients' has 1 entries; expected none or 2, one for each capture");
  tensors.num_capture_gradients = 2;
  EXPECT_EQ(backwardMessage(tensors),
            "'capture_gradients' has an entry for array 'doc'; expected null, since it is not declared with grad=True");
  tensors = given_.backward();
  tensors.sink_gradient = gradient;
  EXPECT_EQ(backwardMessage(tensors), "'sink_gradient' is given without 'sink'; expected null");
}

} // namespace
