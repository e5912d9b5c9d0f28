// Specialises tapes: folds what a fixed (b, h) and the bindings decide, recognises affine
// positions, unrolls small reductions, shares equal nodes and orders what is left by the
// coordinates it depends on.
#include "runtime/BlockMask/TapeProgram.h"

#include "runtime/BlockMask/ElementAccess.h"
#include "runtime/BlockMask/OperationDispatch.h"
#include "runtime/BlockMask/PointEvaluator.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

namespace cpflex {

namespace {

constexpr int64_t kMaxUnrolledNodes = 1024;
constexpr int64_t kMaxRectangles = 4096;
/// Elements of lists that are sorted for membership; longer ones are looked through.
constexpr int64_t kMaxMembers = int64_t(1) << 26;

bool isComparison(Operation operation) {
  return operation == Operation::Eq || operation == Operation::Ne || operation == Operation::Lt ||
         operation == Operation::Le || operation == Operation::Gt || operation == Operation::Ge;
}

struct Affine {
  __int128 qFactor = 0, kvFactor = 0, offset = 0;
};

/// Builds the nodes of one program.
class Specializer {
public:
  Specializer(const Tape &tape, const Bindings &bindings, const SpecializationOptions &options)
      : tape_(tape), bindings_(bindings), options_(options), valueOf_(tape.instructions.size(), -1) {
    scopes_.emplace_back();
  }

  TapeProgram run();

private:
  /// Bits above Dependence mark the loops whose index a node depends on, outermost first.
  static constexpr uint8_t loopBit(size_t depth) { return static_cast<uint8_t>(4u << depth); }

  int32_t add(ProgramNode node, bool isShared = true);
  int32_t addConstant(ValueType type, ScalarSlot value);
  int32_t addAffine(const Affine &affine);
  int32_t addOperation(Operation operation, ValueType operandType, ValueType resultType, const int32_t *operands);
  int32_t addLoad(const TapeInstruction &instruction);
  int32_t addReduction(int32_t index);
  std::optional<int32_t> addMembership(int32_t index, int64_t count);
  int32_t addUnrolled(const TapeInstruction &reduction, int32_t index, int64_t count);
  void addInstructions(int32_t begin, int32_t end);

  std::optional<Affine> affineOf(int32_t node) const;
  std::optional<Affine> affineResult(Operation operation, const int32_t *operands) const;
  bool fits(const Affine &affine) const;
  bool isConstant(int32_t node) const { return nodes_[node].form == NodeForm::Constant; }
  void summarize(ProgramLoad &load) const;
  void flatten(const std::vector<int32_t> &scope, std::vector<ProgramNode> &out,
               std::vector<int32_t> &renumbered) const;

  using NodeKey = std::tuple<NodeForm, Operation, ValueType, ValueType, int32_t, int32_t, int32_t, int32_t, int32_t,
                             int64_t, int64_t, int64_t>;

