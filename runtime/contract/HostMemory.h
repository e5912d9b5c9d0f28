// Would an allocation of the host's memory succeed? Asked before arrays whose size a caller decides, so that too large
// a request is a Status and not the end of the process.
#pragma once

#include "runtime/contract/Status.h"

#include <string_view>

namespace cpflex {

/// OutOfMemory, "not enough memory for <what>: <bytes> bytes", when the machine has less memory and swap than that, or
/// when the system refuses so much address space to this process (its limits count). A double, so that products of
/// sizes do not wrap. Nothing stays allocated: other threads may still take the memory first.
Status checkHostMemory(std::string_view what, double sizeInBytes);

} // namespace cpflex
