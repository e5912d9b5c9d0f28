// What is left of a predicate tape once a (batch, head) and the bindings are fixed? A shorter
// program over (q, kv) alone: constants folded, positions affine, small reductions unrolled, equal
// values shared. Both evaluators run it.
#pragma once

#include "runtime/BlockMask/AbstractValue.h"
#include "runtime/BlockMask/CaptureSummaries.h"
#include "runtime/BlockMask/ElementSummary.h"
#include "runtime/BlockMask/MemberLists.h"
#include "runtime/contract/Bindings.h"
#include "runtime/contract/Range.h"
#include "runtime/contract/Tape.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace cpflex {

/// What a program node computes.
enum class NodeForm : uint8_t {
  Constant,      ///< offset, as a slot
  Affine,        ///< Int qFactor*q + kvFactor*kv + offset, which never wraps over the program's positions
  AffineCompare, ///< Bool: the affine difference of both sides compared with 0 by `operation`
  Operation,     ///< an entry of Operations.def on operands
  Load,          ///< loads[load] at operands, one per varying axis
  Member,        ///< Bool: whether operands[1] is in row operands[0] of loads[load].members
  Induction,     ///< the index of the enclosing loop
  Reduce,        ///< operands[0] count, [1] end of the body (nodes [i+1, end)), [2] the body's result
};

/// On which coordinates a node's value depends.
enum Dependence : uint8_t { kDependsOnNothing = 0, kDependsOnQ = 1, kDependsOnKV = 2, kDependsOnBoth = 3 };

/// One value of a program; operands refer to earlier nodes.
struct ProgramNode {
  NodeForm form = NodeForm::Constant;
  Operation operation = Operation::Constant;
  ValueType operandType = ValueType::Int;
  ValueType resultType = ValueType::Int;
  uint8_t dependence = kDependsOnNothing;
  int32_t load = -1;
  int32_t operands[4] = {-1, -1, -1, -1};
  int64_t qFactor = 0, kvFactor = 0, offset = 0;
  friend bool operator==(const ProgramNode &, const ProgramNode &) = default;
};

/// Number of operands of a node that refer to other nodes; a Reduce has two (count and result), not
/// adjacent.
int numOperands(const ProgramNode &node);

/// The part of a captured array that a load can reach: axes with a fixed index are folded into
/// `data`.
struct ProgramLoad {
  const void *data = nullptr;
  ElementType type = ElementType::I32;
  int32_t numAxes = 0; ///< varying axes, outermost first
  int64_t shape[kMaxCaptureRank] = {};
  int64_t strides[kMaxCaptureRank] = {};
  int32_t capture = -1;              ///< which capture of the bindings
  const LineSummary *line = nullptr; ///< of the only axis, when there is one
  /// Of the last two axes, one per index of the axes before them; empty without summaries.
  std::vector<const RectangleSummary *> rectangles;
  const MemberLists *members = nullptr; ///< of a load that only Member nodes use
  friend bool operator==(const ProgramLoad &, const ProgramLoad &) = default;
};

/// Global positions a program is asked about, both ends included.
struct PositionBounds {
  int64_t qLo = 0, qHi = 0, kvLo = 0, kvHi = 0;
};

/// A predicate over (q, kv). Nodes lie in the order: constants, q alone, kv alone, both; reductions
/// keep their bodies behind them. The last value outside any body is the result.
struct TapeProgram {
  std::vector<ProgramNode> nodes;
  std::shared_ptr<const std::vector<ProgramLoad>> loads; ///< shared with the programs pruned from this one
  int32_t numConstants = 0;                              ///< nodes [0, numConstants) are constants
  int32_t qBegin = 0;                                    ///< nodes [qBegin, kvBegin) depend on q alone
  int32_t kvBegin = 0;                                   ///< nodes [kvBegin, bothBegin) depend on kv alone
  int32_t bothBegin = 0;
  int32_t result = -1;
};

/// Whether two programs compute the same from the same memory.
bool isSameProgram(const TapeProgram &left, const TapeProgram &right);

/// How a tape is specialised.
struct SpecializationOptions {
  int64_t b = 0, h = 0;
  PositionBounds positions;
  CaptureSummaries *summaries = nullptr; ///< null: for evaluation at points only
  std::span<const CaptureDeclaration> declarations = {};
};

/// The program of a verified tape for one (b, h).
TapeProgram specialize(const Tape &tape, const Bindings &bindings, const SpecializationOptions &options);

/// The coordinates that a tape's result reads, as bits: 0 b, 1 h, 2 q, 3 kv.
uint8_t coordinatesRead(const Tape &tape);

/// Renumbers `nodes` (in definition order, reductions followed by their bodies) into a program that
/// holds only what `result` needs, sorted as TapeProgram states. Loads are taken over.
TapeProgram assemble(const std::vector<ProgramNode> &nodes, int32_t result,
                     std::shared_ptr<const std::vector<ProgramLoad>> loads);

} // namespace cpflex
