// Which part of a mask is left to evaluate in a partial tile? Picks the first residual predicate
// whose assumptions are proved there.
#pragma once

#include "runtime/BlockMask/IntervalEvaluator.h"
#include "runtime/contract/Residual.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <span>
#include <vector>

namespace cpflex {

/// The distinct instructions that residuals assume something of, ascending.
std::vector<int32_t> assumedInstructions(std::span<const Residual> residuals);

/// Checks that assumptions and results are Bool values of the tape outside of reductions, and their
/// number.
Status verifyResiduals(std::span<const Residual> residuals, const Tape &tape);

/// What BlockMask::residualKey and HostFunctions::residualKey are compared by: a digest of the tape and
/// its residuals, never 0; 0 without residuals.
uint64_t residualKeyOf(const Tape &tape, std::span<const Residual> residuals);

/// Chooses residuals for the tiles of one (b, h). One object per thread; everything given must
/// outlive it.
class ResidualChoice {
public:
  /// `programs` are those of the assumed instructions, in their order, specialised for the (b, h).
  ResidualChoice(std::span<const Residual> residuals, std::span<const TapeProgram> programs);

  /// The number of the residual for a tile: 1 + its index, or 0, the whole mask, when none is
  /// proved.
  uint8_t numberFor(const PositionBounds &tile);

private:
  struct Assumed {
    int32_t place; ///< of the program
    TileClass needed;
  };
  std::vector<IntervalEvaluator> evaluators_;
  std::vector<std::vector<Assumed>> residuals_;
  std::vector<TileClass> classes_; ///< of the current tile, where evaluated
  std::vector<bool> isKnown_;
};

} // namespace cpflex
