// Counts what a BlockMask holds; pairs of partial tiles are counted with the tape.
#include "runtime/BlockMask/BlockMaskStatistics.h"

#include "runtime/BlockMask/MaskPrograms.h"
#include "runtime/BlockMask/ParallelFor.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/BlockMask/TileSettlement.h"

#include <nlohmann/json.hpp>

#include <algorithm>

namespace cpflex {

namespace {

/// The ranges of indices whose flag is 0.
std::vector<Range> unmarked(const std::vector<uint8_t> &flags) {
  std::vector<Range> ranges;
  for (size_t i = 0; i < flags.size();) {
    size_t end = i;
    while (end < flags.size() && flags[end] == flags[i])
      ++end;
    if (!flags[i])
      ranges.push_back({static_cast<int64_t>(i), static_cast<int64_t>(end)});
    i = end;
  }
  return ranges;
}

int64_t totalSize(const std::vector<Range> &ranges) {
  int64_t total = 0;
  for (Range range : ranges)
    total += range.size();
  return total;
}

/// Counts the pairs of one row set; `settlement` is null when all pairs of the mask attend.
RowSetPairs countRowSet(const BlockMask &mask, int32_t rowSet, TileSettlement *settlement) {
  RowSetPairs result;
  result.rowSet = rowSet;
  const TileRows &rows = mask.rowSets[rowSet];
  std::vector<uint8_t> hasKey(mask.qLen, 0), hasQuery(mask.kvLen, 0);
  // Columns under full runs are marked once at the end, from where runs begin and end.
  std::vector<int32_t> fullDepth(mask.numKVTiles() + 1, 0);
  for (int64_t row = 0; row < mask.numQTiles(); ++row) {
    Range q{row * mask.tileQ, std::min((row + 1) * mask.tileQ, mask.qLen)};
    for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i) {
      const TileRun &run = rows.runs[i];
      Range kv{run.begin * mask.tileKV, std::min(run.end * mask.tileKV, mask.kvLen)};
      if (run.tileClass == TileClass::Full) {
        result.allowed += q.size() * kv.size();
        std::fill(hasKey.begin() + q.begin, hasKey.begin() + q.end, 1);
        ++fullDepth[run.begin];
        --fullDepth[run.end];
        continue;
      }
      for (int64_t begin = kv.begin; settlement && begin < kv.end; begin += mask.tileKV)
        result.allowed +=
            settlement->count(q, {begin, std::min(begin + mask.tileKV, kv.end)}, {hasKey.data(), hasQuery.data()});
    }
  }
  int32_t depth = 0;
  for (int64_t tile = 0; tile < mask.numKVTiles(); ++tile) {
    depth += fullDepth[tile];
    if (depth > 0)
      std::fill(hasQuery.begin() + tile * mask.tileKV,
                hasQuery.begin() + std::min((tile + 1) * mask.tileKV, mask.kvLen), 1);
  }
  result.rowsWithoutKeys = unmarked(hasKey);
  result.columnsWithoutQueries = unmarked(hasQuery);
  return result;
}

} // namespace

TileCounts countTiles(const BlockMask &mask, const TileRows &rows) {
  TileCounts counts;
  for (const TileRun &run : rows.runs)
    (run.tileClass == TileClass::Full ? counts.full : counts.partial) += run.end - run.begin;
  counts.empty = mask.numQTiles() * mask.numKVTiles() - counts.full - counts.partial;
  return counts;
}

TileCounts countTiles(const BlockMask &mask) {
  TileCounts total;
  for (const TileRows &rows : mask.rowSets) {
    TileCounts counts = countTiles(mask, rows);
    total.empty += counts.empty;
    total.full += counts.full;
    total.partial += counts.partial;
  }
  return total;
}

int64_t sizeInBytes(const BlockMask &mask) {
  size_t total = sizeof(BlockMask) + mask.rowSetOf.size() * sizeof(int32_t);
  for (const TileRows &rows : mask.rowSets)
    total += sizeof(TileRows) + rows.rowBegin.size() * sizeof(int32_t) + rows.runs.size() * sizeof(TileRun);
  return static_cast<int64_t>(total);
}

