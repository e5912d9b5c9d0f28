// What tests of the C interface share: handles that free themselves, and errors as text.
#pragma once

#include "lib/API/DLPack.h"
#include "lib/API/cpflex.c.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace capi {

template <typename Handle, void (*Free)(Handle *)> struct Freed {
  void operator()(Handle *handle) const { Free(handle); }
};
using Error = std::unique_ptr<cpflex_error, Freed<cpflex_error, cpflex_error_free>>;
using Buffer = std::unique_ptr<cpflex_buffer, Freed<cpflex_buffer, cpflex_buffer_free>>;
using Program = std::unique_ptr<cpflex_program, Freed<cpflex_program, cpflex_program_free>>;
using Request = std::unique_ptr<cpflex_bind_request, Freed<cpflex_bind_request, cpflex_bind_request_free>>;
using Binding = std::unique_ptr<cpflex_binding, Freed<cpflex_binding, cpflex_binding_free>>;
using Mask = std::unique_ptr<cpflex_block_mask, Freed<cpflex_block_mask, cpflex_block_mask_free>>;
using Lists = std::unique_ptr<cpflex_index_lists, Freed<cpflex_index_lists, cpflex_index_lists_free>>;
using Executable = std::unique_ptr<cpflex_executable, Freed<cpflex_executable, cpflex_executable_free>>;
using Layout = std::unique_ptr<cpflex_layout, Freed<cpflex_layout, cpflex_layout_free>>;
using Plan = std::unique_ptr<cpflex_plan, Freed<cpflex_plan, cpflex_plan_free>>;
using ThreadGroup = std::unique_ptr<cpflex_thread_group, Freed<cpflex_thread_group, cpflex_thread_group_free>>;
using Communicator = std::unique_ptr<cpflex_communicator, Freed<cpflex_communicator, cpflex_communicator_free>>;
using Rank = std::unique_ptr<cpflex_rank, Freed<cpflex_rank, cpflex_rank_free>>;

/// The message of an error, empty for success. Frees it.
inline std::string message(cpflex_error *error) {
  Error owned(error);
  return owned ? cpflex_error_message(owned.get()) : "";
}

inline cpflex_compile_options options() {
  cpflex_compile_options options{};
  options.abi_version = CPFLEX_ABI_VERSION;
  options.cache_dir = "";
  return options;
}

inline Program compile(const std::string &text, const cpflex_compile_options &with = options()) {
  cpflex_program *program = nullptr;
  EXPECT_EQ(message(cpflex_compile_text("test.cpf", text.data(), text.size(), &with, &program)), "");
  return Program(program);
}

inline Request request(const Program &program, cpflex_sizes sizes) {
  cpflex_bind_request *request = nullptr;
  EXPECT_EQ(message(cpflex_bind_request_create(program.get(), &request)), "");
  EXPECT_EQ(message(cpflex_bind_request_sizes(request, &sizes)), "");
  return Request(request);
}

inline Binding bindAll(const Request &request) {
  cpflex_binding *binding = nullptr;
  EXPECT_EQ(message(cpflex_bind(request.get(), &binding)), "");
  return Binding(binding);
}

template <typename T> cpflex_dtype dtypeOf();
template <> inline cpflex_dtype dtypeOf<float>() { return CPFLEX_F32; }
template <> inline cpflex_dtype dtypeOf<int32_t>() { return CPFLEX_I32; }
template <> inline cpflex_dtype dtypeOf<int64_t>() { return CPFLEX_I64; }

template <typename T> cpflex_array dense(std::vector<T> &values, std::vector<int64_t> shape) {
  return cpflex_dense_array(values.data(), dtypeOf<T>(), int32_t(shape.size()), shape.data());
}

} // namespace capi
