// The C interface's bindings: owned and borrowed arrays, DLPack both ways, document ids, versions.
#include "test/api/CInterface.h"

#include <bit>

using namespace capi;

namespace {

constexpr const char *kDocuments = "doc: tensor[i32, B, KV_LEN](sorted)\nW: param[int] = 100\nF: param[float] = 1.0\n"
                                   "@mask\ndef same(b, h, q, kv):\n"
                                   "    return (doc[b, q] == doc[b, kv]) & (q - kv < W) & (F > 0.5)\n";

/// A tensor of "another library", which counts how often it is released.
template <typename Managed> struct Foreign {
  std::vector<int32_t> values;
  std::vector<int64_t> shape, strides;
  int numReleased = 0;
  Managed managed{};

  Foreign(std::vector<int32_t> elements, std::vector<int64_t> sizes)
      : values(std::move(elements)), shape(std::move(sizes)) {
    managed.dl_tensor.data = values.data();
    managed.dl_tensor.device = {kDLCPU, 0};
    managed.dl_tensor.ndim = int32_t(shape.size());
    managed.dl_tensor.dtype = {kDLInt, 32, 1};
    managed.dl_tensor.shape = shape.data();
    managed.manager_ctx = this;
    managed.deleter = [](Managed *self) { ++static_cast<Foreign *>(self->manager_ctx)->numReleased; };
    if constexpr (requires { managed.version; })
      managed.version = {DLPACK_MAJOR_VERSION, 0};
  }
};

int64_t allowedPairs(const Binding &binding) {
  cpflex_block_mask *mask = nullptr;
  EXPECT_EQ(message(cpflex_block_mask_build(binding.get(), nullptr, nullptr, &mask)), "");
  Mask owned(mask);
  cpflex_pair_counts counts{};
  EXPECT_EQ(message(cpflex_block_mask_count_pairs(mask, &counts)), "");
  return counts.allowed;
}

TEST(BindingC, CopiedArraysMayChangeAfterwards) {
  const Program program = compile(kDocuments);
  const Request wanted = request(program, {-1, -1, -1, 4, -1});
  std::vector<int64_t> doc = {0, 0, 1, 1};
  const cpflex_array array = dense(doc, {1, 4});
  ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_COPY)), "");
  doc = {0, 0, 0, 0};
  const Binding binding = bindAll(wanted);
  EXPECT_EQ(allowedPairs(binding), 8);
  const cpflex_sizes sizes = cpflex_binding_sizes(binding.get());
  EXPECT_EQ(sizes.batch, 1);
  EXPECT_EQ(sizes.kv_len, 4);
  int64_t length = 0;
  ASSERT_EQ(message(cpflex_binding_dim(binding.get(), "KV_LEN", &length)), "");
  EXPECT_EQ(length, 4);
  EXPECT_EQ(message(cpflex_binding_dim(binding.get(), "N", &length)),
            "the program has no dimension 'N'; expected one of B, H, HKV, Q_LEN, KV_LEN");
}

TEST(BindingC, BorrowedArraysAreReadInPlaceAndVersioned) {
  const Program program = compile(kDocuments);
  const Request wanted = request(program, {-1, -1, -1, 4, -1});
  std::vector<int32_t> doc = {0, -1, 0, -1, 1, -1, 1, -1}; // every second element
  cpflex_array array = dense(doc, {1, 4});
  array.strides[1] = 2;
  ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_BORROW)), "");
  const Binding binding = bindAll(wanted);
  EXPECT_EQ(allowedPairs(binding), 8);
  cpflex_array bound{};
  ASSERT_EQ(message(cpflex_binding_array(binding.get(), "doc", &bound)), "");
  EXPECT_EQ(bound.data, doc.data());
  EXPECT_EQ(bound.strides[1], 2);

  cpflex_block_mask *handle = nullptr;
  ASSERT_EQ(message(cpflex_block_mask_build(binding.get(), nullptr, nullptr, &handle)), "");
  const Mask old(handle);
  doc[2] = 1;
  ASSERT_EQ(message(cpflex_binding_set_version(binding.get(), 5)), "");
  EXPECT_EQ(cpflex_binding_version(binding.get()), 5u);
  EXPECT_EQ(allowedPairs(binding), 10);
  cpflex_pair_counts counts{};
  EXPECT_EQ(message(cpflex_block_mask_count_pairs(old.get(), &counts)),
            "the mask was built for version 0 of the binding, which has version 5; build it again");
  doc[6] = 0;
  EXPECT_NE(message(cpflex_binding_set_version(binding.get(), 6)).find("'doc'"), std::string::npos);
}

