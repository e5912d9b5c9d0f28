// Which tiles of a mask are empty, full or partial? Derives the exact BlockMask of a predicate tape
// over bound arrays by interval analysis on a hierarchy of tiles. Evaluating attention over the
// result belongs to the kernels.
#pragma once

#include "runtime/BlockMask/CaptureSummaries.h"
#include "runtime/contract/Bindings.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/PositionMap.h"
#include "runtime/contract/Residual.h"
#include "runtime/contract/Status.h"
#include "runtime/contract/Tape.h"

#include <cstdint>
#include <span>

namespace cpflex {

/// The shape of the wanted BlockMask and where its rows lie in the global sequence.
struct BlockMaskOptions {
  int64_t batch = 1, heads = 1;
  int64_t qLen = 0, kvLen = 0;       ///< local rows of Q and of K, V
  int64_t tileQ = 128, tileKV = 128; ///< any size from 1
  /// Global position of each local row; no pieces means identity.
  PositionMap qPositions, kvPositions;
  int64_t batchOffset = 0; ///< global index of batch row 0
  int64_t headOffset = 0;  ///< global index of head 0
  int threads = 1;         ///< worker threads; the result is the same for any count
  /// Kept by the caller to share between masks; null: built for this call.
  CaptureSummaries *summaries = nullptr;
  /// Facts of the captures in slot order, checked before with verifyFacts; empty: nothing is known.
  std::span<const CaptureDeclaration> declarations = {};
  /// Residual predicates of the tape, preferred first: a partial tile gets the number (1 + index)
  /// of the first whose assumptions are proved there, 0 when none is.
  std::span<const Residual> residuals = {};
};

/// A BlockMask and how it came about.
struct BlockMaskResult {
  BlockMask mask;
  int64_t pointsEvaluated = 0; ///< single (q, kv) pairs evaluated to settle tiles
  int64_t tilesEvaluated = 0;  ///< interval evaluations, of tiles of every size
  bool dependsOnBatch = false; ///< whether the predicate reads b
  bool dependsOnHead = false;  ///< whether the predicate reads h
};

/// The exact BlockMask of `tape` over `bindings`; a null tape means that all pairs attend. Fails
/// with InvalidArgument on sizes below 0, tiles below 1, position maps of another length, a
/// malformed tape or residual; with Unsupported on more tiles or runs than 32-bit indices hold; with
/// OutOfMemory when the rows alone do not fit in memory.
/// Borrows everything for the duration of the call.
StatusOr<BlockMaskResult> buildBlockMask(const Tape *tape, const Bindings &bindings, const BlockMaskOptions &options);

} // namespace cpflex
