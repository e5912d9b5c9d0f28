// Interval rules as LLVM instructions: an int is its lowest and its highest value, a bool whether it can be true and
// whether it can be false.
#include "bench/block_mask/ClassifierCode.h"

#include "dialect/Mask/MaskDialect.h"
#include "lib/Jit/OptimizeModule.h"
#include "lib/Transforms/Passes.h"

#include "mlir/Pass/PassManager.h"
#include "llvm/ExecutionEngine/Orc/LLJIT.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/Support/TargetSelect.h"

#include <cstddef>
#include <optional>

namespace cpflex::bench {

namespace {

constexpr const char *kFunctionName = "classify";

/// lo and hi of an int; canBeTrue and canBeFalse of a bool.
struct Abstract {
  llvm::Value *first = nullptr, *second = nullptr;
};

class ClassifierEmitter {
public:
  explicit ClassifierEmitter(llvm::Module &module) : module_(module), builder_(module.getContext()) {}

  bool emit(mask::ClassifierOp classifier) {
    llvm::Type *pointer = builder_.getPtrTy();
    auto *type = llvm::FunctionType::get(builder_.getInt8Ty(), {pointer, pointer, builder_.getInt64Ty()}, false);
    function_ = llvm::Function::Create(type, llvm::Function::ExternalLinkage, kFunctionName, module_);
    builder_.SetInsertPoint(llvm::BasicBlock::Create(module_.getContext(), "", function_));
    mlir::Block &body = classifier.getBody().front();
    auto bound = [&](size_t offset) {
      return builder_.CreateLoad(builder_.getInt64Ty(),
                                 builder_.CreatePtrAdd(function_->getArg(0), builder_.getInt64(offset)));
    };
    const Abstract zero = {builder_.getInt64(0), builder_.getInt64(0)};
    values_[body.getArgument(0)] = values_[body.getArgument(1)] = zero;
    values_[body.getArgument(2)] = {bound(offsetof(PositionBounds, qLo)), bound(offsetof(PositionBounds, qHi))};
    values_[body.getArgument(3)] = {bound(offsetof(PositionBounds, kvLo)), bound(offsetof(PositionBounds, kvHi))};
    for (mlir::Operation &op : body.without_terminator()) {
      const std::optional<Abstract> value = emitOperation(op);
      if (!value)
        return false;
      values_[op.getResult(0)] = *value;
    }
    const Abstract result = values_.lookup(body.getTerminator()->getOperand(0));
    llvm::Value *isDecided = builder_.CreateSelect(result.second, builder_.getInt8(2), builder_.getInt8(1));
    builder_.CreateRet(builder_.CreateSelect(result.first, isDecided, builder_.getInt8(0)));
    return true;
  }

private:
  std::optional<Abstract> emitOperation(mlir::Operation &op) {
    auto operand = [&](int index) { return values_.lookup(op.getOperand(index)); };
    if (auto constant = llvm::dyn_cast<mask::ConstantOp>(op)) {
      llvm::Value *value = builder_.getInt64(mask::toScalarSlot(constant.getValue()));
      return Abstract{value, value};
    }
    if (auto load = llvm::dyn_cast<mask::LoadOp>(op))
      return load.getIndices().size() == 1 ? std::optional(emitLoad(operand(0))) : std::nullopt;
    auto entry = llvm::dyn_cast<mask::TableOpInterface>(op);
    if (!entry)
      return std::nullopt;
    llvm::IRBuilder<> &b = builder_;
    switch (entry.getTableOperation()) {
    case Operation::Add:
      return Abstract{b.CreateAdd(operand(0).first, operand(1).first),
                      b.CreateAdd(operand(0).second, operand(1).second)};
    case Operation::Sub:
      return Abstract{b.CreateSub(operand(0).first, operand(1).second),
                      b.CreateSub(operand(0).second, operand(1).first)};
    case Operation::FloorDiv: {
      auto *divisor = llvm::dyn_cast<llvm::ConstantInt>(operand(1).first);
      if (!divisor || !divisor->getValue().isPowerOf2())
        return std::nullopt;
      const uint64_t shift = divisor->getValue().logBase2();
      return Abstract{b.CreateAShr(operand(0).first, shift), b.CreateAShr(operand(0).second, shift)};
    }
    case Operation::Le: return atMost(operand(0), operand(1));
    case Operation::Ge: return atMost(operand(1), operand(0));
    case Operation::Lt: return complement(atMost(operand(1), operand(0)));
    case Operation::Gt: return complement(atMost(operand(0), operand(1)));
    case Operation::Eq: return equal(operand(0), operand(1));
    case Operation::Ne: return complement(equal(operand(0), operand(1)));
    case Operation::And:
      return Abstract{b.CreateAnd(operand(0).first, operand(1).first),
                      b.CreateOr(operand(0).second, operand(1).second)};
    case Operation::Or:
      return Abstract{b.CreateOr(operand(0).first, operand(1).first),
                      b.CreateAnd(operand(0).second, operand(1).second)};
    case Operation::Not: return complement(operand(0));
    default: return std::nullopt;
    }
  }

