// Grows random expression trees and interprets them.
#include "test/runtime/BlockMask/RandomTape.h"

#include "runtime/BlockMask/PointEvaluator.h"

#include <cmath>
#include <limits>

namespace cpflex::test {

namespace {

constexpr int kMaxDepth = 5;

class Grower {
public:
  explicit Grower(uint64_t seed) : random_(seed), builder_(std::make_shared<TapeBuilder>()) { bindArrays(); }

  RandomTape grow() {
    Value result = boolean(0);
    builder_->finish(result);
    RandomTape tape{builder_, {}};
    for (const TapeInstruction &instruction : builder_->tape().instructions)
      ++tape.uses[instruction.operation];
    return tape;
  }

private:
  int64_t below(int64_t count) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(count)); }
  bool chance(int percent) { return below(100) < percent; }
  template <typename T> T pick(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<int64_t>(choices.size()))];
  }

  void bindArrays() {
    std::vector<int32_t> sorted(48), ids(48), table(12 * 8);
    int32_t document = 0;
    for (size_t i = 0; i < sorted.size(); ++i)
      sorted[i] = document += chance(15);
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = i > 0 && chance(80) ? ids[i - 1] : static_cast<int32_t>(below(5)) - 1;
    for (int32_t &x : table)
      x = static_cast<int32_t>(below(24)) - 4;
    std::vector<uint8_t> flags(48), matrix(24 * 40);
    for (uint8_t &x : flags)
      x = chance(30);
    for (size_t i = 0; i < matrix.size(); ++i)
      matrix[i] = i > 0 && chance(70) ? matrix[i - 1] : chance(50);
    std::vector<float> floats(48);
    for (float &x : floats)
      x = chance(3)   ? std::numeric_limits<float>::quiet_NaN()
          : chance(3) ? std::numeric_limits<float>::infinity()
                      : static_cast<float>(below(64) - 32) * 0.5f;
    std::vector<uint32_t> words(48);
    for (uint32_t &x : words)
      x = chance(50) ? static_cast<uint32_t>(below(10)) : static_cast<uint32_t>(random_());
    std::vector<int64_t> wide(48);
    for (int64_t &x : wide)
      x = chance(5) ? static_cast<int64_t>(random_()) : below(48);
    std::vector<int8_t> narrow(2 * 2 * 12);
    for (int8_t &x : narrow)
      x = static_cast<int8_t>(below(20) - 5);
    intArrays_ = {builder_->ints(sorted), builder_->ints(ids), builder_->capture(ElementType::I64, wide, {48})};
    intMatrix_ = builder_->capture(ElementType::I32, table, {12, 8});
    intCube_ = builder_->capture(ElementType::I8, narrow, {2, 2, 12});
    boolArray_ = builder_->bools(flags);
    boolMatrix_ = builder_->capture(ElementType::Bool, matrix, {24, 40});
    floatArray_ = builder_->capture(ElementType::F32, floats, {48});
    wordArray_ = builder_->capture(ElementType::U32, words, {48});
  }

  Value boolean(int depth) {
    int64_t choice = depth >= kMaxDepth ? below(30) : below(100);
    if (choice < 36) {
      Value a = integer(depth + 1), b = integer(depth + 1);
      return builder_->apply(comparison(), {a, b});
    }
    if (choice < 47) {
      Value a = real(depth + 1), b = real(depth + 1);
      return builder_->apply(comparison(), {a, b});
    }
    if (choice < 52) {
      Value a = word(depth + 1), b = word(depth + 1);
      return builder_->apply(comparison(), {a, b});
    }
    if (choice < 74) {
      Value a = boolean(depth + 1), b = boolean(depth + 1);
      return builder_->apply(pick({Operation::And, Operation::And, Operation::Or, Operation::Or, Operation::Xor,
                                   Operation::Eq, Operation::Ne}),
                             {a, b});
    }
    if (choice < 79)
      return ~boolean(depth + 1);
    if (choice < 83) {
      Value condition = boolean(depth + 1), a = boolean(depth + 1), b = boolean(depth + 1);
      return select(condition, a, b);
    }
    if (choice < 87)
      return builder_->load(boolArray_, {index(depth + 1)});
    if (choice < 91) {
      Value i = index(depth + 1), j = index(depth + 1);
      return builder_->load(boolMatrix_, {i, j});
    }
    if (choice < 93)
      return builder_->apply(Operation::ToBool, {anyType(depth + 1)});
    if (choice < 95)
      return membership(depth);
    return reduction(pick({Operation::ReduceAny, Operation::ReduceAll}), depth, [&] { return boolean(kMaxDepth - 1); });
  }

  /// `x in list[...]`, with lists that end before the loop, and with x inside or outside of it.
  Value membership(int depth) {
    if (numLoops_ >= 2)
      return builder_->constantBool(chance(50));
    ++numLoops_;
    Value x = integer(depth + 1), row = index(depth + 1);
    bool isMatrix = chance(60), isInside = chance(30);
    Value count = builder_->constant(isMatrix ? pick({3, 5, 8, 11}) : pick({7, 48, 60}));
    int list = isMatrix ? intMatrix_ : intArrays_[below(3)];
    Value result = builder_->reduce(Operation::ReduceAny, count, [&](Value i) {
      Value sought = isInside ? coordinate() + builder_->constant(below(5)) : x;
      Value element = isMatrix ? builder_->load(list, {row, i}) : builder_->load(list, {i});
      return chance(50) ? element == sought : sought == element;
    });
    --numLoops_;
    return result;
  }

  Operation comparison() {
    return pick({Operation::Eq, Operation::Ne, Operation::Lt, Operation::Le, Operation::Gt, Operation::Ge});
  }

  Value anyType(int depth) {
    switch (below(4)) {
    case 0: return boolean(depth);
    case 1: return integer(depth);
    case 2: return word(depth);
    default: return real(depth);
    }
  }

  template <typename Body> Value reduction(Operation operation, int depth, const Body &body) {
    if (numLoops_ >= 2 || depth >= kMaxDepth)
      return operation == Operation::ReduceAny || operation == Operation::ReduceAll ? builder_->constantBool(chance(50))
                                                                                    : coordinate();
    ++numLoops_;
    // Long loops are not unrolled; some counts depend on the position.
    Value count = chance(60)   ? builder_->constant(below(6))
                  : chance(50) ? builder_->constant(300 + below(40))
                               : integer(kMaxDepth) % builder_->constant(5);
    Value result = builder_->reduce(operation, count, [&](Value induction) {
      inductions_.push_back(induction);
      Value element = body();
      inductions_.pop_back();
      return element;
    });
    --numLoops_;
    return result;
  }

  Value coordinate() {
    if (!inductions_.empty() && chance(50))
      return inductions_.back();
    int64_t choice = below(10);
    return choice < 4 ? builder_->q() : choice < 8 ? builder_->kv() : choice < 9 ? builder_->b() : builder_->h();
  }

  Value constant() {
    if (chance(3))
      return builder_->constant(pick({std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(),
                                      int64_t(1) << 40, -(int64_t(1) << 31)}));
    return chance(20) ? builder_->param(below(40)) : builder_->constant(below(44) - 8);
  }

  /// An index that is mostly inside an array.
  Value index(int depth) {
    if (chance(60))
      return coordinate();
    return chance(50) ? coordinate() / builder_->constant(1 + below(6)) : integer(depth);
  }

  Value integer(int depth) {
    if (depth >= kMaxDepth || chance(35))
      return chance(70) ? coordinate() : constant();
    int64_t choice = below(100);
    if (choice < 62) {
      Value a = integer(depth + 1), b = chance(40) ? constant() : integer(depth + 1);
      return builder_->apply(pick({Operation::Add, Operation::Sub, Operation::Sub, Operation::Mul, Operation::FloorDiv,
                                   Operation::Mod, Operation::Min, Operation::Max, Operation::And, Operation::Or,
                                   Operation::Xor, Operation::Shl, Operation::Shr}),
                             {a, b});
    }
    if (choice < 70)
      return builder_->apply(pick({Operation::Neg, Operation::Abs, Operation::Not, Operation::ILog2}),
                             {integer(depth + 1)});
    if (choice < 76) {
      Value condition = boolean(depth + 1), a = integer(depth + 1), b = integer(depth + 1);
      return select(condition, a, b);
    }
    if (choice < 86)
      return builder_->load(intArrays_[below(static_cast<int64_t>(intArrays_.size()))], {index(depth + 1)});
    if (choice < 89) {
      Value i = index(depth + 1), j = index(depth + 1);
      return builder_->load(intMatrix_, {i, j});
    }
    if (choice < 92) {
      Value i = chance(50) ? builder_->b() : index(depth + 1), j = builder_->h(), k = index(depth + 1);
      return builder_->load(intCube_, {i, j, k});
    }
    if (choice < 96)
      return builder_->apply(Operation::ToInt, {anyType(depth + 1)});
    return reduction(pick({Operation::ReduceSum, Operation::ReduceMin, Operation::ReduceMax}), depth,
                     [&] { return integer(kMaxDepth - 1); });
  }

  Value word(int depth) {
    if (depth >= kMaxDepth || chance(30))
      return chance(60) ? builder_->apply(Operation::ToU32, {coordinate()})
                        : builder_->constantU32(static_cast<uint32_t>(chance(50) ? below(9) : below(1LL << 32)));
    int64_t choice = below(100);
    if (choice < 70) {
      Value a = word(depth + 1), b = word(depth + 1);
      return builder_->apply(
          pick({Operation::Add, Operation::Sub, Operation::Mul, Operation::FloorDiv, Operation::Mod, Operation::Min,
                Operation::Max, Operation::And, Operation::Or, Operation::Xor, Operation::Shl, Operation::Shr}),
          {a, b});
    }
    if (choice < 80)
      return builder_->apply(pick({Operation::Neg, Operation::Abs, Operation::Not, Operation::ILog2}),
                             {word(depth + 1)});
    if (choice < 90)
      return builder_->load(wordArray_, {index(depth + 1)});
    return builder_->apply(Operation::ToU32, {anyType(depth + 1)});
  }

  Value real(int depth) {
    if (depth >= kMaxDepth || chance(30))
      return chance(60) ? builder_->apply(Operation::ToFloat, {coordinate()})
                        : builder_->constantFloat(static_cast<float>(below(40) - 12) * 0.25f);
    int64_t choice = below(100);
    if (choice < 54) {
      Value a = real(depth + 1), b = real(depth + 1);
      return builder_->apply(pick({Operation::Add, Operation::Sub, Operation::Mul, Operation::Div, Operation::FloorDiv,
                                   Operation::Mod, Operation::Min, Operation::Max}),
                             {a, b});
    }
    if (choice < 75)
      return builder_->apply(pick({Operation::Neg, Operation::Abs, Operation::Floor, Operation::Sqrt, Operation::Exp,
                                   Operation::Exp2, Operation::Log, Operation::Log1p, Operation::Tanh,
                                   Operation::Sigmoid, Operation::Rsqrt, Operation::Sin, Operation::Cos}),
                             {real(depth + 1)});
    if (choice < 78) {
      Value a = real(depth + 1), b = real(depth + 1);
      return builder_->apply(Operation::Pow, {a, b});
    }
    if (choice < 90)
      return builder_->load(floatArray_, {index(depth + 1)});
    return builder_->apply(Operation::ToFloat, {anyType(depth + 1)});
  }

  std::mt19937_64 random_;
  std::shared_ptr<TapeBuilder> builder_;
  std::vector<int> intArrays_;
  int intMatrix_ = 0, intCube_ = 0, boolArray_ = 0, boolMatrix_ = 0, floatArray_ = 0, wordArray_ = 0;
  int numLoops_ = 0;
  std::vector<Value> inductions_;
};

