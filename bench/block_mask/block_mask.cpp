// How long does it take to derive a BlockMask? Prints the goals and what is measured for the common
// masks from 8 thousand to 16 million tokens, for the catalogue at its own sizes, and for 64 heads
// with captures of their own. One thread unless stated; times run from bound arrays to the finished
// mask, fact checks and summaries included. An argument restricts the run to the masks whose name
// begins with it. On a machine that is busy with something else, read the processor's time.
#include "bench/block_mask/Measurement.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "test/runtime/BlockMask/Catalogue.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string_view>

namespace {

using namespace cpflex;
using namespace cpflex::bench;
using namespace cpflex::test;

/// Milliseconds spent on repetitions of one figure.
constexpr double kBudgetMs = 150;

std::vector<int32_t> documentIds(int64_t length, int64_t documents) {
  std::vector<int32_t> ids(length);
  for (int64_t i = 0; i < length; ++i)
    ids[i] = static_cast<int32_t>((i + i * 7919 % 37) * documents / (length + 37));
  std::sort(ids.begin(), ids.end());
  return ids;
}

/// A mask that exists at every length, with what it may cost in milliseconds; 0 where nothing is
/// asked.
struct ScalableMask {
  const char *name;
  std::function<Value(TapeBuilder &, int64_t length)> make;
  bool hasSortedCapture = false;
  double goal8k = 0, goal128k = 0, goal1M = 0;