  /// a <= b can hold when a's lowest is at most b's highest, and fail when a's highest is above b's lowest.
  Abstract atMost(Abstract a, Abstract b) {
    return {builder_.CreateICmpSLE(a.first, b.second), builder_.CreateICmpSGT(a.second, b.first)};
  }

  Abstract equal(Abstract a, Abstract b) {
    llvm::Value *overlap =
        builder_.CreateAnd(builder_.CreateICmpSLE(a.first, b.second), builder_.CreateICmpSLE(b.first, a.second));
    llvm::Value *isOne = builder_.CreateAnd(
        builder_.CreateICmpEQ(a.first, a.second),
        builder_.CreateAnd(builder_.CreateICmpEQ(b.first, b.second), builder_.CreateICmpEQ(a.first, b.first)));
    return {overlap, builder_.CreateNot(isOne)};
  }

  static Abstract complement(Abstract value) { return {value.second, value.first}; }

  /// A sorted array: its values at the ends of the indices, and 0 where those leave it.
  Abstract emitLoad(Abstract index) {
    llvm::IRBuilder<> &b = builder_;
    llvm::Value *last = b.CreateSub(function_->getArg(2), b.getInt64(1)), *zero = b.getInt64(0);
    auto at = [&](llvm::Value *position) {
      llvm::Value *inside = b.CreateBinaryIntrinsic(llvm::Intrinsic::smax, zero,
                                                    b.CreateBinaryIntrinsic(llvm::Intrinsic::smin, position, last));
      llvm::Value *element = b.CreateLoad(b.getInt32Ty(), b.CreateGEP(b.getInt32Ty(), function_->getArg(1), inside));
      return b.CreateSExt(element, b.getInt64Ty());
    };
    llvm::Value *lo = at(index.first), *hi = at(index.second);
    llvm::Value *leaves = b.CreateOr(b.CreateICmpSLT(index.first, zero), b.CreateICmpSGT(index.second, last));
    return {b.CreateSelect(leaves, b.CreateBinaryIntrinsic(llvm::Intrinsic::smin, lo, zero), lo),
            b.CreateSelect(leaves, b.CreateBinaryIntrinsic(llvm::Intrinsic::smax, hi, zero), hi)};
  }

  llvm::Module &module_;
  llvm::IRBuilder<> builder_;
  llvm::Function *function_ = nullptr;
  llvm::DenseMap<mlir::Value, Abstract> values_;
};

} // namespace

CompiledClassifier compileClassifier(mlir::ModuleOp module, const char *name) {
  mlir::OwningOpRef<mlir::ModuleOp> derived = module.clone();
  mlir::PassManager passes(module.getContext());
  passes.addPass(createDeriveClassifier());
  if (mlir::failed(passes.run(*derived)))
    return {};
  auto classifier = derived->lookupSymbol<mask::ClassifierOp>(std::string(name) + ".classifier");
  auto llvmContext = std::make_unique<llvm::LLVMContext>();
  auto code = std::make_unique<llvm::Module>(name, *llvmContext);
  if (!classifier || !ClassifierEmitter(*code).emit(classifier))
    return {};
  llvm::InitializeNativeTarget();
  llvm::InitializeNativeTargetAsmPrinter();
  auto created = llvm::orc::LLJITBuilder().create();
  if (!created) {
    llvm::consumeError(created.takeError());
    return {};
  }
  std::shared_ptr<llvm::orc::LLJIT> jit = std::move(*created);
  code->setDataLayout(jit->getDataLayout());
  optimizeModule(*code, nullptr, /*optimizationLevel=*/2);
  llvm::orc::ThreadSafeModule owned(std::move(code), std::move(llvmContext));
  if (llvm::Error error = jit->addIRModule(std::move(owned))) {
    llvm::consumeError(std::move(error));
    return {};
  }
  auto address = jit->lookup(kFunctionName);
  if (!address) {
    llvm::consumeError(address.takeError());
    return {};
  }
  return {address->toPtr<ClassifyFunction>(), jit};
}

} // namespace cpflex::bench
