// The parser of expressions: Python's operators with Python's precedence, and a message of its own
// for each form of Python that the language leaves out.
#include "lib/Frontend/ParserState.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace cpflex {

using namespace ast;

namespace {

constexpr std::string_view kKeywords[] = {"False",  "None",   "True",    "and",      "as",       "assert", "async",
                                          "await",  "break",  "class",   "continue", "def",      "del",    "elif",
                                          "else",   "except", "finally", "for",      "from",     "global", "if",
                                          "import", "in",     "is",      "lambda",   "nonlocal", "not",    "or",
                                          "pass",   "raise",  "return",  "try",      "while",    "with",   "yield"};

struct BinaryOperator {
  std::string_view text;
  OpKind op;
  int precedence;
};
// Python's precedence: a larger number binds tighter. '**' and unary operators bind tighter still.
constexpr BinaryOperator kBinaryOperators[] = {
    {"|", OpKind::BitOr, 1}, {"^", OpKind::BitXor, 2}, {"&", OpKind::BitAnd, 3},    {"<<", OpKind::Shl, 4},
    {">>", OpKind::Shr, 4},  {"+", OpKind::Add, 5},    {"-", OpKind::Sub, 5},       {"*", OpKind::Mul, 6},
    {"/", OpKind::Div, 6},   {"%", OpKind::Mod, 6},    {"//", OpKind::FloorDiv, 6},
};

constexpr const char *kTooDeep = "nested more than {} levels deep; give parts of it names";

} // namespace

bool isKeyword(std::string_view word) {
  return std::find(std::begin(kKeywords), std::end(kKeywords), word) != std::end(kKeywords);
}

Diagnostic *Parser::error(SourceRange range, std::string message) {
  if (isRecovering_)
    return nullptr;
  isRecovering_ = true;
  return &diagnostics_.error(source_, range, std::move(message));
}

void Parser::unexpected(std::string_view expected) {
  if (isAt(TokenKind::Error)) { // the lexer has said what is wrong with it
    isRecovering_ = true;
    return;
  }
  if (isAt(TokenKind::End))
    error({previousEnd_, previousEnd_}, fmt::format("the file ends here; expected {}", expected));
  else if (isAt(TokenKind::Newline))
    error(token().range, fmt::format("the line ends here; expected {}", expected));
  else if (isAt(TokenKind::Indent) || isAt(TokenKind::Dedent))
    error(token().range, fmt::format("unexpected indentation; expected {}", expected));
  else
    error(token().range, fmt::format("unexpected '{}'; expected {}", text().substr(0, 40), expected));
}

void Parser::enter() {
  if (++depth_ > kMaxDepth)
    error(token().range, fmt::format(fmt::runtime(kTooDeep), kMaxDepth));
}

void Parser::expectOperator(std::string_view op) {
  if (!isRecovering_ && !acceptOperator(op))
    unexpected(fmt::format("'{}'", op));
}

std::string Parser::expectName(std::string_view what) {
  if (!isAt(TokenKind::Name)) {
    unexpected(what);
    return {};
  }
  if (isKeyword(text())) {
    error(token().range, fmt::format("'{}' is a keyword of Python; expected {}", text(), what));
    return {};
  }
  std::string name(text());
  advance();
  return name;
}

ExprRef Parser::makeExpr(ExprKind kind, SourceRange range) {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->range = range;
  return expr;
}

ExprRef Parser::makeBinary(OpKind op, SourceRange opRange, ExprRef lhs, ExprRef rhs) {
  ExprRef expr = makeExpr(ExprKind::Binary, {lhs->range.begin, rhs->range.end});
  expr->op = op;
  expr->opRange = opRange;
  expr->numTerms = (lhs->kind == ExprKind::Binary ? lhs->numTerms : 1) + 1;
  checkTerms(size_t(expr->numTerms), expr->range);
  expr->operands.push_back(std::move(lhs));
  expr->operands.push_back(std::move(rhs));
  return expr;
}

void Parser::checkTerms(size_t numTerms, SourceRange range) {
  if (numTerms > size_t(kMaxTerms))
    error({range.begin, range.begin + 1},
          fmt::format("more than {} terms in one expression; put the values into an array", kMaxTerms));
}

