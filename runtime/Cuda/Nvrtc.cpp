// Finding and loading NVRTC.
#include "runtime/Cuda/Nvrtc.h"

#include "runtime/Cuda/CudaDriver.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

namespace cpflex {
namespace {

namespace fs = std::filesystem;

constexpr const char *kNvrtcNames[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};

/// Adds the NVRTC libraries that lie in `folder`.
void addFolder(std::vector<std::string> &candidates, const fs::path &folder) {
  std::error_code error;
  for (const char *name : kNvrtcNames)
    if (fs::exists(folder / name, error))
      candidates.push_back((folder / name).string());
}

/// Adds the pip wheels of the Python installation at `prefix`, under lib/python3.*/{site,dist}-packages/nvidia.
void addPythonWheels(std::vector<std::string> &candidates, const fs::path &prefix) {
  std::error_code error;
  std::vector<fs::path> pythons;
  for (fs::directory_iterator it(prefix / "lib", error), end; !error && it != end; it.increment(error))
    if (it->path().filename().string().starts_with("python3"))
      pythons.push_back(it->path());
  std::sort(pythons.begin(), pythons.end());
  for (const fs::path &python : pythons)
    for (const char *packages : {"site-packages", "dist-packages"})
      for (const char *wheel : {"nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"})
        addFolder(candidates, python / packages / wheel);
}

void addPythonsOnPath(std::vector<std::string> &candidates, std::string_view path) {
  std::error_code error;
  while (!path.empty()) {
    std::string_view folder = path.substr(0, path.find(':'));
    path.remove_prefix(std::min(path.size(), folder.size() + 1));
    if (!folder.empty() && fs::exists(fs::path(folder) / "python3", error))
      addPythonWheels(candidates, fs::path(folder).parent_path());
  }
}

} // namespace

LibrarySearch nvrtcSearch(const EnvironmentLookup &environment) {
  LibrarySearch search{.libraryName = "NVRTC",
                       .candidates = {},
                       .remedy =
                           "install CUDA or the Python package 'nvidia-cuda-nvrtc', or set CPFLEX_NVRTC to the path of "
                           "libnvrtc.so"};
  std::error_code error;
  if (std::string named = environment("CPFLEX_NVRTC"); !named.empty()) {
    // What the user named is the only choice, so that a wrong name is seen and not passed over.
    if (fs::is_directory(named, error))
      addFolder(search.candidates, named);
    if (search.candidates.empty())
      search.candidates.push_back(named);
    search.remedy = "correct or unset CPFLEX_NVRTC";
    return search;
  }
  if (fs::path program = fs::read_symlink("/proc/self/exe", error); !error) {
    addFolder(search.candidates, program.parent_path());
    addFolder(search.candidates, program.parent_path().parent_path() / "lib");
  }
  for (const char *name : kNvrtcNames)
    search.candidates.push_back(name);
  addFolder(search.candidates, "/usr/local/cuda/lib64");
  for (const char *variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (std::string prefix = environment(variable); !prefix.empty())
      addPythonWheels(search.candidates, prefix);
  addPythonsOnPath(search.candidates, environment("PATH"));
  return search;
}

Status Nvrtc::status(nvrtc::Result result, std::string_view call) const {
  if (result == nvrtc::kSuccess)
    return Status::ok();
  return {result == nvrtc::kOutOfMemory ? StatusCode::OutOfMemory : StatusCode::Unavailable,
          fmt::format("{} failed with {}", call, getErrorString(result))};
}

StatusOr<std::shared_ptr<const Nvrtc>> Nvrtc::load(const LibrarySearch &search) {
  StatusOr<SharedLibrary> library = SharedLibrary::open(search);
  if (!library)
    return library.status();

  auto loaded = std::make_shared<Nvrtc>();
  const char *missing = nullptr;
  auto bind = [&](auto &member, const char *symbol) {
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(library->symbol(symbol));
    if (!member && !missing)
      missing = symbol;
  };
#define CPFLEX_NVRTC_ENTRY(MEMBER, SYMBOL, PARAMETERS) bind(loaded->MEMBER, #SYMBOL);
#include "runtime/Cuda/NvrtcEntryPoints.def"
  bind(loaded->getErrorString, "nvrtcGetErrorString");
  std::string oldest = cudaVersionText(kOldestNvrtc);
  if (missing)
    return Status::unavailable(
        fmt::format("'{}' has no function '{}'; cpflex needs NVRTC {} or newer", library->path(), missing, oldest));

  int major = 0, minor = 0, numArchitectures = 0;
  CPFLEX_RETURN_IF_ERROR(loaded->status(loaded->getVersion(&major, &minor), "nvrtcVersion"));
  loaded->version_ = major * 1000 + minor * 10;
  loaded->path_ = library->path();
  if (loaded->version_ < kOldestNvrtc)
    return Status::unavailable(fmt::format("'{}' is NVRTC {}; expected {} or newer; {}", library->path(),
                                           cudaVersionText(loaded->version_), oldest, search.remedy));
  CPFLEX_RETURN_IF_ERROR(loaded->status(loaded->getNumSupportedArchs(&numArchitectures), "nvrtcGetNumSupportedArchs"));
  loaded->architectures_.resize(numArchitectures);
  CPFLEX_RETURN_IF_ERROR(
      loaded->status(loaded->getSupportedArchs(loaded->architectures_.data()), "nvrtcGetSupportedArchs"));
  return std::shared_ptr<const Nvrtc>(std::move(loaded));
}

bool Nvrtc::supports(std::string_view architecture) const {
  int capability = 0;
  if (!architecture.starts_with("sm_"))
    return false;
  architecture.remove_prefix(3);
  auto [end, error] = std::from_chars(architecture.data(), architecture.data() + architecture.size(), capability);
  std::string_view suffix(end, architecture.data() + architecture.size() - end);
  return error == std::errc() && (suffix.empty() || suffix == "a") &&
         std::ranges::count(architectures_, capability) > 0;
}

} // namespace cpflex
