// What does a schedule cost each rank, and what must it cost at least? Bounds are arguments about any layout, costs are
// read off the schedule.
#pragma once

#include "runtime/Plan/Planner.h"
#include "runtime/Plan/Rotations.h"
#include "runtime/contract/Schedule.h"

#include <cstdint>
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

/// Fills everything of the certificate but the predicted time.
Certificate certify(const PlanRequest &request, const BlockMask &mask, const Schedule &schedule,
                    const std::vector<GroupNeeds> &needs);

} // namespace cpflex
