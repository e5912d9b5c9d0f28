// Set operations, transposition, concatenation and comparison of runs.
#include "runtime/BlockMask/BlockMaskAlgebra.h"

#include "runtime/BlockMask/MaskPrograms.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/BlockMask/RowSetSharing.h"
#include "runtime/BlockMask/TileSettlement.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace cpflex {

namespace {

/// Appends a run to a row that begins at `rowStart`, joining it to the run before where it
/// continues that.
void appendRun(TileRows &rows, size_t rowStart, const TileRun &run) {
  if (run.tileClass == TileClass::Empty || run.begin >= run.end)
    return;
  if (rows.runs.size() > rowStart) {
    TileRun &last = rows.runs.back();
    if (last.end == run.begin && last.tileClass == run.tileClass && last.residual == run.residual) {
      last.end = run.end;
      return;
    }
  }
  rows.runs.push_back(run);
}

/// Calls visitor(begin, end, leftClass, rightClass) for the stretches of a row in which neither
/// side changes.
template <typename Visitor>
void visitStretches(std::span<const TileRun> left, std::span<const TileRun> right, int32_t numTiles,
                    const Visitor &visitor) {
  size_t i = 0, j = 0;
  for (int32_t at = 0; at < numTiles;) {
    int32_t end = numTiles;
    auto look = [&](std::span<const TileRun> runs, size_t &k) {
      while (k < runs.size() && runs[k].end <= at)
        ++k;
      if (k == runs.size())
        return TileClass::Empty;
      bool isInside = runs[k].begin <= at;
      end = std::min(end, isInside ? runs[k].end : runs[k].begin);
      return isInside ? runs[k].tileClass : TileClass::Empty;
    };
    TileClass a = look(left, i), b = look(right, j);
    visitor(at, end, a, b);
    at = end;
  }
}

std::span<const TileRun> rowOf(const TileRows &rows, int64_t row) {
  return std::span(rows.runs).subspan(rows.rowBegin[row], rows.rowBegin[row + 1] - rows.rowBegin[row]);
}

struct Combined {
  TileClass tileClass;
  bool isUnsettled;
};

Combined combined(MaskOperation operation, TileClass left, TileClass right) {
  if (operation == MaskOperation::Difference && right != TileClass::Partial)
    right = right == TileClass::Full ? TileClass::Empty : TileClass::Full;
  bool arePartial = left == TileClass::Partial && right == TileClass::Partial;
  bool isUnion = operation == MaskOperation::Union;
  TileClass absorbing = isUnion ? TileClass::Full : TileClass::Empty;
  TileClass neutral = isUnion ? TileClass::Empty : TileClass::Full;
  if (left == absorbing || right == absorbing)
    return {absorbing, false};
  if (left == neutral && right == neutral)
    return {neutral, false};
  return {TileClass::Partial, arePartial};
}

Status verifyBroadcast(const BlockMask &left, const BlockMask &right) {
  if (left.qLen != right.qLen || left.kvLen != right.kvLen || left.tileQ != right.tileQ || left.tileKV != right.tileKV)
    return Status::invalid(fmt::format("cannot combine a mask of {} x {} in tiles of {} x {} with "
                                       "one of {} x {} in tiles of {} x {}; "
                                       "expected equal lengths and tiles",
                                       left.qLen, left.kvLen, left.tileQ, left.tileKV, right.qLen, right.kvLen,
                                       right.tileQ, right.tileKV));
  auto canMeet = [](int64_t a, int64_t b) { return a == b || a == 1 || b == 1; };
  if (!canMeet(left.batch, right.batch) || !canMeet(left.heads, right.heads))
    return Status::invalid(fmt::format("cannot combine masks of {} x {} and {} x {} (batch, head); "
                                       "expected equal numbers or 1",
                                       left.batch, left.heads, right.batch, right.heads));
  return Status::ok();
}

} // namespace

