// The text of one `.cpf` file and how byte offsets in it become lines and columns. Reading files is
// left to the caller.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

/// A half-open range of byte offsets [begin, end) of a SourceText.
struct SourceRange {
  uint32_t begin = 0;
  uint32_t end = 0;
};

/// A line and a column, both from 1; columns count bytes.
struct SourcePosition {
  int line = 1;
  int column = 1;
};

/// Largest accepted size of one source file in bytes.
inline constexpr size_t kMaxSourceBytes = size_t(16) << 20;

/// An immutable source text with an index of its lines.
class SourceText {
public:
  SourceText(std::string path, std::string text);

  const std::string &path() const { return path_; }
  std::string_view text() const { return text_; }
  std::string_view slice(SourceRange range) const;
  SourcePosition position(uint32_t offset) const;

  /// The offset of the first byte of `line` (from 1); that of the text's end for lines past it.
  uint32_t lineBegin(int line) const;

  /// The text of `line` (from 1) without its line end.
  std::string_view line(int line) const;

private:
  std::string path_;
  std::string text_;
  std::vector<uint32_t> lineBegins_;
};

using SourceRef = std::shared_ptr<const SourceText>;

} // namespace cpflex
