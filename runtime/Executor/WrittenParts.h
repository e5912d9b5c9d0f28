// Which contribution to a buffer of sums is the first one at its place? It is stored, later ones are added, and a
// buffer whose every row is stored first needs no zeros. Internal to the executor.
#pragma once

#include "runtime/Executor/ExecutionDevice.h"
#include "runtime/contract/Schedule.h"

#include <vector>

namespace cpflex {

/// The parts of one buffer, in the order in which contributions to them come. First every contribution is planned, then
/// each is asked for again in the same order. Where contributions overlap in part, leave rows out or are very many, the
/// buffer starts with zeros and all of them are added.
class WrittenParts {
public:
  /// Notes that a contribution to `part` comes next.
  void plan(const Slab &part);
  /// Ends the plan for a buffer of so many rows, over batch and heads, and says with what it starts.
  ExecutionDevice::Contents startOf(int64_t numRows);
  /// How the next contribution goes in: it replaces what is there, or is added.
  GradientWrite next(const Slab &part);

private:
  /// Whether a stored part has all of `part`; overlaps in part make the buffer start with zeros.
  bool isStored(const Slab &part);

  std::vector<Slab> stored_;
  bool isZeroed_ = false;
};

} // namespace cpflex
