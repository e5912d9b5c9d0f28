// Keys of programs, and the form of their summaries in the cache's folder.
#include "lib/API/ProgramCache.h"

#include "runtime/Cuda/Sha256.h"

#include <nlohmann/json.hpp>

#include <bit>

namespace cpflex {

namespace {

using Json = nlohmann::json;

constexpr const char *kSummaryFile = "program.json";

Json toJson(const CaptureDeclaration &capture) {
  return {capture.name,  int(capture.type), capture.dims, capture.isSorted,     capture.hasLo,
          capture.hasHi, capture.lo,        capture.hi,   capture.needsGradient};
}
void fromJson(const Json &json, CaptureDeclaration &capture) {
  capture = {json[0], ElementType(int(json[1])), json[2], json[3], json[4], json[5], json[6], json[7], json[8]};
}

Json toJson(const ParamDeclaration &param) {
  return {param.name, int(param.type), param.defaultValue, param.hasDefault};
}
void fromJson(const Json &json, ParamDeclaration &param) {
  param = {json[0], ValueType(int(json[1])), json[2], json[3]};
}

Json toJson(const TapeInstruction &instruction) {
  return {int(instruction.operation), int(instruction.operandType), int(instruction.resultType),
          instruction.operands[0],    instruction.operands[1],      instruction.operands[2],
          instruction.operands[3],    instruction.immediate,        instruction.line,
          instruction.column};
}
void fromJson(const Json &json, TapeInstruction &instruction) {
  instruction = {Operation(int(json[0])),
                 ValueType(int(json[1])),
                 ValueType(int(json[2])),
                 {json[3], json[4], json[5], json[6]},
                 json[7],
                 json[8],
                 json[9]};
}

Json toJson(const ResidualAssumption &assumption) { return {assumption.instruction, assumption.value}; }
void fromJson(const Json &json, ResidualAssumption &assumption) { assumption = {json[0], json[1]}; }

Json toJson(const Residual &residual);
Json toJson(const EntryPoint &entry);
void fromJson(const Json &json, Residual &residual);
void fromJson(const Json &json, EntryPoint &entry);

template <typename T> Json listToJson(const std::vector<T> &values) {
  Json list = Json::array();
  for (const T &value : values)
    list.push_back(toJson(value));
  return list;
}
template <typename T> void listFromJson(const Json &list, std::vector<T> &values) {
  for (const Json &json : list)
    fromJson(json, values.emplace_back());
}

Json toJson(const Residual &residual) {
  return {listToJson(residual.assumptions), residual.result, residual.isNegated, residual.text};
}
void fromJson(const Json &json, Residual &residual) {
  listFromJson(json[0], residual.assumptions);
  residual.result = json[1];
  residual.isNegated = json[2];
  residual.text = json[3];
}

// Floats travel as their bits.
Json toJson(const EntryPoint &entry) {
  return {{"name", entry.name},
          {"has_mask", entry.hasMask},
          {"has_score", entry.hasScore},
          {"sink_capture", entry.sinkCapture},
          {"scale", entry.scale ? Json(std::bit_cast<uint32_t>(*entry.scale)) : Json()},
          {"has_softmax", entry.hasSoftmax},
          {"tape_name", entry.tape.name},
          {"tape", listToJson(entry.tape.instructions)},
          {"tape_result", entry.tape.result},
          {"residuals", listToJson(entry.residuals)},
          {"files", entry.files}};
}
void fromJson(const Json &json, EntryPoint &entry) {
  entry.name = json["name"];
  entry.hasMask = json["has_mask"];
  entry.hasScore = json["has_score"];
  entry.sinkCapture = json["sink_capture"];
  if (!json["scale"].is_null())
    entry.scale = std::bit_cast<float>(uint32_t(json["scale"]));
  entry.hasSoftmax = json["has_softmax"];
  entry.tape.name = json["tape_name"];
  listFromJson(json["tape"], entry.tape.instructions);
  entry.tape.result = json["tape_result"];
  listFromJson(json["residuals"], entry.residuals);
  json["files"].get_to(entry.files);
}

// Whether the file declares `name` as a param, of which values are no constants.
bool isParam(const ast::File &file, const std::string &name) {
  for (const ast::StmtRef &statement : file.statements) {
    const ast::Expr *annotation = statement->annotation.get();
    while (annotation && (annotation->kind == ast::ExprKind::Call || annotation->kind == ast::ExprKind::Subscript))
      annotation = annotation->operands[0].get();
    if (statement->kind == ast::StmtKind::Declare && statement->name == name && annotation &&
        annotation->name == "param")
      return true;
  }
  return false;
}

} // namespace

std::string ProgramCache::key(const ast::File &file, const ImportedFiles &imported, const CompileOptions &options) {
  Sha256 digest;
  digest.addField("program");
  digest.addField(compilerDigest());
  digest.addField(file.source->path());
  digest.addField(file.source->text());
  for (const auto &[path, source] : imported) {
    digest.addField(path);
    digest.addField(source.key);
    digest.addField(source.text.value_or(""));
  }
  digest.addField("constants");
  for (const auto &[name, value] : options.constants)
    if (!isParam(file, name)) {
      digest.addField(name);
      digest.addField(value);
    }
  return digest.finish();
}

// The first line of the file is the digest of the rest, which is therefore what `store` wrote.
std::optional<ProgramSummary> ProgramCache::find(const std::string &key) const {
  std::optional<std::string> contents = disk_.read(key, kSummaryFile);
  const size_t end = contents ? contents->find('\n') : std::string::npos;
  if (end == std::string::npos || sha256(std::string_view(*contents).substr(end + 1)) != contents->substr(0, end))
    return std::nullopt;
  disk_.touch(key);
  const Json json = Json::parse(contents->begin() + int64_t(end) + 1, contents->end());
  ProgramSummary summary;
  listFromJson(json["captures"], summary.signature.captures);
  listFromJson(json["params"], summary.signature.params);
  json["dims"].get_to(summary.signature.dims);
  listFromJson(json["entries"], summary.entries);
  json["constants"].get_to(summary.constants);
  summary.sourceDigest = json["source_digest"];
  return summary;
}

Status ProgramCache::store(const std::string &key, const std::string &path, const ProgramSummary &summary) const {
  const Json json = {{"path", path},
                     {"captures", listToJson(summary.signature.captures)},
                     {"params", listToJson(summary.signature.params)},
                     {"dims", summary.signature.dims},
                     {"entries", listToJson(summary.entries)},
                     {"constants", summary.constants},
                     {"source_digest", summary.sourceDigest}};
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  const std::string contents = sha256(text) + "\n" + text;
  const DiskCache::File files[] = {{kSummaryFile, contents}};
  return disk_.store(
      key, files, [&] { return !find(key); }, "cache of compiled code",
      "code is compiled anew in each process until it can");
}

std::vector<ProgramCache::Entry> ProgramCache::list() const {
  std::vector<Entry> entries;
  for (const DiskCache::Entry &kept : disk_.list())
    if (std::optional<std::string> contents = disk_.read(kept.key, kSummaryFile)) {
      const Json json = Json::parse(contents->substr(contents->find('\n') + 1), nullptr, /*allow_exceptions=*/false);
      const Json path = json.is_object() ? json.value("path", Json()) : Json();
      entries.push_back({kept.key, path.is_string() ? path.get<std::string>() : "", kept.sizeInBytes});
    }
  return entries;
}

} // namespace cpflex
