// Reads need sets and ownership off masks and layouts; see NeedSets.h.
#include "runtime/Plan/NeedSets.h"
#include "runtime/Plan/Layouts.h"

#include <algorithm>
#include <map>

namespace cpflex {
namespace {

Range positionsOf(const BlockMask &mask, const TileRun &run) {
  return {run.begin * mask.tileKV, std::min(mask.kvLen, run.end * mask.tileKV)};
}

/// Appends a range to a list, joining it with the last one where they meet.
void append(RangeSet &set, Range range) {
  if (!set.empty() && set.back().begin <= range.begin && range.begin <= set.back().end)
    set.back().end = std::max(set.back().end, range.end);
  else
    set.push_back(range);
}

/// The rows of `shard` that lie in [positions), as affine pieces of positions.
PositionMap rowsIn(const PositionMap &shard, Range positions) {
  PositionMap result;
  for (const AffinePiece &piece : shard.pieces) {
    int64_t first = positions.begin <= piece.begin ? 0 : ceilDivide(positions.begin - piece.begin, piece.step);
    int64_t last =
        positions.end <= piece.begin ? 0 : std::min(piece.count, ceilDivide(positions.end - piece.begin, piece.step));
    if (first < last)
      result.pieces.push_back({piece.begin + first * piece.step, last - first, piece.step});
  }
  return result;
}

} // namespace

RangeSet normalized(RangeSet ranges) {
  std::erase_if(ranges, [](Range range) { return range.isEmpty(); });
  std::sort(ranges.begin(), ranges.end(), [](Range a, Range b) { return a.begin < b.begin; });
  RangeSet result;
  for (Range range : ranges)
    append(result, range);
  return result;
}

int64_t sizeOf(const RangeSet &set) {
  int64_t total = 0;
  for (Range range : set)
    total += range.size();
  return total;
}

RangeSet unionOf(const RangeSet &a, const RangeSet &b) {
  RangeSet joined = a;
  joined.insert(joined.end(), b.begin(), b.end());
  return normalized(std::move(joined));
}

std::vector<BatchGroup> batchGroups(const BlockMask &mask, const CallShape &shape, const Layout &qLayout,
                                    const Layout &kvLayout) {
  std::vector<BatchGroup> groups;
  auto rowSetOf = [&](int64_t b, int64_t h) {
    return mask.rowSetOf[size_t((mask.batch == 1 ? 0 : b) * mask.heads + (mask.heads == 1 ? 0 : h))];
  };
  auto isLike = [&](int64_t a, int64_t b) {
    for (int64_t h = 0; h < mask.heads; ++h)
      if (rowSetOf(a, h) != rowSetOf(b, h))
        return false;
    for (const Layout *layout : {&qLayout, &kvLayout})
      for (int32_t rank = 0; rank < layout->worldSize && layout->rows > 1; ++rank)
        if (!(layout->shard(a, rank) == layout->shard(b, rank)))
          return false;
    return true;
  };
  for (int64_t b = 0; b < shape.batch;) {
    int64_t end = b + 1;
    while (end < shape.batch && isLike(b, end))
      ++end;
    BatchGroup group{{b, end}, {}, {}};
    std::map<int32_t, int64_t> uses;
    for (int64_t h = 0; h < shape.qHeads; ++h)
      uses[rowSetOf(b, h)] += end - b;
    for (auto [rowSet, count] : uses) {
      group.rowSets.push_back(rowSet);
      group.numUses.push_back(count);
    }
    groups.push_back(std::move(group));
    b = end;
  }
  return groups;
}

std::vector<OwnedTileRows> ownedTiles(const PositionMap &shard, int64_t tileQ) {
  std::vector<OwnedTileRows> tiles;
  for (const AffinePiece &piece : shard.pieces) {
    for (int64_t i = 0; i < piece.count;) {
      int64_t tile = (piece.begin + i * piece.step) / tileQ;
      int64_t next = std::min(piece.count, ceilDivide((tile + 1) * tileQ - piece.begin, piece.step));
      if (!tiles.empty() && tiles.back().tile == tile)
        tiles.back().count += next - i;
      else
        tiles.push_back({tile, next - i});
      i = next;
    }
  }
  auto isBefore = [](const OwnedTileRows &a, const OwnedTileRows &b) { return a.tile < b.tile; };
  if (std::is_sorted(tiles.begin(), tiles.end(), isBefore))
    return tiles;
  std::sort(tiles.begin(), tiles.end(), isBefore);
  std::vector<OwnedTileRows> merged;
  for (const OwnedTileRows &tile : tiles) {
    if (!merged.empty() && merged.back().tile == tile.tile)
      merged.back().count += tile.count;
    else
      merged.push_back(tile);
  }
  return merged;
}

RangeSet needOfShard(const BlockMask &mask, const BatchGroup &group, const PositionMap &shard) {
  RangeSet ranges;
  for (int32_t rowSet : group.rowSets) {
    const TileRows &rows = mask.rowSets[size_t(rowSet)];
    for (const OwnedTileRows &owned : ownedTiles(shard, mask.tileQ)) {
      const int32_t first = rows.rowBegin[size_t(owned.tile)], last = rows.rowBegin[size_t(owned.tile + 1)];
      for (int32_t i = first; i < last; ++i)
        append(ranges, positionsOf(mask, rows.runs[size_t(i)]));
    }
    ranges = normalized(std::move(ranges));
  }
  return ranges;
}

RangeSet exactNeedOfShard(const BlockMask &mask, const BatchGroup &group, const PositionMap &shard,
                          const RangeSet &known, const PlanRequest &request) {
  // 1. Full tiles settle their columns; `settled` marks positions that are known to be needed or that nobody asks
  // about.
  std::vector<uint8_t> isNeeded(size_t(mask.kvLen), 0), isSettled(size_t(mask.kvLen), 0);
  const std::vector<OwnedTileRows> tiles = ownedTiles(shard, mask.tileQ);
  for (Range range : known)
    std::fill(isSettled.begin() + range.begin, isSettled.begin() + range.end, 1);
  auto forEachRun = [&](const TileRows &rows, auto &&visit) {
    for (const OwnedTileRows &owned : tiles)
      for (int32_t i = rows.rowBegin[size_t(owned.tile)]; i < rows.rowBegin[size_t(owned.tile + 1)]; ++i)
        visit(owned.tile, rows.runs[size_t(i)]);
  };
  for (int32_t rowSet : group.rowSets)
    forEachRun(mask.rowSets[size_t(rowSet)], [&](int64_t, const TileRun &run) {
      Range range = positionsOf(mask, run);
      for (int64_t p = range.begin; p < range.end; ++p)
        if (run.tileClass == TileClass::Full || isSettled[size_t(p)])
          isNeeded[size_t(p)] = isSettled[size_t(p)] = 1;
    });
  // 2. Partial tiles are evaluated at the rows the shard has in them, for every (b, h) whose mask may differ.
  std::vector<uint8_t> attends;
  const int64_t batchEnd = mask.batch == 1 ? group.batch.begin + 1 : group.batch.end;
  for (int64_t b = group.batch.begin; b < batchEnd; ++b)
    for (int64_t h = 0; h < mask.heads; ++h) {
      const TileRows &rows = mask.rows(mask.batch == 1 ? 0 : b, h);
      forEachRun(rows, [&](int64_t qTile, const TileRun &run) {
        if (run.tileClass == TileClass::Full)
          return;
        for (int64_t kvTile = run.begin; kvTile < run.end; ++kvTile) {
          Range columns = {kvTile * mask.tileKV, std::min(mask.kvLen, (kvTile + 1) * mask.tileKV)};
          while (!columns.isEmpty() && isSettled[size_t(columns.begin)])
            ++columns.begin;
          while (!columns.isEmpty() && isSettled[size_t(columns.end - 1)])
            --columns.end;
          if (columns.isEmpty())
            continue;
          PositionMap pieces = rowsIn(shard, {qTile * mask.tileQ, (qTile + 1) * mask.tileQ});
          for (const AffinePiece &piece : pieces.pieces) {
            attends.assign(size_t(piece.count * columns.size()), 0);
            TileCoordinates tile{.b = request.batchOffset + b,
                                 .h = request.headOffset + h,
                                 .qBegin = piece.begin,
                                 .qCount = piece.count,
                                 .qStep = piece.step,
                                 .kvBegin = columns.begin,
                                 .kvCount = columns.size(),
                                 .kvStep = 1};
            request.functions->evaluateTile(request.bindings, &tile, attends.data(), columns.size());
            for (int64_t i = 0; i < piece.count; ++i)
              for (int64_t j = 0; j < columns.size(); ++j)
                if (attends[size_t(i * columns.size() + j)])
                  isNeeded[size_t(columns.begin + j)] = isSettled[size_t(columns.begin + j)] = 1;
          }
        }
      });
    }
  RangeSet result;
  for (int64_t p = 0; p < mask.kvLen; ++p)
    if (isNeeded[size_t(p)])
      append(result, {p, p + 1});
  return result;
}

OwnerIndex::OwnerIndex(const Layout &layout, int64_t batchRow) {
  for (int32_t rank = 0; rank < layout.worldSize; ++rank) {
    int64_t local = 0;
    for (const AffinePiece &piece : layout.shard(batchRow, rank).pieces) {
      if (piece.step == 1 || piece.count == 1)
        segments_.push_back({piece.begin, piece.begin + piece.count, local, rank});
      else
        strided_.push_back({piece, local, rank});
      local += piece.count;
    }
  }
  std::sort(segments_.begin(), segments_.end(), [](const Segment &a, const Segment &b) { return a.begin < b.begin; });
}

} // namespace cpflex
