// How long does one call take on a GPU, what comes before the first one, and what does a step with other arrays cost?
#pragma once

#include "tools/cpflexc/AttentionCall.h"

#include <nlohmann/json_fwd.hpp>

namespace cpflex {

/// Runs the call on call.machine, `repetitions` times after two more, and adds medians to `json`: of the passes; of
/// compiling it anew, from the disk and in process; and, where the program has a mask and reads arrays, of binding them
/// on the GPU up to the launch. Prints what is wrong and returns the exit code.
int benchGpu(const Options &options, AttentionCall &call, int repetitions, nlohmann::ordered_json &json);

} // namespace cpflex
