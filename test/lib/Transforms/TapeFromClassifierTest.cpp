// Does the tape of a predicate say what the predicate says: the same instructions, slots, places and values?
#include "lib/Transforms/TapeFromClassifier.h"
#include "lib/Analysis/ProgramSignature.h"
#include "lib/Transforms/Passes.h"
#include "test/lib/Transforms/RandomProgram.h"

#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

/// Runs a tape at one point, as Tape.h says.
class TapeRunner {
public:
  TapeRunner(const Tape &tape, const Signature &signature, const Evaluator &bindings)
      : tape(tape), signature(signature), bindings(bindings), values(tape.instructions.size()) {}

  ScalarSlot run(llvm::ArrayRef<ScalarSlot> coordinates) {
    point = coordinates;
    runRange(0, static_cast<int32_t>(tape.instructions.size()), 0);
    return values[tape.result];
  }

private:
  void runRange(int32_t begin, int32_t end, int64_t induction) {
    for (int32_t i = begin; i < end; ++i) {
      const TapeInstruction &instruction = tape.instructions[i];
      if (instruction.operation == Operation::Induction) {
        values[i] = induction;
      } else if (instruction.operation >= Operation::ReduceAny) {
        values[i] = reduce(i, instruction);
        i = instruction.operands[1] - 1;
      } else {
        values[i] = evaluate(instruction);
      }
    }
  }

  ScalarSlot reduce(int32_t i, const TapeInstruction &instruction) {
    static constexpr Operation kCombine[] = {Operation::Or, Operation::And, Operation::Add, Operation::Min,
                                             Operation::Max};
    int kind = static_cast<int>(instruction.operation) - static_cast<int>(Operation::ReduceAny);
    ScalarSlot result = instruction.operation == Operation::ReduceAll;
    for (int64_t n = 0; n < values[instruction.operands[0]]; ++n) {
      runRange(i + 1, instruction.operands[1], n);
      ScalarSlot operands[] = {result, values[instruction.operands[2]]};
      result = n == 0 ? operands[1] : applyOperation(kCombine[kind], instruction.resultType, operands);
    }
    return result;
  }

  ScalarSlot evaluate(const TapeInstruction &instruction) {
    ScalarSlot operands[4] = {};
    for (int i = 0; i < 4; ++i)
      if (instruction.operands[i] >= 0)
        operands[i] = values[instruction.operands[i]];
    switch (instruction.operation) {
    case Operation::Constant: return instruction.immediate;
    case Operation::Param: return bindings.params.at(signature.params[instruction.immediate].name);
    case Operation::Dim: return bindings.dims.at(signature.dims[instruction.immediate]);
    case Operation::Coordinate: return point[instruction.immediate];
    case Operation::Load: {
      const Array &array = bindings.captures.at(signature.captures[instruction.immediate].name);
      int64_t offset = 0;
      for (size_t axis = 0; axis < array.shape.size(); ++axis) {
        if (operands[axis] < 0 || operands[axis] >= array.shape[axis])
          return 0;
        offset = offset * array.shape[axis] + operands[axis];
      }
      return array.elements[offset];
    }
    default: return applyOperation(instruction.operation, instruction.operandType, operands);
    }
  }

  const Tape &tape;
  const Signature &signature;
  const Evaluator &bindings;
  std::vector<ScalarSlot> values;
  llvm::ArrayRef<ScalarSlot> point;
};

class TapeFromClassifier : public testing::Test {
protected:
  TapeFromClassifier() { ctx.loadDialect<mask::MaskDialect>(); }
  mlir::MLIRContext ctx;
};

