// Hand-written masks for tests of context parallelism: predicates as host functions, and their BlockMask by brute
// force.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/HostFunctions.h"

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace cpflex::test {

/// The predicates. `Document` reads capture 0, document ids [batch, length]; `Window` keeps 40 positions back; `Prefix`
/// lets all see the first 50 keys; `PerHead` alternates causal and window by head; `Holes` leaves every seventh row
/// without keys; `Cross` relates queries to a longer or shorter sequence of keys.
enum class MaskRule { Full, Causal, Document, Window, Prefix, PerHead, Holes, Cross };

template <MaskRule rule> bool attends(const Bindings &bindings, int64_t b, int64_t h, int64_t q, int64_t kv) {
  auto document = [&](int64_t position) {
    const CaptureView &ids = bindings.captures[0];
    return static_cast<const int32_t *>(ids.data)[b * ids.strides[0] + position * ids.strides[1]];
  };
  switch (rule) {
  case MaskRule::Full: return true;
  case MaskRule::Causal: return kv <= q;
  case MaskRule::Document: return kv <= q && document(q) == document(kv);
  case MaskRule::Window: return kv <= q && q - kv < 40;
  case MaskRule::Prefix: return kv <= q || kv < 50;
  case MaskRule::PerHead: return h % 2 == 0 ? kv <= q : kv <= q && q - kv < 40;
  case MaskRule::Holes: return q % 7 != 3 && kv <= q;
  case MaskRule::Cross: return (kv / 3) % 2 == (q / 5) % 2 && kv <= 2 * q;
  }
  return false;
}

template <MaskRule rule>
void evaluate(const Bindings *bindings, const TileCoordinates *tile, uint8_t *out, int64_t rowStride) {
  for (int64_t i = 0; i < tile->qCount; ++i)
    for (int64_t j = 0; j < tile->kvCount; ++j)
      out[i * rowStride + j] =
          attends<rule>(*bindings, tile->b, tile->h, tile->qBegin + i * tile->qStep, tile->kvBegin + j * tile->kvStep);
}

inline EvaluateTileFunction evaluateTile(MaskRule rule) {
  switch (rule) {
  case MaskRule::Full: return evaluate<MaskRule::Full>;
  case MaskRule::Causal: return evaluate<MaskRule::Causal>;
  case MaskRule::Document: return evaluate<MaskRule::Document>;
  case MaskRule::Window: return evaluate<MaskRule::Window>;
  case MaskRule::Prefix: return evaluate<MaskRule::Prefix>;
  case MaskRule::PerHead: return evaluate<MaskRule::PerHead>;
  case MaskRule::Holes: return evaluate<MaskRule::Holes>;
  case MaskRule::Cross: return evaluate<MaskRule::Cross>;
  }
  return nullptr;
}

/// A predicate bound to its arrays and its exact BlockMask. Not copied: the bindings point inside.
struct TestMask {
  TestMask(MaskRule rule, int64_t batch, int64_t heads, int64_t qLen, int64_t kvLen, int64_t tile = 32,
           int numDocuments = 6, uint32_t seed = 1) {
    std::mt19937 random(seed);
    // Documents of random lengths, different in every batch row.
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<int64_t> cuts = {0, std::max(qLen, kvLen)};
      for (int i = 1; i < numDocuments; ++i)
        cuts.push_back(int64_t(random() % uint32_t(std::max<int64_t>(1, std::max(qLen, kvLen)))));
      std::sort(cuts.begin(), cuts.end());
      offsets.push_back(cuts);
      for (size_t i = 0; i + 1 < cuts.size(); ++i)
        ids.insert(ids.end(), size_t(cuts[i + 1] - cuts[i]), int32_t(i));
    }
    capture.data = ids.data();
    capture.shape[0] = batch;
    capture.shape[1] = capture.strides[0] = std::max(qLen, kvLen);
    capture.strides[1] = 1;
    capture.rank = 2;
    bindings.captures = &capture;
    functions.evaluateTile = evaluateTile(rule);

    mask.qLen = qLen;
    mask.kvLen = kvLen;
    mask.tileQ = mask.tileKV = tile;
    mask.batch = rule == MaskRule::Document ? batch : 1;
    mask.heads = rule == MaskRule::PerHead ? heads : 1;
    for (int64_t b = 0; b < mask.batch; ++b)
      for (int64_t h = 0; h < mask.heads; ++h) {
        TileRows rows;
        rows.rowBegin = {0};
        for (int64_t q = 0; q < mask.numQTiles(); ++q) {
          for (int64_t kv = 0; kv < mask.numKVTiles(); ++kv)
            addTile(rows, q, kv, b, h);
          rows.rowBegin.push_back(int32_t(rows.runs.size()));
        }
        mask.rowSetOf.push_back(int32_t(mask.rowSets.size()));
        mask.rowSets.push_back(std::move(rows));
      }
  }
  TestMask(const TestMask &) = delete;

  bool attendsAt(int64_t b, int64_t h, int64_t q, int64_t kv) const {
    uint8_t result = 0;
    TileCoordinates point{.b = b, .h = h, .qBegin = q, .qCount = 1, .kvBegin = kv, .kvCount = 1};
    functions.evaluateTile(&bindings, &point, &result, 1);
    return result != 0;
  }

  std::vector<int32_t> ids;
  std::vector<std::vector<int64_t>> offsets;
  CaptureView capture;
  Bindings bindings;
  HostFunctions functions;
  BlockMask mask;

private:
  void addTile(TileRows &rows, int64_t q, int64_t kv, int64_t b, int64_t h) {
    int64_t numAttending = 0, numPairs = 0;
    for (int64_t i = q * mask.tileQ; i < std::min(mask.qLen, (q + 1) * mask.tileQ); ++i)
      for (int64_t j = kv * mask.tileKV; j < std::min(mask.kvLen, (kv + 1) * mask.tileKV); ++j, ++numPairs)
        numAttending += attendsAt(b, h, i, j);
    if (numAttending == 0)
      return;
    TileClass tileClass = numAttending == numPairs ? TileClass::Full : TileClass::Partial;
    if (int32_t(rows.runs.size()) > rows.rowBegin.back() && rows.runs.back().end == kv &&
        rows.runs.back().tileClass == tileClass)
      rows.runs.back().end = int32_t(kv + 1);
    else
      rows.runs.push_back({int32_t(kv), int32_t(kv + 1), tileClass, 0});
  }
};

} // namespace cpflex::test
