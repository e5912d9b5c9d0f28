// The text form of diagnostics: source line, caret, notes, long lines, tabs and text beyond ASCII.
#include "test/lib/Frontend/ProgramText.h"

#include <gtest/gtest.h>

namespace cpflex {
namespace {

TEST(Diagnostics, showTheSourceTheRangeAndTheDeclaration) {
  ImportedProgram program = importText("doc: tensor[i32, KV_LEN]\n"
                                       "@mask\n"
                                       "def m(b, h, q, kv):\n"
                                       "    return q - doc[b, kv] > 0\n",
                                       {}, "pack.cpf");
  EXPECT_EQ(renderDiagnostics(program.diagnostics), "pack.cpf:4:16: error: 'doc' has 1 dimension, 2 indices given\n"
                                                    "    return q - doc[b, kv] > 0\n"
                                                    "               ^~~~~~~~~~\n"
                                                    "pack.cpf:1:1: note: declared here\n"
                                                    "doc: tensor[i32, KV_LEN]\n"
                                                    "^~~\n");
}

TEST(Diagnostics, sayWhereAHelperWasCalled) {
  ImportedProgram program = importText("def f(x):\n"
                                       "    return x + True\n"
                                       "@mask\n"
                                       "def m(b, h, q, kv):\n"
                                       "    return f(q) > 0\n");
  EXPECT_NE(renderDiagnostics(program.diagnostics).find("test.cpf:5:12: note: in 'f', called here"), std::string::npos)
      << renderDiagnostics(program.diagnostics);
}

TEST(Diagnostics, pointBelowTextWithTabsAndLongCharacters) {
  DiagnosticList diagnostics;
  auto source = std::make_shared<const SourceText>("a.cpf", "\tx = \"\xC3\xA4\" $\n");
  diagnostics.error(source, {10, 11}, "here");
  EXPECT_EQ(renderDiagnostics(diagnostics), "a.cpf:1:11: error: here\n x = \"\xC3\xA4\" $\n         ^\n");
}

TEST(Diagnostics, cutLongLinesAroundTheCaret) {
  DiagnosticList diagnostics;
  auto source = std::make_shared<const SourceText>("a.cpf", std::string(1000, 'x') + "!" + std::string(1000, 'y'));
  diagnostics.error(source, {1000, 1001}, "here");
  std::string text = renderDiagnostics(diagnostics);
  EXPECT_LT(text.size(), 400u);
  EXPECT_NE(text.find("x!y"), std::string::npos);
}

TEST(Diagnostics, showFixIts) {
  DiagnosticList diagnostics;
  auto source = std::make_shared<const SourceText>("a.cpf", "x = y\n");
  setFixIt(diagnostics.error(source, {4, 5}, "here"), source, {4, 5}, "z");
  EXPECT_EQ(renderDiagnostics(diagnostics), "a.cpf:1:5: error: here\nx = y\n    ^\n    z\n");
}

TEST(Diagnostics, mendMisspeltNames) {
  ImportedProgram program = importText("@mask\ndef m(b, h, q_idx, kv_idx):\n    return q_idx <= kv_dix\n");
  EXPECT_EQ(renderDiagnostics(program.diagnostics),
            "test.cpf:3:21: error: unknown name 'kv_dix'; did you mean 'kv_idx'?\n"
            "    return q_idx <= kv_dix\n"
            "                    ^~~~~~\n"
            "                    kv_idx\n");
}

/// The one fix-it of a mask with this body, applied to its line; empty when there is none.
std::string mended(const std::string &body) {
  ImportedProgram program = importText("from cpflex.std import causal\n"
                                       "lens: tensor[i32, N]\n"
                                       "@mask\n"
                                       "def m(b, h, q, kv):\n    " +
                                       body + "\n");
  std::string result;
  for (const Diagnostic &diagnostic : program.diagnostics.all()) {
    if (!diagnostic.fixIt || !result.empty())
      continue;
    const FixIt &fix = *diagnostic.fixIt;
    EXPECT_EQ(fix.line, fix.endLine);
    result = diagnostic.sourceLine;
    result.replace(fix.column - 1, fix.endColumn - fix.column, fix.replacement);
    result.erase(0, result.find_first_not_of(' '));
  }
  return result;
}

TEST(Diagnostics, fixWhatHasOneFix) {
  EXPECT_EQ(mended("return q >= kv & q < 5"), "return (q >= kv) & (q < 5)");
  EXPECT_EQ(mended("return kv < lens[-1]"), "return kv < lens[N - 1]");
  EXPECT_EQ(mended("return (q < 3) + q > 2"), "return int((q < 3)) + q > 2");
  EXPECT_EQ(mended("return q is kv"), "return q == kv");
  EXPECT_EQ(mended("return q is not kv"), "return q != kv");
  EXPECT_EQ(mended("return !(q < kv)"), "return not (q < kv)");
  EXPECT_EQ(mended("q < kv"), "return q < kv");
  EXPECT_EQ(mended("return kv < clmap(q, 0, 3)"), "return kv < clamp(q, 0, 3)");
  EXPECT_EQ(mended("return kv <= q && q < 5"), "return kv <= q and q < 5");
  EXPECT_EQ(mended("return kv <= q || q < 5"), "return kv <= q or q < 5");
  EXPECT_EQ(mended("return kv = q"), "return kv == q");
  EXPECT_EQ(mended("if kv = q: return True"), "if kv == q: return True");
  EXPECT_EQ(mended("if kv == q"), "if kv == q:");
  EXPECT_EQ(mended("q++"), "q += 1");
  EXPECT_EQ(mended("x: int = 3"), "x = 3");
  EXPECT_EQ(mended("return q < kv and true"), "return q < kv and True");
  // Two fixes are possible, so none is offered.
  EXPECT_EQ(mended("return u32(q) + kv == 0"), "");
}

TEST(Diagnostics, fixMisspeltKeywordsAndImports) {
  ImportedProgram program = importText("from cpflex.std import casual\nattention(\"a\", msk=casual)\n");
  const std::string text = renderDiagnostics(program.diagnostics);
  EXPECT_NE(text.find("                       ^~~~~~\n                       causal\n"), std::string::npos) << text;
  EXPECT_NE(text.find("               ^~~\n               mask\n"), std::string::npos) << text;
}

TEST(Diagnostics, fixWordsBetweenMasks) {
  ImportedProgram program = importText("from cpflex.std import causal, document, prefix_lm\n"
                                       "attention(\"a\", mask=causal and document and prefix_lm)\n"
                                       "attention(\"b\", mask=causal or document)\n"
                                       "attention(\"c\", mask=causal and not document)\n");
  const std::string text = renderDiagnostics(program.diagnostics);
  EXPECT_NE(text.find("                           ^~~\n                    causal & document & prefix_lm\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("                           ^~\n                    causal | document\n"), std::string::npos)
      << text;
  EXPECT_NE(text.find("attention(\"c\", mask=causal and not document)\n                           ^~~\n"),
            std::string::npos);
}

TEST(Diagnostics, insertMissingDecorators) {
  ImportedProgram program = importText("def m(b, h, q, kv):\n    return kv <= q\n\n\n"
                                       "def g(s, b, h, q, kv):\n    return s\n\n\n"
                                       "attention(\"a\", mask=m, score=g)\n");
  EXPECT_EQ(renderDiagnostics(program.diagnostics),
            "test.cpf:9:21: error: mask= takes a mask; this is function 'm', write '@mask' before it\n"
            "attention(\"a\", mask=m, score=g)\n                    ^\n"
            "test.cpf:1:5: note: declared here\ndef m(b, h, q, kv):\n    ^\n@mask\n"
            "test.cpf:9:30: error: score= takes a score function or a list of them; this is function 'g', write "
            "'@score' before it\n"
            "attention(\"a\", mask=m, score=g)\n                             ^\n"
            "test.cpf:5:5: note: declared here\ndef g(s, b, h, q, kv):\n    ^\n@score\n");
  EXPECT_EQ(renderDiagnostics(importText("def m(b, h, q, kv):\n    return kv <= q\n").diagnostics),
            "test.cpf:1:5: error: the file declares no mask and no attention(...); write '@mask' before 'm'\n"
            "def m(b, h, q, kv):\n    ^\n@mask\n");
}

TEST(Diagnostics, areKeptOnceAndBounded) {
  DiagnosticList diagnostics;
  auto source = std::make_shared<const SourceText>("a.cpf", std::string(200, '\n'));
  for (uint32_t round = 0; round < 2; ++round)
    for (uint32_t i = 0; i < 100; ++i)
      diagnostics.error(source, {i, i}, "here");
  EXPECT_EQ(diagnostics.all().size(), kMaxErrors);
  EXPECT_NE(renderDiagnostics(diagnostics).find("50 errors, no more are shown"), std::string::npos);
}

} // namespace
} // namespace cpflex
