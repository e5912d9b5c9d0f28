// Builds the BlockMasks of an entry point and of the questions about it, and looks for examples in them.
#include "lib/API/Lint.h"

#include "lib/API/ProgramState.h"
#include "lib/Analysis/LintQuestions.h"
#include "lib/Analysis/Lints.h"
#include "lib/Analysis/ProgramSignature.h"
#include "lib/Std/StandardLibrary.h"
#include "lib/Transforms/TapeFromClassifier.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "runtime/BlockMask/PointEvaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

namespace cpflex {

namespace {

constexpr int64_t kTile = 128;
/// Most partial tiles in which an example is looked for pair by pair.
constexpr int64_t kMostTilesSearched = 1024;
/// Most operations for which partial tiles are looked at pair by pair: seconds of one thread.
constexpr double kMostOperations = 4e9;
/// A tape with more operations per pair than the first, and more on all pairs than the second, is not classified: where
/// analysis proves little, that takes minutes.
constexpr double kManyPerPair = 4096, kMostOnAllPairs = 1e12;
/// Turns that a reduction is taken to make when their number depends on the pair.
constexpr double kUnknownTurns = 64;

struct Pair {
  int64_t b, h, q, kv;
};

Diagnostic locatedWarning(const Program &program, mlir::Location loc, std::string message) {
  Diagnostic diagnostic;
  diagnostic.message = std::move(message);
  diagnostic.severity = Severity::Warning;
  if (auto position = loc->findInstanceOf<mlir::FileLineColRange>()) {
    diagnostic.file = position.getFilename().str();
    diagnostic.line = int(position.getStartLine());
    diagnostic.column = int(position.getStartColumn());
    diagnostic.endLine = int(position.getEndLine());
    diagnostic.endColumn = int(position.getEndColumn());
    diagnostic.sourceLine = sourceLine(program, diagnostic.file, diagnostic.line);
  }
  return diagnostic;
}

std::vector<Diagnostic> located(const Program &program, const std::vector<Lint> &lints) {
  std::vector<Diagnostic> result;
  for (const Lint &lint : lints)
    result.push_back(locatedWarning(program, lint.loc, lint.message));
  return result;
}

// At the value of an entry point's mask, as the user wrote it.
Diagnostic warningAtMask(const Program &program, const EntryPoint &entry, std::string message) {
  auto predicate = program.state().declaration<mask::PredicateOp>(entry.name + ".mask");
  mlir::Location loc = predicate ? predicate.getYieldedValue().getLoc() : program.state().importedModule().getLoc();
  // A coordinate or constant has no place of its own.
  if (predicate && !loc->findInstanceOf<mlir::FileLineColRange>())
    loc = predicate.getLoc();
  return locatedWarning(program, loc, std::move(message));
}

// A predicate to classify, with the message to complete by an example.
struct AskedTape {
  LintQuestionKind kind;
  Tape tape;
  Diagnostic message;
};

std::string messageOf(const LintQuestion &question) {
  switch (question.kind) {
  case LintQuestionKind::IndexNegative:
    return fmt::format("index '{}' of '{}' is negative, where PyTorch wraps around and this load gives 0",
                       question.text, question.capture);
  case LintQuestionKind::IndexPastEnd:
    return fmt::format("index '{}' of '{}' is outside axis {}, which has size {}; the load gives 0", question.text,
                       question.capture, question.axis, question.size);
  case LintQuestionKind::ConditionHolds: break;
  }
  return fmt::format("'{}'", question.text);
}

// A module of an entry point and its functions alone, to which questions can be added.
mlir::OwningOpRef<mlir::ModuleOp> moduleOf(Program::State &state, mask::AttentionOp entry) {
  mlir::OwningOpRef<mlir::ModuleOp> module = mlir::ModuleOp::create(entry.getLoc());
  auto builder = mlir::OpBuilder::atBlockEnd(module->getBody());
  builder.clone(*entry);
  if (entry.getMask())
    builder.clone(*state.declaration<mask::PredicateOp>(*entry.getMask()));
  if (entry.getScore())
    builder.clone(*state.declaration<mask::ScoreOp>(*entry.getScore()));
  return module;
}

StatusOr<std::vector<AskedTape>> tapesToAsk(const Program &program, const EntryPoint &entry, const Binding &binding) {
  Program::State &state = program.state();
  std::lock_guard lock(state.mutex);
  mlir::OwningOpRef<mlir::ModuleOp> module = moduleOf(state, state.declaration<mask::AttentionOp>(entry.name));
  const auto axisSize = [&](llvm::StringRef capture, unsigned axis) {
    return binding.bindings().captures[captureSlot(state.summary.signature, capture)].shape[axis];
  };
  std::vector<AskedTape> result;
  for (const LintQuestion &question :
       addLintQuestions(*module, module->lookupSymbol<mask::AttentionOp>(entry.name), axisSize)) {
    mlir::FailureOr<Tape> tape = tapeFromPredicate(question.predicate, state.summary.signature);
    if (mlir::failed(tape))
      return Status::invalid("a lint has no tape: " + question.text);
    result.push_back({question.kind, std::move(*tape), locatedWarning(program, question.loc, messageOf(question))});
  }
  return result;
}

std::string textOf(const Pair &pair) {
  return fmt::format("(b, h, q, kv) = ({}, {}, {}, {})", pair.b, pair.h, pair.q, pair.kv);
}

std::string rangesText(const std::vector<Range> &ranges) {
  constexpr size_t kMostShown = 4;
  std::string text;
  for (size_t i = 0; i < ranges.size() && i < kMostShown; ++i)
    text += fmt::format("{}[{}, {})", i ? ", " : "", ranges[i].begin, ranges[i].end);
  return text + (ranges.size() > kMostShown ? ", ..." : "");
}

// Operations for one pair at most: what a reduction repeats counts once per turn.
double operationsPerPair(const Tape &tape, const Bindings &bindings) {
  const auto turnsOf = [&](const TapeInstruction &count) {
    switch (count.operation) {
    case Operation::Constant: return double(count.immediate);
    case Operation::Param: return double(bindings.params[count.immediate]);
    case Operation::Dim: return double(bindings.dims[count.immediate]);
    default: return kUnknownTurns;
    }
  };
  double operations = 0, turns = 1;
  std::vector<std::pair<int32_t, double>> bodies; // where each open body ends, and the turns outside of it
  for (int32_t i = 0; i < int32_t(tape.instructions.size()); ++i) {
    while (!bodies.empty() && bodies.back().first <= i) {
      turns = bodies.back().second;
      bodies.pop_back();
    }
    operations += turns;
    const TapeInstruction &instruction = tape.instructions[i];
    if (instruction.operation < Operation::ReduceAny)
      continue;
    bodies.emplace_back(instruction.operands[1], turns);
    turns *= std::max(0.0, turnsOf(tape.instructions[instruction.operands[0]]));
  }
  return operations;
}

bool isTooLong(const Tape &tape, const Bindings &bindings, const BlockMaskOptions &options) {
  const double operations = operationsPerPair(tape, bindings);
  return operations > kManyPerPair && operations * double(options.qLen) * double(options.kvLen) > kMostOnAllPairs;
}

bool isTooMuch(int64_t numTiles, const Tape &tape, const Bindings &bindings) {
  return double(numTiles) * kTile * kTile * operationsPerPair(tape, bindings) > kMostOperations;
}

// The first allowed pair at or after `firstKey(q)`, searching the runs of every distinct row set.
std::optional<Pair> findPair(const BlockMask &mask, const Tape &tape, const Bindings &bindings,
                             const std::function<int64_t(int64_t q)> &firstKey) {
  PointEvaluator evaluator(tape, bindings);
  std::vector<uint8_t> row(mask.tileKV);
  int64_t numSearched = 0;
  std::vector<bool> isSeen(mask.rowSets.size());
  for (int64_t bh = 0; bh < mask.batch * mask.heads; ++bh) {
    if (isSeen[mask.rowSetOf[bh]])
      continue;
    isSeen[mask.rowSetOf[bh]] = true;
    const int64_t b = bh / mask.heads, h = bh % mask.heads;
    const TileRows &rows = mask.rows(b, h);
    for (int64_t tileRow = 0; tileRow < mask.numQTiles(); ++tileRow)
      for (int32_t i = rows.rowBegin[tileRow]; i < rows.rowBegin[tileRow + 1]; ++i) {
        const TileRun &run = rows.runs[i];
        const int64_t qBegin = tileRow * mask.tileQ, qEnd = std::min(qBegin + mask.tileQ, mask.qLen);
        const int64_t runEnd = std::min(run.end * mask.tileKV, mask.kvLen);
        if (run.tileClass == TileClass::Full) {
          const int64_t key = std::max(run.begin * mask.tileKV, firstKey(qBegin));
          if (key < runEnd)
            return Pair{b, h, qBegin, key};
          continue;
        }
        for (int64_t tile = run.begin; tile < run.end; ++tile) {
          const int64_t keyEnd = std::min((tile + 1) * mask.tileKV, mask.kvLen);
          if (keyEnd <= firstKey(qBegin) || ++numSearched > kMostTilesSearched)
            continue;
          for (int64_t q = qBegin; q < qEnd; ++q) {
            const int64_t key = std::max(tile * mask.tileKV, firstKey(q));
            if (key >= keyEnd)
              continue;
            evaluator.evaluateRow(b, h, q, key, 1, keyEnd - key, row.data());
            const auto found = std::find(row.begin(), row.begin() + (keyEnd - key), 1);
            if (found != row.begin() + (keyEnd - key))
              return Pair{b, h, q, key + (found - row.begin())};
          }
        }
      }
  }
  return std::nullopt;
}

// Whether a name promises that no key after the query is seen.
bool promisesCausality(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  if (name.find("causal") == std::string::npos)
    return false;
  // These promise something else: causal by blocks, or over positions that an array holds.
  for (const char *word : {"anti", "non", "not_", "block", "chunk", "position", "paged", "frame"})
    if (name.find(word) != std::string::npos)
      return false;
  return true;
}

class EntryLints {
public:
  EntryLints(const Program &program, const EntryPoint &entry, const Binding &binding, int threads)
      : program_(program), entry_(entry), binding_(binding),
        options_(blockMaskOptions(program, entry, binding, kTile, kTile, threads)) {}

