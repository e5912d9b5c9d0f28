// Reading, writing and trimming the cache's folder.
#include "runtime/Cuda/KernelCache.h"

#include "runtime/Cuda/Sha256.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
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
using Json = nlohmann::json;

constexpr int kFormatVersion = 1;
constexpr size_t kKeyLength = 64;
/// What a writer left aside for longer than this belongs to a process that died.
constexpr std::chrono::hours kAbandonedAfter(1);
constexpr const char *kAsidePrefix = ".aside-";

std::optional<std::string> readFile(const fs::path &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return std::nullopt;
  std::ostringstream contents;
  contents << file.rdbuf();
  return file.bad() ? std::nullopt : std::optional(contents.str());
}

bool writeFile(const fs::path &path, std::string_view contents) {
  std::ofstream file(path, std::ios::binary);
  file.write(contents.data(), static_cast<std::streamsize>(contents.size()));
  file.close();
  return file.good();
}

std::string_view bytesOf(const std::vector<char> &bytes) { return {bytes.data(), bytes.size()}; }

bool isKey(const std::string &name) {
  return name.size() == kKeyLength && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

Json toJson(const KernelSource &source, const KernelImage &image) {
  const TileConfig &tiles = image.tiles;
  return {{"format", kFormatVersion},
          {"cubin_sha256", sha256(bytesOf(image.cubin))},
          {"source_key", source.key},
          {"function", image.functionName},
          {"architecture", image.architecture},
          {"tile_q", tiles.tileQ},
          {"tile_kv", tiles.tileKV},
          {"stages", tiles.stages},
          {"threads", tiles.threads},
          {"shared_bytes", tiles.sharedBytes},
          {"blocks_per_processor", tiles.blocksPerProcessor},
          {"spill_limit", tiles.spillLimit},
          {"registers", image.registers},
          {"spill_bytes", image.spillBytes},
          {"stack_bytes", image.stackBytes},
          {"static_shared_bytes", image.staticSharedBytes},
          {"warnings", image.warnings},
          {"log", image.log}};
}

/// Reads typed members of a JSON object that may be damaged.
class Reader {
public:
  explicit Reader(const Json &object) : object_(object), isGood_(object.is_object()) {}
  template <typename Number> void number(const char *name, Number &value) {
    if (const Json *member = find(name); member && member->is_number_integer())
      value = member->get<Number>();
    else
      isGood_ = false;
  }
  void text(const char *name, std::string &value) {
    if (const Json *member = find(name); member && member->is_string())
      value = member->get<std::string>();
    else
      isGood_ = false;
  }
  void texts(const char *name, std::vector<std::string> &values) {
    const Json *member = find(name);
    isGood_ = isGood_ && member && member->is_array();
    for (size_t i = 0; isGood_ && i < member->size(); ++i) {
      isGood_ = (*member)[i].is_string();
      if (isGood_)
        values.push_back((*member)[i].get<std::string>());
    }
  }
  bool isGood() const { return isGood_; }

private:
  const Json *find(const char *name) const {
    if (!object_.is_object())
      return nullptr;
    auto it = object_.find(name);
    return it == object_.end() ? nullptr : &*it;
  }
  const Json &object_;
  bool isGood_;
};

/// The image without its machine code, and the digest that the machine code must have.
std::optional<KernelImage> fromJson(const std::string &text, std::string &cubinDigest) {
  Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  Reader reader(object);
  KernelImage image;
  int format = 0;
  reader.number("format", format);
  reader.text("cubin_sha256", cubinDigest);
  reader.text("function", image.functionName);
  reader.text("architecture", image.architecture);
  reader.number("tile_q", image.tiles.tileQ);
  reader.number("tile_kv", image.tiles.tileKV);
  reader.number("stages", image.tiles.stages);
  reader.number("threads", image.tiles.threads);
  reader.number("shared_bytes", image.tiles.sharedBytes);
  reader.number("blocks_per_processor", image.tiles.blocksPerProcessor);
  reader.number("spill_limit", image.tiles.spillLimit);
  reader.number("registers", image.registers);
  reader.number("spill_bytes", image.spillBytes);
  reader.number("stack_bytes", image.stackBytes);
  reader.number("static_shared_bytes", image.staticSharedBytes);
  reader.texts("warnings", image.warnings);
  reader.text("log", image.log);
  if (!reader.isGood() || format != kFormatVersion)
    return std::nullopt;
  return image;
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

std::string KernelCache::defaultFolder(const EnvironmentLookup &environment) {
  if (std::string named = environment("CPFLEX_CACHE_DIR"); !named.empty())
    return named;
  if (std::string cache = environment("XDG_CACHE_HOME"); !cache.empty())
    return cache + "/cpflex";
  if (std::string home = environment("HOME"); !home.empty())
    return home + "/.cache/cpflex";
  return fmt::format("/tmp/cpflex-cache-{}", getuid());
}

std::optional<KernelImage> KernelCache::find(const std::string &key) const {
  fs::path entry = fs::path(folder_) / key;
  std::optional<std::string> resources = readFile(entry / "resources.json");
  std::optional<std::string> cubin = readFile(entry / "kernel.cubin");
  if (!resources || !cubin)
    return std::nullopt;
  std::string digest;
  std::optional<KernelImage> image = fromJson(*resources, digest);
  if (!image || digest != sha256(*cubin))
    return std::nullopt;
  image->cubin.assign(cubin->begin(), cubin->end());
  // The time of last use, for eviction; a cache that is read-only keeps its own.
  (void)utimensat(AT_FDCWD, entry.c_str(), nullptr, 0);
  return image;
}

Status KernelCache::store(const std::string &key, const KernelSource &source, const KernelImage &image) const {
  std::error_code error;
  auto failed = [&](std::string_view act) {
    return Status::unavailable(
        fmt::format("the kernel cache '{}' cannot be written ({}{}{}); kernels are compiled anew in "
                    "each process until it can",
                    folder_, act, error ? ": " : "", error ? error.message() : ""));
  };
  fs::path folder = folder_, aside = folder / asideName(), entry = folder / key;
  fs::create_directories(aside, error);
  if (error)
    return failed("making a folder");
  bool isWritten = writeFile(aside / "kernel.cu", source.text) &&
                   writeFile(aside / "kernel.cubin", bytesOf(image.cubin)) &&
                   writeFile(aside / "resources.json",
                             toJson(source, image).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  if (isWritten) {
    fs::rename(aside, entry, error);
    std::error_code ignored;
    if (error && fs::exists(entry, ignored) && !find(key)) {
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

std::vector<KernelCache::Entry> KernelCache::list() const {
  std::vector<Entry> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
    struct stat status{};
    std::string name = it->path().filename();
    if (!isKey(name) || stat(it->path().c_str(), &status) != 0)
      continue;
    Entry entry;
    entry.key = name;
    entry.sizeInBytes = sizeOfFolder(it->path());
    entry.lastUsed = status.st_mtime;
    std::string digest;
    if (std::optional<std::string> resources = readFile(it->path() / "resources.json"))
      if (std::optional<KernelImage> image = fromJson(*resources, digest)) {
        entry.functionName = image->functionName;
        entry.architecture = image->architecture;
        entry.registers = image->registers;
        entry.spillBytes = image->spillBytes;
      }
    entries.push_back(std::move(entry));
  }
  std::ranges::sort(entries, [](const Entry &a, const Entry &b) {
    return a.lastUsed != b.lastUsed ? a.lastUsed > b.lastUsed : a.key < b.key;
  });
  return entries;
}

StatusOr<KernelCache::Cleared> KernelCache::clear() const {
  Cleared cleared;
  for (const Entry &entry : list()) {
    fs::path path = fs::path(folder_) / entry.key;
    removeEntry(path);
    std::error_code error;
    if (fs::exists(path, error))
      return Status::unavailable(fmt::format("'{}' cannot be removed from the kernel cache", path.string()));
    ++cleared.numEntries;
    cleared.sizeInBytes += entry.sizeInBytes;
  }
  std::error_code error;
  fs::remove_all(fs::path(folder_) / "rejected", error);
  evict({});
  return cleared;
}

void KernelCache::evict(const std::string &keptKey) const {
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