  const Tape &tape_;
  const Bindings &bindings_;
  const SpecializationOptions &options_;
  std::vector<ProgramNode> nodes_;
  std::vector<std::vector<int32_t>> bodies_; ///< of the Reduce nodes, by their `load`
  std::vector<std::vector<int32_t>> scopes_; ///< nodes of the open loops, outermost first
  std::vector<ProgramLoad> loads_;
  std::map<NodeKey, int32_t> known_;
  std::vector<int32_t> valueOf_; ///< node of each tape instruction
};

int32_t Specializer::add(ProgramNode node, bool isShared) {
  NodeKey key{node.form,        node.operation,   node.operandType, node.resultType, node.load,     node.operands[0],
              node.operands[1], node.operands[2], node.operands[3], node.qFactor,    node.kvFactor, node.offset};
  if (isShared)
    if (auto found = known_.find(key); found != known_.end())
      return found->second;
  int32_t index = static_cast<int32_t>(nodes_.size());
  if (isShared)
    known_.emplace(key, index);
  // The innermost loop that a node depends on is its home.
  size_t home = 0;
  for (size_t depth = 1; depth < scopes_.size(); ++depth)
    if (node.dependence & loopBit(depth - 1))
      home = depth;
  nodes_.push_back(node);
  scopes_[home].push_back(index);
  return index;
}

int32_t Specializer::addConstant(ValueType type, ScalarSlot value) {
  ProgramNode node;
  node.resultType = node.operandType = type;
  node.offset = value;
  return add(node);
}

std::optional<Affine> Specializer::affineOf(int32_t node) const {
  const ProgramNode &value = nodes_[node];
  if (value.resultType != ValueType::Int || (value.form != NodeForm::Constant && value.form != NodeForm::Affine))
    return std::nullopt;
  return Affine{value.qFactor, value.kvFactor, value.offset};
}

bool Specializer::fits(const Affine &affine) const {
  const PositionBounds &at = options_.positions;
  constexpr __int128 kMin = std::numeric_limits<int64_t>::min();
  constexpr __int128 kMax = std::numeric_limits<int64_t>::max();
  for (__int128 part : {affine.qFactor, affine.kvFactor, affine.offset})
    if (part < kMin || part > kMax)
      return false;
  // Every partial sum has to fit too, in the order in which evaluators add.
  __int128 qLo = std::min(affine.qFactor * at.qLo, affine.qFactor * at.qHi);
  __int128 qHi = std::max(affine.qFactor * at.qLo, affine.qFactor * at.qHi);
  __int128 kvLo = std::min(affine.kvFactor * at.kvLo, affine.kvFactor * at.kvHi);
  __int128 kvHi = std::max(affine.kvFactor * at.kvLo, affine.kvFactor * at.kvHi);
  for (__int128 lo : {qLo, kvLo, affine.offset + qLo, affine.offset + qLo + kvLo})
    if (lo < kMin)
      return false;
  for (__int128 hi : {qHi, kvHi, affine.offset + qHi, affine.offset + qHi + kvHi})
    if (hi > kMax)
      return false;
  return true;
}

int32_t Specializer::addAffine(const Affine &affine) {
  if (affine.qFactor == 0 && affine.kvFactor == 0)
    return addConstant(ValueType::Int, static_cast<int64_t>(affine.offset));
  ProgramNode node;
  node.form = NodeForm::Affine;
  node.qFactor = static_cast<int64_t>(affine.qFactor);
  node.kvFactor = static_cast<int64_t>(affine.kvFactor);
  node.offset = static_cast<int64_t>(affine.offset);
  node.dependence = (node.qFactor ? kDependsOnQ : 0) | (node.kvFactor ? kDependsOnKV : 0);
  return add(node);
}

/// The affine form of an Int operation on affine operands, when there is one that never wraps.
std::optional<Affine> Specializer::affineResult(Operation operation, const int32_t *operands) const {
  std::optional<Affine> a = affineOf(operands[0]);
  std::optional<Affine> b = arityOf(operation) > 1 ? affineOf(operands[1]) : Affine{};
  if (!a || !b)
    return std::nullopt;
  auto combined = [&](__int128 left, __int128 right) {
    return Affine{left * a->qFactor + right * b->qFactor, left * a->kvFactor + right * b->kvFactor,
                  left * a->offset + right * b->offset};
  };
  auto isNumber = [](const Affine &x) { return x.qFactor == 0 && x.kvFactor == 0; };
  std::optional<Affine> result;
  switch (operation) {
  case Operation::Add: result = combined(1, 1); break;
  case Operation::Sub: result = combined(1, -1); break;
  case Operation::Neg: result = combined(-1, 0); break;
  case Operation::Mul:
    if (isNumber(*b))
      result = combined(b->offset, 0);
    else if (isNumber(*a))
      result = combined(0, a->offset);
    break;
  case Operation::Shl:
    if (isNumber(*b) && b->offset >= 0 && b->offset < 62)
      result = combined(__int128(1) << static_cast<int>(b->offset), 0);
    break;
  case Operation::FloorDiv:
  case Operation::Mod: {
    // (n*x + c) // n = x + c // n and (n*x + c) % n = c % n, for either sign of n.
    int64_t n = static_cast<int64_t>(b->offset);
    if (!isNumber(*b) || n == 0 || n == -1 || a->qFactor % n != 0 || a->kvFactor % n != 0)
      break;
    ScalarSlot slots[2] = {static_cast<int64_t>(a->offset), n};
    int64_t rest = applyOperation(operation, ValueType::Int, slots);
    result = operation == Operation::Mod ? Affine{0, 0, rest} : Affine{a->qFactor / n, a->kvFactor / n, rest};
    break;
  }
  default: break;
  }
  if (result && fits(*result))
    return result;
  return std::nullopt;
}

int32_t Specializer::addOperation(Operation operation, ValueType operandType, ValueType resultType,
                                  const int32_t *operands) {
  int arity = arityOf(operation);
  ProgramNode node;
  node.form = NodeForm::Operation;
  node.operation = operation;
  node.operandType = operandType;
  node.resultType = resultType;
  bool areConstant = true;
  ScalarSlot slots[3] = {};
  for (int i = 0; i < arity; ++i) {
    const ProgramNode &operand = nodes_[operands[i]];
    node.operands[i] = operands[i];
    node.dependence |= operand.dependence;
    areConstant &= operand.form == NodeForm::Constant;
    slots[i] = operand.offset;
  }
  if (areConstant)
    return addConstant(resultType, applyOperation(operation, operandType, slots));

  if (operation == Operation::Select && isConstant(operands[0]))
    return operands[slots[0] ? 1 : 2];
  if (operation == Operation::Select && operands[1] == operands[2])
    return operands[1];
  if (operandType == ValueType::Bool && (operation == Operation::And || operation == Operation::Or)) {
    ScalarSlot neutral = operation == Operation::And;
    for (int i = 0; i < 2; ++i)
      if (isConstant(operands[i]))
        return slots[i] == neutral ? operands[1 - i] : operands[i];
    if (operands[0] == operands[1])
      return operands[0];
  }
  if ((operation == Operation::ToInt && operandType == ValueType::Int) ||
      (operation == Operation::ToBool && operandType == ValueType::Bool) ||
      (operation == Operation::ToU32 && operandType == ValueType::U32) ||
      (operation == Operation::ToFloat && operandType == ValueType::Float))
    return operands[0];
  if (operandType == ValueType::Int) {
    if (std::optional<Affine> affine = affineResult(operation, operands))
      return addAffine(*affine);
    if (isComparison(operation)) {
      std::optional<Affine> a = affineOf(operands[0]), b = affineOf(operands[1]);
      if (a && b) {
        Affine difference{a->qFactor - b->qFactor, a->kvFactor - b->kvFactor, a->offset - b->offset};
        if (fits(difference)) {
          ScalarSlot sides[2] = {static_cast<int64_t>(difference.offset), 0};
          if (difference.qFactor == 0 && difference.kvFactor == 0)
            return addConstant(ValueType::Bool, applyOperation(operation, ValueType::Int, sides));
          ProgramNode compare;
          compare.form = NodeForm::AffineCompare;
          compare.operation = operation;
          compare.resultType = ValueType::Bool;
          compare.qFactor = static_cast<int64_t>(difference.qFactor);
          compare.kvFactor = static_cast<int64_t>(difference.kvFactor);
          compare.offset = static_cast<int64_t>(difference.offset);
          compare.dependence = (compare.qFactor ? kDependsOnQ : 0) | (compare.kvFactor ? kDependsOnKV : 0);
          return add(compare);
        }
      }
    }
  }
  return add(node);
}

void Specializer::summarize(ProgramLoad &load) const {
  if (!options_.summaries || load.numAxes == 0)
    return;
  for (int axis = 0; axis < load.numAxes; ++axis)
    if (load.shape[axis] == 0)
      return;
  if (load.numAxes == 1) {
    bool isSorted =
        static_cast<size_t>(load.capture) < options_.declarations.size() &&
        options_.declarations[load.capture].isSorted &&
        load.strides[0] == bindings_.captures[load.capture].strides[bindings_.captures[load.capture].rank - 1];
    load.line =
        &options_.summaries->line(load.data, load.type, load.shape[0], load.strides[0],
                                  isSorted ? CaptureSummaries::Order::Sorted : CaptureSummaries::Order::Unknown);
    return;
  }
  int64_t outer[2] = {1, 1};
  for (int axis = 0; axis + 2 < load.numAxes; ++axis)
    outer[axis] = load.shape[axis];
  if (outer[0] * outer[1] > kMaxRectangles)
    return;
  int rowAxis = load.numAxes - 2, columnAxis = load.numAxes - 1;
  for (int64_t i = 0; i < outer[0]; ++i)
    for (int64_t j = 0; j < outer[1]; ++j) {
      int64_t offset = (load.numAxes > 2 ? i * load.strides[0] : 0) + (load.numAxes > 3 ? j * load.strides[1] : 0);
      load.rectangles.push_back(&options_.summaries->rectangle(elementAt(load.data, load.type, offset), load.type,
                                                               load.shape[rowAxis], load.strides[rowAxis],
                                                               load.shape[columnAxis], load.strides[columnAxis]));
    }
}

int32_t Specializer::addLoad(const TapeInstruction &instruction) {
  const CaptureView &view = bindings_.captures[instruction.immediate];
  ProgramLoad load;
  load.capture = static_cast<int32_t>(instruction.immediate);
  load.type = view.type;
  ProgramNode node;
  node.form = NodeForm::Load;
  node.operandType = node.resultType = instruction.resultType;
  int64_t offset = 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    int32_t index = valueOf_[instruction.operands[axis]];
    if (isConstant(index)) {
      int64_t at = nodes_[index].offset;
      if (at < 0 || at >= view.shape[axis])
        return addConstant(instruction.resultType, 0);
      offset += at * view.strides[axis];
      continue;
    }
    node.operands[load.numAxes] = index;
    node.dependence |= nodes_[index].dependence;
    load.shape[load.numAxes] = view.shape[axis];
    load.strides[load.numAxes++] = view.strides[axis];
  }
  if (load.numAxes == 0)
    return addConstant(instruction.resultType, readElement(view, offset, instruction.resultType));
  load.data = elementAt(view.data, view.type, offset);
  for (int axis = 0; axis < load.numAxes; ++axis)
    if (load.shape[axis] == 0)
      return addConstant(instruction.resultType, 0);
  auto isSame = [&](const ProgramLoad &other) {
    return !other.members && other.data == load.data && other.type == load.type && other.numAxes == load.numAxes &&
           std::equal(other.shape, other.shape + 4, load.shape) &&
           std::equal(other.strides, other.strides + 4, load.strides);
  };
  auto found = std::find_if(loads_.begin(), loads_.end(), isSame);
  node.load = static_cast<int32_t>(found - loads_.begin());
  if (found == loads_.end()) {
    summarize(load);
    loads_.push_back(std::move(load));
  }
  return add(node);
}

int32_t Specializer::addUnrolled(const TapeInstruction &reduction, int32_t index, int64_t count) {
  if (count <= 0)
    return addConstant(reduction.resultType, reduction.operation == Operation::ReduceAll);
  ValueType type = reduction.resultType;
  int32_t result = -1;
  if (reduction.operation == Operation::ReduceSum)
    result = addConstant(type, 0);
  for (int64_t i = 0; i < count; ++i) {
    valueOf_[index + 1] = addConstant(ValueType::Int, i);
    addInstructions(index + 2, reduction.operands[1]);
    int32_t element = valueOf_[reduction.operands[2]];
    if (result < 0) {
      result = element;
      continue;
    }
    int32_t both[2] = {result, element};
    switch (reduction.operation) {
    case Operation::ReduceAny: result = addOperation(Operation::Or, type, type, both); break;
    case Operation::ReduceAll: result = addOperation(Operation::And, type, type, both); break;
    case Operation::ReduceSum: result = addOperation(Operation::Add, type, type, both); break;
    case Operation::ReduceMin: result = addOperation(Operation::Min, type, type, both); break;
    default: result = addOperation(Operation::Max, type, type, both); break;
    }
  }
  return result;
}

/// `any(x == list[..., i] for i in range(count))` as one node, where at most one index besides i varies and neither it
/// nor x depends on i.
std::optional<int32_t> Specializer::addMembership(int32_t index, int64_t count) {
  const TapeInstruction &reduction = tape_.instructions[index];
  constexpr int64_t kLeastCount = 4; // a few comparisons are as good
  if (reduction.operation != Operation::ReduceAny || !options_.summaries || count < kLeastCount)
    return std::nullopt;
  // 1. The loop's body: an index, a load and a comparison, besides what does not depend on the index.
  int32_t induction = index + 1, load = -1;
  std::vector<bool> depends(reduction.operands[1] - index, false);
  auto dependsOnIndex = [&](int32_t operand) { return operand > index && depends[operand - index]; };
  depends[1] = true;
  for (int32_t i = index + 2; i < reduction.operands[1]; ++i) {
    const TapeInstruction &instruction = tape_.instructions[i];
    if (instruction.operation >= Operation::ReduceAny)
      return std::nullopt;
    depends[i - index] = std::any_of(std::begin(instruction.operands), std::end(instruction.operands), dependsOnIndex);
    if (!depends[i - index])
      continue;
    if (i == reduction.operands[2] && instruction.operation == Operation::Eq)
      continue;
    if (instruction.operation != Operation::Load || load >= 0)
      return std::nullopt;
    load = i;
  }
  const TapeInstruction &equal = tape_.instructions[reduction.operands[2]];
  if (load < 0 || reduction.operands[2] <= load || equal.operation != Operation::Eq ||
      equal.operandType != ValueType::Int)
    return std::nullopt;
  int32_t sought = equal.operands[0] == load ? equal.operands[1] : equal.operands[0];
  if ((equal.operands[0] != load && equal.operands[1] != load) || dependsOnIndex(sought))
    return std::nullopt;
  for (int32_t i = index + 2; i < reduction.operands[1]; ++i)
    if (!depends[i - index])
      addInstructions(i, i + 1);
  // 2. The axis of the index, and the one other axis that may vary.
  const TapeInstruction &loading = tape_.instructions[load];
  const CaptureView &view = bindings_.captures[loading.immediate];
  int listAxis = -1, rowAxis = -1;
  int64_t offset = 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    int32_t at = loading.operands[axis];
    if (at == induction) {
      if (listAxis >= 0)
        return std::nullopt;
      listAxis = axis;
    } else if (isConstant(valueOf_[at])) {
      int64_t position = nodes_[valueOf_[at]].offset;
      if (position < 0 || position >= view.shape[axis])
        return std::nullopt;
      offset += position * view.strides[axis];
    } else if (rowAxis >= 0 || dependsOnIndex(at)) {
      return std::nullopt;
    } else {
      rowAxis = axis;
    }
  }
  if (listAxis < 0 || isFloat(view.type))
    return std::nullopt;
  ProgramLoad list;
  list.capture = static_cast<int32_t>(loading.immediate);
  list.type = view.type;
  list.data = elementAt(view.data, view.type, offset);
  int64_t rows = rowAxis < 0 ? 1 : view.shape[rowAxis], columns = std::min(count, view.shape[listAxis]);
  if (rows == 0 || columns == 0 || rows > kMaxMembers / columns)
    return std::nullopt;
  list.members = &options_.summaries->members(list.data, list.type, rows, rowAxis < 0 ? 0 : view.strides[rowAxis],
                                              columns, view.strides[listAxis], /*hasZero=*/count > columns);
  // 3. The node.
  ProgramNode node;
  node.form = NodeForm::Member;
  node.resultType = ValueType::Bool;
  node.operands[0] = rowAxis < 0 ? addConstant(ValueType::Int, 0) : valueOf_[loading.operands[rowAxis]];
  node.operands[1] = valueOf_[sought];
  node.dependence = nodes_[node.operands[0]].dependence | nodes_[node.operands[1]].dependence;
  auto isSame = [&](const ProgramLoad &other) { return other.members == list.members; };
  auto found = std::find_if(loads_.begin(), loads_.end(), isSame);
  node.load = static_cast<int32_t>(found - loads_.begin());
  if (found == loads_.end())
    loads_.push_back(std::move(list));
  return add(node);
}

