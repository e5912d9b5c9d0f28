// The hierarchy: one program per distinct (b, h), bands of tile rows as independent tasks, tiles of
// tiles cut until the intervals decide, runs appended row by row in the order in which the
// hierarchy is walked.
#include "runtime/BlockMask/BlockMaskBuilder.h"

#include "runtime/BlockMask/MaskPrograms.h"
#include "runtime/BlockMask/ParallelFor.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/BlockMask/ResidualChoice.h"
#include "runtime/BlockMask/RowSetSharing.h"
#include "runtime/BlockMask/TileSettlement.h"
#include "runtime/contract/HostMemory.h"

#include <algorithm>
#include <bit>
#include <optional>

namespace cpflex {

namespace {

/// Tile rows per task: enough to share the coarse tiles, few enough to keep threads busy.
constexpr int64_t kBandRows = 128;
/// Tiles below which dropping decided arms from the program costs more than it saves: for programs
/// of few nodes the memory for another program is most of the cost.
int64_t minTilesToPrune(const TapeProgram &program) {
  constexpr size_t kManyNodes = 32;
  return program.nodes.size() >= kManyNodes ? 4 : 64;
}

/// The runs of some tile rows while they grow at their ends, as linked lists in one array.
class GrowingRows {
public:
  explicit GrowingRows(int64_t numRows) : first_(numRows, -1), last_(numRows, -1) {
    links_.reserve(kLinksPerRow * numRows);
  }

  /// What a row takes before it has more runs than were reserved.
  static constexpr double bytesPerRow() { return kLinksPerRow * sizeof(Link) + 2 * sizeof(int32_t); }

  /// Appends kv tiles to rows; the runs of a row come in ascending order.
  void append(Range rows, Range tiles, TileClass tileClass, uint8_t residual) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      int32_t last = last_[row];
      if (last >= 0) {
        TileRun &run = links_[last].run;
        if (run.end == tiles.begin && run.tileClass == tileClass && run.residual == residual) {
          run.end = static_cast<int32_t>(tiles.end);
          continue;
        }
      }
      int32_t added = static_cast<int32_t>(links_.size());
      links_.push_back({{static_cast<int32_t>(tiles.begin), static_cast<int32_t>(tiles.end), tileClass, residual}, -1});
      (last < 0 ? first_[row] : links_[last].next) = added;
      last_[row] = added;
    }
  }

  int64_t numRuns() const { return static_cast<int64_t>(links_.size()); }

  /// Appends the rows to `rows`, whose rowBegin holds the begin of the next row as its last entry.
  void moveTo(TileRows &rows) const {
    for (int32_t first : first_) {
      for (int32_t i = first; i >= 0; i = links_[i].next)
        rows.runs.push_back(links_[i].run);
      rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
    }
  }

private:
  static constexpr int64_t kLinksPerRow = 4;
  struct Link {
    TileRun run;
    int32_t next;
  };
  std::vector<Link> links_;
  std::vector<int32_t> first_, last_;
};

/// One band of tile rows of one row set.
class BandBuilder {
public:
  BandBuilder(const MaskPositions &positions, const BlockMaskOptions &options, Range band)
      : positions_(positions), options_(options), band_(band) {}

  void build(const TapeProgram &program, std::span<const TapeProgram> assumptions) {
    rows_.emplace(band_.size()); // here, so that each thread touches its own memory first
    TileSettlement settlement(program, positions_);
    if (!options_.residuals.empty())
      residuals_.emplace(options_.residuals, assumptions);
    visit(settlement, band_, {0, ceilDivide(options_.kvLen, options_.tileKV)});
    addCounts(settlement);
  }

  const GrowingRows &rows() const { return *rows_; }
  int64_t pointsEvaluated() const { return pointsEvaluated_; }
  int64_t tilesEvaluated() const { return tilesEvaluated_; }

private:
  void addCounts(const TileSettlement &settlement) {
    pointsEvaluated_ += settlement.pointsEvaluated();
    tilesEvaluated_ += settlement.tilesEvaluated();
  }

