// Random well-formed predicates in the `mask` dialect, with arrays and params to run them on.
#pragma once

#include "test/lib/Transforms/Evaluator.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/OwningOpRef.h"

#include <random>

namespace cpflex::test {

class RandomProgram {
public:
  RandomProgram(mlir::MLIRContext &ctx, uint64_t seed) : builder(&ctx), random(seed) {
    module = mlir::ModuleOp::create(builder.getUnknownLoc());
    builder.setInsertionPointToEnd(module->getBody());
    declare();
    mlir::Type int64 = builder.getI64Type();
    auto predicate = mask::PredicateOp::create(
        builder, loc(), "f", builder.getFunctionType({int64, int64, int64, int64}, {builder.getI1Type()}));
    mlir::Block &body = predicate.getBody().front();
    for (mlir::Value argument : body.getArguments())
      ints.push_back(argument);
    builder.setInsertionPointToStart(&body);
    int numOperations = below(30) + 3;
    for (int i = 0; i < numOperations; ++i)
      addOperation(/*depth=*/0);
    mlir::Value result = comparison();
    if (!bools.empty())
      result = mask::AndOp::create(builder, loc(), result, bools.back());
    if (!floats.empty()) {
      mlir::Value isLess = mask::LtOp::create(builder, loc(), floats.back(), pick(floats));
      result = mask::XorOp::create(builder, loc(), result, isLess);
    }
    mask::YieldOp::create(builder, loc(), mlir::ValueRange(result));
  }

  mlir::OwningOpRef<mlir::ModuleOp> module;

  /// An evaluator with random arrays that obey the declared facts, and params between the bounds.
  Evaluator evaluator(int64_t largestParam) {
    Evaluator result;
    result.dims = {{"KV_LEN", below(2) ? 50 : int64_t(1) << 30}, {"N", below(6)}};
    auto array = [&](std::vector<int64_t> shape, int64_t lo, int64_t hi) {
      int64_t count = 1;
      for (int64_t size : shape)
        count *= size;
      Array values{std::move(shape), {}};
      for (int64_t i = 0; i < count; ++i)
        values.elements.push_back(std::uniform_int_distribution<int64_t>(lo, hi)(random));
      return values;
    };
    result.captures["doc"] = array({50}, INT32_MIN, INT32_MAX);
    result.captures["small"] = array({8, 8}, 0, 7);
    result.captures["big"] = array({50}, INT64_MIN, INT64_MAX);
    for (const char *name : {"W", "P"})
      result.params[name] = std::uniform_int_distribution<int64_t>(-largestParam, largestParam)(random) >> below(62);
    return result;
  }

  /// b, h, q and kv of a pair; small, or near the largest lengths.
  std::vector<ScalarSlot> coordinates() {
    auto position = [&]() -> int64_t { return below(2) ? below(60) : (int64_t(1) << 30) - 1 - below(60); };
    return {below(4), below(8), position(), position()};
  }

private:
  mlir::Location loc() { return builder.getUnknownLoc(); }
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(random); }
  mlir::Value pick(const std::vector<mlir::Value> &values) { return values[below(values.size())]; }

  void declare() {
    auto capture = [&](const char *name, mlir::Type type, std::vector<llvm::StringRef> dims) {
      return mask::CaptureOp::create(builder, loc(), name, type, builder.getStrArrayAttr(dims));
    };
    capture("doc", builder.getI32Type(), {"KV_LEN"});
    auto small = capture("small", builder.getIntegerType(16), {"8", "8"});
    small->setAttr("lo", builder.getI64IntegerAttr(0));
    small->setAttr("hi", builder.getI64IntegerAttr(8));
    capture("big", builder.getI64Type(), {"N"});
    for (const char *name : {"W", "P"})
      mask::ParamOp::create(builder, loc(), builder.getStringAttr(name), mlir::TypeAttr::get(builder.getI64Type()),
                            mlir::TypedAttr());
  }

