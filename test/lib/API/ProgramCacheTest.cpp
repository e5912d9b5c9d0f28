// Is a program from the cache the program that its text says, and when does it come from there? What the log says is
// the witness.
#include "lib/API/ProgramCache.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include <unistd.h>

using namespace cpflex;
namespace fs = std::filesystem;

namespace {

constexpr const char *kProgram =
    "from cpflex.std import causal\n"
    "R: const[int] = 3\nW: param[int] = 64\nF: param[float] = 0.25\nON: param[bool] = True\nU: param[u32]\n"
    "doc: tensor[i32, B, KV_LEN](sorted, lo=0, hi=100)\nbias: tensor[f32, H, 2*R+1](grad=True)\nsinks: tensor[f32, H]\n"
    "@mask\ndef near(b, h, q, kv):\n"
    "    return (doc[b, q] == doc[b, kv]) & (any(q - kv == i * W for i in range(R)) | ON)\n"
    "@score\ndef biased(s, b, h, q, kv):\n    return s * F + bias[h, clamp(q - kv, 0, R)]\n"
    "attention(\"main\", mask=near & causal, score=biased, sink=sinks, scale=0.125)\n"
    "attention(\"linear\", mask=causal, softmax=False)\nattention(\"all\")\n";

std::vector<int64_t> numbersOf(const TapeInstruction &instruction) {
  return {int64_t(instruction.operation),
          int64_t(instruction.operandType),
          int64_t(instruction.resultType),
          instruction.operands[0],
          instruction.operands[1],
          instruction.operands[2],
          instruction.operands[3],
          instruction.immediate,
          instruction.line,
          instruction.column};
}

void expectEqual(const EntryPoint &a, const EntryPoint &b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.hasMask, b.hasMask);
  EXPECT_EQ(a.hasScore, b.hasScore);
  EXPECT_EQ(a.sinkCapture, b.sinkCapture);
  EXPECT_EQ(a.scale, b.scale);
  EXPECT_EQ(a.hasSoftmax, b.hasSoftmax);
  EXPECT_EQ(a.files, b.files);
  EXPECT_EQ(a.tape.name, b.tape.name);
  EXPECT_EQ(a.tape.result, b.tape.result);
  ASSERT_EQ(a.tape.instructions.size(), b.tape.instructions.size());
  for (size_t i = 0; i < a.tape.instructions.size(); ++i)
    EXPECT_EQ(numbersOf(a.tape.instructions[i]), numbersOf(b.tape.instructions[i])) << i;
  ASSERT_EQ(a.residuals.size(), b.residuals.size());
  for (size_t i = 0; i < a.residuals.size(); ++i) {
    EXPECT_EQ(a.residuals[i].result, b.residuals[i].result);
    EXPECT_EQ(a.residuals[i].isNegated, b.residuals[i].isNegated);
    EXPECT_EQ(a.residuals[i].text, b.residuals[i].text);
    ASSERT_EQ(a.residuals[i].assumptions.size(), b.residuals[i].assumptions.size());
    for (size_t j = 0; j < a.residuals[i].assumptions.size(); ++j) {
      EXPECT_EQ(a.residuals[i].assumptions[j].instruction, b.residuals[i].assumptions[j].instruction);
      EXPECT_EQ(a.residuals[i].assumptions[j].value, b.residuals[i].assumptions[j].value);
    }
  }
}

void expectEqual(const Signature &a, const Signature &b) {
  EXPECT_EQ(a.dims, b.dims);
  ASSERT_EQ(a.captures.size(), b.captures.size());
  for (size_t i = 0; i < a.captures.size(); ++i) {
    const CaptureDeclaration &x = a.captures[i], &y = b.captures[i];
    EXPECT_TRUE(x.name == y.name && x.type == y.type && x.dims == y.dims && x.isSorted == y.isSorted &&
                x.hasLo == y.hasLo && x.hasHi == y.hasHi && x.lo == y.lo && x.hi == y.hi &&
                x.needsGradient == y.needsGradient)
        << x.name;
  }
  ASSERT_EQ(a.params.size(), b.params.size());
  for (size_t i = 0; i < a.params.size(); ++i) {
    const ParamDeclaration &x = a.params[i], &y = b.params[i];
    EXPECT_TRUE(x.name == y.name && x.type == y.type && x.defaultValue == y.defaultValue &&
                x.hasDefault == y.hasDefault)
        << x.name;
  }
}