TEST_F(TapeFromClassifier, numbersInstructionsSlotsAndPlaces) {
  auto module = mlir::parseSourceString<mlir::ModuleOp>(R"mlir(
    mask.param @unused : i64
    mask.param @W : i64
    mask.capture @other : f32 ["N"]
    mask.capture @doc : i32 ["B", "M"]
    mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
      %unused = mask.mul %q, %q : i64
      %m = mask.dim "M" : i64
      %any = mask.reduce any %m : i64 -> i1 {
      ^bb0(%i: i64):
        %x = mask.load @doc[%b, %i] : (i64, i64) -> i64
        %e = mask.eq %x, %kv : i64 loc("mask.cpf":7:12)
        mask.yield %e : i1
      }
      %w = mask.param_value @W : i64
      %c = mask.lt %q, %w : i64
      %r = mask.and %any, %c : i1
      mask.yield %r : i1
    })mlir",
                                                        &ctx);
  ASSERT_TRUE(module);
  Signature signature = signatureOf(*module);
  auto tape = tapeFromPredicate(module->lookupSymbol<mask::PredicateOp>("f"), signature);
  ASSERT_TRUE(mlir::succeeded(tape));
  EXPECT_EQ(tape->name, "f");
  ASSERT_EQ(tape->instructions.size(), 11u);
  auto expectInstruction = [&](int index, Operation operation, std::vector<int> operands, ScalarSlot immediate = 0) {
    const TapeInstruction &instruction = tape->instructions[index];
    EXPECT_EQ(instruction.operation, operation) << index;
    operands.resize(4, -1);
    for (int i = 0; i < 4; ++i)
      EXPECT_EQ(instruction.operands[i], operands[i]) << index;
    EXPECT_EQ(instruction.immediate, immediate) << index;
  };
  expectInstruction(0, Operation::Coordinate, {}, 0);
  expectInstruction(1, Operation::Coordinate, {}, 2);
  expectInstruction(2, Operation::Coordinate, {}, 3);
  expectInstruction(3, Operation::Dim, {}, kNumBuiltinDims + 1);
  expectInstruction(4, Operation::ReduceAny, {3, 8, 7});
  expectInstruction(5, Operation::Induction, {});
  expectInstruction(6, Operation::Load, {0, 5}, 1);
  expectInstruction(7, Operation::Eq, {6, 2});
  expectInstruction(8, Operation::Param, {}, 1);
  expectInstruction(9, Operation::Lt, {1, 8});
  expectInstruction(10, Operation::And, {4, 9});
  EXPECT_EQ(tape->result, 10);
  EXPECT_EQ(tape->instructions[7].operandType, ValueType::Int);
  EXPECT_EQ(tape->instructions[7].resultType, ValueType::Bool);
  EXPECT_EQ(tape->instructions[7].line, 7);
  EXPECT_EQ(tape->instructions[7].column, 12);
}

TEST_F(TapeFromClassifier, classifierAndPredicateGiveTheSameTape) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    RandomProgram program(ctx, seed);
    mlir::PassManager passes(&ctx);
    addSimplification(passes);
    addClassifierDerivation(passes);
    ASSERT_TRUE(mlir::succeeded(passes.run(*program.module)));
    Signature signature = signatureOf(*program.module);
    auto classifier = program.module->lookupSymbol<mask::ClassifierOp>("f.classifier");
    ASSERT_TRUE(classifier);
    auto fromClassifier = tapeFromPredicate(classifier, signature);
    auto fromPredicate = tapeFromPredicate(program.module->lookupSymbol<mask::PredicateOp>("f"), signature);
    ASSERT_TRUE(mlir::succeeded(fromClassifier) && mlir::succeeded(fromPredicate));
    EXPECT_EQ(fromClassifier->name, fromPredicate->name);
    EXPECT_EQ(fromClassifier->result, fromPredicate->result);
    ASSERT_EQ(fromClassifier->instructions.size(), fromPredicate->instructions.size());
    for (auto [a, b] : llvm::zip(fromClassifier->instructions, fromPredicate->instructions)) {
      EXPECT_EQ(a.operation, b.operation);
      EXPECT_EQ(a.operandType, b.operandType);
      EXPECT_EQ(a.resultType, b.resultType);
      EXPECT_EQ(a.immediate, b.immediate);
      EXPECT_TRUE(std::equal(a.operands, a.operands + 4, b.operands));
    }
  }
}