  mlir::Value intConstant() {
    static constexpr int64_t kInteresting[] = {0,         1,        -1,   2,         3,         7,
                                               16,        31,       32,   63,        64,        127,
                                               128,       -2,       -128, INT32_MAX, INT32_MIN, int64_t(1) << 40,
                                               INT64_MAX, INT64_MIN};
    return mask::ConstantOp::create(builder, loc(),
                                    builder.getI64IntegerAttr(kInteresting[below(std::size(kInteresting))]));
  }

  mlir::Value intOperand() { return below(4) == 0 ? intConstant() : pick(ints); }

  mlir::Value comparison() {
    mlir::Value a = intOperand(), b = intOperand();
    if (below(4) == 0) {
      // Sums that share a term, which comparisons may drop only where nothing wraps.
      mlir::Value shared = below(2) ? load() : intOperand();
      auto sum = [&](mlir::Value term) -> mlir::Value {
        if (below(2))
          return mask::AddOp::create(builder, loc(), term, shared);
        return mask::SubOp::create(builder, loc(), term, shared);
      };
      a = sum(a);
      b = sum(b);
    }
    switch (below(6)) {
    case 0: return mask::EqOp::create(builder, loc(), a, b);
    case 1: return mask::NeOp::create(builder, loc(), a, b);
    case 2: return mask::LtOp::create(builder, loc(), a, b);
    case 3: return mask::LeOp::create(builder, loc(), a, b);
    case 4: return mask::GtOp::create(builder, loc(), a, b);
    default: return mask::GeOp::create(builder, loc(), a, b);
    }
  }

  mlir::Value binary(mlir::Value a, mlir::Value b) {
    switch (below(15)) {
    case 0: return mask::AddOp::create(builder, loc(), a, b);
    case 1:
    case 2:
    case 3: return mask::SubOp::create(builder, loc(), a, b);
    case 4: return mask::MulOp::create(builder, loc(), a, b);
    case 5:
    case 6: return mask::FloorDivOp::create(builder, loc(), a, b);
    case 7:
    case 8: return mask::ModOp::create(builder, loc(), a, b);
    case 9: return mask::MinOp::create(builder, loc(), a, b);
    case 10: return mask::MaxOp::create(builder, loc(), a, b);
    case 11: return mask::AndOp::create(builder, loc(), a, b);
    case 12: return mask::OrOp::create(builder, loc(), a, b);
    case 13: return mask::XorOp::create(builder, loc(), a, b);
    default:
      return below(2) ? mlir::Value(mask::ShlOp::create(builder, loc(), a, b))
                      : mlir::Value(mask::ShrOp::create(builder, loc(), a, b));
    }
  }

  mlir::Value unary(mlir::Value a) {
    switch (below(4)) {
    case 0: return mask::NegOp::create(builder, loc(), a);
    case 1: return mask::AbsOp::create(builder, loc(), a);
    case 2: return mask::NotOp::create(builder, loc(), a);
    default: return mask::ILog2Op::create(builder, loc(), a);
    }
  }

  mlir::Value logic() {
    mlir::Value a = bools.empty() || below(3) == 0 ? comparison() : pick(bools);
    mlir::Value b = bools.empty() || below(3) == 0 ? comparison() : pick(bools);
    switch (below(6)) {
    case 0: return mask::AndOp::create(builder, loc(), a, b);
    case 1: return mask::OrOp::create(builder, loc(), a, b);
    case 2: return mask::XorOp::create(builder, loc(), a, b);
    case 3: return mask::NotOp::create(builder, loc(), a);
    case 4: return mask::EqOp::create(builder, loc(), a, b);
    default: {
      mlir::Value c = mask::ConstantOp::create(builder, loc(), builder.getBoolAttr(below(2)));
      return mask::SelectOp::create(builder, loc(), a.getType(), a, b, c);
    }
    }
  }

