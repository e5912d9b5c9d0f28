// Reading and writing of `.npy` files; see Npy.h.
#include "runtime/Files/Npy.h"

#include <fmt/format.h>

#include <cstring>
#include <optional>
#include <string_view>

namespace cpflex {

int64_t Array::numElements() const {
  int64_t count = 1;
  for (int64_t size : shape)
    count *= size;
  return count;
}

namespace {

struct NpyHeader {
  std::string descr;
  bool isFortranOrder = false;
  std::vector<int64_t> shape;
};

// The header is a Python dict literal with the keys 'descr', 'fortran_order' and 'shape', in any order.
std::optional<NpyHeader> parseHeader(std::string_view text) {
  NpyHeader header;
  auto valueOf = [&](std::string_view key) -> std::string_view {
    size_t at = text.find(key);
    if (at == std::string_view::npos)
      return {};
    at = text.find(':', at + key.size());
    return at == std::string_view::npos ? std::string_view() : text.substr(at + 1);
  };
  std::string_view descr = valueOf("'descr'");
  const size_t open = descr.find('\''), close = open == std::string_view::npos ? open : descr.find('\'', open + 1);
  if (close == std::string_view::npos)
    return std::nullopt;
  header.descr = std::string(descr.substr(open + 1, close - open - 1));

  std::string_view order = valueOf("'fortran_order'");
  const size_t word = order.find_first_not_of(' ');
  if (word == std::string_view::npos)
    return std::nullopt;
  header.isFortranOrder = order.substr(word, 4) == "True";

  std::string_view shape = valueOf("'shape'");
  const size_t begin = shape.find('('), end = shape.find(')');
  if (begin == std::string_view::npos || end == std::string_view::npos || end < begin)
    return std::nullopt;
  int64_t size = -1;
  bool isComplete = false; // the number has ended and a comma is due; Python 2 ends it with L
  for (char c : shape.substr(begin + 1, end - begin)) {
    if (c >= '0' && c <= '9' && !isComplete && size <= (int64_t(1) << 48)) {
      size = (size < 0 ? 0 : size) * 10 + (c - '0');
    } else if (c == ',' || c == ')') {
      if (size >= 0)
        header.shape.push_back(size);
      size = -1;
      isComplete = false;
    } else if (c == ' ' || (c == 'L' && size >= 0)) {
      isComplete = size >= 0;
    } else {
      return std::nullopt;
    }
  }
  return header;
}

struct NpyType {
  ElementType type;
  bool isDouble = false;
};

std::optional<NpyType> toElementType(std::string_view descr) {
  if (descr.size() < 3 || (descr[0] != '<' && descr[0] != '|' && descr[0] != '='))
    return std::nullopt;
  const std::string_view kind = descr.substr(1);
  if (kind == "b1")
    return NpyType{ElementType::Bool};
  if (kind == "i1")
    return NpyType{ElementType::I8};
  if (kind == "i2")
    return NpyType{ElementType::I16};
  if (kind == "i4")
    return NpyType{ElementType::I32};
  if (kind == "i8")
    return NpyType{ElementType::I64};
  if (kind == "u1")
    return NpyType{ElementType::U8};
  if (kind == "u2")
    return NpyType{ElementType::U16};
  if (kind == "u4")
    return NpyType{ElementType::U32};
  if (kind == "u8")
    return NpyType{ElementType::U64};
  if (kind == "f2")
    return NpyType{ElementType::F16};
  if (kind == "f4")
    return NpyType{ElementType::F32};
  if (kind == "f8")
    return NpyType{ElementType::F32, /*isDouble=*/true};
  return std::nullopt;
}

const char *toDescr(ElementType type) {
  switch (type) {
  case ElementType::Bool: return "|b1";
  case ElementType::I8: return "|i1";
  case ElementType::I16: return "<i2";
  case ElementType::I32: return "<i4";
  case ElementType::I64: return "<i8";
  case ElementType::U8: return "|u1";
  case ElementType::U16:
  case ElementType::BF16: return "<u2";
  case ElementType::U32: return "<u4";
  case ElementType::U64: return "<u8";
  case ElementType::F16: return "<f2";
  case ElementType::F32: return "<f4";
  }
  return "";
}

// Reorders elements stored with the first axis fastest into C order.
std::vector<char> fromFortranOrder(const char *data, const std::vector<int64_t> &shape, int64_t elementSize) {
  int64_t total = 1;
  for (int64_t size : shape)
    total *= size;
  std::vector<char> result(total * elementSize);
  std::vector<int64_t> index(shape.size(), 0);
  for (int64_t to = 0; to < total; ++to) {
    int64_t from = 0, stride = 1;
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      from += index[axis] * stride;
      stride *= shape[axis];
    }
    std::memcpy(&result[to * elementSize], data + from * elementSize, elementSize);
    for (size_t axis = shape.size(); axis-- > 0;) {
      if (++index[axis] < shape[axis])
        break;
      index[axis] = 0;
    }
  }
  return result;
}

} // namespace

