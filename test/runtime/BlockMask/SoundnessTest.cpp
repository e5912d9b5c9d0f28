// Does every interval answer contain what really happens? Fuzzes the rule of each operation, whole
// random predicates over tiles of every size, and the finished masks, against plain interpretation.
// 100,000 tiles; with CPFLEX_FULL a million, of 25,000 predicates.
#include "runtime/BlockMask/AbstractValue.h"
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "runtime/BlockMask/IntervalEvaluator.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "test/runtime/BlockMask/BruteForce.h"
#include "test/runtime/BlockMask/RandomTape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <random>
#include <set>
#include <string>

namespace cpflex::test {
namespace {

int64_t fuzzScale() { return std::getenv("CPFLEX_FULL") ? 10 : 1; }

constexpr int64_t kQLen = 21, kKVLen = 27;

/// The pairs of one random predicate at one (b, h).
BruteForce bruteForceOf(const RandomTape &tape, int64_t b, int64_t h) {
  Bindings bindings = tape.builder->bindings();
  return BruteForce(kQLen, kKVLen,
                    [&](int64_t q, int64_t kv) { return interpret(tape.builder->tape(), bindings, b, h, q, kv); });
}

/// What a classifier answers for a tile whose true class is known: right, too careful, or wrong.
bool isSound(TileClass answer, TileClass truth) { return answer == TileClass::Partial || answer == truth; }

Range randomRange(std::mt19937_64 &random, int64_t length) {
  int64_t size = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(length));
  if (random() % 3 == 0)
    size = std::min(1 + size % 4, length);
  int64_t begin = static_cast<int64_t>(random() % static_cast<uint64_t>(length - size + 1));
  return {begin, begin + size};
}

TEST(Soundness, EveryRuleContainsTheConcreteResults) {
  std::mt19937_64 random(20240117);
  auto integerFor = [&](ValueType type) -> int64_t {
    if (type == ValueType::Bool)
      return static_cast<int64_t>(random() % 2);
    int64_t value;
    switch (random() % 6) {
    case 0: value = static_cast<int64_t>(random()); break;
    case 1: value = static_cast<int64_t>(random() % 130) - 65; break;
    case 2: value = std::numeric_limits<int64_t>::min() + static_cast<int64_t>(random() % 3); break;
    case 3: value = std::numeric_limits<int64_t>::max() - static_cast<int64_t>(random() % 3); break;
    default: value = static_cast<int64_t>(random() % 4000) - 2000;
    }
    return type == ValueType::U32 ? value & 0xffffffff : value;
  };
  auto floatFor = [&] {
    constexpr float kSpecial[] = {0.0f,
                                  -0.0f,
                                  1.0f,
                                  -1.0f,
                                  3.4e38f,
                                  -3.4e38f,
                                  1e-42f,
                                  std::numeric_limits<float>::infinity(),
                                  -std::numeric_limits<float>::infinity(),
                                  9.3e18f};
    if (random() % 3 == 0)
      return kSpecial[random() % std::size(kSpecial)];
    return static_cast<float>(static_cast<int64_t>(random() % 2000) - 1000) * 0.37f;
  };
  struct Operand {
    AbstractValue abstract;
    ScalarSlot concrete[4];
  };
  // An interval and some of its members, the ends among them.
  auto operandFor = [&](ValueType type) {
    Operand operand;
    if (type == ValueType::Float) {
      float a = floatFor(), b = random() % 3 ? floatFor() : a;
      bool hasNaN = random() % 6 == 0;
      float lo = std::min(a, b), hi = std::max(a, b);
      operand.abstract = AbstractValue::floats(lo, hi, hasNaN);
      float middle = std::isinf(lo) || std::isinf(hi) ? std::clamp(0.5f, lo, hi) : lo + (hi - lo) * 0.5f;
      operand.concrete[0] = slotOfFloat(lo);
      operand.concrete[1] = slotOfFloat(hi);
      operand.concrete[2] = slotOfFloat(std::clamp(std::isnan(middle) ? lo : middle, lo, hi));
      operand.concrete[3] = hasNaN ? slotOfFloat(NAN) : slotOfFloat(lo <= 0 && hi >= 0 ? 0.0f : hi);
      return operand;
    }
    int64_t a = integerFor(type), b = random() % 3 ? integerFor(type) : a;
    if (type != ValueType::Bool && random() % 2)
      b = a > std::numeric_limits<int64_t>::max() - 20 || (type == ValueType::U32 && a > 0xffffffe0)
              ? a
              : a + static_cast<int64_t>(random() % 20);
    int64_t lo = std::min(a, b), hi = std::max(a, b);
    operand.abstract = AbstractValue::integers(lo, hi);
    auto inside = [&] {
      uint64_t span = static_cast<uint64_t>(hi) - static_cast<uint64_t>(lo);
      return static_cast<int64_t>(static_cast<uint64_t>(lo) +
                                  (span == ~uint64_t(0) ? random() : random() % (span + 1)));
    };
    operand.concrete[0] = lo;
    operand.concrete[1] = hi;
    operand.concrete[2] = inside();
    operand.concrete[3] = lo <= 0 && hi >= 0 ? 0 : inside();
    return operand;
  };
  struct Entry {
    Operation operation;
    const char *name;
    int arity;
    std::string domains;
  };
  const Entry entries[] = {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  {Operation::Enumerator, #mnemonic, arity, domains},
#include "runtime/contract/Operations.def"
  };
  const int64_t rounds = 1500 * fuzzScale();
  for (const Entry &entry : entries)
    for (char letter : entry.domains) {
      ValueType type = letter == 'B'   ? ValueType::Bool
                       : letter == 'I' ? ValueType::Int
                       : letter == 'U' ? ValueType::U32
                                       : ValueType::Float;
      bool isComparison = entry.operation >= Operation::Eq && entry.operation <= Operation::Ge;
      ValueType result = isComparison || entry.operation == Operation::ToBool ? ValueType::Bool
                         : entry.operation == Operation::ToInt                ? ValueType::Int
                         : entry.operation == Operation::ToU32                ? ValueType::U32
                         : entry.operation == Operation::ToFloat              ? ValueType::Float
                                                                              : type;
      for (int64_t round = 0; round < rounds; ++round) {
        Operand operands[3];
        AbstractValue abstract[3];
        for (int i = 0; i < entry.arity; ++i) {
          bool isCondition = entry.operation == Operation::Select && i == 0;
          operands[i] = operandFor(isCondition ? ValueType::Bool : type);
          abstract[i] = operands[i].abstract;
        }
        AbstractValue answer = applyAbstract(entry.operation, type, abstract);
        int combinations = entry.arity == 1 ? 4 : entry.arity == 2 ? 16 : 64;
        for (int k = 0; k < combinations; ++k) {
          ScalarSlot slots[3] = {operands[0].concrete[k & 3], operands[1].concrete[k >> 2 & 3],
                                 operands[2].concrete[k >> 4 & 3]};
          ScalarSlot concrete = applyOperation(entry.operation, type, slots);
          ASSERT_TRUE(answer.contains(result, concrete))
              << entry.name << " on " << letter << ": operands " << slots[0] << " " << slots[1] << " give " << concrete
              << " outside of [" << answer.lo << ", " << answer.hi << "]";
        }
      }
    }
}

/// What a run over random predicates and tiles has seen.
struct FuzzTable {
  int64_t tiles = 0, unsound = 0;
  int64_t truths[3] = {}, answers[3] = {}; ///< by class
  std::map<Operation, int64_t> uses;       ///< tiles of predicates with the operation, per use
  std::set<std::string> expressions;
  std::set<std::pair<int64_t, int64_t>> qRanges, kvRanges;
  std::string firstFault;
};

std::string textOf(const Tape &tape) {
  std::string text;
  for (const TapeInstruction &instruction : tape.instructions)
    text += fmt::format("{}.{}.{}.{}({})", static_cast<int>(instruction.operation),
                        static_cast<int>(instruction.operandType), static_cast<int>(instruction.resultType),
                        instruction.immediate, fmt::join(instruction.operands, " "));
  return text;
}

/// Shows `numTapes` random predicates and 40 tiles of each to classifiers. `makeClassifier` gives,
/// for a program and the truth, a function from a tile to its class.
template <typename MakeClassifier> FuzzTable fuzz(int64_t numTapes, const MakeClassifier &makeClassifier) {
  constexpr int kTilesPerTape = 40;
  FuzzTable table;
  for (int64_t seed = 0; seed < numTapes; ++seed) {
    RandomTape tape = makeRandomTape(static_cast<uint64_t>(seed));
    Bindings bindings = tape.builder->bindings();
    Status status = verifyTape(tape.builder->tape(), bindings);
    EXPECT_TRUE(status.isOk()) << status.message();
    std::mt19937_64 random(static_cast<uint64_t>(seed) * 977 + 5);
    int64_t b = static_cast<int64_t>(random() % 2), h = static_cast<int64_t>(random() % 2);
    BruteForce truth = bruteForceOf(tape, b, h);
    CaptureSummaries summaries;
    SpecializationOptions options;
    options.b = b;
    options.h = h;
    options.positions = {0, kQLen - 1, 0, kKVLen - 1};
    options.summaries = &summaries;
    TapeProgram program = specialize(tape.builder->tape(), bindings, options);
    auto classify = makeClassifier(program, truth);
    table.expressions.insert(textOf(tape.builder->tape()));
    for (auto [operation, count] : tape.uses)
      table.uses[operation] += count * kTilesPerTape;
    for (int i = 0; i < kTilesPerTape; ++i) {
      Range q = i == 0 ? Range{0, kQLen} : randomRange(random, kQLen);
      Range kv = i == 0 ? Range{0, kKVLen} : randomRange(random, kKVLen);
      TileClass answer = classify(q, kv), expected = truth.classOf(q, kv);
      ++table.tiles;
      ++table.truths[static_cast<int>(expected)];
      ++table.answers[static_cast<int>(answer)];
      table.qRanges.insert({q.begin, q.end});
      table.kvRanges.insert({kv.begin, kv.end});
      if (isSound(answer, expected))
        continue;
      ++table.unsound;
      if (table.firstFault.empty())
        table.firstFault = fmt::format("seed {} q {}..{} kv {}..{}: answered {}, is {}", seed, q.begin, q.end, kv.begin,
                                       kv.end, static_cast<int>(answer), static_cast<int>(expected));
    }
  }
  return table;
}

TEST(Soundness, RandomPredicatesOverTilesOfEverySize) {
  const int64_t scale = fuzzScale();
  FuzzTable table = fuzz(2500 * scale, [](const TapeProgram &program, const BruteForce &) {
    return [evaluator = IntervalEvaluator(program)](Range q, Range kv) mutable {
      return evaluator.classify({q.begin, q.end - 1, kv.begin, kv.end - 1});
    };
  });
  EXPECT_EQ(table.unsound, 0) << table.firstFault;

  // What was tried has to be wide enough for the answer to mean something.
  const char *names[] = {"empty", "full", "partial"};
  std::cout << fmt::format("{} tiles of {} distinct expressions\n{:<10}{:>10}{:>8}{:>12}\n", table.tiles,
                           table.expressions.size(), "class", "tiles", "%", "proved");
  for (int i = 0; i < 3; ++i) {
    std::cout << fmt::format("{:<10}{:>10}{:>8.1f}{:>12}\n", names[i], table.truths[i],
                             100.0 * static_cast<double>(table.truths[i]) / static_cast<double>(table.tiles),
                             i < 2 ? fmt::format("{}", table.answers[i]) : "");
    EXPECT_GE(table.truths[i] * 100, table.tiles * 15) << names[i];
  }
  EXPECT_GE(table.tiles, 100000 * scale);
  EXPECT_GE(static_cast<int64_t>(table.expressions.size()), 2000 * scale);
  EXPECT_EQ(static_cast<int64_t>(table.qRanges.size()), kQLen * (kQLen + 1) / 2);
  EXPECT_EQ(static_cast<int64_t>(table.kvRanges.size()), kKVLen * (kKVLen + 1) / 2);
  const std::pair<Operation, const char *> mnemonics[] = {
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains) {Operation::Enumerator, #mnemonic},
#include "runtime/contract/Operations.def"
      {Operation::Load, "load"},     {Operation::ReduceAny, "any"},        {Operation::ReduceAll, "all"},
      {Operation::ReduceSum, "sum"}, {Operation::ReduceMin, "reduce min"}, {Operation::ReduceMax, "reduce max"},
  };
  std::cout << "uses of each operation:";
  for (auto [operation, name] : mnemonics) {
    std::cout << " " << name << " " << table.uses[operation];
    EXPECT_GE(table.uses[operation], 500 * scale) << name;
  }
  std::cout << "\n";
}

TEST(Soundness, WhatATileDecidesStaysRightInsideIt) {
  for (int64_t seed = 0; seed < 1500 * fuzzScale(); ++seed) {
    RandomTape tape = makeRandomTape(static_cast<uint64_t>(seed) + 700000);
    Bindings bindings = tape.builder->bindings();
    std::mt19937_64 random(static_cast<uint64_t>(seed) * 977 + 5);
    BruteForce truth = bruteForceOf(tape, 0, 1);
    CaptureSummaries summaries;
    SpecializationOptions options;
    options.h = 1;
    options.positions = {0, kQLen - 1, 0, kKVLen - 1};
    options.summaries = &summaries;
    TapeProgram program = specialize(tape.builder->tape(), bindings, options);
    IntervalEvaluator evaluator(program);
    for (int i = 0; i < 8; ++i) {
      Range q = randomRange(random, kQLen), kv = randomRange(random, kKVLen);
      if (evaluator.classify({q.begin, q.end - 1, kv.begin, kv.end - 1}) != TileClass::Partial)
        continue;
      std::optional<TapeProgram> shorter = evaluator.pruned();
      if (!shorter)
        continue;
      IntervalEvaluator inside(*shorter);
      Range innerQ = randomRange(random, q.size()), innerKV = randomRange(random, kv.size());
      innerQ = {q.begin + innerQ.begin, q.begin + innerQ.end};
      innerKV = {kv.begin + innerKV.begin, kv.begin + innerKV.end};
      TileClass inner = inside.classify({innerQ.begin, innerQ.end - 1, innerKV.begin, innerKV.end - 1});
      ASSERT_TRUE(isSound(inner, truth.classOf(innerQ, innerKV))) << "seed " << seed;
    }
  }
}

TEST(TestOfTheTests, AClassifierThatSamplesCornersAndCentreFailsTheFuzzing) {
  FuzzTable table = fuzz(250, [](const TapeProgram &, const BruteForce &truth) {
    return [&truth](Range q, Range kv) {
      int64_t seen = 0;
      for (auto [row, column] : {std::pair{q.begin, kv.begin},
                                 {q.begin, kv.end - 1},
                                 {q.end - 1, kv.begin},
                                 {q.end - 1, kv.end - 1},
                                 {(q.begin + q.end - 1) / 2, (kv.begin + kv.end - 1) / 2}})
        seen += truth.allowed({row, row + 1}, {column, column + 1});
      return seen == 0 ? TileClass::Empty : seen == 5 ? TileClass::Full : TileClass::Partial;
    };
  });
  EXPECT_GT(table.unsound, table.tiles / 1000);
}

TEST(Soundness, PointEvaluatorsAgreeWithInterpretation) {
  for (uint64_t seed = 0; seed < 600; ++seed) {
    RandomTape tape = makeRandomTape(seed);
    Bindings bindings = tape.builder->bindings();
    PointEvaluator points(tape.builder->tape(), bindings);
    BruteForce truth = bruteForceOf(tape, 1, 0);
    std::vector<uint8_t> row(kKVLen);
    for (int64_t q = 0; q < kQLen; q += 5) {
      points.evaluateRow(1, 0, q, 0, 1, kKVLen, row.data());
      for (int64_t kv = 0; kv < kKVLen; ++kv)
        ASSERT_EQ(row[kv], truth.allowed({q, q + 1}, {kv, kv + 1})) << "seed " << seed;
      ASSERT_EQ(points.evaluate(1, 0, q, 3), truth.allowed({q, q + 1}, {3, 4}) != 0);
      PointExplanation explanation = explainPoint(tape.builder->tape(), bindings, 1, 0, q, 3);
      ASSERT_EQ(explanation.attends, truth.allowed({q, q + 1}, {3, 4}) != 0);
    }
  }
}

TEST(Soundness, RandomMasksEqualBruteForceInAnyTiling) {
  std::mt19937_64 random(7);
  for (uint64_t seed = 0; seed < 700; ++seed) {
    RandomTape tape = makeRandomTape(seed + 100000);
    Bindings bindings = tape.builder->bindings();
    BlockMaskOptions options;
    options.batch = options.heads = 2;
    options.qLen = kQLen;
    options.kvLen = kKVLen;
    options.tileQ = 1 + static_cast<int64_t>(random() % 9);
    options.tileKV = 1 + static_cast<int64_t>(random() % 9);
    auto result = buildBlockMask(&tape.builder->tape(), bindings, options);
    ASSERT_TRUE(result.isOk()) << result.status().message();
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < 2; ++h)
        ASSERT_EQ(result->mask.rows(b, h), bruteForceOf(tape, b, h).rows(options.tileQ, options.tileKV))
            << "seed " << seed << " b " << b << " h " << h;
    options.threads = 2;
    auto onTwoThreads = buildBlockMask(&tape.builder->tape(), bindings, options);
    ASSERT_TRUE(onTwoThreads.isOk());
    ASSERT_EQ(result->mask, onTwoThreads->mask);
  }
}

} // namespace
} // namespace cpflex::test
