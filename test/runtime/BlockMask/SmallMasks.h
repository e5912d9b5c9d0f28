// Small masks that several tests share, and their pairs.
#pragma once

#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "test/runtime/BlockMask/BruteForce.h"
#include "test/runtime/BlockMask/TapeBuilder.h"

#include <gtest/gtest.h>

#include <functional>

namespace cpflex::test {

/// A predicate as a function of (q, kv).
using Pairs = std::function<bool(int64_t q, int64_t kv)>;

/// The BlockMask of a predicate by brute force; one (b, h).
inline BlockMask maskOf(int64_t qLen, int64_t kvLen, int64_t tileQ, int64_t tileKV, const Pairs &pairs) {
  BlockMask mask;
  mask.qLen = qLen;
  mask.kvLen = kvLen;
  mask.tileQ = tileQ;
  mask.tileKV = tileKV;
  mask.rowSetOf = {0};
  mask.rowSets.push_back(BruteForce(qLen, kvLen, pairs).rows(tileQ, tileKV));
  return mask;
}

/// Four predicates with tiles of every class.
inline std::vector<Pairs> somePairs() {
  return {[](int64_t q, int64_t kv) { return kv <= q; }, [](int64_t q, int64_t kv) { return q / 21 == kv / 21; },
          [](int64_t q, int64_t kv) { return kv > q - 30 && kv < q + 17; },
          [](int64_t q, int64_t kv) { return (q * 7 + kv * 13) % 31 < 3 || kv < 9; }};
}

inline BlockMask causalMask(int64_t length, int64_t tile) { return maskOf(length, length, tile, tile, somePairs()[0]); }

} // namespace cpflex::test