int32_t Specializer::addReduction(int32_t index) {
  const TapeInstruction &reduction = tape_.instructions[index];
  int32_t count = valueOf_[reduction.operands[0]];
  int64_t bodySize = reduction.operands[1] - index;
  if (isConstant(count)) {
    int64_t n = nodes_[count].offset;
    if (std::optional<int32_t> member = addMembership(index, n))
      return *member;
    if (n <= 0 || n <= (kMaxUnrolledNodes - static_cast<int64_t>(nodes_.size())) / bodySize)
      return addUnrolled(reduction, index, n);
  }
  size_t depth = scopes_.size();
  scopes_.emplace_back();
  ProgramNode induction;
  induction.form = NodeForm::Induction;
  induction.dependence = loopBit(depth - 1) | nodes_[count].dependence;
  valueOf_[index + 1] = add(induction, /*isShared=*/false);
  addInstructions(index + 2, reduction.operands[1]);
  int32_t element = valueOf_[reduction.operands[2]];
  ProgramNode node;
  node.form = NodeForm::Reduce;
  node.operation = reduction.operation;
  node.operandType = node.resultType = reduction.resultType;
  node.operands[0] = count;
  node.operands[2] = element;
  node.load = static_cast<int32_t>(bodies_.size());
  uint8_t inside = loopBit(depth - 1);
  node.dependence = (nodes_[element].dependence | nodes_[count].dependence) & ~inside;
  bodies_.push_back(std::move(scopes_.back()));
  scopes_.pop_back();
  return add(node, /*isShared=*/false);
}

