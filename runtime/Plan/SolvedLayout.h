// Which layout is cheapest for a mask? Scores the fixed rules and banded layouts by compute and traffic together and
// answers with the best, which may be any of them.
#pragma once

#include "runtime/Plan/Planner.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Layout.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// Work of each row of tiles of the requested masks, summed over heads: (q, kv) pairs of tiles that are not empty. One
/// list when all batch rows are alike, else one per batch row.
std::vector<std::vector<double>> tileWork(const PlanRequest &request, const BlockMask &mask);

/// What a layout costs by the request's cost model.
struct LayoutScore {
  double maxWork = 0, meanWork = 0;                   ///< over ranks
  int64_t maxReceivedRows = 0, totalReceivedRows = 0; ///< kv rows of one layer, summed over batch rows
  int64_t maxSentRows = 0;
  double seconds = 0; ///< of the slowest rank if compute and traffic overlap
};

/// Scores a layout for `mask` and the request's other masks, need sets in whole tiles.
LayoutScore scoreLayout(const PlanRequest &request, const BlockMask &mask, const Layout &qLayout,
                        const Layout &kvLayout);

/// Tokens in two bands: those whose row has more work than `threshold` times the mean, and the rest. Each rank takes
/// one run of each band, in order of position, so that its token count is even and its work is the mean; a run of deep
/// rows shares the keys it needs. `work` is per layout row and tile of `tile` rows; cuts are multiples of a power of
/// two rows, as coarse as `tolerance` allows. With `firstKeys`, the first key of each tile of rows or null, the light
/// head of a long document goes to the ranks of its deep rows first.
Layout bandedLayout(const std::vector<std::vector<double>> &work, const std::vector<int64_t> *firstKeys, int64_t tile,
                    int64_t length, int32_t worldSize, double threshold, double tolerance);

/// Contiguous shards of equal work; token counts differ. For one list of work.
Layout contiguousByWork(const std::vector<double> &work, int64_t tile, int64_t length, int32_t worldSize);

/// The layout that the request asks for (by the cost model when it names none or `solved`), and the kv layout with it.
struct LayoutPair {
  Layout q, kv;
};
StatusOr<LayoutPair> chooseLayouts(const PlanRequest &request, const BlockMask &mask);

} // namespace cpflex
