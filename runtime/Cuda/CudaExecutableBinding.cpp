// Binding a problem: checking it, and uploading the tables that kernels walk.
#include "runtime/Cuda/CudaExecutable.h"

#include "runtime/Cuda/DeviceTensor.h"
#include "runtime/Cuda/MaskTables.h"
#include "runtime/contract/CaptureArgument.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>

namespace cpflex {
namespace {

constexpr int64_t kTableAlignment = 256;
/// Positions, rows and work items are 32-bit in kernels; a tile beyond the last row must not wrap.
constexpr int64_t kLengthLimit = std::numeric_limits<int32_t>::max() - 1024;
constexpr int64_t kGridLimit = 65535;
/// Memory that the decided pairs of partial tiles may take for one kernel, half of it for masks to come.
constexpr int64_t kWordsLimitInBytes = int64_t(128) << 20;
/// Of a mask whose first version has few partial tiles.
constexpr int64_t kFewestWordTiles = 64;

int64_t roundUp(int64_t value, int64_t multiple) { return ceilDivide(value, multiple) * multiple; }

/// Of one partial tile: two words per thread that owns rows of it.
int64_t wordsPerTileInBytes(const LoadedKernel &kernel) {
  return int64_t(wordsThreads(kernel.spec(), kernel.tiles())) * 2 * static_cast<int64_t>(sizeof(uint32_t));
}

std::vector<AffineTile> affineTiles(const PositionMap &map, int64_t length, int64_t tileSize) {
  std::vector<AffineTile> tiles;
  PositionMap identity = PositionMap::identity(length);
  const std::vector<AffinePiece> &pieces = map.pieces.empty() ? identity.pieces : map.pieces;
  int64_t pieceBegin = 0;
  for (const AffinePiece &piece : pieces) {
    for (int64_t row = roundUp(pieceBegin, tileSize); row < pieceBegin + piece.count; row += tileSize)
      tiles.push_back({static_cast<int>(piece.begin + (row - pieceBegin) * piece.step), static_cast<int>(piece.step)});
    pieceBegin += piece.count;
  }
  return tiles;
}

std::vector<int32_t> rowPositions(const PositionMap &map, int64_t length) {
  std::vector<int32_t> rows;
  PositionMap identity = PositionMap::identity(length);
  for (const AffinePiece &piece : map.pieces.empty() ? identity.pieces : map.pieces)
    for (int64_t i = 0; i < piece.count; ++i)
      rows.push_back(static_cast<int32_t>(piece.begin + i * piece.step));
  return rows;
}

Status checkPositions(const PositionMap &map, int64_t length, std::string_view name) {
  if (map.pieces.empty())
    return Status::ok();
  if (map.size() != length)
    return Status::invalid(fmt::format("positions of '{}' cover {} rows; expected {}", name, map.size(), length));
  for (const AffinePiece &piece : map.pieces)
    if (piece.begin < 0 || piece.step < 1 ||
        (piece.count > 0 && piece.begin + (piece.count - 1) * piece.step > kLengthLimit))
      return Status::invalid(
          fmt::format("positions of '{}' begin at {} and step by {}; expected positions from 0 to {}", name,
                      piece.begin, piece.step, kLengthLimit));
  return Status::ok();
}

template <typename T> std::span<const std::byte> bytesOf(const std::vector<T> &values) {
  return std::as_bytes(std::span<const T>(values));
}

} // namespace

/// Everything that is uploaded for a problem, on the host. Sections: ten per kernel, the two row arrays, params.
struct CudaExecutable::HostTables {
  enum Section {
    RowBegin,
    Runs,
    RowSetOf,
    RowOrder,
    WordsOf,
    WordPairs,
    TurnRowBegin,
    TurnRuns,
    QTiles,
    KVTiles,
    NumPerKernel
  };
  struct Kernel {
    MaskTables mask;
    MaskTables turns; ///< the same with rows along q, for a kernel that sharesSums()
    bool hasMask = false;
    std::vector<AffineTile> qTiles, kvTiles;
  };
  std::vector<Kernel> kernels;
  std::vector<int32_t> qRows, kvRows;
  std::vector<ScalarSlot> params;

