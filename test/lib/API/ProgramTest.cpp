// Does text become a program with the right entry points, stages and block masks, and does every mistake have a
// message?
#include "lib/API/cpflex.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"

#include <gtest/gtest.h>

using namespace cpflex;

namespace {

constexpr const char *kTwoMasks = "@mask\ndef causal(b, h, q, kv):\n    return kv <= q\n"
                                  "@mask\ndef everything(b, h, q, kv):\n    return True\n";

std::shared_ptr<Program> programOf(const std::string &text) {
  CompileResult result = compileText("test.cpf", text);
  EXPECT_TRUE(result.program) << (result.diagnostics.empty() ? "" : result.diagnostics[0].message);
  return result.program;
}

TEST(Program, BlockMaskOfCausalHasTheExpectedTiles) {
  auto program = programOf("@mask\ndef causal(b, h, q, kv):\n    return kv <= q\n");
  StatusOr<const EntryPoint *> entry = program->entry("");
  ASSERT_TRUE(entry.isOk()) << entry.status().message();
  auto binding = Binding::create(*program, {.sizes = {.qLen = 1024}});
  ASSERT_TRUE(binding.isOk()) << binding.status().message();
  auto result = buildBlockMask(*program, **entry, **binding, 128, 128, 1);
  ASSERT_TRUE(result.isOk()) << result.status().message();
  EXPECT_EQ(countTiles(result->mask), (TileCounts{.empty = 28, .full = 28, .partial = 8}));
}

TEST(Program, ChangedParamsLengthsAndCapturesCompileNothing) {
  int numCompilations = 0;
  CompileOptions options;
  options.cacheDir = "";
  options.log = {.level = LogLevel::Debug, .function = [&](LogLevel, const std::string &line) {
                   numCompilations += line.starts_with("compiled ");
                 }};
  const auto program = compileText("test.cpf",
                                   "doc: tensor[i32, KV_LEN]\nW: param[int] = 64\n@mask\ndef m(b, h, q, kv):\n"
                                   "    return doc[q] == doc[kv] and 0 <= q - kv < W\n",
                                   options)
                           .program;
  ASSERT_TRUE(program);
  EXPECT_EQ(numCompilations, 1) << "text to tapes";
  std::vector<TileCounts> counts;
  auto build = [&](int64_t length, int32_t documentLength, const std::string &width, bool isRun) {
    std::vector<int32_t> documents;
    for (int64_t i = 0; i < length; ++i)
      documents.push_back(int32_t(i / documentLength));
    BindRequest request;
    request.views["doc"] = {.data = documents.data(),
                            .type = ElementType::I32,
                            .shape = {length},
                            .strides = {1},
                            .device = {},
                            .owner = nullptr};
    request.params["W"] = width;
    request.sizes = {.qLen = length};
    const auto binding = Binding::create(*program, request);
    ASSERT_TRUE(binding) << binding.status().message();
    const auto result = buildBlockMask(*program, program->entries()[0], **binding, 128, 128, 1);
    ASSERT_TRUE(result) << result.status().message();
    counts.push_back(countTiles(result->mask));
    if (isRun) {
      const auto executable = Executable::load(program, program->entries()[0], *binding, nullptr, {});
      ASSERT_TRUE(executable) << executable.status().message();
    }
  };
  build(1024, 300, "64", /*isRun=*/false);
  build(1024, 300, "900", /*isRun=*/false);
  build(2048, 300, "900", /*isRun=*/false);
  build(2048, 1000, "900", /*isRun=*/false);
  EXPECT_EQ(numCompilations, 1) << "a block mask needs no machine code";
  for (size_t i = 1; i < counts.size(); ++i)
    EXPECT_NE(counts[i], counts[i - 1]) << "the change counts";
  build(1024, 300, "64", /*isRun=*/true);
  EXPECT_EQ(numCompilations, 2) << "host code";
  build(2048, 1000, "900", /*isRun=*/true);
  EXPECT_EQ(numCompilations, 2);
}

TEST(Program, HostFunctionsEvaluateTheMask) {
  auto program = programOf("@mask\ndef causal(b, h, q, kv):\n    return kv <= q\n");
  auto binding = Binding::create(*program, {.sizes = {.qLen = 16}});
  ASSERT_TRUE(binding.isOk());
  StatusOr<HostFunctions> functions = program->hostFunctions(**program->entry(""), (*binding)->bindings());
  ASSERT_TRUE(functions.isOk()) << functions.status().message();
  uint8_t out[16 * 16];
  TileCoordinates tile{.qCount = 16, .kvCount = 16};
  functions->evaluateTile(&(*binding)->bindings(), &tile, out, 16);
  for (int q = 0; q < 16; ++q)
    for (int kv = 0; kv < 16; ++kv)
      EXPECT_EQ(out[q * 16 + kv], kv <= q);
}

TEST(Program, DeviceFunctionsAreKeptByEntryPointAndWidthOfInts) {
  auto program = programOf(std::string(kTwoMasks) + "W: param[int] = 64\n@mask\ndef window(b, h, q, kv):\n"
                                                    "    return q - kv < W\n");
  auto bindingOf = [&](const std::string &width) {
    auto binding = Binding::create(*program, {.params = {{"W", width}}, .sizes = {.qLen = 128}});
    EXPECT_TRUE(binding.isOk()) << binding.status().message();
    return *binding;
  };
  const auto narrow = bindingOf("64"), wide = bindingOf("5000000000");
  auto textOf = [&](const char *name, const Binding &binding) {
    auto functions = program->deviceFunctions(**program->entry(name), binding.bindings());
    EXPECT_TRUE(functions.isOk()) << functions.status().message();
    return functions->text;
  };
  const std::string window = textOf("window", *narrow), wideWindow = textOf("window", *wide);
  EXPECT_NE(window, wideWindow);
  EXPECT_NE(window, textOf("causal", *narrow));
  EXPECT_EQ(window, textOf("window", *narrow));
  EXPECT_EQ(wideWindow, textOf("window", *wide));
}

TEST(Program, EveryStageHasText) {
  auto program = programOf("@score\ndef cap(s, b, h, q, kv):\n    return 50.0 * tanh(s / 50.0)\n"
                           "@mask\ndef causal(b, h, q, kv):\n    return kv <= q\n"
                           "attention(\"main\", mask=causal, score=cap)\n");
  const EntryPoint &entry = **program->entry("main");
  const std::pair<Stage, const char *> expectations[] = {{Stage::Ast, "causal"},
                                                         {Stage::Mask, "mask.predicate"},
                                                         {Stage::MaskOpt, "mask.le"},
                                                         {Stage::MaskGrad, "mask.score_gradient"},
                                                         {Stage::Classifier, "mask.classifier"},
                                                         {Stage::Llvm, "llvm.func"},
                                                         {Stage::Assembly, ".text"},
                                                         {Stage::Cuda, "struct Program"}};
  for (const auto &[stage, part] : expectations) {
    StatusOr<std::string> text = program->emit(stage, entry);
    ASSERT_TRUE(text.isOk()) << text.status().message();
    EXPECT_NE(text->find(part), std::string::npos) << part << "\n" << *text;
  }
}

TEST(Program, EntryPointsAreChosenByName) {
  auto program = programOf(kTwoMasks);
  EXPECT_TRUE(program->entry("everything").isOk());
  EXPECT_EQ(program->entry("").status().message(),
            "the program has several entry points; expected the name of one of 'causal', 'everything'");
  EXPECT_EQ(program->entry("casual").status().message(),
            "there is no entry point 'casual'; expected one of 'causal', 'everything'");
}

TEST(Program, MistakesAreLocated) {
  CompileResult result = compileText("bad.cpf", "@mask\ndef f(b, h, q, kv):\n    return kv <= qq\n");
  EXPECT_FALSE(result.program);
  ASSERT_FALSE(result.diagnostics.empty());
  EXPECT_EQ(result.diagnostics[0].line, 3);
  CompileResult missing = compileFile("no-such-file.cpf");
  ASSERT_FALSE(missing.diagnostics.empty());
  EXPECT_NE(missing.diagnostics[0].message.find("cannot open"), std::string::npos);
}

TEST(Program, ConstantsSpecialise) {
  CompileResult result =
      compileText("c.cpf", "D: const[int] = 2\n@mask\ndef f(b, h, q, kv):\n    return q % D == kv % D\n",
                  {.constants = {{"D", "4"}}});
  ASSERT_TRUE(result.program);
  EXPECT_TRUE(result.program->hasConstant("D"));
  EXPECT_FALSE(result.program->hasConstant("E"));
  StatusOr<std::string> text = result.program->emit(Stage::MaskOpt, **result.program->entry(""));
  EXPECT_NE(text->find("4 : i64"), std::string::npos) << *text;
}

} // namespace
