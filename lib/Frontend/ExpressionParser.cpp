// The parser of expressions: Python's operators with Python's precedence, and a message of its own for each form of
// Python that the language leaves out.
#include "lib/Frontend/ParserState.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace cpflex {

using namespace ast;

namespace {

constexpr std::string_view kKeywords[] = {
    "False", "None",   "True",  "and",  "as",   "assert", "async",  "await",    "break",  "class", "continue", "def",
    "del",   "elif",   "else",  "except", "finally", "for", "from",   "global",   "if",     "import", "in",      "is",
    "lambda", "nonlocal", "not", "or",  "pass", "raise",  "return", "try",      "while",  "with",  "yield"};

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
    error(token().range, fmt::format("the file ends here; expected {}", expected));
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
    error({range.begin, range.begin + 1}, fmt::format("more than {} terms in one expression; put the values into an array", kMaxTerms));
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
    error(token().range, "'lambda' is not part of the language; write a 'def' and use its name");
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

ExprRef Parser::parseDisjunction() {
  SourceRange begin = token().range;
  ExprRef first = parseConjunction();
  if (isRecovering_ || !isAtKeyword("or"))
    return first;
  ExprRef expr = makeExpr(ExprKind::Or, begin);
  expr->opRange = token().range;
  expr->operands.push_back(std::move(first));
  while (!isRecovering_ && acceptKeyword("or")) {
    expr->operands.push_back(parseConjunction());
    checkTerms(expr->operands.size(), begin);
  }
  expr->range = rangeFrom(begin);
  return expr;
}

ExprRef Parser::parseConjunction() {
  SourceRange begin = token().range;
  ExprRef first = parseNegation();
  if (isRecovering_ || !isAtKeyword("and"))
    return first;
  ExprRef expr = makeExpr(ExprKind::And, begin);
  expr->opRange = token().range;
  expr->operands.push_back(std::move(first));
  while (!isRecovering_ && acceptKeyword("and")) {
    expr->operands.push_back(parseNegation());
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
  static constexpr std::pair<std::string_view, OpKind> kComparisons[] = {
      {"==", OpKind::Eq}, {"!=", OpKind::Ne}, {"<", OpKind::Lt}, {"<=", OpKind::Le}, {">", OpKind::Gt}, {">=", OpKind::Ge}};
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
    error(token().range, "'is' is not part of the language; write '==' or '!='");
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
    ExprRef rhs = parseBinary(found->precedence + 1);
    lhs = makeBinary(found->op, opRange, std::move(lhs), std::move(rhs));
  }
  return lhs;
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

ExprRef Parser::parseAtom() {
  SourceRange range = token().range;
  switch (token().kind) {
  case TokenKind::Name:
    return parseName();
  case TokenKind::Int:
  case TokenKind::Float:
    return parseNumber();
  case TokenKind::String: {
    ExprRef expr = makeExpr(ExprKind::String, range);
    for (; isAt(TokenKind::String); advance())
      expr->name += stringContents(text());
    expr->range = rangeFrom(range);
    return expr;
  }
  case TokenKind::Operator:
    if (isAtOperator("("))
      return parseParenthesized();
    if (isAtOperator("["))
      return parseList();
    if (isAtOperator("{")) {
      error(range, "dictionaries and sets are not part of the language; use an array or a tuple");
      return makeExpr(ExprKind::Error, range);
    }
    if (isAtOperator("*") || isAtOperator("**")) {
      error(range, fmt::format("'{}' before a value is not part of the language; write each value", text()));
      return makeExpr(ExprKind::Error, range);
    }
    if (isAtOperator("...")) {
      error(range, "'...' is not part of the language; write one index per axis");
      return makeExpr(ExprKind::Error, range);
    }
    break;
  default:
    break;
  }
  unexpected("an expression");
  return makeExpr(ExprKind::Error, range);
}

ExprRef Parser::parseName() {
  SourceRange range = token().range;
  std::string_view word = text();
  ExprRef expr = makeExpr(ExprKind::Name, range);
  if (word == "True" || word == "False") {
    expr->kind = ExprKind::Bool;
    expr->intValue = word == "True";
  } else if (word == "None") {
    expr->kind = ExprKind::None;
  } else if (word == "lambda" || word == "yield" || word == "await") {
    error(range, fmt::format("'{}' is not part of the language", word));
  } else if (isKeyword(word)) {
    unexpected("an expression");
  }
  expr->name = std::string(word);
  advance();
  return expr;
}

ExprRef Parser::parseNumber() {
  SourceRange range = token().range;
  std::string digits(text());
  std::erase(digits, '_');
  ExprRef expr = makeExpr(isAt(TokenKind::Float) ? ExprKind::Float : ExprKind::Int, range);
  bool isFloat = isAt(TokenKind::Float);
  advance();
  if (isFloat) {
    expr->floatValue = std::strtod(digits.c_str(), nullptr);
    if (std::isinf(float(expr->floatValue)))
      error(range, "the number does not fit a 32-bit float; write 'inf' for infinity");
    return expr;
  }
  int base = 10;
  std::string_view rest = digits;
  if (rest.size() > 1 && rest[0] == '0' && !(rest[1] >= '0' && rest[1] <= '9')) {
    char kind = char(rest[1] | 0x20);
    base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
    rest.remove_prefix(2);
  } else if (rest.size() > 1 && rest[0] == '0' && rest.find_first_not_of('0') != std::string_view::npos) {
    error(range, "a number may not begin with 0; write 0o for octal digits");
    return expr;
  }
  auto [end, code] = std::from_chars(rest.data(), rest.data() + rest.size(), expr->intValue, base);
  if (code == std::errc::result_out_of_range)
    error(range, "the number does not fit a 64-bit int; expected at most 9223372036854775807");
  else if (code != std::errc() || end != rest.data() + rest.size())
    error(range, fmt::format("'{}' is not a number in base {}", digits.substr(0, 40), base));
  return expr;
}

ExprRef Parser::parseParenthesized() {
  SourceRange begin = token().range;
  Nesting nesting(*this);
  advance();
  ExprRef expr;
  if (isAtOperator(")")) {
    expr = makeExpr(ExprKind::Tuple, begin);
  } else {
    expr = parseTupleExpression();
    if (!isRecovering_ && isAtKeyword("for"))
      error(token().range, "a generator stands only inside any(...), all(...), sum(...), min(...) or max(...)");
  }
  expectOperator(")");
  expr->isParenthesized = true;
  expr->range = rangeFrom(begin);
  return expr;
}

ExprRef Parser::parseList() {
  SourceRange begin = token().range;
  Nesting nesting(*this);
  ExprRef expr = makeExpr(ExprKind::Tuple, begin);
  advance();
  while (!isRecovering_ && !isAtOperator("]")) {
    expr->operands.push_back(parseExpression());
    checkTerms(expr->operands.size(), begin);
    if (!isRecovering_ && isAtKeyword("for"))
      error(token().range, "list comprehensions are not part of the language; write any(... for i in range(n)) without '['");
    if (!acceptOperator(","))
      break;
  }
  expectOperator("]");
  expr->range = rangeFrom(begin);
  return expr;
}

ExprRef Parser::parseCall(ExprRef callee) {
  ExprRef call = makeExpr(ExprKind::Call, callee->range);
  call->operands.push_back(std::move(callee));
  SourceRange open = token().range;
  advance();
  while (!isRecovering_ && !isAtOperator(")")) {
    bool isKeywordArgument = isAt(TokenKind::Name) && !isKeyword(text()) && tokens_[at_ + 1].kind == TokenKind::Operator &&
                             source_->slice(tokens_[at_ + 1].range) == "=";
    if (isKeywordArgument) {
      Keyword keyword;
      keyword.nameRange = token().range;
      keyword.name = std::string(text());
      advance();
      advance();
      keyword.value = parseExpression();
      for (const Keyword &other : call->keywords)
        if (other.name == keyword.name)
          error(keyword.nameRange, fmt::format("argument '{}' is given twice", keyword.name));
      call->keywords.push_back(std::move(keyword));
    } else {
      SourceRange begin = token().range;
      ExprRef argument = parseExpression();
      if (!isRecovering_ && isAtKeyword("for"))
        argument = parseGenerator(std::move(argument));
      if (!isRecovering_ && !call->keywords.empty())
        error(begin, "an argument without a name after one with a name");
      call->operands.push_back(std::move(argument));
    }
    checkTerms(call->operands.size() + call->keywords.size(), open);
    if (!acceptOperator(","))
      break;
  }
  expectOperator(")");
  return call;
}

ExprRef Parser::parseGenerator(ExprRef element) {
  ExprRef generator = makeExpr(ExprKind::Generator, element->range);
  SourceRange begin = element->range;
  generator->operands.push_back(std::move(element));
  while (!isRecovering_ && acceptKeyword("for")) {
    Clause clause;
    clause.targetRange = token().range;
    clause.target = expectName("a name after 'for'");
    if (!isRecovering_ && isAtOperator(","))
      error(token().range, "a generator binds one name; nest another 'for' for a second one");
    if (!isRecovering_ && !acceptKeyword("in"))
      unexpected("'in'");
    clause.iterable = parseDisjunction();
    while (!isRecovering_ && acceptKeyword("if"))
      clause.conditions.push_back(parseDisjunction());
    generator->clauses.push_back(std::move(clause));
    if (generator->clauses.size() > 4)
      error(clause.targetRange, "more than 4 nested 'for' in one generator");
  }
  generator->range = rangeFrom(begin);
  return generator;
}

ExprRef Parser::parseSubscript(ExprRef base) {
  ExprRef subscript = makeExpr(ExprKind::Subscript, base->range);
  subscript->operands.push_back(std::move(base));
  SourceRange open = token().range;
  advance();
  do {
    if (isAtOperator("]") && subscript->operands.size() > 1)
      break;
    SourceRange range = token().range;
    if (acceptOperator(":")) {
      subscript->operands.push_back(makeExpr(ExprKind::Slice, range));
      if (!isAtOperator(",") && !isAtOperator("]"))
        error(token().range, "part of an axis cannot be taken; write ':' for the whole axis");
      continue;
    }
    ExprRef index = parseExpression();
    if (!isRecovering_ && isAtOperator(":"))
      error(token().range, "part of an axis cannot be taken; write ':' for the whole axis");
    subscript->operands.push_back(std::move(index));
    checkTerms(subscript->operands.size(), open);
  } while (!isRecovering_ && acceptOperator(","));
  expectOperator("]");
  return subscript;
}

} // namespace cpflex
