// What a kept kernel looks like in the cache's folder.
#include "runtime/Cuda/KernelCache.h"

#include "runtime/Cuda/Sha256.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <filesystem>

#include <unistd.h>

namespace cpflex {
namespace {

using Json = nlohmann::json;

constexpr int kFormatVersion = 2;
constexpr std::string_view kName = "kernel cache";
constexpr const char *kSourceFile = "kernel.cu", *kCubinFile = "kernel.cubin", *kResourcesFile = "resources.json";
constexpr const char *kDigest = "sha256"; // the member of resources.json that vouches for the entry

std::string_view bytesOf(const std::vector<char> &bytes) { return {bytes.data(), bytes.size()}; }

Json toJson(const KernelSource &source, const KernelImage &image) {
  const TileConfig &tiles = image.tiles;
  return {{"format", kFormatVersion},
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

/// The digest of an entry: its text, its machine code, and `resources` without the digest itself.
std::string digestOf(std::string_view text, std::string_view cubin, const Json &resources) {
  Sha256 digest;
  digest.addField(text);
  digest.addField(cubin);
  digest.addField(resources.dump(-1, ' ', false, Json::error_handler_t::replace));
  return digest.finish();
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

/// The image without its machine code.
std::optional<KernelImage> fromJson(const Json &object) {
  Reader reader(object);
  KernelImage image;
  int format = 0;
  reader.number("format", format);
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
  std::optional<std::string> resources = disk_.read(key, kResourcesFile);
  std::optional<std::string> cubin = disk_.read(key, kCubinFile);
  std::optional<std::string> text = disk_.read(key, kSourceFile);
  if (!resources || !cubin || !text)
    return std::nullopt;
  Json object = Json::parse(*resources, nullptr, /*allow_exceptions=*/false);
  const Json digest = object.is_object() ? object.value(kDigest, Json()) : Json();
  if (!digest.is_string())
    return std::nullopt;
  object.erase(kDigest);
  if (digest != digestOf(*text, *cubin, object))
    return std::nullopt;
  std::optional<KernelImage> image = fromJson(object);
  if (!image)
    return std::nullopt;
  image->cubin.assign(cubin->begin(), cubin->end());
  disk_.touch(key);
  return image;
}

Status KernelCache::store(const std::string &key, const KernelSource &source, const KernelImage &image) const {
  Json object = toJson(source, image);
  object[kDigest] = digestOf(source.text, bytesOf(image.cubin), object);
  const std::string resources = object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const DiskCache::File files[] = {
      {kSourceFile, source.text}, {kCubinFile, bytesOf(image.cubin)}, {kResourcesFile, resources}};
  return disk_.store(
      key, files, [&] { return !find(key); }, kName, "kernels are compiled anew in each process until it can");
}

std::vector<KernelCache::Entry> KernelCache::list() const {
  std::vector<Entry> entries;
  for (const DiskCache::Entry &kept : disk_.list()) {
    std::optional<std::string> resources = disk_.read(kept.key, kResourcesFile);
    if (!resources)
      continue;
    Entry entry{.key = kept.key,
                .functionName = {},
                .architecture = {},
                .sizeInBytes = kept.sizeInBytes,
                .lastUsed = kept.lastUsed};
    if (std::optional<KernelImage> image = fromJson(Json::parse(*resources, nullptr, /*allow_exceptions=*/false))) {
      entry.functionName = image->functionName;
      entry.architecture = image->architecture;
      entry.registers = image->registers;
      entry.spillBytes = image->spillBytes;
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

StatusOr<KernelCache::Cleared> KernelCache::clear() const {
  StatusOr<Cleared> cleared = disk_.clear(kName);
  std::error_code error;
  if (cleared)
    std::filesystem::remove_all(std::filesystem::path(folder()) / "rejected", error);
  return cleared;
}

} // namespace cpflex
