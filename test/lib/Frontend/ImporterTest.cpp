// The importer: what programs become in the `mask` dialect.
#include "test/lib/Frontend/ProgramText.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace cpflex {
namespace {

// The module of a program that is right.
std::string moduleOf(const std::string &text, const ImportOptions &options = {}, const std::string &path = "test.cpf") {
  ImportedProgram program = importText(text, options, path);
  EXPECT_TRUE(program.isValid) << renderDiagnostics(program.diagnostics);
  return program.module;
}

// The body of a mask that returns `expression`, one operation a line without its types.
std::string bodyOf(const std::string &expression, const std::string &declarations = "",
                   const std::string &statements = "") {
  std::string module =
      moduleOf(declarations + "@mask\ndef m(b, h, q, kv):\n" + statements + "    return " + expression + "\n");
  size_t begin = module.find("-> i1 {\n");
  size_t end = module.find("\n    mask.yield", begin) + 1;
  std::string body = module.substr(begin + 8, end - begin - 8);
  return body;
}

bool contains(const std::string &text, const std::string &part) { return text.find(part) != std::string::npos; }

TEST(Importer, declaresCapturesAndParams) {
  std::string module = moduleOf("W: param[i32] = 1024\n"
                                "F: param[float] = 2\n"
                                "K: param[bool]\n"
                                "R: const[int] = 4\n"
                                "P: param[int]\n"
                                "tab: tensor[bf16, 2*R+1, H](grad=True)\n"
                                "doc: tensor[i32, B, KV_LEN](sorted, lo=0, hi=R)\n"
                                "cut: tensor[u32, P + 1, D]\n"
                                "@mask\ndef m(b, h, q, kv):\n    return True\n");
  EXPECT_TRUE(contains(module, "mask.constants = {R = 4 : i64}")) << module;
  EXPECT_TRUE(contains(module, "mask.param @W : i64 = 1024 : i64\n")) << module;
  EXPECT_TRUE(contains(module, "mask.param @F : f32 = 2.000000e+00 : f32\n")) << module;
  EXPECT_TRUE(contains(module, "mask.param @K : i1\n")) << module;
  EXPECT_TRUE(contains(module, "mask.capture @tab : bf16 [\"9\", \"H\"] {grad}")) << module;
  EXPECT_TRUE(contains(module, "mask.capture @doc : i32 [\"B\", \"KV_LEN\"] {hi = 4 : i64, lo = 0 : i64, sorted}"))
      << module;
  EXPECT_TRUE(contains(module, "mask.capture @cut : ui32 [\"P + 1\", \"D\"]")) << module;
}

TEST(Importer, followsAliasesInDimensions) {
  std::string module = moduleOf("R: const[int] = 4\n"
                                "edge, length = R + 1, N\n"
                                "columns = length\n"
                                "tab: tensor[i32, edge, columns * 2]\n"
                                "@mask\ndef m(b, h, q, kv):\n    return True\n");
  EXPECT_TRUE(contains(module, "mask.capture @tab : i32 [\"5\", \"N * 2\"]")) << module;
}

TEST(Importer, readsPartlyIndexedArrays) {
  std::string module = moduleOf("t: tensor[i32, 3, 7]\n"
                                "to: tensor[i32, KV_LEN]\n"
                                "@mask\ndef low(b, h, q, kv):\n"
                                "    return t[b].size(0) + t[b].shape[0] + t[b, :][kv] + t[:, q][b] == 14\n"
                                "attention(\"m\", mask=remap(low, kv=to[:]))\n");
  EXPECT_TRUE(contains(module, "mask.load @to")) << module;
  EXPECT_TRUE(contains(module, "14")) << module;
}

TEST(Importer, takesConstsFromOptions) {
  ImportOptions options;
  options.constants = {{"R", "7"}, {"X", "-0.5"}, {"Y", "True"}};
  std::string module = moduleOf("R: const[int]\nX: const[f32] = 1.0\nY: const[bool] = "
                                "False\n@mask\ndef m(b, h, q, kv):\n    return q < R\n",
                                options);
  EXPECT_TRUE(contains(module, "mask.constants = {R = 7 : i64, X = -5.000000e-01 : f32, Y = true}")) << module;
  EXPECT_TRUE(contains(module, "mask.constant 7 : i64")) << module;
}

TEST(Importer, rejectsConstsOfTheWrongForm) {
  for (auto [type, value, expected] :
       {std::tuple("int", "1.5", "value of 'R' is '1.5', which is not an int; expected a value of type int"),
        std::tuple("bool", "3", "value of 'R' is '3', which is not a bool; expected a value of type bool"),
        std::tuple("u32", "-1", "value of 'R' is '-1', which is not a u32; expected a value of type u32"),
        std::tuple("float", "x", "value of 'R' is 'x', which is not a float; expected a value of type float")}) {
    ImportOptions options;
    options.constants = {{"R", value}};
    ImportedProgram program =
        importText(std::string("R: const[") + type + "]\n@mask\ndef m(b, h, q, kv):\n    return True\n", options);
    EXPECT_TRUE(contains(renderDiagnostics(program.diagnostics), expected)) << renderDiagnostics(program.diagnostics);
  }
}

TEST(Importer, makesEachMaskAnEntryPointWithoutAttention) {
  std::string module = moduleOf("@mask\ndef m(b, h, q, kv):\n    return q <= kv\n@mask\ndef n(b, "
                                "h, q, kv):\n    return q > kv\nboth = m | n\n");
  for (const char *entry :
       {"mask.attention @m mask(@m.mask)", "mask.attention @n mask(@n.mask)", "mask.attention @both mask(@both.mask)"})
    EXPECT_TRUE(contains(module, entry)) << module;
}

TEST(Importer, readsAttention) {
  std::string module = moduleOf("sinks: tensor[f32, H]\n@score\ndef g(s, b, h, q, kv):\n    return "
                                "s * 2.0\n@score\ndef f(x, b, h, q, kv):\n    return x + 1.0\n"
                                "attention(\"a\", score=[g, f], sink=sinks, scale=0.5, "
                                "softmax=False)\nattention(\"all-pairs\")\n");
  EXPECT_TRUE(contains(module, "mask.attention @a score(@a.score) sink(@sinks) scale(5.000000e-01) no_softmax"))
      << module;
  EXPECT_TRUE(contains(module, "mask.attention @\"all-pairs\"")) << module;
  // Left to right: the product first, then the sum.
  EXPECT_LT(module.find("mask.mul"), module.find("mask.add")) << module;
}

TEST(Importer, typesArithmetic) {
  EXPECT_EQ(bodyOf("q / 2 < 1"), "    %0 = mask.to_float %q : i64 -> f32\n"
                                 "    %1 = mask.constant 2.000000e+00 : f32\n"
                                 "    %2 = mask.div %0, %1 : f32\n"
                                 "    %3 = mask.constant 1.000000e+00 : f32\n"
                                 "    %4 = mask.lt %2, %3 : f32\n");
  EXPECT_EQ(bodyOf("q ** 3 > -7 // 2"), "    %0 = mask.mul %q, %q : i64\n"
                                        "    %1 = mask.mul %q, %0 : i64\n"
                                        "    %2 = mask.constant -4 : i64\n"
                                        "    %3 = mask.gt %1, %2 : i64\n");
  EXPECT_EQ(bodyOf("u32(q) * 2654435761 >> 8 == 5"), "    %0 = mask.to_u32 %q : i64 -> ui32\n"
                                                     "    %1 = mask.constant 2654435761 : ui32\n"
                                                     "    %2 = mask.mul %0, %1 : ui32\n"
                                                     "    %3 = mask.constant 8 : ui32\n"
                                                     "    %4 = mask.shr %2, %3 : ui32\n"
                                                     "    %5 = mask.constant 5 : ui32\n"
                                                     "    %6 = mask.eq %4, %5 : ui32\n");
}

TEST(Importer, foldsConstantsAsTheTableOfOperationsSays) {
  EXPECT_EQ(bodyOf("q < (-7 % 3) * 100 + (7 // -2) + (1 << 70) + (-1 >> 80) + int(2.9) + ilog2(1000)"),
            "    %0 = mask.constant 206 : i64\n    %1 = mask.lt %q, %0 : i64\n");
  EXPECT_EQ(bodyOf("9223372036854775807 + 1 < 0 and q < kv"), "    %0 = mask.lt %q, %kv : i64\n");
}

TEST(Importer, readsConditionsAsSelects) {
  std::string expected = "    %0 = mask.gt %q, %kv : i64\n"
                         "    %1 = mask.constant 1 : i64\n"
                         "    %2 = mask.constant 2 : i64\n"
                         "    %3 = mask.select %0, %1, %2 : i1, i64\n"
                         "    %4 = mask.eq %3, %b : i64\n";
  EXPECT_EQ(bodyOf("x == b", "", "    if q > kv:\n        x = 1\n    else:\n        x = 2\n"), expected);
  EXPECT_EQ(bodyOf("(1 if q > kv else 2) == b"), expected);
  EXPECT_EQ(bodyOf("f(q, kv) == b", "def f(x, y):\n    if x > y:\n        return 1\n    return 2\n"), expected);
  EXPECT_EQ(bodyOf("f(q, kv) == b", "def f(x, y):\n    if x > y:\n        return 1\n    else:\n        return 2\n"),
            expected);
  EXPECT_EQ(bodyOf("torch.where(q > kv, 1, 2) == b", "import torch\n"), expected);
}

TEST(Importer, evaluatesOnlyTheArmThatAConstantChooses) {
  EXPECT_EQ(bodyOf("tab[5] == q if WIDE else q == kv", "WIDE: const[bool] = False\ntab: tensor[i32, 2]\n"),
            "    %0 = mask.eq %q, %kv : i64\n");
}

TEST(Importer, findsMembershipByReduction) {
  EXPECT_EQ(bodyOf("kv in idx[b, :]", "idx: tensor[i32, B, N]\n"),
            "    %0 = mask.dim \"N\" : i64\n"
            "    %1 = mask.reduce any %0 : i64 -> i1 {\n"
            "    ^bb0(%arg0: i64):\n"
            "      %2 = mask.load @idx[%b, %arg0] : (i64, i64) -> i64\n"
            "      %3 = mask.eq %2, %kv : i64\n"
            "      mask.yield %3 : i1\n"
            "    }\n");
  EXPECT_EQ(bodyOf("q in (1, kv)"),
            "    %0 = mask.constant 1 : i64\n    %1 = mask.eq %q, %0 : i64\n    %2 = mask.eq %q, "
            "%kv : i64\n    %3 = mask.or %1, %2 : i1\n");
  EXPECT_EQ(bodyOf("q not in range(3, kv)"),
            "    %0 = mask.constant 3 : i64\n    %1 = mask.le %0, %q : i64\n    %2 = mask.lt %q, "
            "%kv : i64\n    %3 = mask.and %1, %2 : i1\n    %4 = mask.not %3 : i1\n");
}

TEST(Importer, reducesGenerators) {
  std::string body = bodyOf("sum(i * j for i in range(2, N) for j in range(3) if i != j) > q", "tab: tensor[i32, N]\n");
  EXPECT_TRUE(contains(body, "mask.reduce sum")) << body;
  EXPECT_TRUE(contains(body, "mask.select")) << body;
}

TEST(Importer, acceptsTheNamesOfPyTorch) {
  std::string module = moduleOf("import torch\nimport math\nfrom torch import where as pick\n"
                                "doc: tensor[i32, B, KV_LEN]\n"
                                "@mask\ndef m(b, h, q, kv):\n"
                                "    x = torch.logical_and(q >= kv, doc[b][q] == doc[b, kv])\n"
                                "    y = (q - kv).abs().clamp(min=0, max=doc.shape[1]) <= doc.size(1)\n"
                                "    return torch.logical_or(x, ~y) & torch.eq(q.to(torch.int64), q.long()) & "
                                "torch.ones_like(q, dtype=torch.bool)\n"
                                "@score\ndef g(s, b, h, q, kv):\n"
                                "    t = pick(q > kv, s, -float(\"inf\")) + torch.tanh(s).float() * math.sqrt(2.0) "
                                "+ s.exp()\n"
                                "    return torch.maximum(t, torch.full_like(t, 1.0)) + torch.inf\n"
                                "attention(\"a\", mask=m, score=g)\n");
  EXPECT_TRUE(contains(module, "mask.attention @a")) << module;
}

TEST(Importer, combinesMasks) {
  std::string module = moduleOf("from cpflex.std import causal, sliding_window as window\n"
                                "WINDOW: const[int] = 512\n"
                                "off: tensor[i32, D]\n"
                                "full: tensor[bool, H]\n"
                                "def half(i):\n    return i // 2\n"
                                "attention(\"a\", mask=~(causal ^ remap(window, q=half)) & "
                                "per_head(full, causal, per_document(window, off)))\n");
  EXPECT_TRUE(contains(module, "mask.constants = {WINDOW = 512 : i64}")) << module;
  EXPECT_TRUE(contains(module, "mask.reduce max")) << module;
  EXPECT_FALSE(contains(module, "mask.param")) << module;
}

TEST(Importer, namesOperationsAfterTheUsersNames) {
  DiagnosticList diagnostics;
  ast::File file = parseFile("a.cpf",
                             "@mask\ndef m(b, head, q_idx, kv_idx):\n    distance = q_idx - "
                             "kv_idx\n    return distance > 0\n",
                             diagnostics);
  mlir::MLIRContext ctx;
  auto module = importProgram(file, ctx, {}, diagnostics);
  ASSERT_TRUE(module);
  std::string text;
  llvm::raw_string_ostream stream(text);
  mlir::OpPrintingFlags flags;
  module->print(stream, flags.enableDebugInfo(/*enable=*/true, /*prettyForm=*/true));
  EXPECT_TRUE(contains(text, "= \"distance\"(")) << text;
  EXPECT_TRUE(contains(text, "a.cpf:3:16 to :30")) << text;
  EXPECT_TRUE(contains(text, "= \"kv_idx\"(")) << text;
}

TEST(Importer, importsFilesBesideAndFromFolders) {
  std::filesystem::path folder = std::filesystem::temp_directory_path() / "cpflex-importer-test";
  std::filesystem::create_directories(folder / "include");
  std::ofstream(folder / "near.cpf")
      << "from far import limit\nfrom cpflex.std import causal\n@mask\ndef near(b, h, q, kv):\n    "
         "return q < limit(kv) and causal(b, h, q, kv)\n";
  std::ofstream(folder / "include" / "far.cpf") << "LIMIT: param[int] = 3\ndef limit(x):\n    return x + LIMIT\n";
  std::ofstream(folder / "one.cpf") << "from two import two\none = two\n";
  std::ofstream(folder / "two.cpf") << "from one import one\ntwo = one\n";
  ImportOptions options;
  options.includeDirs = {(folder / "include").string()};
  std::string main = (folder / "main.cpf").string();
  std::string module = moduleOf("from near import near as renamed\nimport far as other\n@mask\ndef m(b, h, q, "
                                "kv):\n    return other.limit(q) < 3\nattention(\"a\", mask=renamed & m)\n",
                                options, main);
  EXPECT_TRUE(contains(module, "mask.param @LIMIT : i64 = 3 : i64")) << module;
  ImportedProgram cyclic = importText("from one import one\nattention(\"a\", mask=one)\n", options, main);
  EXPECT_TRUE(contains(renderDiagnostics(cyclic.diagnostics), "'one' imports itself, directly or through other files"))
      << renderDiagnostics(cyclic.diagnostics);
  ImportedProgram missing = importText("from near import far_away\nattention(\"a\")\n", options, main);
  EXPECT_TRUE(contains(renderDiagnostics(missing.diagnostics), "'near' has no 'far_away'"))
      << renderDiagnostics(missing.diagnostics);
  std::ofstream(folder / "sizes.cpf") << "K: const[int] = 4\nedge = K + COUNT\n";
  std::string sizes = moduleOf("from sizes import edge as rim\ndoc: tensor[i32, rim]\n@mask\ndef m(b, h, q, kv):\n"
                               "    return doc[q] == 0\n",
                               options, main);
  EXPECT_TRUE(contains(sizes, "mask.capture @doc : i32 [\"4 + COUNT\"]")) << sizes;
  std::ofstream(folder / "large.cpf") << std::string(kMaxSourceBytes + 1, ' ');
  ImportedProgram large = importText("from large import x\nattention(\"a\")\n", options, main);
  EXPECT_TRUE(contains(renderDiagnostics(large.diagnostics),
                       "cannot be read; expected a readable text of at most 16777216 bytes"))
      << renderDiagnostics(large.diagnostics);
  std::string imports;
  for (int i = 0; i < 300; ++i) {
    std::ofstream(folder / ("file" + std::to_string(i) + ".cpf")) << "x = 1\n";
    imports += "from file" + std::to_string(i) + " import x as x" + std::to_string(i) + "\n";
  }
  ImportedProgram many = importText(imports + "attention(\"a\")\n", options, main);
  EXPECT_TRUE(contains(renderDiagnostics(many.diagnostics), "more than 256 files are imported"))
      << renderDiagnostics(many.diagnostics);
  std::filesystem::remove_all(folder);
}

TEST(Importer, findsMistakesInWhatNoEntryPointUses) {
  ImportedProgram program = importText("@mask\ndef m(b, h, q, kv):\n    return q + kv\n@mask\ndef n(b, h, q, kv):\n    "
                                       "return True\nattention(\"a\", mask=n)\n");
  EXPECT_TRUE(contains(renderDiagnostics(program.diagnostics), "mask 'm' gives an int"));
}

} // namespace
} // namespace cpflex
