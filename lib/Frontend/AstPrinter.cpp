// The text of `--emit=ast`: the syntax tree, one node a line, with locations.
#include "lib/Frontend/ast.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex::ast {

namespace {

// Deeper levels are printed at this depth, so that a long chain does not print quadratically many
// spaces.
constexpr int kMaxShownLevel = 40;

class Printer {
public:
  explicit Printer(const File &file) : source_(*file.source) {}

  std::string run(const File &file) {
    out_ = fmt::format("file '{}'\n", source_.path());
    if (!file.docstring.empty())
      line(1, "docstring", {}, false);
    block(file.statements, 1);
    return std::move(out_);
  }

private:
  std::string location(SourceRange range) const {
    SourcePosition begin = source_.position(range.begin), end = source_.position(range.end);
    return begin.line == end.line ? fmt::format("<{}:{}-{}>", begin.line, begin.column, end.column)
                                  : fmt::format("<{}:{}-{}:{}>", begin.line, begin.column, end.line, end.column);
  }

  void line(int level, std::string_view what, SourceRange range, bool hasRange = true) {
    out_.append(size_t(std::min(level, kMaxShownLevel)) * 2, ' ');
    out_ += what;
    if (hasRange)
      out_ += " " + location(range);
    out_ += '\n';
  }

  void block(const std::vector<StmtRef> &statements, int level) {
    for (const StmtRef &statement : statements)
      print(*statement, level);
  }

  void print(const Stmt &statement, int level) {
    switch (statement.kind) {
    case StmtKind::Function: return printFunction(statement, level);
    case StmtKind::Declare:
      line(level, fmt::format("declare '{}'", statement.name), statement.nameRange);
      print(*statement.annotation, level + 1);
      break;
    case StmtKind::Assign:
      line(level, "assign", statement.range);
      for (const ExprRef &target : statement.targets)
        print(*target, level + 1);
      break;
    case StmtKind::Return: line(level, "return", statement.range); break;
    case StmtKind::If:
      line(level, "if", statement.range);
      print(*statement.value, level + 1);
      line(level + 1, "then", {}, false);
      block(statement.body, level + 2);
      if (!statement.orElse.empty())
        line(level + 1, "else", {}, false);
      block(statement.orElse, level + 2);
      return;
    case StmtKind::Expression: line(level, "expression", statement.range); break;
    case StmtKind::Import:
      line(level, fmt::format("import '{}'", statement.name), statement.range);
      for (const ImportedName &name : statement.imports)
        line(level + 1,
             name.name == name.alias ? fmt::format("name '{}'", name.name)
                                     : fmt::format("name '{}' as '{}'", name.name, name.alias),
             name.range);
      break;
    case StmtKind::Pass: line(level, "pass", statement.range); break;
    }
    if (statement.value)
      print(*statement.value, level + 1);
  }

  void printFunction(const Stmt &function, int level) {
    line(level, fmt::format("function '{}'", function.name), function.nameRange);
    for (const ExprRef &decorator : function.decorators) {
      line(level + 1, "decorator", {}, false);
      print(*decorator, level + 2);
    }
    for (const Parameter &parameter : function.parameters) {
      line(level + 1, fmt::format("parameter '{}'", parameter.name), parameter.range);
      if (parameter.defaultValue)
        print(*parameter.defaultValue, level + 2);
    }
    if (!function.docstring.empty())
      line(level + 1, "docstring", {}, false);
    block(function.body, level + 1);
  }

  static std::string label(const Expr &expr) {
    switch (expr.kind) {
    case ExprKind::Error: return "error";
    case ExprKind::Name: return fmt::format("name '{}'", expr.name);
    case ExprKind::Int: return fmt::format("int {}", expr.intValue);
    case ExprKind::Float: return fmt::format("float {}", expr.floatValue);
    case ExprKind::Bool: return expr.intValue ? "True" : "False";
    case ExprKind::String: return fmt::format("string of {} characters", expr.name.size());
    case ExprKind::None: return "None";
    case ExprKind::Tuple: return "tuple";
    case ExprKind::Unary: return fmt::format("unary '{}'", toString(expr.op));
    case ExprKind::Binary: return fmt::format("binary '{}'", toString(expr.op));
    case ExprKind::Compare: {
      std::string ops;
      for (OpKind op : expr.ops)
        ops += fmt::format(" '{}'", toString(op));
      return "compare" + ops;
    }
    case ExprKind::And: return "and";
    case ExprKind::Or: return "or";
    case ExprKind::Conditional: return "conditional";
    case ExprKind::Call: return "call";
    case ExprKind::Attribute: return fmt::format("attribute '{}'", expr.name);
    case ExprKind::Subscript: return "subscript";
    case ExprKind::Slice: return "slice";
    case ExprKind::Generator: return "generator";
    }
    return "";
  }

  // Nodes in the order of the text; a stack of its own, because the left spine of a chain can be
  // long.
  void print(const Expr &root, int rootLevel) {
    struct Pending {
      const Expr *expr;
      int level;
      std::string note;
    };
    std::vector<Pending> stack{{&root, rootLevel, {}}};
    while (!stack.empty()) {
      Pending next = std::move(stack.back());
      stack.pop_back();
      const Expr &expr = *next.expr;
      line(next.level, next.note + label(expr), expr.range);
      std::vector<Pending> children;
      for (const ExprRef &operand : expr.operands)
        children.push_back({operand.get(), next.level + 1, {}});
      for (const Keyword &keyword : expr.keywords)
        children.push_back({keyword.value.get(), next.level + 1, fmt::format("{} = ", keyword.name)});
      for (const Clause &clause : expr.clauses) {
        children.push_back({clause.iterable.get(), next.level + 1, fmt::format("for '{}' in ", clause.target)});
        for (const ExprRef &condition : clause.conditions)
          children.push_back({condition.get(), next.level + 1, "if "});
      }
      for (size_t i = children.size(); i-- > 0;)
        stack.push_back(std::move(children[i]));
    }
  }

  const SourceText &source_;
  std::string out_;
};

} // namespace

std::string print(const File &file) { return Printer(file).run(file); }

} // namespace cpflex::ast