ExprRef Parser::parseTupleExpression() {
  SourceRange begin = token().range;
  ExprRef first = parseExpression();
  if (isRecovering_ || !isAtOperator(","))
    return first;
  ExprRef tuple = makeExpr(ExprKind::Tuple, begin);
  tuple->operands.push_back(std::move(first));
  while (!isRecovering_ && acceptOperator(",")) {
    if (isAt(TokenKind::Newline) || isAtOperator("=") || isAtOperator(")"))
      break;
    tuple->operands.push_back(parseExpression());
    checkTerms(tuple->operands.size(), begin);
  }
  tuple->range = rangeFrom(begin);
  return tuple;
}

ExprRef Parser::parseExpression() {
  Nesting nesting(*this);
  SourceRange begin = token().range;
  if (isRecovering_)
    return makeExpr(ExprKind::Error, begin);
  if (isAtKeyword("lambda")) {
    error(token().range, std::string(kNoLambda));
    return makeExpr(ExprKind::Error, begin);
  }
  if (isAtKeyword("yield") || isAtKeyword("await")) {
    error(token().range, fmt::format("'{}' is not part of the language", text()));
    return makeExpr(ExprKind::Error, begin);
  }
  ExprRef value = parseDisjunction();
  if (!isRecovering_ && isAtOperator(":="))
    error(token().range, "':=' is not part of the language; bind the name in a line of its own");
  if (isRecovering_ || !isAtKeyword("if"))
    return value;
  advance();
  ExprRef expr = makeExpr(ExprKind::Conditional, begin);
  ExprRef condition = parseDisjunction();
  if (!isRecovering_ && !acceptKeyword("else"))
    unexpected("'else' and the value for a false condition");
  ExprRef otherwise = parseExpression();
  expr->operands.push_back(std::move(condition));
  expr->operands.push_back(std::move(value));
  expr->operands.push_back(std::move(otherwise));
  expr->range = rangeFrom(begin);
  return expr;
}

ExprRef Parser::parseDisjunction() { return parseChain(ExprKind::Or, "or", &Parser::parseConjunction); }

ExprRef Parser::parseConjunction() { return parseChain(ExprKind::And, "and", &Parser::parseNegation); }

ExprRef Parser::parseChain(ExprKind kind, std::string_view keyword, ExprRef (Parser::*parseTerm)()) {
  SourceRange begin = token().range;
  ExprRef first = (this->*parseTerm)();
  if (isRecovering_ || !isAtKeyword(keyword))
    return first;
  ExprRef expr = makeExpr(kind, begin);
  expr->opRange = token().range;
  expr->operands.push_back(std::move(first));
  while (!isRecovering_ && acceptKeyword(keyword)) {
    expr->operands.push_back((this->*parseTerm)());
    checkTerms(expr->operands.size(), begin);
  }
  expr->range = rangeFrom(begin);
  return expr;
}

ExprRef Parser::parseNegation() {
  if (!isAtKeyword("not"))
    return parseComparison();
  Nesting nesting(*this);
  SourceRange begin = token().range;
  ExprRef expr = makeExpr(ExprKind::Unary, begin);
  if (isRecovering_)
    return expr;
  advance();
  expr->op = OpKind::Not;
  expr->opRange = begin;
  expr->operands.push_back(parseNegation());
  expr->range = rangeFrom(begin);
  return expr;
}

bool Parser::acceptComparison(OpKind &op) {
  static constexpr std::pair<std::string_view, OpKind> kComparisons[] = {{"==", OpKind::Eq}, {"!=", OpKind::Ne},
                                                                         {"<", OpKind::Lt},  {"<=", OpKind::Le},
                                                                         {">", OpKind::Gt},  {">=", OpKind::Ge}};
  for (auto [text, kind] : kComparisons)
    if (acceptOperator(text)) {
      op = kind;
      return true;
    }
  if (acceptKeyword("in")) {
    op = OpKind::In;
    return true;
  }
  if (isAtKeyword("is")) {
    const bool isNegated = source_->slice(tokens_[at_ + 1].range) == "not";
    const SourceRange range{token().range.begin, tokens_[at_ + (isNegated ? 1 : 0)].range.end};
    if (source_->slice(tokens_[at_ + (isNegated ? 2 : 1)].range) == "None")
      error(range,
            "'is' is not part of the language; everything has a value, so there is no None to test for; choose by a "
            "const[bool]");
    else if (Diagnostic *diagnostic = error(range, "'is' is not part of the language; write '==' or '!='"))
      setFixIt(*diagnostic, source_, range, isNegated ? "!=" : "==");
    return false;
  }
  if (isAtKeyword("not") && source_->slice(tokens_[at_ + 1].range) == "in") {
    advance();
    advance();
    op = OpKind::NotIn;
    return true;
  }
  return false;
}

