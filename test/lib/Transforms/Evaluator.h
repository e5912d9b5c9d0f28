// An evaluator of functions in the `mask` dialect at one point, by walking their operations and calling Operations.h:
// the oracle that passes are tested against.
#pragma once

#include "dialect/Mask/MaskDialect.h"
#include "runtime/contract/Operations.h"

#include "llvm/ADT/DenseMap.h"

#include <bit>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace cpflex::test {

/// A captured array of slots in row-major order.
struct Array {
  std::vector<int64_t> shape;
  std::vector<ScalarSlot> elements;
};

inline ScalarSlot slotOf(float value) { return std::bit_cast<uint32_t>(value); }
inline float floatOf(ScalarSlot slot) { return std::bit_cast<float>(static_cast<uint32_t>(slot)); }

/// Converts between slots and the types of Operations.h.
inline void fromSlot(ScalarSlot slot, bool &value) { value = slot != 0; }
inline void fromSlot(ScalarSlot slot, ops::Int &value) { value = slot; }
inline void fromSlot(ScalarSlot slot, ops::U32 &value) { value = static_cast<ops::U32>(slot); }
inline void fromSlot(ScalarSlot slot, float &value) { value = floatOf(slot); }
inline ScalarSlot toSlot(bool value) { return value; }
inline ScalarSlot toSlot(ops::Int value) { return value; }
inline ScalarSlot toSlot(ops::U32 value) { return value; }
inline ScalarSlot toSlot(float value) { return slotOf(value); }

struct Domains {
  const char *letters;
  constexpr bool contains(char letter) const {
    for (const char *c = letters; *c; ++c)
      if (*c == letter)
        return true;
    return false;
  }
};

#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, operandDomains)                                        \
  struct Table##Enumerator {                                                                                           \
    static constexpr Domains domains{operandDomains};                                                                  \
    template <typename... Values> static auto apply(Values... values) { return ops::function(values...); }             \
  };
#include "runtime/contract/Operations.def"

template <typename Table, int arity, typename T> ScalarSlot applyTyped(const ScalarSlot *operands) {
  T values[3] = {};
  // The arms of a select come after its condition.
  for (int i = 0; i < arity; ++i)
    fromSlot(operands[i], values[i]);
  if constexpr (arity == 1)
    return toSlot(Table::apply(values[0]));
  else if constexpr (arity == 2)
    return toSlot(Table::apply(values[0], values[1]));
  else
    return toSlot(Table::apply(operands[0] != 0, values[1], values[2]));
}

template <typename Table, int arity> ScalarSlot applyEntry(ValueType type, const ScalarSlot *operands) {
  switch (type) {
  case ValueType::Bool:
    if constexpr (Table::domains.contains('B'))
      return applyTyped<Table, arity, bool>(operands);
    break;
  case ValueType::Int:
    if constexpr (Table::domains.contains('I'))
      return applyTyped<Table, arity, ops::Int>(operands);
    break;
  case ValueType::U32:
    if constexpr (Table::domains.contains('U'))
      return applyTyped<Table, arity, ops::U32>(operands);
    break;
  case ValueType::Float:
    if constexpr (Table::domains.contains('F'))
      return applyTyped<Table, arity, float>(operands);
    break;
  }
  return 0;
}

/// Applies an entry of the table to slots of operands of `type` (the arms' for Select).
inline ScalarSlot applyOperation(Operation entry, ValueType type, const ScalarSlot *operands) {
  switch (entry) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, operandDomains)                                        \
  case Operation::Enumerator: return applyEntry<Table##Enumerator, arity>(type, operands);
#include "runtime/contract/Operations.def"
  default: return 0;
  }
}

class Evaluator {
public:
  std::map<std::string, Array> captures;
  std::map<std::string, ScalarSlot> params;
  std::map<std::string, int64_t> dims;
  /// What mask.scatter_add added, by capture, in the capture's layout.
  std::map<std::string, std::vector<float>> gradients;
  /// Whether some i32 value did not fit, or was shifted by what 32-bit code cannot shift by.
  bool sawOverflow = false;
  /// Called with every value and what it is, where set.
  std::function<void(mlir::Value, ScalarSlot)> onValue;