TEST(BindingC, BorrowedArraysOfAnotherTypeAreConvertedAgain) {
  const Program program = compile(kDocuments);
  const Request wanted = request(program, {-1, -1, -1, 4, -1});
  std::vector<int64_t> doc = {1, 1, 0, 0};
  cpflex_array array = dense(doc, {1, 4});
  array.data = &doc[3];
  array.strides[1] = -1;
  ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_BORROW)), "");
  const Binding binding = bindAll(wanted);
  EXPECT_EQ(allowedPairs(binding), 8);
  doc = {0, 0, 0, 0};
  ASSERT_EQ(message(cpflex_binding_set_version(binding.get(), 1)), "");
  EXPECT_EQ(allowedPairs(binding), 16);
}

TEST(BindingC, DLPackIsTakenOverAndReleasedOnce) {
  const Program program = compile(kDocuments);
  Foreign<DLManagedTensor> foreign({0, 0, 0, 1}, {1, 4});
  Foreign<DLManagedTensorVersioned> versioned({0, 1, 2, 3}, {1, 4});
  {
    const Request wanted = request(program, {-1, -1, -1, 4, -1});
    ASSERT_EQ(message(cpflex_bind_request_dlpack(wanted.get(), "doc", &foreign.managed)), "");
    const Binding binding = bindAll(wanted);
    EXPECT_EQ(allowedPairs(binding), 10);
    ASSERT_EQ(message(cpflex_bind_request_dlpack_versioned(wanted.get(), "doc", &versioned.managed)), "");
    EXPECT_EQ(allowedPairs(bindAll(wanted)), 4);
    EXPECT_EQ(foreign.numReleased, 0);
  }
  EXPECT_EQ(foreign.numReleased, 1);
  EXPECT_EQ(versioned.numReleased, 1);
}

TEST(BindingC, DLPackThatIsRefusedIsReleasedToo) {
  const Program program = compile(kDocuments);
  const Request wanted = request(program, {-1, -1, -1, 4, -1});
  Foreign<DLManagedTensor> vectors({0, 0, 0, 1}, {1, 4}), elsewhere({0}, {1}), deep({0}, {1, 1, 1, 1, 1});
  vectors.managed.dl_tensor.dtype.lanes = 4;
  EXPECT_EQ(
      message(cpflex_bind_request_dlpack(wanted.get(), "doc", &vectors.managed)),
      "the DLPack tensor has elements of code 0, 32 bits and 4 lanes; expected bool, ints of 8 to 64 bits, f16, bf16 "
      "or f32");
  elsewhere.managed.dl_tensor.device.device_type = DLDeviceType(8);
  EXPECT_EQ(message(cpflex_bind_request_dlpack(wanted.get(), "doc", &elsewhere.managed)),
            "the DLPack tensor is on a device of type 8; expected a CPU (1) or CUDA (2)");
  EXPECT_EQ(message(cpflex_bind_request_dlpack(wanted.get(), "doc", &deep.managed)),
            "the DLPack tensor has 5 axes; expected 0 to 4");
  Foreign<DLManagedTensorVersioned> future({0}, {1});
  future.managed.version = {2, 1};
  EXPECT_EQ(message(cpflex_bind_request_dlpack_versioned(wanted.get(), "doc", &future.managed)),
            "the DLPack tensor has version 2.1; expected 1.x");
  EXPECT_EQ(vectors.numReleased + elsewhere.numReleased + deep.numReleased + future.numReleased, 4);
}

TEST(BindingC, ExportedArraysKeepTheirBindingAlive) {
  const Program program = compile(kDocuments);
  const Request wanted = request(program, {-1, -1, -1, -1, -1});
  std::vector<int32_t> cumulative = {0, 3, 5};
  const cpflex_array lengths = dense(cumulative, {3});
  ASSERT_EQ(message(cpflex_bind_request_segments(wanted.get(), "doc", &lengths, -1)), "");
  Binding binding = bindAll(wanted);
  EXPECT_EQ(allowedPairs(binding), 13);
  DLManagedTensor *plain = nullptr;
  DLManagedTensorVersioned *versioned = nullptr;
  ASSERT_EQ(message(cpflex_binding_dlpack(binding.get(), "doc", &plain)), "");
  ASSERT_EQ(message(cpflex_binding_dlpack_versioned(binding.get(), "doc", &versioned)), "");
  EXPECT_EQ(message(cpflex_binding_dlpack(binding.get(), "docs", &plain)), "the program declares no array 'docs'");
  binding.reset();
  const DLTensor &tensor = plain->dl_tensor;
  ASSERT_EQ(tensor.ndim, 2);
  EXPECT_EQ(tensor.shape[1], 5);
  EXPECT_EQ(tensor.dtype.code, kDLInt);
  const int32_t *ids = static_cast<const int32_t *>(tensor.data);
  EXPECT_EQ(std::vector<int32_t>(ids, ids + 5), (std::vector<int32_t>{0, 0, 0, 1, 1}));
  EXPECT_EQ(versioned->version.major, uint32_t(DLPACK_MAJOR_VERSION));
  EXPECT_TRUE(versioned->flags & DLPACK_FLAG_BITMASK_READ_ONLY);
  cpflex_array array{};
  ASSERT_EQ(message(cpflex_array_from_dlpack(plain, &array)), "");
  EXPECT_EQ(array.data, tensor.data);
  EXPECT_EQ(array.shape[1], 5);
  plain->deleter(plain);
  versioned->deleter(versioned);
}

