// In which slot generated code finds each capture, param and dimension of a program.
#include "lib/Analysis/ProgramSignature.h"

#include "dialect/Mask/MaskDialect.h"

#include "llvm/ADT/StringExtras.h"

using namespace mlir;

namespace cpflex {
namespace {

CaptureDeclaration declarationOf(mask::CaptureOp op) {
  CaptureDeclaration declaration;
  declaration.name = op.getSymName().str();
  declaration.type = mask::toElementType(op.getElementType());
  for (auto dim : op.getDims().getAsValueRange<StringAttr>())
    declaration.dims.push_back(dim.str());
  declaration.isSorted = op->hasAttr("sorted");
  declaration.needsGradient = op->hasAttr("grad");
  if (auto lo = op->getAttrOfType<IntegerAttr>("lo")) {
    declaration.hasLo = true;
    declaration.lo = lo.getInt();
  }
  if (auto hi = op->getAttrOfType<IntegerAttr>("hi")) {
    declaration.hasHi = true;
    declaration.hi = hi.getInt();
  }
  return declaration;
}

ParamDeclaration declarationOf(mask::ParamOp op) {
  ParamDeclaration declaration;
  declaration.name = op.getSymName().str();
  declaration.type = mask::toValueType(op.getType());
  if (auto value = op.getDefaultValueAttr()) {
    declaration.hasDefault = true;
    declaration.defaultValue = mask::toScalarSlot(value);
  }
  return declaration;
}

/// Whether an axis as written is one name, not a literal or an expression.
bool isName(StringRef text) {
  return !text.empty() && !llvm::isDigit(text.front()) &&
         llvm::all_of(text, [](char c) { return llvm::isAlnum(c) || c == '_' || static_cast<signed char>(c) < 0; });
}

template <typename Declaration> int slotOf(const std::vector<Declaration> &declarations, StringRef name) {
  for (auto [index, declaration] : llvm::enumerate(declarations))
    if (declaration.name == name)
      return static_cast<int>(index);
  return -1;
}

} // namespace

Signature signatureOf(ModuleOp module) {
  Signature signature;
  signature.dims = {"B", "H", "HKV", "Q_LEN", "KV_LEN"};
  static_assert(kDimKVLen + 1 == kNumBuiltinDims && kDimB == 0);
  for (mlir::Operation &op : module.getBody()->getOperations()) {
    if (auto capture = llvm::dyn_cast<mask::CaptureOp>(op))
      signature.captures.push_back(declarationOf(capture));
    else if (auto param = llvm::dyn_cast<mask::ParamOp>(op))
      signature.params.push_back(declarationOf(param));
  }
  auto addDim = [&](StringRef name) {
    if (dimSlot(signature, name) < 0)
      signature.dims.push_back(name.str());
  };
  for (const CaptureDeclaration &capture : signature.captures)
    for (const std::string &dim : capture.dims)
      if (isName(dim) && paramSlot(signature, dim) < 0)
        addDim(dim);
  module.walk([&](mask::DimOp op) { addDim(op.getName()); });
  return signature;
}

int captureSlot(const Signature &signature, StringRef name) { return slotOf(signature.captures, name); }
int paramSlot(const Signature &signature, StringRef name) { return slotOf(signature.params, name); }

int dimSlot(const Signature &signature, StringRef name) {
  for (auto [index, dim] : llvm::enumerate(signature.dims))
    if (dim == name)
      return static_cast<int>(index);
  return -1;
}

} // namespace cpflex
