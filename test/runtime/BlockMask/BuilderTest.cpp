// What does the builder promise besides classes: sharing of heads, shards, threads, facts,
// explanations and clear errors?
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "runtime/BlockMask/MaskPrograms.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "test/runtime/BlockMask/SmallMasks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace cpflex::test {
namespace {

BlockMaskOptions square(int64_t length) {
  BlockMaskOptions options;
  options.qLen = options.kvLen = length;
  return options;
}

TEST(Builder, WithoutATapeAllPairsAttend) {
  BlockMaskOptions options = square(300);
  options.batch = 2;
  auto result = buildBlockMask(nullptr, {}, options);
  ASSERT_TRUE(result.isOk());
  EXPECT_EQ(countTiles(result->mask), (TileCounts{0, 9, 0}));
  EXPECT_EQ(result->mask.rowSets.size(), 1u);
  auto pairs = countAllowed(result->mask, nullptr, {}, options);
  ASSERT_TRUE(pairs.isOk());
  EXPECT_EQ(pairs->allowed, 90000);
}

TEST(Builder, AMaskWithoutTokensHasNoTiles) {
  TapeBuilder builder;
  builder.finish(builder.kv() <= builder.q());
  for (auto [qLen, kvLen] : {std::pair{0, 0}, {0, 128}, {200, 0}}) {
    BlockMaskOptions options;
    options.qLen = qLen;
    options.kvLen = kvLen;
    auto result = buildBlockMask(&builder.tape(), builder.bindings(), options);
    ASSERT_TRUE(result.isOk());
    EXPECT_EQ(result->mask.rowSets[0].rowBegin.size(), static_cast<size_t>(result->mask.numQTiles() + 1));
    EXPECT_TRUE(result->mask.rowSets[0].runs.empty());
    auto pairs = countAllowed(result->mask, &builder.tape(), builder.bindings(), options);
    ASSERT_TRUE(pairs.isOk());
    EXPECT_EQ(pairs->rowsWithoutKeys, qLen);
  }
}

TEST(Builder, FindsOutWhichOfBatchAndHeadMatter) {
  TapeBuilder builder;
  int isFull = builder.bools({1, 0, 1, 0});
  Value q = builder.q(), kv = builder.kv();
  builder.finish((kv <= q) & (builder.load(isFull, {builder.h()}) | (q - kv < 40)));
  BlockMaskOptions options = square(1000);
  options.batch = 3;
  options.heads = 4;
  auto result = buildBlockMask(&builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(result.isOk());
  EXPECT_FALSE(result->dependsOnBatch);
  EXPECT_TRUE(result->dependsOnHead);
  EXPECT_EQ(result->mask.rowSets.size(), 2u);
  EXPECT_EQ(result->mask.rowSetOf, (std::vector<int32_t>{0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1}));
  // A shard that holds heads 1.. sees global heads.
  options.heads = 2;
  options.headOffset = 1;
  auto shard = buildBlockMask(&builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(shard.isOk());
  EXPECT_EQ(shard->mask.rows(0, 0), result->mask.rows(0, 1));
  EXPECT_EQ(shard->mask.rows(2, 1), result->mask.rows(0, 2));
}

TEST(Builder, BroadcastCapturesShareTheirRowSet) {
  TapeBuilder builder;
  std::vector<int32_t> ids(600);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i / 70);
  int doc = builder.ints(ids);
  // Declared [B, S], bound to one line for every batch.
  CaptureView &view = builder.view(doc);
  view.rank = 2;
  view.shape[1] = 600;
  view.strides[1] = 1;
  view.shape[0] = 5;
  view.strides[0] = 0;
  Value b = builder.b();
  builder.finish(builder.load(doc, {b, builder.q()}) == builder.load(doc, {b, builder.kv()}));
  BlockMaskOptions options = square(600);
  options.batch = 5;
  auto result = buildBlockMask(&builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(result.isOk());
  EXPECT_TRUE(result->dependsOnBatch);
  EXPECT_EQ(result->mask.rowSets.size(), 1u);
}

TEST(Builder, MembershipInLongListsIsDecidedOnCoarseTiles) {
  // 500 tokens in ten places that everyone sees; a loop over them at each pair would take minutes.
  TapeBuilder builder;
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 500; ++i)
    tokens.push_back(i % 10 * 6000 + i / 10);
  std::set<int32_t> isToken(tokens.begin(), tokens.end());
  int list = builder.ints(tokens);
  Value q = builder.q(), kv = builder.kv();
  Value isMember = builder.reduce(Operation::ReduceAny, builder.constant(500),
                                  [&](Value i) { return kv == builder.load(list, {i}); });
  builder.finish((kv <= q) & (isMember | (q - kv < 64)));
  auto result = buildBlockMask(&builder.tape(), builder.bindings(), square(60000));
  ASSERT_TRUE(result.isOk()) << result.status().message();
  EXPECT_LE(result->tilesEvaluated, 100000); // of 220,000 tiles
  auto pairs = countAllowed(result->mask, &builder.tape(), builder.bindings(), square(60000));
  ASSERT_TRUE(pairs.isOk());
  int64_t expected = 0;
  for (int32_t key = 0; key < 60000; ++key)
    expected += isToken.contains(key) ? 60000 - key : std::min(64, 60000 - key);
  EXPECT_EQ(pairs->allowed, expected);
}

TEST(Builder, MembershipInRowsOfATableIsExact) {
  // Blocks of 8 keys that each block of 16 queries chose; rows repeat values and hold -1.
  TapeBuilder builder;
  constexpr int64_t kRows = 12, kColumns = 40;
  std::vector<int16_t> chosen(kRows * kColumns);
  for (size_t i = 0; i < chosen.size(); ++i)
    chosen[i] = static_cast<int16_t>(i * i % 31 - 1);
  int table = builder.capture(ElementType::I16, chosen, {kRows, kColumns});
  Value row = builder.q() / 16, block = builder.kv() / 8;
  // Two elements more than a row has: they are 0.
  builder.finish(builder.reduce(Operation::ReduceAny, builder.constant(kColumns + 2),
                                [&](Value i) { return builder.load(table, {row, i}) == block; }));
  BlockMaskOptions options;
  options.qLen = 230; // the last rows lie outside of the table and hold 0
  options.kvLen = 260;
  BruteForce truth(options.qLen, options.kvLen, [&](int64_t q, int64_t kv) {
    if (kv / 8 == 0)
      return true;
    for (int64_t i = 0; i < kColumns && q / 16 < kRows; ++i)
      if (chosen[q / 16 * kColumns + i] == kv / 8)
        return true;
    return false;
  });
  for (int64_t tile : {8, 24, 64}) {
    options.tileQ = options.tileKV = tile;
    auto result = buildBlockMask(&builder.tape(), builder.bindings(), options);
    ASSERT_TRUE(result.isOk());
    EXPECT_EQ(result->mask.rowSets[0], truth.rows(tile, tile)) << tile;
  }
}

TEST(Builder, SummariesAreBuiltOncePerArray) {
  TapeBuilder builder;
  std::vector<int32_t> ids(5000);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i * 7 % 64 / 16);
  int id = builder.ints(ids);
  Value q = builder.load(id, {builder.q()});
  builder.finish(q == builder.load(id, {builder.kv()}));
  BlockMaskOptions options = square(5000);
  CaptureSummaries summaries;
  options.summaries = &summaries;
  auto first = buildBlockMask(&builder.tape(), builder.bindings(), options);
  int64_t bytes = summaries.sizeInBytes();
  EXPECT_GT(bytes, 0);
  // Another mask over the same array, such as that of another layer, finds them.
  builder.finish(q < builder.load(id, {builder.kv()}));
  ASSERT_TRUE(buildBlockMask(&builder.tape(), builder.bindings(), options).isOk());
  EXPECT_EQ(summaries.sizeInBytes(), bytes);
}

TEST(Builder, ResultsAndCountsDoNotDependOnThreads) {
  TapeBuilder builder;
  std::vector<int32_t> ids(40000);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i * i / 3000000 % 7);
  int id = builder.ints(ids);
  Value q = builder.q(), kv = builder.kv();
  builder.finish((builder.load(id, {q}) == builder.load(id, {kv})) & (kv <= q));
  BlockMaskOptions options = square(40000);
  auto one = buildBlockMask(&builder.tape(), builder.bindings(), options);
  options.threads = 3;
  auto three = buildBlockMask(&builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(one.isOk() && three.isOk());
  EXPECT_EQ(one->mask, three->mask);
  EXPECT_EQ(one->pointsEvaluated, three->pointsEvaluated);
  EXPECT_EQ(one->tilesEvaluated, three->tilesEvaluated);
}

TEST(Builder, DoesNotVisitTheTilesOfAMillionTokens) {
  TapeBuilder builder;
  builder.finish(builder.kv() <= builder.q());
  auto result = buildBlockMask(&builder.tape(), builder.bindings(), square(1 << 20));
  ASSERT_TRUE(result.isOk());
  EXPECT_LE(result->tilesEvaluated, 40000); // of 67 million
  EXPECT_LE(sizeInBytes(result->mask), 256 * 1024);
  EXPECT_EQ(countTiles(result->mask), (TileCounts{33550336, 33550336, 8192}));
}

TEST(Builder, IdsWithASentinelAreDecidedOnCoarseTiles) {
  TapeBuilder builder;
  std::vector<int32_t> spans(1 << 18, -1);
  for (size_t i = 0; i < spans.size(); ++i)
    if (i % 3000 >= 1000 && i % 3000 < 1256)
      spans[i] = static_cast<int32_t>(i / 3000);
  int span = builder.ints(spans);
  Value q = builder.load(span, {builder.q()}), kv = builder.load(span, {builder.kv()});
  builder.finish((q == kv) & (q >= 0));
  auto result = buildBlockMask(&builder.tape(), builder.bindings(), square(1 << 18));
  ASSERT_TRUE(result.isOk());
  EXPECT_LE(result->tilesEvaluated, 200000); // of 4 million
}

TEST(Builder, PartialTilesGetTheFirstResidualProvedThere) {
  TapeBuilder builder;
  std::vector<int32_t> ids(1024);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i / 300);
  int doc = builder.ints(ids);
  Value q = builder.q(), kv = builder.kv();
  Value isBefore = kv <= q, isSame = builder.load(doc, {q}) == builder.load(doc, {kv});
  builder.finish(isBefore & isSame);
  Residual onlyBefore, onlySame;
  onlyBefore.assumptions = {{isSame.index, true}};
  onlyBefore.result = isBefore.index;
  onlySame.assumptions = {{isBefore.index, true}};
  onlySame.result = isSame.index;
  std::vector<Residual> residuals = {onlyBefore, onlySame};
  BlockMaskOptions options = square(1024);
  options.residuals = residuals;
  auto result = buildBlockMask(&builder.tape(), builder.bindings(), options);
  ASSERT_TRUE(result.isOk()) << result.status().message();
  int64_t uses[3] = {};
  for (int64_t row = 0; row < 8; ++row) {
    const TileRows &rows = result->mask.rowSets[0];
    for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i) {
      const TileRun &run = rows.runs[i];
      uses[run.residual] += run.tileClass == TileClass::Partial ? run.end - run.begin : 0;
      if (run.tileClass == TileClass::Full) {
        EXPECT_EQ(run.residual, 0);
        continue;
      }
      // The residual gives the mask in each pair of its tiles.
      for (int64_t at = row * 128; at < row * 128 + 128; ++at)
        for (int64_t key = run.begin * 128; key < run.end * 128; ++key) {
          bool before = key <= at, same = ids[at] == ids[key];
          bool byResidual = run.residual == 1 ? before : run.residual == 2 ? same : before && same;
          ASSERT_EQ(byResidual, before && same);
        }
    }
  }
  // Diagonal tiles inside a document, tiles below the diagonal across a bound, and those where both
  // matter.
  EXPECT_EQ(uses[1], 5);
  EXPECT_EQ(uses[2], 10);
  EXPECT_EQ(uses[0], 3);
  options.residuals = {};
  auto plain = buildBlockMask(&builder.tape(), builder.bindings(), options);
  EXPECT_EQ(countTiles(plain->mask), countTiles(result->mask));
}

