// Cutting, transposing and flattening block masks for kernels.
#include "runtime/Cuda/MaskTables.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <span>
#include <tuple>

namespace cpflex {
namespace {

/// What a tile is, as two masks compare it.
struct TileKind {
  TileClass tileClass = TileClass::Empty;
  uint8_t residual = 0;
  friend bool operator==(const TileKind &, const TileKind &) = default;
};

/// Appends a run, growing the last one when it is adjacent and of one kind.
void appendRun(std::vector<TileRun> &runs, size_t firstOfRow, TileRun run) {
  if (run.begin >= run.end || run.tileClass == TileClass::Empty)
    return;
  if (runs.size() > firstOfRow && runs.back().end == run.begin && runs.back().tileClass == run.tileClass &&
      runs.back().residual == run.residual)
    runs.back().end = run.end;
  else
    runs.push_back(run);
}

/// Walks the runs of one row as kinds over half-open pieces, empty ones included.
class RowPieces {
public:
  RowPieces(const TileRun *begin, const TileRun *end) : next_(begin), last_(end) {}
  TileKind kindAt(int32_t tile) const {
    return next_ != last_ && next_->begin <= tile ? TileKind{next_->tileClass, next_->residual} : TileKind{};
  }
  /// The first tile after `tile` where the kind may change, at most `limit`.
  int32_t pieceEnd(int32_t tile, int32_t limit) const {
    if (next_ == last_)
      return limit;
    return std::min(limit, next_->begin <= tile ? next_->end : next_->begin);
  }
  void advanceTo(int32_t tile) {
    while (next_ != last_ && next_->end <= tile)
      ++next_;
  }

private:
  const TileRun *next_, *last_;
};

TileRows transposedRows(const TileRows &rows, int64_t numRows, int64_t numColumns) {
  // Sweeps the rows; a column's open run ends, and another begins, only where the row above had another kind.
  struct ColumnRun {
    int32_t column;
    TileRun run;
  };
  std::vector<ColumnRun> closed;
  std::vector<int32_t> openedAt(numColumns, 0);
  auto changeAt = [&](int32_t row, int32_t begin, int32_t end, TileKind before) {
    for (int32_t column = begin; column < end; ++column) {
      if (before.tileClass != TileClass::Empty)
        closed.push_back({column, {openedAt[column], row, before.tileClass, before.residual}});
      openedAt[column] = row;
    }
  };
  auto columnLimit = static_cast<int32_t>(numColumns);
  for (int64_t row = 0; row <= numRows; ++row) {
    auto piecesOf = [&](int64_t r) {
      if (r < 0 || r >= numRows)
        return RowPieces(nullptr, nullptr);
      const TileRun *runs = rows.runs.data();
      return RowPieces(runs + rows.rowBegin[r], runs + rows.rowBegin[r + 1]);
    };
    RowPieces above = piecesOf(row - 1), here = piecesOf(row);
    for (int32_t tile = 0; tile < columnLimit;) {
      int32_t end = std::min(above.pieceEnd(tile, columnLimit), here.pieceEnd(tile, columnLimit));
      if (TileKind before = above.kindAt(tile); before != here.kindAt(tile))
        changeAt(static_cast<int32_t>(row), tile, end, before);
      tile = end;
      above.advanceTo(tile);
      here.advanceTo(tile);
    }
  }

  // Runs were closed in the order of their ends, so a stable sort by column leaves each column ascending.
  TileRows result;
  result.rowBegin.assign(numColumns + 1, 0);
  for (const ColumnRun &run : closed)
    ++result.rowBegin[run.column + 1];
  std::partial_sum(result.rowBegin.begin(), result.rowBegin.end(), result.rowBegin.begin());
  result.runs.resize(closed.size());
  std::vector<int32_t> position(result.rowBegin.begin(), result.rowBegin.end() - 1);
  for (const ColumnRun &run : closed)
    result.runs[position[run.column]++] = run.run;
  return result;
}

/// The runs of one row over other columns, from a row over columns of `from` pairs; the last column may be short.
std::vector<TileRun> recutColumns(const TileRun *begin, const TileRun *end, int64_t length, int64_t from, int64_t to) {
  std::vector<TileRun> runs;
  auto numColumns = static_cast<int32_t>(ceilDivide(length, to));
  auto oldLimit = static_cast<int32_t>(ceilDivide(length, from));
  RowPieces pieces(begin, end);
  for (int32_t column = 0; column < numColumns;) {
    int64_t pairBegin = column * to, pairEnd = std::min(length, pairBegin + to);
    auto oldBegin = static_cast<int32_t>(pairBegin / from);
    auto oldEnd = static_cast<int32_t>(ceilDivide(pairEnd, from));
    pieces.advanceTo(oldBegin);
    TileKind kind = pieces.kindAt(oldBegin);
    int32_t pieceEnd = pieces.pieceEnd(oldBegin, oldLimit);
    if (pieceEnd < oldEnd) {
      // Several kinds meet in this column; all empty cannot be, since runs of other kinds end the piece.
      appendRun(runs, 0, {column, column + 1, TileClass::Partial, 0});
      ++column;
      continue;
    }
    // Every column that ends within the piece has the same kind. A column that is part of a partial tile stays partial.
    int64_t pairLimit = std::min(length, int64_t(pieceEnd) * from);
    auto columnEnd = static_cast<int32_t>(pairLimit == length ? numColumns : pairLimit / to);
    columnEnd = std::max(columnEnd, column + 1);
    appendRun(runs, 0, {column, columnEnd, kind.tileClass, kind.residual});
    column = columnEnd;
  }
  return runs;
}

/// The union of rows that one wider row covers: a column keeps its kind where all rows agree, and is partial where not.
std::vector<TileRun> mergedRows(const TileRows &rows, int64_t rowBegin, int64_t rowEnd, int32_t columnLimit) {
  std::vector<TileRun> merged(rows.runs.begin() + rows.rowBegin[rowBegin],
                              rows.runs.begin() + rows.rowBegin[rowBegin + 1]);
  for (int64_t row = rowBegin + 1; row < rowEnd; ++row) {
    RowPieces left(merged.data(), merged.data() + merged.size());
    RowPieces right(rows.runs.data() + rows.rowBegin[row], rows.runs.data() + rows.rowBegin[row + 1]);
    std::vector<TileRun> both;
    for (int32_t tile = 0; tile < columnLimit;) {
      int32_t end = std::min(left.pieceEnd(tile, columnLimit), right.pieceEnd(tile, columnLimit));
      TileKind kind = left.kindAt(tile);
      if (kind != right.kindAt(tile))
        kind = {TileClass::Partial, 0};
      appendRun(both, 0, {tile, end, kind.tileClass, kind.residual});
      tile = end;
      left.advanceTo(tile);
      right.advanceTo(tile);
    }
    merged = std::move(both);
  }
  return merged;
}

/// Per row r of kv tiles the q tiles that attend to no later kv tile: tiles[rowBegin[r] .. rowBegin[r + 1]), ascending.
struct LastParts {
  std::vector<int32_t> rowBegin, tiles;
};

/// Of a mask with rows along q.
LastParts lastParts(const TileRows &rows, int64_t numRows, int64_t numColumns) {
  auto lastColumn = [&](int64_t row) {
    return rows.rowBegin[row] == rows.rowBegin[row + 1] ? -1 : rows.runs[rows.rowBegin[row + 1] - 1].end - 1;
  };
  LastParts parts;
  parts.rowBegin.assign(numColumns + 1, 0);
  for (int64_t row = 0; row < numRows; ++row)
    if (int32_t column = lastColumn(row); column >= 0)
      ++parts.rowBegin[column + 1];
  std::partial_sum(parts.rowBegin.begin(), parts.rowBegin.end(), parts.rowBegin.begin());
  parts.tiles.resize(parts.rowBegin.back());
  std::vector<int32_t> position(parts.rowBegin.begin(), parts.rowBegin.end() - 1);
  for (int64_t row = 0; row < numRows; ++row)
    if (int32_t column = lastColumn(row); column >= 0)
      parts.tiles[position[column]++] = static_cast<int32_t>(row);
  return parts;
}

/// Appends a run, cut where RunArgument::isLastPart changes. `tiles` are those of its row for which that holds.
void appendCut(std::vector<RunArgument> &runs, RunArgument run, std::span<const int32_t> tiles) {
  auto next = std::ranges::lower_bound(tiles, run.begin);
  const int32_t end = run.end;
  while (run.begin < end) {
    run.isLastPart = next != tiles.end() && *next == run.begin;
    run.end = run.begin;
    if (run.isLastPart)
      for (; next != tiles.end() && *next == run.end && run.end < end; ++next)
        ++run.end;
    else
      run.end = next == tiles.end() ? end : std::min(end, *next);
    runs.push_back(run);
    run.begin = run.end;
  }
}

/// Numbers the partial tiles of rowSets in RunArgument::words, and says where the words of each pair begin.
void numberWords(MaskTables &tables, int64_t batch, int64_t heads, const WordSets &words) {
  const int64_t tilesPerTile = int64_t(tables.rowTilesPerMaskTile) * tables.colTilesPerMaskTile;
  const int64_t numSets = static_cast<int64_t>(tables.rowBegin.size()) / (tables.numRows + 1);
  std::vector<int64_t> tilesOf(numSets, 0);
  for (int64_t set = 0; set < numSets; ++set) {
    const int32_t *begin = tables.rowBegin.data() + set * (tables.numRows + 1);
    for (int32_t i = begin[0]; i < begin[tables.numRows]; ++i) {
      RunArgument &run = tables.runs[i];
      run.words = static_cast<int32_t>(std::min(tilesOf[set], words.maxTiles));
      if (run.tileClass == static_cast<unsigned char>(TileClass::Partial))
        tilesOf[set] += (run.end - run.begin) * tilesPerTile;
    }
  }
  // One set of words for each row set and whatever else of (b, h) the mask reads.
  std::map<std::tuple<int32_t, int64_t, int64_t>, int64_t> begins;
  for (int64_t pair = 0; pair < batch * heads; ++pair) {
    int32_t set = tables.rowSetOf[pair];
    auto [place, isNew] = begins.try_emplace({set, words.perBatch ? pair / heads : 0, words.perHead ? pair % heads : 0},
                                             tables.numWordTiles);
    if (isNew) {
      tables.wordPairs.push_back(static_cast<int32_t>(pair));
      tables.numWordTiles += tilesOf[set];
    }
    tables.wordsOf.push_back(static_cast<int32_t>(std::min(place->second, words.maxTiles)));
    if (tables.numWordTiles > words.maxTiles)
      break;
  }
  tables.numWordSets = static_cast<int32_t>(tables.wordPairs.size());
  tables.wordPairs.resize(batch * heads, 0);
  if (tables.numWordTiles > words.maxTiles) {
    tables.wordsOf.clear(), tables.wordPairs.clear();
    tables.numWordSets = 0, tables.numWordTiles = 0;
  }
}

int64_t numTilesOfRow(const TileRows &rows, int64_t row) {
  int64_t tiles = 0;
  for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i)
    tiles += rows.runs[i].end - rows.runs[i].begin;
  return tiles;
}

/// Rows that follow each other are walked at the same time, one a little behind the other, and a row adds to a column
/// after the row before it. Walking up, it waits for as many tiles as it begins later; walking down, as it ends
/// earlier.
bool walksDownBest(const BlockMask &mask) {
  int32_t up = 0, down = 0;
  for (const TileRows &rows : mask.rowSets)
    for (int64_t row = 1; row < mask.numQTiles(); ++row) {
      int32_t before = rows.rowBegin[row - 1], begin = rows.rowBegin[row], end = rows.rowBegin[row + 1];
      if (before == begin || begin == end)
        continue;
      const TileRun &firstBefore = rows.runs[before], &lastBefore = rows.runs[begin - 1], &first = rows.runs[begin],
                    &last = rows.runs[end - 1];
      if (first.begin >= lastBefore.end || firstBefore.begin >= last.end)
        continue;
      up = std::max(up, first.begin - firstBefore.begin);
      down = std::max(down, lastBefore.end - last.end);
    }
  return down <= up;
}

} // namespace

