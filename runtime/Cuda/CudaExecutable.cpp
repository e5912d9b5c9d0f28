// Launching the kernels of a bound problem.
#include "runtime/Cuda/CudaExecutable.h"

#include "runtime/Cuda/DeviceTensor.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {
namespace {

constexpr int64_t kWorkspaceAlignment = 256;
int64_t roundUp(int64_t value, int64_t multiple) { return ceilDivide(value, multiple) * multiple; }

/// The counters that the kernels of one pass take work from, at the start of the workspace.
enum Counter { kForwardCounter = 0, kBackwardKVCounter = 0, kBackwardQCounter = 1, kNumCounters = 2 };

Status checkWorkspace(const void *workspace) {
  if (!workspace || reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment != 0)
    return Status::invalid(fmt::format("the workspace is at {}; expected device memory at a multiple of {} bytes",
                                       workspace, kWorkspaceAlignment));
  return Status::ok();
}

} // namespace

/// Backward's workspace: the counters and after them the turns in which dQ is added up, so that one call clears them,
/// then arrays of rows [batch, qHeads, rows rounded up] and the sums of dQ.
struct CudaExecutable::BackwardWorkspace {
  int64_t rows, numTurns, deltaOffset, lseOffset, sumsOffset;
  int64_t accumulatorOffset; ///< the exact sums of captures' gradients come last
};

CudaExecutable::BackwardWorkspace CudaExecutable::backwardWorkspace() const {
  constexpr int64_t kFloatBytes = sizeof(float), kIntBytes = sizeof(int);
  const KernelTables *kvTables = tablesOf(KernelRole::BackwardKV);
  BackwardWorkspace layout{};
  layout.rows = paddedRows(static_cast<int>(problem_.qLen));
  int64_t sumsBytes = 0;
  if (kvTables && sharesSums(kvTables->kernel->spec())) {
    int tileQ = kvTables->kernel->tiles().tileQ;
    layout.numTurns = problem_.batch * problem_.qHeads * ceilDivide(problem_.qLen, tileQ);
    sumsBytes = layout.numTurns * sumsPerTile(tileQ, kvTables->kernel->spec().headDim) * kFloatBytes;
  }
  int64_t rowBytes = roundUp(problem_.batch * problem_.qHeads * layout.rows * kFloatBytes, kWorkspaceAlignment);
  layout.deltaOffset = roundUp((kNumCounters + layout.numTurns) * kIntBytes, kWorkspaceAlignment);
  layout.lseOffset = layout.deltaOffset + rowBytes;
  layout.sumsOffset = layout.lseOffset + rowBytes;
  layout.accumulatorOffset = layout.sumsOffset + sumsBytes;
  return layout;
}

int64_t CudaExecutable::workspaceInBytes(Pass pass) const {
  if (pass == Pass::Forward)
    return kWorkspaceAlignment;
  return backwardWorkspace().accumulatorOffset +
         accumulatorElements() * kAccumulatorWords * static_cast<int64_t>(sizeof(long long));
}

const CudaExecutable::KernelTables *CudaExecutable::tablesOf(KernelRole role) const {
  for (const KernelTables &tables : tables_)
    if (tables.kernel->spec().role == role)
      return &tables;
  return nullptr;
}

Status CudaExecutable::launch(const LoadedKernel &kernel, unsigned gridX, unsigned gridY, unsigned gridZ,
                              void *arguments, void *maps, cuda::Stream stream) const {
  const CudaDriver &driver = program_->device().driver();
  const TileConfig &config = kernel.tiles();
  void *parameters[] = {arguments, const_cast<long long *>(captures_.data()), maps};
  return driver.status(driver.launchKernel(kernel.function(), gridX, gridY, gridZ,
                                           static_cast<unsigned>(config.threads), 1, 1,
                                           static_cast<unsigned>(config.sharedBytes), stream, parameters, nullptr),
                       fmt::format("cuLaunchKernel of '{}'", kernelFunctionName(kernel.spec().role)));
}