  void emit(Range tileRows, Range tileColumns, TileClass tileClass, uint8_t residual = 0) {
    if (tileClass != TileClass::Empty)
      rows_->append({tileRows.begin - band_.begin, tileRows.end - band_.begin}, tileColumns, tileClass, residual);
  }

  void settle(TileSettlement &settlement, Range tileRows, Range tileColumns, Range rows, Range columns) {
    TileClass tileClass = settlement.settle(rows, columns);
    uint8_t residual = 0;
    if (tileClass == TileClass::Partial && residuals_)
      residual = residuals_->numberFor(positions_.bounds(rows, columns));
    emit(tileRows, tileColumns, tileClass, residual);
  }

  void visit(TileSettlement &settlement, Range tileRows, Range tileColumns) {
    Range rows{tileRows.begin * options_.tileQ, std::min(tileRows.end * options_.tileQ, options_.qLen)};
    Range columns{tileColumns.begin * options_.tileKV, std::min(tileColumns.end * options_.tileKV, options_.kvLen)};
    TileClass tileClass = settlement.classify(rows, columns);
    if (tileClass != TileClass::Partial)
      return emit(tileRows, tileColumns, tileClass);
    if (tileRows.size() == 1 && tileColumns.size() == 1)
      return settle(settlement, tileRows, tileColumns, rows, columns);
    if (tileRows.size() * tileColumns.size() >= minTilesToPrune(settlement.intervals().program()))
      if (std::optional<TapeProgram> shorter = settlement.intervals().pruned()) {
        TileSettlement inside(*shorter, positions_);
        visitParts(inside, tileRows, tileColumns, rows.size(), columns.size());
        return addCounts(inside);
      }
    visitParts(settlement, tileRows, tileColumns, rows.size(), columns.size());
  }

  /// Cuts the longer axis, or both when they are about as long. Parts are visited so that for each
  /// row of tiles the columns ascend.
  void visitParts(TileSettlement &settlement, Range tileRows, Range tileColumns, int64_t numRows, int64_t numColumns) {
    bool cutRows = tileRows.size() > 1 && (tileColumns.size() == 1 || numRows * 2 > numColumns);
    bool cutColumns = tileColumns.size() > 1 && (tileRows.size() == 1 || numColumns * 2 > numRows);
    // Powers of two keep the cuts where summaries have theirs.
    auto middle = [](Range range) {
      return range.begin + static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(range.size() - 1)));
    };
    int64_t row = cutRows ? middle(tileRows) : tileRows.end;
    int64_t column = cutColumns ? middle(tileColumns) : tileColumns.end;
    for (Range rowPart : {Range{tileRows.begin, row}, Range{row, tileRows.end}})
      for (Range columnPart : {Range{tileColumns.begin, column}, Range{column, tileColumns.end}})
        if (!rowPart.isEmpty() && !columnPart.isEmpty())
          visit(settlement, rowPart, columnPart);
  }

  const MaskPositions &positions_;
  const BlockMaskOptions &options_;
  Range band_;
  std::optional<GrowingRows> rows_;
  std::optional<ResidualChoice> residuals_;
  int64_t pointsEvaluated_ = 0, tilesEvaluated_ = 0;
};

TileRows fullRows(int64_t numQTiles, int64_t numKVTiles) {
  TileRows rows;
  rows.rowBegin.push_back(0);
  for (int64_t row = 0; row < numQTiles; ++row) {
    if (numKVTiles > 0)
      rows.runs.push_back({0, static_cast<int32_t>(numKVTiles), TileClass::Full, 0});
    rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
  }
  return rows;
}

} // namespace