TEST(BindingC, ParamsTakeTextAndNumbers) {
  const Program program = compile(kDocuments);
  const Request wanted = request(program, {-1, -1, -1, 4, -1});
  std::vector<int32_t> doc = {0, 0, 0, 0};
  const cpflex_array array = dense(doc, {1, 4});
  ASSERT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_BORROW)), "");
  ASSERT_EQ(message(cpflex_bind_request_int(wanted.get(), "W", 1)), "");
  EXPECT_EQ(allowedPairs(bindAll(wanted)), 10);
  ASSERT_EQ(message(cpflex_bind_request_text(wanted.get(), "W", "2")), "");
  EXPECT_EQ(allowedPairs(bindAll(wanted)), 13);
  ASSERT_EQ(message(cpflex_bind_request_float(wanted.get(), "F", 0.25)), "");
  EXPECT_EQ(allowedPairs(bindAll(wanted)), 0);
}

TEST(BindingC, MistakesAreNamed) {
  const Program program = compile(kDocuments);
  const Request wanted = request(program, {-1, -1, -1, 4, -1});
  cpflex_binding *binding = nullptr;
  EXPECT_NE(message(cpflex_bind(wanted.get(), &binding)).find("array 'doc' is not bound"), std::string::npos);
  std::vector<int32_t> doc = {0, 0, 0, 0};
  cpflex_array array = dense(doc, {1, 4});
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, 7)), "'ownership' is 7; expected 0 or 1");
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), nullptr, &array, CPFLEX_COPY)),
            "'name' is null; expected a value");
  array.dtype = 12;
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_COPY)),
            "'doc' has dtype 12; expected 0 to 11");
  array.dtype = CPFLEX_I32;
  array.rank = 5;
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_COPY)),
            "'doc' has 5 axes; expected 0 to 4");
  array.rank = 2;
  array.device_type = 3;
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_COPY)),
            "'doc' has device type 3; expected 0 to 2");
  array.device_type = CPFLEX_DEVICE_CPU;
  array.shape[1] = -4;
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_COPY)),
            "axis 1 of the array for 'doc' has size -4; expected 0 or more");
  array.shape[1] = 4;
  array.data = nullptr;
  EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "doc", &array, CPFLEX_BORROW)), "");
  EXPECT_EQ(message(cpflex_bind(wanted.get(), &binding)), "data of the array for 'doc' is null; expected its elements");
  std::vector<float> lengths = {0, 4};
  array = dense(lengths, {2});
  EXPECT_EQ(message(cpflex_bind_request_segments(wanted.get(), "doc", &array, -1)),
            "'cu_seqlens' has 1 axes and elements of type f32; expected one axis of i32 or i64");
  std::vector<int32_t> decreasing = {0, 4, 2};
  array = dense(decreasing, {3});
  EXPECT_NE(message(cpflex_bind_request_segments(wanted.get(), "doc", &array, 4)).find("cumulative lengths for 'doc'"),
            std::string::npos);
  std::vector<int32_t> none;
  array = dense(none, {0});
  EXPECT_NE(message(cpflex_bind_request_segments(wanted.get(), "doc", &array, -1)).find("cumulative lengths for 'doc'"),
            std::string::npos);
}

TEST(BindingC, MasksAreEvaluatedPointwise) {
  const Program program = compile("@score\ndef twice(s, b, h, q, kv):\n    return 2 * s\n"
                                  "@mask\ndef even(b, h, q, kv):\n    return (q + kv + h) % 2 == 0\n"
                                  "attention(\"all\", score=twice)\nattention(\"even\", mask=even)\n");
  const Binding binding = bindAll(request(program, {1, 2, 2, 8, 8}));
  std::vector<uint8_t> bits(2 * 3, 9);
  ASSERT_EQ(message(cpflex_binding_evaluate_mask(binding.get(), "even", 0, 1, 2, 4, 5, 7, bits.data(), 3)), "");
  EXPECT_EQ(bits, (std::vector<uint8_t>{1, 0, 9, 0, 1, 9}));
  ASSERT_EQ(message(cpflex_binding_evaluate_mask(binding.get(), "all", 0, 0, 0, 2, 0, 3, bits.data(), 3)), "");
  EXPECT_EQ(bits, (std::vector<uint8_t>(6, 1)));
  EXPECT_EQ(message(cpflex_binding_evaluate_mask(binding.get(), "even", 0, 2, 0, 1, 0, 1, bits.data(), 3)),
            "'h' is 2 to 3; expected a range within 0 to 2");
  EXPECT_EQ(message(cpflex_binding_evaluate_mask(binding.get(), "even", 0, 0, 0, 9, 0, 1, bits.data(), 3)),
            "'q' is 0 to 9; expected a range within 0 to 8");
}

} // namespace
