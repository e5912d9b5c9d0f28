// Makes and checks layouts; see Layouts.h.
#include "runtime/Plan/Layouts.h"

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace cpflex {
namespace {

/// Moves rows, last pieces first, from shards that hold more than their target to shards that hold less.
void evenOut(std::span<PositionMap> shards, std::span<const int64_t> targets) {
  std::vector<AffinePiece> spare;
  for (size_t rank = 0; rank < shards.size(); ++rank) {
    int64_t surplus = shards[rank].size() - targets[rank];
    while (surplus > 0) {
      AffinePiece &last = shards[rank].pieces.back();
      int64_t count = std::min(surplus, last.count);
      spare.push_back({last.begin + (last.count - count) * last.step, count, last.step});
      last.count -= count;
      surplus -= count;
      if (last.count == 0)
        shards[rank].pieces.pop_back();
    }
  }
  for (size_t rank = 0; rank < shards.size(); ++rank) {
    int64_t missing = targets[rank] - shards[rank].size();
    while (missing > 0 && !spare.empty()) {
      AffinePiece &from = spare.back();
      int64_t count = std::min(missing, from.count);
      shards[rank].pieces.push_back({from.begin, count, from.step});
      from.begin += count * from.step;
      from.count -= count;
      missing -= count;
      if (from.count == 0)
        spare.pop_back();
    }
  }
}

/// Puts the pieces (of step 1) of each shard in ascending order and joins neighbours.
void tidy(std::span<PositionMap> shards) {
  for (PositionMap &map : shards) {
    std::sort(map.pieces.begin(), map.pieces.end(),
              [](const AffinePiece &a, const AffinePiece &b) { return a.begin < b.begin; });
    map = compacted(std::move(map));
  }
}

Layout emptyLayout(LayoutKind kind, int64_t length, int32_t worldSize, int64_t rows) {
  Layout layout{kind, length, worldSize, rows, {}};
  layout.shards.resize(size_t(rows * worldSize));
  return layout;
}

std::span<PositionMap> shardsOfRow(Layout &layout, int64_t row) {
  return std::span(layout.shards).subspan(size_t(row * layout.worldSize), size_t(layout.worldSize));
}

} // namespace

std::vector<int64_t> evenSizes(int64_t length, int64_t count) {
  std::vector<int64_t> sizes(size_t(count), length / count);
  for (int64_t i = 0; i < length % count; ++i)
    ++sizes[size_t(i)];
  return sizes;
}

PositionMap compacted(PositionMap map) {
  PositionMap result;
  for (const AffinePiece &piece : map.pieces) {
    if (piece.count == 0)
      continue;
    if (!result.pieces.empty()) {
      AffinePiece &last = result.pieces.back();
      if (last.step == piece.step && last.begin + last.count * last.step == piece.begin) {
        last.count += piece.count;
        continue;
      }
    }
    result.pieces.push_back(piece);
  }
  return result;
}

PositionMap slice(const PositionMap &map, Range rows) {
  PositionMap result;
  int64_t local = 0;
  for (const AffinePiece &piece : map.pieces) {
    Range part = intersection({local, local + piece.count}, rows);
    if (!part.isEmpty())
      result.pieces.push_back({piece.begin + (part.begin - local) * piece.step, part.size(), piece.step});
    local += piece.count;
  }
  return result;
}

Layout contiguousLayout(int64_t length, int32_t worldSize) {
  Layout layout = emptyLayout(LayoutKind::Contiguous, length, worldSize, 1);
  std::vector<int64_t> sizes = evenSizes(length, worldSize);
  int64_t begin = 0;
  for (int32_t rank = 0; rank < worldSize; ++rank) {
    layout.shards[rank] = compacted({{{begin, sizes[rank], 1}}});
    begin += sizes[rank];
  }
  return layout;
}

Layout headTailLayout(int64_t length, int32_t worldSize) {
  Layout layout = emptyLayout(LayoutKind::HeadTail, length, worldSize, 1);
  std::vector<int64_t> sizes = evenSizes(length, 2 * int64_t(worldSize));
  int64_t begin = 0;
  for (int32_t piece = 0; piece < 2 * worldSize; ++piece) {
    int32_t rank = piece < worldSize ? piece : 2 * worldSize - 1 - piece;
    layout.shards[rank].pieces.push_back({begin, sizes[piece], 1});
    begin += sizes[piece];
  }
  tidy(layout.shards);
  return layout;
}

Layout stripedLayout(int64_t length, int32_t worldSize) {
  Layout layout = emptyLayout(LayoutKind::Striped, length, worldSize, 1);
  for (int32_t rank = 0; rank < worldSize; ++rank)
    if (rank < length)
      layout.shards[rank].pieces.push_back({rank, ceilDivide(length - rank, worldSize), worldSize});
  return layout;
}

StatusOr<Layout> perDocumentLayout(std::span<const std::vector<int64_t>> offsets, int64_t length, int32_t worldSize) {
  Layout layout = emptyLayout(LayoutKind::PerDocument, length, worldSize, std::max<int64_t>(1, offsets.size()));
  const std::vector<int64_t> targets = evenSizes(length, worldSize);
  const int64_t numPieces = 2 * int64_t(worldSize);
  for (size_t row = 0; row < offsets.size(); ++row) {
    const std::vector<int64_t> &boundaries = offsets[row];
    if (boundaries.empty() || boundaries.front() != 0 || boundaries.back() != length ||
        !std::is_sorted(boundaries.begin(), boundaries.end()))
      return Status::invalid(
          fmt::format("document offsets of batch row {} do not ascend from 0 to {}; expected every document boundary",
                      row, length));
    std::span<PositionMap> shards = shardsOfRow(layout, int64_t(row));
    // Tokens that a document has beyond a multiple of 2W go to pieces in turn, so that the counts of ranks stay close.
    int64_t turn = 0;
    for (size_t document = 0; document + 1 < boundaries.size(); ++document) {
      int64_t begin = boundaries[document], size = boundaries[document + 1] - begin;
      int64_t extra = size % numPieces;
      for (int64_t piece = 0; piece < numPieces; ++piece) {
        int64_t count = size / numPieces + ((piece - turn % numPieces + numPieces) % numPieces < extra);
        int64_t rank = piece < worldSize ? piece : numPieces - 1 - piece;
        if (count > 0)
          shards[size_t(rank)].pieces.push_back({begin, count, 1});
        begin += count;
      }
      turn += extra;
    }
    evenOut(shards, targets);
    tidy(shards);
  }
  if (offsets.empty())
    return Status::invalid("a per-document layout without document offsets; expected one list of boundaries or more");
  return layout;
}

StatusOr<Layout> ptrrLayout(std::span<const std::vector<double>> work, int64_t unit, int64_t length,
                            int32_t worldSize) {
  Layout layout = emptyLayout(LayoutKind::Ptrr, length, worldSize, std::max<int64_t>(1, work.size()));
  const std::vector<int64_t> targets = evenSizes(length, worldSize);
  for (size_t row = 0; row < work.size(); ++row) {
    const int64_t numUnits = int64_t(work[row].size());
    if (numUnits != ceilDivide(length, unit))
      return Status::invalid(fmt::format("{} work values for {} tokens in units of {}; expected {}", numUnits, length,
                                         unit, ceilDivide(length, unit)));
    std::vector<int64_t> order(static_cast<size_t>(numUnits));
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      double workA = work[row][size_t(a)], workB = work[row][size_t(b)];
      return workA != workB ? workA > workB : a < b;
    });
    std::span<PositionMap> shards = shardsOfRow(layout, int64_t(row));
    for (int64_t i = 0; i < numUnits; ++i) {
      int64_t place = i % worldSize, round = i / worldSize;
      int64_t rank = round % 2 == 0 ? place : worldSize - 1 - place;
      int64_t begin = order[size_t(i)] * unit;
      shards[size_t(rank)].pieces.push_back({begin, std::min(unit, length - begin), 1});
    }
    // The lightest units come last, so evening out moves the least work.
    evenOut(shards, targets);
    tidy(shards);
  }
  if (work.empty())
    return Status::invalid("a ptrr layout without work values; expected one list or more");
  return layout;
}

