// Collecting diagnostics and writing them as text.
#include "lib/Frontend/Diagnostic.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

namespace {

// Longer source lines are cut around the caret; a hostile file may hold one line of megabytes.
constexpr size_t kMaxShownColumns = 160;
constexpr size_t kMaxKeptLine = 4096;

const char *toString(Severity severity) {
  switch (severity) {
  case Severity::Error: return "error";
  case Severity::Warning: return "warning";
  case Severity::Note: return "note";
  }
  return "";
}

bool isContinuationByte(char c) { return (uint8_t(c) & 0xC0) == 0x80; }

// Tabs become one space and other control characters '?', so that the caret stands below what it
// means.
std::string printable(std::string_view text) {
  std::string result(text);
  for (char &c : result)
    if (c == '\t')
      c = ' ';
    else if (uint8_t(c) < 0x20 || c == 0x7f)
      c = '?';
  return result;
}

void renderSource(const Diagnostic &diagnostic, std::string &out) {
  if (diagnostic.line == 0 || diagnostic.sourceLine.empty())
    return;
  std::string line = printable(diagnostic.sourceLine);
  size_t begin = std::min<size_t>(std::max(diagnostic.column - 1, 0), line.size());
  size_t end = diagnostic.endLine > diagnostic.line
                   ? line.size()
                   : std::min<size_t>(std::max(diagnostic.endColumn - 1, 0), line.size());
  end = std::max(end, begin);
  if (line.size() > kMaxShownColumns) {
    size_t cut = begin > kMaxShownColumns / 2 ? begin - kMaxShownColumns / 2 : 0;
    while (cut < begin && isContinuationByte(line[cut]))
      ++cut;
    size_t length = std::min(kMaxShownColumns, line.size() - cut);
    while (cut + length < line.size() && isContinuationByte(line[cut + length]))
      --length;
    line = line.substr(cut, length);
    begin -= cut;
    end = std::min(end - cut, line.size());
  }
  std::string marks;
  for (size_t i = 0; i < std::max(end, begin + 1); ++i) {
    if (i < line.size() && isContinuationByte(line[i]) && i != begin)
      continue;
    marks += i < begin ? ' ' : i == begin ? '^' : '~';
  }
  out += line + "\n" + marks + "\n";
}

void render(const Diagnostic &diagnostic, std::string &out) {
  if (!diagnostic.file.empty())
    out += diagnostic.line ? fmt::format("{}:{}:{}: ", diagnostic.file, diagnostic.line, diagnostic.column)
                           : diagnostic.file + ": ";
  out += fmt::format("{}: {}\n", toString(diagnostic.severity), diagnostic.message);
  renderSource(diagnostic, out);
  if (diagnostic.fixIt && diagnostic.fixIt->line == diagnostic.line && diagnostic.sourceLine.size() <= kMaxShownColumns)
    out += std::string(std::max(diagnostic.fixIt->column - 1, 0), ' ') +
           printable(diagnostic.fixIt->replacement.substr(0, diagnostic.fixIt->replacement.find('\n'))) + "\n";
  for (const Diagnostic &note : diagnostic.notes)
    render(note, out);
}

// The same message at the same place.
std::string keyOf(const Diagnostic &diagnostic) {
  return fmt::format("{}:{}:{}:{}", diagnostic.file, diagnostic.line, diagnostic.column, diagnostic.message);
}

} // namespace

Diagnostic makeDiagnostic(Severity severity, const SourceRef &source, SourceRange range, std::string message) {
  Diagnostic diagnostic;
  diagnostic.severity = severity;
  diagnostic.message = std::move(message);
  if (!source)
    return diagnostic;
  SourcePosition begin = source->position(range.begin);
  SourcePosition end = source->position(std::max(range.begin, range.end));
  diagnostic.file = source->path();
  diagnostic.line = begin.line;
  diagnostic.column = begin.column;
  diagnostic.endLine = end.line;
  diagnostic.endColumn = end.column;
  if (std::string_view line = source->line(begin.line); line.size() <= kMaxKeptLine)
    diagnostic.sourceLine = std::string(line);
  return diagnostic;
}

void addNote(Diagnostic &diagnostic, const SourceRef &source, SourceRange range, std::string message) {
  diagnostic.notes.push_back(makeDiagnostic(Severity::Note, source, range, std::move(message)));
}

void setFixIt(Diagnostic &diagnostic, const SourceRef &source, SourceRange range, std::string replacement) {
  SourcePosition begin = source->position(range.begin);
  SourcePosition end = source->position(range.end);
  diagnostic.fixIt = FixIt{begin.line, begin.column, end.line, end.column, std::move(replacement)};
}

Diagnostic &DiagnosticList::add(Diagnostic diagnostic) {
  std::string key = keyOf(diagnostic);
  bool isError = diagnostic.severity == Severity::Error;
  bool isNew = seen_.insert(std::move(key)).second;
  if (!isNew || isFull()) {
    discarded_ = std::move(diagnostic);
    return discarded_;
  }
  numErrors_ += isError;
  diagnostics_.push_back(std::move(diagnostic));
  return diagnostics_.back();
}

Diagnostic &DiagnosticList::report(Severity severity, const SourceRef &source, SourceRange range, std::string message) {
  return add(makeDiagnostic(severity, source, range, std::move(message)));
}

Diagnostic &DiagnosticList::lint(const SourceRef &source, SourceRange range, std::string message) {
  Diagnostic diagnostic = makeDiagnostic(Severity::Warning, source, range, std::move(message));
  if (!seen_.insert(keyOf(diagnostic)).second)
    return discarded_ = std::move(diagnostic);
  return lints_.emplace_back(std::move(diagnostic));
}

Diagnostic &DiagnosticList::error(std::string message) {
  return add(makeDiagnostic(Severity::Error, nullptr, {}, std::move(message)));
}

std::string renderDiagnostic(const Diagnostic &diagnostic) {
  std::string out;
  render(diagnostic, out);
  return out;
}

std::string renderDiagnostics(const DiagnosticList &diagnostics) {
  std::string out;
  for (const Diagnostic &diagnostic : diagnostics.all())
    render(diagnostic, out);
  if (diagnostics.isFull())
    out += fmt::format("error: {} errors, no more are shown\n", kMaxErrors);
  return out;
}

} // namespace cpflex