TEST(BuilderErrors, ResidualsNameValuesOfTheTape) {
  TapeBuilder builder;
  Value q = builder.q();
  builder.finish(builder.kv() <= q);
  BlockMaskOptions options = square(100);
  std::vector<Residual> residuals(1);
  residuals[0].result = q.index;
  options.residuals = residuals;
  EXPECT_EQ(buildBlockMask(&builder.tape(), builder.bindings(), options).status().message(),
            "residual 1 names values that are not Bool values of tape ''; expected values outside "
            "of reductions");
  residuals.resize(8);
  options.residuals = residuals;
  EXPECT_EQ(buildBlockMask(&builder.tape(), builder.bindings(), options).status().message(),
            "the mask has 8 residuals besides itself; expected at most 7");
}

TEST(BuilderErrors, SayWhatWasSeenAndExpected) {
  TapeBuilder builder;
  builder.finish(builder.kv() <= builder.q());
  auto messageOf = [&](auto &&change) {
    BlockMaskOptions options = square(100);
    change(options);
    return buildBlockMask(&builder.tape(), builder.bindings(), options).status().message();
  };
  EXPECT_EQ(messageOf([](BlockMaskOptions &o) { o.qLen = -1; }),
            "sizes are batch 1, heads 1, q -1, kv 100; expected 0 or more");
  EXPECT_EQ(messageOf([](BlockMaskOptions &o) { o.tileKV = 0; }), "tiles are 128 x 0; expected 1 x 1 or larger");
  EXPECT_EQ(messageOf([](BlockMaskOptions &o) {
              o.kvLen = int64_t(1) << 40;
              o.tileKV = 1;
            }),
            "the mask has more rows or columns of tiles than 32-bit indices hold; choose larger tiles");
  EXPECT_EQ(messageOf([](BlockMaskOptions &o) { o.qLen = int64_t(1) << 50; }),
            "the mask has lengths or tiles beyond 2^40, or batches or heads beyond 2^31");
  EXPECT_EQ(messageOf([](BlockMaskOptions &o) { o.qPositions.pieces = {{int64_t(1) << 50, 100, 1}}; }),
            "a piece of the q positions begins at 1125899906842624 and has 100 rows in steps of 1; "
            "expected positions of 0 to 2^40");
  EXPECT_EQ(messageOf([](BlockMaskOptions &o) { o.qPositions = PositionMap::identity(7); }),
            "the q positions have 7 rows; expected 100");
  EXPECT_EQ(messageOf([](BlockMaskOptions &o) { o.kvPositions.pieces = {{0, 100, 0}}; }),
            "a piece of the kv positions has 100 rows in steps of 0; expected 0 or more rows in "
            "steps of 1 or more");
  EXPECT_EQ(verifyNumRuns(int64_t(1) << 31).message(),
            "the mask has 2147483648 runs of tiles; expected at most 2147483647, choose larger tiles");
  auto built = buildBlockMask(&builder.tape(), builder.bindings(), square(100));
  EXPECT_EQ(countAllowed(built->mask, &builder.tape(), builder.bindings(), square(99)).status().message(),
            "the mask has other sizes than the options; expected those it was built with");
}

