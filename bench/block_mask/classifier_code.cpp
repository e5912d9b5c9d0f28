// Would machine code classify tiles faster than the interpreter does, and when would it pay for its
// compilation? Walks the same hierarchy of tiles with the interpreter, with the interpreter that
// drops decided arms, and with C++ that stands for the machine code of the same interval expression,
// called through a pointer as compiled code would be. Beside it, how long LLVM takes for the host
// code of the predicate, which is about the size of its interval form. Times are the processor's.
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
using namespace cpflex::test;

constexpr int64_t kTile = 128, kBandRows = 128, kMinTilesToPrune = 64;

double processorMs() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

// What compiled interval code consists of.
struct Interval {
  int64_t lo, hi;
};
struct Truth {
  bool canBeTrue, canBeFalse;
};
Interval minus(Interval a, Interval b) { return {a.lo - b.hi, a.hi - b.lo}; }
Interval quotient(Interval a, int64_t n) { return {a.lo / n, a.hi / n}; }
Truth isAtMost(Interval a, Interval b) { return {a.lo <= b.hi, a.hi > b.lo}; }
Truth isBelow(Interval a, int64_t b) { return {a.lo < b, a.hi >= b}; }
Truth isEqual(Interval a, Interval b) {
  return {a.lo <= b.hi && b.lo <= a.hi, a.lo != a.hi || b.lo != b.hi || a.lo != b.lo};
}
Truth both(Truth a, Truth b) {
  return {a.canBeTrue && b.canBeTrue, a.canBeFalse || b.canBeFalse};
}
Truth either(Truth a, Truth b) {
  return {a.canBeTrue || b.canBeTrue, a.canBeFalse && b.canBeFalse};
}
TileClass classOf(Truth truth) {
  return !truth.canBeTrue    ? TileClass::Empty
         : truth.canBeFalse ? TileClass::Partial
                            : TileClass::Full;
}

/// The parts of a tile as intervals, and the one captured array.
struct TileArguments {
  Interval q, kv;
  const int32_t *ids;
  Interval ids_(Interval at) const { return {ids[at.lo], ids[at.hi]}; }
};
using CompiledClassifier = TileClass (*)(const PositionBounds &tile, const int32_t *ids);

template <Truth (*predicate)(const TileArguments &)>
TileClass compiled(const PositionBounds &tile, const int32_t *ids) {
  return classOf(predicate({{tile.qLo, tile.qHi}, {tile.kvLo, tile.kvHi}, ids}));
}
Truth causalOf(const TileArguments &t) { return isAtMost(t.kv, t.q); }
Truth streamingOf(const TileArguments &t) {
  return both(causalOf(t), either(isBelow(t.kv, 4), isBelow(minus(t.q, t.kv), 2044)));
}
Truth chunkedOf(const TileArguments &t) {
  return both(causalOf(t), isEqual(quotient(t.q, 2048), quotient(t.kv, 2048)));
}
Truth documentsOf(const TileArguments &t) {
  return both(causalOf(t), isEqual(t.ids_(t.q), t.ids_(t.kv)));
}

/// A mask in three forms.
struct ComparedMask {
  const char *name;
  std::function<Value(TapeBuilder &, int ids)> make;
  CompiledClassifier code;
  const char *text; ///< as a program
};

std::vector<ComparedMask> comparedMasks() {
  auto causal = [](TapeBuilder &b) { return b.kv() <= b.q(); };
  return {
      {"causal", [=](TapeBuilder &b, int) { return causal(b); }, compiled<causalOf>,
       "return kv <= q"},
      {"sink 4 + window 2044",
       [=](TapeBuilder &b, int) {
         return causal(b) & ((b.kv() < 4) | (b.q() - b.kv() < 2044));
       },
       compiled<streamingOf>, "return kv <= q and (kv < 4 or q - kv < 2044)"},
      {"chunked 2048",
       [=](TapeBuilder &b, int) { return causal(b) & (b.q() / 2048 == b.kv() / 2048); },
       compiled<chunkedOf>, "return kv <= q and q // 2048 == kv // 2048"},
      {"1000 documents",
       [=](TapeBuilder &b, int ids) {
         return causal(b) & (b.load(ids, {b.q()}) == b.load(ids, {b.kv()}));
       },
       compiled<documentsOf>, "return kv <= q and doc[q] == doc[kv]"},
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
      return range.begin +
             static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(range.size() - 1)));
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
  CompiledClassifier code;
  const int32_t *ids;
  TileClass classify(const PositionBounds &tile) { return code(tile, ids); }
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

/// Milliseconds that LLVM takes for the host code of a predicate, the least of some.
double compilationMs(const char *text) {
  double least = 0;
  for (int i = 0; i < 5; ++i) {
    std::string source = fmt::format("doc: tensor[i32, KV_LEN](sorted)\n\n\n@mask\ndef m(b, h, q, kv):\n"
                                     "    {}\n\n\nattention(\"m\", mask=m)\n",
                                     text);
    CompileResult result = compileText("m.cpf", source);
    if (!result.program)
      return -1;
    std::vector<int64_t> dims = {1, 1, 1, 8192, 8192};
    Bindings bindings{.dims = dims.data()};
    double begin = processorMs();
    if (!result.program->hostFunctions(result.program->entries()[0], bindings))
      return -1;
    double spent = processorMs() - begin;
    least = i == 0 ? spent : std::min(least, spent);
  }
  return least;
}

} // namespace

int main() {
  fmt::print("{:<22} {:>9} {:>9} {:>12} {:>12} {:>12} {:>9} {:>12}\n", "mask", "tokens", "tiles",
             "interpreter", "with pruning", "machine code", "LLVM ms", "pays from");
  for (const ComparedMask &mask : comparedMasks()) {
    double llvm = compilationMs(mask.text);
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
      Walked code = leastOf(length, [&] { return MachineCode{mask.code, ids.data()}; });
      if (plain.open != code.open || pruning.open != code.open)
        fmt::print("the forms of '{}' do not agree\n", mask.name);
      // Tiles after which the faster code has earned its compilation.
      double perTile = (pruning.milliseconds - code.milliseconds) / static_cast<double>(code.looked);
      fmt::print("{:<22} {:>9} {:>9} {:>12.3f} {:>12.3f} {:>12.3f} {:>9.1f} {:>12}\n", mask.name,
                 length, code.looked, plain.milliseconds, pruning.milliseconds, code.milliseconds,
                 llvm, perTile > 0 ? fmt::format("{:.0f} tiles", llvm / perTile) : "never");
    }
  }
  return 0;
}