BlockMask transposed(const BlockMask &mask) {
  BlockMask result;
  result.qLen = mask.kvLen, result.kvLen = mask.qLen;
  result.tileQ = mask.tileKV, result.tileKV = mask.tileQ;
  result.batch = mask.batch, result.heads = mask.heads;
  result.rowSetOf = mask.rowSetOf;
  for (const TileRows &rows : mask.rowSets)
    result.rowSets.push_back(transposedRows(rows, mask.numQTiles(), mask.numKVTiles()));
  return result;
}

BlockMask withTiles(const BlockMask &mask, int64_t tileQ, int64_t tileKV) {
  BlockMask result = mask;
  result.tileQ = tileQ, result.tileKV = tileKV;
  if (tileQ == mask.tileQ && tileKV == mask.tileKV)
    return result;
  auto oldColumns = static_cast<int32_t>(mask.numKVTiles());
  for (size_t set = 0; set < mask.rowSets.size(); ++set) {
    const TileRows &rows = mask.rowSets[set];
    TileRows &cut = result.rowSets[set];
    cut = {.rowBegin = {0}, .runs = {}};
    for (int64_t row = 0; row < result.numQTiles(); ++row) {
      int64_t qBegin = row * tileQ, qEnd = std::min(mask.qLen, qBegin + tileQ);
      std::vector<TileRun> merged = mergedRows(rows, qBegin / mask.tileQ, ceilDivide(qEnd, mask.tileQ), oldColumns);
      std::vector<TileRun> columns =
          recutColumns(merged.data(), merged.data() + merged.size(), mask.kvLen, mask.tileKV, tileKV);
      cut.runs.insert(cut.runs.end(), columns.begin(), columns.end());
      cut.rowBegin.push_back(static_cast<int32_t>(cut.runs.size()));
    }
  }
  return result;
}

