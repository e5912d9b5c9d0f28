// The parser's state and its functions, shared by Parser.cpp (statements) and ExpressionParser.cpp.
#pragma once

#include "lib/Frontend/Diagnostic.h"
#include "lib/Frontend/Lexer.h"
#include "lib/Frontend/ast.h"

namespace cpflex {

/// A recursive-descent parser with one token of lookahead. After an error isRecovering_ holds,
/// further errors are dropped and each function returns as soon as it can; the statement's caller
/// then skips to the next statement.
class Parser {
public:
  Parser(SourceRef source, DiagnosticList &diagnostics)
      : source_(std::move(source)), diagnostics_(diagnostics), tokens_(tokenize(source_, diagnostics)) {}

  ast::File parseModule();

private:
  // Counts levels of nesting while it lives; an error when there are too many.
  class Nesting {
  public:
    explicit Nesting(Parser &parser) : parser_(parser) { parser.enter(); }
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting &) = delete;

  private:
    Parser &parser_;
  };

  // Statements.
  void parseStatement(std::vector<ast::StmtRef> &out);
  void parseSimpleLine(std::vector<ast::StmtRef> &out);
  ast::StmtRef parseSimple();
  void parseImport(ast::Stmt &statement);
  void parseAssignmentOrExpression(ast::Stmt &statement);
  void checkTarget(const ast::Expr &target);
  void parseFunction(std::vector<ast::StmtRef> &out);
  void parseLambda(ast::Stmt &statement);
  void parseParameters(ast::Stmt &function);
  void parseParameterList(ast::Stmt &function, std::string_view end);
  void parseIf(std::vector<ast::StmtRef> &out);
  bool isAtMatch() const;
  void refuseAssignment();
  void parseBlock(std::vector<ast::StmtRef> &out, std::string_view owner);
  void skipStatement();
  void skipBlock();
  void skipToDedent();

  // Expressions, from the loosest binding to the tightest.
  ast::ExprRef parseTupleExpression();
  ast::ExprRef parseExpression();
  ast::ExprRef parseDisjunction();
  ast::ExprRef parseConjunction();
  /// Terms with `keyword` between them, or the one term that there is.
  ast::ExprRef parseChain(ast::ExprKind kind, std::string_view keyword, ast::ExprRef (Parser::*parseTerm)());
  ast::ExprRef parseNegation();
  ast::ExprRef parseComparison();
  ast::ExprRef parseBinary(int minPrecedence);
  ast::ExprRef parseUnary();
  ast::ExprRef parsePower();
  ast::ExprRef parsePostfix();
  ast::ExprRef parseAtom();
  ast::ExprRef parseName();
  ast::ExprRef parseNumber();
  ast::ExprRef parseParenthesized();
  ast::ExprRef parseList();
  ast::ExprRef parseCall(ast::ExprRef callee);
  ast::ExprRef parseSubscript(ast::ExprRef base);
  ast::ExprRef parseGenerator(ast::ExprRef element);
  ast::ExprRef makeExpr(ast::ExprKind kind, SourceRange range);
  ast::ExprRef makeBinary(ast::OpKind op, SourceRange opRange, ast::ExprRef lhs, ast::ExprRef rhs);
  bool acceptComparison(ast::OpKind &op);
  bool refuseDoubledOperator(SourceRange first);
  void checkTerms(size_t numTerms, SourceRange range);

  // Tokens.
  const Token &token() const { return tokens_[at_]; }
  std::string_view text() const { return source_->slice(token().range); }
  bool isAt(TokenKind kind) const { return token().kind == kind; }
  bool isAtOperator(std::string_view op) const { return isAt(TokenKind::Operator) && text() == op; }
  bool isAtKeyword(std::string_view word) const { return isAt(TokenKind::Name) && text() == word; }
  void advance() {
    if (!isAt(TokenKind::End))
      previousEnd_ = tokens_[at_++].range.end;
  }
  bool accept(TokenKind kind) { return isAt(kind) && (advance(), true); }
  bool acceptOperator(std::string_view op) { return isAtOperator(op) && (advance(), true); }
  bool acceptKeyword(std::string_view word) { return isAtKeyword(word) && (advance(), true); }
  void expectOperator(std::string_view op);
  std::string expectName(std::string_view what);
  SourceRange rangeFrom(SourceRange begin) const { return {begin.begin, std::max(previousEnd_, begin.begin)}; }
  void enter();

  // Errors.
  Diagnostic *error(SourceRange range, std::string message);
  void unexpected(std::string_view expected);

  SourceRef source_;
  DiagnosticList &diagnostics_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  uint32_t previousEnd_ = 0;
  int depth_ = 0;
  bool isRecovering_ = false;
  size_t numFailures_ = 0; ///< statements that were left out of the file or of the function that is read
  int functionDepth_ = 0;
};

inline constexpr std::string_view kNoLambda = "'lambda' is not part of the language; write a 'def' and use its name";

/// Whether `word` is a keyword of Python, so that it cannot be a name.
bool isKeyword(std::string_view word);

} // namespace cpflex
