// Reading, writing and trimming the cache's folder.
#include "runtime/Files/DiskCache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace cpflex {
namespace {

namespace fs = std::filesystem;

constexpr size_t kKeyLength = 64;
/// What a writer left aside for longer than this belongs to a process that died.
constexpr std::chrono::hours kAbandonedAfter(1);
constexpr const char *kAsidePrefix = ".aside-";

std::optional<std::string> readWhole(const fs::path &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return std::nullopt;
  std::ostringstream contents;
  contents << file.rdbuf();
  return file.bad() ? std::nullopt : std::optional(contents.str());
}

bool writeWhole(const fs::path &path, std::string_view contents) {
  std::ofstream file(path, std::ios::binary);
  file.write(contents.data(), static_cast<std::streamsize>(contents.size()));
  file.close();
  return file.good();
}

bool isKey(const std::string &name) {
  return name.size() == kKeyLength && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

int64_t sizeOfFolder(const fs::path &folder) {
  int64_t total = 0;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code sizeError;
    auto size = it->file_size(sizeError);
    total += sizeError ? 0 : static_cast<int64_t>(size);
  }
  return total;
}

/// Why another user may decide what a folder holds; empty when none may, or when it is not there. Root is trusted.
std::string whyNotTrusted(const std::string &folder) {
  struct stat link{}, status{};
  if (lstat(folder.c_str(), &link) != 0 || stat(folder.c_str(), &status) != 0)
    return {};
  for (uid_t owner : {link.st_uid, status.st_uid})
    if (owner != geteuid() && owner != 0)
      return fmt::format("it belongs to user {}", owner);
  return status.st_mode & (S_IWGRP | S_IWOTH) ? "other users may write to it" : "";
}

/// A name that no other writer uses, in this process or another.
std::string asideName() {
  std::random_device random;
  return fmt::format("{}{}-{:08x}{:08x}", kAsidePrefix, getpid(), random(), random());
}

bool isAbandoned(const fs::path &path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0 &&
         std::chrono::system_clock::now() - std::chrono::system_clock::from_time_t(status.st_mtime) > kAbandonedAfter;
}

/// Removes a folder under readers: it vanishes in one step, then its files go.
void removeEntry(const fs::path &path) {
  std::error_code error;
  fs::path aside = path.parent_path() / asideName();
  fs::rename(path, aside, error);
  fs::remove_all(error ? path : aside, error);
}

} // namespace

Status DiskCache::trust(std::string_view name, std::string_view consequence) const {
  const std::string why = whyNotTrusted(folder_);
  if (why.empty())
    return Status::ok();
  return Status::unavailable(
      fmt::format("the {} '{}' cannot be used: {}; expected a folder to which only user {} may write{}{}", name,
                  folder_, why, geteuid(), consequence.empty() ? "" : "; ", consequence));
}

std::optional<std::string> DiskCache::read(const std::string &key, const std::string &file) const {
  if (!whyNotTrusted(folder_).empty())
    return std::nullopt;
  return readWhole(fs::path(folder_) / key / file);
}

void DiskCache::touch(const std::string &key) const {
  (void)utimensat(AT_FDCWD, (fs::path(folder_) / key).c_str(), nullptr, 0);
}

Status DiskCache::store(const std::string &key, std::span<const File> files, const std::function<bool()> &isDamaged,
                        std::string_view name, std::string_view consequence) const {
  std::error_code error;
  auto failed = [&](std::string_view act) {
    return Status::unavailable(fmt::format("the {} '{}' cannot be written ({}{}{}); {}", name, folder_, act,
                                           error ? ": " : "", error ? error.message() : "", consequence));
  };
  fs::path folder = folder_, aside = folder / asideName(), entry = folder / key;
  if (folder.has_parent_path())
    fs::create_directories(folder.parent_path(), error);
  if (!error && mkdir(folder.c_str(), S_IRWXU) != 0 && errno != EEXIST)
    error.assign(errno, std::generic_category());
  if (error)
    return failed("making a folder");
  CPFLEX_RETURN_IF_ERROR(trust(name, consequence));
  fs::create_directory(aside, error);
  if (error)
    return failed("making a folder");
  bool isWritten =
      std::ranges::all_of(files, [&](const File &file) { return writeWhole(aside / file.name, file.contents); });
  if (isWritten) {
    fs::rename(aside, entry, error);
    std::error_code ignored;
    if (error && fs::exists(entry, ignored) && isDamaged()) {
      // A damaged entry is in the way.
      removeEntry(entry);
      error.clear();
      fs::rename(aside, entry, error);
    }
    if (error && fs::exists(entry, ignored))
      error.clear(); // another process kept it first
    else if (error)
      isWritten = false;
  }
  Status result = isWritten ? Status::ok() : failed("writing an entry");
  fs::remove_all(aside, error);
  if (result)
    evict(key);
  return result;
}

std::vector<DiskCache::Entry> DiskCache::list() const {
  std::vector<Entry> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
    struct stat status{};
    std::string name = it->path().filename();
    if (isKey(name) && stat(it->path().c_str(), &status) == 0)
      entries.push_back({name, sizeOfFolder(it->path()), status.st_mtime});
  }
  std::ranges::sort(entries, [](const Entry &a, const Entry &b) {
    return a.lastUsed != b.lastUsed ? a.lastUsed > b.lastUsed : a.key < b.key;
  });
  return entries;
}

StatusOr<DiskCache::Cleared> DiskCache::clear(std::string_view name) const {
  CPFLEX_RETURN_IF_ERROR(trust(name, {}));
  Cleared cleared;
  for (const Entry &entry : list()) {
    fs::path path = fs::path(folder_) / entry.key;
    removeEntry(path);
    std::error_code error;
    if (fs::exists(path, error))
      return Status::unavailable(fmt::format("'{}' cannot be removed from the {}", path.string(), name));
    ++cleared.numEntries;
    cleared.sizeInBytes += entry.sizeInBytes;
  }
  evict({});
  return cleared;
}

void DiskCache::evict(const std::string &keptKey) const {
  std::error_code error;
  for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (it->path().filename().string().starts_with(kAsidePrefix) && isAbandoned(it->path()))
      fs::remove_all(it->path(), ignored);
  }
  int64_t total = 0;
  for (const Entry &entry : list()) {
    total += entry.sizeInBytes;
    if (total > limitInBytes_ && entry.key != keptKey)
      removeEntry(fs::path(folder_) / entry.key);
  }
}

} // namespace cpflex
