// Would machine code classify tiles faster than the interpreter does, and when would it pay for its
// compilation? Walks the same hierarchy of tiles with the interpreter, with the interpreter that
// drops decided arms, and with machine code that LLVM makes of the classifier that the compiler
// derives. Times are the processor's.
#include "bench/block_mask/ClassifierCode.h"
#include "lib/API/ProgramState.h"
#include "lib/API/cpflex.h"
#include "runtime/BlockMask/IntervalEvaluator.h"
#include "test/runtime/BlockMask/TapeBuilder.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <ctime>
#include <functional>
#include <vector>

namespace {

using namespace cpflex;
using namespace cpflex::bench;
using namespace cpflex::test;

constexpr int64_t kTile = 128, kBandRows = 128, kMinTilesToPrune = 64;

double processorMs() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

/// A mask as a tape and as a program.
struct ComparedMask {
  const char *name;
  std::function<Value(TapeBuilder &, int ids)> make;
  const char *text;
};

std::vector<ComparedMask> comparedMasks() {
  auto causal = [](TapeBuilder &b) { return b.kv() <= b.q(); };
  return {
      {"causal", [=](TapeBuilder &b, int) { return causal(b); }, "return kv <= q"},
      {"window 1024", [=](TapeBuilder &b, int) { return causal(b) & (b.q() - b.kv() < 1024); },
       "return kv <= q and q - kv < 1024"},
      {"sink 4 + window 2044",
       [=](TapeBuilder &b, int) { return causal(b) & ((b.kv() < 4) | (b.q() - b.kv() < 2044)); },
       "return kv <= q and (kv < 4 or q - kv < 2044)"},
      {"chunked 2048", [=](TapeBuilder &b, int) { return causal(b) & (b.q() / 2048 == b.kv() / 2048); },
       "return kv <= q and q // 2048 == kv // 2048"},
      {"1000 documents",
       [=](TapeBuilder &b, int ids) { return causal(b) & (b.load(ids, {b.q()}) == b.load(ids, {b.kv()})); },
       "return kv <= q and doc[q] == doc[kv]"},
  };
}

/// The hierarchy of the builder, without settling: counts tiles looked at and single tiles left open.
template <typename Classifier> struct Walk {
  Classifier &classifier;
  int64_t length;
  int64_t looked = 0, open = 0;

  PositionBounds bounds(Range rows, Range columns) const {
    return {rows.begin * kTile, std::min(rows.end * kTile, length) - 1, columns.begin * kTile,
            std::min(columns.end * kTile, length) - 1};
  }

  void visit(Range rows, Range columns) {
    ++looked;
    if (classifier.classify(bounds(rows, columns)) != TileClass::Partial)
      return;
    if (rows.size() == 1 && columns.size() == 1) {
      ++open;
      return;
    }
    if constexpr (requires { classifier.pruned(); })
      if (rows.size() * columns.size() >= kMinTilesToPrune)
        if (std::optional<TapeProgram> shorter = classifier.pruned()) {
          Classifier inside(*shorter);
          Walk rest{inside, length};
          rest.visitParts(rows, columns);
          looked += rest.looked;
          open += rest.open;
          return;
        }
    visitParts(rows, columns);
  }

  void visitParts(Range rows, Range columns) {
    bool cutRows = rows.size() > 1 && (columns.size() == 1 || rows.size() * 2 > columns.size());
    bool cutColumns = columns.size() > 1 && (rows.size() == 1 || columns.size() * 2 > rows.size());
    auto middle = [](Range range) {
      return range.begin + static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(range.size() - 1)));
    };
    int64_t row = cutRows ? middle(rows) : rows.end;
    int64_t column = cutColumns ? middle(columns) : columns.end;
    for (Range rowPart : {Range{rows.begin, row}, Range{row, rows.end}})
      for (Range columnPart : {Range{columns.begin, column}, Range{column, columns.end}})
        if (!rowPart.isEmpty() && !columnPart.isEmpty())
          visit(rowPart, columnPart);
  }

  void run() {
    int64_t tiles = ceilDivide(length, kTile);
    for (int64_t row = 0; row < tiles; row += kBandRows)
      visit({row, std::min(row + kBandRows, tiles)}, {0, tiles});
  }
};

