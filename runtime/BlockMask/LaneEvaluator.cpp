// The loops over lanes: the concrete functions of Operations.h applied to arrays, so that the
// compiler vectorises them.
#include "runtime/BlockMask/LaneEvaluator.h"

#include "runtime/BlockMask/ElementAccess.h"
#include "runtime/BlockMask/OperationDispatch.h"
#include "runtime/BlockMask/PointEvaluator.h"

#include <algorithm>
#include <cstring>

namespace cpflex {

namespace {

/// Lanes as an array of T; bool lanes are bytes. A node's lanes are only ever read as the type they
/// were written as.
template <typename T> auto *as(std::byte *lanes) {
  if constexpr (std::is_same_v<T, bool>)
    return reinterpret_cast<uint8_t *>(lanes);
  else
    return reinterpret_cast<T *>(lanes);
}

struct LaneApplication {
  std::byte *const *operands;
  std::byte *result;
  int64_t count;

  template <typename T, typename Function> void unary(Function function) {
    const auto *a = as<T>(operands[0]);
    auto *out = as<decltype(function(T()))>(result);
    for (int64_t i = 0; i < count; ++i)
      out[i] = function(static_cast<T>(a[i]));
  }
  template <typename T, typename Function> void binary(Function function) {
    const auto *a = as<T>(operands[0]);
    const auto *b = as<T>(operands[1]);
    auto *out = as<decltype(function(T(), T()))>(result);
    for (int64_t i = 0; i < count; ++i)
      out[i] = function(static_cast<T>(a[i]), static_cast<T>(b[i]));
  }
};

template <typename T> void selectLanes(const uint8_t *condition, const T *a, const T *b, T *out, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = condition[i] ? a[i] : b[i];
}

void applyLanes(Operation operation, ValueType operandType, std::byte *const *operands, std::byte *result,
                int64_t count) {
  if (operation != Operation::Select) {
    visitOperation(operation, operandType, LaneApplication{operands, result, count});
    return;
  }
  const uint8_t *condition = as<bool>(operands[0]);
  switch (operandType) {
  case ValueType::Bool:
    return selectLanes(condition, as<bool>(operands[1]), as<bool>(operands[2]), as<bool>(result), count);
  case ValueType::Int:
    return selectLanes(condition, as<ops::Int>(operands[1]), as<ops::Int>(operands[2]), as<ops::Int>(result), count);
  case ValueType::U32:
    return selectLanes(condition, as<ops::U32>(operands[1]), as<ops::U32>(operands[2]), as<ops::U32>(result), count);
  case ValueType::Float:
    return selectLanes(condition, as<float>(operands[1]), as<float>(operands[2]), as<float>(result), count);
  }
}

bool comparesWithZero(Operation operation, int64_t x) {
  switch (operation) {
  case Operation::Lt: return x < 0;
  case Operation::Le: return x <= 0;
  case Operation::Gt: return x > 0;
  case Operation::Ge: return x >= 0;
  case Operation::Eq: return x == 0;
  default: return x != 0;
  }
}

/// Compares at + step*i with 0.
void compareLanes(Operation operation, int64_t at, int64_t step, uint8_t *out, int64_t count) {
  auto run = [&](auto compare) {
    for (int64_t i = 0; i < count; ++i)
      out[i] = compare(at + step * i);
  };
  switch (operation) {
  case Operation::Lt: return run([](int64_t x) { return x < 0; });
  case Operation::Le: return run([](int64_t x) { return x <= 0; });
  case Operation::Gt: return run([](int64_t x) { return x > 0; });
  case Operation::Ge: return run([](int64_t x) { return x >= 0; });
  case Operation::Eq: return run([](int64_t x) { return x == 0; });
  default: return run([](int64_t x) { return x != 0; });
  }
}

void fillLanes(ValueType type, ScalarSlot slot, std::byte *out, int64_t count) {
  switch (type) {
  case ValueType::Bool: std::fill_n(as<bool>(out), count, static_cast<uint8_t>(slot)); break;
  case ValueType::Int: std::fill_n(as<ops::Int>(out), count, ops::Int{slot}); break;
  case ValueType::U32: std::fill_n(as<ops::U32>(out), count, static_cast<ops::U32>(slot)); break;
  case ValueType::Float: std::fill_n(as<float>(out), count, floatOfSlot(slot)); break;
  }
}

void storeLane(ValueType type, std::byte *lanes, int64_t i, ScalarSlot slot) {
  switch (type) {
  case ValueType::Bool: as<bool>(lanes)[i] = static_cast<uint8_t>(slot); break;
  case ValueType::Int: as<ops::Int>(lanes)[i] = slot; break;
  case ValueType::U32: as<ops::U32>(lanes)[i] = static_cast<ops::U32>(slot); break;
  case ValueType::Float: as<float>(lanes)[i] = floatOfSlot(slot); break;
  }
}

ScalarSlot combine(Operation reduction, ValueType type, ScalarSlot result, ScalarSlot element, bool isFirst) {
  ScalarSlot both[2] = {result, element};
  switch (reduction) {
  case Operation::ReduceAny: return result | element;
  case Operation::ReduceAll: return result & element;
  case Operation::ReduceSum: return applyOperation(Operation::Add, type, both);
  case Operation::ReduceMin: return isFirst ? element : applyOperation(Operation::Min, type, both);
  default: return isFirst ? element : applyOperation(Operation::Max, type, both);
  }
}

Operation stepOf(Operation reduction) {
  switch (reduction) {
  case Operation::ReduceAny: return Operation::Or;
  case Operation::ReduceAll: return Operation::And;
  case Operation::ReduceSum: return Operation::Add;
  case Operation::ReduceMin: return Operation::Min;
  default: return Operation::Max;
  }
}

} // namespace

LaneEvaluator::LaneEvaluator(const TapeProgram &program)
    : program_(&program), scalars_(program.nodes.size()), isSpread_(program.nodes.size()) {
  for (int32_t i = 0; i < program.numConstants; ++i)
    scalars_[i] = program.nodes[i].offset;
  int32_t size = static_cast<int32_t>(program.nodes.size());
  auto markSpread = [&](int32_t operand) {
    if (operand >= 0 && operand < program.kvBegin)
      isSpread_[operand] = true;
  };
  for (int32_t i = program.kvBegin; i < size; ++i) {
    const ProgramNode &node = program.nodes[i];
    for (int k = 0; k < numOperands(node); ++k)
      markSpread(node.operands[k]);
    if (node.form == NodeForm::Reduce) {
      markSpread(node.operands[0]);
      markSpread(node.operands[2]);
    }
  }
}

void LaneEvaluator::reduceScalars(int32_t index, int64_t q, int64_t kv) {
  const ProgramNode &node = program_->nodes[index];
  ScalarSlot result = node.operation == Operation::ReduceAll;
  int64_t count = scalars_[node.operands[0]];
  for (int64_t i = 0; i < count; ++i) {
    scalars_[index + 1] = i;
    evaluateScalars(index + 2, node.operands[1], q, kv);
    result = combine(node.operation, node.resultType, result, scalars_[node.operands[2]], i == 0);
    if (node.operation == Operation::ReduceAny && result)
      break;
    if (node.operation == Operation::ReduceAll && !result)
      break;
  }
  scalars_[index] = result;
}

void LaneEvaluator::evaluateScalars(int32_t begin, int32_t end, int64_t q, int64_t kv) {
  for (int32_t i = begin; i < end; ++i) {
    const ProgramNode &node = program_->nodes[i];
    switch (node.form) {
    case NodeForm::Affine: scalars_[i] = node.offset + node.qFactor * q + node.kvFactor * kv; break;
    case NodeForm::AffineCompare:
      scalars_[i] = comparesWithZero(node.operation, node.offset + node.qFactor * q + node.kvFactor * kv);
      break;
    case NodeForm::Operation: {
      // The most frequent ones, without the way through the table of operations.
      ScalarSlot first = scalars_[node.operands[0]];
      ScalarSlot second = scalars_[std::max(node.operands[1], 0)];
      if (node.operandType == ValueType::Bool && node.operation == Operation::And) {
        scalars_[i] = first & second;
        break;
      }
      if (node.operandType == ValueType::Bool && node.operation == Operation::Or) {
        scalars_[i] = first | second;
        break;
      }
      if (node.operandType == ValueType::Int && node.operation == Operation::Eq) {
        scalars_[i] = first == second;
        break;
      }
      ScalarSlot operands[3] = {};
      for (int k = 0; k < 3 && node.operands[k] >= 0; ++k)
        operands[k] = scalars_[node.operands[k]];
      scalars_[i] = applyOperation(node.operation, node.operandType, operands);
      break;
    }
    case NodeForm::Load: {
      const ProgramLoad &load = (*program_->loads)[node.load];
      if (load.line && load.line->isSorted() && node.resultType == ValueType::Int) {
        int64_t at = scalars_[node.operands[0]];
        scalars_[i] = at >= 0 && at < load.shape[0] ? load.line->sortedElement(at) : 0;
        break;
      }
      int64_t offset = 0;
      bool isInside = true;
      for (int axis = 0; axis < load.numAxes; ++axis) {
        int64_t at = scalars_[node.operands[axis]];
        isInside &= at >= 0 && at < load.shape[axis];
        offset += isInside ? at * load.strides[axis] : 0;
      }
      CaptureView view;
      view.data = load.data;
      view.type = load.type;
      scalars_[i] = isInside ? readElement(view, offset, node.resultType) : 0;
      break;
    }
    case NodeForm::Member:
      scalars_[i] =
          (*program_->loads)[node.load].members->contains(scalars_[node.operands[0]], scalars_[node.operands[1]]);
      break;
    case NodeForm::Reduce:
      reduceScalars(i, q, kv);
      i = node.operands[1] - 1;
      break;
    case NodeForm::Constant:
    case NodeForm::Induction: break;
    }
  }
}

bool LaneEvaluator::evaluate(int64_t q, int64_t kv) {
  evaluateScalars(program_->numConstants, static_cast<int32_t>(scalars_.size()), q, kv);
  return scalars_[program_->result] != 0;
}

void LaneEvaluator::spread(int32_t index, int64_t count) {
  fillLanes(program_->nodes[index].resultType, scalars_[index], lanes(index), count);
}

void LaneEvaluator::loadLanes(int32_t index, int64_t count) {
  const ProgramNode &node = program_->nodes[index];
  const ProgramLoad &load = (*program_->loads)[node.load];
  // 1. Offsets of the elements, -1 for those outside.
  int64_t offsets[kLanes];
  const ops::Int *first = as<ops::Int>(lanes(node.operands[0]));
  for (int64_t i = 0; i < count; ++i)
    offsets[i] =
        static_cast<uint64_t>(first[i]) < static_cast<uint64_t>(load.shape[0]) ? first[i] * load.strides[0] : -1;
  for (int axis = 1; axis < load.numAxes; ++axis) {
    const ops::Int *at = as<ops::Int>(lanes(node.operands[axis]));
    for (int64_t i = 0; i < count; ++i)
      offsets[i] = offsets[i] >= 0 && static_cast<uint64_t>(at[i]) < static_cast<uint64_t>(load.shape[axis])
                       ? offsets[i] + at[i] * load.strides[axis]
                       : -1;
  }
  // 2. The elements.
  std::byte *out = lanes(index);
  visitElements(load.type, load.data, [&](const auto *data) {
    using Element = std::remove_cvref_t<decltype(*data)>;
    if constexpr (std::is_integral_v<Element>) {
      if (node.resultType == ValueType::Int) {
        for (int64_t i = 0; i < count; ++i)
          as<ops::Int>(out)[i] = offsets[i] >= 0 ? static_cast<int64_t>(data[offsets[i]]) : 0;
        return;
      }
      if (node.resultType == ValueType::Bool) {
        for (int64_t i = 0; i < count; ++i)
          as<bool>(out)[i] = offsets[i] >= 0 && data[offsets[i]] != 0;
        return;
      }
    }
    CaptureView view;
    view.data = load.data;
    view.type = load.type;
    for (int64_t i = 0; i < count; ++i)
      storeLane(node.resultType, out, i, offsets[i] >= 0 ? readElement(view, offsets[i], node.resultType) : 0);
  });
}

void LaneEvaluator::reduceLanes(int32_t index, int64_t q, int64_t kvBegin, int64_t kvStep, int64_t count) {
  const ProgramNode &node = program_->nodes[index];
  ValueType type = node.resultType;
  const ops::Int *counts = as<ops::Int>(lanes(node.operands[0]));
  int64_t most = *std::max_element(counts, counts + count);
  std::byte *result = lanes(index);
  fillLanes(type, node.operation == Operation::ReduceAll, result, count);
  std::vector<std::byte> previous(kLaneBytes), extended(kLaneBytes), isRun(kLaneBytes);
  bool isPick = node.operation == Operation::ReduceMin || node.operation == Operation::ReduceMax;
  for (int64_t iteration = 0; iteration < most; ++iteration) {
    fillLanes(ValueType::Int, iteration, lanes(index + 1), count);
    evaluateLanes(index + 2, node.operands[1], q, kvBegin, kvStep, count);
    std::memcpy(previous.data(), result, kLaneBytes);
    std::byte *operands[2] = {previous.data(), lanes(node.operands[2])};
    if (isPick && iteration == 0)
      std::memcpy(extended.data(), operands[1], kLaneBytes);
    else
      applyLanes(stepOf(node.operation), type, operands, extended.data(), count);
    // Lanes whose own count is smaller keep what they had.
    for (int64_t i = 0; i < count; ++i)
      as<bool>(isRun.data())[i] = iteration < counts[i];
    std::byte *arms[3] = {isRun.data(), extended.data(), previous.data()};
    applyLanes(Operation::Select, type, arms, result, count);
  }
}

void LaneEvaluator::evaluateLanes(int32_t begin, int32_t end, int64_t q, int64_t kvBegin, int64_t kvStep,
                                  int64_t count) {
  for (int32_t i = begin; i < end; ++i) {
    const ProgramNode &node = program_->nodes[i];
    std::byte *out = lanes(i);
    switch (node.form) {
    case NodeForm::Affine: {
      int64_t at = node.offset + node.qFactor * q + node.kvFactor * kvBegin;
      int64_t step = node.kvFactor * kvStep;
      for (int64_t lane = 0; lane < count; ++lane)
        as<ops::Int>(out)[lane] = at + step * lane;
      break;
    }
    case NodeForm::AffineCompare: {
      int64_t at = node.offset + node.qFactor * q + node.kvFactor * kvBegin;
      int64_t step = node.kvFactor * kvStep;
      compareLanes(node.operation, at, step, as<bool>(out), count);
      break;
    }
    case NodeForm::Operation: {
      std::byte *operands[3] = {};
      for (int k = 0; k < 3 && node.operands[k] >= 0; ++k)
        operands[k] = lanes(node.operands[k]);
      applyLanes(node.operation, node.operandType, operands, out, count);
      break;
    }
    case NodeForm::Load: loadLanes(i, count); break;
    case NodeForm::Member: {
      const MemberLists &members = *(*program_->loads)[node.load].members;
      const ops::Int *rows = as<ops::Int>(lanes(node.operands[0]));
      const ops::Int *values = as<ops::Int>(lanes(node.operands[1]));
      for (int64_t lane = 0; lane < count; ++lane)
        as<bool>(out)[lane] = members.contains(rows[lane], values[lane]);
      break;
    }
    case NodeForm::Reduce:
      reduceLanes(i, q, kvBegin, kvStep, count);
      i = node.operands[1] - 1;
      break;
    case NodeForm::Constant:
    case NodeForm::Induction: break;
    }
  }
}

void LaneEvaluator::evaluateRow(int64_t q, int64_t kvBegin, int64_t kvStep, int64_t count, uint8_t *out) {
  const TapeProgram &program = *program_;
  int32_t size = static_cast<int32_t>(program.nodes.size());
  if (lanes_.empty()) {
    lanes_.resize(static_cast<size_t>(size) * kLaneBytes);
    for (int32_t i = 0; i < program.numConstants; ++i)
      if (isSpread_[i])
        spread(i, kLanes);
  }
  evaluateScalars(program.numConstants, program.kvBegin, q, 0);
  if (program.result < program.kvBegin) {
    std::fill_n(out, count, static_cast<uint8_t>(scalars_[program.result]));
    return;
  }
  for (int32_t i = program.numConstants; i < program.kvBegin; ++i)
    if (isSpread_[i])
      spread(i, std::min(count, kLanes));
  for (int64_t begin = 0; begin < count; begin += kLanes) {
    int64_t lanesNow = std::min(kLanes, count - begin);
    evaluateLanes(program.kvBegin, size, q, kvBegin + begin * kvStep, kvStep, lanesNow);
    std::copy_n(reinterpret_cast<const uint8_t *>(lanes(program.result)), lanesNow, out + begin);
  }
}

} // namespace cpflex