StatusOr<CombinedMask> combine(MaskOperation operation, const BlockMask &left, const BlockMask &right) {
  CPFLEX_RETURN_IF_ERROR(verifyBroadcast(left, right));
  CombinedMask result;
  BlockMask &mask = result.mask;
  mask = left;
  mask.residualKey = 0;
  mask.rowSets.clear();
  mask.batch = left.batch == 1 ? right.batch : left.batch;
  mask.heads = left.heads == 1 ? right.heads : left.heads;
  mask.rowSetOf.assign(mask.batch * mask.heads, -1);
  std::map<std::pair<int32_t, int32_t>, int32_t> known;
  auto rowSetAt = [](const BlockMask &source, int64_t b, int64_t h) {
    return source.rowSetOf[(source.batch == 1 ? 0 : b) * source.heads + (source.heads == 1 ? 0 : h)];
  };
  for (int64_t b = 0; b < mask.batch; ++b)
    for (int64_t h = 0; h < mask.heads; ++h) {
      std::pair<int32_t, int32_t> sources{rowSetAt(left, b, h), rowSetAt(right, b, h)};
      auto [place, isAdded] = known.try_emplace(sources, static_cast<int32_t>(mask.rowSets.size()));
      mask.rowSetOf[b * mask.heads + h] = place->second;
      if (!isAdded)
        continue;
      TileRows &rows = mask.rowSets.emplace_back();
      rows.rowBegin.push_back(0);
      for (int64_t row = 0; row < mask.numQTiles(); ++row) {
        size_t start = rows.runs.size();
        visitStretches(rowOf(left.rowSets[sources.first], row), rowOf(right.rowSets[sources.second], row),
                       static_cast<int32_t>(mask.numKVTiles()),
                       [&](int32_t begin, int32_t end, TileClass a, TileClass c) {
                         Combined both = combined(operation, a, c);
                         if (both.isUnsettled)
                           result.unsettled += end - begin;
                         appendRun(rows, start, {begin, end, both.tileClass, 0});
                       });
        rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
      }
    }
  shareEqualRowSets(mask);
  return result;
}

BlockMask complement(const BlockMask &mask) {
  BlockMask result = mask;
  result.residualKey = 0;
  for (TileRows &rows : result.rowSets) {
    TileRows flipped;
    flipped.rowBegin.push_back(0);
    for (int64_t row = 0; row < mask.numQTiles(); ++row) {
      size_t start = flipped.runs.size();
      visitStretches(rowOf(rows, row), {}, static_cast<int32_t>(mask.numKVTiles()),
                     [&](int32_t begin, int32_t end, TileClass tileClass, TileClass) {
                       TileClass other = tileClass == TileClass::Empty  ? TileClass::Full
                                         : tileClass == TileClass::Full ? TileClass::Empty
                                                                        : TileClass::Partial;
                       appendRun(flipped, start, {begin, end, other, 0});
                     });
      flipped.rowBegin.push_back(static_cast<int32_t>(flipped.runs.size()));
    }
    rows = std::move(flipped);
  }
  return result;
}

BlockMask transpose(const BlockMask &mask) {
  BlockMask result = mask;
  std::swap(result.qLen, result.kvLen);
  std::swap(result.tileQ, result.tileKV);
  int32_t numColumns = static_cast<int32_t>(mask.numKVTiles());
  for (size_t set = 0; set < mask.rowSets.size(); ++set) {
    const TileRows &source = mask.rowSets[set];
    // Columns change only where a row differs from the row before it, so that the work follows the
    // runs of the result.
    struct Open {
      TileClass tileClass = TileClass::Empty;
      uint8_t residual = 0;
      int32_t begin = 0;
    };
    std::vector<Open> open(numColumns);
    std::vector<std::vector<TileRun>> columns(numColumns);
    auto changeAll = [&](int32_t row, std::span<const TileRun> before, std::span<const TileRun> after) {
      size_t k = 0;
      visitStretches(before, after, numColumns, [&](int32_t begin, int32_t end, TileClass, TileClass tileClass) {
        while (k < after.size() && after[k].end <= begin)
          ++k;
        uint8_t residual = tileClass == TileClass::Partial ? after[k].residual : 0;
        if (open[begin].tileClass == tileClass && open[begin].residual == residual)
          return;
        for (int32_t column = begin; column < end; ++column) {
          Open &run = open[column];
          if (run.tileClass != TileClass::Empty)
            columns[column].push_back({run.begin, row, run.tileClass, run.residual});
          run = {tileClass, residual, row};
        }
      });
    };
    std::span<const TileRun> before;
    for (int64_t row = 0; row < mask.numQTiles(); ++row) {
      std::span<const TileRun> after = rowOf(source, row);
      changeAll(static_cast<int32_t>(row), before, after);
      before = after;
    }
    changeAll(static_cast<int32_t>(mask.numQTiles()), before, {});
    TileRows &rows = result.rowSets[set];
    rows = {};
    rows.rowBegin.push_back(0);
    for (const std::vector<TileRun> &column : columns) {
      rows.runs.insert(rows.runs.end(), column.begin(), column.end());
      rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
    }
  }
  return result;
}

