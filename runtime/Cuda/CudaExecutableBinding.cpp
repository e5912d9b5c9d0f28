// Binding a problem: checking that the program and the device can serve it, and keeping what calls read of it. What
// kernels walk is made in CudaExecutableTables.cpp.
#include "runtime/Cuda/CudaExecutable.h"

#include "runtime/Cuda/DeviceTensor.h"
#include "runtime/Cuda/MaskTables.h"
#include "runtime/contract/CaptureArgument.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

namespace cpflex {
namespace {

/// Positions, rows and work items are 32-bit in kernels; a tile beyond the last row must not wrap.
constexpr int64_t kLengthLimit = std::numeric_limits<int32_t>::max() - 1024;

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

} // namespace

Status CudaExecutable::checkProblem(const AttentionProblem &problem) const {
  CurrentContext current(program_->device());
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaProgramOptions &options = program_->options();
  for (auto [size, name] : {std::pair{problem.batch, "batch"},
                            {problem.qHeads, "number of query heads"},
                            {problem.kvHeads, "number of key heads"}})
    if (size < 1 || size > cuda::kMostBlocksAlongY)
      return Status::invalid(fmt::format("{} is {}; expected 1 to {}", name, size, cuda::kMostBlocksAlongY));
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

void CudaExecutable::keep(const AttentionProblem &problem) {
  problem_ = problem;
  problem_.mask = nullptr;
  problem_.bindings = nullptr;
  problem_.functions = nullptr;
}

StatusOr<std::shared_ptr<CudaExecutable>> CudaExecutable::bind(std::shared_ptr<const CudaProgram> program,
                                                               const AttentionProblem &problem, cuda::Stream stream,
                                                               std::span<const CudaUpload> uploads) {
  CudaRange range(program->device().driver(), "cpflex bind");
  auto executable = std::shared_ptr<CudaExecutable>(new CudaExecutable(std::move(program)));
  for (const LoadedKernel &kernel : executable->program_->kernels())
    if (walksTiles(kernel.spec().role))
      executable->tables_.push_back({.kernel = &kernel});
  CPFLEX_RETURN_IF_ERROR(executable->checkProblem(problem));
  executable->keep(problem);
  CPFLEX_RETURN_IF_ERROR(executable->upload(problem, stream, uploads, Upload::First));
  executable->packCaptures(problem);
  CPFLEX_RETURN_IF_ERROR(executable->fillWords(stream));
  return executable;
}

Status CudaExecutable::update(const AttentionProblem &problem, cuda::Stream stream,
                              std::span<const CudaUpload> uploads) {
  CudaRange range(program_->device().driver(), "cpflex update");
  CPFLEX_RETURN_IF_ERROR(checkProblem(problem));
  if (problem.batch != problem_.batch || problem.qHeads != problem_.qHeads || problem.kvHeads != problem_.kvHeads ||
      problem.qLen != problem_.qLen || problem.kvLen != problem_.kvLen)
    return Status::invalid("the problem has other sizes than the one bound first; make a new executable for it");
  CPFLEX_RETURN_IF_ERROR(upload(problem, stream, uploads, Upload::Again));
  keep(problem);
  packCaptures(problem);
  return fillWords(stream);
}

} // namespace cpflex
