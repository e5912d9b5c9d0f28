// Choosing, compiling and loading the kernels of a program.
#include "runtime/Cuda/CudaProgram.h"

#include "runtime/Cuda/KernelAssembly.h"
#include "runtime/Cuda/KernelBundle.h"
#include "runtime/contract/CaptureArgument.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <system_error>
#include <thread>
#include <utility>

namespace cpflex {
namespace {

/// What a kernel may be given at launch, in bytes, on the GPUs served.
constexpr int64_t kParameterLimitInBytes = 32764;

bool isAffineOverTiles(const PositionMap &map, int64_t tileSize) {
  int64_t begin = 0;
  for (size_t i = 0; i < map.pieces.size(); ++i) {
    bool isLast = i + 1 == map.pieces.size();
    if (!isLast && (begin + map.pieces[i].count) % tileSize != 0)
      return false;
    begin += map.pieces[i].count;
  }
  return true;
}

bool isIdentity(const PositionMap &map) {
  int64_t begin = 0;
  for (const AffinePiece &piece : map.pieces) {
    if (piece.begin != begin || (piece.step != 1 && piece.count > 1))
      return false;
    begin += piece.count;
  }
  return true;
}

/// Compiles all sources, each on a thread of its own: NVRTC takes most of a second for each.
std::vector<StatusOr<CompiledKernel>> compileAll(const std::vector<KernelSource> &sources,
                                                 const KernelToolchain &toolchain) {
  std::vector<StatusOr<CompiledKernel>> results(sources.size(), Status::unavailable("not compiled"));
  auto compile = [&](size_t i) { results[i] = cachedKernel(sources[i], toolchain); };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < sources.size(); ++i) {
    try {
      threads.emplace_back(compile, i);
    } catch (const std::system_error &) {
      compile(i); // no thread to be had
    }
  }
  if (!sources.empty())
    compile(0);
  for (std::thread &thread : threads)
    thread.join();
  return results;
}

} // namespace

CudaProgramOptions CudaProgramOptions::of(const AttentionProblem &problem, ElementType element) {
  CudaProgramOptions options;
  options.element = element;
  options.headDim = static_cast<int>(problem.headDim);
  options.vHeadDim = static_cast<int>(problem.vHeadDim);
  options.normalization = problem.normalization;
  return options;
}

std::vector<KernelSpec> kernelSpecs(const DeviceFunctions &functions, const CudaProgramOptions &options,
                                    int computeCapability) {
  KernelSpec spec;
  spec.element = options.element;
  spec.headDim = options.headDim;
  spec.vHeadDim = options.vHeadDim;
  spec.hasSoftmax = options.normalization == AttentionProblem::Normalization::Softmax;
  spec.hasMask = functions.hasMask;
  spec.scoreForm = functions.scoreForm;
  spec.positions = options.positions;
  spec.output = options.output;

  using Passes = CudaProgramOptions::Passes;
  std::vector<KernelRole> roles;
  if (options.passes != Passes::Backward)
    roles.push_back(KernelRole::Forward);
  if (options.passes != Passes::Forward) {
    if (spec.hasSoftmax)
      roles.push_back(KernelRole::BackwardDelta);
    roles.push_back(KernelRole::BackwardKV);
    roles.push_back(KernelRole::BackwardQ);
    if (spec.hasSoftmax)
      roles.push_back(KernelRole::BackwardSink);
    if (options.captureGradients == CudaProgramOptions::CaptureGradients::Computed && !functions.gradients.empty()) {
      roles.push_back(KernelRole::BackwardCaptures);
      roles.push_back(KernelRole::BackwardCaptureSums);
    }
  }
  // Those that decide tiles are modules of their own, last, so that they compile beside the others.
  std::vector<KernelSpec> specs, decided;
  for (KernelRole role : roles) {
    if (role == KernelRole::BackwardQ && sharesSums(specs.back()))
      continue; // BackwardKV writes dQ
    spec.role = role;
    spec.family =
        hasFamilies(role) ? options.family.value_or(kernelFamily(spec, computeCapability)) : KernelFamily::MmaSync;
    specs.push_back(spec);
    if (readsWords(spec)) {
      decided.push_back(spec);
      decided.back().role = wordsRole(role);
    }
  }
  specs.insert(specs.end(), decided.begin(), decided.end());
  return specs;
}