  mlir::Value load() {
    switch (below(3)) {
    case 0: return mask::LoadOp::create(builder, loc(), builder.getI64Type(), "doc", intOperand());
    case 1:
      return mask::LoadOp::create(builder, loc(), builder.getI64Type(), "small",
                                  mlir::ValueRange{intOperand(), intOperand()});
    default: return mask::LoadOp::create(builder, loc(), builder.getI64Type(), "big", intOperand());
    }
  }

  mlir::Value leaf() {
    switch (below(3)) {
    case 0: return mask::ParamValueOp::create(builder, loc(), builder.getI64Type(), "W");
    case 1: return mask::ParamValueOp::create(builder, loc(), builder.getI64Type(), "P");
    default: return mask::DimOp::create(builder, loc(), builder.getI64Type(), "KV_LEN");
    }
  }

  /// Arithmetic in u32 and f32 that comes back to int or is compared.
  mlir::Value otherTypes() {
    mlir::Type u32 = builder.getIntegerType(32, /*isSigned=*/false);
    if (below(2)) {
      mlir::Value a = mask::ToU32Op::create(builder, loc(), u32, intOperand());
      mlir::Value b = mask::ToU32Op::create(builder, loc(), u32, intOperand());
      return mask::ToIntOp::create(builder, loc(), builder.getI64Type(), binary(a, b));
    }
    mlir::Value a = mask::ToFloatOp::create(builder, loc(), builder.getF32Type(), intOperand());
    mlir::Value b = mask::ToFloatOp::create(builder, loc(), builder.getF32Type(), intOperand());
    mlir::Value quotient = mask::DivOp::create(builder, loc(), a, b);
    floats.push_back(mask::SubOp::create(builder, loc(), quotient, b));
    return mask::ToIntOp::create(builder, loc(), builder.getI64Type(), quotient);
  }

  void addReduction() {
    bool isBool = below(2);
    auto kind = isBool ? (below(2) ? mask::ReductionKind::Any : mask::ReductionKind::All)
                       : static_cast<mask::ReductionKind>(2 + below(3));
    mlir::Value count =
        below(2) ? mlir::Value(mask::DimOp::create(builder, loc(), builder.getI64Type(), "N"))
                 : mlir::Value(mask::ConstantOp::create(builder, loc(), builder.getI64IntegerAttr(below(4))));
    mlir::Type type = isBool ? mlir::Type(builder.getI1Type()) : mlir::Type(builder.getI64Type());
    auto reduction = mask::ReduceOp::create(builder, loc(), type, kind, count);
    mlir::Block &body = reduction.getBody().emplaceBlock();
    std::vector<mlir::Value> outerInts = ints, outerBools = bools, outerFloats = floats;
    {
      mlir::OpBuilder::InsertionGuard guard(builder);
      builder.setInsertionPointToStart(&body);
      ints.push_back(body.addArgument(builder.getI64Type(), loc()));
      for (int i = 0; i < 4; ++i)
        addOperation(/*depth=*/1);
      mask::YieldOp::create(builder, loc(), mlir::ValueRange(isBool ? comparison() : pick(ints)));
    }
    ints = outerInts;
    bools = outerBools;
    floats = outerFloats;
    (isBool ? bools : ints).push_back(reduction.getResult());
  }

  void addOperation(int depth) {
    switch (below(10)) {
    case 0: ints.push_back(leaf()); break;
    case 1: ints.push_back(load()); break;
    case 2: bools.push_back(logic()); break;
    case 3: bools.push_back(comparison()); break;
    case 4: ints.push_back(unary(intOperand())); break;
    case 5: {
      mlir::Value condition = comparison(), a = intOperand();
      ints.push_back(mask::SelectOp::create(builder, loc(), a.getType(), condition, a, intOperand()));
      break;
    }
    case 6:
      if (depth == 0 && below(3) == 0)
        addReduction();
      else
        ints.push_back(otherTypes());
      break;
    default: ints.push_back(binary(intOperand(), intOperand())); break;
    }
  }

  mlir::OpBuilder builder;
  std::mt19937_64 random;
  std::vector<mlir::Value> ints, bools, floats;
};

} // namespace cpflex::test
