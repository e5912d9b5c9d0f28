// The recursive-descent parser of statements; expressions are in ExpressionParser.cpp.
#include "lib/Frontend/Parser.h"
#include "lib/Frontend/ParserState.h"

#include <fmt/format.h>

#include <array>

namespace cpflex {

using namespace ast;

namespace {

/// Statements of Python that are not of the language, and what to write instead.
struct ForeignStatement {
  std::string_view keyword;
  std::string_view message;
};
constexpr ForeignStatement kForeignStatements[] = {
    {"for", "loops are not part of the language; write any(...), all(...), sum(...), min(...) or "
            "max(...) over a generator, as in "
            "any(idx[i] == kv for i in range(n))"},
    {"while", "loops are not part of the language; write any(...), all(...) or sum(...) over a "
              "generator with range(n)"},
    {"class", "classes are not part of the language; a file holds declarations, functions and "
              "attention(...)"},
    {"try", "exceptions are not part of the language; a load outside an array gives 0, so nothing "
            "has to be caught"},
    {"raise", "exceptions are not part of the language; facts such as (sorted, lo=0) are checked "
              "when an array is bound"},
    {"with", "'with' is not part of the language; write the lines that it holds without it"},
    {"assert", "'assert' is not part of the language; declare facts, as in tensor[i32, "
               "KV_LEN](sorted, lo=0)"},
    {"global", "'global' is not part of the language; functions read module-level names and change none"},
    {"nonlocal", "'nonlocal' is not part of the language; functions read module-level names and change none"},
    {"del", "'del' is not part of the language; a local name ends with its function"},
    {"async", "'async' is not part of the language; write 'def' alone"},
    {"yield", "'yield' is not part of the language; write 'return'"},
    {"break", "loops are not part of the language, so there is nothing to 'break'"},
    {"continue", "loops are not part of the language, so there is nothing to 'continue'"},
};

constexpr std::array<std::string_view, 12> kAugmentedOperators = {
    "+=", "-=", "*=", "/=", "//=", "%=", "**=", ">>=", "<<=", "&=", "|=", "^="};
constexpr std::array<OpKind, 12> kAugmentedOps = {OpKind::Add,      OpKind::Sub,    OpKind::Mul,   OpKind::Div,
                                                  OpKind::FloorDiv, OpKind::Mod,    OpKind::Pow,   OpKind::Shr,
                                                  OpKind::Shl,      OpKind::BitAnd, OpKind::BitOr, OpKind::BitXor};

bool isDocstring(const Stmt &statement) {
  return statement.kind == StmtKind::Expression && statement.value && statement.value->kind == ExprKind::String;
}

} // namespace

File Parser::parseModule() {
  File file;
  file.source = source_;
  while (!isAt(TokenKind::End) && !diagnostics_.isFull()) {
    if (isAt(TokenKind::Indent)) {
      error(token().range, "unexpected indentation");
      skipBlock();
      continue;
    }
    if (isAt(TokenKind::Dedent) || isAt(TokenKind::Newline)) {
      advance();
      continue;
    }
    parseStatement(file.statements);
  }
  if (!file.statements.empty() && isDocstring(*file.statements.front())) {
    file.docstring = file.statements.front()->value->name;
    file.statements.erase(file.statements.begin());
  }
  file.isIncomplete = numFailures_ > 0;
  return file;
}

void Parser::parseStatement(std::vector<StmtRef> &out) {
  isRecovering_ = false;
  if (isAtOperator("@") || isAtKeyword("def"))
    return parseFunction(out);
  if (isAtKeyword("if"))
    return parseIf(out);
  for (const ForeignStatement &foreign : kForeignStatements)
    if (isAtKeyword(foreign.keyword)) {
      error(token().range, std::string(foreign.message));
      skipStatement();
      // What belongs to the statement goes with it.
      while (isAtKeyword("except") || isAtKeyword("finally") || isAtKeyword("else"))
        skipStatement();
      return;
    }
  if (isAtMatch()) {
    error(token().range, "'match' is not part of the language; write 'if' and 'elif'");
    return skipStatement();
  }
  if (isAtKeyword("elif") || isAtKeyword("else") || isAtKeyword("except") || isAtKeyword("finally")) {
    error(token().range, fmt::format("'{}' without a statement that it belongs to", text()));
    return skipStatement();
  }
  parseSimpleLine(out);
}

// `match x:`; the word is a name elsewhere.
bool Parser::isAtMatch() const {
  if (!isAtKeyword("match"))
    return false;
  const Token &next = tokens_[at_ + 1];
  const std::string_view word = source_->slice(next.range);
  return (next.kind == TokenKind::Name && (!isKeyword(word) || word == "not")) || next.kind == TokenKind::Int;
}

// Simple statements of one line, separated by ';'.
void Parser::parseSimpleLine(std::vector<StmtRef> &out) {
  for (;;) {
    StmtRef statement = parseSimple();
    if (isRecovering_)
      return skipStatement();
    if (statement)
      out.push_back(std::move(statement));
    if (!acceptOperator(";"))
      break;
    if (isAt(TokenKind::Newline))
      break;
  }
  if (accept(TokenKind::Newline))
    return;
  if (!isAt(TokenKind::End)) {
    unexpected("the end of the line");
    skipStatement();
  }
}

StmtRef Parser::parseSimple() {
  auto statement = std::make_unique<Stmt>();
  SourceRange begin = token().range;
  statement->range = begin;
  if (acceptKeyword("pass")) {
    statement->kind = StmtKind::Pass;
  } else if (acceptKeyword("return")) {
    statement->kind = StmtKind::Return;
    if (isAtKeyword("lambda")) {
      parseLambda(*statement);
      return statement;
    }
    if (!isAt(TokenKind::Newline) && !isAtOperator(";"))
      statement->value = parseTupleExpression();
    refuseAssignment();
  } else if (isAtKeyword("import") || isAtKeyword("from")) {
    parseImport(*statement);
  } else {
    parseAssignmentOrExpression(*statement);
  }
  statement->range = rangeFrom(begin);
  return statement;
}

// '=' where a condition or value ends: '==' was meant.
void Parser::refuseAssignment() {
  if (isRecovering_ || !isAtOperator("="))
    return;
  const SourceRange range = token().range;
  setFixIt(*error(range, "'=' binds a name; write '==' to compare"), source_, range, "==");
}

void Parser::parseImport(Stmt &statement) {
  statement.kind = StmtKind::Import;
  statement.isWholeModule = isAtKeyword("import");
  advance();
  SourceRange begin = token().range;
  if (isAtOperator(".") || isAtOperator("...")) {
    error(token().range, "imports relative to a package are not part of the language; files beside "
                         "this one are found by name");
    return;
  }
  do {
    if (!statement.name.empty())
      statement.name += '.';
    statement.name += expectName("a module's name");
  } while (!isRecovering_ && acceptOperator("."));
  statement.nameRange = rangeFrom(begin);
  if (isRecovering_)
    return;
  if (statement.isWholeModule) {
    ImportedName name{statement.name, statement.name.substr(0, statement.name.find('.')), statement.nameRange};
    if (acceptKeyword("as"))
      name.alias = expectName("a name after 'as'");
    statement.imports.push_back(std::move(name));
    return;
  }
  if (!acceptKeyword("import")) {
    unexpected("'import'");
    return;
  }
  if (isAtOperator("*")) {
    error(token().range,
          fmt::format("'*' imports everything; name what you need, as in 'from {} import causal'", statement.name));
    return;
  }
  bool hasParentheses = acceptOperator("(");
  do {
    if (hasParentheses && isAtOperator(")"))
      break;
    ImportedName name;
    name.range = token().range;
    name.name = name.alias = expectName("a name to import");
    if (acceptKeyword("as"))
      name.alias = expectName("a name after 'as'");
    if (isRecovering_)
      return;
    statement.imports.push_back(std::move(name));
  } while (acceptOperator(","));
  if (hasParentheses)
    expectOperator(")");
}

void Parser::parseAssignmentOrExpression(Stmt &statement) {
  ExprRef first = parseTupleExpression();
  if (isRecovering_)
    return;
  if (acceptOperator(":")) {
    statement.kind = StmtKind::Declare;
    if (first->kind != ExprKind::Name) {
      error(first->range, "only a name can be declared");
      return;
    }
    statement.name = first->name;
    statement.nameRange = first->range;
    statement.annotation = parseExpression();
    if (!isRecovering_ && acceptOperator("="))
      statement.value = parseTupleExpression();
    return;
  }
  for (size_t i = 0; i < kAugmentedOperators.size(); ++i) {
    if (!isAtOperator(kAugmentedOperators[i]))
      continue;
    SourceRange opRange = token().range;
    advance();
    if (first->kind != ExprKind::Name) {
      error(first->range, fmt::format("'{}' changes a name only; arrays are read-only", kAugmentedOperators[i]));
      return;
    }
    auto target = std::make_unique<Expr>();
    target->kind = ExprKind::Name;
    target->name = first->name;
    target->range = first->range;
    statement.kind = StmtKind::Assign;
    statement.targets.push_back(std::move(target));
    statement.value = makeBinary(kAugmentedOps[i], opRange, std::move(first), parseTupleExpression());
    return;
  }
  if (!isAtOperator("=")) {
    statement.kind = StmtKind::Expression;
    statement.value = std::move(first);
    return;
  }
  if (source_->slice(tokens_[at_ + 1].range) == "lambda" && first->kind == ExprKind::Name) {
    advance();
    statement.name = first->name;
    statement.nameRange = first->range;
    return parseLambda(statement);
  }
  statement.kind = StmtKind::Assign;
  statement.value = std::move(first);
  while (!isRecovering_ && acceptOperator("=")) {
    checkTarget(*statement.value);
    statement.targets.push_back(std::move(statement.value));
    statement.value = parseTupleExpression();
  }
}

void Parser::checkTarget(const Expr &target) {
  if (target.kind == ExprKind::Name)
    return;
  if (target.kind == ExprKind::Tuple) {
    for (const ExprRef &element : target.operands)
      checkTarget(*element);
    return;
  }
  if (target.kind == ExprKind::Subscript)
    error(target.range, "arrays are read-only; bind a name instead");
  else
    error(target.range, "only a name or a tuple of names can stand before '='");
}

void Parser::parseFunction(std::vector<StmtRef> &out) {
  auto statement = std::make_unique<Stmt>();
  statement->kind = StmtKind::Function;
  while (acceptOperator("@")) {
    statement->decorators.push_back(parseExpression());
    if (!isRecovering_ && !accept(TokenKind::Newline))
      unexpected("the end of the line after a decorator");
    if (isRecovering_)
      return skipStatement();
  }
  SourceRange begin = token().range;
  statement->range = begin;
  if (isAtKeyword("class") || isAtKeyword("async")) {
    error(token().range, "a decorator stands before 'def' only");
    return skipStatement();
  }
  if (!acceptKeyword("def")) {
    unexpected("'def'");
    return skipStatement();
  }
  statement->nameRange = token().range;
  statement->name = expectName("the function's name");
  if (!isRecovering_)
    parseParameters(*statement);
  if (!isRecovering_ && acceptOperator("->"))
    parseExpression();
  statement->range = rangeFrom(begin);
  if (isRecovering_)
    return skipStatement();
  size_t numFailures = numFailures_;
  ++functionDepth_;
  parseBlock(statement->body, "a function");
  --functionDepth_;
  statement->isIncomplete = numFailures_ != numFailures;
  if (functionDepth_ == 0) // what is left out of a function defines nothing for the file
    numFailures_ = numFailures;
  if (!statement->body.empty() && isDocstring(*statement->body.front())) {
    statement->docstring = statement->body.front()->value->name;
    statement->body.erase(statement->body.begin());
  }
  out.push_back(std::move(statement));
}

// A lambda that is bound to a name or returned is an error and read as the function that should be written for it.
void Parser::parseLambda(Stmt &statement) {
  diagnostics_.error(source_, token().range, std::string(kNoLambda));
  advance();
  statement.kind = StmtKind::Function;
  statement.isIncomplete = true;
  parseParameterList(statement, ":");
  expectOperator(":");
  auto result = std::make_unique<Stmt>();
  result->kind = StmtKind::Return;
  result->value = parseExpression();
  result->range = result->value->range;
  statement.body.push_back(std::move(result));
}

void Parser::parseParameters(Stmt &function) {
  expectOperator("(");
  parseParameterList(function, ")");
  expectOperator(")");
}

void Parser::parseParameterList(Stmt &function, std::string_view end) {
  while (!isRecovering_ && !isAtOperator(end)) {
    if (isAtOperator("*") || isAtOperator("**") || isAtOperator("/")) {
      error(token().range,
            fmt::format("'{}' among parameters is not part of the language; name each parameter", text()));
      return;
    }
    Parameter parameter;
    parameter.range = token().range;
    parameter.name = expectName("a parameter's name");
    for (const Parameter &other : function.parameters)
      if (!isRecovering_ && other.name == parameter.name)
        error(parameter.range, fmt::format("two parameters named '{}'", parameter.name));
    if (!isRecovering_ && end == ")" && acceptOperator(":"))
      parameter.annotation = parseExpression();
    if (!isRecovering_ && acceptOperator("="))
      parameter.defaultValue = parseExpression();
    if (isRecovering_)
      return;
    function.parameters.push_back(std::move(parameter));
    if (!acceptOperator(","))
      break;
  }
}

void Parser::parseIf(std::vector<StmtRef> &out) {
  auto statement = std::make_unique<Stmt>();
  statement->kind = StmtKind::If;
  SourceRange begin = token().range;
  advance();
  Nesting nesting(*this);
  statement->value = parseExpression();
  refuseAssignment();
  statement->range = rangeFrom(begin);
  if (isRecovering_)
    return skipStatement();
  parseBlock(statement->body, "'if'");
  if (isAtKeyword("elif")) {
    parseIf(statement->orElse);
  } else if (isAtKeyword("else")) {
    advance();
    parseBlock(statement->orElse, "'else'");
  }
  out.push_back(std::move(statement));
}

void Parser::parseBlock(std::vector<StmtRef> &out, std::string_view owner) {
  if (!isRecovering_ && isAt(TokenKind::Newline))
    setFixIt(*error(token().range, "the line ends here; expected ':'"), source_, {previousEnd_, previousEnd_}, ":");
  expectOperator(":");
  if (isRecovering_)
    return skipStatement();
  if (!accept(TokenKind::Newline))
    return parseSimpleLine(out);
  if (!isAt(TokenKind::Indent)) {
    error(token().range, fmt::format("expected an indented block after {}", owner));
    ++numFailures_;
    isRecovering_ = false;
    return;
  }
  advance();
  Nesting nesting(*this);
  if (isRecovering_) {
    skipToDedent();
    return;
  }
  while (!isAt(TokenKind::Dedent) && !isAt(TokenKind::End) && !diagnostics_.isFull()) {
    if (isAt(TokenKind::Indent)) {
      error(token().range, "unexpected indentation");
      skipBlock();
      continue;
    }
    if (isAt(TokenKind::Newline)) {
      advance();
      continue;
    }
    parseStatement(out);
  }
  accept(TokenKind::Dedent);
}

// To after the end of the line, and of the block that belongs to it.
void Parser::skipStatement() {
  ++numFailures_;
  while (!isAt(TokenKind::Newline) && !isAt(TokenKind::End))
    advance();
  accept(TokenKind::Newline);
  if (isAt(TokenKind::Indent))
    skipBlock();
  isRecovering_ = false;
}

void Parser::skipBlock() {
  ++numFailures_;
  advance();
  skipToDedent();
  isRecovering_ = false;
}

void Parser::skipToDedent() {
  for (int level = 1; level > 0 && !isAt(TokenKind::End); advance())
    level += isAt(TokenKind::Indent) - isAt(TokenKind::Dedent);
}

ast::File parseFile(std::string path, std::string text, DiagnosticList &diagnostics) {
  auto source = std::make_shared<const SourceText>(std::move(path), std::move(text));
  return Parser(source, diagnostics).parseModule();
}

} // namespace cpflex