StatusOr<std::vector<KernelSource>> kernelSources(const DeviceFunctions &functions, const CudaProgramOptions &options,
                                                  int computeCapability) {
  std::vector<KernelSource> sources;
  for (const KernelSpec &spec : kernelSpecs(functions, options, computeCapability)) {
    StatusOr<KernelSource> source = assembleKernel(spec, computeCapability, functions);
    if (!source)
      return source.status();
    sources.push_back(std::move(*source));
  }
  return sources;
}

MaskTile preferredMaskTile(const CudaProgramOptions &options, int computeCapability) {
  MaskTile tile{0, 0};
  for (const KernelSpec &spec : kernelSpecs(DeviceFunctions(), options, computeCapability)) {
    if (!hasFamilies(spec.role))
      continue;
    StatusOr<TileConfig> tiles = tileConfig(spec, computeCapability);
    if (!tiles)
      return {};
    tile.q = std::gcd(tile.q, tiles->tileQ);
    if (spec.role == KernelRole::Forward)
      tile.kv = tiles->tileKV;
  }
  return tile;
}

PositionMode positionMode(const AttentionProblem &problem, const std::vector<TileConfig> &tiles) {
  if (isIdentity(problem.qPositions) && isIdentity(problem.kvPositions))
    return PositionMode::Identity;
  for (const TileConfig &config : tiles)
    if (!isAffineOverTiles(problem.qPositions, config.tileQ) || !isAffineOverTiles(problem.kvPositions, config.tileKV))
      return PositionMode::Array;
  return PositionMode::AffinePerTile;
}

PositionMode positionMode(const AttentionProblem &problem, const DeviceFunctions &functions, CudaProgramOptions options,
                          int computeCapability) {
  std::vector<TileConfig> tiles;
  for (const KernelSpec &spec : kernelSpecs(functions, options, computeCapability))
    if (StatusOr<TileConfig> config = tileConfig(spec, computeCapability); config && walksTiles(spec.role))
      tiles.push_back(*config);
  return positionMode(problem, tiles);
}