StatusOr<Array> readNpy(const std::string &path) {
  StatusOr<FileReader> file = FileReader::open(path);
  if (!file)
    return file.status();
  constexpr size_t kMostHeaderBytes = 1 << 20; // NumPy itself refuses more than 10,000
  std::string contents;
  CPFLEX_RETURN_IF_ERROR(file->readUpTo(contents, 12));
  auto invalid = [&](std::string_view reason) {
    return Status::invalid(fmt::format("'{}' is not a usable .npy file: {}", path, reason));
  };
  if (contents.size() < 10 || contents.compare(0, 6, "\x93NUMPY") != 0)
    return invalid("it does not begin with the .npy signature");
  const int version = static_cast<unsigned char>(contents[6]);
  size_t headerBegin = 10, headerSize = 0;
  if (version == 1) {
    headerSize = static_cast<unsigned char>(contents[8]) | static_cast<unsigned char>(contents[9]) << 8;
  } else if (version <= 3 && contents.size() >= 12) {
    headerBegin = 12;
    for (int i = 3; i >= 0; --i)
      headerSize = headerSize << 8 | static_cast<unsigned char>(contents[8 + i]);
  } else {
    return invalid(fmt::format("its version is {}; expected 1, 2 or 3", version));
  }
  if (headerSize > kMostHeaderBytes)
    return invalid(fmt::format("its header has {} bytes; expected at most {}", headerSize, kMostHeaderBytes));
  CPFLEX_RETURN_IF_ERROR(file->readUpTo(contents, headerBegin + headerSize));
  if (contents.size() < headerBegin + headerSize)
    return invalid("it ends inside the header");
  std::optional<NpyHeader> header = parseHeader(std::string_view(contents).substr(headerBegin, headerSize));
  if (!header)
    return invalid("its header is damaged");
  std::optional<NpyType> type = toElementType(header->descr);
  if (!type)
    return invalid(fmt::format("its element type is '{}'; expected bool, an integer, float16, float32 or float64, "
                               "little-endian",
                               header->descr));

  Array array;
  array.type = type->type;
  array.shape = header->shape;
  const int64_t storedSize = type->isDouble ? 8 : sizeInBytes(type->type);
  int64_t count = 1;
  for (int64_t size : array.shape)
    if (__builtin_mul_overflow(count, size, &count))
      return invalid("its shape has more elements than memory can hold");
  int64_t dataSize = 0;
  if (__builtin_mul_overflow(count, storedSize, &dataSize))
    return invalid("its shape has more elements than memory can hold");
  std::vector<char> bytes;
  CPFLEX_RETURN_IF_ERROR(file->readUpTo(bytes, size_t(dataSize)));
  if (bytes.size() < size_t(dataSize))
    return invalid(fmt::format("it holds {} bytes of data; its shape needs {} elements of {} bytes", bytes.size(),
                               count, storedSize));
  if (header->isFortranOrder && array.shape.size() > 1)
    bytes = fromFortranOrder(bytes.data(), array.shape, storedSize);
  if (!type->isDouble) {
    array.bytes = std::move(bytes);
    return array;
  }
  array.bytes.resize(count * sizeof(float));
  for (int64_t i = 0; i < count; ++i) {
    double value;
    std::memcpy(&value, &bytes[i * sizeof(double)], sizeof(double));
    const float rounded = static_cast<float>(value);
    std::memcpy(&array.bytes[i * sizeof(float)], &rounded, sizeof(float));
  }
  return array;
}

Status writeNpy(const std::string &path, const Array &array) {
  std::string shape;
  for (int64_t size : array.shape)
    shape += fmt::format("{}, ", size);
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", toDescr(array.type), shape);
  // The data begins at a multiple of 64 bytes; the header ends in a newline.
  constexpr size_t kPrefix = 10, kAlignment = 64;
  header.append(kAlignment - (kPrefix + header.size() + 1) % kAlignment, ' ');
  header += '\n';
  std::string prefix("\x93NUMPY\x01\x00", 8);
  prefix += static_cast<char>(header.size() & 0xff);
  prefix += static_cast<char>(header.size() >> 8);
  return writeFile(path, {prefix, header, std::string_view(array.bytes.data(), array.bytes.size())});
}

} // namespace cpflex
