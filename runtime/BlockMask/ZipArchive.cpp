// The records of a zip archive: each member behind its own header, then a directory that repeats the headers, then
// where the directory is. Numbers that do not fit their field are all ones there and stand in an extra field of 64
// bits.
#include "runtime/BlockMask/ZipArchive.h"

#include "runtime/contract/HostMemory.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>

namespace cpflex {

namespace {

constexpr uint32_t kMemberSignature = 0x04034b50, kEntrySignature = 0x02014b50, kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50, kLocator64Signature = 0x07064b50;
constexpr size_t kMemberSize = 30, kEntrySize = 46, kEndSize = 22, kEnd64Size = 56, kLocator64Size = 20;
constexpr uint16_t kStored = 0, kDeflated = 8;
constexpr uint16_t kVersion = 20, kVersion64 = 45; ///< of the format, needed to read
constexpr uint16_t kExtra64 = 1;                   ///< the extra field with 64-bit numbers
constexpr uint32_t kFull32 = 0xffffffff;
constexpr uint16_t kFull16 = 0xffff;

void put(std::string &out, uint64_t value, int numBytes) {
  for (int i = 0; i < numBytes; ++i, value >>= 8)
    out.push_back(static_cast<char>(value & 0xff));
}

uint64_t numberAt(std::string_view bytes, size_t at, size_t numBytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < numBytes; ++i)
    value |= uint64_t(static_cast<uint8_t>(bytes[at + i])) << (8 * i);
  return value;
}

uLong checksumOf(uLong start, std::string_view bytes) {
  if (bytes.empty()) // whose address may be null, which has another meaning for zlib
    return start;
  return crc32_z(start, reinterpret_cast<const Bytef *>(bytes.data()), bytes.size());
}

Status damaged(const char *what) {
  return Status(StatusCode::DataLoss, fmt::format("the .npz file is damaged: {}", what));
}

} // namespace

//===----------------------------------------------------------------------===//
// Writing
//===----------------------------------------------------------------------===//

void ZipWriter::add(const std::string &name, std::string_view head, std::string_view rest) {
  constexpr uint16_t kDate = 0x21; // 1980-01-01
  const uint64_t size = head.size() + rest.size(), offset = bytes_.size();
  const uLong checksum = checksumOf(checksumOf(0, head), rest);
  const bool isLarge = size > most_, isFar = offset > most_;
  // What the member's header and the directory say alike.
  auto common = [&](size_t extraSize) {
    std::string fields;
    put(fields, isLarge || isFar ? kVersion64 : kVersion, 2);
    put(fields, 0, 2);
    put(fields, kStored, 2);
    put(fields, 0, 2);
    put(fields, kDate, 2);
    put(fields, checksum, 4);
    put(fields, isLarge ? kFull32 : size, 4);
    put(fields, isLarge ? kFull32 : size, 4);
    put(fields, name.size(), 2);
    put(fields, extraSize, 2);
    return fields;
  };
  auto extra = [&](bool hasOffset) {
    std::string field, numbers;
    for (int i = 0; i < 2 && isLarge; ++i)
      put(numbers, size, 8);
    if (hasOffset)
      put(numbers, offset, 8);
    if (numbers.empty())
      return field;
    put(field, kExtra64, 2);
    put(field, numbers.size(), 2);
    return field + numbers;
  };
  const std::string ofMember = extra(/*hasOffset=*/false), ofEntry = extra(/*hasOffset=*/isFar);
  put(bytes_, kMemberSignature, 4);
  bytes_ += common(ofMember.size()) + name + ofMember;
  bytes_ += head;
  bytes_ += rest;
  put(directory_, kEntrySignature, 4);
  put(directory_, isLarge || isFar ? kVersion64 : kVersion, 2);
  directory_ += common(ofEntry.size());
  put(directory_, 0, 10); // comment, disk and attributes
  put(directory_, isFar ? kFull32 : offset, 4);
  directory_ += name + ofEntry;
  ++numMembers_;
}