/// Plain recursion; values are kept per instruction, reductions run their body again for each
/// index.
class Interpreter {
public:
  Interpreter(const Tape &tape, const Bindings &bindings, const int64_t *at)
      : tape_(tape), bindings_(bindings), at_(at), values_(tape.instructions.size()) {}

  int64_t run() {
    runRange(0, static_cast<int32_t>(tape_.instructions.size()));
    return values_[tape_.result];
  }

private:
  int64_t loaded(const TapeInstruction &instruction) {
    const CaptureView &view = bindings_.captures[instruction.immediate];
    int64_t offset = 0;
    for (int axis = 0; axis < view.rank; ++axis) {
      int64_t at = values_[instruction.operands[axis]];
      if (at < 0 || at >= view.shape[axis])
        return 0;
      offset += at * view.strides[axis];
    }
    return readElement(view, offset, instruction.resultType);
  }

  int64_t reduced(int32_t i) {
    const TapeInstruction &instruction = tape_.instructions[i];
    std::vector<int64_t> elements;
    for (int64_t k = 0; k < values_[instruction.operands[0]]; ++k) {
      values_[i + 1] = k;
      runRange(i + 2, instruction.operands[1]);
      elements.push_back(values_[instruction.operands[2]]);
    }
    Operation operation = instruction.operation;
    if (operation == Operation::ReduceAny || operation == Operation::ReduceAll) {
      bool isAny = operation == Operation::ReduceAny;
      for (int64_t element : elements)
        if ((element != 0) == isAny)
          return isAny;
      return !isAny;
    }
    uint64_t sum = 0;
    for (int64_t element : elements)
      sum += static_cast<uint64_t>(element);
    if (operation == Operation::ReduceSum)
      return static_cast<int64_t>(sum);
    if (elements.empty())
      return 0;
    return operation == Operation::ReduceMin ? *std::min_element(elements.begin(), elements.end())
                                             : *std::max_element(elements.begin(), elements.end());
  }