TEST(TapeErrors, NameTheValue) {
  auto messageOf = [](std::vector<TapeInstruction> instructions, int32_t result) {
    TapeBuilder builder;
    builder.bools({1, 0});
    Tape tape{"t", std::move(instructions), result};
    return verifyTape(tape, builder.bindings()).message();
  };
  TapeInstruction q{.operation = Operation::Coordinate, .immediate = 2};
  auto binary = [](Operation operation, int32_t a, int32_t b) {
    TapeInstruction instruction{.operation = operation};
    instruction.operands[0] = a;
    instruction.operands[1] = b;
    bool isComparison = operation == Operation::Le;
    instruction.resultType = isComparison ? ValueType::Bool : ValueType::Int;
    return instruction;
  };
  EXPECT_EQ(messageOf({q, binary(Operation::Le, 0, 0)}, 1), "");
  EXPECT_EQ(messageOf({q}, 3), "tape 't': value 3 is not a value of the tape; expected the result");
  EXPECT_EQ(messageOf({q}, 0), "tape 't': value 0 is not Bool; expected the result of a predicate to be");
  EXPECT_EQ(messageOf({q, binary(Operation::Le, 0, 1)}, 1),
            "tape 't': value 1 uses a value that is not in scope; expected an earlier one");
  EXPECT_EQ(messageOf({q, binary(Operation::Le, 0, 0), binary(Operation::Add, 0, 1)}, 1),
            "tape 't': value 2 uses a value of another type; expected its operand type");
  EXPECT_EQ(messageOf({q, binary(Operation::Exp, 0, -1)}, 0),
            "tape 't': value 1 applies an operation that does not exist for its operand type");
  EXPECT_EQ(messageOf({{.operation = Operation::Coordinate, .immediate = 4}}, 0),
            "tape 't': value 0 reads a coordinate other than b, h, q, kv");
  EXPECT_EQ(messageOf({{.operation = Operation::Param, .immediate = -1}}, 0),
            "tape 't': value 0 reads a parameter that is not bound");
  EXPECT_EQ(messageOf({{.operation = Operation::Dim, .immediate = -1}}, 0),
            "tape 't': value 0 reads a dimension that is not bound");
  EXPECT_EQ(messageOf({{.operation = Operation::Load, .immediate = -1}}, 0),
            "tape 't': value 0 loads from an array that is not bound");
  TapeInstruction load{.operation = Operation::Load, .resultType = ValueType::Int, .operands = {0, -1, -1, -1}};
  EXPECT_EQ(messageOf({q, load}, 1), "tape 't': value 1 loads elements of another type than the bound array has");
  load.operands[1] = 0;
  EXPECT_EQ(messageOf({q, load}, 1), "tape 't': value 1 has more indices than its array has dimensions");
  EXPECT_EQ(messageOf({{.operation = Operation::Induction}}, 0),
            "tape 't': value 0 is an index outside of a reduction's first place");
  TapeInstruction any{.operation = Operation::ReduceAny, .resultType = ValueType::Bool, .operands = {0, 2, 0, -1}};
  EXPECT_EQ(messageOf({q, any}, 1), "tape 't': value 1 has no proper body; expected it to begin with its index");
  // A reduction's value read from outside its body.
  any.operands[1] = 4;
  any.operands[2] = 3;
  EXPECT_EQ(messageOf({q, any, {.operation = Operation::Induction}, binary(Operation::Le, 0, 2)}, 3),
            "tape 't': value 3 is inside a reduction; expected the result outside");
  TapeBuilder deep;
  std::function<Value(int)> nest = [&](int depth) {
    return deep.reduce(Operation::ReduceAny, deep.constant(2),
                       [&](Value i) { return depth == 0 ? i <= i : nest(depth - 1); });
  };
  deep.finish(nest(6));
  EXPECT_NE(
      verifyTape(deep.tape(), deep.bindings()).message().find("nests reductions too deeply; expected at most 5 levels"),
      std::string::npos);
  TapeBuilder wide;
  int slot = wide.bools({1});
  wide.view(slot).rank = 5;
  Tape tape{"t", {{.operation = Operation::Load, .resultType = ValueType::Bool}}, 0};
  EXPECT_EQ(verifyTape(tape, wide.bindings()).message(),
            "tape 't': value 0 loads from an array with too many dimensions");
}