  Status run() {
    if (entry_.hasMask)
      CPFLEX_RETURN_IF_ERROR(addMaskLints());
    StatusOr<std::vector<AskedTape>> questions = tapesToAsk(program_, entry_, binding_);
    if (!questions)
      return questions.status();
    for (const AskedTape &question : *questions)
      CPFLEX_RETURN_IF_ERROR(ask(question));
    return Status::ok();
  }

  std::vector<Diagnostic> found;

private:
  void warn(const std::string &message) {
    found.push_back(warningAtMask(program_, entry_, fmt::format("'{}': {}", entry_.name, message)));
  }

  void warnOfLength() {
    warn(fmt::format(
        "a pair takes up to {:.0f} operations, too many to look for rows and keys without partners among {} x {}; "
        "check a shorter length",
        operationsPerPair(entry_.tape, binding_.bindings()), options_.qLen, options_.kvLen));
  }

  Status addMaskLints() {
    if (isTooLong(entry_.tape, binding_.bindings(), options_)) {
      warnOfLength();
      return Status::ok();
    }
    StatusOr<BlockMaskResult> built = cpflex::buildBlockMask(&entry_.tape, binding_.bindings(), options_);
    if (!built)
      return built.status();
    const BlockMask &mask = built->mask;
    const TileCounts counts = countTiles(mask);
    const std::string advice = reorderingAdvice(program_.state().declaration<mask::PredicateOp>(entry_.name + ".mask"));
    const int64_t numTiles = counts.empty + counts.full + counts.partial;
    const bool isLong = numTiles > int64_t(mask.rowSets.size()); // one tile says nothing
    if (isLong && counts.partial == numTiles)
      warn(fmt::format(
          "every tile of {0} x {0} is partial, so nothing is skipped and every pair is decided one by one{1}", kTile,
          advice));
    else if (isLong && counts.empty == 0)
      warn(fmt::format("no tile of {0} x {0} is empty, so nothing is skipped", kTile));
    else if (isLong && counts.full == 0 && counts.partial > 0)
      warn(fmt::format("no tile of {0} x {0} is full, so every pair of the tiles that remain is decided one by one{1}",
                       kTile, advice));
    if (isTooMuch(counts.partial, entry_.tape, binding_.bindings())) {
      warnOfLength();
      return Status::ok();
    }
    StatusOr<PairCounts> pairs = countAllowed(mask, &entry_.tape, binding_.bindings(), options_);
    if (!pairs)
      return pairs.status();
    // Of many batch rows or heads the first ones are enough.
    constexpr int kMostRowSets = 4;
    int numShown[2] = {};
    for (const RowSetPairs &rowSet : pairs->rowSets) {
      const std::string where =
          pairs->rowSets.size() > 1
              ? fmt::format(" in (b, h) = ({}, {})", rowSet.batchHead / mask.heads, rowSet.batchHead % mask.heads)
              : std::string();
      if (!rowSet.rowsWithoutKeys.empty() && numShown[0]++ < kMostRowSets)
        warn(fmt::format("query rows attend to nothing{}: {}; their output is 0", where,
                         rangesText(rowSet.rowsWithoutKeys)));
      if (!rowSet.columnsWithoutQueries.empty() && numShown[1]++ < kMostRowSets)
        warn(fmt::format("keys are seen by no query{}: {}", where, rangesText(rowSet.columnsWithoutQueries)));
    }
    if (!promisesCausality(entry_.name) && !promisesCausality(maskName()))
      return Status::ok();
    // Bottom-right alignment is causal too.
    const int64_t offset = std::max<int64_t>(0, mask.kvLen - mask.qLen);
    if (auto pair = findPair(mask, entry_.tape, binding_.bindings(), [&](int64_t q) { return q + offset + 1; }))
      warn(fmt::format("keys after the query attend although the name says causal, for example at {}", textOf(*pair)));
    return Status::ok();
  }

