// What is the true class of every tile? Evaluates all pairs of a small mask once and answers for
// any tiling.
#pragma once

#include "runtime/contract/BlockMask.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace cpflex::test {

/// All pairs of a mask, with sums from which the class of any rectangle follows.
class BruteForce {
public:
  template <typename Oracle>
  BruteForce(int64_t qLen, int64_t kvLen, const Oracle &oracle)
      : qLen_(qLen), kvLen_(kvLen), sums_((qLen + 1) * (kvLen + 1)) {
    for (int64_t q = 0; q < qLen; ++q)
      for (int64_t kv = 0; kv < kvLen; ++kv)
        at(q + 1, kv + 1) = (oracle(q, kv) ? 1 : 0) + at(q, kv + 1) + at(q + 1, kv) - at(q, kv);
  }

  int64_t allowed(Range q, Range kv) const {
    return at(q.end, kv.end) - at(q.begin, kv.end) - at(q.end, kv.begin) + at(q.begin, kv.begin);
  }
  int64_t allowed() const { return allowed({0, qLen_}, {0, kvLen_}); }

  TileClass classOf(Range q, Range kv) const {
    int64_t count = allowed(q, kv);
    if (count == 0)
      return TileClass::Empty;
    return count == q.size() * kv.size() ? TileClass::Full : TileClass::Partial;
  }

  /// The row set that a BlockMask of this tiling must have.
  TileRows rows(int64_t tileQ, int64_t tileKV) const {
    TileRows rows;
    rows.rowBegin.push_back(0);
    for (int64_t q = 0; q < qLen_; q += tileQ) {
      size_t first = rows.runs.size();
      for (int64_t kv = 0; kv < kvLen_; kv += tileKV) {
        TileClass tileClass = classOf({q, std::min(q + tileQ, qLen_)}, {kv, std::min(kv + tileKV, kvLen_)});
        int32_t tile = static_cast<int32_t>(kv / tileKV);
        if (tileClass == TileClass::Empty)
          continue;
        if (rows.runs.size() > first && rows.runs.back().end == tile && rows.runs.back().tileClass == tileClass)
          rows.runs.back().end = tile + 1;
        else
          rows.runs.push_back({tile, tile + 1, tileClass, 0});
      }
      rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
    }
    return rows;
  }

  int64_t numRowsWithoutKeys() const {
    int64_t count = 0;
    for (int64_t q = 0; q < qLen_; ++q)
      count += allowed({q, q + 1}, {0, kvLen_}) == 0;
    return count;
  }
  int64_t numColumnsWithoutQueries() const {
    int64_t count = 0;
    for (int64_t kv = 0; kv < kvLen_; ++kv)
      count += allowed({0, qLen_}, {kv, kv + 1}) == 0;
    return count;
  }

private:
  int32_t &at(int64_t q, int64_t kv) { return sums_[q * (kvLen_ + 1) + kv]; }
  int32_t at(int64_t q, int64_t kv) const { return sums_[q * (kvLen_ + 1) + kv]; }

  int64_t qLen_, kvLen_;
  std::vector<int32_t> sums_;
};

} // namespace cpflex::test
