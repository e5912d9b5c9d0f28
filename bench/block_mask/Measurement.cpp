// Reads the clocks around builds.
#include "bench/block_mask/Measurement.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <vector>

namespace cpflex::bench {

namespace {

constexpr size_t kLeastRepetitions = 3, kMostRepetitions = 200;

double processorMs() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

} // namespace

Measured measure(const test::TapeBuilder &builder, const BlockMaskOptions &options,
                 std::span<const CaptureDeclaration> declarations, double budgetMs) {
  Measured measured;
  std::vector<double> times;
  double spent = 0;
  Bindings bindings = builder.bindings();
  BlockMaskOptions own = options;
  own.declarations = declarations;
  while (times.size() < kLeastRepetitions || (spent < budgetMs && times.size() < kMostRepetitions)) {
    double processorBegin = processorMs();
    auto begin = std::chrono::steady_clock::now();
    for (size_t slot = 0; slot < declarations.size(); ++slot)
      if (!verifyFacts(declarations[slot], bindings.captures[slot]))
        return {};
    auto result = buildBlockMask(&builder.tape(), bindings, own);
    auto end = std::chrono::steady_clock::now();
    double processor = processorMs() - processorBegin;
    if (!result)
      return {};
    if (times.empty() || processor < measured.leastProcessor)
      measured.leastProcessor = processor;
    times.push_back(std::chrono::duration<double, std::milli>(end - begin).count());
    spent += times.back();
    measured.result = std::move(*result);
  }
  std::sort(times.begin(), times.end());
  measured.median = times[times.size() / 2];
  measured.least = times.front();
  return measured;
}

} // namespace cpflex::bench
