// How are several byte strings kept in one `.zip` file? Writes archives without compression and reads stored and
// deflated ones, with the 64-bit extension where sizes need it. What the members mean is the caller's business.
#pragma once

#include "runtime/contract/Status.h"

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace cpflex {

/// An archive that grows in memory. Equal members give equal bytes: dates are fixed.
class ZipWriter {
public:
  /// Sizes, offsets and counts that fit 32 (or 16) bits in the format are written with 64 above `most`. The format's
  /// own bound is right for every file; tests take less, so that they need no archive of 4 GiB.
  explicit ZipWriter(uint64_t most = kMost32) : most_(most) {}

  /// Makes room for members of so many bytes in all.
  void reserve(size_t sizeInBytes) { bytes_.reserve(sizeInBytes); }

  /// Adds a member whose contents are `head` followed by `rest`.
  void add(const std::string &name, std::string_view head, std::string_view rest);

  /// The bytes of the archive; the writer is spent.
  std::string finish();

private:
  static constexpr uint64_t kMost32 = 0xfffffffe, kMost16 = 0xfffe;

  uint64_t most_;
  std::string bytes_, directory_;
  uint64_t numMembers_ = 0;
};

/// One member of an archive that is being read.
struct ZipMember {
  std::string_view contents; ///< within the archive, or within `unpacked`
  std::string unpacked;      ///< of a deflated member

  ZipMember() = default;
  ZipMember(const ZipMember &) = delete;
};

/// The members of an archive by name; they refer to `bytes`. DataLoss when it is damaged, Unsupported for other
/// packings.
StatusOr<std::map<std::string, ZipMember>> zipMembers(std::string_view bytes);

} // namespace cpflex
