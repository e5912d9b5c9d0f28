// Can a schedule run? Checks that its parts fit its shape and layouts, and that every row is there before it is used.
#pragma once

#include "runtime/contract/Schedule.h"
#include "runtime/contract/Status.h"

namespace cpflex {

/// Ok when ranks, steps, rows, heads and batch rows are in range, sizes in bytes are right, transfers and computes are
/// sorted, a rank sends and computes on only what it owns or received in an earlier step, and every query row of every
/// head and batch row is computed. Executors rely on it.
Status verifySchedule(const Schedule &schedule);

} // namespace cpflex
