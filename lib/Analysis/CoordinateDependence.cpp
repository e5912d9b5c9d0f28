// One forward pass that unites what the operands of each operation depend on.
#include "lib/Analysis/CoordinateDependence.h"

using namespace mlir;

namespace cpflex {

CoordinateDependence::CoordinateDependence(FunctionOpInterface function) {
  Block &body = function.getFunctionBody().front();
  unsigned numArguments = body.getNumArguments();
  static constexpr bool CoordinateSet::*kMembers[] = {&CoordinateSet::kv, &CoordinateSet::q, &CoordinateSet::h,
                                                      &CoordinateSet::b};
  for (BlockArgument argument : body.getArguments()) {
    unsigned fromEnd = numArguments - 1 - argument.getArgNumber();
    bool CoordinateSet::*member = fromEnd < 4 ? kMembers[fromEnd] : &CoordinateSet::score;
    sets[argument].*member = true;
  }
  visit(body);
}

CoordinateSet CoordinateDependence::visit(Block &block) {
  CoordinateSet result;
  for (mlir::Operation &op : block) {
    CoordinateSet set;
    for (Value operand : op.getOperands())
      set = set | of(operand);
    for (Region &region : op.getRegions()) {
      Block &body = region.front();
      for (BlockArgument index : body.getArguments())
        sets[index].induction = true;
      set = set | visit(body);
      // The index of an outermost reduction does not escape it.
      set.induction = set.induction && llvm::isa<mask::ReduceOp>(op.getParentOp());
    }
    for (Value value : op.getResults())
      sets[value] = set;
    if (op.hasTrait<OpTrait::IsTerminator>())
      result = set;
  }
  return result;
}

} // namespace cpflex