  double goal(int64_t length) const {
    return length == 8192 ? goal8k : length == 131072 ? goal128k : length == 1048576 ? goal1M : 0;
  }
};

Value causal(TapeBuilder &b) { return b.kv() <= b.q(); }

std::vector<ScalableMask> scalableMasks() {
  auto documents = [](int64_t count) {
    return [count](TapeBuilder &b, int64_t length) {
      int doc = b.ints(documentIds(length, count));
      return (b.load(doc, {b.q()}) == b.load(doc, {b.kv()})) & causal(b);
    };
  };
  return {
      {"causal", [](TapeBuilder &b, int64_t) { return causal(b); }, false, 0.05, 0.2, 2},
      {"sliding window 1024", [](TapeBuilder &b, int64_t) { return causal(b) & (b.q() - b.kv() < 1024); }, false, 0.05,
       0, 8},
      {"sink 4 + window 2044",
       [](TapeBuilder &b, int64_t) { return causal(b) & ((b.kv() < 4) | (b.q() - b.kv() < 2044)); }},
      {"prefix-LM 1024", [](TapeBuilder &b, int64_t) { return causal(b) | (b.kv() < 1024); }, false, 0, 0, 8},
      {"block-causal 32", [](TapeBuilder &b, int64_t) { return b.kv() / 32 <= b.q() / 32; }, false, 0, 0, 8},
      {"chunked 2048", [](TapeBuilder &b, int64_t) { return causal(b) & (b.q() / 2048 == b.kv() / 2048); }, false, 0, 0,
       8},
      {"8 documents, declared sorted", documents(8), true, 0.2, 2, 0},
      {"1000 documents, declared sorted", documents(1000), true, 0.2, 2, 8},
      {"1000 documents, nothing declared", documents(1000), false, 0.2, 2, 8},
      {"images of 256 in text",
       [](TapeBuilder &b, int64_t length) {
         std::vector<int32_t> spans(length, -1);
         for (int64_t i = 0; i < length; ++i)
           if (i % 3000 >= 1000 && i % 3000 < 1256)
             spans[i] = static_cast<int32_t>(i / 3000);
         int span = b.ints(spans);
         Value q = b.load(span, {b.q()});
         return causal(b) | ((q == b.load(span, {b.kv()})) & (q >= 0));
       }},
  };
}

void printScaling(std::string_view wanted) {
  fmt::print("{:<34} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9} {:>9} {:>8}\n", "mask", "tokens", "median ms", "least ms",
             "cpu ms", "goal", "KiB", "tiles", "points");
  for (const ScalableMask &mask : scalableMasks()) {
    if (!std::string_view(mask.name).starts_with(wanted))
      continue;
    for (int64_t length : {8192, 131072, 1048576, 16777216}) {
      TapeBuilder builder;
      builder.finish(mask.make(builder, length));
      BlockMaskOptions options;
      options.qLen = options.kvLen = length;
      std::vector<CaptureDeclaration> declarations;
      if (mask.hasSortedCapture)
        declarations.emplace_back().isSorted = true;
      Measured measured = measure(builder, options, declarations, kBudgetMs);
      double goal = mask.goal(length);
      fmt::print("{:<34} {:>9} {:>9.3f} {:>9.3f} {:>9.3f} {:>7} {:>9.1f} {:>9} {:>8}\n", mask.name, length,
                 measured.median, measured.least, measured.leastProcessor, goal > 0 ? fmt::format("{}", goal) : "",
                 static_cast<double>(sizeInBytes(measured.result.mask)) / 1024, measured.result.tilesEvaluated,
                 measured.result.pointsEvaluated);
    }
  }
}

void printCatalogue(std::string_view wanted) {
  fmt::print("\n{:<8} {:>12} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9}\n", "case", "size", "median ms", "least ms", "cpu ms",
             "tiles", "points", "points %");
  std::vector<double> medians, processor;
  for (const CatalogueCase &mask : catalogue()) {
    if (!std::string_view(mask.name).starts_with(wanted))
      continue;
    BlockMaskOptions options;
    options.qLen = mask.qLen;
    options.kvLen = mask.kvLen;
    Measured measured = measure(*mask.builder, options, {}, kBudgetMs / 3);
    medians.push_back(measured.median);
    processor.push_back(measured.leastProcessor);
    fmt::print("{:<8} {:>12} {:>9.3f} {:>9.3f} {:>9.3f} {:>9} {:>8} {:>9.4f}\n", mask.name,
               fmt::format("{}x{}", mask.qLen, mask.kvLen), measured.median, measured.least, measured.leastProcessor,
               measured.result.tilesEvaluated, measured.result.pointsEvaluated,
               100.0 * static_cast<double>(measured.result.pointsEvaluated) /
                   static_cast<double>(mask.qLen * mask.kvLen));
  }
  if (medians.empty())
    return;
  for (std::vector<double> *times : {&medians, &processor})
    std::sort(times->begin(), times->end());
  fmt::print("catalogue: median {:.3f} ms (processor {:.3f}; goal 1), longest {:.3f} ms (processor "
             "{:.3f}; goal 40)\n",
             medians[medians.size() / 2], processor[processor.size() / 2], medians.back(), processor.back());
}

/// 64 heads with ids of their own against one head, on 1 and 2 threads.
void printHeads() {
  constexpr int64_t kLength = 131072, kHeads = 64;
  TapeBuilder builder;
  std::vector<int32_t> ids;
  for (int64_t head = 0; head < kHeads; ++head) {
    // The same 100 documents for each head, begun a little later.
    std::vector<int32_t> own = documentIds(kLength + kHeads * 17, 100);
    ids.insert(ids.end(), own.begin() + head * 17, own.begin() + head * 17 + kLength);
  }
  int doc = builder.capture(ElementType::I32, ids, {kHeads, kLength});
  Value h = builder.h();
  builder.finish((builder.load(doc, {h, builder.q()}) == builder.load(doc, {h, builder.kv()})) & causal(builder));
  BlockMaskOptions options;
  options.qLen = options.kvLen = kLength;
  Measured one = measure(builder, options, {}, kBudgetMs);
  options.heads = kHeads;
  Measured many = measure(builder, options, {}, 10 * kBudgetMs);
  options.threads = 2;
  Measured onTwo = measure(builder, options, {}, 10 * kBudgetMs);
  auto print = [&](const char *what, const Measured &measured) {
    fmt::print("{:<34} {:>9} {:>9.3f} {:>9.3f} {:>9.3f}\n", what, kLength, measured.median, measured.least,
               measured.leastProcessor);
  };
  fmt::print("\n");
  print("64 heads: one head", one);
  print("64 heads, one thread", many);
  print("64 heads, two threads", onTwo);
  fmt::print("64 heads on two threads over one head: {:.1f} by the median, {:.1f} by the least, {:.1f} by the "
             "processor's time shared by two (goal 40); masks are {}\n",
             onTwo.median / one.median, onTwo.least / one.least, onTwo.leastProcessor / 2 / one.leastProcessor,
             many.result.mask == onTwo.result.mask ? "equal" : "NOT EQUAL");
}

} // namespace

int main(int argc, char **argv) {
  std::string_view wanted = argc > 1 ? argv[1] : "";
  printScaling(wanted);
  printCatalogue(wanted);
  if (std::string_view("64 heads").starts_with(wanted))
    printHeads();
  return 0;
}
