// Hostile programs: each ends in a clear error, never in a crash or a long wait.
#include "test/lib/Frontend/ProgramText.h"

#include "lib/Std/StandardLibrary.h"

#include <gtest/gtest.h>

#include <random>

namespace cpflex {
namespace {

std::string repeated(const std::string &text, size_t count) {
  std::string result;
  result.reserve(text.size() * count);
  for (size_t i = 0; i < count; ++i)
    result += text;
  return result;
}

std::string maskOf(const std::string &expression) {
  return "@mask\ndef m(b, h, q, kv):\n    return " + expression + "\n";
}

void expectError(const std::string &text, const std::string &message) {
  ImportedProgram program = importText(text);
  std::string rendered = renderDiagnostics(program.diagnostics);
  EXPECT_NE(rendered.find(message), std::string::npos) << rendered.substr(0, 2000);
  EXPECT_LT(rendered.size(), 100000u);
}

TEST(HostileInput, deepNesting) {
  expectError(maskOf(repeated("(", 100000)), "more than 200 open brackets");
  expectError(maskOf(repeated("(", 190) + "q" + repeated(")", 190)), "nested more than 200 levels deep");
  expectError(maskOf(repeated("not ", 100000) + "q"), "nested more than 200 levels deep; give parts of it names");
  expectError(maskOf(repeated("-", 100000) + "q"), "nested more than 200 levels deep");
  expectError(maskOf(repeated("q ** ", 100000) + "q"), "nested more than 200 levels deep");
  expectError(maskOf(repeated("q if b else ", 100000) + "q"), "nested more than 200 levels deep");
  expectError(maskOf("q" + repeated(".a", 100000)), "nested more than 200 levels deep");
  std::string blocks = "@mask\ndef m(b, h, q, kv):\n";
  for (int level = 1; level < 150; ++level)
    blocks += std::string(level, ' ') + "if q > kv:\n";
  expectError(blocks, "more than 100 levels of indentation");
  expectError("@mask\ndef m(b, h, q, kv):\n    if q > 1:\n        return True\n" +
                  repeated("    elif q > kv:\n        return False\n", 10000),
              "nested more than 200 levels deep");
}

TEST(HostileInput, manyTerms) {
  expectError(maskOf(repeated("q + ", 1000000) + "q > 0"),
              "more than 10000 terms in one expression; put the values into an array");
  expectError(maskOf(repeated("q > 0 or ", 1000000) + "q > 0"), "more than 10000 terms in one expression");
  expectError(maskOf(repeated("q > ", 1000000) + "q"), "more than 10000 terms in one expression");
  expectError(maskOf("max(" + repeated("q, ", 1000000) + "q) > 0"), "more than 10000 terms in one expression");
  expectError(maskOf("q in (" + repeated("1, ", 1000000) + "1)"), "more than 10000 terms in one expression");
}

TEST(HostileInput, longChainsWork) {
  EXPECT_TRUE(importText(maskOf(repeated("q + ", 9000) + "q > 0")).isValid);
  EXPECT_TRUE(importText(maskOf(repeated("(q == 1) | ", 9000) + "(q == 2)")).isValid);
}

TEST(HostileInput, hugeNames) {
  expectError(std::string(1 << 20, 'a') + ": param[int] = 1\n" + maskOf("True"),
              "a name of 1048576 characters; expected at most 255");
  expectError("attention(\"" + std::string(1 << 20, 'a') + "\")\n", "the name of an entry point is made of letters");
}

TEST(HostileInput, wrongBytes) {
  expectError("@mask\n\xFF\n", "byte 0xff is not part of UTF-8; expected a text file in UTF-8");
  expectError("x = \"\xC0\xAF\"\n", "byte 0xc0 is not part of UTF-8");
  expectError("x = \xED\xA0\x80\n", "byte 0xed is not part of UTF-8");
  expectError(std::string("x = \0 1\n", 8), "unexpected character '\\x00'");
  expectError(" \t x = 1\n", "the indentation mixes tabs and spaces; expected spaces");
  expectError(std::string(kMaxSourceBytes + 1, '\n'), "expected at most 16777216");
}

TEST(HostileInput, explosiveInlining) {
  std::string text = "def f0(x):\n    return x + 1\n";
  for (int i = 1; i < 60; ++i)
    text += "def f" + std::to_string(i) + "(x):\n    return f" + std::to_string(i - 1) + "(x) + f" +
            std::to_string(i - 1) + "(x)\n";
  expectError(text + maskOf("f59(q) > 0"), "the program inlines to more than 200000 operations");
  text = "def f0(x):\n    return x + 1\n";
  for (int i = 1; i < 2000; ++i)
    text += "def f" + std::to_string(i) + "(x):\n    return f" + std::to_string(i - 1) + "(x)\n";
  expectError(text + maskOf("f1999(q) > 0"), "calls and expressions nest more than 600 levels deep");
  std::string branches = "@mask\ndef m(b, h, q, kv):\n    x = 0\n";
  for (int i = 0; i < 100; ++i)
    branches += "    if q > " + std::to_string(i) + ":\n        if kv > 3:\n            return True\n";
  expectError(branches + "    return False\n", "the program inlines to more than 200000 operations");
}

TEST(HostileInput, explosiveConstants) {
  std::string text = "X0 = 1\n";
  for (int i = 1; i < 60; ++i)
    text += "X" + std::to_string(i) + " = X" + std::to_string(i - 1) + " + X" + std::to_string(i - 1) + "\n";
  expectError(text + maskOf("q < X59"), "the program evaluates more than");
}

// Programs of the standard library with tokens removed, doubled and swapped: any outcome but a
// crash is right, and a module without errors passes the dialect's verifiers.
TEST(HostileInput, mutatedPrograms) {
  std::mt19937 random(1);
  const char *kTokens[] = {"(",     ")",    "[",      "]",    ",",     ":",     "\n",     "    ",    " if ",  " else ",
                           " for ", " in ", " not ",  "&",    "**",    "//",    ".",      "=",       "q",     "kv",
                           "B",     "0",    "-1",     "1.5",  "True",  "\"x\"", "\"\"\"", "return ", "def ",  "@mask\n",
                           "range", "any",  "tensor", "None", "torch", "#",     "\\\n",   "lambda ", "causal"};
  for (int round = 0; round < 400; ++round) {
    const EmbeddedFile &file = standardLibrary()[random() % standardLibrary().size()];
    std::string text(file.text);
    for (int edit = 0, numEdits = 1 + int(random() % 4); edit < numEdits; ++edit) {
      size_t at = random() % text.size();
      switch (random() % 3) {
      case 0: text.erase(at, 1 + random() % 8); break;
      case 1: text.insert(at, kTokens[random() % std::size(kTokens)]); break;
      default: text.insert(at, text.substr(random() % text.size(), random() % 40));
      }
    }
    ImportedProgram program = importText(text);
    EXPECT_EQ(program.isValid, !program.diagnostics.hasErrors()) << text << renderDiagnostics(program.diagnostics);
  }
}

TEST(HostileInput, manyErrors) { expectError(repeated("x = )\n", 100000), "50 errors, no more are shown"); }

} // namespace
} // namespace cpflex
