// Which programs does a mask need for its batches and heads? One per (b, h) that can differ, equal
// ones shared.
#pragma once

#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/BlockMask/TapeProgram.h"
#include "runtime/BlockMask/TileSettlement.h"

#include <memory>
#include <vector>

namespace cpflex {

/// Checks sizes, tiles, offsets and position maps.
Status verifyOptions(const BlockMaskOptions &options);

/// Checks that 32-bit indices can name so many runs of one row set.
Status verifyNumRuns(int64_t numRuns);

/// The specialised programs of a verified tape. Borrows the bindings and the options' summaries.
class MaskPrograms {
public:
  MaskPrograms(const Tape &tape, const Bindings &bindings, const BlockMaskOptions &options);

  int64_t size() const { return static_cast<int64_t>(programs_.size()); }
  const TapeProgram &program(int64_t index) const { return programs_[index]; }
  /// The programs of the instructions that the options' residuals assume something of, for the same
  /// (b, h).
  const std::vector<TapeProgram> &assumptions(int64_t index) const { return assumptions_[index]; }
  const MaskPositions &positions() const { return positions_; }
  /// The program of each (b, h), at b * heads + h.
  const std::vector<int32_t> &programOf() const { return programOf_; }

private:
  MaskPositions positions_;
  std::unique_ptr<CaptureSummaries> ownSummaries_;
  std::vector<TapeProgram> programs_;
  std::vector<std::vector<TapeProgram>> assumptions_;
  std::vector<int32_t> programOf_;
};

} // namespace cpflex