StatusOr<BlockMask> concatenate(std::span<const BlockMask> masks, MaskAxis axis) {
  if (masks.empty())
    return Status::invalid("nothing to concatenate; expected at least one mask");
  BlockMask result = masks.front();
  bool isQ = axis == MaskAxis::Q;
  result.qLen = isQ ? 0 : result.qLen;
  result.kvLen = isQ ? result.kvLen : 0;
  for (const BlockMask &mask : masks) {
    const BlockMask &first = masks.front();
    bool isAlike = mask.tileQ == first.tileQ && mask.tileKV == first.tileKV && mask.batch == first.batch &&
                   mask.heads == first.heads && (isQ ? mask.kvLen == first.kvLen : mask.qLen == first.qLen);
    if (mask.residualKey != first.residualKey)
      result.residualKey = 0;
    if (!isAlike)
      return Status::invalid("cannot concatenate masks of unlike shape; expected equal tiles, "
                             "batches, heads and length of the other axis");
    int64_t length = isQ ? mask.qLen : mask.kvLen, tile = isQ ? mask.tileQ : mask.tileKV;
    if (&mask != &masks.back() && length % tile != 0)
      return Status::invalid(fmt::format("a mask before the last is {} long; expected a multiple of "
                                         "its tile, {}",
                                         length, tile));
    (isQ ? result.qLen : result.kvLen) += length;
  }
  // One row set per combination of the sources' row sets.
  result.rowSets.clear();
  std::map<std::vector<int32_t>, int32_t> known;
  for (size_t bh = 0; bh < result.rowSetOf.size(); ++bh) {
    std::vector<int32_t> sources;
    for (const BlockMask &mask : masks)
      sources.push_back(mask.rowSetOf[bh]);
    auto [place, isAdded] = known.try_emplace(sources, static_cast<int32_t>(result.rowSets.size()));
    result.rowSetOf[bh] = place->second;
    if (!isAdded)
      continue;
    TileRows &rows = result.rowSets.emplace_back();
    rows.rowBegin.push_back(0);
    int64_t numRows = result.numQTiles();
    for (int64_t row = 0, part = 0, partBegin = 0; row < numRows; ++row) {
      size_t start = rows.runs.size();
      int32_t firstTile = 0;
      while (isQ && row - partBegin == masks[part].numQTiles())
        partBegin += masks[part++].numQTiles();
      for (size_t i = isQ ? part : 0; i < (isQ ? part + 1 : masks.size()); ++i) {
        for (TileRun run : rowOf(masks[i].rowSets[sources[i]], isQ ? row - partBegin : row)) {
          run.begin += firstTile;
          run.end += firstTile;
          appendRun(rows, start, run);
        }
        firstTile += static_cast<int32_t>(masks[i].numKVTiles());
      }
      rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
    }
  }
  shareEqualRowSets(result);
  return result;
}

bool isSameMask(const BlockMask &left, const BlockMask &right) {
  if (left.qLen != right.qLen || left.kvLen != right.kvLen || left.tileQ != right.tileQ ||
      left.tileKV != right.tileKV || left.batch != right.batch || left.heads != right.heads)
    return false;
  std::map<std::pair<int32_t, int32_t>, bool> known;
  for (size_t bh = 0; bh < left.rowSetOf.size(); ++bh) {
    std::pair<int32_t, int32_t> sources{left.rowSetOf[bh], right.rowSetOf[bh]};
    if (!known.try_emplace(sources, true).second)
      continue;
    bool isSame = true;
    for (int64_t row = 0; row < left.numQTiles() && isSame; ++row)
      visitStretches(rowOf(left.rowSets[sources.first], row), rowOf(right.rowSets[sources.second], row),
                     static_cast<int32_t>(left.numKVTiles()),
                     [&](int32_t, int32_t, TileClass a, TileClass b) { isSame &= a == b; });
    if (!isSame)
      return false;
  }
  return true;
}

