// How long does one build of a BlockMask take? Repeats it and keeps the median and the least of the
// wall clock, and the least time of the processor, which does not count what other programs take.
#pragma once

#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "test/runtime/BlockMask/TapeBuilder.h"

#include <span>

namespace cpflex::bench {

/// Times of one build in milliseconds, and what it built.
struct Measured {
  double median = 0, least = 0; ///< by the wall clock
  double leastProcessor = 0;    ///< of all threads of this process
  BlockMaskResult result;
};

/// Builds the mask until `budgetMs` are spent, at least 3 times and at most 200 times. Each build
/// runs from bound arrays to the finished mask: fact checks and summaries are made anew.
Measured measure(const test::TapeBuilder &builder, const BlockMaskOptions &options,
                 std::span<const CaptureDeclaration> declarations, double budgetMs);

} // namespace cpflex::bench