void Specializer::addInstructions(int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; ++i) {
    const TapeInstruction &instruction = tape_.instructions[i];
    switch (instruction.operation) {
    case Operation::Constant: valueOf_[i] = addConstant(instruction.resultType, instruction.immediate); break;
    case Operation::Param:
      valueOf_[i] = addConstant(instruction.resultType, bindings_.params[instruction.immediate]);
      break;
    case Operation::Dim: valueOf_[i] = addConstant(ValueType::Int, bindings_.dims[instruction.immediate]); break;
    case Operation::Coordinate:
      valueOf_[i] = instruction.immediate == 0   ? addConstant(ValueType::Int, options_.b)
                    : instruction.immediate == 1 ? addConstant(ValueType::Int, options_.h)
                    : instruction.immediate == 2 ? addAffine({1, 0, 0})
                                                 : addAffine({0, 1, 0});
      break;
    case Operation::Load: valueOf_[i] = addLoad(instruction); break;
    case Operation::Induction: break; // set by its reduction
    case Operation::ReduceAny:
    case Operation::ReduceAll:
    case Operation::ReduceSum:
    case Operation::ReduceMin:
    case Operation::ReduceMax:
      valueOf_[i] = addReduction(i);
      i = instruction.operands[1] - 1;
      break;
    default: {
      int32_t operands[3] = {};
      for (int k = 0; k < arityOf(instruction.operation); ++k)
        operands[k] = valueOf_[instruction.operands[k]];
      valueOf_[i] = addOperation(instruction.operation, instruction.operandType, instruction.resultType, operands);
    }
    }
  }
}

