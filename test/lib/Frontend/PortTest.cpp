// The translation of FlexAttention functions, as PyTorch users write them, into programs of the
// language.
#include "lib/Frontend/Port.h"

#include <gtest/gtest.h>

namespace cpflex {
namespace {

struct Ported {
  std::string text;
  DiagnosticList diagnostics;
};

Ported port(const std::string &text, const std::string &function) {
  Ported result;
  mlir::MLIRContext ctx;
  result.text = portFunction("mods.py", text, function, ctx, result.diagnostics);
  return result;
}

TEST(Port, functionsInFactoriesTakeTheirClosures) {
  Ported ported = port("import torch\n"
                       "from torch.nn.attention.flex_attention import _mask_mod_signature, or_masks\n"
                       "\n"
                       "def generate_sliding_window(window_size: int) -> _mask_mod_signature:\n"
                       "    \"\"\"Makes a window.\"\"\"\n"
                       "    def sliding_window(b, h, q_idx, kv_idx):\n"
                       "        causal = q_idx >= kv_idx\n"
                       "        return causal & (q_idx - kv_idx <= window_size)\n"
                       "\n"
                       "    sliding_window.__name__ = f\"window_{window_size}\"\n"
                       "    return sliding_window\n",
                       "sliding_window");
  EXPECT_FALSE(ported.diagnostics.hasErrors()) << renderDiagnostics(ported.diagnostics) << ported.text;
  EXPECT_EQ(ported.text, "\"\"\"sliding_window, ported from mods.py.\"\"\"\n"
                         "\n"
                         "window_size: param[int]\n"
                         "\n"
                         "\n"
                         "@mask\n"
                         "def sliding_window(b, h, q_idx, kv_idx):\n"
                         "    causal = q_idx >= kv_idx\n"
                         "    return causal & (q_idx - kv_idx <= window_size)\n"
                         "\n"
                         "\n"
                         "attention(\"sliding_window\", mask=sliding_window)\n");
  EXPECT_NE(renderDiagnostics(ported.diagnostics)
                .find("'window_size' is taken for an int argument without a default; check its "
                      "declaration"),
            std::string::npos);
}

TEST(Port, arraysHelpersAndConstantsComeAlong) {
  Ported ported = port("import torch\n"
                       "import os\n"
                       "CAP = 30.0\n"
                       "class Layer(torch.nn.Module):\n"
                       "    def forward(self, x):\n"
                       "        return x\n"
                       "def distance(q, kv):\n"
                       "    return (q - kv).abs()\n"
                       "def make(H, bias, document_id, keep):\n"
                       "    half = H // 2\n"
                       "    def score_mod(score, b, h, q_idx, kv_idx):\n"
                       "        score = CAP * torch.tanh(score / CAP) + bias[b, h][q_idx]\n"
                       "        same = document_id[q_idx] == document_id[kv_idx]\n"
                       "        return torch.where(same | (h < half) & keep[kv_idx], score - "
                       "distance(q_idx, kv_idx), -float('inf'))\n"
                       "    return score_mod\n",
                       "score_mod");
  EXPECT_FALSE(ported.diagnostics.hasErrors()) << renderDiagnostics(ported.diagnostics) << ported.text;
  for (const char *expected :
       {"import torch\n", "CAP: param[float] = 30.0\n", "bias: tensor[f32, B, H, Q_LEN]\n", "H_: param[int]\n",
        "half = H_ // 2\n", "document_id: tensor[i32, KV_LEN]\n", "keep: tensor[bool, KV_LEN]\n",
        "def distance(q, kv):\n", "@score\ndef score_mod(score, b, h, q_idx, kv_idx):\n"})
    EXPECT_NE(ported.text.find(expected), std::string::npos) << expected << "\n" << ported.text;
  EXPECT_NE(renderDiagnostics(ported.diagnostics)
                .find("'bias' is taken for an array of f32 of 3 dimensions; check its declaration"),
            std::string::npos);
}

TEST(Port, saysWhatCannotBeExpressed) {
  Ported ported = port("import torch\ndef f(score, b, h, q, kv):\n    return score - torch.cumsum(score, -1)\n", "f");
  EXPECT_NE(renderDiagnostics(ported.diagnostics).find("mods.py:3:26: error: 'cumsum' is a scan along the keys"),
            std::string::npos)
      << renderDiagnostics(ported.diagnostics) << ported.text;
}

TEST(Port, namesMeanWhatTheyMeanAroundTheFunction) {
  // Another factory's function has the name of what the first one takes.
  Ported ported = port("def document(mask_mod, document_id):\n"
                       "    def inner(b, h, q, kv):\n"
                       "        return (document_id[q] == document_id[kv]) & mask_mod(b, h, q, kv)\n"
                       "    return inner\n"
                       "def other(n):\n"
                       "    def mask_mod(b, h, q, kv):\n"
                       "        return kv < n\n"
                       "    return mask_mod\n",
                       "document");
  EXPECT_FALSE(ported.diagnostics.hasErrors()) << renderDiagnostics(ported.diagnostics) << ported.text;
  EXPECT_NE(ported.text.find("mask_mod = causal\n"), std::string::npos) << ported.text;
  EXPECT_EQ(ported.text.find("kv < n"), std::string::npos) << ported.text;
  EXPECT_NE(renderDiagnostics(ported.diagnostics)
                .find("mods.py:3:54: warning: 'mask_mod' is a mask that is chosen elsewhere; 'causal' stands for it"),
            std::string::npos)
      << renderDiagnostics(ported.diagnostics);
}

TEST(Port, whatIsNoFunctionIsAnError) {
  const std::string file = "from functools import partial\n"
                           "causal = load(3)\n"
                           "def f(a, b):\n    return a\n"
                           "g = partial(f, 1)\n"
                           "m = and_masks(causal, make(3))\n"
                           "def s(score, b, h, q, kv):\n    return bend(score)\n"
                           "def outer(bend):\n"
                           "    def s2(score, b, h, q, kv):\n        return bend(score)\n"
                           "    return s2\n";
  const auto messages = [&](const char *function) { return renderDiagnostics(port(file, function).diagnostics); };
  EXPECT_NE(messages("causal").find("mods.py:2:10: error: 'causal' is bound to something that is no function"),
            std::string::npos);
  EXPECT_NE(messages("g").find("mods.py:5:5: error: 1 parameters of 'f' are left; a mask has 4, a score function 5"),
            std::string::npos);
  EXPECT_NE(messages("m").find("mods.py:6:15: error: 'causal' is no function of this file; port what it comes from"),
            std::string::npos)
      << messages("m");
  EXPECT_NE(
      messages("s2").find("mods.py:11:16: error: 'bend' is a function that is chosen elsewhere; write its call out"),
      std::string::npos)
      << messages("s2");
}

TEST(Port, combinationsMayShareParts) {
  std::string file = "def a0(b, h, q, kv):\n    return q > kv\n";
  for (int i = 0; i < 4; ++i)
    file += "a" + std::to_string(i + 1) + " = or_masks(a" + std::to_string(i) + ", a" + std::to_string(i) + ")\n";
  const Ported ported = port(file, "a4");
  EXPECT_FALSE(ported.diagnostics.hasErrors()) << renderDiagnostics(ported.diagnostics) << ported.text;
  EXPECT_NE(
      ported.text.find("a1 = or_masks(a0, a0)\na2 = or_masks(a1, a1)\na3 = or_masks(a2, a2)\na4 = or_masks(a3, a3)\n"),
      std::string::npos)
      << ported.text;
}

TEST(Port, combinationsOfThemselvesAreErrors) {
  const std::string file = "def b(b, h, q, kv):\n    return q > kv\n"
                           "a = and_masks(a, b)\n"
                           "c = or_masks(d, b)\nd = or_masks(b, c)\n";
  for (auto [function, expected] :
       {std::pair("a", "mods.py:3:15: error: 'a' combines itself; give the combination a name of its own"),
        {"c", "mods.py:5:17: error: 'c' combines itself"}})
    EXPECT_NE(renderDiagnostics(port(file, function).diagnostics).find(expected), std::string::npos)
        << renderDiagnostics(port(file, function).diagnostics);
}

TEST(Port, wrongFunctionsAreErrors) {
  EXPECT_NE(renderDiagnostics(port("x = 1\n", "f").diagnostics).find("'mods.py' has no function 'f' outside classes"),
            std::string::npos);
  EXPECT_NE(renderDiagnostics(port("def f(x):\n    return x\n", "f").diagnostics)
                .find("mods.py:1:5: error: 'f' has 1 parameters; a mask has 4"),
            std::string::npos);
}

} // namespace
} // namespace cpflex
