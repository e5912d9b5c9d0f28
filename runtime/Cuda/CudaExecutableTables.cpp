// The tables of a bound problem: what kernels walk, made on the host from the block mask and the positions, in device
// memory that keeps room for masks to come; and the partial tiles that are decided ahead.
#include "runtime/Cuda/CudaExecutable.h"

#include "runtime/Cuda/MaskTables.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <span>

namespace cpflex {
namespace {

constexpr int64_t kTableAlignment = 256;
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

template <typename T> std::span<const std::byte> bytesOf(const std::vector<T> &values) {
  return std::as_bytes(std::span<const T>(values));
}

} // namespace

/// What is uploaded for one kernel, on the host.
struct CudaExecutable::HostKernelTables {
  MaskTables mask;
  MaskTables turns; ///< the same with rows along q, for a kernel that sharesSums()
  bool hasMask = false;
  std::vector<AffineTile> qTiles, kvTiles;
};

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
  std::vector<HostKernelTables> kernels;
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
    const HostKernelTables &tables = kernels[kernel];
    switch (index % NumPerKernel) {
    case RowBegin: return bytesOf(tables.mask.rowBegin);
    case Runs: return bytesOf(tables.mask.runs);
    case RowSetOf: return bytesOf(tables.mask.rowSetOf);
    case RowOrder: return bytesOf(tables.mask.rowOrder);
    case WordsOf: return bytesOf(tables.mask.wordsOf);
    case WordPairs: return bytesOf(tables.mask.wordPairs);
    case TurnRowBegin: return bytesOf(tables.turns.rowBegin);
    case TurnRuns: return bytesOf(tables.turns.runs);
    case QTiles: return bytesOf(tables.qTiles);
    default: return bytesOf(tables.kvTiles);
    }
  }
};

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

int64_t CudaExecutable::sizeInBytes() const {
  int64_t size = memory_.sizeInBytes();
  for (const Words &words : words_)
    size += words.memory.sizeInBytes();
  return size;
}

