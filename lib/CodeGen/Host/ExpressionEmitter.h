// How each operation of the `mask` dialect is computed on the CPU: straight-line LLVM dialect for one coordinate. The
// loops around it are HostCode.cpp's.
#pragma once

#include "dialect/Mask/MaskDialect.h"
#include "runtime/contract/Bindings.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/IR/Builders.h"

namespace cpflex {

/// One captured array, read from its CaptureView at the start of a function.
struct HostCapture {
  ElementType type = ElementType::I32;
  mlir::Value data;
  llvm::SmallVector<mlir::Value, kMaxCaptureRank> shape, strides;
};

/// Emits operations of one mask function at the builder's insertion point, which moves on as blocks are added.
class ExpressionEmitter {
public:
  /// `bindings` is the `const Bindings *` of the function being built; `signature` gives the slots.
  ExpressionEmitter(mlir::OpBuilder &builder, mlir::ModuleOp module, const Signature &signature, mlir::Value bindings);

  /// Reads every capture, param and dimension that `body` mentions; call it in the function's entry block.
  mlir::LogicalResult readBindings(mlir::Block &body);

  /// What a value of the `mask` dialect is in the function being built.
  void map(mlir::Value from, mlir::Value to) { values[from] = to; }
  mlir::Value lookup(mlir::Value from) const { return values.lookup(from); }
  bool isMapped(mlir::Value from) const { return values.count(from) != 0; }

  /// A 64-bit coordinate as a value of `type`.
  mlir::Value coordinate(mlir::Value position, mlir::Type type, mlir::Location loc);

  /// Emits one operation whose operands are mapped, and maps its result. What a reduction scatters is left out: only a
  /// loop around many pairs adds that well.
  mlir::LogicalResult emit(mlir::Operation *op);

  /// Memory accesses emitted from here on belong to this group of accesses without dependences; null ends it.
  void setAccessGroup(mlir::LLVM::AccessGroupAttr group) { accessGroup = group; }
  void annotate(mlir::Operation *access);

  /// Whether an element at `indices` exists, and its offset in elements within `capture` as bound or, for a dense array
  /// of the same sizes, within that.
  mlir::Value isInside(const HostCapture &capture, mlir::ValueRange indices, mlir::Location loc);
  mlir::Value stridedOffset(const HostCapture &capture, mlir::ValueRange indices, mlir::Location loc);
  mlir::Value denseOffset(const HostCapture &capture, mlir::ValueRange indices, mlir::Location loc);

  const HostCapture &capture(llvm::StringRef name) { return captures[name]; }
  llvm::SmallVector<mlir::Value> widenedIndices(mlir::ValueRange indices, mlir::Location loc);

  /// Builds `for (index = 0; index < count; ++index)` with values carried from turn to turn; gives their last values.
  llvm::SmallVector<mlir::Value>
  emitLoop(mlir::Location loc, mlir::Value count, mlir::ValueRange initial, mlir::LLVM::LoopAnnotationAttr annotation,
           llvm::function_ref<llvm::SmallVector<mlir::Value>(mlir::Value index, mlir::ValueRange carried)> body);

  /// Builds `condition ? value() : otherwise` where value() runs only when the condition holds.
  mlir::Value emitGuarded(mlir::Location loc, mlir::Value condition, mlir::Value otherwise,
                          llvm::function_ref<mlir::Value()> value);

  mlir::Value constantInt(mlir::Location loc, mlir::Type type, int64_t value);

private:
  mlir::FailureOr<mlir::Value> emitTableOperation(mlir::Operation *op);
  mlir::FailureOr<mlir::Value> emitConstant(mask::ConstantOp op);
  mlir::FailureOr<mlir::Value> emitLoad(mask::LoadOp op);
  mlir::FailureOr<mlir::Value> emitReduce(mask::ReduceOp op);
  mlir::Value emitDivisionByPowerOfTwo(mlir::Operation *op);
  mlir::Value emitCompare(Operation operation, mlir::Type operandType, mlir::Value lhs, mlir::Value rhs,
                          mlir::Location loc);
  mlir::Value emitCast(Operation operation, mlir::Type from, mlir::Type to, mlir::Value value, mlir::Location loc);
  mlir::Value callOperation(llvm::StringRef mnemonic, mlir::Type operandType, mlir::Type resultType,
                            mlir::ValueRange operands, mlir::Location loc);
  mlir::Value convertElement(ElementType type, mlir::Value raw, mlir::Location loc);
  mlir::Value readField(mlir::Value base, int64_t offset, mlir::Type type, mlir::Location loc);

  mlir::OpBuilder &builder;
  mlir::ModuleOp module;
  const Signature &signature;
  mlir::Value bindings;
  llvm::DenseMap<mlir::Value, mlir::Value> values;
  llvm::StringMap<HostCapture> captures;
  llvm::StringMap<mlir::Value> params, dims; ///< 64-bit slots
  mlir::LLVM::AccessGroupAttr accessGroup;
};

/// The LLVM dialect's type for a value: ui32 becomes i32, all else stays. Null for types that hosts do not compute.
mlir::Type hostType(mlir::Type type);

} // namespace cpflex
