// Evaluates tiles; see LocalMask.h.
#include "runtime/Executor/LocalMask.h"
#include "runtime/Plan/Layouts.h"

#include <algorithm>
#include <vector>

namespace cpflex {
namespace {

TileClass classOf(const AttentionProblem &problem, int64_t b, int64_t h, Range qRows, Range kvRows,
                  std::vector<uint8_t> &attends) {
  int64_t numAttending = 0;
  for (const AffinePiece &q : slice(problem.qPositions, qRows).pieces)
    for (const AffinePiece &kv : slice(problem.kvPositions, kvRows).pieces) {
      attends.assign(size_t(q.count * kv.count), 0);
      TileCoordinates tile{.b = problem.batchOffset + b,
                           .h = problem.headOffset + h,
                           .qBegin = q.begin,
                           .qCount = q.count,
                           .qStep = q.step,
                           .kvBegin = kv.begin,
                           .kvCount = kv.count,
                           .kvStep = kv.step};
      problem.functions->evaluateTile(problem.bindings, &tile, attends.data(), kv.count);
      for (uint8_t each : attends)
        numAttending += each != 0;
    }
  return numAttending == 0                              ? TileClass::Empty
         : numAttending == qRows.size() * kvRows.size() ? TileClass::Full
                                                        : TileClass::Partial;
}

} // namespace

BlockMask evaluatedMask(const AttentionProblem &problem) {
  BlockMask mask;
  mask.qLen = problem.qLen;
  mask.kvLen = problem.kvLen;
  mask.batch = problem.batch;
  mask.heads = problem.qHeads;
  std::vector<uint8_t> attends;
  for (int64_t b = 0; b < problem.batch; ++b)
    for (int64_t h = 0; h < problem.qHeads; ++h) {
      TileRows rows;
      rows.rowBegin = {0};
      for (int64_t q = 0; q < mask.numQTiles(); ++q) {
        const Range qRows = {q * mask.tileQ, std::min(mask.qLen, (q + 1) * mask.tileQ)};
        for (int64_t kv = 0; kv < mask.numKVTiles(); ++kv) {
          const Range kvRows = {kv * mask.tileKV, std::min(mask.kvLen, (kv + 1) * mask.tileKV)};
          const TileClass tileClass = classOf(problem, b, h, qRows, kvRows, attends);
          if (tileClass == TileClass::Empty)
            continue;
          const bool continues = int32_t(rows.runs.size()) > rows.rowBegin.back() && rows.runs.back().end == kv &&
                                 rows.runs.back().tileClass == tileClass;
          if (continues)
            ++rows.runs.back().end;
          else
            rows.runs.push_back({int32_t(kv), int32_t(kv + 1), tileClass, 0});
        }
        rows.rowBegin.push_back(int32_t(rows.runs.size()));
      }
      auto same = std::find(mask.rowSets.begin(), mask.rowSets.end(), rows);
      mask.rowSetOf.push_back(int32_t(same - mask.rowSets.begin()));
      if (same == mask.rowSets.end())
        mask.rowSets.push_back(std::move(rows));
    }
  return mask;
}

} // namespace cpflex