MaskTables maskTables(const BlockMask &mask, KernelRows rows, int tileQ, int tileKV, int64_t batch, int64_t heads,
                      const WordSets &words, QuerySums sums) {
  bool isCutToFit = mask.tileQ % tileQ != 0 || mask.tileKV % tileKV != 0;
  BlockMask cut = isCutToFit ? withTiles(mask, tileQ, tileKV) : mask;
  std::vector<LastParts> last; // one per row set
  if (sums == QuerySums::Shared)
    for (const TileRows &set : cut.rowSets)
      last.push_back(lastParts(set, cut.numQTiles(), cut.numKVTiles()));
  if (rows == KernelRows::KV)
    cut = transposed(cut);
  int rowTile = rows == KernelRows::Q ? tileQ : tileKV, colTile = rows == KernelRows::Q ? tileKV : tileQ;

  MaskTables tables;
  tables.numRows = static_cast<int32_t>(cut.numQTiles());
  tables.rowTilesPerMaskTile = static_cast<int32_t>(cut.tileQ / rowTile);
  tables.colTilesPerMaskTile = static_cast<int32_t>(cut.tileKV / colTile);
  for (size_t set = 0; set < cut.rowSets.size(); ++set) {
    const TileRows &from = cut.rowSets[set];
    for (int32_t row = 0; row < tables.numRows; ++row) {
      tables.rowBegin.push_back(static_cast<int32_t>(tables.runs.size()));
      std::span<const int32_t> lastTiles;
      if (sums == QuerySums::Shared)
        lastTiles = std::span(last[set].tiles)
                        .subspan(last[set].rowBegin[row], last[set].rowBegin[row + 1] - last[set].rowBegin[row]);
      for (int32_t i = from.rowBegin[row]; i < from.rowBegin[row + 1]; ++i) {
        const TileRun &run = from.runs[i];
        appendCut(tables.runs, {run.begin, run.end, static_cast<unsigned char>(run.tileClass), false, 0}, lastTiles);
      }
    }
    tables.rowBegin.push_back(static_cast<int32_t>(tables.runs.size()));
  }
  std::vector<int64_t> uses(cut.rowSets.size(), 0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      int32_t set = cut.rowSetOf[(cut.batch == 1 ? 0 : b) * cut.heads + (cut.heads == 1 ? 0 : h)];
      tables.rowSetOf.push_back(set);
      ++uses[set];
    }
  if (words.maxTiles > 0)
    numberWords(tables, batch, heads, words);

  // Longest first, by the tiles of all (b, h) together; among equals the later row, which causal masks make the longer.
  std::vector<int64_t> work(tables.numRows, 0);
  for (size_t set = 0; set < cut.rowSets.size(); ++set)
    for (int32_t row = 0; row < tables.numRows; ++row) {
      int64_t tiles = numTilesOfRow(cut.rowSets[set], row) * tables.colTilesPerMaskTile;
      work[row] += uses[set] * tiles;
      tables.longestRow = std::max(tables.longestRow, tiles);
    }
  tables.tilesPerHead = std::accumulate(work.begin(), work.end(), int64_t(0)) * tables.rowTilesPerMaskTile /
                        std::max<int64_t>(1, batch * heads);
  if (sums == QuerySums::Shared)
    tables.walksDown = walksDownBest(cut);
  tables.rowOrder.resize(ceilDivide(cut.qLen, rowTile));
  std::iota(tables.rowOrder.begin(), tables.rowOrder.end(), 0);
  std::ranges::sort(tables.rowOrder, [&](int32_t a, int32_t b) {
    int64_t workOfA = work[a / tables.rowTilesPerMaskTile], workOfB = work[b / tables.rowTilesPerMaskTile];
    return workOfA != workOfB ? workOfA > workOfB : a > b;
  });
  return tables;
}

bool hasPartialTiles(const BlockMask &mask) {
  return std::ranges::any_of(mask.rowSets, [](const TileRows &rows) {
    return std::ranges::any_of(rows.runs, [](const TileRun &run) { return run.tileClass == TileClass::Partial; });
  });
}

} // namespace cpflex
