// Copies lines of a Python file and finds their places again.
#include "lib/Frontend/PortedText.h"

#include <algorithm>

namespace cpflex {

std::string withRenamed(std::string text, const std::set<std::string> &renamed) {
  auto isNamePart = [](char c) {
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  };
  for (const std::string &name : renamed)
    for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + name.size())) {
      bool isWhole = (at == 0 || (!isNamePart(text[at - 1]) && text[at - 1] != '.')) &&
                     (at + name.size() == text.size() || !isNamePart(text[at + name.size()]));
      if (isWhole)
        text.insert(at + name.size(), "_");
    }
  return text;
}

void PortedText::add(const std::string &lines) {
  text_ += lines;
  origins_.resize(origins_.size() + size_t(std::count(lines.begin(), lines.end(), '\n')));
}

void PortedText::addCopy(SourceRange range, const std::set<std::string> &renamed) {
  const SourcePosition begin = source_->position(range.begin), end = source_->position(range.end);
  const size_t margin = size_t(begin.column - 1);
  for (int line = begin.line; line <= end.line; ++line) {
    std::string_view text = source_->line(line);
    const size_t spaces = std::min({margin, text.find_first_not_of(" \t"), text.size()});
    text_ += withRenamed(std::string(text.substr(spaces)), renamed) + "\n";
    origins_.push_back({line, uint32_t(spaces)});
  }
}

// The place of a message in the Python file, or in the ported text where the line was made.
SourceRange PortedText::rangeOf(const Diagnostic &diagnostic, const SourceRef &ported, SourceRef &source) const {
  const size_t line = size_t(std::max(diagnostic.line, 1));
  const int endColumn = diagnostic.endLine == diagnostic.line ? diagnostic.endColumn : diagnostic.column + 1;
  const bool isCopied = line <= origins_.size() && origins_[line - 1].line > 0;
  source = isCopied ? source_ : ported;
  if (!isCopied) {
    const uint32_t lineBegin = ported->lineBegin(int(line));
    return {lineBegin + uint32_t(diagnostic.column - 1), lineBegin + uint32_t(endColumn - 1)};
  }
  const Origin origin = origins_[line - 1];
  const std::string_view from = ported->line(int(line)), to = source_->line(origin.line).substr(origin.margin);
  // Both lines are the same but for the '_' of renamed names.
  const auto columnOf = [&](int column) {
    size_t at = 0;
    for (size_t i = 0; i + 1 < size_t(std::max(column, 1)) && i < from.size(); ++i)
      at += at < to.size() && from[i] == to[at];
    return uint32_t(at);
  };
  const uint32_t lineBegin = source_->lineBegin(origin.line) + origin.margin;
  return {lineBegin + columnOf(diagnostic.column), lineBegin + columnOf(endColumn)};
}

void PortedText::transfer(const DiagnosticList &found, const SourceRef &ported, DiagnosticList &to) const {
  for (const Diagnostic &diagnostic : found.all()) {
    SourceRef source;
    const SourceRange range = rangeOf(diagnostic, ported, source);
    Diagnostic &moved = to.report(diagnostic.severity, source, range, diagnostic.message);
    for (const Diagnostic &note : diagnostic.notes) {
      if (note.file != ported->path()) {
        moved.notes.push_back(note);
        continue;
      }
      const SourceRange noteRange = rangeOf(note, ported, source);
      addNote(moved, source, noteRange, note.message);
    }
  }
}

} // namespace cpflex
