// What is it worth to evaluate, in a partial tile, only the part of the mask that is open there? Compiled masks over
// 8,192 tokens, one head of size 64, one thread: the pairs of all numbered tiles by the whole mask and by their
// residuals, then attention both ways, in turns. Times are the processor's, medians.
#include "lib/API/cpflex.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>

using namespace cpflex;

namespace {

constexpr int64_t kLength = 8192, kDepth = 64, kTile = 128;
constexpr int kRepetitions = 9;

struct ComparedMask {
  const char *name, *text;
};
const ComparedMask kMasks[] = {
    {"documents + causal", "return kv <= q and doc[q] == doc[kv]"},
    {"prefix-LM", "return kv <= q or kv < 1000"},
    {"sink 4 + window 1024", "return kv <= q and (kv < 4 or q - kv < 1024)"},
};

double processorMs() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return double(time.tv_sec) * 1e3 + double(time.tv_nsec) * 1e-6;
}

double medianOf(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// Medians of two actions that take turns.
template <typename First, typename Second> std::pair<double, double> inTurns(const First &first, const Second &second) {
  std::vector<double> times[2];
  for (int i = 0; i <= kRepetitions; ++i)
    for (int which = 0; which < 2; ++which) {
      const double begin = processorMs();
      which == 0 ? first() : second();
      if (i > 0) // the first turn warms the caches
        times[which].push_back(processorMs() - begin);
    }
  return {medianOf(times[0]), medianOf(times[1])};
}

int run(const ComparedMask &mask) {
  CompileOptions compile;
  compile.cacheDir = "";
  const std::string text =
      fmt::format("doc: tensor[i32, KV_LEN](sorted)\n@mask\ndef m(b, h, q, kv):\n    {}\n", mask.text);
  const auto program = compileText("m.cpf", text, compile).program;
  std::vector<int32_t> documents(kLength);
  for (int64_t i = 0; i < kLength; ++i)
    documents[i] = int32_t(i * 13 / kLength);
  BindRequest request;
  request.views["doc"] = {.data = documents.data(),
                          .type = ElementType::I32,
                          .shape = {kLength},
                          .strides = {1},
                          .device = {},
                          .owner = nullptr};
  request.sizes = {.qLen = kLength, .kvLen = kLength};
  const auto binding = Binding::create(*program, request);
  if (!binding)
    return 1;
  const EntryPoint &entry = program->entries()[0];
  const auto built = buildBlockMask(*program, entry, **binding, kTile, kTile, /*threads=*/1);
  const double compileBegin = processorMs();
  const auto functions = program->hostFunctions(entry, (*binding)->bindings());
  const double compileMs = processorMs() - compileBegin;
  if (!built || !functions)
    return 1;

  // 1. The pairs alone.
  struct Numbered {
    TileCoordinates tile;
    EvaluateTileFunction residual;
  };
  std::vector<Numbered> numbered;
  int64_t numPartial = 0;
  const TileRows &rows = built->mask.rows(0, 0);
  for (int64_t row = 0; row < built->mask.numQTiles(); ++row)
    for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i) {
      const TileRun run = rows.runs[i];
      for (int64_t column = run.begin; column < run.end && run.tileClass == TileClass::Partial; ++column) {
        ++numPartial;
        const EvaluateTileFunction residual =
            run.residual > 0 ? functions->evaluateResidual[run.residual - 1] : nullptr;
        if (residual)
          numbered.push_back(
              {{.qBegin = row * kTile, .qCount = kTile, .kvBegin = column * kTile, .kvCount = kTile}, residual});
      }
    }
  std::vector<uint8_t> allowed(kTile * kTile);
  constexpr int kPasses = 50;
  auto evaluate = [&](bool isWhole) {
    for (int pass = 0; pass < kPasses; ++pass)
      for (const Numbered &each : numbered)
        (isWhole ? functions->evaluateTile : each.residual)(&(*binding)->bindings(), &each.tile, allowed.data(), kTile);
  };
  const auto [wholeMs, residualMs] = inTurns([&] { evaluate(/*isWhole=*/true); }, [&] { evaluate(/*isWhole=*/false); });
  const double perTile = 1e3 / double(kPasses * std::max<size_t>(numbered.size(), 1));

  // 2. Attention, forward and backward.
  auto load = [&](uint64_t residualKey) {
    BlockMask copy = built->mask;
    copy.residualKey = residualKey;
    LoadOptions options;
    options.headDim = kDepth;
    options.passes = CallPasses::ForwardAndBackward;
    options.numThreads = 1;
    return *Executable::load(program, entry, *binding, std::make_shared<BlockMask>(copy), options);
  };
  const auto whole = load(0), parts = load(built->mask.residualKey);
  std::vector<float> inputs(kLength * kDepth, 0.25f), outputs[3];
  auto tensor = [](std::vector<float> &values, int64_t depth) {
    values.resize(size_t(kLength * depth));
    return CallTensor{.data = values.data(),
                      .type = ElementType::F32,
                      .shape = {1, 1, kLength, depth},
                      .strides = {kLength * depth, kLength * depth, depth, 1},
                      .device = {}};
  };
  std::vector<float> out, lse;
  const CallTensor input = tensor(inputs, kDepth), outTensor = tensor(out, kDepth), lseTensor = tensor(lse, 1);
  auto forward = [&](const Executable &executable) {
    (void)executable.forward({.q = input, .k = input, .v = input, .out = outTensor, .lse = lseTensor, .rowMax = {}},
                             nullptr, 0);
  };
  BackwardCallTensors tensors{.q = input, .k = input, .v = input, .out = outTensor, .lse = lseTensor};
  tensors.dOut = input;
  tensors.dQ = tensor(outputs[0], kDepth), tensors.dK = tensor(outputs[1], kDepth),
  tensors.dV = tensor(outputs[2], kDepth);
  auto backward = [&](const Executable &executable) { (void)executable.backward(tensors, nullptr, 0); };
  const auto [forwardWhole, forwardParts] = inTurns([&] { forward(*whole); }, [&] { forward(*parts); });
  const auto [backwardWhole, backwardParts] = inTurns([&] { backward(*whole); }, [&] { backward(*parts); });
  fmt::print("{:<22} {:>4} of {:>4} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {:>7.3f} {:>9.2f} {:>9.2f} {:>7.3f} {:>9.1f}\n",
             mask.name, numbered.size(), numPartial, wholeMs * perTile, residualMs * perTile, forwardWhole,
             forwardParts, forwardParts / forwardWhole, backwardWhole, backwardParts, backwardParts / backwardWhole,
             compileMs);
  return 0;
}

} // namespace

int main() {
  fmt::print("{:<22} {:>12} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9} {:>9} {:>7} {:>9}\n", "mask", "numbered", "tile us",
             "residual", "forward", "residual", "ratio", "backward", "residual", "ratio", "LLVM ms");
  for (const ComparedMask &mask : kMasks)
    if (int code = run(mask))
      return code;
  return 0;
}