Status CudaExecutable::launchTiles(const KernelTables &tables, int64_t numItems, void *arguments, void *maps,
                                   cuda::Stream stream) const {
  int64_t numBlocks =
      int64_t(program_->device().description().numProcessors) * tables.kernel->tiles().blocksPerProcessor;
  auto grid = static_cast<unsigned>(std::min(numItems, numBlocks));
  return grid == 0 ? Status::ok() : launch(*tables.kernel, grid, 1, 1, arguments, maps, stream);
}

Status CudaExecutable::forward(const CudaForwardTensors &tensors, void *workspace, cuda::Stream stream) const {
  const CudaDevice &device = program_->device();
  const CudaDriver &driver = device.driver();
  const AttentionProblem &p = problem_;
  CudaRange range(driver, "cpflex forward");
  const KernelTables *forwardTables = tablesOf(KernelRole::Forward);
  if (!forwardTables)
    return Status::invalid("the program was created without a forward kernel");
  const KernelTables &tables = *forwardTables;
  CurrentContext current(device);
  CPFLEX_RETURN_IF_ERROR(current.status());

  using Use = DeviceTensor::Use;
  ElementType element = program_->options().element;
  ElementType outputType = program_->options().output == OutputForm::F32 ? ElementType::F32 : element;
  std::vector<DeviceTensor> checked = {
      {"q", tensors.q, element, {p.batch, p.qHeads, p.qLen, p.headDim}, Use::Input},
      {"k", tensors.k, element, {p.batch, p.kvHeads, p.kvLen, p.headDim}, Use::Input},
      {"v", tensors.v, element, {p.batch, p.kvHeads, p.kvLen, p.vHeadDim}, Use::Input},
      {"o", tensors.o, outputType, {p.batch, p.qHeads, p.qLen, p.vHeadDim}, Use::Output}};
  if (tensors.lse.data) {
    if (p.normalization == AttentionProblem::Normalization::None)
      return Status::invalid("'lse' was given; a program without softmax has none");
    checked.push_back({"lse", tensors.lse, ElementType::F32, {p.batch, p.qHeads, p.qLen, 1}, Use::Output});
  }
  for (const DeviceTensor &tensor : checked)
    CPFLEX_RETURN_IF_ERROR(checkTensor(tensor, &device));
  CPFLEX_RETURN_IF_ERROR(checkOverlap(checked));
  CPFLEX_RETURN_IF_ERROR(checkWorkspace(workspace));

  auto *counters = static_cast<int *>(workspace);
  ForwardArguments arguments{};
  arguments.q = toTensorArgument(tensors.q);
  arguments.k = toTensorArgument(tensors.k);
  arguments.v = toTensorArgument(tensors.v);
  arguments.o = toTensorArgument(tensors.o);
  arguments.lse = toRowArgument(tensors.lse);
  fillProblem(arguments);
  arguments.qPositions = tables.qPositions, arguments.kvPositions = tables.kvPositions;
  arguments.mask = tables.mask;
  arguments.work = tables.work;
  arguments.work.counter = counters + kForwardCounter;

  int64_t numItems = tables.work.numRows * p.batch * p.qHeads;
  if (numItems == 0)
    return Status::ok();
  ForwardTensorMaps maps{};
  if (takesTensorMaps(tables.kernel->spec())) {
    int tileKV = tables.kernel->tiles().tileKV;
    CPFLEX_RETURN_IF_ERROR(encodeTensorMap(driver, checked[0], kConsumerRows, tensors.q.data, maps.q));
    CPFLEX_RETURN_IF_ERROR(encodeTensorMap(driver, checked[1], tileKV, tensors.q.data, maps.k));
    CPFLEX_RETURN_IF_ERROR(encodeTensorMap(driver, checked[2], tileKV, tensors.q.data, maps.v));
    if (outputType != ElementType::F32)
      CPFLEX_RETURN_IF_ERROR(encodeTensorMap(driver, checked[3], kRowsPerWarp, tensors.q.data, maps.o));
  }
  CPFLEX_RETURN_IF_ERROR(
      driver.status(driver.memsetD32Async(reinterpret_cast<cuda::DeviceAddress>(counters), 0, kNumCounters, stream),
                    "cuMemsetD32Async"));
  return launchTiles(tables, numItems, &arguments, &maps, stream);
}

