// From options to the sources of a program's kernels.
#include "tools/cpflexc/ProgramKernels.h"

#include "tools/cpflexc/AttentionCall.h"
#include "tools/cpflexc/CommandLine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

namespace cpflex {

namespace {

// The first architecture that the kernels are written for.
constexpr int kOldestTarget = 80;
// Fits an int, and no kernel serves it.
constexpr int64_t kAnyTooLarge = 1 << 20;

StatusOr<DeviceFunctions> boundFunctions(const Options &options, const LoadedProgram &loaded, KernelBinding binding) {
  const Signature &signature = loaded.program->signature();
  const bool hasArrays = options.binds.size() >= signature.captures.size();
  const bool hasLengths = options.sizes.qLen >= 0 || !options.binds.empty();
  if (binding == KernelBinding::Required || (hasArrays && hasLengths)) {
    StatusOr<std::shared_ptr<Binding>> bound = bindProgram(options, *loaded.program);
    return bound ? loaded.program->deviceFunctions(*loaded.entry, (*bound)->bindings()) : bound.status();
  }
  const std::vector<int64_t> dims(signature.dims.size(), 0);
  const std::vector<ScalarSlot> params(signature.params.size(), 0);
  return loaded.program->deviceFunctions(*loaded.entry,
                                         {.captures = nullptr, .params = params.data(), .dims = dims.data()});
}

} // namespace

CudaProgramOptions kernelOptions(const Options &options) {
  CudaProgramOptions chosen;
  chosen.element = options.dtype == "f32"   ? ElementType::F32
                   : options.dtype == "f16" ? ElementType::F16
                                            : ElementType::BF16;
  chosen.headDim = options.headDim >= 0 ? int(std::min(options.headDim, kAnyTooLarge)) : 64;
  chosen.vHeadDim = options.vHeadDim >= 0 ? int(std::min(options.vHeadDim, kAnyTooLarge)) : chosen.headDim;
  return chosen;
}

StatusOr<ProgramKernels> programKernels(const Options &options, const LoadedProgram &loaded, const std::string &target,
                                        CudaProgramOptions::Passes passes, KernelBinding binding) {
  ProgramKernels kernels;
  StatusOr<DeviceFunctions> functions = boundFunctions(options, loaded, binding);
  if (!functions)
    return functions.status();
  kernels.functions = std::move(*functions);
  kernels.computeCapability = std::atoi((target.empty() ? kDefaultTarget : target.c_str()) + 3);
  CudaProgramOptions &chosen = kernels.options;
  chosen = kernelOptions(options);
  chosen.normalization =
      loaded.entry->hasSoftmax ? AttentionProblem::Normalization::Softmax : AttentionProblem::Normalization::None;
  chosen.passes = passes;
  if (passes == CudaProgramOptions::Passes::ForwardAndBackward)
    chosen.captureGradients = CudaProgramOptions::CaptureGradients::Computed;
  StatusOr<std::vector<KernelSource>> sources = kernelSources(kernels.functions, chosen, kernels.computeCapability);
  if (!sources)
    return sources.status();
  kernels.sources = std::move(*sources);
  return kernels;
}

StatusOr<int> computeCapability(const Options &options) {
  int index = 0;
  isCuda(options, index);
  const CudaDeviceList list = listCudaDevices();
  if (list.devices.empty())
    return Status::unavailable("no GPU: " + list.whyNone);
  if (index >= int(list.devices.size()))
    return Status::invalid(
        fmt::format("--device is '{}'; expected cuda:0 to cuda:{}", options.device, list.devices.size() - 1));
  const CudaDeviceDescription &device = list.devices[index];
  return device.whyNotUsable.empty() ? StatusOr<int>(device.computeCapability)
                                     : Status::unsupported(device.whyNotUsable);
}

std::string checkTarget(const std::string &text) {
  const bool isSm =
      text.starts_with("sm_") && text.size() > 4 && text.size() < 8 && std::isdigit(text[3]) && std::isdigit(text[4]);
  if (isSm && std::atoi(text.c_str() + 3) < kOldestTarget)
    throw CommandLineFault(fmt::format("--target is '{}'; expected cpu, or sm_{} or newer", text, kOldestTarget));
  if (text != "cpu" && !isSm)
    throw CommandLineFault(fmt::format("--target is '{}'; expected cpu or sm_NN", text));
  return std::string();
}

} // namespace cpflex
