// The interval meaning of programs: affine forms exactly, loads from summaries, reductions in
// chunks, ids with a sentinel by cases.
#include "runtime/BlockMask/IntervalEvaluator.h"

#include "runtime/BlockMask/ElementAccess.h"
#include "runtime/BlockMask/PointEvaluator.h"

#include <algorithm>

namespace cpflex {

namespace {

/// Loads that are split into cases at once; each doubles the evaluations of an undecided tile.
constexpr size_t kMaxGaps = 3;
/// Parts into which the iterations of a loop are cut.
constexpr int64_t kLoopChunks = 16;
/// Float sums are bounded term by term up to this many terms.
constexpr int64_t kMaxSummedTerms = 4096;

AbstractValue compareWithZero(Operation operation, int64_t lo, int64_t hi) {
  switch (operation) {
  case Operation::Lt: return AbstractValue::booleans(lo < 0, hi >= 0);
  case Operation::Le: return AbstractValue::booleans(lo <= 0, hi > 0);
  case Operation::Gt: return AbstractValue::booleans(hi > 0, lo <= 0);
  case Operation::Ge: return AbstractValue::booleans(hi >= 0, lo < 0);
  case Operation::Eq: return AbstractValue::booleans(lo <= 0 && hi >= 0, lo != 0 || hi != 0);
  default: return AbstractValue::booleans(lo != 0 || hi != 0, lo <= 0 && hi >= 0);
  }
}

TileClass classOf(const AbstractValue &result) {
  if (!result.canBeTrue())
    return TileClass::Empty;
  return result.canBeFalse() ? TileClass::Partial : TileClass::Full;
}

/// The sum of `count` terms, each within `term`.
AbstractValue sumOf(ValueType type, const AbstractValue &sum, const AbstractValue &term, int64_t count) {
  if (type == ValueType::Int)
    return addIntegers(sum, multiplyIntegers(term, AbstractValue::integers(count, count)));
  if (count > kMaxSummedTerms)
    return AbstractValue::unknown(type);
  AbstractValue operands[2] = {sum, term};
  for (int64_t i = 0; i < count; ++i)
    operands[0] = applyAbstract(Operation::Add, type, operands);
  return operands[0];
}

} // namespace

IntervalEvaluator::IntervalEvaluator(const TapeProgram &program) : program_(&program), values_(program.nodes.size()) {
  for (int32_t i = 0; i < program.numConstants; ++i)
    values_[i] = AbstractValue::single(program.nodes[i].resultType, program.nodes[i].offset);
  // A chain of `and` is empty where one of its comparisons is, a chain of `or` full.
  Operation chain = program.nodes[program.result].operation;
  bool isChain =
      program.nodes[program.result].form == NodeForm::Operation && (chain == Operation::And || chain == Operation::Or);
  std::vector<bool> isVisited(program.nodes.size(), false);
  if (isChain)
    collectGuards(program.result, chain, isVisited);
  guardClass_ = chain == Operation::And ? TileClass::Empty : TileClass::Full;
}

void IntervalEvaluator::collectGuards(int32_t index, Operation chain, std::vector<bool> &isVisited) {
  if (isVisited[index])
    return;
  isVisited[index] = true;
  const ProgramNode &node = program_->nodes[index];
  if (node.form == NodeForm::AffineCompare)
    guards_.push_back(index);
  if (node.form != NodeForm::Operation || node.operation != chain || node.operandType != ValueType::Bool)
    return;
  collectGuards(node.operands[0], chain, isVisited);
  collectGuards(node.operands[1], chain, isVisited);
}

AbstractValue IntervalEvaluator::affine(const ProgramNode &node, const PositionBounds &tile) const {
  int64_t lo = node.offset, hi = node.offset;
  lo += node.qFactor * (node.qFactor >= 0 ? tile.qLo : tile.qHi);
  hi += node.qFactor * (node.qFactor >= 0 ? tile.qHi : tile.qLo);
  lo += node.kvFactor * (node.kvFactor >= 0 ? tile.kvLo : tile.kvHi);
  hi += node.kvFactor * (node.kvFactor >= 0 ? tile.kvHi : tile.kvLo);
  return AbstractValue::integers(lo, hi);
}

AbstractValue IntervalEvaluator::operation(const ProgramNode &node) const {
  const AbstractValue &a = values_[node.operands[0]];
  if (node.operandType == ValueType::Bool) {
    if (node.operation == Operation::Not)
      return AbstractValue::integers(1 - a.hi, 1 - a.lo);
    const AbstractValue &b = values_[std::max(node.operands[1], 0)];
    if (node.operation == Operation::And)
      return AbstractValue::integers(a.lo & b.lo, a.hi & b.hi);
    if (node.operation == Operation::Or)
      return AbstractValue::integers(a.lo | b.lo, a.hi | b.hi);
  } else if (node.operandType == ValueType::Int) {
    // The most frequent ones, without the way through the table of rules.
    const AbstractValue &b = values_[std::max(node.operands[1], 0)];
    switch (node.operation) {
    case Operation::Eq:
      return AbstractValue::booleans(a.lo <= b.hi && b.lo <= a.hi, a.lo != a.hi || b.lo != b.hi || a.lo != b.lo);
    case Operation::Le: return AbstractValue::booleans(a.lo <= b.hi, a.hi > b.lo);
    case Operation::Lt: return AbstractValue::booleans(a.lo < b.hi, a.hi >= b.lo);
    case Operation::Ge: return AbstractValue::booleans(a.hi >= b.lo, a.lo < b.hi);
    default: break;
    }
  }
  AbstractValue operands[3];
  for (int i = 0; i < 3 && node.operands[i] >= 0; ++i)
    operands[i] = values_[node.operands[i]];
  return applyAbstract(node.operation, node.operandType, operands);
}

AbstractValue IntervalEvaluator::load(const ProgramNode &node, int32_t index) {
  const ProgramLoad &load = (*program_->loads)[node.load];
  ValueType type = node.resultType;
  const LineSummary *line = load.line;
  // 1. The part of the array within reach; an index outside of it means 0.
  Range reach[kMaxCaptureRank];
  bool mayBeOutside = false;
  bool isOneElement = true;
  int64_t offset = 0;
  for (int axis = 0; axis < load.numAxes; ++axis) {
    const AbstractValue &at = values_[node.operands[axis]];
    int64_t lo = std::max<int64_t>(at.lo, 0), hi = std::min(at.hi, load.shape[axis] - 1);
    mayBeOutside |= at.lo < 0 || at.hi >= load.shape[axis];
    if (lo > hi)
      return AbstractValue::single(type, 0);
    if (load.strides[axis] == 0)
      lo = hi = 0;
    reach[axis] = {lo, hi + 1};
    isOneElement &= lo == hi;
    offset += lo * load.strides[axis];
  }
  // 2. The bounds of that part.
  AbstractValue result;
  if (isOneElement) {
    CaptureView view;
    view.data = load.data;
    view.type = load.type;
    result = AbstractValue::single(type, readElement(view, offset, type));
  } else if (line) {
    ElementBounds bounds = line->bounds(reach[0].begin, reach[0].end);
    // A least element apart from the rest, or below 0, is most likely a sentinel that predicates
    // ask for.
    bool isSentinel = bounds.secondLo > bounds.lo && (bounds.lo < 0 || bounds.secondLo - 1 > bounds.lo);
    bool hasGap = isSentinel && bounds.secondLo <= bounds.hi && type == ValueType::Int && !mayBeOutside;
    if (hasGap && !isByCases_ && gaps_.size() < kMaxGaps)
      gaps_.push_back(index);
    if (hasGap && isByCases_ && parts_[index] != GapPart::Both) {
      if (parts_[index] == GapPart::Least)
        return AbstractValue::integers(bounds.lo, bounds.lo);
      return AbstractValue::integers(bounds.secondLo, bounds.hi);
    }
    result = bounds.toAbstract(load.type);
  } else if (!load.rectangles.empty()) {
    int first = load.numAxes - 2; // the axes before it choose rectangles
    Range outer = first > 0 ? reach[0] : Range{0, 1}, inner = first > 1 ? reach[1] : Range{0, 1};
    int64_t innerSize = first > 1 ? load.shape[1] : 1;
    ElementBounds bounds;
    for (int64_t i = outer.begin; i < outer.end; ++i)
      for (int64_t j = inner.begin; j < inner.end; ++j)
        load.rectangles[i * innerSize + j]->addBounds(reach[first], reach[first + 1], bounds);
    result = bounds.toAbstract(load.type);
  } else {
    return AbstractValue::unknown(type);
  }
  return mayBeOutside ? hull(type, result, AbstractValue::single(type, 0)) : result;
}

AbstractValue IntervalEvaluator::reduction(int32_t index, const PositionBounds &tile) {
  const ProgramNode &node = program_->nodes[index];
  ValueType type = node.resultType;
  AbstractValue count = values_[node.operands[0]];
  int64_t most = std::max<int64_t>(count.hi, 0), least = std::max<int64_t>(count.lo, 0);
  AbstractValue empty = AbstractValue::single(type, node.operation == Operation::ReduceAll);
  AbstractValue result = empty;
  if (most == 0)
    return result;
  // Iterations every tile element runs come first, then those that only some run.
  bool isFirst = true;
  int64_t chunk = std::max<int64_t>(1, most / kLoopChunks);
  for (int64_t begin = 0; begin < most;) {
    bool isCertain = begin < least;
    int64_t end = std::min(begin + chunk, isCertain ? least : most);
    values_[index + 1] = AbstractValue::integers(begin, end - 1);
    evaluate(index + 2, node.operands[1], tile);
    const AbstractValue &element = values_[node.operands[2]];
    AbstractValue extended = result;
    AbstractValue operands[2] = {result, element};
    switch (node.operation) {
    case Operation::ReduceAny: extended = applyAbstract(Operation::Or, type, operands); break;
    case Operation::ReduceAll: extended = applyAbstract(Operation::And, type, operands); break;
    case Operation::ReduceSum: extended = sumOf(type, result, element, end - begin); break;
    default: {
      Operation pick = node.operation == Operation::ReduceMin ? Operation::Min : Operation::Max;
      extended = isFirst ? element : applyAbstract(pick, type, operands);
    }
    }
    // After some of the uncertain iterations the result may be any of those in between.
    if (isCertain)
      result = extended;
    else if (node.operation == Operation::ReduceSum && type == ValueType::Int)
      result = hull(type, result, sumOf(type, result, hull(type, element, empty), end - begin));
    else if (node.operation == Operation::ReduceSum)
      result = AbstractValue::unknown(type);
    else
      result = hull(type, result, extended);
    isFirst = false;
    begin = end;
  }
  return result;
}

void IntervalEvaluator::evaluate(int32_t begin, int32_t end, const PositionBounds &tile) {
  const ProgramNode *nodes = program_->nodes.data();
  for (int32_t i = begin; i < end; ++i) {
    const ProgramNode &node = nodes[i];
    switch (node.form) {
    case NodeForm::Affine: values_[i] = affine(node, tile); break;
    case NodeForm::AffineCompare: {
      AbstractValue difference = affine(node, tile);
      values_[i] = compareWithZero(node.operation, difference.lo, difference.hi);
      break;
    }
    case NodeForm::Operation: values_[i] = operation(node); break;
    case NodeForm::Load: {
      const ProgramLoad &array = (*program_->loads)[node.load];
      const AbstractValue &at = values_[node.operands[0]];
      bool isSortedPart = array.line && array.line->isSorted() && node.resultType == ValueType::Int && at.lo >= 0 &&
                          at.hi < array.shape[0];
      values_[i] = isSortedPart ? array.line->sortedBounds(at.lo, at.hi) : load(node, i);
      break;
    }
    case NodeForm::Member:
      values_[i] =
          (*program_->loads)[node.load].members->contains(values_[node.operands[0]], values_[node.operands[1]]);
      break;
    case NodeForm::Reduce:
      values_[i] = reduction(i, tile);
      i = node.operands[1] - 1;
      break;
    case NodeForm::Constant:
    case NodeForm::Induction: break;
    }
  }
}

TileClass IntervalEvaluator::classify(const PositionBounds &tile) {
  const TapeProgram &program = *program_;
  int32_t end = static_cast<int32_t>(program.nodes.size());
  for (int32_t guard : guards_) {
    AbstractValue difference = affine(program.nodes[guard], tile);
    if (classOf(compareWithZero(program.nodes[guard].operation, difference.lo, difference.hi)) == guardClass_)
      return guardClass_;
  }
  gaps_.clear();
  if (!hasQPart_ || last_.qLo != tile.qLo || last_.qHi != tile.qHi)
    evaluate(program.numConstants, program.kvBegin, tile);
  if (!hasKVPart_ || last_.kvLo != tile.kvLo || last_.kvHi != tile.kvHi)
    evaluate(program.kvBegin, program.bothBegin, tile);
  evaluate(program.bothBegin, end, tile);
  last_ = tile;
  TileClass result = classOf(values_[program.result]);
  // Parts with gaps are evaluated anew, so that the gaps are found again.
  hasQPart_ = hasKVPart_ = gaps_.empty();
  if (result == TileClass::Partial && !gaps_.empty())
    return classifyByCases(tile);
  return result;
}

/// Every combination of least element and rest covers all values; what all combinations agree on is
/// proved.
TileClass IntervalEvaluator::classifyByCases(const PositionBounds &tile) {
  if (caseValues_.empty())
    caseValues_ = values_; // for its constants
  parts_.assign(values_.size(), GapPart::Both);
  values_.swap(caseValues_);
  isByCases_ = true;
  bool canBeTrue = false, canBeFalse = false;
  for (size_t combination = 0; combination < size_t(1) << gaps_.size(); ++combination) {
    for (size_t i = 0; i < gaps_.size(); ++i)
      parts_[gaps_[i]] = combination >> i & 1 ? GapPart::Rest : GapPart::Least;
    evaluate(program_->numConstants, static_cast<int32_t>(values_.size()), tile);
    canBeTrue |= values_[program_->result].canBeTrue();
    canBeFalse |= values_[program_->result].canBeFalse();
    if (canBeTrue && canBeFalse)
      break;
  }
  isByCases_ = false;
  values_.swap(caseValues_);
  return classOf(AbstractValue::booleans(canBeTrue, canBeFalse));
}

/// Whether the last tile has decided anything, so that a look at the whole program may pay.
bool IntervalEvaluator::mayShorten() const {
  int32_t size = static_cast<int32_t>(values_.size());
  for (int32_t i = program_->numConstants; i < size; ++i) {
    const ProgramNode &node = program_->nodes[i];
    bool isPick =
        node.form == NodeForm::Operation && (node.operation == Operation::Min || node.operation == Operation::Max);
    if (isPick || values_[i].isSingle(node.resultType))
      return true;
  }
  return false;
}

std::optional<TapeProgram> IntervalEvaluator::pruned() const {
  if (!mayShorten())
    return std::nullopt;
  const std::vector<ProgramNode> &nodes = program_->nodes;
  int32_t size = static_cast<int32_t>(nodes.size());
  // 1. What is needed, from the result back, and what each value is replaced by.
  std::vector<int32_t> replacement(size);
  std::vector<bool> isNeeded(size, false);
  isNeeded[program_->result] = true;
  bool hasChanged = false;
  std::vector<bool> isConstant(size, false);
  std::vector<int32_t> loopEnd(size, -1); // of the outermost reduction around a body's node
  for (int32_t i = 0; i < size; ++i)
    if (nodes[i].form == NodeForm::Reduce) {
      for (int32_t k = i + 1; k < nodes[i].operands[1]; ++k)
        loopEnd[k] = nodes[i].operands[1];
      i = nodes[i].operands[1] - 1;
    }
  for (int32_t i = size - 1; i >= 0; --i) {
    replacement[i] = i;
    if (!isNeeded[i] || loopEnd[i] >= 0)
      continue;
    const ProgramNode &node = nodes[i];
    if (node.form == NodeForm::Constant)
      continue;
    if (values_[i].isSingle(node.resultType)) {
      isConstant[i] = hasChanged = true;
      continue;
    }
    if (node.form == NodeForm::Reduce) {
      for (int32_t k = i; k < node.operands[1]; ++k) {
        for (int operand = 0; operand < numOperands(nodes[k]); ++operand)
          isNeeded[nodes[k].operands[operand]] = true;
        if (nodes[k].form == NodeForm::Reduce)
          isNeeded[nodes[k].operands[0]] = isNeeded[nodes[k].operands[2]] = true;
      }
      continue;
    }
    if (numOperands(node) == 0)
      continue;
    int32_t kept = -1;
    if (node.form == NodeForm::Operation) {
      const AbstractValue &a = values_[node.operands[0]];
      const AbstractValue &b = values_[std::max(node.operands[1], 0)];
      if (node.operation == Operation::Select)
        kept = !a.canBeFalse() ? node.operands[1] : !a.canBeTrue() ? node.operands[2] : -1;
      else if (node.operandType == ValueType::Bool && node.operation == Operation::And)
        kept = !a.canBeFalse() ? node.operands[1] : !b.canBeFalse() ? node.operands[0] : -1;
      else if (node.operandType == ValueType::Bool && node.operation == Operation::Or)
        kept = !a.canBeTrue() ? node.operands[1] : !b.canBeTrue() ? node.operands[0] : -1;
      else if (node.operandType != ValueType::Float && node.operation == Operation::Min)
        kept = a.hi <= b.lo ? node.operands[0] : b.hi <= a.lo ? node.operands[1] : -1;
      else if (node.operandType != ValueType::Float && node.operation == Operation::Max)
        kept = a.lo >= b.hi ? node.operands[0] : b.lo >= a.hi ? node.operands[1] : -1;
    }
    if (kept >= 0) {
      replacement[i] = kept;
      isNeeded[kept] = hasChanged = true;
      continue;
    }
    for (int k = 0; k < numOperands(node); ++k)
      isNeeded[node.operands[k]] = true;
  }
  if (!hasChanged)
    return std::nullopt;
  // 2. The same nodes with decided ones constant and uses led to their replacement.
  std::vector<ProgramNode> shorter = nodes;
  auto resolve = [&](int32_t index) {
    while (replacement[index] != index)
      index = replacement[index];
    return index;
  };
  for (int32_t i = 0; i < size; ++i) {
    ProgramNode &node = shorter[i];
    if (isConstant[i]) {
      ScalarSlot slot = values_[i].toSlot(node.resultType);
      ValueType type = node.resultType;
      int32_t end = node.form == NodeForm::Reduce ? node.operands[1] : i + 1;
      for (int32_t k = i; k < end; ++k) {
        shorter[k] = ProgramNode();
        shorter[k].operandType = shorter[k].resultType = type;
        shorter[k].offset = slot;
      }
      i = end - 1;
      continue;
    }
    for (int k = 0; k < numOperands(node); ++k)
      node.operands[k] = resolve(node.operands[k]);
    if (node.form == NodeForm::Reduce) {
      node.operands[0] = resolve(node.operands[0]);
      node.operands[2] = resolve(node.operands[2]);
    }
  }
  return assemble(shorter, resolve(program_->result), program_->loads);
}

} // namespace cpflex
