// What is left of a mask in tiles where parts of it are decided: `kv <= q` of `kv <= q and doc[q] == doc[kv]` where all
// pairs of the tile are in one document. Plain data: the compiler enumerates residuals, the runtime chooses per tile.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cpflex {

/// Most residuals of a mask, the whole mask (number 0) included.
inline constexpr int kMostResiduals = 8;

/// Holds in a tile when the Bool instruction `instruction` of the tape is `value` for every pair.
struct ResidualAssumption {
  int32_t instruction = -1;
  bool value = false;
};

/// In tiles where every assumption holds, the mask is the value of tape instruction `result`, or its complement.
struct Residual {
  std::vector<ResidualAssumption> assumptions;
  int32_t result = -1;
  bool isNegated = false;
  std::string text; ///< as an expression, for pictures and explanations
};

} // namespace cpflex