std::vector<std::vector<int64_t>> documentOffsets(const BlockMask &mask) {
  std::vector<std::vector<int64_t>> offsets;
  const int64_t length = mask.qLen;
  for (int64_t b = 0; b < mask.batch; ++b) {
    // The hull of row and attended columns of each row of tiles; a boundary lies where no hull covers it.
    std::vector<Range> hulls;
    for (int64_t h = 0; h < mask.heads; ++h) {
      const TileRows &rows = mask.rows(b, h);
      for (int64_t tile = 0; tile < mask.numQTiles(); ++tile) {
        Range hull = {tile * mask.tileQ, std::min(length, (tile + 1) * mask.tileQ)};
        if (rows.rowBegin[tile] < rows.rowBegin[tile + 1]) {
          hull.begin = std::min(hull.begin, rows.runs[rows.rowBegin[tile]].begin * mask.tileKV);
          hull.end = std::max(hull.end, std::min(mask.kvLen, rows.runs[rows.rowBegin[tile + 1] - 1].end * mask.tileKV));
        }
        hulls.push_back(hull);
      }
      if (mask.heads > 1 &&
          std::all_of(mask.rowSetOf.begin() + b * mask.heads, mask.rowSetOf.begin() + (b + 1) * mask.heads,
                      [&](int32_t set) { return set == mask.rowSetOf[b * mask.heads]; }))
        break;
    }
    std::sort(hulls.begin(), hulls.end(), [](Range a, Range b) { return a.begin < b.begin; });
    std::vector<int64_t> row = {0};
    int64_t end = 0;
    for (Range hull : hulls) {
      if (hull.begin >= end && hull.begin > 0 && hull.begin > row.back())
        row.push_back(hull.begin);
      end = std::max(end, hull.end);
    }
    if (length > 0 || row.empty())
      row.push_back(length);
    offsets.push_back(std::move(row));
  }
  if (std::all_of(offsets.begin(), offsets.end(), [&](const auto &row) { return row == offsets.front(); }))
    offsets.resize(1);
  return offsets;
}