CaptureDeclaration sortedIds() {
  CaptureDeclaration declaration;
  declaration.name = "doc";
  declaration.isSorted = true;
  return declaration;
}

TEST(Facts, HoldForGoodArrays) {
  TapeBuilder builder;
  std::vector<int32_t> ids(20000);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i / 3);
  int doc = builder.ints(ids);
  CaptureDeclaration declaration = sortedIds();
  declaration.hasLo = declaration.hasHi = true;
  declaration.hi = 6667;
  EXPECT_TRUE(verifyFacts(declaration, builder.view(doc)).isOk());
}

TEST(FactErrors, NameTheFirstOffendingElement) {
  TapeBuilder builder;
  std::vector<int32_t> ids(9000);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i);
  ids[8000] = 3;
  int doc = builder.ints(ids);
  EXPECT_EQ(verifyFacts(sortedIds(), builder.view(doc)).message(),
            "'doc[8000]' is 3; expected 7999 or more, because 'doc' is declared sorted");
  // Each line of a matrix is sorted on its own.
  int lines = builder.capture(ElementType::I8, std::vector<int8_t>{1, 2, 0, 4, 3, 9}, {3, 2});
  EXPECT_EQ(verifyFacts(sortedIds(), builder.view(lines)).message(), "");
  int matrix = builder.capture(ElementType::I8, std::vector<int8_t>{1, 2, 4, 0}, {2, 2});
  EXPECT_EQ(verifyFacts(sortedIds(), builder.view(matrix)).message(),
            "'doc[1, 1]' is 0; expected 4 or more, because 'doc' is declared sorted");
  CaptureDeclaration bounded;
  bounded.name = "len";
  bounded.hasLo = bounded.hasHi = true;
  bounded.hi = 8;
  EXPECT_EQ(verifyFacts(bounded, builder.view(builder.ints({3, -1}))).message(), "'len[1]' is -1; expected 0 or more");
  EXPECT_EQ(verifyFacts(bounded, builder.view(builder.ints({3, 8}))).message(), "'len[1]' is 8; expected less than 8");
  int floats = builder.capture(ElementType::F32, std::vector<float>{0.5f, NAN}, {2});
  EXPECT_EQ(verifyFacts(bounded, builder.view(floats)).message(), "'len[1]' is nan; expected 0 or more");
}

