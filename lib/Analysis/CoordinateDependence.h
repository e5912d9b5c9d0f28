// Which coordinates decide a value? Tells which of b and h a mask reads and how arrays are indexed.
#pragma once

#include "dialect/Mask/MaskDialect.h"

#include "llvm/ADT/DenseMap.h"

namespace cpflex {

/// A set of what a value is computed from; captures and params count only by their indices.
struct CoordinateSet {
  bool b = false, h = false, q = false, kv = false;
  bool score = false;     ///< the incoming score, or its gradient
  bool induction = false; ///< the index of a reduction around it

  CoordinateSet operator|(const CoordinateSet &other) const {
    return {b || other.b,   h || other.h,         q || other.q,
            kv || other.kv, score || other.score, induction || other.induction};
  }
  bool operator==(const CoordinateSet &) const = default;
};

/// The dependences of every value of one function, computed at construction; stale after the function changes.
class CoordinateDependence {
public:
  explicit CoordinateDependence(mlir::FunctionOpInterface function);

  /// What `value`, of the function, depends on.
  CoordinateSet of(mlir::Value value) const { return sets.lookup(value); }

private:
  CoordinateSet visit(mlir::Block &block);
  llvm::DenseMap<mlir::Value, CoordinateSet> sets;
};

} // namespace cpflex
