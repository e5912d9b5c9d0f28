// Is a tile empty or full for certain? Evaluates a program over all pairs of a tile at once, and
// drops what a tile has decided from the program for the tiles inside it.
#pragma once

#include "runtime/BlockMask/TapeProgram.h"
#include "runtime/contract/BlockMask.h"

#include <optional>
#include <vector>

namespace cpflex {

/// Evaluates one program over tiles. Holds scratch memory: one object per thread. The program must
/// outlive it.
class IntervalEvaluator {
public:
  explicit IntervalEvaluator(const TapeProgram &program);

  /// Empty or Full when that is proved for every pair of the tile, Partial when it is not known.
  TileClass classify(const PositionBounds &tile);

  /// The values of node `index` in the last classified tile, which has to be undecided.
  const AbstractValue &value(int32_t index) const { return values_[index]; }

  /// The program without what the last classified tile, which has to be undecided, decides for
  /// every tile inside it; nothing when it would be as long.
  std::optional<TapeProgram> pruned() const;

  const TapeProgram &program() const { return *program_; }

private:
  void evaluate(int32_t begin, int32_t end, const PositionBounds &tile);
  AbstractValue affine(const ProgramNode &node, const PositionBounds &tile) const;
  AbstractValue operation(const ProgramNode &node) const;
  AbstractValue load(const ProgramNode &node, int32_t index);
  AbstractValue reduction(int32_t index, const PositionBounds &tile);
  TileClass classifyByCases(const PositionBounds &tile);
  bool mayShorten() const;
  void collectGuards(int32_t index, Operation chain, std::vector<bool> &isVisited);

  /// Which part of a load's values an evaluation by cases looks at.
  enum class GapPart : uint8_t { Both, Least, Rest };
  const TapeProgram *program_;
  std::vector<int32_t> guards_; ///< affine comparisons that decide the result alone when they are guardClass_
  TileClass guardClass_ = TileClass::Empty;
  std::vector<AbstractValue> values_;
  PositionBounds last_; ///< the tile of which the q part and the kv part are valid
  bool hasQPart_ = false, hasKVPart_ = false;
  /// Loads whose values are one least element and, some way above it, the rest; found by the last
  /// evaluation.
  std::vector<int32_t> gaps_;
  std::vector<GapPart> parts_;            ///< per node, while isByCases_
  std::vector<AbstractValue> caseValues_; ///< takes the place of values_ while isByCases_
  bool isByCases_ = false;
};

} // namespace cpflex