StatusOr<LoadedKernel> LoadedKernel::load(std::shared_ptr<const CudaDevice> device, const KernelSpec &spec,
                                          CompiledKernel compiled) {
  LoadedKernel kernel(device, spec, std::move(compiled));
  const CudaDriver &driver = device->driver();
  KernelImage &image = kernel.compiled_.image;
  CurrentContext current(*device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  CPFLEX_RETURN_IF_ERROR(driver.status(driver.moduleLoadData(&kernel.module_, image.cubin.data()), "cuModuleLoadData"));
  CPFLEX_RETURN_IF_ERROR(driver.status(
      driver.moduleGetFunction(&kernel.function_, kernel.module_, image.functionName.c_str()), "cuModuleGetFunction"));
  if (image.tiles.sharedBytes > 0)
    CPFLEX_RETURN_IF_ERROR(driver.status(
        driver.funcSetAttribute(kernel.function_, cuda::kMaxDynamicSharedSizeBytes, image.tiles.sharedBytes),
        "cuFuncSetAttribute"));
  image.cubin = {};
  return kernel;
}

LoadedKernel::LoadedKernel(LoadedKernel &&other) noexcept
    : device_(std::move(other.device_)), spec_(other.spec_), compiled_(std::move(other.compiled_)),
      module_(std::exchange(other.module_, nullptr)), function_(other.function_) {}

LoadedKernel::~LoadedKernel() {
  if (!module_)
    return;
  CurrentContext current(*device_);
  if (current.status())
    (void)device_->driver().moduleUnload(module_);
}

StatusOr<std::shared_ptr<const CudaProgram>> CudaProgram::create(std::shared_ptr<const CudaDevice> device,
                                                                 const KernelToolchain &toolchain,
                                                                 DeviceFunctions functions,
                                                                 const CudaProgramOptions &options) {
  CudaRange range(device->driver(), "cpflex compile");
  auto program = std::shared_ptr<CudaProgram>(new CudaProgram(device, std::move(functions), options));
  constexpr size_t kArgumentBytes =
      std::max(sizeof(BackwardArguments) + sizeof(BackwardTensorMaps), sizeof(CaptureGradientArguments));
  int64_t parameters = program->capturesInBytes() + static_cast<int64_t>(kArgumentBytes);
  if (parameters > kParameterLimitInBytes)
    return Status::unsupported(
        fmt::format("the program has {} captures, {} parameters and {} dimensions, {} bytes of kernel "
                    "parameters; a GPU takes {}",
                    program->functions_.numCaptures, program->functions_.numParams, program->functions_.numDims,
                    parameters, kParameterLimitInBytes));
  if (program->functions_.gradients.size() > kMaxCaptureGradients)
    return Status::unsupported(
        fmt::format("the score function reads {} arrays that take gradients; on a GPU at most {} do",
                    program->functions_.gradients.size(), kMaxCaptureGradients));
  int capability = device->description().computeCapability;
  int driverVersion = device->driver().version(), nvrtcVersion = toolchain.nvrtc->version();
  if (driverVersion / 1000 < nvrtcVersion / 1000)
    return Status::unavailable(
        fmt::format("the driver serves CUDA {}, but NVRTC is {} and makes code for newer drivers; update "
                    "the driver, or set CPFLEX_NVRTC to a libnvrtc of CUDA {}",
                    cudaVersionText(driverVersion), cudaVersionText(nvrtcVersion), driverVersion / 1000));
  StatusOr<std::vector<KernelSource>> sources = kernelSources(program->functions_, options, capability);
  if (!sources)
    return sources.status();
  std::vector<StatusOr<CompiledKernel>> compiled = compileAll(*sources, toolchain);
  for (size_t i = 0; i < sources->size(); ++i) {
    if (!compiled[i])
      return compiled[i].status();
    StatusOr<LoadedKernel> kernel = LoadedKernel::load(device, (*sources)[i].spec, std::move(*compiled[i]));
    if (!kernel)
      return kernel.status();
    program->kernels_.push_back(std::move(*kernel));
  }
  return std::shared_ptr<const CudaProgram>(std::move(program));
}

StatusOr<std::shared_ptr<const CudaProgram>> CudaProgram::fromBundle(std::shared_ptr<const CudaDevice> device,
                                                                     const KernelBundle &bundle) {
  CudaRange range(device->driver(), "cpflex load");
  const int capability = device->description().computeCapability;
  const bool isSameMajor = capability / 10 == bundle.computeCapability / 10;
  std::vector<KernelSpec> specs = kernelSpecs(bundle.functions, bundle.options, bundle.computeCapability);
  if (specs.size() != bundle.kernels.size())
    return Status::invalid(fmt::format("the bundle has {} kernels; expected {}", bundle.kernels.size(), specs.size()));
  for (size_t i = 0; i < specs.size(); ++i) {
    // Machine code of sm_90a runs on 9.0 alone, that of sm_80 on every later 8.x.
    const bool isExact = bundle.kernels[i].architecture.ends_with('a');
    if (isExact ? capability != bundle.computeCapability : !isSameMajor || capability < bundle.computeCapability)
      return Status::unsupported(fmt::format("the bundle was compiled for '{}'; the GPU is sm_{}",
                                             bundle.kernels[i].architecture, capability));
  }
  auto program = std::shared_ptr<CudaProgram>(new CudaProgram(device, bundle.functions, bundle.options));
  for (size_t i = 0; i < specs.size(); ++i) {
    StatusOr<LoadedKernel> kernel =
        LoadedKernel::load(device, specs[i], {.image = bundle.kernels[i], .wasCached = true, .cacheWarnings = {}});
    if (!kernel)
      return kernel.status();
    program->kernels_.push_back(std::move(*kernel));
  }
  return std::shared_ptr<const CudaProgram>(std::move(program));
}

const LoadedKernel *CudaProgram::kernel(KernelRole role) const {
  for (const LoadedKernel &kernel : kernels_)
    if (kernel.spec().role == role)
      return &kernel;
  return nullptr;
}

int64_t CudaProgram::capturesInBytes() const {
  return static_cast<int64_t>(sizeof(CaptureArgument)) * functions_.numCaptures +
         static_cast<int64_t>(sizeof(long long)) * ((functions_.numParams > 0 ? 1 : 0) + functions_.numDims);
}

std::vector<std::string> CudaProgram::warnings() const {
  std::vector<std::string> warnings;
  for (const LoadedKernel &kernel : kernels_)
    for (const std::string &warning : kernel.compiled().cacheWarnings)
      if (warnings.empty() || warnings.back() != warning)
        warnings.push_back(warning);
  return warnings;
}

} // namespace cpflex