void CudaExecutable::fillBackward(BackwardArguments &arguments, const CudaBackwardTensors &tensors,
                                  void *workspace) const {
  const AttentionProblem &p = problem_;
  BackwardWorkspace layout = backwardWorkspace();
  auto *bytes = static_cast<std::byte *>(workspace);
  arguments.q = toTensorArgument(tensors.q);
  arguments.k = toTensorArgument(tensors.k);
  arguments.v = toTensorArgument(tensors.v);
  arguments.o = toTensorArgument(tensors.o);
  arguments.dO = toTensorArgument(tensors.dO);
  arguments.dQ = toTensorArgument(tensors.dQ);
  arguments.dK = toTensorArgument(tensors.dK);
  arguments.dV = toTensorArgument(tensors.dV);
  arguments.lse = toRowArgument(tensors.lse);
  arguments.dLse = toRowArgument(tensors.dLse);
  arguments.delta = {reinterpret_cast<float *>(bytes + layout.deltaOffset), p.qHeads * layout.rows, layout.rows};
  arguments.lseLog2 = {reinterpret_cast<float *>(bytes + layout.lseOffset), p.qHeads * layout.rows, layout.rows};
  arguments.dSink = tensors.dSink;
  fillProblem(arguments);
  arguments.querySums.turns = static_cast<int *>(workspace) + kNumCounters;
  arguments.querySums.sums = reinterpret_cast<float *>(bytes + layout.sumsOffset);
  if (const KernelTables *kvTables = tablesOf(KernelRole::BackwardKV)) {
    arguments.querySums.mask = kvTables->turns;
    arguments.querySums.walksDown = kvTables->walksDown;
  }
}