StatusOr<BlockMask> settlePartialTiles(const BlockMask &mask, const Tape &tape, const Bindings &bindings,
                                       const BlockMaskOptions &options) {
  CPFLEX_RETURN_IF_ERROR(verifyOptions(options));
  CPFLEX_RETURN_IF_ERROR(verifyTape(tape, bindings));
  if (mask.qLen != options.qLen || mask.kvLen != options.kvLen || mask.batch != options.batch ||
      mask.heads != options.heads)
    return Status::invalid("the mask to settle has other sizes than the options; expected equal ones");
  BlockMask result = mask;
  if (mask.qLen == 0 || mask.kvLen == 0 || mask.rowSetOf.empty())
    return result;
  MaskPrograms programs(tape, bindings, options);
  result.rowSets.clear();
  std::map<std::pair<int32_t, int32_t>, int32_t> known;
  for (size_t bh = 0; bh < mask.rowSetOf.size(); ++bh) {
    int32_t program = programs.programOf()[bh];
    auto [place, isAdded] =
        known.try_emplace({mask.rowSetOf[bh], program}, static_cast<int32_t>(result.rowSets.size()));
    result.rowSetOf[bh] = place->second;
    if (!isAdded)
      continue;
    TileSettlement settlement(programs.program(program), programs.positions());
    TileRows &rows = result.rowSets.emplace_back();
    rows.rowBegin.push_back(0);
    for (int64_t row = 0; row < mask.numQTiles(); ++row) {
      size_t start = rows.runs.size();
      Range q{row * mask.tileQ, std::min((row + 1) * mask.tileQ, mask.qLen)};
      for (const TileRun &run : rowOf(mask.rowSets[mask.rowSetOf[bh]], row)) {
        if (run.tileClass == TileClass::Full) {
          appendRun(rows, start, run);
          continue;
        }
        for (int32_t tile = run.begin; tile < run.end; ++tile) {
          Range kv{tile * mask.tileKV, std::min((tile + 1) * mask.tileKV, mask.kvLen)};
          TileClass tileClass = settlement.classify(q, kv);
          if (tileClass == TileClass::Partial)
            tileClass = settlement.settle(q, kv);
          uint8_t residual = tileClass == TileClass::Partial ? run.residual : 0;
          appendRun(rows, start, {tile, tile + 1, tileClass, residual});
        }
      }
      rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
    }
  }
  shareEqualRowSets(result);
  return result;
}

void normalize(BlockMask &mask) {
  for (TileRows &rows : mask.rowSets) {
    TileRows joined;
    joined.rowBegin.push_back(0);
    for (size_t row = 0; row + 1 < rows.rowBegin.size(); ++row) {
      size_t start = joined.runs.size();
      for (const TileRun &run : rowOf(rows, static_cast<int64_t>(row)))
        appendRun(joined, start, run);
      joined.rowBegin.push_back(static_cast<int32_t>(joined.runs.size()));
    }
    rows = std::move(joined);
  }
  shareEqualRowSets(mask);
}

Status verifyBlockMask(const BlockMask &mask) {
  auto fault = [](const char *text) { return Status::invalid(fmt::format("not a mask: {}", text)); };
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (mask.qLen < 0 || mask.kvLen < 0 || mask.tileQ < 1 || mask.tileKV < 1 || mask.batch < 0 || mask.heads < 0)
    return fault("sizes are negative");
  // Lengths of up to 2^61 keep the sums below from overflowing.
  constexpr int64_t kMaxLength = int64_t(1) << 61;
  if (mask.qLen > kMaxLength || mask.kvLen > kMaxLength || mask.tileQ > kMaxLength || mask.tileKV > kMaxLength ||
      mask.numQTiles() >= kMax || mask.numKVTiles() >= kMax || mask.batch > kMax || mask.heads > kMax)
    return fault("sizes are beyond 32-bit tile indices");
  if (static_cast<int64_t>(mask.rowSetOf.size()) != mask.batch * mask.heads)
    return fault("the table of row sets has another size than batch x heads");
  for (int32_t rowSet : mask.rowSetOf)
    if (rowSet < 0 || rowSet >= static_cast<int64_t>(mask.rowSets.size()))
      return fault("a (batch, head) names a row set that is not there");
  for (const TileRows &rows : mask.rowSets) {
    if (static_cast<int64_t>(rows.rowBegin.size()) != mask.numQTiles() + 1 || rows.rowBegin.front() != 0 ||
        rows.rowBegin.back() != static_cast<int64_t>(rows.runs.size()))
      return fault("a row set does not have one begin per row of tiles");
    if (!std::is_sorted(rows.rowBegin.begin(), rows.rowBegin.end()))
      return fault("the rows of a row set are not in order");
    for (size_t row = 0; row + 1 < rows.rowBegin.size(); ++row) {
      int32_t last = 0;
      for (const TileRun &run : rowOf(rows, static_cast<int64_t>(row))) {
        if (run.begin < last || run.end <= run.begin || run.end > mask.numKVTiles())
          return fault("runs overlap, are empty or leave the mask");
        if (run.tileClass != TileClass::Full && run.tileClass != TileClass::Partial)
          return fault("a run is neither full nor partial");
        last = run.end;
      }
    }
  }
  return Status::ok();
}

} // namespace cpflex