  size_t paramsSection() const { return kernels.size() * NumPerKernel + 2; }
  size_t numSections() const { return paramsSection() + 1; }
  std::span<const std::byte> section(size_t index) const {
    if (index == paramsSection())
      return bytesOf(params);
    size_t kernel = index / NumPerKernel;
    if (kernel == kernels.size())
      return bytesOf(index % NumPerKernel == 0 ? qRows : kvRows);
    const Kernel &tables = kernels[kernel];
    switch (index % NumPerKernel) {
    case RowBegin:
      return bytesOf(tables.mask.rowBegin);
    case Runs:
      return bytesOf(tables.mask.runs);
    case RowSetOf:
      return bytesOf(tables.mask.rowSetOf);
    case RowOrder:
      return bytesOf(tables.mask.rowOrder);
    case WordsOf:
      return bytesOf(tables.mask.wordsOf);
    case WordPairs:
      return bytesOf(tables.mask.wordPairs);
    case TurnRowBegin:
      return bytesOf(tables.turns.rowBegin);
    case TurnRuns:
      return bytesOf(tables.turns.runs);
    case QTiles:
      return bytesOf(tables.qTiles);
    default:
      return bytesOf(tables.kvTiles);
    }
  }
};

Status CudaExecutable::checkProblem(const AttentionProblem &problem) const {
  CurrentContext current(program_->device());
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaProgramOptions &options = program_->options();
  for (auto [size, name] : {std::pair{problem.batch, "batch"},
                            {problem.qHeads, "number of query heads"},
                            {problem.kvHeads, "number of key heads"}})
    if (size < 1 || size > kGridLimit)
      return Status::invalid(fmt::format("{} is {}; expected 1 to {}", name, size, kGridLimit));
  if (problem.qHeads % problem.kvHeads != 0)
    return Status::invalid(
        fmt::format("{} query heads over {} key heads; expected a multiple", problem.qHeads, problem.kvHeads));
  for (auto [length, name] : {std::pair{problem.qLen, "q"}, {problem.kvLen, "kv"}})
    if (length < 0 || length > kLengthLimit)
      return Status::invalid(fmt::format("length of '{}' is {}; expected 0 to {}", name, length, kLengthLimit));
  if (problem.headDim != options.headDim || problem.vHeadDim != options.vHeadDim)
    return Status::invalid(fmt::format("head sizes are {} and {}; the program was compiled for {} and {}",
                                       problem.headDim, problem.vHeadDim, options.headDim, options.vHeadDim));
  if (problem.normalization != options.normalization)
    return Status::invalid("the problem and the compiled program differ in whether there is a softmax");
  if (problem.sink && options.normalization == AttentionProblem::Normalization::None)
    return Status::invalid("a sink was given; a program without softmax has none");
  CPFLEX_RETURN_IF_ERROR(checkPositions(problem.qPositions, problem.qLen, "q"));
  CPFLEX_RETURN_IF_ERROR(checkPositions(problem.kvPositions, problem.kvLen, "kv"));
  std::vector<TileConfig> tiles;
  for (const KernelTables &tables : tables_)
    tiles.push_back(tables.kernel->tiles());
  if (positionMode(problem, tiles) > options.positions)
    return Status::invalid(
        "the positions of the rows are less regular than the program was compiled for; compile it with "
        "the mode that positionMode() gives");
  const DeviceFunctions &functions = program_->functions();
  bool needsBindings = functions.numCaptures + functions.numParams > 0;
  if (needsBindings && !problem.bindings)
    return Status::invalid(fmt::format("the program has {} captures and {} parameters; none are bound",
                                       functions.numCaptures, functions.numParams));
  for (int i = 0; i < functions.numCaptures; ++i) {
    const CaptureView &capture = problem.bindings->captures[i];
    bool isEmpty = std::ranges::count(capture.shape, capture.shape + capture.rank, 0) > 0;
    if (!isEmpty)
      CPFLEX_RETURN_IF_ERROR(checkPlace(captureName(i), capture.data, program_->device()));
  }
  if (problem.sink)
    CPFLEX_RETURN_IF_ERROR(checkPlace("the array of sinks", problem.sink, program_->device()));
  if (const BlockMask *mask = problem.mask) {
    if (mask->qLen != problem.qLen || mask->kvLen != problem.kvLen)
      return Status::invalid(fmt::format("the block mask is for {} x {} rows; expected {} x {}", mask->qLen,
                                         mask->kvLen, problem.qLen, problem.kvLen));
    if ((mask->batch != 1 && mask->batch != problem.batch) || (mask->heads != 1 && mask->heads != problem.qHeads))
      return Status::invalid(fmt::format("the block mask has batch {} and {} heads; expected 1 or {}, and 1 or {}",
                                         mask->batch, mask->heads, problem.batch, problem.qHeads));
    if (!functions.hasMask && hasPartialTiles(*mask))
      return Status::invalid("the block mask has partial tiles, but the program has no mask to decide them");
  }
  for (const KernelTables &tables : tables_) {
    const TileConfig &config = tables.kernel->tiles();
    int64_t rows = kernelRows(tables.kernel->spec().role) == KernelRows::Q ? ceilDivide(problem.qLen, config.tileQ)
                                                                           : ceilDivide(problem.kvLen, config.tileKV);
    int64_t items = rows * problem.batch * problem.qHeads * workItemsPerRow(tables.kernel->spec());
    if (items > kLengthLimit)
      return Status::invalid(fmt::format("the problem has {} rows of tiles; expected at most {}", items, kLengthLimit));
  }
  return Status::ok();
}

std::string CudaExecutable::captureName(int slot) const {
  const std::vector<std::string> &names = program_->functions().captureNames;
  return static_cast<size_t>(slot) < names.size() ? fmt::format("array '{}'", names[slot])
                                                  : fmt::format("capture {}", slot);
}

void CudaExecutable::packCaptures(const AttentionProblem &problem) {
  const DeviceFunctions &functions = program_->functions();
  captures_.assign(program_->capturesInBytes() / sizeof(long long), 0);
  captureRanks_.clear();
  long long *next = captures_.data();
  for (int i = 0; i < functions.numCaptures; ++i) {
    const CaptureView &view = problem.bindings->captures[i];
    captureRanks_.push_back(view.rank);
    CaptureArgument capture{.data = view.data, .shape = {}, .strides = {}};
    std::copy_n(view.shape, kMaxCaptureRank, capture.shape);
    std::copy_n(view.strides, kMaxCaptureRank, capture.strides);
    std::memcpy(next, &capture, sizeof(capture));
    next += sizeof(capture) / sizeof(long long);
  }
  if (functions.numParams > 0)
    *next++ = static_cast<long long>(memory_.address()) + sections_.back().offset;
  if (problem.bindings && problem.bindings->dims) {
    std::copy_n(problem.bindings->dims, functions.numDims, next);
    return;
  }
  const int64_t builtin[kNumBuiltinDims] = {problem.batch, problem.qHeads, problem.kvHeads, problem.qLen,
                                            problem.kvLen};
  std::copy_n(builtin, std::min<int>(kNumBuiltinDims, functions.numDims), next);
}

Status CudaExecutable::reserve(const HostTables &host) {
  int64_t total = 0;
  for (size_t i = 0; i < host.numSections(); ++i) {
    auto bytes = static_cast<int64_t>(host.section(i).size());
    bool isOfMask =
        i / HostTables::NumPerKernel < host.kernels.size() && host.kernels[i / HostTables::NumPerKernel].hasMask;
    size_t kind = i % HostTables::NumPerKernel;
    bool mayGrow = isOfMask && (kind == HostTables::Runs || kind == HostTables::RowBegin ||
                                kind == HostTables::TurnRuns || kind == HostTables::TurnRowBegin);
    int64_t capacity = roundUp(mayGrow ? 2 * bytes + kTableAlignment : bytes, kTableAlignment);
    sections_.push_back({total, capacity});
    total += capacity;
  }
  StatusOr<CudaBuffer> memory = CudaBuffer::allocate(program_->sharedDevice(), total);
  if (!memory)
    return memory.status();
  memory_ = std::move(*memory);
  StatusOr<PinnedBuffer> staging = PinnedBuffer::allocate(program_->sharedDevice(), total);
  if (!staging)
    return staging.status();
  staging_ = std::move(*staging);
  StatusOr<CudaEvent> event = CudaEvent::create(program_->sharedDevice(), CudaEvent::Timing::Off);
  if (!event)
    return event.status();
  uploaded_ = std::move(*event);
  return reserveWords(host);
}

Status CudaExecutable::reserveWords(const HostTables &host) {
  for (size_t i = 0; i < tables_.size(); ++i) {
    Words &words = words_.emplace_back();
    const MaskTables &mask = host.kernels[i].mask;
    if (mask.wordsOf.empty())
      continue;
    words.capacityInTiles = std::max(2 * mask.numWordTiles, kFewestWordTiles);
    StatusOr<CudaBuffer> memory = CudaBuffer::allocate(
        program_->sharedDevice(), words.capacityInTiles * (wordsPerTileInBytes(*tables_[i].kernel) + 1));
    if (!memory) {
      // The kernel then decides the tiles itself.
      words.capacityInTiles = 0;
      if (memory.status().code() != StatusCode::OutOfMemory)
        return memory.status();
      continue;
    }
    words.memory = std::move(*memory);
  }
  return Status::ok();
}

/// Decides the partial tiles of each kernel that does not do so itself, on `stream`, from what is uploaded and bound.
Status CudaExecutable::fillWords(cuda::Stream stream) const {
  const CudaDevice &device = program_->device();
  const CudaDriver &driver = device.driver();
  CurrentContext current(device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  auto fill = [&](auto arguments, const KernelTables &tables) {
    arguments.batch = static_cast<int>(problem_.batch), arguments.qHeads = static_cast<int>(problem_.qHeads);
    arguments.kvHeads = static_cast<int>(problem_.kvHeads);
    arguments.qLen = static_cast<int>(problem_.qLen), arguments.kvLen = static_cast<int>(problem_.kvLen);
    arguments.batchOffset = static_cast<int>(problem_.batchOffset);
    arguments.headOffset = static_cast<int>(problem_.headOffset);
    arguments.qPositions = tables.qPositions, arguments.kvPositions = tables.kvPositions;
    arguments.mask = tables.mask;
    const int32_t *pairOf = tables.wordPairs;
    int numSets = tables.numWordSets;
    void *parameters[] = {&arguments, const_cast<long long *>(captures_.data()), &pairOf, &numSets};
    const LoadedKernel &kernel = *tables.kernel;
    return driver.status(driver.launchKernel(kernel.wordsFunction(), static_cast<unsigned>(tables.work.numRows),
                                             static_cast<unsigned>(std::min<int64_t>(numSets, kGridLimit)), 1,
                                             static_cast<unsigned>(wordsThreads(kernel.spec(), kernel.tiles())), 1, 1,
                                             0, stream, parameters, nullptr),
                         fmt::format("cuLaunchKernel of '{}'", wordsFunctionName(kernel.spec().role)));
  };
  for (const KernelTables &tables : tables_) {
    if (!tables.mask.words || tables.numWordSets == 0 || tables.work.numRows == 0)
      continue;
    CPFLEX_RETURN_IF_ERROR(tables.kernel->spec().role == KernelRole::Forward ? fill(ForwardArguments{}, tables)
                                                                             : fill(BackwardArguments{}, tables));
  }
  return uploaded_.record(stream);
}

void CudaExecutable::setTables(KernelTables &tables, size_t kernelIndex, const HostTables &host) const {
  const HostTables::Kernel &kernel = host.kernels[kernelIndex];
  auto array = [&](size_t section) { return static_cast<std::byte *>(memory_.data()) + sections_[section].offset; };
  size_t first = kernelIndex * HostTables::NumPerKernel, rows = host.kernels.size() * HostTables::NumPerKernel;
  const AttentionProblem &problem = problem_;
  const KernelSpec &spec = tables.kernel->spec();
  const TileConfig &config = tables.kernel->tiles();
  bool isAlongQ = kernelRows(spec.role) == KernelRows::Q;

  tables.mask = {};
  tables.mask.rowTilesPerMaskTile = tables.mask.colTilesPerMaskTile = 1;
  tables.turns = tables.mask;
  tables.work = {.rowOrder = nullptr, .counter = nullptr, .numRows = 0, .groupHeads = 1};
  if (kernel.hasMask) {
    auto ofMask = [&](const MaskTables &from, size_t rowBegin, size_t runs) {
      MaskArgument mask{};
      mask.rowBegin = reinterpret_cast<int *>(array(first + rowBegin));
      mask.runs = reinterpret_cast<RunArgument *>(array(first + runs));
      mask.rowSetOf = reinterpret_cast<int *>(array(first + HostTables::RowSetOf));
      mask.numRows = from.numRows;
      mask.rowTilesPerMaskTile = from.rowTilesPerMaskTile;
      mask.colTilesPerMaskTile = from.colTilesPerMaskTile;
      return mask;
    };
    tables.mask = ofMask(kernel.mask, HostTables::RowBegin, HostTables::Runs);
    if (sharesSums(spec))
      tables.turns = ofMask(kernel.turns, HostTables::TurnRowBegin, HostTables::TurnRuns);
    tables.work.rowOrder = reinterpret_cast<int *>(array(first + HostTables::RowOrder));
    if (const Words &words = words_[kernelIndex]; words.capacityInTiles > 0) {
      tables.mask.words = static_cast<unsigned int *>(words.memory.data());
      tables.mask.classes = static_cast<unsigned char *>(words.memory.data()) +
                            words.capacityInTiles * wordsPerTileInBytes(*tables.kernel);
      tables.mask.wordsOf = reinterpret_cast<int *>(array(first + HostTables::WordsOf));
      tables.wordPairs = reinterpret_cast<int32_t *>(array(first + HostTables::WordPairs));
      tables.numWordSets = kernel.mask.numWordSets;
    }
  }
  tables.work.numRows =
      static_cast<int>(isAlongQ ? ceilDivide(problem.qLen, config.tileQ) : ceilDivide(problem.kvLen, config.tileKV));

  // What one key head's group of items reads again and again should fit half of the L2 cache.
  int64_t headsPerKV = problem.qHeads / problem.kvHeads;
  int64_t rowBytes = 2 * (problem.headDim + problem.vHeadDim);
  bool addsSums = spec.role == KernelRole::BackwardKV && sharesSums(spec);
  if (addsSums)
    rowBytes += static_cast<int64_t>(sizeof(float)) * problem.headDim;
  int64_t groupBytes = std::max<int64_t>(rowBytes * (isAlongQ ? problem.kvLen : problem.qLen * headsPerKV), 1);
  int64_t keyHeads = std::clamp<int64_t>(program_->device().description().l2CacheInBytes / 2 / groupBytes, 1,
                                         problem.batch * problem.kvHeads);
  if (addsSums) {
    // Rows wait for each other: the others of a group should take a few times as long as its longest.
    constexpr int64_t kLongestRows = 2;
    int64_t numTiles = ceilDivide(problem.qLen, config.tileQ), numPairs = problem.batch * problem.kvHeads;
    int64_t longest = kernel.hasMask ? kernel.mask.longestRow : numTiles;
    int64_t perHead = kernel.hasMask ? kernel.mask.tilesPerHead : numTiles * tables.work.numRows;
    int64_t processors = program_->device().description().numProcessors;
    int64_t enough = ceilDivide(kLongestRows * longest * processors, std::max<int64_t>(perHead, 1));
    int64_t numGroups = std::max<int64_t>(numPairs / std::max(enough, keyHeads), 1);
    keyHeads = ceilDivide(numPairs, numGroups);
    tables.walksDown = !kernel.hasMask || kernel.mask.walksDown;
  }
  tables.work.groupHeads = static_cast<int>(keyHeads * (isAlongQ ? headsPerKV : workItemsPerRow(spec)));

  tables.qPositions = {reinterpret_cast<AffineTile *>(array(first + HostTables::QTiles)),
                       reinterpret_cast<int *>(array(rows))};
  tables.kvPositions = {reinterpret_cast<AffineTile *>(array(first + HostTables::KVTiles)),
                        reinterpret_cast<int *>(array(rows + 1))};
}

Status CudaExecutable::upload(const AttentionProblem &problem, cuda::Stream stream, Upload kind) {
  HostTables host;
  PositionMode mode = program_->options().positions;
  for (const KernelTables &tables : tables_) {
    HostTables::Kernel kernel;
    const TileConfig &config = tables.kernel->tiles();
    if (problem.mask) {
      kernel.hasMask = true;
      const KernelSpec &spec = tables.kernel->spec();
      const DeviceFunctions &functions = program_->functions();
      WordSets words{.perBatch = functions.maskReadsBatch, .perHead = functions.maskReadsHead, .maxTiles = 0};
      if (kind == Upload::Again)
        words.maxTiles = words_[host.kernels.size()].capacityInTiles;
      else if (decidesTiles(spec))
        words.maxTiles = kWordsLimitInBytes / 2 / wordsPerTileInBytes(*tables.kernel);
      kernel.mask = maskTables(*problem.mask, kernelRows(spec.role), config.tileQ, config.tileKV, problem.batch,
                               problem.qHeads, words, sharesSums(spec) ? QuerySums::Shared : QuerySums::None);
      if (kind == Upload::Again && words.maxTiles > 0 && kernel.mask.wordsOf.empty())
        return Status::invalid(fmt::format("the block mask has more partial tiles than the {} for which memory was "
                                           "reserved; bind anew",
                                           words.maxTiles));
      if (sharesSums(spec))
        kernel.turns =
            maskTables(*problem.mask, KernelRows::Q, config.tileQ, config.tileKV, problem.batch, problem.qHeads);
    }
    if (mode == PositionMode::AffinePerTile) {
      kernel.qTiles = affineTiles(problem.qPositions, problem.qLen, config.tileQ);
      kernel.kvTiles = affineTiles(problem.kvPositions, problem.kvLen, config.tileKV);
    }
    host.kernels.push_back(std::move(kernel));
  }
  if (mode == PositionMode::Array) {
    host.qRows = rowPositions(problem.qPositions, problem.qLen);
    host.kvRows = rowPositions(problem.kvPositions, problem.kvLen);
  }

  if (int numParams = program_->functions().numParams; numParams > 0)
    host.params.assign(problem.bindings->params, problem.bindings->params + numParams);

  if (kind == Upload::First)
    CPFLEX_RETURN_IF_ERROR(reserve(host));
  for (size_t i = 0; i < host.numSections(); ++i)
    if (static_cast<int64_t>(host.section(i).size()) > sections_[i].capacityInBytes)
      return Status::invalid(fmt::format("the block mask needs {} bytes where {} were reserved; bind anew",
                                         host.section(i).size(), sections_[i].capacityInBytes));
  std::vector<KernelTables> replaced = tables_;
  for (size_t i = 0; i < tables_.size(); ++i) {
    KernelTables &tables = replaced[i];
    setTables(tables, i, host);
    bool isSame = tables.mask.runs == tables_[i].mask.runs && tables.mask.numRows == tables_[i].mask.numRows &&
                  tables.mask.rowTilesPerMaskTile == tables_[i].mask.rowTilesPerMaskTile &&
                  tables.mask.colTilesPerMaskTile == tables_[i].mask.colTilesPerMaskTile;
    if (kind == Upload::Again && !isSame)
      return Status::invalid("the block mask has other tiles than the one bound first; bind anew");
  }
  tables_ = std::move(replaced);

  // The staging memory is free again once the upload before has run.
  if (kind == Upload::Again)
    CPFLEX_RETURN_IF_ERROR(uploaded_.synchronize());
  CurrentContext current(program_->device());
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = program_->device().driver();
  for (size_t i = 0; i < host.numSections(); ++i) {
    std::span<const std::byte> bytes = host.section(i);
    if (bytes.empty())
      continue;
    std::byte *staged = static_cast<std::byte *>(staging_.data()) + sections_[i].offset;
    std::memcpy(staged, bytes.data(), bytes.size());
    CPFLEX_RETURN_IF_ERROR(
        driver.status(driver.memcpyHtoDAsync(memory_.address() + static_cast<cuda::DeviceAddress>(sections_[i].offset),
                                             staged, bytes.size(), stream),
                      "cuMemcpyHtoDAsync"));
  }
  return Status::ok();
}

StatusOr<std::shared_ptr<CudaExecutable>> CudaExecutable::bind(std::shared_ptr<const CudaProgram> program,
                                                               const AttentionProblem &problem, cuda::Stream stream) {
  CudaRange range(program->device().driver(), "cpflex bind");
  auto executable = std::shared_ptr<CudaExecutable>(new CudaExecutable(std::move(program)));
  for (const LoadedKernel &kernel : executable->program_->kernels())
    if (walksTiles(kernel.spec().role))
      executable->tables_.push_back({.kernel = &kernel});
  CPFLEX_RETURN_IF_ERROR(executable->checkProblem(problem));
  executable->problem_ = problem;
  executable->problem_.mask = nullptr;
  executable->problem_.bindings = nullptr;
  executable->problem_.functions = nullptr;
  CPFLEX_RETURN_IF_ERROR(executable->upload(problem, stream, Upload::First));
  executable->packCaptures(problem);
  CPFLEX_RETURN_IF_ERROR(executable->fillWords(stream));
  return executable;
}

Status CudaExecutable::update(const AttentionProblem &problem, cuda::Stream stream) {
  CudaRange range(program_->device().driver(), "cpflex update");
  CPFLEX_RETURN_IF_ERROR(checkProblem(problem));
  if (problem.batch != problem_.batch || problem.qHeads != problem_.qHeads || problem.kvHeads != problem_.kvHeads ||
      problem.qLen != problem_.qLen || problem.kvLen != problem_.kvLen)
    return Status::invalid("the problem has other sizes than the one bound first; bind anew");
  CPFLEX_RETURN_IF_ERROR(upload(problem, stream, Upload::Again));
  problem_ = problem;
  problem_.mask = nullptr;
  problem_.bindings = nullptr;
  problem_.functions = nullptr;
  packCaptures(problem);
  return fillWords(stream);
}

} // namespace cpflex
