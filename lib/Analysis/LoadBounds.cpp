// Compares the range of each index with the size of its axis, as a number where it is known and by name otherwise.
#include "lib/Analysis/LoadBounds.h"

#include "lib/Analysis/Residuals.h"

using namespace mlir;

namespace cpflex {
namespace {

/// The dimension that a coordinate or the index of a reduction counts; empty for other values.
StringRef countedDimension(Value value) {
  auto argument = llvm::dyn_cast<BlockArgument>(value);
  if (!argument)
    return {};
  if (auto reduction = llvm::dyn_cast<mask::ReduceOp>(argument.getOwner()->getParentOp())) {
    auto dim = reduction.getCount().getDefiningOp<mask::DimOp>();
    return dim ? dim.getName() : StringRef();
  }
  static constexpr StringRef kDimensions[] = {"KV_LEN", "Q_LEN", "H", "B"};
  unsigned fromEnd = argument.getOwner()->getNumArguments() - 1 - argument.getArgNumber();
  return fromEnd < std::size(kDimensions) ? kDimensions[fromEnd] : StringRef();
}

/// Proves that values are below one dimension wherever that is not empty.
class BelowDimension {
public:
  BelowDimension(StringRef name, const IntegerRanges &ranges) : name(name), ranges(ranges) {}

  /// Whether `value` is a coordinate that counts the dimension, 0, a remainder by it, an extremum of such values, or
  /// such a value or the dimension itself less something.
  bool holds(Value value) {
    if (--stepsLeft < 0)
      return false;
    if (countedDimension(value) == name || ranges.of(value) == IntegerRange{0, 0})
      return true;
    if (auto op = value.getDefiningOp<mask::ModOp>())
      return isDimension(op.getRhs());
    if (auto op = value.getDefiningOp<mask::MinOp>())
      return holds(op.getLhs()) || holds(op.getRhs());
    if (auto op = value.getDefiningOp<mask::MaxOp>())
      return holds(op.getLhs()) && holds(op.getRhs());
    auto op = value.getDefiningOp<mask::SubOp>();
    if (!op || ranges.mayWrap(value))
      return false;
    IntegerRange subtracted = ranges.of(op.getRhs());
    return (isDimension(op.getLhs()) && subtracted.lo > 0) || (subtracted.lo >= 0 && holds(op.getLhs()));
  }

private:
  bool isDimension(Value value) const {
    auto dim = value.getDefiningOp<mask::DimOp>();
    return dim && dim.getName() == name;
  }

  StringRef name;
  const IntegerRanges &ranges;
  int stepsLeft = 64; ///< shared operands are visited again, so the search is cut off
};

} // namespace

std::vector<LooseIndex> looseIndicesOf(ModuleOp module, const RangeAssumptions &assumptions) {
  IntegerRanges ranges(module, assumptions);
  std::vector<LooseIndex> result;
  auto visit = [&](mask::LoadOp load) {
    auto capture = module.lookupSymbol<mask::CaptureOp>(load.getCapture());
    for (auto [axis, index] : llvm::enumerate(load.getIndices())) {
      StringRef dim = llvm::cast<StringAttr>(capture.getDims()[axis]).getValue();
      IntegerRange range = ranges.of(index);
      int64_t size = 0;
      if (dim.getAsInteger(10, size)) {
        auto known = assumptions.dimensions.find(dim.str());
        size = known == assumptions.dimensions.end() ? -1 : known->second;
      }
      bool mayReachEnd = (size < 0 || range.hi >= size) && !BelowDimension(dim, ranges).holds(index);
      if (range.lo < 0 || mayReachEnd)
        result.push_back({load, static_cast<unsigned>(axis), range.lo < 0, mayReachEnd});
    }
  };
  for (auto function : module.getOps<FunctionOpInterface>())
    if (llvm::isa<mask::PredicateOp, mask::ScoreOp>(function) && !function->hasAttr(kResidualAttribute))
      function.walk(visit);
  return result;
}

} // namespace cpflex
