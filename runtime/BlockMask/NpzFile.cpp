// Writes index lists as `.npz`: NumPy arrays in a zip archive without compression.
#include "runtime/BlockMask/IndexLists.h"

#include <fmt/format.h>
#include <zlib.h>

#include <span>
#include <type_traits>

namespace cpflex {

namespace {

/// A zip archive in memory whose members are stored as they are.
class ZipArchive {
public:
  void add(const std::string &name, const std::string &contents) {
    // Fixed date: 1980-01-01, so that equal masks give equal files.
    constexpr uint16_t kDate = 0x21;
    uint32_t checksum = static_cast<uint32_t>(
        crc32_z(0, reinterpret_cast<const Bytef *>(contents.data()), contents.size()));
    std::string common;
    put16(common, 20); // version needed
    put16(common, 0);
    put16(common, 0); // stored
    put16(common, 0);
    put16(common, kDate);
    put32(common, checksum);
    put32(common, static_cast<uint32_t>(contents.size()));
    put32(common, static_cast<uint32_t>(contents.size()));
    put16(common, static_cast<uint16_t>(name.size()));
    put16(common, 0);
    put32(directory_, 0x02014b50);
    put16(directory_, 20);
    directory_ += common;
    for (int i = 0; i < 3; ++i)
      put16(directory_, 0);
    put32(directory_, 0);
    put32(directory_, static_cast<uint32_t>(bytes_.size()));
    directory_ += name;
    put32(bytes_, 0x04034b50);
    bytes_ += common + name + contents;
    ++numMembers_;
  }

  std::string finish() {
    uint32_t begin = static_cast<uint32_t>(bytes_.size());
    bytes_ += directory_;
    put32(bytes_, 0x06054b50);
    put32(bytes_, 0);
    put16(bytes_, numMembers_);
    put16(bytes_, numMembers_);
    put32(bytes_, static_cast<uint32_t>(directory_.size()));
    put32(bytes_, begin);
    put16(bytes_, 0);
    return std::move(bytes_);
  }

private:
  static void put16(std::string &out, uint16_t value) {
    out.push_back(static_cast<char>(value & 0xff));
    out.push_back(static_cast<char>(value >> 8));
  }
  static void put32(std::string &out, uint32_t value) {
    put16(out, static_cast<uint16_t>(value & 0xffff));
    put16(out, static_cast<uint16_t>(value >> 16));
  }

  std::string bytes_, directory_;
  uint16_t numMembers_ = 0;
};

/// A `.npy` file, format version 1.0; its header is padded to a multiple of 64 bytes.
template <typename T> std::string toNpy(std::span<const T> elements, const std::string &shape) {
  std::string header =
      fmt::format("{{'descr': '<i{}', 'fortran_order': False, 'shape': ({}), }}", sizeof(T), shape);
  constexpr size_t kPrefix = 10, kAlignment = 64;
  size_t padding = kAlignment - (kPrefix + header.size() + 1) % kAlignment;
  header.append(padding % kAlignment, ' ');
  header += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes.push_back(static_cast<char>(header.size() & 0xff));
  bytes.push_back(static_cast<char>(header.size() >> 8));
  bytes += header;
  for (T element : elements)
    for (size_t i = 0; i < sizeof(T); ++i)
      bytes.push_back(
          static_cast<char>(static_cast<std::make_unsigned_t<T>>(element) >> (8 * i) & 0xff));
  return bytes;
}

} // namespace

std::string toNpz(const IndexLists &lists) {
  ZipArchive archive;
  auto addLists = [&](const TileLists &tiles, const char *axis, int64_t rows, int64_t columns) {
    std::string counts = fmt::format("{}, {}, {}", lists.batch, lists.heads, rows);
    std::string indices = fmt::format("{}, {}", counts, columns);
    archive.add(fmt::format("{}_num_blocks.npy", axis),
                toNpy(std::span(tiles.partialCounts), counts));
    archive.add(fmt::format("{}_indices.npy", axis),
                toNpy(std::span(tiles.partialIndices), indices));
    archive.add(fmt::format("full_{}_num_blocks.npy", axis),
                toNpy(std::span(tiles.fullCounts), counts));
    archive.add(fmt::format("full_{}_indices.npy", axis),
                toNpy(std::span(tiles.fullIndices), indices));
  };
  addLists(lists.byQ, "kv", lists.numQTiles(), lists.numKVTiles());
  addLists(lists.byKV, "q", lists.numKVTiles(), lists.numQTiles());
  int64_t blockSize[] = {lists.tileQ, lists.tileKV}, lengths[] = {lists.qLen, lists.kvLen};
  archive.add("block_size.npy", toNpy(std::span<const int64_t>(blockSize), "2,"));
  archive.add("seq_lengths.npy", toNpy(std::span<const int64_t>(lengths), "2,"));
  return archive.finish();
}

} // namespace cpflex
