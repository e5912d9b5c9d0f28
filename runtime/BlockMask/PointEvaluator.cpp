// Point evaluation on whole tapes: specialised rows for speed, and the explanation of one point
// straight from the tape.
#include "runtime/BlockMask/PointEvaluator.h"

#include "runtime/BlockMask/LaneEvaluator.h"
#include "runtime/BlockMask/OperationDispatch.h"
#include "runtime/BlockMask/TapeProgram.h"

#include <fmt/format.h>

#include <optional>

namespace cpflex {

namespace {

/// Positions beyond any sequence, within which affine forms must not wrap.
constexpr int64_t kMaxPosition = int64_t(1) << 40;
/// Loops inside loops that a tape may have.
constexpr int kMaxLoopDepth = 5;

bool isReduction(Operation operation) { return operation >= Operation::ReduceAny; }

const char *domainsOf(Operation operation) {
  switch (operation) {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  case Operation::Enumerator: return domains;
#include "runtime/contract/Operations.def"
  default: return "";
  }
}

bool existsFor(Operation operation, ValueType type) {
  constexpr char letters[] = {'B', 'I', 'U', 'F'};
  return std::string_view(domainsOf(operation)).find(letters[static_cast<int>(type)]) != std::string_view::npos;
}

/// Walks a tape and checks each instruction against those that are in scope.
class TapeChecker {
public:
  TapeChecker(const Tape &tape, const Bindings &bindings) : tape_(tape), bindings_(bindings) {}

  Status check() {
    if (tape_.result < 0 || tape_.result >= size())
      return fault(tape_.result, "is not a value of the tape; expected the result");
    CPFLEX_RETURN_IF_ERROR(checkScope(0, size(), /*depth=*/0));
    if (!isVisible_[tape_.result])
      return fault(tape_.result, "is inside a reduction; expected the result outside");
    if (tape_.instructions[tape_.result].resultType != ValueType::Bool)
      return fault(tape_.result, "is not Bool; expected the result of a predicate to be");
    return Status::ok();
  }

private:
  int32_t size() const { return static_cast<int32_t>(tape_.instructions.size()); }
  Status fault(int32_t index, const char *text) const {
    return Status::invalid(fmt::format("tape '{}': value {} {}", tape_.name, index, text));
  }

  Status checkOperand(int32_t index, int32_t operand, std::optional<ValueType> type) const {
    if (operand < 0 || operand >= index || !isVisible_[operand])
      return fault(index, "uses a value that is not in scope; expected an earlier one");
    if (type && tape_.instructions[operand].resultType != *type)
      return fault(index, "uses a value of another type; expected its operand type");
    return Status::ok();
  }

  Status checkOperation(int32_t index) const {
    const TapeInstruction &instruction = tape_.instructions[index];
    if (!existsFor(instruction.operation, instruction.operandType))
      return fault(index, "applies an operation that does not exist for its operand type");
    for (int k = 0; k < arityOf(instruction.operation); ++k) {
      bool isCondition = instruction.operation == Operation::Select && k == 0;
      CPFLEX_RETURN_IF_ERROR(
          checkOperand(index, instruction.operands[k], isCondition ? ValueType::Bool : instruction.operandType));
    }
    return Status::ok();
  }

  Status checkLoad(int32_t index) const {
    const TapeInstruction &instruction = tape_.instructions[index];
    if (!bindings_.captures || instruction.immediate < 0)
      return fault(index, "loads from an array that is not bound");
    const CaptureView &view = bindings_.captures[instruction.immediate];
    if (view.rank < 0 || view.rank > kMaxCaptureRank)
      return fault(index, "loads from an array with too many dimensions");
    for (int axis = 0; axis < kMaxCaptureRank; ++axis) {
      if (axis < view.rank)
        CPFLEX_RETURN_IF_ERROR(checkOperand(index, instruction.operands[axis], ValueType::Int));
      else if (instruction.operands[axis] >= 0)
        return fault(index, "has more indices than its array has dimensions");
    }
    ValueType element = valueTypeOf(view.type);
    bool isConverted = instruction.resultType == ValueType::Int && element == ValueType::U32;
    if (instruction.resultType != element && !isConverted)
      return fault(index, "loads elements of another type than the bound array has");
    return Status::ok();
  }