struct PruningInterpreter : IntervalEvaluator {
  using IntervalEvaluator::IntervalEvaluator;
};
struct PlainInterpreter {
  IntervalEvaluator evaluator;
  explicit PlainInterpreter(const TapeProgram &program) : evaluator(program) {}
  TileClass classify(const PositionBounds &tile) { return evaluator.classify(tile); }
};
struct MachineCode {
  ClassifyFunction code;
  const std::vector<int32_t> &ids;
  TileClass classify(const PositionBounds &tile) { return TileClass(code(&tile, ids.data(), int64_t(ids.size()))); }
};

struct Walked {
  double milliseconds = 0;
  int64_t looked = 0, open = 0;
};

/// The least of some walks; `make` gives a classifier for each.
template <typename Make> Walked leastOf(int64_t length, const Make &make) {
  Walked best;
  for (int i = 0; i < 15; ++i) {
    double begin = processorMs();
    auto classifier = make();
    Walk<decltype(classifier)> walk{classifier, length};
    walk.run();
    double spent = processorMs() - begin;
    if (i == 0 || spent < best.milliseconds)
      best = {spent, walk.looked, walk.open};
  }
  return best;
}

/// Machine code of the classifier that the compiler derives, and what it cost after the derivation, the least of some.
struct Compiled {
  CompiledClassifier code;
  double milliseconds = 0;
};
Compiled compiledOf(const char *text) {
  Compiled compiled;
  std::string source = fmt::format("doc: tensor[i32, KV_LEN](sorted)\n\n\n@mask\ndef m(b, h, q, kv):\n"
                                   "    {}\n\n\nattention(\"m\", mask=m)\n",
                                   text);
  CompileOptions options;
  options.cacheDir = ""; // a program from the cache has no modules
  CompileResult result = compileText("m.cpf", source, options);
  if (!result.program)
    return compiled;
  for (int i = 0; i < 5; ++i) {
    double begin = processorMs();
    compiled.code = compileClassifier(*result.program->state().simplified, "m.mask");
    double spent = processorMs() - begin;
    compiled.milliseconds = i == 0 ? spent : std::min(compiled.milliseconds, spent);
  }
  return compiled;
}

} // namespace

int main() {
  fmt::print("{:<22} {:>9} {:>9} {:>12} {:>12} {:>12} {:>9} {:>12}\n", "mask", "tokens", "tiles", "interpreter",
             "with pruning", "machine code", "LLVM ms", "pays from");
  for (const ComparedMask &mask : comparedMasks()) {
    Compiled compiled = compiledOf(mask.text);
    if (!compiled.code.classify) {
      fmt::print("{:<22} has no machine code\n", mask.name);
      continue;
    }
    for (int64_t length : {int64_t(8192), int64_t(1) << 20}) {
      std::vector<int32_t> ids(length);
      for (int64_t i = 0; i < length; ++i)
        ids[i] = static_cast<int32_t>(i * 1000 / (length + 37));
      TapeBuilder builder;
      int slot = builder.ints(ids);
      builder.finish(mask.make(builder, slot));
      CaptureSummaries summaries;
      SpecializationOptions options;
      options.positions = {0, length - 1, 0, length - 1};
      options.summaries = &summaries;
      TapeProgram program = specialize(builder.tape(), builder.bindings(), options);
      Walked plain = leastOf(length, [&] { return PlainInterpreter(program); });
      Walked pruning = leastOf(length, [&] { return PruningInterpreter(program); });
      Walked code = leastOf(length, [&] { return MachineCode{compiled.code.classify, ids}; });
      if (plain.open != code.open || pruning.open != code.open)
        fmt::print("the forms of '{}' do not agree\n", mask.name);
      // Tiles after which the faster code has earned its compilation.
      double perTile = (pruning.milliseconds - code.milliseconds) / static_cast<double>(code.looked);
      fmt::print("{:<22} {:>9} {:>9} {:>12.3f} {:>12.3f} {:>12.3f} {:>9.1f} {:>12}\n", mask.name, length, code.looked,
                 plain.milliseconds, pruning.milliseconds, code.milliseconds, compiled.milliseconds,
                 perTile > 0 ? fmt::format("{:.0f} tiles", compiled.milliseconds / perTile) : "never");
    }
  }
  return 0;
}
