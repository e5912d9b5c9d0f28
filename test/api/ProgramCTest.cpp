// The C interface's programs: errors as data, what a program declares, porting, logging.
#include "test/api/CInterface.h"

#include <cstring>
#include <fstream>

extern "C" int numEntriesFromC(const char *text, size_t size);

using namespace capi;

namespace {

constexpr const char *kProgram =
    "W: param[int] = 16\nF: param[float] = 0.5\nON: param[bool]\n"
    "doc: tensor[i32, B, KV_LEN](sorted, lo=0, hi=100)\n"
    "bias: tensor[f32, H, 2*R+1](grad=True)\nsinks: tensor[f32, H](grad=True)\n"
    "@mask\ndef near(b, h, q, kv):\n    return (q - kv < W) & ON & (doc[b, kv] < 100)\n"
    "@score\ndef biased(s, b, h, q, kv):\n    return s + bias[h, clamp(q - kv, 0, R)] * F\n"
    "attention(\"main\", mask=near, score=biased, sink=sinks, scale=0.25)\n"
    "attention(\"linear\", mask=near, softmax=False)\n";

TEST(ProgramC, VersionsAreToldAndChecked) {
  EXPECT_EQ(cpflex_abi_version(), uint32_t(CPFLEX_ABI_VERSION));
  EXPECT_STREQ(cpflex_version(), "0.1.0");
  cpflex_compile_options wrong = options();
  wrong.abi_version = 77;
  cpflex_program *program = nullptr;
  EXPECT_EQ(message(cpflex_compile_text("t.cpf", "", 0, &wrong, &program)),
            "'abi_version' is 77; expected 1, the version of this library");
  EXPECT_EQ(program, nullptr);
}

TEST(ProgramC, CIsServed) {
  const std::string text = "@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n";
  EXPECT_EQ(numEntriesFromC(text.data(), text.size()), 1);
  EXPECT_EQ(numEntriesFromC("?", 1), -1);
}

TEST(ProgramC, ErrorsAreData) {
  const std::string text = "doc: tensor[i32, B, KV_LEN]\n@mask\ndef f(b, h, q, kv):\n    return doc[b, q, kv] == 1\n";
  const cpflex_compile_options with = options();
  cpflex_program *program = nullptr;
  Error error(cpflex_compile_text("bad.cpf", text.data(), text.size(), &with, &program));
  ASSERT_TRUE(error);
  EXPECT_EQ(program, nullptr);
  EXPECT_EQ(cpflex_error_code(error.get()), CPFLEX_INVALID_ARGUMENT);
  ASSERT_EQ(cpflex_error_num_diagnostics(error.get()), 2u);
  const cpflex_diagnostic first = cpflex_error_diagnostic(error.get(), 0),
                          note = cpflex_error_diagnostic(error.get(), 1);
  EXPECT_STREQ(first.file, "bad.cpf");
  EXPECT_EQ(first.line, 4);
  EXPECT_EQ(first.column, 12);
  EXPECT_EQ(first.severity, CPFLEX_SEVERITY_ERROR);
  EXPECT_STREQ(first.text, "'doc' has 2 dimensions, 3 indices given");
  EXPECT_STREQ(first.source_line, "    return doc[b, q, kv] == 1");
  EXPECT_EQ(note.severity, CPFLEX_SEVERITY_NOTE);
  EXPECT_EQ(note.line, 1);
  EXPECT_STREQ(cpflex_error_diagnostic(error.get(), 9).text, "");
  EXPECT_NE(std::string(cpflex_error_message(error.get())).find("bad.cpf:4:12: error: 'doc' has"), std::string::npos);
}

TEST(ProgramC, DeclarationsAreTold) {
  cpflex_compile_options with = options();
  const cpflex_named_text constant{"R", "3"};
  with.constants = &constant;
  with.num_constants = 1;
  const Program program = compile(std::string("R: const[int] = 2\n") + kProgram, with);
  ASSERT_TRUE(program);
  ASSERT_EQ(cpflex_program_num_entries(program.get()), 2u);
  cpflex_entry entry{};
  ASSERT_EQ(message(cpflex_program_entry(program.get(), 0, &entry)), "");
  EXPECT_STREQ(entry.name, "main");
  EXPECT_TRUE(entry.has_mask && entry.has_score && entry.has_softmax && entry.has_scale);
  EXPECT_EQ(entry.scale, 0.25f);
  ASSERT_EQ(message(cpflex_program_entry(program.get(), 1, &entry)), "");
  EXPECT_FALSE(entry.has_softmax);
  EXPECT_EQ(entry.sink_capture, -1);
  EXPECT_EQ(message(cpflex_program_entry(program.get(), 2, &entry)), "there is no entry point 2; the program has 2");

  ASSERT_EQ(cpflex_program_num_captures(program.get()), 3u);
  for (size_t i = 0; i < 3; ++i) {
    cpflex_capture capture{};
    ASSERT_EQ(message(cpflex_program_capture(program.get(), i, &capture)), "");
    if (std::strcmp(capture.name, "doc") == 0) {
      EXPECT_EQ(capture.dtype, CPFLEX_I32);
      EXPECT_EQ(capture.rank, 2);
      EXPECT_STREQ(capture.dims[1], "KV_LEN");
      EXPECT_TRUE(capture.is_sorted && capture.has_lo && capture.has_hi && !capture.needs_gradient);
      EXPECT_EQ(capture.hi, 100);
    } else if (std::strcmp(capture.name, "bias") == 0) {
      EXPECT_STREQ(capture.dims[1], "7");
      EXPECT_TRUE(capture.needs_gradient);
    }
  }
  cpflex_capture capture{};
  EXPECT_EQ(message(cpflex_program_capture(program.get(), 3, &capture)), "there is no capture 3; the program has 3");

  ASSERT_EQ(cpflex_program_num_params(program.get()), 3u);
  cpflex_param param{};
  for (size_t i = 0; i < 3; ++i) {
    ASSERT_EQ(message(cpflex_program_param(program.get(), i, &param)), "");
    const std::string name = param.name;
    EXPECT_EQ(param.has_default, name != "ON");
    EXPECT_EQ(param.type, name == "W" ? CPFLEX_VALUE_INT : name == "F" ? CPFLEX_VALUE_FLOAT : CPFLEX_VALUE_BOOL);
    EXPECT_EQ(param.default_int, name == "W" ? 16 : 0);
    EXPECT_EQ(param.default_float, name == "F" ? 0.5 : 0);
  }
  EXPECT_EQ(message(cpflex_program_param(program.get(), 3, &param)), "there is no param 3; the program has 3");
}

TEST(ProgramC, ConstantsAreTold) {
  const Program program =
      compile("C: const[int] = 2\nW: param[int] = 8\n@mask\ndef f(b, h, q, kv):\n    return q - kv < W * C\n");
  EXPECT_EQ(cpflex_program_has_constant(program.get(), "C"), 1);
  EXPECT_EQ(cpflex_program_has_constant(program.get(), "W"), 0);
  EXPECT_EQ(cpflex_program_has_constant(program.get(), nullptr), 0);
  EXPECT_EQ(cpflex_program_has_constant(nullptr, "C"), 0);
}

TEST(ProgramC, StagesAreEmitted) {
  const Program program = compile("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n");
  cpflex_buffer *buffer = nullptr;
  ASSERT_EQ(message(cpflex_program_emit(program.get(), "mask", nullptr, &buffer)), "");
  Buffer mask(buffer);
  EXPECT_NE(std::string(cpflex_buffer_bytes(mask.get())).find("mask.predicate"), std::string::npos);
  EXPECT_EQ(cpflex_buffer_size(mask.get()), std::strlen(cpflex_buffer_bytes(mask.get())));
  ASSERT_EQ(message(cpflex_program_emit(program.get(), "cuda", "causal", &buffer)), "");
  Buffer cuda(buffer);
  EXPECT_NE(std::string(cpflex_buffer_bytes(cuda.get())).find("struct Program"), std::string::npos);
  EXPECT_EQ(message(cpflex_program_emit(program.get(), "ptx", nullptr, &buffer)),
            "'stage' is 'ptx'; expected one of ast, mask, mask-opt, mask-grad, classifier, llvm, assembly, cuda");
}

TEST(ProgramC, FlexAttentionFunctionsArePorted) {
  const std::string python =
      "def sliding(b, h, q_idx, kv_idx):\n    return (q_idx >= kv_idx) & (q_idx - kv_idx < window)\n";
  const cpflex_compile_options with = options();
  cpflex_buffer *cpf = nullptr, *warnings = nullptr;
  ASSERT_EQ(message(cpflex_port("m.py", python.data(), python.size(), "sliding", &with, &cpf, &warnings)), "");
  Buffer text(cpf), warned(warnings);
  EXPECT_TRUE(compile(cpflex_buffer_bytes(text.get())));
  EXPECT_NE(std::string(cpflex_buffer_bytes(warned.get())).find("window"), std::string::npos);
  Error missing(cpflex_port("m.py", python.data(), python.size(), "other", &with, &cpf, nullptr));
  ASSERT_TRUE(missing);
}

void hear(void *user_data, cpflex_log_level level, const char *text) {
  static_cast<std::vector<std::string> *>(user_data)->push_back(std::to_string(level) + " " + text);
}

TEST(ProgramC, TheLogIsHeardAtItsLevel) {
  std::vector<std::string> lines;
  cpflex_compile_options with = options();
  with.log = hear;
  with.log_user_data = &lines;
  compile("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n", with);
  EXPECT_TRUE(lines.empty());
  with.log_level = CPFLEX_LOG_INFO;
  compile("@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n", with);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].find("2 compiled 'test.cpf' in "), 0u);
  with.log_level = 9;
  cpflex_program *program = nullptr;
  EXPECT_EQ(message(cpflex_compile_text("t.cpf", "", 0, &with, &program)), "'log_level' is 9; expected 0 to 3");
}

TEST(ProgramC, AProgramOutlivesItsFile) {
  const std::string path = testing::TempDir() + "outlived.cpf";
  std::ofstream(path) << "@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n";
  const cpflex_compile_options with = options();
  cpflex_program *handle = nullptr;
  ASSERT_EQ(message(cpflex_compile_file(path.c_str(), &with, &handle)), "");
  Program program(handle);
  ASSERT_EQ(std::remove(path.c_str()), 0);
  Binding binding = bindAll(request(program, {1, 1, 1, 32, 32}));
  program.reset();
  uint8_t bits[4] = {9, 9, 9, 9};
  ASSERT_EQ(message(cpflex_binding_evaluate_mask(binding.get(), nullptr, 0, 0, 1, 3, 1, 3, bits, 2)), "");
  EXPECT_EQ(std::vector<uint8_t>(bits, bits + 4), (std::vector<uint8_t>{1, 0, 1, 1}));
  Error missing(cpflex_compile_file(path.c_str(), &with, &handle));
  ASSERT_TRUE(missing);
  EXPECT_NE(std::string(cpflex_error_message(missing.get())).find("outlived.cpf"), std::string::npos);
}

} // namespace
