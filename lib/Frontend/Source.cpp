// The index of lines behind SourceText.
#include "lib/Frontend/Source.h"

#include <algorithm>

namespace cpflex {

SourceText::SourceText(std::string path, std::string text)
    : path_(std::move(path)), text_(std::move(text)), lineBegins_{0} {
  for (size_t i = 0; i < text_.size(); ++i)
    if (text_[i] == '\n')
      lineBegins_.push_back(uint32_t(i + 1));
}

std::string_view SourceText::slice(SourceRange range) const {
  size_t begin = std::min<size_t>(range.begin, text_.size());
  size_t end = std::clamp<size_t>(range.end, begin, text_.size());
  return std::string_view(text_).substr(begin, end - begin);
}

SourcePosition SourceText::position(uint32_t offset) const {
  offset = std::min<uint32_t>(offset, uint32_t(text_.size()));
  auto next = std::upper_bound(lineBegins_.begin(), lineBegins_.end(), offset);
  int line = int(next - lineBegins_.begin());
  return {line, int(offset - lineBegins_[line - 1]) + 1};
}

uint32_t SourceText::lineBegin(int line) const {
  const bool isInside = line >= 1 && size_t(line) <= lineBegins_.size();
  return isInside ? lineBegins_[line - 1] : uint32_t(text_.size());
}

std::string_view SourceText::line(int line) const {
  if (line < 1 || size_t(line) > lineBegins_.size())
    return {};
  size_t begin = lineBegins_[line - 1];
  size_t end = size_t(line) < lineBegins_.size() ? lineBegins_[line] : text_.size();
  std::string_view result = std::string_view(text_).substr(begin, end - begin);
  while (!result.empty() && (result.back() == '\n' || result.back() == '\r'))
    result.remove_suffix(1);
  return result;
}

} // namespace cpflex