/// Appends a scope's nodes, each reduction followed by its body.
void Specializer::flatten(const std::vector<int32_t> &scope, std::vector<ProgramNode> &out,
                          std::vector<int32_t> &renumbered) const {
  for (int32_t index : scope) {
    ProgramNode node = nodes_[index];
    renumbered[index] = static_cast<int32_t>(out.size());
    if (node.form != NodeForm::Reduce) {
      for (int i = 0; i < numOperands(node); ++i)
        node.operands[i] = renumbered[node.operands[i]];
      out.push_back(node);
      continue;
    }
    int32_t position = static_cast<int32_t>(out.size());
    out.push_back(node);
    flatten(bodies_[node.load], out, renumbered);
    ProgramNode &placed = out[position];
    placed.operands[0] = renumbered[node.operands[0]];
    placed.operands[1] = static_cast<int32_t>(out.size());
    placed.operands[2] = renumbered[node.operands[2]];
    placed.load = -1;
  }
}

TapeProgram Specializer::run() {
  addInstructions(0, static_cast<int32_t>(tape_.instructions.size()));
  std::vector<ProgramNode> flat;
  std::vector<int32_t> renumbered(nodes_.size(), -1);
  flatten(scopes_[0], flat, renumbered);
  return assemble(flat, renumbered[valueOf_[tape_.result]],
                  std::make_shared<const std::vector<ProgramLoad>>(std::move(loads_)));
}

} // namespace

