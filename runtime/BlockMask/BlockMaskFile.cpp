// Writes and reads the binary form of masks; nothing read is believed before the checksum and the
// structure are verified.
#include "runtime/BlockMask/BlockMaskFile.h"

#include "runtime/BlockMask/BlockMaskAlgebra.h"
#include "runtime/Files/WholeFile.h"

#include <fmt/format.h>

#include <type_traits>

namespace cpflex {

namespace {

constexpr std::string_view kMagic = "cpfxmask";
constexpr uint32_t kVersion = 2;
constexpr size_t kHeaderSize = 8 + sizeof(uint32_t) + sizeof(uint64_t);

uint64_t checksumOf(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char byte : bytes)
    hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

template <typename T> void put(std::string &out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i)
    out.push_back(static_cast<char>(static_cast<std::make_unsigned_t<T>>(value) >> (8 * i) & 0xff));
}

/// Reads numbers one after the other and remembers when there were not enough bytes.
class Reader {
public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <typename T> T get() {
    if (bytes_.size() < sizeof(T)) {
      isCut_ = true;
      return 0;
    }
    std::make_unsigned_t<T> value = 0;
    for (size_t i = 0; i < sizeof(T); ++i)
      value |= static_cast<std::make_unsigned_t<T>>(
          static_cast<std::make_unsigned_t<T>>(static_cast<unsigned char>(bytes_[i])) << (8 * i));
    bytes_.remove_prefix(sizeof(T));
    return static_cast<T>(value);
  }
  /// Whether `count` elements of `size` bytes can still follow, so that nothing larger than the
  /// file is allocated.
  bool canHold(int64_t count, int64_t size) {
    bool holds = count >= 0 && count <= static_cast<int64_t>(bytes_.size()) / size;
    isCut_ |= !holds;
    return holds;
  }
  bool isCut() const { return isCut_; }
  bool isAtEnd() const { return bytes_.empty(); }

private:
  std::string_view bytes_;
  bool isCut_ = false;
};

Status damaged(const char *text) { return {StatusCode::DataLoss, fmt::format("the block mask is damaged: {}", text)}; }

} // namespace

std::string toBytes(const BlockMask &mask) {
  std::string body;
  for (int64_t value : {mask.qLen, mask.kvLen, mask.tileQ, mask.tileKV, mask.batch, mask.heads,
                        static_cast<int64_t>(mask.rowSets.size())})
    put(body, value);
  put(body, mask.residualKey);
  for (int32_t rowSet : mask.rowSetOf)
    put(body, rowSet);
  for (const TileRows &rows : mask.rowSets) {
    put(body, static_cast<int64_t>(rows.runs.size()));
    for (int32_t begin : rows.rowBegin)
      put(body, begin);
    for (const TileRun &run : rows.runs) {
      put(body, run.begin);
      put(body, run.end);
      put(body, static_cast<uint8_t>(run.tileClass));
      put(body, run.residual);
    }
  }
  std::string bytes(kMagic);
  put(bytes, kVersion);
  put(bytes, checksumOf(body));
  return bytes + body;
}

StatusOr<BlockMask> blockMaskFromBytes(std::string_view bytes) {
  if (bytes.size() < kHeaderSize || !bytes.starts_with(kMagic))
    return damaged("it does not begin as one");
  Reader header(bytes.substr(kMagic.size()));
  uint32_t version = header.get<uint32_t>();
  if (version != kVersion)
    return Status::unsupported(fmt::format("the block mask has version {}; expected {}", version, kVersion));
  std::string_view body = bytes.substr(kHeaderSize);
  if (header.get<uint64_t>() != checksumOf(body))
    return damaged("its checksum differs");
  Reader reader(body);
  BlockMask mask;
  for (int64_t *value : {&mask.qLen, &mask.kvLen, &mask.tileQ, &mask.tileKV, &mask.batch, &mask.heads})
    *value = reader.get<int64_t>();
  int64_t numRowSets = reader.get<int64_t>();
  mask.residualKey = reader.get<uint64_t>();
  int64_t numHeads = 0;
  if (__builtin_mul_overflow(mask.batch, mask.heads, &numHeads) || mask.qLen < 0 || mask.tileQ < 1 ||
      !reader.canHold(numHeads, sizeof(int32_t)))
    return damaged("its sizes do not fit its length");
  for (int64_t i = 0; i < numHeads; ++i)
    mask.rowSetOf.push_back(reader.get<int32_t>());
  if (!reader.canHold(numRowSets, sizeof(int64_t)))
    return damaged("its sizes do not fit its length");
  int64_t numRows = (mask.qLen - 1 + mask.tileQ) / mask.tileQ;
  for (int64_t set = 0; set < numRowSets; ++set) {
    TileRows &rows = mask.rowSets.emplace_back();
    int64_t numRuns = reader.get<int64_t>();
    if (!reader.canHold(numRows, sizeof(int32_t)) || !reader.canHold(numRuns, 10))
      return damaged("its sizes do not fit its length");
    for (int64_t row = 0; row <= numRows; ++row)
      rows.rowBegin.push_back(reader.get<int32_t>());
    for (int64_t i = 0; i < numRuns; ++i) {
      TileRun &run = rows.runs.emplace_back();
      run.begin = reader.get<int32_t>();
      run.end = reader.get<int32_t>();
      run.tileClass = static_cast<TileClass>(reader.get<uint8_t>());
      run.residual = reader.get<uint8_t>();
    }
  }
  if (reader.isCut() || !reader.isAtEnd())
    return damaged("its sizes do not fit its length");
  if (Status status = verifyBlockMask(mask); !status)
    return damaged(status.message().c_str());
  return mask;
}

Status saveBlockMask(const BlockMask &mask, const std::string &path) { return writeFile(path, toBytes(mask)); }

StatusOr<BlockMask> loadBlockMask(const std::string &path) {
  StatusOr<std::string> bytes = readFile(path);
  if (!bytes)
    return bytes.status();
  StatusOr<BlockMask> mask = blockMaskFromBytes(*bytes);
  if (!mask)
    return Status(mask.status().code(), fmt::format("'{}': {}", path, mask.status().message()));
  return mask;
}

} // namespace cpflex
