// How long does it take to derive a BlockMask? Prints medians for the catalogue at its own sizes
// and for the common masks from 8 thousand to 16 million tokens, one thread unless stated. Times
// run from bound arrays to the finished mask, fact checks and summaries included. An argument
// restricts the run to the masks whose name begins with it.
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "test/runtime/BlockMask/Catalogue.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string_view>

namespace {

using namespace cpflex;
using namespace cpflex::test;

struct Measured {
  double milliseconds = 0;
  BlockMaskResult result;
};

/// The median over some builds; summaries and fact checks are made anew for each.
Measured measure(const TapeBuilder &builder, const BlockMaskOptions &options,
                 std::span<const CaptureDeclaration> declarations = {}) {
  constexpr int kRepetitions = 5;
  Measured measured;
  std::vector<double> times;
  Bindings bindings = builder.bindings();
  for (int i = 0; i < kRepetitions; ++i) {
    auto begin = std::chrono::steady_clock::now();
    for (size_t slot = 0; slot < declarations.size(); ++slot)
      if (!verifyFacts(declarations[slot], bindings.captures[slot]))
        return measured;
    BlockMaskOptions own = options;
    own.declarations = declarations;
    auto result = buildBlockMask(&builder.tape(), bindings, own);
    auto end = std::chrono::steady_clock::now();
    if (!result)
      return measured;
    times.push_back(std::chrono::duration<double, std::milli>(end - begin).count());
    measured.result = std::move(*result);
  }
  std::nth_element(times.begin(), times.begin() + kRepetitions / 2, times.end());
  measured.milliseconds = times[kRepetitions / 2];
  return measured;
}

std::vector<int32_t> documentIds(int64_t length, int64_t documents) {
  std::vector<int32_t> ids(length);
  for (int64_t i = 0; i < length; ++i)
    ids[i] = static_cast<int32_t>((i + i * 7919 % 37) * documents / (length + 37));
  std::sort(ids.begin(), ids.end());
  return ids;
}

/// A mask that exists at every length.
struct ScalableMask {
  const char *name;
  std::function<Value(TapeBuilder &, int64_t length)> make;
  bool hasSortedCapture = false;
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
      {"causal", [](TapeBuilder &b, int64_t) { return causal(b); }},
      {"sliding window 1024",
       [](TapeBuilder &b, int64_t) { return causal(b) & (b.q() - b.kv() < 1024); }},
      {"sink 4 + window 2044",
       [](TapeBuilder &b, int64_t) {
         return causal(b) & ((b.kv() < 4) | (b.q() - b.kv() < 2044));
       }},
      {"prefix-LM 1024", [](TapeBuilder &b, int64_t) { return causal(b) | (b.kv() < 1024); }},
      {"block-causal 32", [](TapeBuilder &b, int64_t) { return b.kv() / 32 <= b.q() / 32; }},
      {"chunked 2048",
       [](TapeBuilder &b, int64_t) { return causal(b) & (b.q() / 2048 == b.kv() / 2048); }},
      {"8 documents, declared sorted", documents(8), true},
      {"1000 documents, declared sorted", documents(1000), true},
      {"1000 documents, nothing declared", documents(1000)},
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
  fmt::print("{:<34} {:>10} {:>10} {:>12} {:>12} {:>12}\n", "mask", "tokens", "ms", "KiB",
             "tiles seen", "points");
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
      Measured measured = measure(builder, options, declarations);
      fmt::print("{:<34} {:>10} {:>10.3f} {:>12.1f} {:>12} {:>12}\n", mask.name, length,
                 measured.milliseconds,
                 static_cast<double>(sizeInBytes(measured.result.mask)) / 1024,
                 measured.result.tilesEvaluated, measured.result.pointsEvaluated);
    }
  }
}

void printCatalogue(std::string_view wanted) {
  fmt::print("\n{:<8} {:>12} {:>10} {:>12} {:>12} {:>9}\n", "case", "size", "ms", "tiles seen",
             "points", "points %");
  std::vector<double> times;
  for (const CatalogueCase &mask : catalogue()) {
    if (!std::string_view(mask.name).starts_with(wanted))
      continue;
    BlockMaskOptions options;
    options.qLen = mask.qLen;
    options.kvLen = mask.kvLen;
    Measured measured = measure(*mask.builder, options);
    times.push_back(measured.milliseconds);
    fmt::print("{:<8} {:>12} {:>10.3f} {:>12} {:>12} {:>9.4f}\n", mask.name,
               fmt::format("{}x{}", mask.qLen, mask.kvLen), measured.milliseconds,
               measured.result.tilesEvaluated, measured.result.pointsEvaluated,
               100.0 * static_cast<double>(measured.result.pointsEvaluated) /
                   static_cast<double>(mask.qLen * mask.kvLen));
  }
  if (times.empty())
    return;
  std::sort(times.begin(), times.end());
  fmt::print("catalogue: median {:.3f} ms, longest {:.3f} ms\n", times[times.size() / 2],
             times.back());
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
  builder.finish((builder.load(doc, {h, builder.q()}) == builder.load(doc, {h, builder.kv()})) &
                 causal(builder));
  BlockMaskOptions options;
  options.qLen = options.kvLen = kLength;
  double one = measure(builder, options).milliseconds;
  options.heads = kHeads;
  double many = measure(builder, options).milliseconds;
  options.threads = 2;
  double manyOnTwo = measure(builder, options).milliseconds;
  fmt::print("\n64 heads of 131072 tokens with captures of their own: {:.3f} ms, on 2 threads "
             "{:.3f} ms; one head {:.3f} ms; ratio on 2 threads {:.1f}\n",
             many, manyOnTwo, one, manyOnTwo / one);
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