/// Decides the partial tiles of each kernel that does not do so itself, on `stream`, from what is uploaded and bound.
Status CudaExecutable::fillWords(cuda::Stream stream) const {
  const CudaDevice &device = program_->device();
  const CudaDriver &driver = device.driver();
  CurrentContext current(device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  auto fill = [&](auto arguments, const KernelTables &tables) {
    fillProblem(arguments);
    arguments.qPositions = tables.qPositions, arguments.kvPositions = tables.kvPositions;
    arguments.mask = tables.mask;
    const int32_t *pairOf = tables.wordPairs;
    int numSets = tables.numWordSets;
    void *parameters[] = {&arguments, const_cast<long long *>(captures_.data()), &pairOf, &numSets};
    const LoadedKernel &kernel = *program_->kernel(wordsRole(tables.kernel->spec().role));
    auto gridY = static_cast<unsigned>(std::min<int64_t>(numSets, cuda::kMostBlocksAlongY));
    auto blockX = static_cast<unsigned>(kernel.tiles().threads);
    return driver.status(driver.launchKernel(kernel.function(), static_cast<unsigned>(tables.work.numRows), gridY, 1,
                                             blockX, 1, 1, 0, stream, parameters, nullptr),
                         fmt::format("cuLaunchKernel of '{}'", kernelFunctionName(kernel.spec().role)));
  };
  for (const KernelTables &tables : tables_) {
    if (!tables.mask.words || tables.numWordSets == 0 || tables.work.numRows == 0)
      continue;
    CPFLEX_RETURN_IF_ERROR(tables.kernel->spec().role == KernelRole::Forward ? fill(ForwardArguments{}, tables)
                                                                             : fill(BackwardArguments{}, tables));
  }
  return uploaded_.record(stream);
}

std::byte *CudaExecutable::array(size_t section) const {
  return static_cast<std::byte *>(memory_.data()) + sections_[section].offset;
}

void CudaExecutable::setMask(KernelTables &tables, size_t kernelIndex, const HostTables &host) const {
  const HostKernelTables &kernel = host.kernels[kernelIndex];
  const size_t first = kernelIndex * HostTables::NumPerKernel;
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
  if (sharesSums(tables.kernel->spec()))
    tables.turns = ofMask(kernel.turns, HostTables::TurnRowBegin, HostTables::TurnRuns);
  tables.work.rowOrder = reinterpret_cast<int *>(array(first + HostTables::RowOrder));
  if (const Words &words = words_[kernelIndex]; words.capacityInTiles > 0) {
    tables.mask.words = static_cast<unsigned int *>(words.memory.data());
    tables.mask.classes =
        static_cast<unsigned char *>(words.memory.data()) + words.capacityInTiles * wordsPerTileInBytes(*tables.kernel);
    tables.mask.wordsOf = reinterpret_cast<int *>(array(first + HostTables::WordsOf));
    tables.wordPairs = reinterpret_cast<int32_t *>(array(first + HostTables::WordPairs));
    tables.numWordSets = kernel.mask.numWordSets;
  }
}

/// How many heads' items of a kernel follow each other before those of the next heads; see WorkArgument::groupHeads.
int CudaExecutable::groupHeads(const KernelTables &tables, const HostKernelTables &kernel) const {
  const AttentionProblem &problem = problem_;
  const KernelSpec &spec = tables.kernel->spec();
  const CudaDeviceDescription &device = program_->device().description();
  const bool isAlongQ = kernelRows(spec.role) == KernelRows::Q;
  // What one key head's group of items reads again and again should fit half of the L2 cache.
  int64_t headsPerKV = problem.qHeads / problem.kvHeads;
  int64_t rowBytes = 2 * (problem.headDim + problem.vHeadDim);
  if (sharesSums(spec))
    rowBytes += static_cast<int64_t>(sizeof(float)) * problem.headDim;
  int64_t groupBytes = std::max<int64_t>(rowBytes * (isAlongQ ? problem.kvLen : problem.qLen * headsPerKV), 1);
  int64_t numPairs = problem.batch * problem.kvHeads;
  int64_t keyHeads = std::clamp<int64_t>(device.l2CacheInBytes / 2 / groupBytes, 1, numPairs);
  if (sharesSums(spec)) {
    // Rows wait for each other: the others of a group should take a few times as long as its longest.
    constexpr int64_t kLongestRows = 2;
    int64_t numTiles = ceilDivide(problem.qLen, tables.kernel->tiles().tileQ);
    int64_t longest = kernel.hasMask ? kernel.mask.longestRow : numTiles;
    int64_t perHead = kernel.hasMask ? kernel.mask.tilesPerHead : numTiles * tables.work.numRows;
    int64_t enough = ceilDivide(kLongestRows * longest * device.numProcessors, std::max<int64_t>(perHead, 1));
    int64_t numGroups = std::max<int64_t>(numPairs / std::max(enough, keyHeads), 1);
    keyHeads = ceilDivide(numPairs, numGroups);
  }
  return static_cast<int>(keyHeads * (isAlongQ ? headsPerKV : workItemsPerRow(spec)));
}

CudaExecutable::KernelTables CudaExecutable::tablesFor(size_t kernelIndex, const HostTables &host) const {
  const HostKernelTables &kernel = host.kernels[kernelIndex];
  KernelTables tables{.kernel = tables_[kernelIndex].kernel};
  const TileConfig &config = tables.kernel->tiles();
  tables.mask.rowTilesPerMaskTile = tables.mask.colTilesPerMaskTile = 1;
  tables.turns = tables.mask;
  if (kernel.hasMask)
    setMask(tables, kernelIndex, host);
  tables.work.numRows = static_cast<int>(kernelRows(tables.kernel->spec().role) == KernelRows::Q
                                             ? ceilDivide(problem_.qLen, config.tileQ)
                                             : ceilDivide(problem_.kvLen, config.tileKV));
  tables.work.groupHeads = groupHeads(tables, kernel);
  tables.walksDown = !kernel.hasMask || kernel.mask.walksDown;

  const size_t first = kernelIndex * HostTables::NumPerKernel, rows = host.kernels.size() * HostTables::NumPerKernel;
  tables.qPositions = {reinterpret_cast<AffineTile *>(array(first + HostTables::QTiles)),
                       reinterpret_cast<int *>(array(rows))};
  tables.kvPositions = {reinterpret_cast<AffineTile *>(array(first + HostTables::KVTiles)),
                        reinterpret_cast<int *>(array(rows + 1))};
  return tables;
}

int64_t CudaExecutable::mostWordTiles(size_t kernelIndex, Upload kind) const {
  if (kind == Upload::Again)
    return words_[kernelIndex].capacityInTiles;
  const LoadedKernel &kernel = *tables_[kernelIndex].kernel;
  return readsWords(kernel.spec()) ? kWordsLimitInBytes / 2 / wordsPerTileInBytes(kernel) : 0;
}

Status CudaExecutable::addMask(HostKernelTables &kernel, size_t kernelIndex, const AttentionProblem &problem,
                               Upload kind) const {
  const KernelSpec &spec = tables_[kernelIndex].kernel->spec();
  const TileConfig &config = tables_[kernelIndex].kernel->tiles();
  const DeviceFunctions &functions = program_->functions();
  const WordSets words{.perBatch = functions.maskReadsBatch,
                       .perHead = functions.maskReadsHead,
                       .maxTiles = mostWordTiles(kernelIndex, kind)};
  kernel.hasMask = true;
  kernel.mask = maskTables(*problem.mask, kernelRows(spec.role), config.tileQ, config.tileKV, problem.batch,
                           problem.qHeads, words, sharesSums(spec) ? QuerySums::Shared : QuerySums::None);
  if (kind == Upload::Again && words.maxTiles > 0 && kernel.mask.wordsOf.empty())
    return Status::invalid(fmt::format("the block mask has more partial tiles than the {} for which memory was "
                                       "reserved; make a new executable for it",
                                       words.maxTiles));
  if (sharesSums(spec))
    kernel.turns = maskTables(*problem.mask, KernelRows::Q, config.tileQ, config.tileKV, problem.batch, problem.qHeads);
  return Status::ok();
}

StatusOr<CudaExecutable::HostTables> CudaExecutable::hostTables(const AttentionProblem &problem, Upload kind) const {
  HostTables host;
  const PositionMode mode = program_->options().positions;
  for (size_t i = 0; i < tables_.size(); ++i) {
    HostKernelTables &kernel = host.kernels.emplace_back();
    if (problem.mask)
      CPFLEX_RETURN_IF_ERROR(addMask(kernel, i, problem, kind));
    if (mode == PositionMode::AffinePerTile) {
      const TileConfig &config = tables_[i].kernel->tiles();
      kernel.qTiles = affineTiles(problem.qPositions, problem.qLen, config.tileQ);
      kernel.kvTiles = affineTiles(problem.kvPositions, problem.kvLen, config.tileKV);
    }
  }
  if (mode == PositionMode::Array) {
    host.qRows = rowPositions(problem.qPositions, problem.qLen);
    host.kvRows = rowPositions(problem.kvPositions, problem.kvLen);
  }
  if (int numParams = program_->functions().numParams; numParams > 0)
    host.params.assign(problem.bindings->params, problem.bindings->params + numParams);
  return host;
}

Status CudaExecutable::replaceTables(const HostTables &host, Upload kind) {
  for (size_t i = 0; i < host.numSections(); ++i)
    if (static_cast<int64_t>(host.section(i).size()) > sections_[i].capacityInBytes)
      return Status::invalid(
          fmt::format("the block mask needs {} bytes where {} were reserved; make a new executable for it",
                      host.section(i).size(), sections_[i].capacityInBytes));
  std::vector<KernelTables> replaced;
  for (size_t i = 0; i < tables_.size(); ++i) {
    replaced.push_back(tablesFor(i, host));
    const MaskArgument &mask = replaced[i].mask, &before = tables_[i].mask;
    bool isSame = mask.runs == before.runs && mask.numRows == before.numRows &&
                  mask.rowTilesPerMaskTile == before.rowTilesPerMaskTile &&
                  mask.colTilesPerMaskTile == before.colTilesPerMaskTile;
    if (kind == Upload::Again && !isSame)
      return Status::invalid("the block mask has other tiles than the one bound first; make a new executable for it");
  }
  tables_ = std::move(replaced);
  return Status::ok();
}

Status CudaExecutable::copyArrays(std::span<const CudaUpload> arrays, cuda::Stream stream) const {
  CurrentContext current(program_->device());
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = program_->device().driver();
  for (const CudaUpload &array : arrays)
    CPFLEX_RETURN_IF_ERROR(
        driver.status(driver.memcpyHtoDAsync(array.to, array.from, static_cast<size_t>(array.sizeInBytes), stream),
                      "cuMemcpyHtoDAsync"));
  return Status::ok();
}

Status CudaExecutable::copyTables(const HostTables &host, cuda::Stream stream) {
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

Status CudaExecutable::upload(const AttentionProblem &problem, cuda::Stream stream, std::span<const CudaUpload> arrays,
                              Upload kind) {
  StatusOr<HostTables> host = hostTables(problem, kind);
  if (!host)
    return host.status();
  if (kind == Upload::First)
    CPFLEX_RETURN_IF_ERROR(reserve(*host));
  CPFLEX_RETURN_IF_ERROR(replaceTables(*host, kind));
  // The staging memory is free again once the upload before has run.
  if (kind == Upload::Again)
    CPFLEX_RETURN_IF_ERROR(waitForUploads());
  CPFLEX_RETURN_IF_ERROR(copyArrays(arrays, stream));
  return copyTables(*host, stream);
}

} // namespace cpflex