  // The function that the entry point's mask is, or nothing where it combines several.
  std::string maskName() const {
    auto predicate = program_.state().declaration<mask::PredicateOp>(entry_.name + ".mask");
    auto named = predicate ? llvm::dyn_cast<mlir::NameLoc>(predicate.getLoc()) : mlir::NameLoc();
    return named ? named.getName().str() : std::string();
  }

  Status ask(const AskedTape &question) {
    if (isTooLong(question.tape, binding_.bindings(), options_))
      return Status::ok();
    BlockMaskOptions options = options_;
    options.residuals = {};
    StatusOr<BlockMaskResult> built = cpflex::buildBlockMask(&question.tape, binding_.bindings(), options);
    if (!built)
      return built.status();
    const TileCounts counts = countTiles(built->mask);
    Diagnostic message = question.message;
    if (question.kind == LintQuestionKind::ConditionHolds) {
      const bool isAlways = counts.empty == 0 && counts.partial == 0, isNever = counts.full == 0 && counts.partial == 0;
      if (isAlways == isNever) // both in an empty mask
        return Status::ok();
      message.message +=
          fmt::format(" is {} for every pair of {} x {}", isAlways ? "True" : "False", options.qLen, options.kvLen);
    } else if (isTooMuch(std::min(counts.partial, kMostTilesSearched), question.tape, binding_.bindings())) {
      return Status::ok();
    } else {
      const auto pair = findPair(built->mask, question.tape, binding_.bindings(), [](int64_t) { return 0; });
      if (!pair)
        return Status::ok();
      message.message += ", for example at " + textOf(*pair);
    }
    found.push_back(std::move(message));
    return Status::ok();
  }