std::string ZipWriter::finish() {
  const uint64_t begin = bytes_.size(), size = directory_.size();
  const bool is64 = begin > most_ || size > most_ || numMembers_ > std::min(most_, kMost16);
  bytes_ += directory_;
  if (is64) {
    const uint64_t end = bytes_.size();
    put(bytes_, kEnd64Signature, 4);
    put(bytes_, kEnd64Size - 12, 8); // of what follows
    put(bytes_, kVersion64, 2);
    put(bytes_, kVersion64, 2);
    put(bytes_, 0, 8);
    for (uint64_t number : {numMembers_, numMembers_, size, begin})
      put(bytes_, number, 8);
    put(bytes_, kLocator64Signature, 4);
    put(bytes_, 0, 4);
    put(bytes_, end, 8);
    put(bytes_, 1, 4);
  }
  put(bytes_, kEndSignature, 4);
  put(bytes_, 0, 4);
  for (int i = 0; i < 2; ++i)
    put(bytes_, is64 ? kFull16 : numMembers_, 2);
  put(bytes_, is64 ? kFull32 : size, 4);
  put(bytes_, is64 ? kFull32 : begin, 4);
  put(bytes_, 0, 2);
  return std::move(bytes_);
}

//===----------------------------------------------------------------------===//
// Reading
//===----------------------------------------------------------------------===//

namespace {

/// Where the directory is.
struct Directory {
  uint64_t begin = 0, end = 0, numMembers = 0;
};

StatusOr<Directory> findDirectory(std::string_view bytes) {
  if (bytes.size() < kEndSize)
    return damaged("it is too short");
  // A comment may follow the end record.
  uint64_t end = bytes.size() - kEndSize;
  while (numberAt(bytes, end, 4) != kEndSignature) {
    if (end == 0 || bytes.size() - end > kEndSize + kFull16)
      return damaged("it has no end record");
    --end;
  }
  Directory directory = {numberAt(bytes, end + 16, 4), end, numberAt(bytes, end + 10, 2)};
  if (directory.begin != kFull32 && directory.numMembers != kFull16)
    return directory;
  // Before the end record there is where the one of 64 bits lies.
  if (end < kLocator64Size || numberAt(bytes, end - kLocator64Size, 4) != kLocator64Signature)
    return damaged("it has no end record of 64 bits");
  const uint64_t end64 = numberAt(bytes, end - kLocator64Size + 8, 8), locator = end - kLocator64Size;
  if (end64 > locator || locator - end64 < kEnd64Size || numberAt(bytes, end64, 4) != kEnd64Signature)
    return damaged("its end record of 64 bits is not where it says");
  return Directory{numberAt(bytes, end64 + 48, 8), end64, numberAt(bytes, end64 + 32, 8)};
}

/// Replaces the numbers that are all ones by those of the extra field, in order.
bool readExtra64(std::string_view extra, const std::array<uint64_t *, 3> &numbers) {
  while (extra.size() >= 4) {
    const uint64_t kind = numberAt(extra, 0, 2), size = numberAt(extra, 2, 2);
    if (extra.size() - 4 < size)
      return false;
    std::string_view field = extra.substr(4, size);
    extra.remove_prefix(4 + size);
    if (kind != kExtra64)
      continue;
    for (uint64_t *number : numbers) {
      if (*number != kFull32)
        continue;
      if (field.size() < 8)
        return false;
      *number = numberAt(field, 0, 8);
      field.remove_prefix(8);
    }
    return true;
  }
  return false;
}

Status inflate(std::string_view packed, uint64_t size, std::string &contents) {
  constexpr uint64_t kMostAtOnce = uint64_t(1) << 30; // zlib counts in 32 bits
  CPFLEX_RETURN_IF_ERROR(checkHostMemory("a member of the .npz file", double(size)));
  contents.resize(size);
  z_stream stream = {};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
    return Status(StatusCode::OutOfMemory, "there is no memory to unpack the .npz file");
  uint64_t taken = 0, given = 0;
  int code = Z_OK;
  while (code == Z_OK) {
    const uInt toTake = uInt(std::min(packed.size() - taken, kMostAtOnce));
    const uInt toGive = uInt(std::min(size - given, kMostAtOnce));
    stream.next_in = reinterpret_cast<Bytef *>(const_cast<char *>(packed.data() + taken));
    stream.avail_in = toTake;
    stream.next_out = reinterpret_cast<Bytef *>(contents.data() + given);
    stream.avail_out = toGive;
    code = ::inflate(&stream, Z_NO_FLUSH);
    taken += toTake - stream.avail_in;
    given += toGive - stream.avail_out;
  }
  inflateEnd(&stream);
  return code == Z_STREAM_END && given == size ? Status::ok() : damaged("a member does not unpack");
}

} // namespace