TapeProgram specialize(const Tape &tape, const Bindings &bindings, const SpecializationOptions &options) {
  return Specializer(tape, bindings, options).run();
}

uint8_t coordinatesRead(const Tape &tape) {
  // A value that the result does not need is not read. Bodies count with their reduction.
  std::vector<bool> isNeeded(tape.instructions.size(), false);
  if (tape.result >= 0)
    isNeeded[tape.result] = true;
  uint8_t read = 0;
  for (int32_t i = static_cast<int32_t>(tape.instructions.size()) - 1; i >= 0; --i) {
    const TapeInstruction &instruction = tape.instructions[i];
    bool isReduction = instruction.operation >= Operation::ReduceAny;
    if (isReduction && isNeeded[i]) {
      // The body lies behind the reduction: mark and walk it again.
      int32_t end = instruction.operands[1];
      isNeeded[instruction.operands[0]] = true;
      if (!isNeeded[instruction.operands[2]]) {
        isNeeded[instruction.operands[2]] = true;
        i = std::max(end, i + 1);
        continue;
      }
    }
    if (!isNeeded[i])
      continue;
    if (instruction.operation == Operation::Coordinate)
      read |= static_cast<uint8_t>(1u << instruction.immediate);
    if (!isReduction)
      for (int32_t operand : instruction.operands)
        if (operand >= 0)
          isNeeded[operand] = true;
  }
  return read;
}

} // namespace cpflex
