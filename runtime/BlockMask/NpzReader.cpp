// Reads index lists from `.npz` files: the members of a zip archive, each an array of NumPy.
#include "runtime/BlockMask/IndexLists.h"
#include "runtime/BlockMask/ZipArchive.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <map>

namespace cpflex {

namespace {

uint64_t littleEndian(std::string_view bytes, size_t at, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i)
    value |= uint64_t(static_cast<uint8_t>(bytes[at + i])) << (8 * i);
  return value;
}

/// An array of integers within the archive.
struct NumberArray {
  std::vector<int64_t> shape;
  std::string_view elements;
  size_t elementSize = 4;

  size_t size() const { return elements.size() / elementSize; }
  int64_t operator[](size_t i) const {
    const uint64_t bits = littleEndian(elements, i * elementSize, elementSize);
    return elementSize == 4 ? static_cast<int32_t>(bits) : static_cast<int64_t>(bits);
  }
};

/// The text after `'key': ` in the header of an array.
std::string_view valueAfter(std::string_view header, std::string_view key) {
  size_t at = header.find(fmt::format("'{}':", key));
  if (at == std::string_view::npos)
    return {};
  std::string_view rest = header.substr(at + key.size() + 3);
  return rest.substr(std::min(rest.find_first_not_of(' '), rest.size()));
}

StatusOr<NumberArray> parseNpy(const std::string &name, std::string_view bytes) {
  constexpr size_t kPrefix = 10;
  auto isWrong = [&](const char *what) { return Status::invalid(fmt::format("'{}' in the .npz file {}", name, what)); };
  if (bytes.size() < kPrefix || !bytes.starts_with("\x93NUMPY\x01"))
    return isWrong("is no array of NumPy's format 1");
  size_t headerSize = littleEndian(bytes, 8, 2);
  if (bytes.size() - kPrefix < headerSize)
    return isWrong("has a cut header");
  std::string_view header = bytes.substr(kPrefix, headerSize), elements = bytes.substr(kPrefix + headerSize);
  std::string_view type = valueAfter(header, "descr");
  size_t elementSize = type.starts_with("'<i4'") ? 4 : type.starts_with("'<i8'") ? 8 : 0;
  if (elementSize == 0 || !valueAfter(header, "fortran_order").starts_with("False"))
    return isWrong("is not int32 or int64 in C order");
  NumberArray array;
  std::string_view shape = valueAfter(header, "shape");
  if (!shape.starts_with("("))
    return isWrong("has no shape");
  uint64_t count = 1;
  for (shape.remove_prefix(1); !shape.empty() && shape.front() != ')';) {
    uint64_t size = 0;
    auto [rest, error] = std::from_chars(shape.data(), shape.data() + shape.size(), size);
    if (error != std::errc() || size > uint64_t(1) << 40 || (size > 0 && count > (uint64_t(1) << 40) / size))
      return isWrong("has no proper shape");
    count *= size;
    array.shape.push_back(static_cast<int64_t>(size));
    shape.remove_prefix(rest - shape.data());
    shape.remove_prefix(std::min(shape.find_first_not_of(", "), shape.size()));
  }
  if (elements.size() != count * elementSize)
    return isWrong("has another number of elements than its shape says");
  array.elements = elements;
  array.elementSize = elementSize;
  return array;
}

/// Takes the arrays that IndexLists is made of out of an archive.
class ListReader {
public:
  explicit ListReader(const std::map<std::string, ZipMember> &members) : members_(members) {}

  bool has(const std::string &name) const { return members_.contains(name + ".npy"); }

  StatusOr<NumberArray> array(const std::string &name, size_t rank) const {
    auto found = members_.find(name + ".npy");
    if (found == members_.end())
      return Status::invalid(fmt::format("the .npz file has no array '{}'", name));
    StatusOr<NumberArray> result = parseNpy(name, found->second.contents);
    if (result && result->shape.size() != rank)
      return Status::invalid(
          fmt::format("'{}' in the .npz file has {} dimensions; expected {}", name, result->shape.size(), rank));
    return result;
  }

  Status readPair(const std::string &name, int64_t &first, int64_t &second) const {
    StatusOr<NumberArray> pair = array(name, 1);
    if (!pair)
      return pair.status();
    if (pair->size() != 2)
      return Status::invalid(fmt::format("'{}' in the .npz file has {} elements; expected 2", name, pair->size()));
    first = (*pair)[0];
    second = (*pair)[1];
    return Status::ok();
  }

  /// Counts [batch, heads, rows] and indices [batch, heads, rows, columns]; `shape` is set by the first and holds for
  /// all others.
  Status readLists(const std::string &prefix, std::vector<int64_t> &shape, std::vector<int32_t> &counts,
                   std::vector<int32_t> &indices) const {
    for (auto [name, rank, out] :
         {std::tuple(prefix + "_num_blocks", 3, &counts), {prefix + "_indices", 4, &indices}}) {
      StatusOr<NumberArray> read = array(name, rank);
      if (!read)
        return read.status();
      if (shape.empty() && rank == 3)
        shape = read->shape;
      if (shape.size() == 3 && rank == 4)
        shape.push_back(read->shape[3]);
      std::vector<int64_t> expected(shape.begin(), shape.begin() + rank);
      if (read->shape != expected)
        return Status::invalid(fmt::format("'{}' in the .npz file is [{}]; expected [{}]", name,
                                           fmt::join(read->shape, ", "), fmt::join(expected, ", ")));
      out->reserve(read->size());
      for (size_t i = 0; i < read->size(); ++i) {
        const int64_t number = (*read)[i];
        if (number != static_cast<int32_t>(number))
          return Status::invalid(fmt::format("'{}' in the .npz file holds {}; expected tile indices", name, number));
        out->push_back(static_cast<int32_t>(number));
      }
    }
    return Status::ok();
  }

private:
  const std::map<std::string, ZipMember> &members_;
};

} // namespace

StatusOr<IndexLists> indexListsFromNpz(std::string_view bytes) {
  StatusOr<std::map<std::string, ZipMember>> members = zipMembers(bytes);
  if (!members)
    return members.status();
  ListReader reader(*members);
  IndexLists lists;
  CPFLEX_RETURN_IF_ERROR(reader.readPair("block_size", lists.tileQ, lists.tileKV));
  CPFLEX_RETURN_IF_ERROR(reader.readPair("seq_lengths", lists.qLen, lists.kvLen));
  auto read = [&](const std::string &axis, TileLists &tiles) -> Status {
    std::vector<int64_t> shape;
    CPFLEX_RETURN_IF_ERROR(reader.readLists(axis, shape, tiles.partialCounts, tiles.partialIndices));
    lists.batch = shape[0];
    lists.heads = shape[1];
    if (reader.has("full_" + axis + "_num_blocks"))
      return reader.readLists("full_" + axis, shape, tiles.fullCounts, tiles.fullIndices);
    tiles.fullCounts.assign(tiles.partialCounts.size(), 0);
    tiles.fullIndices.assign(tiles.partialIndices.size(), 0);
    return Status::ok();
  };
  if (reader.has("q_num_blocks"))
    CPFLEX_RETURN_IF_ERROR(read("q", lists.byKV));
  CPFLEX_RETURN_IF_ERROR(read("kv", lists.byQ));
  return lists;
}

} // namespace cpflex
