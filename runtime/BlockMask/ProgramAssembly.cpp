// Puts the nodes of a program in order: only what the result needs, by the coordinates it depends
// on.
#include "runtime/BlockMask/OperationDispatch.h"
#include "runtime/BlockMask/TapeProgram.h"

namespace cpflex {

int numOperands(const ProgramNode &node) {
  switch (node.form) {
  case NodeForm::Operation: return arityOf(node.operation);
  case NodeForm::Member: return 2;
  case NodeForm::Load: {
    int count = 0;
    while (count < kMaxCaptureRank && node.operands[count] >= 0)
      ++count;
    return count;
  }
  default: return 0;
  }
}

bool isSameProgram(const TapeProgram &left, const TapeProgram &right) {
  return left.result == right.result && left.nodes == right.nodes && *left.loads == *right.loads;
}

TapeProgram assemble(const std::vector<ProgramNode> &nodes, int32_t result,
                     std::shared_ptr<const std::vector<ProgramLoad>> loads) {
  int32_t size = static_cast<int32_t>(nodes.size());
  // 1. The reduction around each node, so that bodies stay whole and move with it.
  std::vector<int32_t> outermost(size, -1);
  for (int32_t i = 0; i < size; ++i)
    if (nodes[i].form == NodeForm::Reduce && outermost[i] < 0)
      for (int32_t k = i; k < nodes[i].operands[1]; ++k)
        outermost[k] = i;
  // 2. Which nodes the result needs; a needed reduction needs its whole body.
  std::vector<bool> isNeeded(size, false);
  isNeeded[result] = true;
  auto needOperands = [&](const ProgramNode &node) {
    for (int k = 0; k < numOperands(node); ++k)
      isNeeded[node.operands[k]] = true;
    if (node.form == NodeForm::Reduce)
      isNeeded[node.operands[0]] = isNeeded[node.operands[2]] = true;
  };
  for (int32_t i = size - 1; i >= 0; --i) {
    if (!isNeeded[i] || (outermost[i] >= 0 && outermost[i] != i))
      continue;
    if (nodes[i].form == NodeForm::Reduce)
      for (int32_t k = i; k < nodes[i].operands[1]; ++k) {
        isNeeded[k] = true;
        needOperands(nodes[k]);
      }
    else
      needOperands(nodes[i]);
  }
  // 3. Order by class, each class in definition order.
  TapeProgram program;
  std::vector<int32_t> renumbered(size, -1);
  std::vector<int32_t> order;
  auto classOf = [&](int32_t i) {
    const ProgramNode &node = nodes[outermost[i] >= 0 ? outermost[i] : i];
    if (node.form == NodeForm::Constant)
      return 0;
    return 1 + (node.dependence & kDependsOnBoth);
  };
  int32_t begins[6] = {};
  for (int wanted = 0; wanted <= 4; ++wanted) {
    begins[wanted] = static_cast<int32_t>(order.size());
    for (int32_t i = 0; i < size; ++i)
      if (isNeeded[i] && classOf(i) == wanted) {
        renumbered[i] = static_cast<int32_t>(order.size());
        order.push_back(i);
      }
  }
  program.numConstants = begins[1];
  program.qBegin = begins[2];
  program.kvBegin = begins[3];
  program.bothBegin = begins[4];
  for (int32_t i : order) {
    ProgramNode node = nodes[i];
    for (int k = 0; k < numOperands(node); ++k)
      node.operands[k] = renumbered[node.operands[k]];
    if (node.form == NodeForm::Reduce) {
      node.operands[1] = renumbered[i] + (node.operands[1] - i);
      node.operands[0] = renumbered[node.operands[0]];
      node.operands[2] = renumbered[node.operands[2]];
    }
    if (outermost[i] < 0)
      node.dependence &= kDependsOnBoth;
    program.nodes.push_back(node);
  }
  program.result = renumbered[result];
  program.loads = std::move(loads);
  return program;
}

} // namespace cpflex