class ProgramCacheTest : public testing::Test {
protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("programs-" + std::to_string(getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  struct Compiled {
    std::shared_ptr<Program> program;
    std::vector<Diagnostic> diagnostics;
    bool isFromCache = false;
  };
  Compiled compiled(const std::string &text, const std::map<std::string, std::string> &constants = {},
                    std::optional<std::string> cacheDir = std::nullopt) {
    CompileOptions options;
    options.constants = constants;
    options.cacheDir = cacheDir.value_or((folder_ / "cache").string());
    bool isFromCache = false;
    options.log = {.level = LogLevel::Debug, .function = [&](LogLevel, const std::string &line) {
                     isFromCache |= line.starts_with("took from the cache");
                   }};
    CompileResult result = compileText((folder_ / "main.cpf").string(), text, options);
    for (const Diagnostic &diagnostic : result.diagnostics)
      EXPECT_NE(diagnostic.severity, Severity::Error) << diagnostic.message;
    return {result.program, result.diagnostics, isFromCache};
  }
  // Compiles host code, with which the program is kept.
  static void keep(const Program &program, const CallSizes &sizes = {.qLen = 16}) {
    const auto binding = Binding::create(program, {.sizes = sizes});
    ASSERT_TRUE(binding) << binding.status().message();
    const auto functions = program.hostFunctions(program.entries()[0], (*binding)->bindings());
    ASSERT_TRUE(functions) << functions.status().message();
  }

  fs::path folder_;
  static constexpr const char *kSimple = "@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n";
};

TEST_F(ProgramCacheTest, WhatIsKeptIsWhatWasCompiled) {
  const auto program = compiled(kProgram, {}, "").program;
  ASSERT_TRUE(program);
  const ProgramSummary summary{program->signature(), program->entries(), {"R"}, "0123"};
  const ProgramCache cache((folder_ / "cache").string());
  const std::string key(64, 'a');
  ASSERT_TRUE(cache.store(key, "main.cpf", summary));
  const auto found = cache.find(key);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->constants, summary.constants);
  EXPECT_EQ(found->sourceDigest, "0123");
  expectEqual(found->signature, summary.signature);
  ASSERT_EQ(found->entries.size(), 3u);
  for (size_t i = 0; i < 3; ++i)
    expectEqual(found->entries[i], summary.entries[i]);
  EXPECT_GT(found->entries[0].residuals.size(), 1u);
}

TEST_F(ProgramCacheTest, AKnownTextIsTakenFromTheCache) {
  const Compiled first = compiled(kSimple);
  EXPECT_FALSE(first.isFromCache);
  EXPECT_FALSE(compiled(kSimple).isFromCache) << "nothing is kept before code is";
  keep(*first.program);
  const Compiled second = compiled(kSimple);
  EXPECT_TRUE(second.isFromCache);
  EXPECT_FALSE(compiled(std::string(kSimple) + "# longer\n").isFromCache);
  // What needs modules is made from the text, and is the same.
  for (Stage stage : {Stage::Ast, Stage::Mask, Stage::Classifier, Stage::Llvm, Stage::Cuda})
    EXPECT_EQ(*second.program->emit(stage, second.program->entries()[0]),
              *first.program->emit(stage, first.program->entries()[0]));
  EXPECT_EQ(ProgramCache((folder_ / "cache").string()).list().at(0).path, (folder_ / "main.cpf").string());
}

TEST_F(ProgramCacheTest, ParamsAreNotInTheKeyAndConstantsAre) {
  const std::string text = "C: const[int] = 2\nW: param[int] = 64\n@mask\ndef f(b, h, q, kv):\n"
                           "    return (q - kv < W) & (q % C == kv % C)\n";
  keep(*compiled(text).program);
  EXPECT_TRUE(compiled(text, {{"W", "7"}}).isFromCache);
  EXPECT_FALSE(compiled(text, {{"C", "3"}}).isFromCache);
  EXPECT_TRUE(compiled(text, {{"W", "7"}}).program->hasConstant("C"));
  EXPECT_FALSE(compiled(text, {{"W", "7"}}).program->hasConstant("W"));
}

TEST_F(ProgramCacheTest, ImportedFilesAreInTheKeyAndStayAsTheyWere) {
  const auto write = [&](int width) {
    std::ofstream(folder_ / "part.cpf") << "from deeper import width\ndef near(q, kv):\n    return q - kv < width()\n";
    std::ofstream(folder_ / "deeper.cpf") << "def width():\n    return " << width << "\n";
  };
  const std::string text = "from part import near\n@mask\ndef f(b, h, q, kv):\n    return near(q, kv)\n";
  write(8);
  const Compiled first = compiled(text);
  keep(*first.program);
  const Compiled second = compiled(text);
  EXPECT_TRUE(second.isFromCache);
  write(9);
  EXPECT_FALSE(compiled(text).isFromCache);
  fs::remove(folder_ / "part.cpf");
  EXPECT_EQ(*second.program->emit(Stage::Mask, second.program->entries()[0]),
            *first.program->emit(Stage::Mask, first.program->entries()[0]));
  keep(*second.program);
}

TEST_F(ProgramCacheTest, DamageIsFoundAndReplaced) {
  keep(*compiled(kSimple).program);
  const std::string key = ProgramCache((folder_ / "cache").string()).list().at(0).key;
  for (const char *damage : {"", "torn", "torn\n{}"}) {
    std::ofstream(folder_ / "cache" / key / "program.json") << damage;
    const Compiled anew = compiled(kSimple);
    EXPECT_FALSE(anew.isFromCache);
    keep(*anew.program);
    EXPECT_TRUE(compiled(kSimple).isFromCache);
  }
}

TEST_F(ProgramCacheTest, WarningsAreSaidEachTime) {
  const std::string text = std::string(kSimple) + "causal\n";
  const Compiled first = compiled(text);
  ASSERT_EQ(first.diagnostics.size(), 1u);
  keep(*first.program);
  const Compiled second = compiled(text);
  EXPECT_EQ(second.diagnostics.size(), 1u);
  EXPECT_FALSE(second.isFromCache);
}

} // namespace