  ScalarSlot run(mlir::FunctionOpInterface function, llvm::ArrayRef<ScalarSlot> arguments) {
    mlir::Block &body = function.getFunctionBody().front();
    values.clear();
    for (auto [argument, slot] : llvm::zip_equal(body.getArguments(), arguments))
      define(argument, slot);
    return runBlock(body);
  }

private:
  void define(mlir::Value value, ScalarSlot slot) {
    if (value.getType().isSignlessInteger(32) && slot != static_cast<int32_t>(slot))
      sawOverflow = true;
    if (onValue)
      onValue(value, slot);
    values[value] = slot;
  }

  ScalarSlot runBlock(mlir::Block &block) {
    for (mlir::Operation &op : block.without_terminator()) {
      if (auto scatter = llvm::dyn_cast<mask::ScatterAddOp>(op))
        scatterAdd(scatter);
      else
        define(op.getResult(0), evaluate(&op));
    }
    return values.lookup(block.getTerminator()->getOperand(0));
  }

  /// Offset of an element, -1 outside of the array.
  int64_t offsetOf(const Array &array, mlir::ValueRange indices) {
    int64_t offset = 0;
    for (auto [size, index] : llvm::zip_equal(array.shape, indices)) {
      int64_t value = values.lookup(index);
      if (value < 0 || value >= size)
        return -1;
      offset = offset * size + value;
    }
    return offset;
  }

  void scatterAdd(mask::ScatterAddOp op) {
    const Array &array = captures.at(op.getCapture().str());
    std::vector<float> &gradient = gradients[op.getCapture().str()];
    gradient.resize(array.elements.size());
    if (int64_t offset = offsetOf(array, op.getIndices()); offset >= 0)
      gradient[offset] += floatOf(values.lookup(op.getValue()));
  }

  ScalarSlot evaluate(mlir::Operation *op) {
    if (auto constant = llvm::dyn_cast<mask::ConstantOp>(op))
      return mask::toScalarSlot(constant.getValue());
    if (auto param = llvm::dyn_cast<mask::ParamValueOp>(op))
      return params.at(param.getParam().str());
    if (auto dim = llvm::dyn_cast<mask::DimOp>(op))
      return dims.at(dim.getName().str());
    if (auto load = llvm::dyn_cast<mask::LoadOp>(op)) {
      const Array &array = captures.at(load.getCapture().str());
      int64_t offset = offsetOf(array, load.getIndices());
      return offset < 0 ? 0 : array.elements[offset];
    }
    if (auto reduction = llvm::dyn_cast<mask::ReduceOp>(op))
      return reduce(reduction);
    llvm::SmallVector<ScalarSlot> operands;
    for (mlir::Value operand : op->getOperands())
      operands.push_back(values.lookup(operand));
    if (llvm::isa<mask::ShlOp, mask::ShrOp>(op) && op->getResult(0).getType().isSignlessInteger(32) &&
        (operands[1] < 0 || operands[1] > 31))
      sawOverflow = true;
    return applyOperation(llvm::cast<mask::TableOpInterface>(op).getTableOperation(),
                          mask::toValueType(op->getOperands().back().getType()), operands.data());
  }

  ScalarSlot reduce(mask::ReduceOp op) {
    static constexpr Operation kCombine[] = {Operation::Or, Operation::And, Operation::Add, Operation::Min,
                                             Operation::Max};
    ValueType type = mask::toValueType(op.getType());
    int64_t count = values.lookup(op.getCount());
    ScalarSlot result = op.getKind() == mask::ReductionKind::All;
    for (int64_t i = 0; i < count; ++i) {
      mlir::Block &body = op.getBody().front();
      define(body.getArgument(0), i);
      ScalarSlot element = runBlock(body);
      ScalarSlot operands[] = {result, element};
      result = i == 0 ? element : applyOperation(kCombine[static_cast<int>(op.getKind())], type, operands);
    }
    return result;
  }

  llvm::DenseMap<mlir::Value, ScalarSlot> values;
};

} // namespace cpflex::test
