// The tokenizer of `.cpf` files.
#include "lib/Frontend/Lexer.h"

#include <fmt/format.h>

namespace cpflex {

namespace {

bool isDigit(char c) { return c >= '0' && c <= '9'; }
bool isNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool isNamePart(char c) { return isNameStart(c) || isDigit(c); }

// Length of the well-formed UTF-8 sequence at `text[i]`, 0 when it is none.
size_t utf8Length(std::string_view text, size_t i) {
  uint8_t lead = uint8_t(text[i]);
  size_t length = lead < 0x80                   ? 1
                  : lead >= 0xC2 && lead < 0xE0 ? 2
                  : (lead & 0xF0) == 0xE0       ? 3
                  : lead >= 0xF0 && lead < 0xF5 ? 4
                                                : 0;
  if (length == 0 || i + length > text.size())
    return 0;
  for (size_t k = 1; k < length; ++k)
    if ((uint8_t(text[i + k]) & 0xC0) != 0x80)
      return 0;
  uint8_t second = length > 2 ? uint8_t(text[i + 1]) : 0;
  bool isOverlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  bool isOutOfRange = (lead == 0xED && second > 0x9F) || (lead == 0xF4 && second > 0x8F);
  return isOverlong || isOutOfRange ? 0 : length;
}

class Lexer {
public:
  Lexer(const SourceRef &source, DiagnosticList &diagnostics)
      : source_(source), text_(source->text()), diagnostics_(diagnostics) {}

  std::vector<Token> run() {
    if (hasValidEncoding())
      while (at_ < text_.size() && !isStopped_)
        lexLine();
    if (!brackets_.empty() && !isStopped_) {
      error(brackets_.back(), brackets_.back() + 1, fmt::format("'{}' is never closed", text_[brackets_.back()]));
      push(TokenKind::Error, at_, at_);
    }
    endLogicalLine();
    for (; indents_.size() > 1; indents_.pop_back())
      push(TokenKind::Dedent, at_, at_);
    push(TokenKind::End, text_.size(), text_.size());
    return std::move(tokens_);
  }

private:
  bool hasValidEncoding() {
    if (text_.size() > kMaxSourceBytes) {
      diagnostics_.error(source_, {0, 0},
                         fmt::format("the file has more than {0} bytes; expected at most {0}", kMaxSourceBytes));
      return false;
    }
    if (text_.starts_with("\xEF\xBB\xBF"))
      at_ = 3;
    for (size_t i = at_; i < text_.size();) {
      size_t length = utf8Length(text_, i);
      if (length == 0) {
        error(i, i + 1,
              fmt::format("byte 0x{:02x} is not part of UTF-8; expected a text file in UTF-8", uint8_t(text_[i])));
        return false;
      }
      i += length;
    }
    return true;
  }

  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  void push(TokenKind kind, size_t begin, size_t end) { tokens_.push_back({kind, {uint32_t(begin), uint32_t(end)}}); }
  void error(size_t begin, size_t end, std::string message) {
    diagnostics_.error(source_, {uint32_t(begin), uint32_t(end)}, std::move(message));
  }

  void endLogicalLine() {
    if (!tokens_.empty() && tokens_.back().kind != TokenKind::Newline && tokens_.back().kind != TokenKind::Dedent &&
        tokens_.back().kind != TokenKind::Indent)
      push(TokenKind::Newline, tokens_.back().range.end, tokens_.back().range.end);
  }

  // One physical line that starts a logical line, with the lines that continue it.
  void lexLine() {
    size_t lineBegin = at_;
    size_t width = 0;
    bool hasSpace = false, hasTab = false;
    for (;; ++at_) {
      if (peek() == ' ')
        hasSpace = true, ++width;
      else if (peek() == '\t')
        hasTab = true, width = (width / 8 + 1) * 8;
      else if (peek() != '\f')
        break;
    }
    if (peek() == '#')
      skipComment();
    if (at_ >= text_.size() || peek() == '\n' || peek() == '\r') {
      at_ += at_ < text_.size();
      return;
    }
    if (hasSpace && hasTab)
      error(lineBegin, at_, "the indentation mixes tabs and spaces; expected spaces");
    indent(lineBegin, width);
    while (at_ < text_.size() && !isStopped_)
      if (!lexToken())
        break;
    endLogicalLine();
  }

  void indent(size_t lineBegin, size_t width) {
    if (width > indents_.back()) {
      if (indents_.size() >= kMaxIndents) {
        error(lineBegin, at_, fmt::format("more than {} levels of indentation", kMaxIndents));
        isStopped_ = true;
        return;
      }
      indents_.push_back(width);
      push(TokenKind::Indent, lineBegin, at_);
      return;
    }
    while (width < indents_.back()) {
      indents_.pop_back();
      push(TokenKind::Dedent, at_, at_);
    }
    if (width != indents_.back())
      error(lineBegin, at_, "the indentation matches no enclosing block");
  }

