// SHA-256 (FIPS 180-4), for the keys and checksums of the kernel cache. Not for secrets.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace cpflex {

/// A digest that is fed piece by piece.
class Sha256 {
public:
  /// Adds bytes.
  void add(std::string_view bytes);
  /// Adds a length and then the bytes, so that ("ab", "c") and ("a", "bc") differ.
  void addField(std::string_view bytes);
  /// The digest of everything added, as 64 lower-case hexadecimal digits. Ends the digest.
  std::string finish();

private:
  void addBlock(const unsigned char *block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> pending_ = {};
  uint64_t sizeInBytes_ = 0;
};

/// The digest of one piece of text.
std::string sha256(std::string_view bytes);

} // namespace cpflex
