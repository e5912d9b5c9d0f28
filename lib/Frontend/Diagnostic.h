// What the front end says about a user's program: plain data that keeps no reference to the
// program, and its text form.
#pragma once

#include "lib/Frontend/Source.h"

#include <optional>
#include <set>
#include <string>
#include <vector>

namespace cpflex {

enum class Severity : uint8_t { Error, Warning, Note };

/// One replacement that would mend the program.
struct FixIt {
  int line = 1, column = 1;       ///< from 1, bytes
  int endLine = 1, endColumn = 1; ///< half-open
  std::string replacement;
};

/// One message at one source range. Lower case, no final period, names in single quotes.
struct Diagnostic {
  std::string file;               ///< as the user named it; empty when there is no source
  int line = 0, column = 0;       ///< from 1, bytes; 0 when there is no source
  int endLine = 0, endColumn = 0; ///< half-open
  Severity severity = Severity::Error;
  std::string message;
  std::string sourceLine; ///< text of `line`, so that rendering needs no file
  std::vector<Diagnostic> notes;
  std::optional<FixIt> fixIt;
};

/// Most errors that one run reports; the rest would be noise.
inline constexpr size_t kMaxErrors = 50;

/// The diagnostics of one run in the order in which they were found. The same message at the same
/// place is kept once.
class DiagnosticList {
public:
  explicit DiagnosticList(size_t maxErrors = kMaxErrors) : maxErrors_(maxErrors) {}

  /// Adds a message at `range` of `source`. The reference is valid until the next call.
  Diagnostic &report(Severity severity, const SourceRef &source, SourceRange range, std::string message);
  Diagnostic &error(const SourceRef &source, SourceRange range, std::string message) {
    return report(Severity::Error, source, range, std::move(message));
  }
  Diagnostic &warning(const SourceRef &source, SourceRange range, std::string message) {
    return report(Severity::Warning, source, range, std::move(message));
  }

  /// Adds a remark on what has a meaning but is probably a mistake: for `cpflexc check` only.
  Diagnostic &lint(const SourceRef &source, SourceRange range, std::string message);

  /// Adds a message that has no place in a file.
  Diagnostic &error(std::string message);

  bool hasErrors() const { return numErrors_ > 0; }
  size_t numErrors() const { return numErrors_; }
  bool isFull() const { return numErrors_ >= maxErrors_; }
  const std::vector<Diagnostic> &all() const { return diagnostics_; }
  const std::vector<Diagnostic> &lints() const { return lints_; }

private:
  Diagnostic &add(Diagnostic diagnostic);

  std::vector<Diagnostic> diagnostics_, lints_;
  std::set<std::string> seen_;
  Diagnostic discarded_;
  size_t numErrors_ = 0;
  size_t maxErrors_;
};

/// A diagnostic at a place of a source, for notes and for lists of one's own.
Diagnostic makeDiagnostic(Severity severity, const SourceRef &source, SourceRange range, std::string message);

/// Appends a note that points at `range` of `source`.
void addNote(Diagnostic &diagnostic, const SourceRef &source, SourceRange range, std::string message);

/// Sets the replacement of `range` of `source` by `replacement`.
void setFixIt(Diagnostic &diagnostic, const SourceRef &source, SourceRange range, std::string replacement);

/// `file:line:column: error: message`, the source line, a caret with the range, the fix-it and the
/// notes; ends in a newline.
std::string renderDiagnostic(const Diagnostic &diagnostic);
std::string renderDiagnostics(const DiagnosticList &diagnostics);

} // namespace cpflex
