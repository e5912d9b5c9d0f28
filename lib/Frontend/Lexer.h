// Cuts `.cpf` text into tokens by Python's rules of lines, indentation and brackets. Grammar is
// left to the parser.
#pragma once

#include "lib/Frontend/Diagnostic.h"

#include <vector>

namespace cpflex {

enum class TokenKind : uint8_t {
  End,
  Newline, ///< the end of a logical line
  Indent,
  Dedent,
  Name, ///< names and keywords
  Int,
  Float,
  String,
  Operator, ///< operators and punctuation
  Error,    ///< text that was already reported
};

struct Token {
  TokenKind kind = TokenKind::End;
  SourceRange range;
};

/// Longest accepted name in characters.
inline constexpr size_t kMaxNameLength = 255;
/// Most levels of indentation and of open brackets, as in CPython.
inline constexpr size_t kMaxIndents = 100;
inline constexpr size_t kMaxBrackets = 200;

/// The tokens of `source`, the last one End. Indents and Dedents are balanced also after errors.
std::vector<Token> tokenize(const SourceRef &source, DiagnosticList &diagnostics);

/// The contents of a String token with its escapes resolved.
std::string stringContents(std::string_view token);

} // namespace cpflex
