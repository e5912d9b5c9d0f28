// Running NVRTC and reading its report.
#include "runtime/Cuda/CompileKernel.h"

#include "runtime/Cuda/CudaDriver.h"
#include "runtime/Cuda/KernelAssembly.h"
#include "runtime/Cuda/Sha256.h"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace cpflex {
namespace {

namespace fs = std::filesystem;

/// ptxas' codes for wgmma that it had to serialise: accumulators that cross a call, too few registers, accumulators
/// written while in flight, and an arrive in divergent flow.
constexpr const char *kSerialisedWgmmaCodes[] = {"C7510", "C7511", "C7515", "C7520"};

/// The number that stands right before `unit` in `line`.
std::optional<int32_t> numberBefore(std::string_view line, std::string_view unit) {
  size_t end = line.find(unit);
  if (end == std::string_view::npos)
    return std::nullopt;
  size_t begin = end;
  while (begin > 0 && line[begin - 1] >= '0' && line[begin - 1] <= '9')
    --begin;
  int32_t number = 0;
  if (std::from_chars(line.data() + begin, line.data() + end, number).ec != std::errc())
    return std::nullopt;
  return number;
}

/// One program of NVRTC, destroyed at the end of the scope.
class NvrtcProgram {
public:
  explicit NvrtcProgram(const Nvrtc &nvrtc) : nvrtc_(nvrtc) {}
  ~NvrtcProgram() {
    if (program_)
      nvrtc_.destroyProgram(&program_);
  }
  NvrtcProgram(const NvrtcProgram &) = delete;

  Status create(const KernelSource &source) {
    std::vector<std::string> names, texts;
    for (const KernelHeader &header : kernelHeaders()) {
      names.push_back(header.path);
      texts.emplace_back(header.text);
    }
    std::vector<const char *> namePointers, textPointers;
    for (size_t i = 0; i < names.size(); ++i) {
      namePointers.push_back(names[i].c_str());
      textPointers.push_back(texts[i].c_str());
    }
    std::string name = source.functionName + ".cu";
    return nvrtc_.status(nvrtc_.createProgram(&program_, source.text.c_str(), name.c_str(),
                                              static_cast<int>(names.size()), textPointers.data(), namePointers.data()),
                         "nvrtcCreateProgram");
  }

  nvrtc::Result compile(const std::string &architecture) {
    std::string architectureOption = "--gpu-architecture=" + architecture;
    std::vector<const char *> options(kernelCompileOptions().begin(), kernelCompileOptions().end());
    options.push_back(architectureOption.c_str());
    return nvrtc_.compileProgram(program_, static_cast<int>(options.size()), options.data());
  }

  /// The bytes that a pair of "size" and "contents" functions gives.
  template <typename Container>
  StatusOr<Container> contents(nvrtc::Result (*getSize)(nvrtc::Program, size_t *),
                               nvrtc::Result (*get)(nvrtc::Program, char *), std::string_view call) const {
    size_t bytes = 0;
    CPFLEX_RETURN_IF_ERROR(nvrtc_.status(getSize(program_, &bytes), call));
    Container container(bytes, '\0');
    CPFLEX_RETURN_IF_ERROR(nvrtc_.status(get(program_, container.data()), call));
    return container;
  }

  std::string log() const {
    StatusOr<std::string> text =
        contents<std::string>(nvrtc_.getProgramLogSize, nvrtc_.getProgramLog, "nvrtcGetProgramLog");
    if (!text)
      return {};
    while (!text->empty() && (text->back() == '\0' || text->back() == '\n'))
      text->pop_back();
    return *text;
  }

private:
  const Nvrtc &nvrtc_;
  nvrtc::Program program_ = nullptr;
};

/// Keeps the text of a rejected kernel; returns its path, or why it could not be kept.
std::string keepRejected(const KernelSource &source, const std::string &rejectedFolder) {
  std::error_code error;
  fs::path folder =
      rejectedFolder.empty() ? fs::temp_directory_path(error) / "cpflex-rejected" : fs::path(rejectedFolder);
  fs::create_directories(folder, error);
  fs::path path = folder / fmt::format("{}-{}.cu", source.functionName, source.key.substr(0, 16));
  std::ofstream file(path);
  file << source.text;
  file.close();
  return file ? fmt::format("the source was kept in '{}'", path.string())
              : fmt::format("the source could not be kept in '{}'", path.string());
}

/// The first lines of a log that hold errors, at most `limit`.
std::string firstErrors(const std::string &log, int limit) {
  std::istringstream lines(log);
  std::string line, result;
  int count = 0;
  while (count < limit && std::getline(lines, line))
    if (line.find("error") != std::string::npos) {
      result += (count++ ? "\n" : "") + line;
    }
  return result.empty() ? log : result;
}

Status rejected(const KernelSource &source, const Nvrtc &nvrtc, const std::string &log, const std::string &folder) {
  constexpr int kErrorsShown = 5;
  return {StatusCode::Unavailable,
          fmt::format("NVRTC {} rejected kernel '{}' for {}; this is a bug of cpflex, please report it; {}\n{}",
                      cudaVersionText(nvrtc.version()), source.functionName, source.architecture,
                      keepRejected(source, folder), firstErrors(log, kErrorsShown))};
}

Status unsupportedArchitecture(const KernelSource &source, const Nvrtc &nvrtc) {
  return Status::unsupported(
      fmt::format("NVRTC {} does not compile for '{}'; install a CUDA that does, or set CPFLEX_NVRTC",
                  cudaVersionText(nvrtc.version()), source.architecture));
}

} // namespace