Status CudaExecutable::backward(const CudaBackwardTensors &tensors, void *workspace, cuda::Stream stream) const {
  const CudaDevice &device = program_->device();
  const CudaDriver &driver = device.driver();
  const AttentionProblem &p = problem_;
  CudaRange range(driver, "cpflex backward");
  const KernelTables *kvTables = tablesOf(KernelRole::BackwardKV), *qTables = tablesOf(KernelRole::BackwardQ);
  if (!kvTables)
    return Status::invalid("the program was created without backward kernels");
  bool hasSoftmax = p.normalization == AttentionProblem::Normalization::Softmax;
  CurrentContext current(device);
  CPFLEX_RETURN_IF_ERROR(current.status());

  // The maps of the wgmma kernels take the tensors by their place in this list.
  enum Tensor { Q, K, V, DO };
  using Use = DeviceTensor::Use;
  ElementType element = program_->options().element;
  ElementType outputType = program_->options().output == OutputForm::F32 ? ElementType::F32 : element;
  std::vector<DeviceTensor> checked = {
      {"q", tensors.q, element, {p.batch, p.qHeads, p.qLen, p.headDim}, Use::Input},
      {"k", tensors.k, element, {p.batch, p.kvHeads, p.kvLen, p.headDim}, Use::Input},
      {"v", tensors.v, element, {p.batch, p.kvHeads, p.kvLen, p.vHeadDim}, Use::Input},
      {"dO", tensors.dO, element, {p.batch, p.qHeads, p.qLen, p.vHeadDim}, Use::Input},
      {"dQ", tensors.dQ, outputType, {p.batch, p.qHeads, p.qLen, p.headDim}, Use::Output},
      {"dK", tensors.dK, outputType, {p.batch, p.kvHeads, p.kvLen, p.headDim}, Use::Output},
      {"dV", tensors.dV, outputType, {p.batch, p.kvHeads, p.kvLen, p.vHeadDim}, Use::Output}};
  if (hasSoftmax) {
    checked.push_back({"o", tensors.o, element, {p.batch, p.qHeads, p.qLen, p.vHeadDim}, Use::Input});
    checked.push_back({"lse", tensors.lse, ElementType::F32, {p.batch, p.qHeads, p.qLen, 1}, Use::Input});
    if (tensors.dLse.data)
      checked.push_back({"dLse", tensors.dLse, ElementType::F32, {p.batch, p.qHeads, p.qLen, 1}, Use::Input});
  }
  for (const DeviceTensor &tensor : checked)
    CPFLEX_RETURN_IF_ERROR(checkTensor(tensor, &device));
  CPFLEX_RETURN_IF_ERROR(checkOverlap(checked));
  CPFLEX_RETURN_IF_ERROR(checkWorkspace(workspace));
  if (tensors.dSink && !p.sink)
    return Status::invalid("'dSink' was given; the problem has no sink");

  BackwardArguments arguments{};
  fillBackward(arguments, tensors, workspace);
  auto *counters = static_cast<int *>(workspace);
  auto numWords = static_cast<size_t>(kNumCounters + backwardWorkspace().numTurns);
  CPFLEX_RETURN_IF_ERROR(driver.status(
      driver.memsetD32Async(reinterpret_cast<cuda::DeviceAddress>(counters), 0, numWords, stream), "cuMemsetD32Async"));

  // 1. delta and LSE in base 2.
  if (const LoadedKernel *delta = program_->kernel(KernelRole::BackwardDelta); delta && p.qLen > 0)
    CPFLEX_RETURN_IF_ERROR(launch(*delta, static_cast<unsigned>(paddedRows(static_cast<int>(p.qLen)) / kRowPadding),
                                  static_cast<unsigned>(p.qHeads), static_cast<unsigned>(p.batch), &arguments, nullptr,
                                  stream));
  // 2. dK and dV, dQ, or all three at once.
  for (const KernelTables *tables : {kvTables, qTables}) {
    if (!tables)
      continue;
    const KernelSpec &spec = tables->kernel->spec();
    bool isKV = spec.role == KernelRole::BackwardKV;
    arguments.mask = tables->mask;
    arguments.work = tables->work;
    arguments.work.counter = counters + (isKV ? kBackwardKVCounter : kBackwardQCounter);
    arguments.qPositions = tables->qPositions, arguments.kvPositions = tables->kvPositions;
    BackwardTensorMaps maps{};
    int64_t numItems = tables->work.numRows * p.batch * (isKV ? p.kvHeads * workItemsPerRow(spec) : p.qHeads);
    if (sharesSums(spec) && p.qLen > 0)
      numItems = std::max<int64_t>(numItems, 1); // without keys, a block clears dQ
    if (takesTensorMaps(spec) && numItems > 0) {
      const TileConfig &config = tables->kernel->tiles();
      void *fallback = p.kvLen > 0 ? tensors.k.data : tensors.q.data; // for tensors without rows
      CPFLEX_RETURN_IF_ERROR(encodeTensorMap(driver, checked[Q], config.tileQ, fallback, maps.q));
      CPFLEX_RETURN_IF_ERROR(encodeTensorMap(driver, checked[DO], config.tileQ, fallback, maps.dO));
      CPFLEX_RETURN_IF_ERROR(encodeTensorMap(driver, checked[K], config.tileKV, fallback, maps.k));
      CPFLEX_RETURN_IF_ERROR(encodeTensorMap(driver, checked[V], config.tileKV, fallback, maps.v));
    }
    CPFLEX_RETURN_IF_ERROR(launchTiles(*tables, numItems, &arguments, &maps, stream));
  }
  // 3. The gradient of the sinks.
  if (const LoadedKernel *sink = program_->kernel(KernelRole::BackwardSink); sink && tensors.dSink)
    CPFLEX_RETURN_IF_ERROR(launch(*sink, static_cast<unsigned>(p.qHeads), 1, 1, &arguments, nullptr, stream));
  // 4. The gradients of captures.
  bool wantsCaptures = std::ranges::any_of(tensors.dCaptures, [](float *gradient) { return gradient != nullptr; });
  if (!wantsCaptures)
    return Status::ok();
  return backwardCaptures(arguments, tensors, backwardWorkspace().accumulatorOffset, workspace, stream);
}

} // namespace cpflex
