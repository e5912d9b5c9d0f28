// How long does one call take when ranks that are threads share it, on the CPU or on GPUs?
#pragma once

#include "tools/cpflexc/AttentionCall.h"

#include <nlohmann/json_fwd.hpp>

namespace cpflex {

/// Plans the call for options.ranks threads of this process, runs it `repetitions` times after a first one, and adds
/// what the slowest rank took, what of its last repetition was no attention call (the largest of any rank), and what
/// the plan costs to `json`. Throws CommandLineFault for the transport between processes.
Status benchRanks(const Options &options, AttentionCall &call, int repetitions, nlohmann::ordered_json &json);

} // namespace cpflex