TEST_F(TapeFromClassifier, givesTheValuesOfThePredicate) {
  int numTrue = 0, numRuns = 0;
  for (uint64_t seed = 30001; seed <= 30200; ++seed) {
    RandomProgram program(ctx, seed);
    auto predicate = program.module->lookupSymbol<mask::PredicateOp>("f");
    Signature signature = signatureOf(*program.module);
    auto tape = tapeFromPredicate(predicate, signature);
    ASSERT_TRUE(mlir::succeeded(tape));
    for (int point = 0; point < 10; ++point, ++numRuns) {
      Evaluator evaluator = program.evaluator(INT64_MAX);
      std::vector<ScalarSlot> coordinates = program.coordinates();
      ScalarSlot expected = evaluator.run(predicate, coordinates);
      numTrue += expected != 0;
      ASSERT_EQ(TapeRunner(*tape, signature, evaluator).run(coordinates), expected) << "seed " << seed;
    }
  }
  EXPECT_GT(numTrue, numRuns / 10);
  EXPECT_LT(numTrue, numRuns * 9 / 10);
}

TEST_F(TapeFromClassifier, nameOutsideOfTheSignatureIsAnError) {
  auto module = mlir::parseSourceString<mlir::ModuleOp>(R"mlir(
    mask.param @W : i64
    mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
      %w = mask.param_value @W : i64
      %c = mask.lt %q, %w : i64
      mask.yield %c : i1
    })mlir",
                                                        &ctx);
  ASSERT_TRUE(module);
  std::string message;
  mlir::ScopedDiagnosticHandler handler(&ctx, [&](mlir::Diagnostic &diagnostic) { message = diagnostic.str(); });
  EXPECT_TRUE(mlir::failed(tapeFromPredicate(module->lookupSymbol<mask::PredicateOp>("f"), Signature())));
  EXPECT_EQ(message, "'mask.param_value' op reads 'W', which the program's signature lacks");
}

TEST(ProgramSignature, listsDeclarationsInOrderAndDimensionsOnce) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  auto module = mlir::parseSourceString<mlir::ModuleOp>(R"mlir(
    mask.param @P : i64 = -3 : i64
    mask.capture @a : ui8 ["P", "N", "64", "2*R+1"] {lo = 1 : i64, hi = 9 : i64}
    mask.param @x : f32 = 1.5 : f32
    mask.capture @b : bf16 ["KV_LEN", "N"] {grad}
    mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
      %k = mask.dim "K" : i64
      %r = mask.lt %q, %k : i64
      mask.yield %r : i1
    })mlir",
                                                        &ctx);
  ASSERT_TRUE(module);
  Signature signature = signatureOf(*module);
  EXPECT_EQ(signature.dims, (std::vector<std::string>{"B", "H", "HKV", "Q_LEN", "KV_LEN", "N", "K"}));
  ASSERT_EQ(signature.captures.size(), 2u);
  const CaptureDeclaration &a = signature.captures[0];
  EXPECT_EQ(a.type, ElementType::U8);
  EXPECT_EQ(a.dims.size(), 4u);
  EXPECT_TRUE(a.hasLo && a.hasHi && !a.isSorted && !a.needsGradient);
  EXPECT_EQ(a.lo, 1);
  EXPECT_EQ(a.hi, 9);
  EXPECT_TRUE(signature.captures[1].needsGradient);
  ASSERT_EQ(signature.params.size(), 2u);
  EXPECT_EQ(signature.params[0].defaultValue, -3);
  EXPECT_EQ(signature.params[1].type, ValueType::Float);
  EXPECT_EQ(signature.params[1].defaultValue, slotOf(1.5f));
  EXPECT_EQ(captureSlot(signature, "b"), 1);
  EXPECT_EQ(paramSlot(signature, "x"), 1);
  EXPECT_EQ(dimSlot(signature, "N"), kNumBuiltinDims);
  EXPECT_EQ(dimSlot(signature, "absent"), -1);
}

} // namespace
} // namespace cpflex::test
