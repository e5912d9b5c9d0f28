// The syntax tree of a `.cpf` file: what was written and where. It knows nothing of types; names
// are not resolved.
#pragma once

#include "lib/Frontend/Source.h"

#include <memory>
#include <string>
#include <vector>

namespace cpflex::ast {

/// Most levels of nesting of one expression or of blocks. What walks the tree recurses at most this
/// deep, because it follows the left operand of a chain such as `a + b + c` in a loop.
inline constexpr int kMaxDepth = 200;
/// Most terms of one chain of operators, elements of a tuple or arguments of a call.
inline constexpr int kMaxTerms = 10000;

enum class ExprKind : uint8_t {
  Error,       ///< stands for text that was already reported
  Name,        ///< name
  Int,         ///< intValue
  Float,       ///< floatValue
  Bool,        ///< intValue 0 or 1
  String,      ///< name holds the contents
  None,        ///< `None`
  Tuple,       ///< operands; `(a, b)` or `[a, b]`
  Unary,       ///< op, operands[0]
  Binary,      ///< op, operands[0..1]
  Compare,     ///< comparisons between neighbours: operands[i] ops[i] operands[i + 1]
  And,         ///< operands, at least two
  Or,          ///< operands, at least two
  Conditional, ///< operands: condition, value if true, value if false
  Call,        ///< operands[0] the callee, then positional arguments; keywords
  Attribute,   ///< operands[0] . name
  Subscript,   ///< operands[0] [ operands[1..] ]
  Slice,       ///< `:` inside a subscript
  Generator,   ///< operands[0] the element; clauses
};

/// Operators as the user spells them.
enum class OpKind : uint8_t {
  Add,
  Sub,
  Mul,
  Div,
  FloorDiv,
  Mod,
  Pow,
  Shl,
  Shr,
  BitAnd,
  BitOr,
  BitXor, // binary
  Neg,
  Plus,
  Invert,
  Not, // unary
  Eq,
  Ne,
  Lt,
  Le,
  Gt,
  Ge,
  In,
  NotIn, // comparison
};

/// The operator's text: `+`, `//`, `not in`, ...
const char *toString(OpKind op);

struct Expr;
using ExprRef = std::unique_ptr<Expr>;

/// `name=value` in a call.
struct Keyword {
  std::string name;
  SourceRange nameRange;
  ExprRef value;
};

/// `for target in iterable if condition...` of a generator expression.
struct Clause {
  std::string target;
  SourceRange targetRange;
  ExprRef iterable;
  std::vector<ExprRef> conditions;
};

struct Expr {
  Expr() = default;
  ~Expr();

  ExprKind kind = ExprKind::Error;
  OpKind op = OpKind::Add;
  bool isParenthesized = false;
  int numTerms = 1; ///< of a Binary: the length of its left spine
  SourceRange range;
  SourceRange opRange; ///< the operator or the attribute's name
  std::string name;
  int64_t intValue = 0;
  double floatValue = 0;
  std::vector<OpKind> ops;
  std::vector<ExprRef> operands;
  std::vector<Keyword> keywords;
  std::vector<Clause> clauses;
};

enum class StmtKind : uint8_t {
  Function,   ///< `def`
  Declare,    ///< `name: annotation = value`
  Assign,     ///< `targets = value`, each target a Name or a Tuple of Names
  Return,     ///< value, may be null
  If,         ///< condition in value, body, orElse
  Expression, ///< value
  Import,     ///< `from module import names` or `import module as name`
  Pass,
};

struct Stmt;
using StmtRef = std::unique_ptr<Stmt>;

struct Parameter {
  std::string name;
  SourceRange range;
  ExprRef annotation;   ///< may be null
  ExprRef defaultValue; ///< may be null
};

/// `name as alias`; alias equals name when not given.
struct ImportedName {
  std::string name;
  std::string alias;
  SourceRange range;
};

struct Stmt {
  StmtKind kind = StmtKind::Pass;
  SourceRange range; ///< the whole statement; of a compound statement its first line
  std::string name;  ///< function, declaration or module
  SourceRange nameRange;
  std::string docstring; ///< of a function
  ExprRef annotation;
  ExprRef value; ///< may be null
  std::vector<ExprRef> targets;
  std::vector<ExprRef> decorators;
  std::vector<Parameter> parameters;
  std::vector<StmtRef> body;
  std::vector<StmtRef> orElse;
  std::vector<ImportedName> imports;
  bool isWholeModule = false; ///< `import module` rather than `from module import`
  bool isIncomplete = false;  ///< a function of which statements were left out after errors
};

/// One parsed file. Owns its tree and shares its text.
struct File {
  SourceRef source;
  std::string docstring;
  std::vector<StmtRef> statements;
  bool isIncomplete = false; ///< statements were left out after errors
};

/// A readable dump of the tree with locations, one node a line: the text of `--emit=ast`.
std::string print(const File &file);

} // namespace cpflex::ast
