// The frame of `struct Program`: its captures in slot order and its functions.
#include "lib/CodeGen/Cuda/CudaFunctors.h"

#include "lib/Analysis/CoordinateDependence.h"
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
  CudaNames names, paramNames;
  std::string text;
  if (!signature.params.empty()) {
    text += "  struct Params {\n";
    for (const ParamDeclaration &param : signature.params) {
      std::string name = paramNames.unique(param.name);
      members.params[param.name] = "params->" + name;
      text += fmt::format("    long long {};\n", name);
    }
    text += "  };\n";
    (void)names.unique("params");
  }
  text += "  struct Captures {\n";
  for (const CaptureDeclaration &capture : signature.captures) {
    std::string dims;
    for (const std::string &dim : capture.dims)
      dims += (dims.empty() ? "" : ", ") + dim;
    std::string name = members.captures[capture.name] = names.unique(capture.name);
    text +=
        fmt::format("    cpflex::CaptureArgument {}; // {} [{}]\n", name, toString(capture.type), commentText(dims));
  }
  if (!signature.params.empty())
    text += "    const Params *params;\n";
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

/// Prints a member function from `head`, which ends within the parameters, up to its last coordinate. `leading` names
/// the float arguments before the coordinates, in the order of C++; `leadingIndex` says which argument of the body each
/// is.
void printFunctionHead(llvm::StringRef head, Block &body, llvm::ArrayRef<llvm::StringRef> leading,
                       llvm::ArrayRef<int> leadingIndex, FunctionPrinter &printer, std::string &text) {
  text += fmt::format("  static __device__ __forceinline__ {}const Captures &captures", head.str());
  for (auto [name, index] : llvm::zip_equal(leading, leadingIndex))
    text += ", float " + printer.nameArgument(body.getArgument(index), name);
  static constexpr llvm::StringLiteral kCoordinates[] = {"b", "h", "q", "kv"};
  for (auto [position, name] : llvm::enumerate(kCoordinates))
    text += ", int " + printer.nameArgument(body.getArgument(leading.size() + position), name);
}

/// Prints one member function that returns what the body yields.
void printFunction(llvm::StringRef head, Block &body, llvm::ArrayRef<llvm::StringRef> leading,
                   llvm::ArrayRef<int> leadingIndex, FunctionPrinter &printer, std::string &text) {
  printFunctionHead(head, body, leading, leadingIndex, printer, text);
  text += ") {\n";
  printer.printBody(body, text);
  text += "  }\n";
}

/// Whether an index is the coordinate itself, so that other coordinates give other elements.
bool isCoordinate(mlir::Value index, BlockArgument coordinate) {
  while (auto conversion = index.getDefiningOp<mask::ToIntOp>())
    index = conversion.getOperand();
  return index == coordinate;
}

llvm::StringRef walkOf(mask::ScatterAddOp scatter, Block &body, const CoordinateDependence &dependence,
                       bool isOnlyScatter) {
  BlockArgument q = body.getArgument(4), kv = body.getArgument(5);
  CoordinateSet set;
  for (mlir::Value index : scatter.getIndices())
    set = set | dependence.of(index);
  auto hasCoordinate = [&](BlockArgument coordinate) {
    return llvm::any_of(scatter.getIndices(), [&](mlir::Value index) { return isCoordinate(index, coordinate); });
  };
  bool isStraight = scatter->getBlock() == &body;
  if (isStraight && isOnlyScatter && hasCoordinate(q) && hasCoordinate(kv))
    return "Dense";
  if (!isStraight || set.q || set.score)
    return "Rows";
  return set.kv ? "Columns" : "Constant";
}

