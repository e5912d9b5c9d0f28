// Finds equal row sets by hash, then by comparison.
#include "runtime/BlockMask/RowSetSharing.h"

#include <unordered_map>
#include <utility>

namespace cpflex {

namespace {

uint64_t hashOf(const TileRows &rows) {
  // FNV-1a over the numbers that tell rows apart.
  uint64_t hash = 0xcbf29ce484222325u;
  auto add = [&](uint64_t value) { hash = (hash ^ value) * 0x100000001b3u; };
  for (int32_t begin : rows.rowBegin)
    add(static_cast<uint64_t>(begin));
  for (const TileRun &run : rows.runs)
    add(static_cast<uint64_t>(run.begin) << 34 ^ static_cast<uint64_t>(run.end) << 2 ^
        static_cast<uint64_t>(run.tileClass) ^ static_cast<uint64_t>(run.residual) << 24);
  return hash;
}

} // namespace

void shareEqualRowSets(BlockMask &mask) {
  std::unordered_multimap<uint64_t, int32_t> known;
  std::vector<int32_t> replacement(mask.rowSets.size(), -1);
  std::vector<TileRows> kept;
  for (int32_t &rowSet : mask.rowSetOf) {
    int32_t &place = replacement[rowSet];
    if (place < 0) {
      uint64_t hash = hashOf(mask.rowSets[rowSet]);
      auto [begin, end] = known.equal_range(hash);
      for (auto it = begin; it != end && place < 0; ++it)
        if (kept[it->second] == mask.rowSets[rowSet])
          place = it->second;
      if (place < 0) {
        place = static_cast<int32_t>(kept.size());
        known.emplace(hash, place);
        kept.push_back(std::move(mask.rowSets[rowSet]));
      }
    }
    rowSet = place;
  }
  mask.rowSets = std::move(kept);
}

} // namespace cpflex
