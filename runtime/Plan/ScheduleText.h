// The forms in which a Schedule leaves the program: `cp` text (lossless, read back), JSON and an SVG picture.
#pragma once

#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Schedule.h"
#include "runtime/contract/Status.h"

#include <string>
#include <string_view>

namespace cpflex {

/// The schedule as `cp` text: one operation per shard, transfer and compute, the certificate at the end.
std::string toText(const Schedule &schedule);

/// Reads what toText writes. Errors are InvalidArgument and start with `line:column: `.
StatusOr<Schedule> fromText(std::string_view text);

/// The certificate for people, ranks that receive most first: comment lines that may stand before the text form.
std::string toSummary(const Schedule &schedule);

/// The schedule as one JSON object: everything that the text form holds, under the same names.
std::string toJson(const Schedule &schedule);

/// A picture: one lane per rank with its computes and transfers by step, and, when a mask is given, its tiles coloured
/// by the rank that computes them (first batch row and head; at most 256 x 256 cells are drawn).
std::string toSvg(const Schedule &schedule, const BlockMask *mask);

} // namespace cpflex
