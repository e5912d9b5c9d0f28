// Specialises a tape for each (b, h) it can tell apart and finds the equal ones, such as heads with
// broadcast captures.
#include "runtime/BlockMask/MaskPrograms.h"

#include "runtime/BlockMask/ParallelFor.h"
#include "runtime/BlockMask/ResidualChoice.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

namespace cpflex {

namespace {

/// Numbers that tell most programs apart: constants and where loads read.
uint64_t hashOf(const TapeProgram &program) {
  uint64_t hash = 0xcbf29ce484222325u;
  auto add = [&](uint64_t value) { hash = (hash ^ value) * 0x100000001b3u; };
  for (const ProgramNode &node : program.nodes) {
    add(static_cast<uint64_t>(node.form) << 8 | static_cast<uint64_t>(node.operation));
    add(static_cast<uint64_t>(node.offset));
  }
  for (const ProgramLoad &load : *program.loads)
    add(reinterpret_cast<uintptr_t>(load.data));
  return hash;
}

/// Positions beyond any sequence: sums and products of a few of them still fit 64 bits.
constexpr int64_t kMaxPosition = int64_t(1) << 40;

Status verifyMap(const PositionMap &map, int64_t count, const char *axis) {
  if (map.pieces.empty())
    return Status::ok();
  int64_t total = 0;
  for (const AffinePiece &piece : map.pieces) {
    if (piece.count < 0 || piece.step < 1)
      return Status::invalid(fmt::format("a piece of the {} positions has {} rows in steps of {}; "
                                         "expected 0 or more rows in steps of 1 or more",
                                         axis, piece.count, piece.step));
    bool isFar = piece.begin < 0 || piece.begin > kMaxPosition || piece.count > kMaxPosition ||
                 piece.step > kMaxPosition || (piece.count > 0 && piece.step > kMaxPosition / piece.count);
    if (isFar)
      return Status::invalid(fmt::format("a piece of the {} positions begins at {} and has {} rows "
                                         "in steps of {}; expected positions of 0 to 2^40",
                                         axis, piece.begin, piece.count, piece.step));
    total = std::min(total + piece.count, kMaxPosition);
  }
  if (total != count)
    return Status::invalid(fmt::format("the {} positions have {} rows; expected {}", axis, total, count));
  return Status::ok();
}

} // namespace

Status verifyOptions(const BlockMaskOptions &options) {
  auto isNegative = [](int64_t value) { return value < 0; };
  if (isNegative(options.batch) || isNegative(options.heads) || isNegative(options.qLen) || isNegative(options.kvLen))
    return Status::invalid(fmt::format("sizes are batch {}, heads {}, q {}, kv {}; expected 0 or more", options.batch,
                                       options.heads, options.qLen, options.kvLen));
  if (options.tileQ < 1 || options.tileKV < 1)
    return Status::invalid(fmt::format("tiles are {} x {}; expected 1 x 1 or larger", options.tileQ, options.tileKV));
  constexpr int64_t kMaxTiles = std::numeric_limits<int32_t>::max();
  if (options.qLen > kMaxPosition || options.kvLen > kMaxPosition || options.tileQ > kMaxPosition ||
      options.tileKV > kMaxPosition || options.batch >= kMaxTiles || options.heads >= kMaxTiles)
    return Status::unsupported("the mask has lengths or tiles beyond 2^40, or batches or heads "
                               "beyond 2^31");
  if (ceilDivide(options.qLen, options.tileQ) >= kMaxTiles || ceilDivide(options.kvLen, options.tileKV) >= kMaxTiles ||
      options.batch * options.heads >= kMaxTiles)
    return Status::unsupported("the mask has more rows or columns of tiles than 32-bit indices "
                               "hold; choose larger tiles");
  CPFLEX_RETURN_IF_ERROR(verifyMap(options.qPositions, options.qLen, "q"));
  return verifyMap(options.kvPositions, options.kvLen, "kv");
}

Status verifyNumRuns(int64_t numRuns) {
  constexpr int64_t kMaxRuns = std::numeric_limits<int32_t>::max();
  if (numRuns > kMaxRuns)
    return Status::unsupported(
        fmt::format("the mask has {} runs of tiles; expected at most {}, choose larger tiles", numRuns, kMaxRuns));
  return Status::ok();
}

MaskPrograms::MaskPrograms(const Tape &tape, const Bindings &bindings, const BlockMaskOptions &options)
    : positions_{AxisPositions(options.qPositions, options.qLen), AxisPositions(options.kvPositions, options.kvLen)} {
  CaptureSummaries *summaries = options.summaries;
  if (!summaries) {
    ownSummaries_ = std::make_unique<CaptureSummaries>();
    summaries = ownSummaries_.get();
  }
  // 1. The (b, h) that the tape can tell apart.
  uint8_t read = coordinatesRead(tape);
  int64_t numB = read & 1 ? options.batch : 1, numH = read & 2 ? options.heads : 1;
  std::vector<TapeProgram> all(numB * numH);
  std::vector<std::vector<TapeProgram>> allAssumptions(all.size());
  std::vector<int32_t> assumed = assumedInstructions(options.residuals);
  PositionBounds positions = positions_.bounds({0, options.qLen}, {0, options.kvLen});
  parallelFor(numB * numH, options.threads, [&](int64_t i) {
    SpecializationOptions specialization;
    specialization.b = options.batchOffset + i / numH;
    specialization.h = options.headOffset + i % numH;
    specialization.positions = positions;
    specialization.summaries = summaries;
    specialization.declarations = options.declarations;
    all[i] = specialize(tape, bindings, specialization);
    // An assumption is a predicate of its own.
    Tape assumption = assumed.empty() ? Tape() : tape;
    for (int32_t instruction : assumed) {
      assumption.result = instruction;
      allAssumptions[i].push_back(specialize(assumption, bindings, specialization));
    }
  });
  // 2. Equal programs once.
  std::unordered_multimap<uint64_t, int32_t> known;
  std::vector<int32_t> placeOf(all.size(), -1);
  for (size_t i = 0; i < all.size(); ++i) {
    uint64_t hash = hashOf(all[i]);
    auto [begin, end] = known.equal_range(hash);
    for (auto it = begin; it != end && placeOf[i] < 0; ++it)
      if (isSameProgram(programs_[it->second], all[i]) && std::equal(allAssumptions[i].begin(), allAssumptions[i].end(),
                                                                     assumptions_[it->second].begin(), isSameProgram))
        placeOf[i] = it->second;
    if (placeOf[i] >= 0)
      continue;
    placeOf[i] = static_cast<int32_t>(programs_.size());
    known.emplace(hash, placeOf[i]);
    programs_.push_back(std::move(all[i]));
    assumptions_.push_back(std::move(allAssumptions[i]));
  }
  programOf_.resize(options.batch * options.heads);
  for (int64_t b = 0; b < options.batch; ++b)
    for (int64_t h = 0; h < options.heads; ++h)
      programOf_[b * options.heads + h] = placeOf[(read & 1 ? b : 0) * numH + (read & 2 ? h : 0)];
}

} // namespace cpflex
