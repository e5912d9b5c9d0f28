// How each rotation turns need sets into transfers and computes. Layouts are given; costs are judged elsewhere.
#pragma once

#include "runtime/Plan/NeedSets.h"
#include "runtime/Plan/Planner.h"
#include "runtime/contract/Schedule.h"

#include <map>
#include <vector>

namespace cpflex {

/// What each rank needs in one group of batch rows.
struct GroupNeeds {
  BatchGroup group;
  std::vector<RangeSet> need;                    ///< by rank: kv positions
  std::vector<std::vector<OwnedRows>> rows;      ///< by rank: the same as rows of shards, by owner, then row
  std::vector<std::map<int32_t, double>> workBy; ///< by rank: work against the keys of each owner
  std::vector<double> workOfHead;                ///< by query head: work of all rows, one batch row
};

/// Need sets and work of every group and rank. Ascending key order rounds needs to whole tiles of 128 positions.
std::vector<GroupNeeds> groupNeeds(const PlanRequest &request, const BlockMask &mask, const Layout &qLayout,
                                   const Layout &kvLayout);

/// Joins adjacent rows of the same owner in a list sorted by owner and row.
std::vector<OwnedRows> joined(const std::vector<OwnedRows> &rows);

/// The part of slab `b` that lies in slab `a`; empty ranges where they are apart.
Slab commonPart(const Slab &a, const Slab &b);
bool isEmpty(const Slab &slab);

/// Schedules without certificate: steps numbered without gaps, transfers and computes sorted.
Schedule directSchedule(const PlanRequest &request, const std::vector<GroupNeeds> &needs, Schedule blank);
Schedule ringSchedule(const PlanRequest &request, const std::vector<GroupNeeds> &needs, Schedule blank);
Schedule ulyssesSchedule(const PlanRequest &request, const std::vector<GroupNeeds> &needs, Schedule blank);

} // namespace cpflex
