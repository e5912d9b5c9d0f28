// Opening libraries with dlopen.
#include "runtime/Cuda/SharedLibrary.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <dlfcn.h>

namespace cpflex {

StatusOr<SharedLibrary> SharedLibrary::open(const LibrarySearch &search) {
  for (const std::string &candidate : search.candidates)
    if (void *handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL))
      return SharedLibrary(handle, candidate);
  std::string places = search.candidates.empty() ? "nowhere (the search path is empty)"
                                                 : fmt::format("'{}'", fmt::join(search.candidates, "', '"));
  return Status::unavailable(
      fmt::format("no {} library found; looked for {}; {}", search.libraryName, places, search.remedy));
}

void *SharedLibrary::symbol(const char *name) const { return dlsym(handle_, name); }

std::string processEnvironment(std::string_view name) {
  const char *value = std::getenv(std::string(name).c_str());
  return value ? value : "";
}

} // namespace cpflex
