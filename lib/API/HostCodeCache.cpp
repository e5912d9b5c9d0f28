// Keys of host code, and its form in the cache's folder.
#include "lib/API/HostCodeCache.h"

#include "lib/API/ProgramCache.h"
#include "lib/Jit/HostJit.h"
#include "runtime/Cuda/Sha256.h"

#include "llvm/Config/llvm-config.h"

#include <nlohmann/json.hpp>

namespace cpflex {

namespace {

using Json = nlohmann::json;

constexpr const char *kObjectFile = "host.o", *kDescriptionFile = "host.json";
constexpr int kFormatVersion = 2;

/// A description that may be damaged; null values where a member is missing.
Json parsed(const std::string &text) {
  Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return object.is_object() && object.value("format", Json()) == Json(kFormatVersion) ? object : Json::object();
}

bool isTrue(const Json &object, const char *name) { return object.value(name, Json()) == Json(true); }

} // namespace

std::string sourceDigest(const std::vector<std::string> &texts, const std::map<std::string, std::string> &constants) {
  Sha256 digest;
  for (const std::string &text : texts)
    digest.addField(text);
  digest.addField("constants");
  for (const auto &[name, value] : constants) {
    digest.addField(name);
    digest.addField(value);
  }
  return digest.finish();
}

std::string HostCodeCache::key(const Subject &subject) {
  Sha256 digest;
  digest.addField("host code");
  digest.addField(compilerDigest());
  digest.addField(LLVM_VERSION_STRING);
  digest.addField(hostTargetName());
  digest.addField(subject.sourceDigest);
  digest.addField(subject.entry);
  digest.addField(subject.isNarrow ? "32" : "64");
  digest.addField(subject.passes == CallPasses::Forward ? "forward" : "both");
  return digest.finish();
}

std::optional<HostObject> HostCodeCache::find(const std::string &key) const {
  std::optional<std::string> description = disk_.read(key, kDescriptionFile);
  std::optional<std::string> bytes = disk_.read(key, kObjectFile);
  if (!description || !bytes)
    return std::nullopt;
  const Json object = parsed(*description);
  if (object.value("object_sha256", Json()) != Json(sha256(*bytes)))
    return std::nullopt;
  disk_.touch(key);
  const Json residuals = object.value("residuals", Json());
  return HostObject{.bytes = std::move(*bytes),
                    .hasEvaluateTile = isTrue(object, "evaluate_tile"),
                    .residuals = residuals.is_number_unsigned() ? residuals.get<uint32_t>() : 0,
                    .hasScore = isTrue(object, "score"),
                    .hasScoreGradient = isTrue(object, "score_gradient")};
}

Status HostCodeCache::store(const std::string &key, const std::string &entry, const HostObject &object) const {
  const Json description = {{"format", kFormatVersion},
                            {"object_sha256", sha256(object.bytes)},
                            {"entry", entry},
                            {"evaluate_tile", object.hasEvaluateTile},
                            {"residuals", object.residuals},
                            {"score", object.hasScore},
                            {"score_gradient", object.hasScoreGradient}};
  const std::string text = description.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const DiskCache::File files[] = {{kObjectFile, object.bytes}, {kDescriptionFile, text}};
  return disk_.store(
      key, files, [&] { return !find(key); }, "cache of compiled code",
      "code is compiled anew in each process until it can");
}

std::vector<HostCodeCache::Entry> HostCodeCache::list() const {
  std::vector<Entry> entries;
  for (const DiskCache::Entry &kept : disk_.list())
    if (std::optional<std::string> description = disk_.read(kept.key, kDescriptionFile)) {
      const Json object = parsed(*description);
      const Json entry = object.value("entry", Json());
      entries.push_back({kept.key, entry.is_string() ? entry.get<std::string>() : "", kept.sizeInBytes});
    }
  return entries;
}

} // namespace cpflex
