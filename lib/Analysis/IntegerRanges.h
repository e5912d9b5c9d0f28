// Between which bounds the ints, u32 and bools of a program lie, whatever is bound, given how long sequences may be.
#pragma once

#include "dialect/Mask/MaskDialect.h"
#include "runtime/contract/NarrowCode.h"

#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/DenseSet.h"

#include <map>
#include <optional>
#include <string>

namespace cpflex {

/// A closed, non-empty range of values; bools are 0 and 1.
struct IntegerRange {
  int64_t lo = 0, hi = 0;

  bool contains(int64_t value) const { return lo <= value && value <= hi; }
  bool fitsInt32() const { return lo >= INT32_MIN && hi <= INT32_MAX; }
  bool isPoint() const { return lo == hi; }
  bool operator==(const IntegerRange &) const = default;
};

/// What holds of every binding; whoever relies on a derived range checks it when arrays and lengths are bound.
struct RangeAssumptions {
  /// Every dimension is at most this; positions are below it.
  int64_t longestDimension = kLongestDimension;
  /// Int params lie between its negation and it; the default says nothing.
  int64_t largestParam = INT64_MAX;
  /// Sizes of dimensions that are known, by name; a position of an empty sequence counts as 0.
  std::map<std::string, int64_t> dimensions = {};

  /// What 32-bit code assumes.
  static RangeAssumptions forNarrowCode() { return {kLongestNarrowDimension, kLargestNarrowParam, {}}; }
};

/// Ranges of the values of every function of a module, computed once at construction: stale after the module changes.
/// Facts (`lo`, `hi`) and element types of captures bound what loads give; an element outside the array is 0.
class IntegerRanges {
public:
  explicit IntegerRanges(mlir::ModuleOp module, RangeAssumptions assumptions = {});

  /// The range of an int, u32 or bool value. Values of other types give the range of all ints.
  IntegerRange of(mlir::Value value) const;

  /// Whether the unbounded result of the operation that defines an int or u32 may differ from its wrapped one.
  bool mayWrap(mlir::Value value) const { return wrapping.contains(value); }

private:
  void visitFunction(mlir::FunctionOpInterface function, unsigned firstCoordinate);
  void visitBlock(mlir::Block &block);
  void visit(mlir::Operation *op);
  IntegerRange rangeOfDimension(llvm::StringRef name) const;
  IntegerRange rangeOfLoad(mask::LoadOp op);
  IntegerRange rangeOfReduction(mask::ReduceOp op);
  std::optional<IntegerRange> rangeOfArm(mlir::Value arm, mlir::Value condition, bool holds) const;
  IntegerRange rangeOfTableOperation(mlir::Operation *op);
  IntegerRange wrapped(mlir::Operation *op, __int128 lo, __int128 hi);

  mlir::ModuleOp module;
  RangeAssumptions assumptions;
  llvm::DenseMap<mlir::Value, IntegerRange> ranges;
  llvm::DenseSet<mlir::Value> wrapping;
};

/// The range of all values of an int, u32 or bool type, or of all ints.
IntegerRange fullRange(mlir::Type type);

} // namespace cpflex