  void skipComment() {
    while (at_ < text_.size() && text_[at_] != '\n')
      ++at_;
  }

  // False at the end of the logical line.
  bool lexToken() {
    char c = peek();
    if (c == ' ' || c == '\t' || c == '\f' || c == '\r') {
      ++at_;
      return true;
    }
    if (c == '\n') {
      ++at_;
      return !brackets_.empty() && !closesForgottenBracket();
    }
    if (c == '#') {
      skipComment();
      return true;
    }
    if (c == '\\' && (peek(1) == '\n' || (peek(1) == '\r' && peek(2) == '\n'))) {
      at_ += peek(1) == '\n' ? 2 : 3;
      return true;
    }
    if (isNameStart(c))
      lexName();
    else if (isDigit(c) || (c == '.' && isDigit(peek(1))))
      lexNumber();
    else if (c == '"' || c == '\'')
      lexString(at_);
    else
      lexOperator();
    return true;
  }

  // A line that can only begin a statement shows that a bracket was forgotten; what follows is then
  // still parsed.
  bool closesForgottenBracket() {
    std::string_view rest = text_.substr(at_);
    if (!rest.starts_with("def ") && !rest.starts_with("@mask") && !rest.starts_with("@score") &&
        !rest.starts_with("from ") && !rest.starts_with("import "))
      return false;
    error(brackets_.back(), brackets_.back() + 1, fmt::format("'{}' is never closed", text_[brackets_.back()]));
    brackets_.clear();
    push(TokenKind::Error, at_, at_);
    return true;
  }

  void lexName() {
    size_t begin = at_;
    while (isNamePart(peek()))
      ++at_;
    std::string_view name = text_.substr(begin, at_ - begin);
    if (name.size() > kMaxNameLength) {
      error(begin, begin + 1, fmt::format("a name of {} characters; expected at most {}", name.size(), kMaxNameLength));
      push(TokenKind::Error, begin, at_);
      return;
    }
    if ((peek() == '"' || peek() == '\'') && name.size() <= 2) {
      bool isFormatted = name.find_first_of("fF") != std::string_view::npos;
      bool isBytes = name.find_first_of("bB") != std::string_view::npos;
      lexString(begin);
      if (isFormatted)
        error(begin, at_,
              "f-strings are not part of the language; text is only used for names, as in "
              "attention(\"name\")");
      else if (isBytes)
        error(begin, at_, "byte strings are not part of the language; text is only used for names");
      if (isFormatted || isBytes)
        tokens_.back().kind = TokenKind::Error;
      return;
    }
    push(TokenKind::Name, begin, at_);
  }

  void lexNumber() {
    size_t begin = at_;
    bool isFloat = false;
    auto skipDigits = [&] {
      while (isDigit(peek()) || (peek() == '_' && isNamePart(peek(1))))
        ++at_;
    };
    if (peek() == '0' && (peek(1) | 0x20) >= 'a' &&
        ((peek(1) | 0x20) == 'x' || (peek(1) | 0x20) == 'o' || (peek(1) | 0x20) == 'b')) {
      at_ += 2;
      while (isNamePart(peek()))
        ++at_;
      push(TokenKind::Int, begin, at_);
      return;
    }
    skipDigits();
    if (peek() == '.') {
      isFloat = true;
      ++at_;
      skipDigits();
    }
    if ((peek() == 'e' || peek() == 'E') &&
        (isDigit(peek(1)) || ((peek(1) == '+' || peek(1) == '-') && isDigit(peek(2))))) {
      isFloat = true;
      at_ += 2;
      skipDigits();
    }
    if (isNamePart(peek())) {
      size_t suffix = at_;
      while (isNamePart(peek()))
        ++at_;
      bool isImaginary = at_ - suffix == 1 && (text_[suffix] == 'j' || text_[suffix] == 'J');
      error(begin, at_,
            isImaginary ? "complex numbers are not part of the language" : "a name may not begin with a digit");
      push(TokenKind::Error, begin, at_);
      return;
    }
    push(isFloat ? TokenKind::Float : TokenKind::Int, begin, at_);
  }

  void lexString(size_t begin) {
    char quote = peek();
    bool isTriple = peek(1) == quote && peek(2) == quote;
    bool isRaw = text_.substr(begin, at_ - begin).find_first_of("rR") != std::string_view::npos;
    size_t quoteBegin = at_;
    at_ += isTriple ? 3 : 1;
    while (at_ < text_.size()) {
      if (text_[at_] == '\\' && at_ + 1 < text_.size()) {
        at_ += 2;
        continue;
      }
      if (text_[at_] == '\n' && !isTriple)
        break;
      if (text_[at_] == quote && (!isTriple || (peek(1) == quote && peek(2) == quote))) {
        at_ += isTriple ? 3 : 1;
        push(TokenKind::String, isRaw ? begin : quoteBegin, at_);
        return;
      }
      ++at_;
    }
    error(quoteBegin, quoteBegin + (isTriple ? 3 : 1), "the string is never closed");
    push(TokenKind::Error, begin, at_);
    isStopped_ = isTriple;
  }

