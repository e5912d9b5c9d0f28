// How `cpflexc` runs one call by a group of ranks: threads, MPI processes or GPUs.
#pragma once

#include "tools/cpflexc/AttentionCall.h"

#include <memory>
#include <string>
#include <vector>

namespace cpflex {

/// Throws CommandLineFault when the transport cannot carry what the device holds, or takes no such rendezvous.
void checkTransport(const Options &options);

/// Plans and runs the call by all ranks of the group, or by the rank of this process, and writes the trace when `trace`
/// is not empty. `isWriter` says whether this process holds the results.
Status runRanks(const Options &options, const std::string &trace, AttentionCall &call, bool &isWriter);

/// The ends of a group of `worldSize` threads of this process: on the CPU, or on the GPUs that the options name, over
/// copies or NCCL.
StatusOr<std::vector<std::shared_ptr<Communicator>>> openRankGroup(const Options &options, int32_t worldSize);

} // namespace cpflex
