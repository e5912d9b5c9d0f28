// Launching the kernels that compute the gradients of captured arrays.
#include "runtime/Cuda/CudaExecutable.h"

#include "runtime/Cuda/DeviceTensor.h"
#include "runtime/contract/CaptureArgument.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace cpflex {
namespace {

Status setZero(const CudaDriver &driver, void *memory, int64_t sizeInBytes, cuda::Stream stream) {
  return driver.status(driver.memsetD32Async(reinterpret_cast<cuda::DeviceAddress>(memory), 0,
                                             static_cast<size_t>(sizeInBytes) / sizeof(unsigned), stream),
                       "cuMemsetD32Async");
}

} // namespace

int64_t CudaExecutable::captureElements(int slot) const {
  CaptureArgument capture;
  std::memcpy(&capture, captures_.data() + slot * sizeof(CaptureArgument) / sizeof(long long), sizeof(capture));
  int64_t elements = 1;
  for (int axis = 0; axis < captureRanks_[slot]; ++axis)
    elements *= capture.strides[axis] == 0 ? std::min<int64_t>(capture.shape[axis], 1) : capture.shape[axis];
  return elements;
}

int64_t CudaExecutable::accumulatorElements() const {
  if (!tablesOf(KernelRole::BackwardCaptures))
    return 0;
  int64_t elements = 0;
  for (const DeviceGradient &gradient : program_->functions().gradients)
    elements += gradient.isDense ? 0 : captureElements(gradient.capture);
  return elements;
}

Status CudaExecutable::backwardCaptures(const BackwardArguments &backward, const CudaBackwardTensors &tensors,
                                        int64_t accumulatorOffset, void *workspace, cuda::Stream stream) const {
  const CudaDevice &device = program_->device();
  const DeviceFunctions &functions = program_->functions();
  const AttentionProblem &p = problem_;
  const KernelTables *tables = tablesOf(KernelRole::BackwardCaptures);
  if (!tables && !functions.gradients.empty())
    return Status::invalid("gradients of captures were asked for; the program was created without their kernels");
  if (static_cast<int>(tensors.dCaptures.size()) != functions.numCaptures)
    return Status::invalid(fmt::format("{} gradients of captures were given; the program has {} captures",
                                       tensors.dCaptures.size(), functions.numCaptures));

  // 1. Which arrays, and where their exact sums lie. What the score does not read has a gradient of 0.
  CaptureGradientArguments arguments{};
  arguments.backward = backward;
  auto *accumulators = static_cast<std::byte *>(workspace) + accumulatorOffset;
  arguments.accumulators = reinterpret_cast<long long *>(accumulators);
  arguments.numTargets = static_cast<int>(functions.gradients.size());
  bool hasDense = false;
  int64_t begin = 0;
  for (size_t i = 0; i < functions.gradients.size(); ++i) {
    const DeviceGradient &gradient = functions.gradients[i];
    CaptureGradientTarget &target = arguments.targets[i];
    target = {.gradient = tensors.dCaptures[gradient.capture],
              .begin = begin,
              .numElements = captureElements(gradient.capture),
              .isDense = gradient.isDense};
    begin += gradient.isDense ? 0 : target.numElements;
    hasDense = hasDense || (gradient.isDense && target.gradient);
  }
  for (int slot = 0; slot < functions.numCaptures; ++slot) {
    float *gradient = tensors.dCaptures[slot];
    auto read = std::ranges::find(functions.gradients, slot, &DeviceGradient::capture);
    if (!gradient || captureElements(slot) == 0)
      continue;
    CPFLEX_RETURN_IF_ERROR(checkPlace(fmt::format("the gradient of {}", captureName(slot)), gradient, device));
    if (read == functions.gradients.end() || read->isDense)
      CPFLEX_RETURN_IF_ERROR(
          setZero(device.driver(), gradient, captureElements(slot) * int64_t(sizeof(float)), stream));
  }
  if (!tables)
    return Status::ok();
  CPFLEX_RETURN_IF_ERROR(setZero(device.driver(), accumulators,
                                 begin * kAccumulatorWords * static_cast<int64_t>(sizeof(long long)), stream));

  // 2. What the pairs add, then the sums. A dense array is owned pair by pair, over all (b, h), by one block.
  arguments.backward.mask = tables->mask;
  arguments.backward.qPositions = tables->qPositions, arguments.backward.kvPositions = tables->kvPositions;
  const TileConfig &tiles = tables->kernel->tiles();
  int64_t numQTiles = ceilDivide(p.qLen, tiles.tileQ), numKVTiles = ceilDivide(p.kvLen, tiles.tileKV);
  auto gridY = static_cast<unsigned>(std::min(numQTiles, cuda::kMostBlocksAlongY));
  auto gridZ = static_cast<unsigned>(hasDense ? 1 : std::min(p.batch * p.qHeads, cuda::kMostBlocksAlongY));
  if (numQTiles > 0 && numKVTiles > 0)
    CPFLEX_RETURN_IF_ERROR(
        launch(*tables->kernel, static_cast<unsigned>(numKVTiles), gridY, gridZ, &arguments, nullptr, stream));
  const LoadedKernel *sums = program_->kernel(KernelRole::BackwardCaptureSums);
  int64_t numBlocks =
      std::min<int64_t>(ceilDivide(begin, sums->tiles().threads), int64_t(device.description().numProcessors) * 8);
  return numBlocks == 0 ? Status::ok()
                        : launch(*sums, static_cast<unsigned>(numBlocks), 1, 1, &arguments, nullptr, stream);
}

} // namespace cpflex
