// Writes index lists as `.npz`: NumPy arrays in a zip archive without compression.
#include "runtime/BlockMask/IndexLists.h"
#include "runtime/BlockMask/ZipArchive.h"

#include <fmt/format.h>

#include <bit>
#include <span>

namespace cpflex {

namespace {

/// What stands before the elements in a `.npy` file, format version 1.0; padded to a multiple of 64 bytes.
std::string npyHeader(size_t elementSize, const std::string &shape) {
  std::string header = fmt::format("{{'descr': '<i{}', 'fortran_order': False, 'shape': ({}), }}", elementSize, shape);
  constexpr size_t kPrefix = 10, kAlignment = 64;
  size_t padding = kAlignment - (kPrefix + header.size() + 1) % kAlignment;
  header.append(padding % kAlignment, ' ');
  header += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes.push_back(static_cast<char>(header.size() & 0xff));
  bytes.push_back(static_cast<char>(header.size() >> 8));
  return bytes + header;
}

/// Adds an array as `<name>.npy`.
template <typename T>
void addArray(ZipWriter &archive, const std::string &name, std::span<const T> elements, const std::string &shape) {
  static_assert(std::endian::native == std::endian::little);
  archive.add(name + ".npy", npyHeader(sizeof(T), shape),
              {reinterpret_cast<const char *>(elements.data()), elements.size_bytes()});
}

} // namespace

std::string toNpz(const IndexLists &lists) {
  ZipWriter archive;
  constexpr size_t kHeadersInBytes = 8192;
  size_t sizeInBytes = kHeadersInBytes;
  for (const TileLists *tiles : {&lists.byQ, &lists.byKV})
    for (const std::vector<int32_t> *list :
         {&tiles->partialCounts, &tiles->partialIndices, &tiles->fullCounts, &tiles->fullIndices})
      sizeInBytes += list->size() * sizeof(int32_t);
  archive.reserve(sizeInBytes);
  auto addLists = [&](const TileLists &tiles, const std::string &axis, int64_t rows, int64_t columns) {
    std::string counts = fmt::format("{}, {}, {}", lists.batch, lists.heads, rows);
    std::string indices = fmt::format("{}, {}", counts, columns);
    addArray(archive, axis + "_num_blocks", std::span(tiles.partialCounts), counts);
    addArray(archive, axis + "_indices", std::span(tiles.partialIndices), indices);
    addArray(archive, "full_" + axis + "_num_blocks", std::span(tiles.fullCounts), counts);
    addArray(archive, "full_" + axis + "_indices", std::span(tiles.fullIndices), indices);
  };
  addLists(lists.byQ, "kv", lists.numQTiles(), lists.numKVTiles());
  addLists(lists.byKV, "q", lists.numKVTiles(), lists.numQTiles());
  int64_t blockSize[] = {lists.tileQ, lists.tileKV}, lengths[] = {lists.qLen, lists.kvLen};
  addArray(archive, "block_size", std::span<const int64_t>(blockSize), "2,");
  addArray(archive, "seq_lengths", std::span<const int64_t>(lengths), "2,");
  return archive.finish();
}

} // namespace cpflex
