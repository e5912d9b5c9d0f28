// What does a schedule cost each rank, and what must it cost at least? Bounds are arguments about any layout, costs are
// read off the schedule.
#pragma once

#include "runtime/Plan/Planner.h"
#include "runtime/Plan/Rotations.h"
#include "runtime/contract/Schedule.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace cpflex {

/// For each transfer, the last step in which its destination reads what it brought: a compute or a transfer that passes
/// it on. Results (Out, DQ, DKV) are read on arrival.
std::vector<int32_t> lastUses(const Schedule &schedule);

/// Most bytes that each rank holds at once: its shards and gradients, f32 accumulators, receive and send buffers, and
/// operands that must be gathered because they do not lie in one piece. What runtime/Executor allocates, by its rules.
std::vector<int64_t> peakBytes(const Schedule &schedule);

/// Whether some query rows of a rank are computed in several calls whose partials do not fit the output's type.
bool needsPartials(const Schedule &schedule, int32_t rank);

/// Bytes of the tensors that a rank holds throughout: shards in and out, and f32 accumulators.
int64_t residentBytes(const Schedule &schedule, int32_t rank);

/// True when the operand is one run of rows of one owner, so that it is read where it lies.
bool isOnePiece(const std::vector<OwnedRows> &operand);

/// One slab of one transfer.
struct SlabPlace {
  int32_t transfer = 0; ///< index in the schedule
  size_t slab = 0;
};

/// The slab that holds all results of `part`, computed in `step`, when a single one of the transfers `results` carries
/// any of them; they can be computed in the message itself then. `results` are indices of transfers of one rank.
std::optional<SlabPlace> placeOf(const Slab &part, Payload payload, int32_t step, const Schedule &schedule,
                                 const std::vector<int32_t> &results);

/// Fills everything of the certificate but the predicted time.
Certificate certify(const PlanRequest &request, const BlockMask &mask, const Schedule &schedule,
                    const std::vector<GroupNeeds> &needs);

} // namespace cpflex
