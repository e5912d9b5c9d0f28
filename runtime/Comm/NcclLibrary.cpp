// Finding and loading NCCL; see NcclLibrary.h.
#include "runtime/Comm/NcclLibrary.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>

namespace cpflex {
namespace {

namespace fs = std::filesystem;

constexpr const char *kNcclName = "libnccl.so.2";

/// Adds the wheel 'nvidia-nccl' of the Python installation at `prefix`.
void addPythonWheels(std::vector<std::string> &candidates, const fs::path &prefix) {
  std::error_code error;
  std::vector<fs::path> found;
  for (fs::directory_iterator it(prefix / "lib", error), end; !error && it != end; it.increment(error))
    for (const char *packages : {"site-packages", "dist-packages"})
      if (fs::path file = it->path() / packages / "nvidia/nccl/lib" / kNcclName; fs::exists(file, error))
        found.push_back(file);
  std::sort(found.begin(), found.end());
  for (const fs::path &file : found)
    candidates.push_back(file.string());
}

} // namespace

LibrarySearch ncclSearch(const EnvironmentLookup &environment) {
  LibrarySearch search{.libraryName = "NCCL",
                       .candidates = {},
                       .remedy = "install NCCL or the Python package 'nvidia-nccl', or set CPFLEX_NCCL to the path of "
                                 "libnccl.so.2"};
  if (std::string named = environment("CPFLEX_NCCL"); !named.empty()) {
    // What the user named is the only choice, so that a wrong name is seen and not passed over.
    search.candidates = {named};
    search.remedy = "correct or unset CPFLEX_NCCL";
    return search;
  }
  search.candidates = {kNcclName, std::string("/usr/local/cuda/lib64/") + kNcclName};
  std::error_code error;
  for (const char *variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (std::string prefix = environment(variable); !prefix.empty())
      addPythonWheels(search.candidates, prefix);
  std::string path = environment("PATH");
  for (std::string_view rest = path; !rest.empty();) {
    std::string_view folder = rest.substr(0, rest.find(':'));
    rest.remove_prefix(std::min(rest.size(), folder.size() + 1));
    if (!folder.empty() && fs::exists(fs::path(folder) / "python3", error))
      addPythonWheels(search.candidates, fs::path(folder).parent_path());
  }
  return search;
}

StatusOr<std::shared_ptr<const NcclLibrary>> NcclLibrary::load(const LibrarySearch &search) {
  // NCCL reads its environment when it is first used.
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/1);
  StatusOr<SharedLibrary> library = SharedLibrary::open(search);
  if (!library)
    return library.status();
  auto loaded = std::make_shared<NcclLibrary>();
  const char *missing = nullptr;
  auto bind = [&](auto &member, const char *symbol) {
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(library->symbol(symbol));
    if (!member && !missing)
      missing = symbol;
  };
#define CPFLEX_NCCL_ENTRY(MEMBER, SYMBOL, PARAMETERS) bind(loaded->MEMBER, #SYMBOL);
#include "runtime/Comm/NcclEntryPoints.def"
  bind(loaded->getErrorString, "ncclGetErrorString");
  bind(loaded->getLastError, "ncclGetLastError");
  if (missing)
    return Status::unavailable(
        fmt::format("'{}' has no function '{}'; cpflex needs NCCL 2.18 or newer", library->path(), missing));
  CPFLEX_RETURN_IF_ERROR(loaded->status(loaded->getVersion(&loaded->version_), "ncclGetVersion"));
  if (loaded->version_ < kOldestNccl)
    return Status::unavailable(fmt::format("'{}' is NCCL {}.{}; expected 2.18 or newer; {}", library->path(),
                                           loaded->version_ / 10000, loaded->version_ / 100 % 100, search.remedy));
  return std::shared_ptr<const NcclLibrary>(std::move(loaded));
}

std::shared_ptr<const NcclLibrary> NcclLibrary::fromFunctions(const nccl::Functions &functions) {
  auto library = std::make_shared<NcclLibrary>();
  static_cast<nccl::Functions &>(*library) = functions;
  return library;
}

std::string NcclLibrary::describe(nccl::Result result, nccl::Comm comm) const {
  std::string text = getErrorString(result);
  const char *last = getLastError ? getLastError(comm) : nullptr;
  return last && *last ? fmt::format("{} ({})", text, last) : text;
}

Status NcclLibrary::status(nccl::Result result, std::string_view call) const {
  if (result == nccl::kSuccess || result == nccl::kInProgress)
    return Status::ok();
  return Status::unavailable(fmt::format("{} failed: {}", call, describe(result, nullptr)));
}

StatusOr<nccl::UniqueId> NcclLibrary::newId() const {
  nccl::UniqueId id{};
  CPFLEX_RETURN_IF_ERROR(status(getUniqueId(&id), "ncclGetUniqueId"));
  return id;
}

} // namespace cpflex