StatusOr<BlockMaskResult> buildBlockMask(const Tape *tape, const Bindings &bindings, const BlockMaskOptions &options) {
  CPFLEX_RETURN_IF_ERROR(verifyOptions(options));
  BlockMaskResult result;
  BlockMask &mask = result.mask;
  mask.qLen = options.qLen;
  mask.kvLen = options.kvLen;
  mask.tileQ = options.tileQ;
  mask.tileKV = options.tileKV;
  mask.batch = options.batch;
  mask.heads = options.heads;
  int64_t numQTiles = mask.numQTiles(), numKVTiles = mask.numKVTiles();
  bool hasPairs = options.qLen > 0 && options.kvLen > 0 && options.batch * options.heads > 0;
  if (tape) {
    CPFLEX_RETURN_IF_ERROR(verifyTape(*tape, bindings));
    CPFLEX_RETURN_IF_ERROR(verifyResiduals(options.residuals, *tape));
  }
  // The number of each (b, h), and as much again while it is found out.
  CPFLEX_RETURN_IF_ERROR(checkHostMemory("the batches and heads of the mask",
                                         2.0 * sizeof(int32_t) * double(options.batch) * double(options.heads)));
  constexpr double kBytesPerKeptRow = sizeof(int32_t) + sizeof(TileRun);
  if (!tape || !hasPairs) {
    CPFLEX_RETURN_IF_ERROR(checkHostMemory("the rows of the mask", kBytesPerKeptRow * double(numQTiles)));
    mask.rowSetOf.assign(options.batch * options.heads, 0);
    if (!mask.rowSetOf.empty())
      mask.rowSets.push_back(fullRows(numQTiles, hasPairs ? numKVTiles : 0));
    return result;
  }

  mask.residualKey = residualKeyOf(*tape, options.residuals);

  // 1. One program per (b, h) that can differ.
  uint8_t read = coordinatesRead(*tape);
  result.dependsOnBatch = read & 1;
  result.dependsOnHead = read & 2;
  MaskPrograms programs(*tape, bindings, options);
  mask.rowSetOf = programs.programOf();

  // 2. Bands of every row set.
  int64_t numBands = ceilDivide(numQTiles, kBandRows);
  int64_t numTasks = numBands * programs.size();
  CPFLEX_RETURN_IF_ERROR(
      checkHostMemory("the rows of the mask",
                      double(programs.size()) * (double(numQTiles) * (GrowingRows::bytesPerRow() + kBytesPerKeptRow) +
                                                 double(numBands) * sizeof(BandBuilder))));
  std::vector<BandBuilder> bands;
  bands.reserve(numTasks);
  for (int64_t task = 0; task < numTasks; ++task) {
    int64_t begin = task % numBands * kBandRows;
    bands.emplace_back(programs.positions(), options, Range{begin, std::min(begin + kBandRows, numQTiles)});
  }
  parallelFor(numTasks, options.threads, [&](int64_t task) {
    bands[task].build(programs.program(task / numBands), programs.assumptions(task / numBands));
  });

  // 3. The bands' rows one after the other.
  std::vector<int64_t> numRuns(programs.size(), 0);
  for (int64_t task = 0; task < numTasks; ++task) {
    numRuns[task / numBands] += bands[task].rows().numRuns();
    result.pointsEvaluated += bands[task].pointsEvaluated();
    result.tilesEvaluated += bands[task].tilesEvaluated();
  }
  for (int64_t count : numRuns)
    CPFLEX_RETURN_IF_ERROR(verifyNumRuns(count));
  mask.rowSets.resize(programs.size());
  parallelFor(programs.size(), options.threads, [&](int64_t rowSet) {
    TileRows &rows = mask.rowSets[rowSet];
    rows.runs.reserve(numRuns[rowSet]);
    rows.rowBegin.reserve(numQTiles + 1);
    rows.rowBegin.push_back(0);
    for (int64_t band = 0; band < numBands; ++band)
      bands[rowSet * numBands + band].rows().moveTo(rows);
  });
  shareEqualRowSets(mask);
  return result;
}

} // namespace cpflex