StatusOr<std::map<std::string, ZipMember>> zipMembers(std::string_view bytes) {
  StatusOr<Directory> directory = findDirectory(bytes);
  if (!directory)
    return directory.status();
  std::map<std::string, ZipMember> members;
  uint64_t at = directory->begin;
  const uint64_t end = directory->end;
  for (uint64_t i = 0; i < directory->numMembers; ++i) {
    if (at > end || end - at < kEntrySize || numberAt(bytes, at, 4) != kEntrySignature)
      return damaged("its directory is cut");
    const uint64_t method = numberAt(bytes, at + 10, 2), checksum = numberAt(bytes, at + 16, 4);
    uint64_t packedSize = numberAt(bytes, at + 20, 4), size = numberAt(bytes, at + 24, 4);
    uint64_t offset = numberAt(bytes, at + 42, 4);
    const uint64_t nameSize = numberAt(bytes, at + 28, 2), extraSize = numberAt(bytes, at + 30, 2);
    const uint64_t entrySize = kEntrySize + nameSize + extraSize + numberAt(bytes, at + 32, 2);
    if (end - at < entrySize)
      return damaged("its directory is cut");
    const std::string name(bytes.substr(at + kEntrySize, nameSize));
    if ((size == kFull32 || packedSize == kFull32 || offset == kFull32) &&
        !readExtra64(bytes.substr(at + kEntrySize + nameSize, extraSize), {&size, &packedSize, &offset}))
      return damaged("a member lacks its sizes of 64 bits");
    at += entrySize;
    if (offset > bytes.size() || bytes.size() - offset < kMemberSize || numberAt(bytes, offset, 4) != kMemberSignature)
      return damaged("a member is not where the directory says");
    // The names are in no checksum, but they are there twice.
    if (bytes.substr(offset + kMemberSize, nameSize) != name)
      return damaged("a member has two names");
    const uint64_t begin = offset + kMemberSize + numberAt(bytes, offset + 26, 2) + numberAt(bytes, offset + 28, 2);
    if (begin > bytes.size() || bytes.size() - begin < packedSize)
      return damaged("a member is cut");
    std::string_view packed = bytes.substr(begin, packedSize);
    // Deflate packs a byte in no less than 1/1032 of one.
    constexpr uint64_t kMostRatio = 1032;
    if ((method == kStored && size != packedSize) || size / kMostRatio > packedSize)
      return damaged("the sizes of a member do not fit");
    if (method != kStored && method != kDeflated)
      return Status::unsupported(
          fmt::format("'{}' in the .npz file is packed by method {}; expected stored or deflated", name, method));
    ZipMember &member = members[name];
    member.contents = packed;
    if (method == kDeflated) {
      CPFLEX_RETURN_IF_ERROR(inflate(packed, size, member.unpacked));
      member.contents = member.unpacked;
    }
    if (checksumOf(0, member.contents) != checksum)
      return damaged("the checksum of a member is wrong");
  }
  return members;
}

} // namespace cpflex