  const Program &program_;
  const EntryPoint &entry_;
  const Binding &binding_;
  BlockMaskOptions options_;
};

} // namespace

std::string sourceLine(const Program &program, const std::string &file, int line) {
  std::string text;
  constexpr std::string_view kStandardPrefix = "cpflex.std/";
  if (file == program.state().source->path())
    return std::string(program.state().source->line(line));
  if (file.starts_with(kStandardPrefix)) {
    for (const EmbeddedFile &standard : standardLibrary())
      if (standard.name == std::string_view(file).substr(kStandardPrefix.size()))
        text = standard.text;
  } else if (auto imported = program.state().files.find(file); imported != program.state().files.end()) {
    text = imported->second.text.value_or("");
  }
  return std::string(SourceText(file, std::move(text)).line(line));
}

std::vector<Diagnostic> lintProgram(const Program &program) {
  Program::State &state = program.state();
  std::lock_guard lock(state.mutex);
  mlir::ModuleOp module = state.importedModule();
  std::vector<Diagnostic> result = state.syntaxLints;
  for (Diagnostic &lint : located(program, maskingScoresOf(module)))
    result.push_back(std::move(lint));
  return result;
}

std::vector<Diagnostic> lintWithoutBinding(const Program &program) {
  Program::State &state = program.state();
  std::lock_guard lock(state.mutex);
  return located(program, lintsWithoutBinding(state.importedModule()));
}

Diagnostic warningAtDeclaration(const Program &program, const std::string &name, std::string message) {
  Program::State &state = program.state();
  std::lock_guard lock(state.mutex);
  mlir::ModuleOp module = state.importedModule();
  mlir::Operation *declaration = module.lookupSymbol(name);
  return locatedWarning(program, declaration ? declaration->getLoc() : module.getLoc(), std::move(message));
}

StatusOr<std::vector<Diagnostic>> lintEntry(const Program &program, const EntryPoint &entry, const Binding &binding,
                                            int threads) {
  EntryLints lints(program, entry, binding, threads);
  CPFLEX_RETURN_IF_ERROR(lints.run());
  return std::move(lints.found);
}

} // namespace cpflex
