// Evaluates rows of pairs and scatters them into bits.
#include "runtime/BlockMask/KeepWords.h"

#include "runtime/BlockMask/LaneEvaluator.h"
#include "runtime/BlockMask/MaskPrograms.h"
#include "runtime/BlockMask/ParallelFor.h"
#include "runtime/BlockMask/PointEvaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

namespace cpflex {

namespace {

constexpr int64_t kWordBits = 32;

/// Where the bit of each pair lies; the inverse of an order.
StatusOr<std::vector<int32_t>> bitOfPair(std::span<const int32_t> order, int64_t numPairs) {
  std::vector<int32_t> bits(numPairs, -1);
  if (order.empty()) {
    for (int64_t i = 0; i < numPairs; ++i)
      bits[i] = static_cast<int32_t>(i);
    return bits;
  }
  if (static_cast<int64_t>(order.size()) != numPairs)
    return Status::invalid(
        fmt::format("the order of bits has {} entries; expected {}, one per pair of a tile", order.size(), numPairs));
  for (size_t bit = 0; bit < order.size(); ++bit) {
    int32_t pair = order[bit];
    if (pair < 0 || pair >= numPairs || bits[pair] >= 0)
      return Status::invalid(
          fmt::format("entry {} of the order of bits is {}; expected each of 0 to {} once", bit, pair, numPairs - 1));
    bits[pair] = static_cast<int32_t>(bit);
  }
  return bits;
}

/// Sets the bits of the partial tiles of one row of tiles.
class RowOfTiles {
public:
  RowOfTiles(const BlockMask &mask, const TapeProgram &program, const MaskPositions &positions,
             std::span<const int32_t> bits)
      : mask_(mask), positions_(positions), bits_(bits), points_(program), row_(mask.tileKV) {}

  void fill(int64_t tileRow, std::span<const TileRun> runs, int64_t wordsPerTile, uint32_t *words) {
    int64_t qBegin = tileRow * mask_.tileQ, qEnd = std::min(qBegin + mask_.tileQ, mask_.qLen);
    for (const TileRun &run : runs) {
      if (run.tileClass != TileClass::Partial)
        continue;
      for (int32_t tile = run.begin; tile < run.end; ++tile, words += wordsPerTile) {
        int64_t kvBegin = tile * mask_.tileKV;
        Range kv{kvBegin, std::min(kvBegin + mask_.tileKV, mask_.kvLen)};
        for (int64_t q = qBegin; q < qEnd; ++q)
          fillRow(q, kv, bits_.data() + (q - qBegin) * mask_.tileKV, words);
      }
    }
  }

private:
  void fillRow(int64_t q, Range kv, const int32_t *bits, uint32_t *words) {
    int64_t position = positions_.q.position(q);
    positions_.kv.visitPieces(kv, [&](int64_t first, const AffinePiece &piece) {
      points_.evaluateRow(position, piece.begin, piece.step, piece.count, row_.data() + (first - kv.begin));
    });
    for (int64_t i = 0; i < kv.size(); ++i)
      words[bits[i] / kWordBits] |= static_cast<uint32_t>(row_[i]) << (bits[i] % kWordBits);
  }

