// Functors as lib/CodeGen/Cuda prints them, written by hand for tests of assembly and compilation.
#pragma once

#include "runtime/contract/DeviceFunctions.h"

#include <string>

namespace cpflex::test {

/// A functor from the captures and params of Captures, the body of mask() (empty: no mask) and the bodies of score()
/// and scoreGradient().
inline DeviceFunctions functor(const std::string &captures, const std::string &params, const std::string &maskBody,
                               ScoreForm form = ScoreForm::Identity, const std::string &scoreBody = "return s;",
                               const std::string &gradientBody = "return gradient;") {
  static constexpr const char *kForms[] = {"Identity", "Additive", "Scaled", "General"};
  DeviceFunctions functions;
  functions.hasMask = !maskBody.empty();
  functions.scoreForm = form;
  functions.text =
      "struct Program {\n  struct Params {\n" + params + "  };\n  struct Captures {\n" + captures +
      (params.empty() ? "" : "    const Params *params;\n") +
      "    long long B, H, HKV, Q_LEN, KV_LEN;\n  };\n"
      "  static constexpr bool kHasMask = " +
      (functions.hasMask ? "true" : "false") + ";\n" +
      "  static constexpr cpflex::ScoreForm kScoreForm = cpflex::ScoreForm::" + kForms[int(form)] + ";\n" +
      "  static __device__ __forceinline__ bool mask(const Captures &c, int b, int h, int q, int kv) {\n    " +
      (functions.hasMask ? maskBody : "return true;") + "\n  }\n" +
      "  static __device__ __forceinline__ float score(const Captures &c, float s, int b, int h, int q, int kv) {\n   "
      " " +
      scoreBody + "\n  }\n" +
      "  static __device__ __forceinline__ float scoreGradient(const Captures &c, float s, float gradient, int b, "
      "int h, int q, int kv) {\n    " +
      gradientBody + "\n  }\n};\n";
  return functions;
}

inline DeviceFunctions noFunctor() { return functor("", "", ""); }

inline DeviceFunctions causal() { return functor("", "", "return kv <= q;"); }

/// Document ids [B, KV_LEN] of type i32, and causal.
inline DeviceFunctions documentCausal() {
  return functor("    cpflex::CaptureArgument doc;\n", "",
                 "const int *ids = (const int *)c.doc.data + b * c.doc.strides[0];\n"
                 "    return kv <= q && ids[q * c.doc.strides[1]] == ids[kv * c.doc.strides[1]];");
}

/// cap * tanh(s / cap), causal.
inline DeviceFunctions softCap() {
  return functor(
      "", "    long long cap;\n", "return kv <= q;", ScoreForm::General,
      "float cap = __int_as_float((int)c.params->cap);\n    return cpflex::ops::mul(cap, "
      "cpflex::ops::tanh(cpflex::ops::div(s, cap)));",
      "float cap = __int_as_float((int)c.params->cap);\n    float t = cpflex::ops::tanh(cpflex::ops::div(s, cap));\n"
      "    return gradient * (1.0f - t * t);");
}

/// s * f(h), no mask: the scaled form.
inline DeviceFunctions temperature() {
  return functor("    cpflex::CaptureArgument factor;\n", "", "", ScoreForm::Scaled,
                 "return s * ((const float *)c.factor.data)[h];",
                 "return gradient * ((const float *)c.factor.data)[h];");
}

/// Something as large as the catalogue's largest: a 2-D bias with clipped relative positions, ALiBi, a soft cap, and a
/// mask of documents, a window, sinks and a dilated tail.
inline DeviceFunctions large() {
  return functor(
      "    cpflex::CaptureArgument doc, bias, slope;\n", "    long long W, sinks, cap;\n",
      "namespace ops = cpflex::ops;\n"
      "    const int *ids = (const int *)c.doc.data + b * c.doc.strides[0];\n"
      "    bool same = ids[q * c.doc.strides[1]] == ids[kv * c.doc.strides[1]];\n"
      "    bool window = ops::sub(ops::Int(q), ops::Int(kv)) < c.params->W;\n"
      "    bool sink = kv < c.params->sinks;\n"
      "    bool dilated = ops::mod(ops::sub(ops::Int(q), ops::Int(kv)), ops::max(ops::Int(1), c.params->W)) == 0;\n"
      "    return kv <= q && same && (window || sink || dilated);",
      ScoreForm::General,
      "namespace ops = cpflex::ops;\n"
      "    float cap = __int_as_float((int)c.params->cap);\n"
      "    ops::Int distance = ops::min(ops::max(ops::sub(ops::Int(q), ops::Int(kv)), "
      "ops::neg(ops::Int(31))), ops::Int(31));\n"
      "    float bias = ((const float *)c.bias.data)[h * c.bias.strides[0] + distance + 31];\n"
      "    float slope = ((const float *)c.slope.data)[h * c.slope.strides[0]];\n"
      "    float shifted = ops::add(ops::add(s, bias), ops::mul(slope, ops::toFloat(ops::sub(ops::Int(kv), "
      "ops::Int(q)))));\n"
      "    return ops::mul(cap, ops::tanh(ops::div(shifted, cap)));",
      "namespace ops = cpflex::ops;\n"
      "    float cap = __int_as_float((int)c.params->cap);\n"
      "    ops::Int distance = ops::min(ops::max(ops::sub(ops::Int(q), ops::Int(kv)), "
      "ops::neg(ops::Int(31))), ops::Int(31));\n"
      "    float bias = ((const float *)c.bias.data)[h * c.bias.strides[0] + distance + 31];\n"
      "    float slope = ((const float *)c.slope.data)[h * c.slope.strides[0]];\n"
      "    float shifted = ops::add(ops::add(s, bias), ops::mul(slope, ops::toFloat(ops::sub(ops::Int(kv), "
      "ops::Int(q)))));\n"
      "    float t = ops::tanh(ops::div(shifted, cap));\n"
      "    return gradient * (1.0f - t * t);");
}

} // namespace cpflex::test