  void runRange(int32_t begin, int32_t end) {
    for (int32_t i = begin; i < end; ++i) {
      const TapeInstruction &instruction = tape_.instructions[i];
      switch (instruction.operation) {
      case Operation::Constant: values_[i] = instruction.immediate; break;
      case Operation::Param: values_[i] = bindings_.params[instruction.immediate]; break;
      case Operation::Dim: values_[i] = bindings_.dims[instruction.immediate]; break;
      case Operation::Coordinate: values_[i] = at_[instruction.immediate]; break;
      case Operation::Load: values_[i] = loaded(instruction); break;
      case Operation::ReduceAny:
      case Operation::ReduceAll:
      case Operation::ReduceSum:
      case Operation::ReduceMin:
      case Operation::ReduceMax:
        values_[i] = reduced(i);
        i = instruction.operands[1] - 1;
        break;
      case Operation::Induction: break;
      default: {
        int64_t operands[3] = {};
        for (int k = 0; k < 3 && instruction.operands[k] >= 0; ++k)
          operands[k] = values_[instruction.operands[k]];
        values_[i] = applyOperation(instruction.operation, instruction.operandType, operands);
      }
      }
    }
  }

  const Tape &tape_;
  const Bindings &bindings_;
  const int64_t *at_;
  std::vector<int64_t> values_;
};

} // namespace

RandomTape makeRandomTape(uint64_t seed) { return Grower(seed).grow(); }

bool interpret(const Tape &tape, const Bindings &bindings, int64_t b, int64_t h, int64_t q, int64_t kv) {
  int64_t at[4] = {b, h, q, kv};
  return Interpreter(tape, bindings, at).run() != 0;
}

} // namespace cpflex::test