TEST(Explain, GivesTheValueOfEveryInstruction) {
  TapeBuilder builder;
  int table = builder.ints({5, 6, 7});
  Value q = builder.q(), kv = builder.kv();
  Value loaded = builder.load(table, {kv});
  Value found = builder.reduce(Operation::ReduceAny, builder.constant(10), [&](Value i) { return i * i == q; });
  builder.finish((loaded <= q) & found);
  PointExplanation yes = explainPoint(builder.tape(), builder.bindings(), 0, 0, 16, 1);
  EXPECT_TRUE(yes.attends);
  EXPECT_EQ(yes.values[2].value, 6);
  auto valueOf = [](const PointExplanation &explanation, int32_t instruction) {
    for (const ExplainedValue &value : explanation.values)
      if (value.instruction == instruction)
        return value;
    return ExplainedValue{.instruction = -1};
  };
  // The body shows the iteration that decided: 4 * 4 == 16.
  EXPECT_EQ(valueOf(yes, found.index).value, 1);
  EXPECT_EQ(valueOf(yes, found.index + 1).value, 4);
  EXPECT_EQ(valueOf(yes, found.index + 1).iteration, 4);
  EXPECT_EQ(valueOf(yes, found.index + 2).value, 16);
  PointExplanation outside = explainPoint(builder.tape(), builder.bindings(), 0, 0, 15, 3);
  EXPECT_FALSE(outside.attends);
  EXPECT_TRUE(valueOf(outside, loaded.index).isOutOfRange);
  EXPECT_EQ(valueOf(outside, loaded.index).value, 0);
}

TEST(Elements, HalfPrecisionIsReadExactly) {
  // 1.5, the smallest subnormal, -2, infinity and NaN in f16 and bf16.
  const uint16_t halves[] = {0x3e00, 0x0001, 0xc000, 0x7c00, 0x7e00};
  const float wanted[] = {1.5f, 0x1p-24f, -2.0f, INFINITY};
  CaptureView view{.data = halves, .shape = {5}, .strides = {1}, .type = ElementType::F16, .rank = 1};
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(std::bit_cast<float>(static_cast<uint32_t>(readElement(view, i, ValueType::Float))), wanted[i]);
  EXPECT_TRUE(std::isnan(std::bit_cast<float>(static_cast<uint32_t>(readElement(view, 4, ValueType::Float)))));
  const uint16_t brains[] = {0x3fc0, 0xc000};
  view.data = brains;
  view.type = ElementType::BF16;
  EXPECT_EQ(std::bit_cast<float>(static_cast<uint32_t>(readElement(view, 0, ValueType::Float))), 1.5f);
  EXPECT_EQ(std::bit_cast<float>(static_cast<uint32_t>(readElement(view, 1, ValueType::Float))), -2.0f);
}

} // namespace
} // namespace cpflex::test
