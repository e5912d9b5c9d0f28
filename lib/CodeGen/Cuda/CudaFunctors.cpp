// The frame of `struct Program`: its captures in slot order and its functions.
#include "lib/CodeGen/Cuda/CudaFunctors.h"

#include "lib/Analysis/ProgramSignature.h"
#include "lib/Analysis/ScoreForm.h"
#include "lib/CodeGen/Cuda/FunctionPrinter.h"

#include "llvm/ADT/StringExtras.h"

#include <fmt/format.h>

using namespace mlir;

namespace cpflex {
namespace {

/// A comment's text must stay on its line.
std::string commentText(llvm::StringRef text) {
  std::string result;
  for (char c : text)
    result += llvm::isPrint(c) && c != '\\' ? c : '?';
  return result;
}

std::string printCaptures(const Signature &signature, CaptureMembers &members) {
  CudaNames names;
  std::string text = "  struct Captures {\n";
  for (const CaptureDeclaration &capture : signature.captures) {
    std::string dims;
    for (const std::string &dim : capture.dims)
      dims += (dims.empty() ? "" : ", ") + dim;
    std::string name = members.captures[capture.name] = names.unique(capture.name);
    text += fmt::format("    cpflex::CaptureArgument {}; // {} [{}]\n", name, toString(capture.type), commentText(dims));
  }
  for (const ParamDeclaration &param : signature.params) {
    std::string name = members.params[param.name] = names.unique(param.name);
    text += fmt::format("    long long {}; // param\n", name);
  }
  std::string dims;
  for (const std::string &dim : signature.dims)
    dims += (dims.empty() ? "" : ", ") + (members.dims[dim] = names.unique(dim));
  if (!dims.empty())
    text += fmt::format("    long long {}; // dimensions\n", dims);
  return text + "  };\n";
}

llvm::StringRef scoreFormName(ScoreForm form) {
  switch (form) {
  case ScoreForm::Identity: return "Identity";
  case ScoreForm::Additive: return "Additive";
  case ScoreForm::Scaled: return "Scaled";
  case ScoreForm::General: return "General";
  }
  return "";
}

/// Prints one member function. `leading` names the float arguments before the coordinates, in the order of C++;
/// `leadingIndex` says which argument of the body each is.
void printFunction(llvm::StringRef head, Block &body, llvm::ArrayRef<llvm::StringRef> leading,
                            llvm::ArrayRef<int> leadingIndex, FunctionPrinter &printer, std::string &text) {
  text += fmt::format("  static __device__ __forceinline__ {}(const Captures &captures", head.str());
  for (auto [name, index] : llvm::zip_equal(leading, leadingIndex))
    text += ", float " + printer.nameArgument(body.getArgument(index), name);
  static constexpr llvm::StringLiteral kCoordinates[] = {"b", "h", "q", "kv"};
  for (auto [position, name] : llvm::enumerate(kCoordinates))
    text += ", int " + printer.nameArgument(body.getArgument(leading.size() + position), name);
  text += ") {\n";
  printer.printBody(body, text);
  text += "  }\n";
}

} // namespace

FailureOr<DeviceFunctions> emitCudaFunctors(ModuleOp module, llvm::StringRef entry, const CudaOptions &options) {
  auto symbol = [&](llvm::StringRef name) { return StringAttr::get(module.getContext(), name); };
  auto attention = SymbolTable::lookupNearestSymbolFrom<mask::AttentionOp>(module, symbol(entry));
  if (!attention)
    return module.emitError() << "no entry point is named '" << entry << "'";
  Signature signature = signatureOf(module);
  CaptureMembers members;
  DeviceFunctions result;
  result.numCaptures = signature.captures.size();
  result.numParams = signature.params.size();
  result.numDims = signature.dims.size();

  mask::PredicateOp predicate;
  mask::ScoreOp score;
  if (attention.getMask()) {
    predicate = SymbolTable::lookupNearestSymbolFrom<mask::PredicateOp>(module, symbol(*attention.getMask()));
    assert(predicate && "the verifier of mask.attention checks its symbols");
    result.hasMask = true;
  }
  if (attention.getScore()) {
    score = SymbolTable::lookupNearestSymbolFrom<mask::ScoreOp>(module, symbol(*attention.getScore()));
    assert(score && "the verifier of mask.attention checks its symbols");
    result.scoreForm = scoreFormOf(score);
  }

  std::string &text = result.text;
  text = "namespace ops = cpflex::ops;\n\nstruct Program {\n" + printCaptures(signature, members);
  text += fmt::format("  static constexpr bool kHasMask = {};\n", result.hasMask);
  text += fmt::format("  static constexpr cpflex::ScoreForm kScoreForm = cpflex::ScoreForm::{};\n\n",
                      scoreFormName(result.scoreForm).str());
  if (predicate) {
    FunctionPrinter printer(signature, members, CudaArithmetic::Exact);
    printFunction("bool mask", predicate.getBody().front(), {}, {}, printer, text);
  } else {
    text += "  static __device__ __forceinline__ bool mask(const Captures &, int, int, int, int) { return true; }\n";
  }
  if (score) {
    FunctionPrinter printer(signature, members, CudaArithmetic::Contract);
    printFunction("float score", score.getBody().front(), {"s"}, {0}, printer, text);
  } else {
    text += "  static __device__ __forceinline__ float score(const Captures &, float s, int, int, int, int) { return s; "
            "}\n";
  }
  bool passesGradient = result.scoreForm == ScoreForm::Identity || result.scoreForm == ScoreForm::Additive;
  if (passesGradient) {
    text += "  static __device__ __forceinline__ float scoreGradient(const Captures &, float, float gradient, int, int, "
            "int, int) {\n    return gradient;\n  }\n";
  } else if (options.functions == CudaFunctionSet::ForwardAndBackward) {
    std::string name = (*attention.getScore() + ".gradient").str();
    if (auto gradient = SymbolTable::lookupNearestSymbolFrom<mask::ScoreGradientOp>(module, symbol(name))) {
      FunctionPrinter printer(signature, members, CudaArithmetic::Contract);
      printFunction("float scoreGradient", gradient.getBody().front(), {"s", "gradient"}, {1, 0}, printer, text);
    }
  }
  text += "};\n";
  return result;
}

} // namespace cpflex
