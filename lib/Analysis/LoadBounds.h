// Which loads may leave their arrays, for the lints of `cpflexc check`. Such a load gives 0, so none is an error; where
// an index may be negative, PyTorch would have wrapped it around.
#pragma once

#include "lib/Analysis/IntegerRanges.h"

#include <vector>

namespace cpflex {

/// One index of a load that is not proved to lie in its axis.
struct LooseIndex {
  mask::LoadOp load;
  unsigned axis = 0;
  bool mayBeNegative = false;
  bool mayReachEnd = false; ///< may be the size of the axis or more
};

/// The loose indices of all loads in predicates and score functions, in program order. Sizes in
/// `assumptions.dimensions` are taken as given; an axis of unknown size is only compared with coordinates that count
/// the same dimension. A condition around a load is not looked at.
std::vector<LooseIndex> looseIndicesOf(mlir::ModuleOp module, const RangeAssumptions &assumptions = {});

} // namespace cpflex
