// Is a tile empty or full for certain? Evaluates a program over all pairs of a tile at once, and drops what a tile has
// decided from the program for the tiles inside it.
#pragma once

#include "runtime/BlockMask/TapeProgram.h"
#include "runtime/contract/BlockMask.h"

#include <optional>
#include <vector>

namespace cpflex {

/// Evaluates one program over tiles. Holds scratch memory: one object per thread. The program must outlive it.
class IntervalEvaluator {
public:
  explicit IntervalEvaluator(const TapeProgram &program);

  /// Empty or Full when that is proved for every pair of the tile, Partial when it is not known.
  TileClass classify(const PositionBounds &tile);

  /// The values of node `index` in the last classified tile.
  const AbstractValue &value(int32_t index) const { return values_[index]; }

  /// The program without what the last classified tile, which has to be undecided, decides for every tile inside it;
  /// nothing when it would be as long.
  std::optional<TapeProgram> pruned() const;

  const TapeProgram &program() const { return *program_; }

private:
  void evaluate(int32_t begin, int32_t end, const PositionBounds &tile);
  AbstractValue affine(const ProgramNode &node, const PositionBounds &tile) const;
  AbstractValue operation(const ProgramNode &node) const;
  AbstractValue load(const ProgramNode &node, int32_t index);
  AbstractValue reduction(int32_t index, const PositionBounds &tile);
  TileClass classifyByCases(const PositionBounds &tile);

  /// Which part of a load's values an evaluation by cases looks at.
  enum class GapPart : uint8_t { Both, Least, Rest };
  /// A load whose values are one least element and, some way above it, the rest.
  struct Gap {
    int32_t node = -1;
    int64_t least = 0, secondLo = 0, hi = 0;
  };

  const TapeProgram *program_;
  std::vector<AbstractValue> values_;
  PositionBounds last_; ///< the tile of which the q part and the kv part are valid
  bool hasQPart_ = false, hasKVPart_ = false;
  std::vector<Gap> gaps_; ///< found by the last evaluation
  std::vector<GapPart> parts_; ///< per node; empty while every load means all its values
};

} // namespace cpflex