  void lexOperator() {
    static constexpr std::string_view kOperators[] = {
        "**=", "//=", ">>=", "<<=", "...", "**", "//", "<<", ">>", "<=", ">=", "==", "!=", "->", ":=", "+=",
        "-=",  "*=",  "/=",  "%=",  "&=",  "|=", "^=", "@=", "+",  "-",  "*",  "/",  "%",  "&",  "|",  "^",
        "~",   "<",   ">",   "(",   ")",   "[",  "]",  "{",  "}",  ",",  ":",  ".",  ";",  "@",  "="};
    for (std::string_view op : kOperators) {
      if (!text_.substr(at_).starts_with(op))
        continue;
      size_t begin = at_;
      at_ += op.size();
      push(TokenKind::Operator, begin, at_);
      trackBracket(op[0], begin);
      return;
    }
    size_t begin = at_;
    at_ += std::max<size_t>(utf8Length(text_, at_), 1);
    bool isAscii = uint8_t(text_[begin]) < 0x80;
    std::string shown = isAscii && uint8_t(text_[begin]) < 0x20 ? fmt::format("\\x{:02x}", text_[begin])
                                                                : std::string(text_.substr(begin, at_ - begin));
    if (text_[begin] == '!')
      setFixIt(diagnostics_.error(source_, {uint32_t(begin), uint32_t(at_)},
                                  "unexpected '!'; write 'not' before a condition"),
               source_, {uint32_t(begin), uint32_t(at_)}, "not ");
    else if (text_[begin] == '?')
      error(begin, at_, "unexpected '?'; a choice is written 'a if condition else b'");
    else if (text_[begin] == '\\')
      error(begin, at_, "unexpected '\\'; a line is continued when '\\' is its last character");
    else
      error(begin, at_,
            fmt::format("unexpected character '{}'{}", shown,
                        isAscii ? "" : "; names use ASCII letters, digits and '_'"));
    push(TokenKind::Error, begin, at_);
  }

  void trackBracket(char c, size_t offset) {
    if (c == '(' || c == '[' || c == '{') {
      if (brackets_.size() >= kMaxBrackets) {
        error(offset, offset + 1, fmt::format("more than {} open brackets", kMaxBrackets));
        isStopped_ = true;
        brackets_.clear();
        return;
      }
      brackets_.push_back(uint32_t(offset));
      return;
    }
    if (c != ')' && c != ']' && c != '}')
      return;
    char expected = c == ')' ? '(' : c == ']' ? '[' : '{';
    if (brackets_.empty()) {
      error(offset, offset + 1, fmt::format("'{}' closes nothing", c));
      tokens_.back().kind = TokenKind::Error;
      return;
    }
    char opened = text_[brackets_.back()];
    if (opened != expected) {
      addNote(diagnostics_.error(source_, {uint32_t(offset), uint32_t(offset + 1)},
                                 fmt::format("'{}' does not close '{}'", c, opened)),
              source_, {brackets_.back(), brackets_.back() + 1}, "opened here");
      tokens_.back().kind = TokenKind::Error;
    }
    brackets_.pop_back();
  }

  SourceRef source_;
  std::string_view text_;
  DiagnosticList &diagnostics_;
  size_t at_ = 0;
  bool isStopped_ = false;
  std::vector<size_t> indents_{0};
  std::vector<uint32_t> brackets_;
  std::vector<Token> tokens_;
};

} // namespace

std::vector<Token> tokenize(const SourceRef &source, DiagnosticList &diagnostics) {
  return Lexer(source, diagnostics).run();
}

std::string stringContents(std::string_view token) {
  bool isRaw = token.starts_with('r') || token.starts_with('R');
  while (!token.empty() && token[0] != '"' && token[0] != '\'')
    token.remove_prefix(1);
  size_t quotes = token.size() >= 6 && token[0] == token[1] && token[1] == token[2] ? 3 : 1;
  if (token.size() < 2 * quotes)
    return {};
  token = token.substr(quotes, token.size() - 2 * quotes);
  if (isRaw)
    return std::string(token);
  std::string result;
  for (size_t i = 0; i < token.size(); ++i) {
    if (token[i] != '\\' || i + 1 == token.size()) {
      result += token[i];
      continue;
    }
    switch (token[++i]) {
    case 'n': result += '\n'; break;
    case 't': result += '\t'; break;
    case '\n': break;
    case '\\':
    case '\'':
    case '"': result += token[i]; break;
    default: result += '\\'; result += token[i];
    }
  }
  return result;
}

} // namespace cpflex