  const BlockMask &mask_;
  const MaskPositions &positions_;
  std::span<const int32_t> bits_;
  LaneEvaluator points_;
  std::vector<uint8_t> row_;
};

} // namespace

StatusOr<KeepWords> keepWords(const BlockMask &mask, const Tape &tape, const Bindings &bindings,
                              const BlockMaskOptions &options, std::span<const int32_t> order, int64_t maxBytes) {
  CPFLEX_RETURN_IF_ERROR(verifyOptions(options));
  CPFLEX_RETURN_IF_ERROR(verifyTape(tape, bindings));
  if (mask.qLen != options.qLen || mask.kvLen != options.kvLen || mask.batch != options.batch ||
      mask.heads != options.heads)
    return Status::invalid("the mask whose bits are asked for has other sizes than the options; expected equal ones");
  KeepWords result;
  result.partOf.resize(mask.rowSetOf.size());
  if (mask.qLen == 0 || mask.kvLen == 0 || mask.rowSetOf.empty())
    return result;
  // A tile never has more pairs than the mask it lies in needs, but its words are laid out for the whole tile.
  if (mask.tileQ > (int64_t(1) << 30) / mask.tileKV)
    return Status::unsupported(fmt::format(
        "tiles of {} x {} have more pairs than 32-bit indices hold; choose smaller tiles", mask.tileQ, mask.tileKV));
  StatusOr<std::vector<int32_t>> bits = bitOfPair(order, mask.tileQ * mask.tileKV);
  if (!bits)
    return bits.status();
  result.wordsPerTile = ceilDivide(mask.tileQ * mask.tileKV, kWordBits);

  // 1. One part per distinct row set and predicate, with the place of each row's words.
  MaskPrograms programs(tape, bindings, options);
  std::map<std::pair<int32_t, int32_t>, int32_t> known;
  std::vector<int32_t> programOfPart;
  int64_t numTiles = 0;
  for (size_t bh = 0; bh < mask.rowSetOf.size(); ++bh) {
    int32_t program = programs.programOf()[bh], rowSet = mask.rowSetOf[bh];
    auto [place, isAdded] = known.try_emplace({rowSet, program}, static_cast<int32_t>(result.parts.size()));
    result.partOf[bh] = place->second;
    if (!isAdded)
      continue;
    programOfPart.push_back(program);
    TileKeepWords &part = result.parts.emplace_back();
    part.rowSet = rowSet;
    part.firstTileOfRow.push_back(0);
    const TileRows &rows = mask.rowSets[rowSet];
    for (int64_t row = 0; row < mask.numQTiles(); ++row) {
      int64_t count = 0;
      for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i)
        count += rows.runs[i].tileClass == TileClass::Partial ? rows.runs[i].end - rows.runs[i].begin : 0;
      part.firstTileOfRow.push_back(part.firstTileOfRow.back() + count);
    }
    numTiles += part.firstTileOfRow.back();
  }
  if (static_cast<double>(numTiles) * static_cast<double>(result.wordsPerTile) * sizeof(uint32_t) >
      static_cast<double>(maxBytes))
    return Status(StatusCode::OutOfMemory,
                  fmt::format("the bits of {} partial tiles take {} bytes each; expected at most {} "
                              "bytes in all",
                              numTiles, result.wordsPerTile * sizeof(uint32_t), maxBytes));

  // 2. The bits, rows of tiles as tasks.
  for (size_t i = 0; i < result.parts.size(); ++i) {
    TileKeepWords &part = result.parts[i];
    const TileRows &rows = mask.rowSets[part.rowSet];
    part.words.assign(part.firstTileOfRow.back() * result.wordsPerTile, 0);
    parallelFor(mask.numQTiles(), options.threads, [&](int64_t row) {
      if (part.firstTileOfRow[row] == part.firstTileOfRow[row + 1])
        return;
      std::span<const TileRun> runs =
          std::span(rows.runs).subspan(rows.rowBegin[row], rows.rowBegin[row + 1] - rows.rowBegin[row]);
      RowOfTiles(mask, programs.program(programOfPart[i]), programs.positions(), *bits)
          .fill(row, runs, result.wordsPerTile, part.words.data() + part.firstTileOfRow[row] * result.wordsPerTile);
    });
  }
  return result;
}

StatusOr<std::vector<int32_t>> accumulatorOrder(int64_t tileQ, int64_t tileKV) {
  constexpr int64_t kWarpRows = 16, kGroupColumns = 8, kLanes = 32;
  if (tileQ < 1 || tileKV < 1 || tileQ % kWarpRows != 0 || tileKV % kGroupColumns != 0)
    return Status::invalid(
        fmt::format("the product is {} x {}; expected multiples of {} x {} for the order of tensor cores", tileQ,
                    tileKV, kWarpRows, kGroupColumns));
  std::vector<int32_t> order;
  order.reserve(tileQ * tileKV);
  for (int64_t warp = 0; warp < tileQ / kWarpRows; ++warp)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      for (int64_t i = 0; i < tileKV / 2; ++i) {
        // row = 16 w + l/4 + 8 ((i/2) % 2), column = 8 (i/4) + 2 (l % 4) + i % 2
        int64_t row = kWarpRows * warp + lane / 4 + 8 * (i / 2 % 2);
        int64_t column = kGroupColumns * (i / 4) + 2 * (lane % 4) + i % 2;
        order.push_back(static_cast<int32_t>(row * tileKV + column));
      }
  return order;
}

StatusOr<std::vector<int32_t>> transposedAccumulatorOrder(int64_t tileQ, int64_t tileKV) {
  StatusOr<std::vector<int32_t>> order = accumulatorOrder(tileKV, tileQ);
  if (!order)
    return order.status();
  for (int32_t &pair : *order)
    pair = static_cast<int32_t>(pair % tileQ * tileKV + pair / tileQ);
  return order;
}

} // namespace cpflex
