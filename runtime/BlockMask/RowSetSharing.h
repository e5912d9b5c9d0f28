// Which row sets of a mask are equal? Keeps one of each.
#pragma once

#include "runtime/contract/BlockMask.h"

namespace cpflex {

/// Keeps one of equal row sets and drops unused ones; rowSetOf is led to those that stay, numbered
/// by first use.
void shareEqualRowSets(BlockMask &mask);

} // namespace cpflex