Status verifyLayout(const Layout &layout) {
  if (layout.worldSize < 1 || layout.length < 0 || layout.rows < 1 ||
      int64_t(layout.shards.size()) != layout.rows * layout.worldSize)
    return Status::invalid(
        fmt::format("layout of {} ranks, {} rows and {} tokens with {} shards; expected one shard for "
                    "each row and rank",
                    layout.worldSize, layout.rows, layout.length, layout.shards.size()));
  for (int64_t row = 0; row < layout.rows; ++row) {
    std::vector<int32_t> owner(size_t(layout.length), -1);
    for (int32_t rank = 0; rank < layout.worldSize; ++rank) {
      const PositionMap &map = layout.shards[size_t(row * layout.worldSize + rank)];
      if (map.size() != layout.shardSize(rank))
        return Status::invalid(
            fmt::format("rank {} owns {} tokens in batch row {} and {} in batch row 0; expected equally "
                        "many in each",
                        rank, map.size(), row, layout.shardSize(rank)));
      for (const AffinePiece &piece : map.pieces)
        for (int64_t i = 0; i < piece.count; ++i) {
          int64_t position = piece.begin + i * piece.step;
          if (piece.step < 1 || position < 0 || position >= layout.length)
            return Status::invalid(fmt::format("rank {} owns token {} in batch row {}; expected tokens in [0, {})",
                                               rank, position, row, layout.length));
          if (owner[size_t(position)] >= 0)
            return Status::invalid(
                fmt::format("token {} of batch row {} belongs to ranks {} and {}; expected one owner", position, row,
                            owner[size_t(position)], rank));
          owner[size_t(position)] = rank;
        }
    }
    auto orphan = std::find(owner.begin(), owner.end(), -1);
    if (orphan != owner.end())
      return Status::invalid(
          fmt::format("token {} of batch row {} belongs to no rank; expected one owner", orphan - owner.begin(), row));
  }
  return Status::ok();
}

} // namespace cpflex
