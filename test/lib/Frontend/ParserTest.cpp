// The parser: Python's precedence, statements and recovery, seen through the dump of the tree.
#include "lib/Frontend/Parser.h"

#include <gtest/gtest.h>

namespace cpflex {
namespace {

std::string dump(const std::string &text) {
  DiagnosticList diagnostics;
  ast::File file = parseFile("a.cpf", text, diagnostics);
  EXPECT_FALSE(diagnostics.hasErrors()) << renderDiagnostics(diagnostics);
  return ast::print(file);
}

// The tree of one expression as text with every level in parentheses.
std::string shapeOf(const ast::Expr &expr) {
  using ast::ExprKind;
  std::string inner;
  for (size_t i = 0; i < expr.operands.size(); ++i) {
    if (i > 0)
      inner += expr.kind == ExprKind::Compare  ? std::string(" ") + ast::toString(expr.ops[i - 1]) + " "
               : expr.kind == ExprKind::And    ? " and "
               : expr.kind == ExprKind::Or     ? " or "
               : expr.kind == ExprKind::Binary ? std::string(" ") + ast::toString(expr.op) + " "
                                               : ", ";
    inner += shapeOf(*expr.operands[i]);
  }
  switch (expr.kind) {
  case ExprKind::Name: return expr.name;
  case ExprKind::Int: return std::to_string(expr.intValue);
  case ExprKind::Unary: return std::string("(") + ast::toString(expr.op) + " " + inner + ")";
  case ExprKind::Conditional: return "if(" + inner + ")";
  case ExprKind::Call: return "call(" + inner + ")";
  case ExprKind::Subscript: return "at(" + inner + ")";
  case ExprKind::Attribute: return inner + "." + expr.name;
  default: return "(" + inner + ")";
  }
}

std::string shape(const std::string &text) {
  DiagnosticList diagnostics;
  ast::File file = parseFile("a.cpf", text + "\n", diagnostics);
  EXPECT_FALSE(diagnostics.hasErrors()) << renderDiagnostics(diagnostics);
  return file.statements.empty() ? "" : shapeOf(*file.statements[0]->value);
}

TEST(Parser, bindsOperatorsAsPythonDoes) {
  EXPECT_EQ(shape("a + b * c"), "(a + (b * c))");
  EXPECT_EQ(shape("a - b - c"), "((a - b) - c)");
  EXPECT_EQ(shape("a >= b & c"), "(a >= (b & c))");
  EXPECT_EQ(shape("a | b ^ c & d << e + f"), "(a | (b ^ (c & (d << (e + f)))))");
  EXPECT_EQ(shape("-a ** b"), "(- (a ** b))");
  EXPECT_EQ(shape("a ** -b ** c"), "(a ** (- (b ** c)))");
  EXPECT_EQ(shape("~a & b"), "((~ a) & b)");
  EXPECT_EQ(shape("not a == b"), "(not (a == b))");
  EXPECT_EQ(shape("a or b and not c"), "(a or (b and (not c)))");
  EXPECT_EQ(shape("a if b else c if d else e"), "if(b, a, if(d, c, e))");
  EXPECT_EQ(shape("a < b <= c != d"), "(a < b <= c != d)");
  EXPECT_EQ(shape("a not in b[c, 1]"), "(a not in at(b, c, 1))");
  EXPECT_EQ(shape("f(a)[b].c(d)"), "call(at(call(f, a), b).c, d)");
  EXPECT_EQ(shape("a // b % c"), "((a // b) % c)");
}

TEST(Parser, joinsLinesInBracketsAndAfterBackslashes) {
  EXPECT_EQ(shape("(a +  # comment\n\n   b)"), "(a + b)");
  EXPECT_EQ(shape("a + \\\n b"), "(a + b)");
}

TEST(Parser, readsNumbers) { EXPECT_EQ(shape("0x10 + 0b11 + 0o17 + 1_000"), "(((16 + 3) + 15) + 1000)"); }

TEST(Parser, printsTheTreeWithLocations) {
  EXPECT_EQ(dump("W: param[int] = 8\n"
                 "@mask\n"
                 "def m(b, h, q, kv):\n"
                 "    return q - kv < W\n"),
            "file 'a.cpf'\n"
            "  declare 'W' <1:1-2>\n"
            "    subscript <1:4-14>\n"
            "      name 'param' <1:4-9>\n"
            "      name 'int' <1:10-13>\n"
            "    int 8 <1:17-18>\n"
            "  function 'm' <3:5-6>\n"
            "    decorator\n"
            "      name 'mask' <2:2-6>\n"
            "    parameter 'b' <3:7-8>\n"
            "    parameter 'h' <3:10-11>\n"
            "    parameter 'q' <3:13-14>\n"
            "    parameter 'kv' <3:16-18>\n"
            "    return <4:5-22>\n"
            "      compare '<' <4:12-22>\n"
            "        binary '-' <4:12-18>\n"
            "          name 'q' <4:12-13>\n"
            "          name 'kv' <4:16-18>\n"
            "        name 'W' <4:21-22>\n");
}

TEST(Parser, goesOnAfterErrors) {
  DiagnosticList diagnostics;
  ast::File file = parseFile("a.cpf",
                             "x = = 1\n"
                             "def f(x):\n"
                             "    y = *\n"
                             "    return x\n"
                             "z = )\n"
                             "w = 3\n",
                             diagnostics);
  EXPECT_EQ(diagnostics.numErrors(), 3u) << renderDiagnostics(diagnostics);
  ASSERT_EQ(file.statements.size(), 2u);
  EXPECT_EQ(file.statements[0]->name, "f");
  EXPECT_EQ(file.statements[0]->body.size(), 1u);
}

TEST(Parser, keepsDocstringsApart) {
  DiagnosticList diagnostics;
  ast::File file =
      parseFile("a.cpf", "\"\"\"About\nthe file.\"\"\"\ndef f(x):\n    'About f.'\n    return x\n", diagnostics);
  EXPECT_EQ(file.docstring, "About\nthe file.");
  ASSERT_EQ(file.statements.size(), 1u);
  EXPECT_EQ(file.statements[0]->docstring, "About f.");
}

} // namespace
} // namespace cpflex