/// Prints one scatter() for each scatter of `gradient`, and what the kernel must know of them.
void printScatters(mask::ScoreGradientOp gradient, const Signature &signature, const CaptureMembers &members,
                   DeviceFunctions &result) {
  Block &body = gradient.getBody().front();
  llvm::SmallVector<mask::ScatterAddOp> scatters;
  std::vector<int> counts(signature.captures.size(), 0);
  body.walk([&](mask::ScatterAddOp scatter) {
    scatters.push_back(scatter);
    ++counts[captureSlot(signature, scatter.getCapture())];
  });
  if (scatters.empty())
    return;
  CoordinateDependence dependence(llvm::cast<FunctionOpInterface>(gradient.getOperation()));
  std::string walks, targets, functions;
  for (auto [number, scatter] : llvm::enumerate(scatters)) {
    int slot = captureSlot(signature, scatter.getCapture());
    llvm::StringRef walk = walkOf(scatter, body, dependence, counts[slot] == 1);
    auto target = llvm::find_if(result.gradients, [&](const DeviceGradient &known) { return known.capture == slot; });
    size_t targetIndex = target - result.gradients.begin();
    if (target == result.gradients.end())
      result.gradients.push_back({.capture = slot, .isDense = walk == "Dense"});
    walks += fmt::format("{}cpflex::ScatterWalk::{}", number == 0 ? "" : ", ", walk.str());
    targets += fmt::format("{}{}", number == 0 ? "" : ", ", targetIndex);
    FunctionPrinter printer(signature, members, CudaArithmetic::Contract);
    functions += "  template <class Add>\n";
    printFunctionHead(fmt::format("void scatter(cpflex::ScatterNumber<{}>, ", number), body, {"s", "gradient"}, {1, 0},
                      printer, functions);
    functions += ", const Add &add) {\n";
    printer.printScatter(scatter, body, functions);
    functions += "  }\n";
  }
  result.text += fmt::format("  static constexpr int kNumScatters = {};\n"
                             "  static constexpr cpflex::ScatterWalk scatterWalk(int scatter) {{\n"
                             "    constexpr cpflex::ScatterWalk kWalks[] = {{{}}};\n    return kWalks[scatter];\n  }}\n"
                             "  static constexpr int scatterTarget(int scatter) {{\n"
                             "    constexpr int kTargets[] = {{{}}};\n    return kTargets[scatter];\n  }}\n{}",
                             scatters.size(), walks, targets, functions);
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
  for (const CaptureDeclaration &capture : signature.captures)
    result.captureNames.push_back(capture.name);

  mask::PredicateOp predicate;
  mask::ScoreOp score;
  if (attention.getMask()) {
    predicate = SymbolTable::lookupNearestSymbolFrom<mask::PredicateOp>(module, symbol(*attention.getMask()));
    assert(predicate && "the verifier of mask.attention checks its symbols");
    result.hasMask = true;
    Block &body = predicate.getBody().front();
    result.maskReadsBatch = !body.getArgument(0).use_empty();
    result.maskReadsHead = !body.getArgument(1).use_empty();
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
    printFunction("bool mask(", predicate.getBody().front(), {}, {}, printer, text);
  } else {
    text += "  static __device__ __forceinline__ bool mask(const Captures &, int, int, int, int) { return true; }\n";
  }
  if (score) {
    FunctionPrinter printer(signature, members, CudaArithmetic::Contract);
    printFunction("float score(", score.getBody().front(), {"s"}, {0}, printer, text);
  } else {
    text +=
        "  static __device__ __forceinline__ float score(const Captures &, float s, int, int, int, int) { return s; "
        "}\n";
  }
  bool passesGradient = result.scoreForm == ScoreForm::Identity || result.scoreForm == ScoreForm::Additive;
  mask::ScoreGradientOp gradient;
  if (attention.getScore() && options.functions == CudaFunctionSet::ForwardAndBackward)
    gradient = SymbolTable::lookupNearestSymbolFrom<mask::ScoreGradientOp>(
        module, symbol((*attention.getScore() + ".gradient").str()));
  if (passesGradient) {
    text +=
        "  static __device__ __forceinline__ float scoreGradient(const Captures &, float, float gradient, int, int, "
        "int, int) {\n    return gradient;\n  }\n";
  } else if (gradient) {
    FunctionPrinter printer(signature, members, CudaArithmetic::Contract);
    printFunction("float scoreGradient(", gradient.getBody().front(), {"s", "gradient"}, {1, 0}, printer, text);
  }
  if (gradient)
    printScatters(gradient, signature, members, result);
  text += "};\n";
  return result;
}

} // namespace cpflex