void readResourceReport(const std::string &log, KernelImage &image) {
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    if (auto stack = numberBefore(line, " bytes stack frame")) {
      image.stackBytes = std::max(image.stackBytes, *stack);
      int32_t spills =
          numberBefore(line, " bytes spill stores").value_or(0) + numberBefore(line, " bytes spill loads").value_or(0);
      image.spillBytes = std::max(image.spillBytes, spills);
      if (spills > image.tiles.spillLimit)
        image.warnings.push_back(line);
    }
    if (auto registers = numberBefore(line, " registers")) {
      image.registers = std::max(image.registers, *registers);
      image.staticSharedBytes = std::max(image.staticSharedBytes, numberBefore(line, " bytes smem").value_or(0));
    }
    for (const char *code : kSerialisedWgmmaCodes)
      if (line.find(code) != std::string::npos)
        image.warnings.push_back(line);
  }
}

StatusOr<KernelToolchain> KernelToolchain::load() {
  StatusOr<std::shared_ptr<const Nvrtc>> nvrtc = Nvrtc::load();
  if (!nvrtc)
    return nvrtc.status();
  return KernelToolchain{.nvrtc = *nvrtc, .cache = KernelCache(KernelCache::defaultFolder())};
}

StatusOr<KernelImage> compileKernel(const KernelSource &source, const Nvrtc &nvrtc, const std::string &rejectedFolder) {
  if (!nvrtc.supports(source.architecture))
    return unsupportedArchitecture(source, nvrtc);
  NvrtcProgram program(nvrtc);
  CPFLEX_RETURN_IF_ERROR(program.create(source));
  nvrtc::Result result = program.compile(source.architecture);
  std::string log = program.log();
  if (result == nvrtc::kCompilation)
    return rejected(source, nvrtc, log, rejectedFolder);
  CPFLEX_RETURN_IF_ERROR(nvrtc.status(result, "nvrtcCompileProgram"));

  StatusOr<std::vector<char>> cubin =
      program.contents<std::vector<char>>(nvrtc.getCubinSize, nvrtc.getCubin, "nvrtcGetCUBIN");
  if (!cubin)
    return cubin.status();
  KernelImage image;
  image.cubin = std::move(*cubin);
  image.functionName = source.functionName;
  image.architecture = source.architecture;
  image.tiles = source.tiles;
  image.log = std::move(log);
  readResourceReport(image.log, image);
  return image;
}

StatusOr<std::string> compileToPtx(const KernelSource &source, const Nvrtc &nvrtc) {
  if (!nvrtc.supports(source.architecture))
    return unsupportedArchitecture(source, nvrtc);
  NvrtcProgram program(nvrtc);
  CPFLEX_RETURN_IF_ERROR(program.create(source));
  std::string virtualArchitecture = "compute" + source.architecture.substr(source.architecture.find('_'));
  nvrtc::Result result = program.compile(virtualArchitecture);
  if (result == nvrtc::kCompilation)
    return rejected(source, nvrtc, program.log(), {});
  CPFLEX_RETURN_IF_ERROR(nvrtc.status(result, "nvrtcCompileProgram"));
  StatusOr<std::string> ptx = program.contents<std::string>(nvrtc.getPtxSize, nvrtc.getPtx, "nvrtcGetPTX");
  if (ptx && !ptx->empty() && ptx->back() == '\0')
    ptx->pop_back();
  return ptx;
}

std::string cacheKey(const KernelSource &source, const Nvrtc &nvrtc) {
  Sha256 digest;
  digest.addField(source.key);
  digest.addField(fmt::format("nvrtc {}", nvrtc.version()));
  return digest.finish();
}

StatusOr<CompiledKernel> cachedKernel(const KernelSource &source, const KernelToolchain &toolchain) {
  CompiledKernel compiled;
  std::string key = cacheKey(source, *toolchain.nvrtc);
  if (toolchain.cache)
    if (std::optional<KernelImage> image = toolchain.cache->find(key)) {
      compiled.image = std::move(*image);
      compiled.wasCached = true;
      return compiled;
    }
  StatusOr<KernelImage> image = compileKernel(
      source, *toolchain.nvrtc, toolchain.cache ? toolchain.cache->folder() + "/rejected" : std::string());
  if (!image)
    return image.status();
  compiled.image = std::move(*image);
  if (toolchain.cache)
    if (Status stored = toolchain.cache->store(key, source, compiled.image); !stored)
      compiled.cacheWarnings.push_back(stored.message());
  return compiled;
}

} // namespace cpflex