StatusOr<PairCounts> countAllowed(const BlockMask &mask, const Tape *tape, const Bindings &bindings,
                                  const BlockMaskOptions &options) {
  CPFLEX_RETURN_IF_ERROR(verifyOptions(options));
  if (mask.qLen != options.qLen || mask.kvLen != options.kvLen || mask.batch != options.batch ||
      mask.heads != options.heads)
    return Status::invalid("the mask has other sizes than the options; expected those it was built with");
  PairCounts result;
  result.rowSets.resize(mask.rowSets.size());
  bool hasPrograms = tape && options.qLen > 0 && options.kvLen > 0 && !mask.rowSets.empty();
  if (hasPrograms) {
    CPFLEX_RETURN_IF_ERROR(verifyTape(*tape, bindings));
    MaskPrograms programs(*tape, bindings, options);
    // Two programs may have equal tiles and unlike pairs inside: each program is counted on its
    // own.
    result.rowSets.resize(programs.size());
    std::vector<int32_t> rowSetOfProgram(programs.size());
    for (size_t i = 0; i < mask.rowSetOf.size(); ++i)
      rowSetOfProgram[programs.programOf()[i]] = mask.rowSetOf[i];
    parallelFor(programs.size(), options.threads, [&](int64_t i) {
      TileSettlement settlement(programs.program(i), programs.positions());
      result.rowSets[i] = countRowSet(mask, rowSetOfProgram[i], &settlement);
    });
    for (size_t i = mask.rowSetOf.size(); i-- > 0;)
      result.rowSets[programs.programOf()[i]].batchHead = int64_t(i);
  } else {
    for (size_t i = 0; i < mask.rowSets.size(); ++i)
      result.rowSets[i] = countRowSet(mask, static_cast<int32_t>(i), nullptr);
    for (size_t i = mask.rowSetOf.size(); i-- > 0;)
      result.rowSets[mask.rowSetOf[i]].batchHead = int64_t(i);
  }
  for (const RowSetPairs &pairs : result.rowSets) {
    result.allowed += pairs.allowed;
    result.rowsWithoutKeys += totalSize(pairs.rowsWithoutKeys);
    result.columnsWithoutQueries += totalSize(pairs.columnsWithoutQueries);
  }
  double pairs =
      static_cast<double>(result.rowSets.size()) * static_cast<double>(mask.qLen) * static_cast<double>(mask.kvLen);
  result.density = pairs > 0 ? static_cast<double>(result.allowed) / pairs : 0;
  return result;
}

std::string toJson(const BlockMaskResult &result, const BuildTimes &times, const PairCounts *pairs) {
  const BlockMask &mask = result.mask;
  TileCounts tiles = countTiles(mask);
  nlohmann::ordered_json json;
  json["q_len"] = mask.qLen;
  json["kv_len"] = mask.kvLen;
  json["tile_q"] = mask.tileQ;
  json["tile_kv"] = mask.tileKV;
  json["batch"] = mask.batch;
  json["heads"] = mask.heads;
  json["distinct_bh"] = mask.rowSets.size();
  json["depends_on_b"] = result.dependsOnBatch;
  json["depends_on_h"] = result.dependsOnHead;
  json["empty"] = tiles.empty;
  json["full"] = tiles.full;
  json["partial"] = tiles.partial;
  json["compile_ms"] = times.compileMs;
  json["build_ms"] = times.buildMs;
  json["bytes"] = sizeInBytes(mask);
  json["points_evaluated"] = result.pointsEvaluated;
  json["tiles_evaluated"] = result.tilesEvaluated;
  if (pairs) {
    json["allowed"] = pairs->allowed;
    json["rows_without_keys"] = pairs->rowsWithoutKeys;
    json["columns_without_queries"] = pairs->columnsWithoutQueries;
    json["density"] = pairs->density;
  }
  return json.dump(2) + "\n";
}

} // namespace cpflex
