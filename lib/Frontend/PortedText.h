// The text of a program that was translated from Python, with the places that its lines come from,
// so that messages about the program point into the Python file.
#pragma once

#include "lib/Frontend/Diagnostic.h"

#include <set>
#include <string>
#include <vector>

namespace cpflex {

class PortedText {
public:
  explicit PortedText(SourceRef source) : source_(std::move(source)) {}

  /// Appends lines that the Python file doesn't have; `lines` ends in a newline or is empty.
  void add(const std::string &lines);

  /// Appends the lines of the Python file that hold `range`, moved to the left margin by that of the first, with '_'
  /// after each whole name in `renamed`.
  void addCopy(SourceRange range, const std::set<std::string> &renamed);

  const std::string &text() const { return text_; }

  /// Reports what was found in `ported`, which holds text(), at the places in the Python file where there are any.
  void transfer(const DiagnosticList &found, const SourceRef &ported, DiagnosticList &to) const;

private:
  struct Origin {
    int line = 0; ///< in the Python file, from 1; 0 for none
    uint32_t margin = 0;
  };

  SourceRange rangeOf(const Diagnostic &diagnostic, const SourceRef &ported, SourceRef &source) const;

  SourceRef source_;
  std::string text_;
  std::vector<Origin> origins_; ///< of each line
};

/// `text` with '_' after each whole name in `renamed`; attributes are left alone.
std::string withRenamed(std::string text, const std::set<std::string> &renamed);

} // namespace cpflex
