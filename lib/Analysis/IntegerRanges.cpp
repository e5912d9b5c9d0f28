// One forward pass over each function: the range of a result from the ranges of its operands, per table entry.
#include "lib/Analysis/IntegerRanges.h"

#include "runtime/contract/Operations.h"

#include <algorithm>

using namespace mlir;

namespace cpflex {
namespace {

using Wide = __int128;

IntegerRange unionOf(IntegerRange a, IntegerRange b) { return {std::min(a.lo, b.lo), std::max(a.hi, b.hi)}; }

Wide floorDivide(Wide a, Wide b) {
  Wide quotient = a / b;
  return quotient - ((a % b != 0) && ((a < 0) != (b < 0)));
}

/// Bounds of a function that is monotone in each operand: those of its values at the corners.
struct Corners {
  Wide lo, hi;
  template <typename Function> static Corners of(IntegerRange a, IntegerRange b, Function function) {
    Wide values[] = {function(Wide(a.lo), Wide(b.lo)), function(Wide(a.lo), Wide(b.hi)),
                     function(Wide(a.hi), Wide(b.lo)), function(Wide(a.hi), Wide(b.hi))};
    return {*std::min_element(values, values + 4), *std::max_element(values, values + 4)};
  }
};

Corners hull(Corners a, Corners b) { return {std::min(a.lo, b.lo), std::max(a.hi, b.hi)}; }

/// Quotients by the negative divisors, by 0 and by the positive ones.
Corners quotients(IntegerRange a, IntegerRange b) {
  std::optional<Corners> result;
  auto include = [&](Corners corners) { result = result ? hull(*result, corners) : corners; };
  if (b.lo < 0)
    include(Corners::of(a, {b.lo, std::min<int64_t>(b.hi, -1)}, floorDivide));
  if (b.contains(0))
    include({0, 0});
  if (b.hi > 0)
    include(Corners::of(a, {std::max<int64_t>(b.lo, 1), b.hi}, floorDivide));
  return *result;
}

/// Remainders have the divisor's sign and are smaller; by 0 they are 0.
IntegerRange remainders(IntegerRange a, IntegerRange b) {
  if (a.lo >= 0 && b.lo > a.hi)
    return a;
  IntegerRange result{0, 0};
  if (b.lo < 0)
    result.lo = b.lo + 1;
  if (b.hi > 0)
    result.hi = a.lo >= 0 && b.lo >= 0 ? std::min(a.hi, b.hi - 1) : b.hi - 1;
  return result;
}

/// The smallest n with both ranges inside [-2^n, 2^n).
int bitsOf(IntegerRange a, IntegerRange b) {
  auto magnitude = [](int64_t value) { return static_cast<uint64_t>(value < 0 ? ~value : value); };
  uint64_t largest = std::max(std::max(magnitude(a.lo), magnitude(a.hi)), std::max(magnitude(b.lo), magnitude(b.hi)));
  return largest == 0 ? 0 : 64 - __builtin_clzll(largest);
}

IntegerRange bitwise(Operation entry, IntegerRange a, IntegerRange b) {
  bool isNonNegative = a.lo >= 0 && b.lo >= 0;
  if (entry == Operation::And && (a.lo >= 0 || b.lo >= 0))
    return {0, a.lo < 0 ? b.hi : b.lo < 0 ? a.hi : std::min(a.hi, b.hi)};
  int bits = bitsOf(a, b);
  int64_t hi = bits >= 63 ? INT64_MAX : (int64_t(1) << bits) - 1;
  if (isNonNegative)
    return {entry == Operation::Or ? std::max(a.lo, b.lo) : 0, hi};
  return {-hi - 1, hi};
}

/// 0 when the comparison never holds, 1 when it always does, both otherwise.
IntegerRange comparison(Operation entry, IntegerRange a, IntegerRange b) {
  auto decide = [](bool isAlways, bool isNever) { return IntegerRange{isAlways, !isNever}; };
  switch (entry) {
  case Operation::Eq: return decide(a.isPoint() && a == b, a.hi < b.lo || b.hi < a.lo);
  case Operation::Ne: return decide(a.hi < b.lo || b.hi < a.lo, a.isPoint() && a == b);
  case Operation::Lt: return decide(a.hi < b.lo, a.lo >= b.hi);
  case Operation::Le: return decide(a.hi <= b.lo, a.lo > b.hi);
  case Operation::Gt: return decide(a.lo > b.hi, a.hi <= b.lo);
  case Operation::Ge: return decide(a.lo >= b.hi, a.hi < b.lo);
  default: return {0, 1};
  }
}

} // namespace

IntegerRange fullRange(Type type) {
  switch (mask::toValueType(type)) {
  case ValueType::Bool: return {0, 1};
  case ValueType::U32: return {0, UINT32_MAX};
  case ValueType::Int:
    if (mask::elementTypeOf(type).isSignlessInteger(32))
      return {INT32_MIN, INT32_MAX};
    [[fallthrough]];
  case ValueType::Float: return {INT64_MIN, INT64_MAX};
  }
  return {INT64_MIN, INT64_MAX};
}

IntegerRanges::IntegerRanges(ModuleOp module, RangeAssumptions assumptions) : module(module), assumptions(assumptions) {
  for (mlir::Operation &op : module.getBody()->getOperations())
    if (auto function = llvm::dyn_cast<FunctionOpInterface>(op))
      visitFunction(function, function.getNumArguments() - 4);
}

IntegerRange IntegerRanges::of(Value value) const {
  auto entry = ranges.find(value);
  return entry == ranges.end() ? fullRange(value.getType()) : entry->second;
}

void IntegerRanges::visitFunction(FunctionOpInterface function, unsigned firstCoordinate) {
  Block &body = function.getFunctionBody().front();
  constexpr StringRef kDimensions[] = {"B", "H", "Q_LEN", "KV_LEN"};
  for (auto [index, name] : llvm::enumerate(kDimensions))
    ranges[body.getArgument(firstCoordinate + index)] = {0, std::max<int64_t>(rangeOfDimension(name).hi - 1, 0)};
  visitBlock(body);
}

void IntegerRanges::visitBlock(Block &block) {
  for (mlir::Operation &op : block)
    visit(&op);
}

void IntegerRanges::visit(mlir::Operation *op) {
  if (op->getNumResults() != 1)
    return;
  Value result = op->getResult(0);
  if (auto reduction = llvm::dyn_cast<mask::ReduceOp>(op)) {
    IntegerRange range = rangeOfReduction(reduction);
    ranges[result] = range;
    return;
  }
  if (mask::toValueType(result.getType()) == ValueType::Float)
    return;
  IntegerRange range = fullRange(result.getType());
  if (auto constant = llvm::dyn_cast<mask::ConstantOp>(op)) {
    int64_t value = mask::toScalarSlot(constant.getValue());
    range = {value, value};
  } else if (llvm::isa<mask::ParamValueOp>(op)) {
    if (mask::toValueType(result.getType()) == ValueType::Int && assumptions.largestParam < INT64_MAX)
      range = {-assumptions.largestParam, assumptions.largestParam};
  } else if (auto dim = llvm::dyn_cast<mask::DimOp>(op)) {
    range = rangeOfDimension(dim.getName());
  } else if (auto load = llvm::dyn_cast<mask::LoadOp>(op)) {
    range = rangeOfLoad(load);
  } else if (llvm::isa<mask::TableOpInterface>(op)) {
    range = rangeOfTableOperation(op);
  }
  ranges[result] = range;
}

IntegerRange IntegerRanges::rangeOfDimension(StringRef name) const {
  if (auto known = assumptions.dimensions.find(name.str()); known != assumptions.dimensions.end())
    return {known->second, known->second};
  bool isBatchOrHead = name == "B" || name == "H" || name == "HKV";
  return {0, isBatchOrHead ? kMostBatchesOrHeads : assumptions.longestDimension};
}

IntegerRange IntegerRanges::rangeOfLoad(mask::LoadOp op) {
  auto capture = module.lookupSymbol<mask::CaptureOp>(op.getCapture());
  if (!capture)
    return fullRange(op.getType());
  auto element = llvm::dyn_cast<IntegerType>(capture.getElementType());
  if (!element || element.getWidth() == 1)
    return fullRange(op.getType());
  IntegerRange range = fullRange(op.getType());
  if (unsigned width = element.getWidth(); width < 64)
    range = element.isUnsigned() ? IntegerRange{0, (int64_t(1) << width) - 1}
                                 : IntegerRange{-(int64_t(1) << (width - 1)), (int64_t(1) << (width - 1)) - 1};
  // u64 keeps its bits, so its facts speak of the int that is loaded.
  if (auto lo = capture->getAttrOfType<IntegerAttr>("lo"))
    range.lo = std::max(range.lo, lo.getInt());
  if (auto hi = capture->getAttrOfType<IntegerAttr>("hi"); hi && hi.getInt() > INT64_MIN)
    range.hi = std::min(range.hi, hi.getInt() - 1);
  if (range.lo > range.hi)
    return {0, 0};
  return unionOf(range, {0, 0});
}

IntegerRange IntegerRanges::rangeOfReduction(mask::ReduceOp op) {
  Block &body = op.getBody().front();
  IntegerRange count = of(op.getCount());
  ranges[body.getArgument(0)] = {0, std::max<int64_t>(count.hi - 1, 0)};
  visitBlock(body);
  ValueType type = mask::toValueType(op.getType());
  if (type == ValueType::Bool || type == ValueType::Float)
    return fullRange(op.getType());
  IntegerRange element = of(llvm::cast<mask::YieldOp>(body.getTerminator()).getValues().front());
  if (op.getKind() != mask::ReductionKind::Sum)
    return unionOf(element, {0, 0});
  // Every partial sum lies between 0 and the largest count times the bounds of the elements.
  Wide most = std::max<int64_t>(count.hi, 0);
  return wrapped(op, std::min<Wide>(0, most * element.lo), std::max<Wide>(0, most * element.hi));
}

IntegerRange IntegerRanges::wrapped(mlir::Operation *op, Wide lo, Wide hi) {
  IntegerRange full = fullRange(op->getResult(0).getType());
  if (lo >= full.lo && hi <= full.hi)
    return {static_cast<int64_t>(lo), static_cast<int64_t>(hi)};
  wrapping.insert(op->getResult(0));
  return full;
}

// The range of an arm of a select where its condition is `holds`; nothing when it is never taken.
std::optional<IntegerRange> IntegerRanges::rangeOfArm(Value arm, Value condition, bool holds) const {
  IntegerRange range = of(arm);
  auto comparison = condition.getDefiningOp<mask::TableOpInterface>();
  if (!comparison || comparison->getNumOperands() != 2 || mask::toValueType(arm.getType()) == ValueType::Float)
    return range;
  Value lhs = comparison->getOperand(0), rhs = comparison->getOperand(1);
  if ((arm != lhs && arm != rhs) || lhs == rhs)
    return range;
  const IntegerRange other = of(arm == lhs ? rhs : lhs);
  bool isBelow = false, isStrict = false;
  switch (comparison.getTableOperation()) {
  case Operation::Lt: isBelow = true, isStrict = true; break;
  case Operation::Le: isBelow = true; break;
  case Operation::Gt: isStrict = true; break;
  case Operation::Ge: break;
  default: return range;
  }
  if (!holds) // not x < y is y <= x
    isBelow = !isBelow, isStrict = !isStrict;
  if (arm == rhs)
    isBelow = !isBelow;
  const Wide bound = isBelow ? Wide(other.hi) - isStrict : Wide(other.lo) + isStrict;
  const Wide lo = isBelow ? Wide(range.lo) : std::max<Wide>(range.lo, bound);
  const Wide hi = isBelow ? std::min<Wide>(range.hi, bound) : Wide(range.hi);
  if (lo > hi)
    return std::nullopt;
  return IntegerRange{int64_t(lo), int64_t(hi)};
}

IntegerRange IntegerRanges::rangeOfTableOperation(mlir::Operation *op) {
  Operation entry = llvm::cast<mask::TableOpInterface>(op).getTableOperation();
  Type operandType = op->getOperand(op->getNumOperands() - 1).getType();
  IntegerRange full = fullRange(op->getResult(0).getType());
  if (mask::toValueType(operandType) == ValueType::Float)
    return full;
  bool isU32 = mask::toValueType(operandType) == ValueType::U32;
  bool isBool = mask::toValueType(operandType) == ValueType::Bool;
  IntegerRange a = of(op->getOperand(0));
  IntegerRange b = op->getNumOperands() > 1 ? of(op->getOperand(1)) : a;
  auto corners = [&](auto function) {
    Corners result = Corners::of(a, b, function);
    return wrapped(op, result.lo, result.hi);
  };
  switch (entry) {
  case Operation::Add: return corners([](Wide x, Wide y) { return x + y; });
  case Operation::Sub: return corners([](Wide x, Wide y) { return x - y; });
  case Operation::Mul: return corners([](Wide x, Wide y) { return x * y; });
  case Operation::FloorDiv: {
    Corners result = quotients(a, b);
    return wrapped(op, result.lo, result.hi);
  }
  case Operation::Mod: return remainders(a, b);
  case Operation::Neg: return wrapped(op, -Wide(a.hi), -Wide(a.lo));
  case Operation::Abs: {
    if (a.lo >= 0)
      return a;
    Wide largest = std::max(-Wide(a.lo), Wide(a.hi));
    return wrapped(op, a.hi < 0 ? -Wide(a.hi) : Wide(0), largest);
  }
  case Operation::Min: return {std::min(a.lo, b.lo), std::min(a.hi, b.hi)};
  case Operation::Max: return {std::max(a.lo, b.lo), std::max(a.hi, b.hi)};
  case Operation::And: return isBool ? IntegerRange{a.lo & b.lo, a.hi & b.hi} : bitwise(entry, a, b);
  case Operation::Or: return isBool ? IntegerRange{a.lo | b.lo, a.hi | b.hi} : bitwise(entry, a, b);
  case Operation::Xor: return bitwise(entry, a, b);
  case Operation::Not:
    if (isBool || isU32)
      return {full.hi - a.hi, full.hi - a.lo};
    return {~a.hi, ~a.lo};
  case Operation::Shl:
    if (b.lo < 0 || b.hi >= (isU32 ? 32 : 63))
      return full;
    return corners([](Wide x, Wide y) { return x * (Wide(1) << static_cast<int>(y)); });
  case Operation::Shr:
    if (b.lo < 0)
      return full;
    return corners([](Wide x, Wide y) { return x >> static_cast<int>(std::min<Wide>(y, 63)); });
  case Operation::ILog2: return {ops::ilog2(ops::Int(a.lo)), ops::ilog2(ops::Int(a.hi))};
  case Operation::Select: {
    // `x if x < 8 else y`: an arm that the condition compares has the values with which it is taken.
    const auto ifTrue = rangeOfArm(op->getOperand(1), op->getOperand(0), /*holds=*/true);
    const auto ifFalse = rangeOfArm(op->getOperand(2), op->getOperand(0), /*holds=*/false);
    return !ifTrue ? ifFalse.value_or(full) : !ifFalse ? *ifTrue : unionOf(*ifTrue, *ifFalse);
  }
  case Operation::ToBool: return {!a.contains(0), !(a.isPoint() && a.lo == 0)};
  case Operation::ToInt: return a;
  case Operation::ToU32: return a.lo >= 0 && a.hi <= UINT32_MAX ? a : full;
  default: return op->getNumOperands() == 2 ? comparison(entry, a, b) : full;
  }
}

} // namespace cpflex
