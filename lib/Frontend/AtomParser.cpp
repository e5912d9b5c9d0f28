// The parser of what operators join: names, numbers, texts, parentheses, and the insides of calls
// and subscripts.
#include "lib/Frontend/ParserState.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdlib>

namespace cpflex {

using namespace ast;

static constexpr const char *kPartOfAxis =
    "part of an axis cannot be taken; write ':' for the whole axis, or any(...) or sum(...) over range(begin, end)";

ExprRef Parser::parseAtom() {
  SourceRange range = token().range;
  switch (token().kind) {
  case TokenKind::Name: return parseName();
  case TokenKind::Int:
  case TokenKind::Float: return parseNumber();
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
  default: break;
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
      error(token().range, "list comprehensions are not part of the language; write any(... for i "
                           "in range(n)) without '['");
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
    bool isKeywordArgument = isAt(TokenKind::Name) && !isKeyword(text()) &&
                             tokens_[at_ + 1].kind == TokenKind::Operator &&
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
      error(token().range,
            "a generator binds one name and runs over range(n); index arrays by it, and nest another 'for' for a "
            "second one");
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
        error(token().range, kPartOfAxis);
      continue;
    }
    ExprRef index = parseExpression();
    if (!isRecovering_ && isAtOperator(":"))
      error(token().range, kPartOfAxis);
    subscript->operands.push_back(std::move(index));
    checkTerms(subscript->operands.size(), open);
  } while (!isRecovering_ && acceptOperator(","));
  expectOperator("]");
  return subscript;
}

} // namespace cpflex
