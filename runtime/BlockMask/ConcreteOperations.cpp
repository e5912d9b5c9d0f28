// The concrete value of one operation or one element as slots: the scalar face of Operations.h.
#include "runtime/BlockMask/AbstractValue.h"
#include "runtime/BlockMask/ElementAccess.h"
#include "runtime/BlockMask/OperationDispatch.h"
#include "runtime/BlockMask/PointEvaluator.h"

namespace cpflex {

namespace {

template <typename T> T fromSlot(ScalarSlot slot) {
  if constexpr (std::is_same_v<T, float>)
    return floatOfSlot(slot);
  else if constexpr (std::is_same_v<T, bool>)
    return slot != 0;
  else
    return static_cast<T>(slot);
}

template <typename T> ScalarSlot toSlot(T value) {
  if constexpr (std::is_same_v<T, float>)
    return slotOfFloat(value);
  else
    return static_cast<ScalarSlot>(value);
}

struct ScalarApplication {
  const ScalarSlot *operands;
  ScalarSlot result = 0;

  template <typename T, typename Function> void unary(Function function) {
    result = toSlot(function(fromSlot<T>(operands[0])));
  }
  template <typename T, typename Function> void binary(Function function) {
    result = toSlot(function(fromSlot<T>(operands[0]), fromSlot<T>(operands[1])));
  }
};

} // namespace

ScalarSlot applyOperation(Operation operation, ValueType operandType, const ScalarSlot *operands) {
  if (operation == Operation::Select)
    return operands[0] ? operands[1] : operands[2];
  ScalarApplication application{operands};
  visitOperation(operation, operandType, application);
  return application.result;
}

ScalarSlot readElement(const CaptureView &view, int64_t offset, ValueType type) {
  return visitElements(view.type, view.data, [&](const auto *data) -> ScalarSlot {
    auto element = data[offset];
    if constexpr (std::is_integral_v<decltype(element)>) {
      if (type == ValueType::Float)
        return slotOfFloat(static_cast<float>(element));
      if (type == ValueType::U32)
        return static_cast<uint32_t>(element);
      if (type == ValueType::Bool)
        return element != 0;
      return static_cast<int64_t>(element);
    } else {
      return slotOfFloat(toFloat32(element));
    }
  });
}

ValueType valueTypeOf(ElementType type) {
  switch (type) {
  case ElementType::Bool: return ValueType::Bool;
  case ElementType::U32: return ValueType::U32;
  case ElementType::F16:
  case ElementType::BF16:
  case ElementType::F32: return ValueType::Float;
  default: return ValueType::Int;
  }
}

} // namespace cpflex