ExprRef Parser::parseComparison() {
  SourceRange begin = token().range;
  ExprRef first = parseBinary(/*minPrecedence=*/1);
  ExprRef expr;
  OpKind op;
  for (SourceRange opRange = token().range; !isRecovering_ && acceptComparison(op); opRange = token().range) {
    if (!expr) {
      expr = makeExpr(ExprKind::Compare, begin);
      expr->opRange = opRange;
      expr->operands.push_back(std::move(first));
    }
    expr->ops.push_back(op);
    expr->operands.push_back(parseBinary(/*minPrecedence=*/1));
    checkTerms(expr->operands.size(), begin);
  }
  if (!expr)
    return first;
  expr->range = rangeFrom(begin);
  return expr;
}

ExprRef Parser::parseBinary(int minPrecedence) {
  ExprRef lhs = parseUnary();
  while (!isRecovering_) {
    const BinaryOperator *found = nullptr;
    for (const BinaryOperator &candidate : kBinaryOperators)
      if (candidate.precedence >= minPrecedence && isAtOperator(candidate.text))
        found = &candidate;
    if (!found && isAtOperator("@"))
      error(token().range, "'@' is not part of the language; queries and keys are multiplied by attention itself");
    if (!found)
      break;
    SourceRange opRange = token().range;
    advance();
    if (refuseDoubledOperator(opRange))
      break;
    ExprRef rhs = parseBinary(found->precedence + 1);
    lhs = makeBinary(found->op, opRange, std::move(lhs), std::move(rhs));
  }
  return lhs;
}

// Other languages' `&&`, `||`, `++` and `--`; the first half was read.
bool Parser::refuseDoubledOperator(SourceRange first) {
  const std::string_view op = source_->slice(first);
  if (token().range.begin != first.end || !isAtOperator(op))
    return false;
  const SourceRange range{first.begin, token().range.end};
  if (op == "&" || op == "|") {
    const char *word = op == "&" ? "and" : "or";
    setFixIt(*error(range, fmt::format("'{0}{0}' is not part of the language; write '{1}'", op, word)), source_, range,
             word);
  } else if ((op == "+" || op == "-") && tokens_[at_ + 1].kind == TokenKind::Newline) {
    const std::string instead = fmt::format(" {}= 1", op);
    setFixIt(*error(range, fmt::format("'{0}{0}' is not part of the language; write '{0}= 1'", op)), source_, range,
             instead);
  }
  return isRecovering_;
}

ExprRef Parser::parseUnary() {
  OpKind op = isAtOperator("-") ? OpKind::Neg : isAtOperator("+") ? OpKind::Plus : OpKind::Invert;
  if (!isAtOperator("-") && !isAtOperator("+") && !isAtOperator("~"))
    return parsePower();
  Nesting nesting(*this);
  SourceRange begin = token().range;
  ExprRef expr = makeExpr(ExprKind::Unary, begin);
  if (isRecovering_)
    return expr;
  advance();
  expr->op = op;
  expr->opRange = begin;
  expr->operands.push_back(parseUnary());
  expr->range = rangeFrom(begin);
  return expr;
}

ExprRef Parser::parsePower() {
  ExprRef base = parsePostfix();
  if (isRecovering_ || !isAtOperator("**"))
    return base;
  Nesting nesting(*this);
  SourceRange opRange = token().range;
  if (isRecovering_)
    return base;
  advance();
  ExprRef exponent = parseUnary();
  return makeBinary(OpKind::Pow, opRange, std::move(base), std::move(exponent));
}

ExprRef Parser::parsePostfix() {
  SourceRange begin = token().range;
  ExprRef expr = parseAtom();
  for (int length = 0; !isRecovering_; ++length) {
    if (length > kMaxDepth) {
      error(begin, fmt::format(fmt::runtime(kTooDeep), kMaxDepth));
      break;
    }
    if (isAtOperator("(")) {
      expr = parseCall(std::move(expr));
    } else if (isAtOperator("[")) {
      expr = parseSubscript(std::move(expr));
    } else if (acceptOperator(".")) {
      ExprRef attribute = makeExpr(ExprKind::Attribute, begin);
      attribute->opRange = token().range;
      attribute->name = expectName("an attribute's name");
      attribute->operands.push_back(std::move(expr));
      expr = std::move(attribute);
    } else {
      break;
    }
    expr->range = rangeFrom(begin);
  }
  return expr;
}

} // namespace cpflex
