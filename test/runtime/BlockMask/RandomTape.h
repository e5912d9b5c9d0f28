// Which expressions might a user write? Random well-typed predicates with arrays of every kind,
// from a seed.
#pragma once

#include "test/runtime/BlockMask/TapeBuilder.h"

#include <cstdint>
#include <map>
#include <memory>
#include <random>

namespace cpflex::test {

/// A random predicate and how often it uses each operation.
struct RandomTape {
  std::shared_ptr<TapeBuilder> builder;
  std::map<Operation, int64_t> uses;
};

/// The predicate of a seed over b < 2, h < 2 and small positions.
RandomTape makeRandomTape(uint64_t seed);

/// The value of a tape at a point by plain recursion over its instructions, independent of the
/// evaluators.
bool interpret(const Tape &tape, const Bindings &bindings, int64_t b, int64_t h, int64_t q, int64_t kv);

} // namespace cpflex::test