  Status checkScope(int32_t begin, int32_t end, int depth) {
    for (int32_t i = begin; i < end; ++i) {
      const TapeInstruction &instruction = tape_.instructions[i];
      isVisible_.resize(size(), false);
      switch (instruction.operation) {
      case Operation::Constant: break;
      case Operation::Param:
        if (!bindings_.params || instruction.immediate < 0)
          return fault(i, "reads a parameter that is not bound");
        break;
      case Operation::Dim:
        if (!bindings_.dims || instruction.immediate < 0)
          return fault(i, "reads a dimension that is not bound");
        break;
      case Operation::Coordinate:
        if (instruction.immediate < 0 || instruction.immediate > 3)
          return fault(i, "reads a coordinate other than b, h, q, kv");
        break;
      case Operation::Load: CPFLEX_RETURN_IF_ERROR(checkLoad(i)); break;
      case Operation::Induction:
        if (i != begin || depth == 0)
          return fault(i, "is an index outside of a reduction's first place");
        break;
      default:
        if (isReduction(instruction.operation))
          CPFLEX_RETURN_IF_ERROR(checkReduction(i, end, depth));
        else
          CPFLEX_RETURN_IF_ERROR(checkOperation(i));
      }
      isVisible_[i] = true;
      if (isReduction(instruction.operation))
        i = instruction.operands[1] - 1;
    }
    return Status::ok();
  }

  Status checkReduction(int32_t index, int32_t end, int depth) {
    const TapeInstruction &instruction = tape_.instructions[index];
    int32_t bodyEnd = instruction.operands[1];
    if (depth == kMaxLoopDepth)
      return fault(index, "nests reductions too deeply; expected at most 5 levels");
    CPFLEX_RETURN_IF_ERROR(checkOperand(index, instruction.operands[0], ValueType::Int));
    if (bodyEnd <= index + 1 || bodyEnd > end || tape_.instructions[index + 1].operation != Operation::Induction)
      return fault(index, "has no proper body; expected it to begin with its index");
    CPFLEX_RETURN_IF_ERROR(checkScope(index + 1, bodyEnd, depth + 1));
    CPFLEX_RETURN_IF_ERROR(checkOperand(bodyEnd, instruction.operands[2], instruction.resultType));
    for (int32_t i = index + 1; i < bodyEnd; ++i)
      isVisible_[i] = false;
    return Status::ok();
  }

  const Tape &tape_;
  const Bindings &bindings_;
  std::vector<bool> isVisible_;
};

/// Evaluates a tape at one point without any specialisation, noting every value.
class Explainer {
public:
  Explainer(const Tape &tape, const Bindings &bindings, const int64_t (&at)[4])
      : tape_(tape), bindings_(bindings), values_(tape.instructions.size()) {
    std::copy(at, at + 4, at_);
  }

  PointExplanation explain() {
    PointExplanation result;
    int32_t size = static_cast<int32_t>(tape_.instructions.size());
    run(0, size, /*iteration=*/-1, result.values);
    result.attends = values_[tape_.result] != 0;
    return result;
  }

private:
  ScalarSlot load(const TapeInstruction &instruction, bool &isOutOfRange) const {
    const CaptureView &view = bindings_.captures[instruction.immediate];
    int64_t offset = 0;
    for (int axis = 0; axis < view.rank; ++axis) {
      int64_t at = values_[instruction.operands[axis]];
      if (at < 0 || at >= view.shape[axis]) {
        isOutOfRange = true;
        return 0;
      }
      offset += at * view.strides[axis];
    }
    return readElement(view, offset, instruction.resultType);
  }

  void reduce(int32_t index, std::vector<ExplainedValue> &values) {
    const TapeInstruction &instruction = tape_.instructions[index];
    ValueType type = instruction.resultType;
    ScalarSlot result = instruction.operation == Operation::ReduceAll;
    int64_t count = values_[instruction.operands[0]];
    std::vector<ExplainedValue> shown;
    for (int64_t i = 0; i < count; ++i) {
      values_[index + 1] = i;
      shown.clear();
      run(index + 1, instruction.operands[1], i, shown);
      ScalarSlot both[2] = {result, values_[instruction.operands[2]]};
      switch (instruction.operation) {
      case Operation::ReduceAny: result = both[0] | both[1]; break;
      case Operation::ReduceAll: result = both[0] & both[1]; break;
      case Operation::ReduceSum: result = applyOperation(Operation::Add, type, both); break;
      case Operation::ReduceMin: result = i == 0 ? both[1] : applyOperation(Operation::Min, type, both); break;
      default: result = i == 0 ? both[1] : applyOperation(Operation::Max, type, both);
      }
      bool isDecided = (instruction.operation == Operation::ReduceAny && result) ||
                       (instruction.operation == Operation::ReduceAll && !result);
      if (isDecided)
        break;
    }
    values_[index] = result;
    values.push_back({index, type, result, -1, false});
    values.insert(values.end(), shown.begin(), shown.end());
  }

  void run(int32_t begin, int32_t end, int64_t iteration, std::vector<ExplainedValue> &values) {
    for (int32_t i = begin; i < end; ++i) {
      const TapeInstruction &instruction = tape_.instructions[i];
      bool isOutOfRange = false;
      switch (instruction.operation) {
      case Operation::Constant: values_[i] = instruction.immediate; break;
      case Operation::Param: values_[i] = bindings_.params[instruction.immediate]; break;
      case Operation::Dim: values_[i] = bindings_.dims[instruction.immediate]; break;
      case Operation::Coordinate: values_[i] = at_[instruction.immediate]; break;
      case Operation::Load: values_[i] = load(instruction, isOutOfRange); break;
      case Operation::Induction: break;
      default:
        if (isReduction(instruction.operation)) {
          size_t place = values.size();
          reduce(i, values);
          values[place].iteration = iteration;
          i = instruction.operands[1] - 1;
          continue;
        }
        ScalarSlot operands[3] = {};
        for (int k = 0; k < arityOf(instruction.operation); ++k)
          operands[k] = values_[instruction.operands[k]];
        values_[i] = applyOperation(instruction.operation, instruction.operandType, operands);
      }
      values.push_back({i, instruction.resultType, values_[i], iteration, isOutOfRange});
    }
  }

  const Tape &tape_;
  const Bindings &bindings_;
  int64_t at_[4];
  std::vector<ScalarSlot> values_;
};

} // namespace

Status verifyTape(const Tape &tape, const Bindings &bindings) { return TapeChecker(tape, bindings).check(); }

/// The specialised program of the (b, h) asked about last.
struct PointEvaluator::State {
  const Tape &tape;
  const Bindings &bindings;
  int64_t b = -1, h = -1;
  TapeProgram program;
  std::optional<LaneEvaluator> evaluator;

  LaneEvaluator &at(int64_t wantedB, int64_t wantedH) {
    if (!evaluator || b != wantedB || h != wantedH) {
      b = wantedB;
      h = wantedH;
      SpecializationOptions options;
      options.b = b;
      options.h = h;
      options.positions = {-kMaxPosition, kMaxPosition, -kMaxPosition, kMaxPosition};
      program = specialize(tape, bindings, options);
      evaluator.emplace(program);
    }
    return *evaluator;
  }
};

PointEvaluator::PointEvaluator(const Tape &tape, const Bindings &bindings)
    : state_(new State{tape, bindings, -1, -1, {}, std::nullopt}) {}
PointEvaluator::~PointEvaluator() = default;
PointEvaluator::PointEvaluator(PointEvaluator &&) noexcept = default;

void PointEvaluator::evaluateRow(int64_t b, int64_t h, int64_t q, int64_t kvBegin, int64_t kvStep, int64_t count,
                                 uint8_t *out) {
  state_->at(b, h).evaluateRow(q, kvBegin, kvStep, count, out);
}

bool PointEvaluator::evaluate(int64_t b, int64_t h, int64_t q, int64_t kv) { return state_->at(b, h).evaluate(q, kv); }

PointExplanation explainPoint(const Tape &tape, const Bindings &bindings, int64_t b, int64_t h, int64_t q, int64_t kv) {
  return Explainer(tape, bindings, {b, h, q, kv}).explain();
}

} // namespace cpflex
