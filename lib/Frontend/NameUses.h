// How the names are used that Python functions take from around them: what a declaration of each would say.
#pragma once

#include "lib/Frontend/Entity.h"
#include "lib/Frontend/ast.h"

#include <map>
#include <set>
#include <string>
#include <vector>

namespace cpflex {

/// How a name that a function does not bind is used; its declaration is guessed from this.
struct NameUse {
  std::vector<std::string> dims = {}; ///< a dimension per index where it is subscripted
  bool isTensor = false;
  bool isBool = false;  ///< stands where a bool is expected
  bool isIndex = false; ///< stands inside a subscript, is compared, or is divided as ints are
  bool isInScore = false;
  size_t numArguments = 0;                    ///< with how many it is called; 0 when it is not
  std::vector<const ast::Stmt *> around = {}; ///< the functions around the use, without the one that holds it
  SourceRange range;
};

/// Collects uses over functions and values. References into it hold until the next add.
class NameUses {
public:
  /// Adds the uses in `function`, which the functions `around` enclose, the outermost first.
  void addFunction(const ast::Stmt &function, const std::vector<const ast::Stmt *> &around, FunctionRole role);

  /// Adds the uses in a value that stands where `as` is used.
  void addValue(const ast::Expr &value, const std::vector<const ast::Stmt *> &around, const NameUse &as);

  /// All names in the order of their first use.
  const std::vector<std::string> &names() const { return names_; }
  const NameUse &of(const std::string &name) { return uses_[name]; }

private:
  void collectBound(const std::vector<ast::StmtRef> &statements, std::set<std::string> &bound);
  void collectTarget(const ast::Expr &target, std::set<std::string> &bound);
  void visit(const std::vector<ast::StmtRef> &statements, bool givesBool);
  void visit(const ast::Expr &expr, bool isBool, bool isIndex);
  void visitSubscript(const ast::Expr &expr, bool isBool, bool isIndex);
  NameUse *useOf(const ast::Expr &name);

  std::map<std::string, NameUse> uses_;
  std::vector<std::string> names_;
  std::vector<const ast::Stmt *> around_; ///< the functions around the one that is visited
  std::set<std::string> bound_;
  std::map<std::string, std::string> sizeOf_; ///< the size that bounds a coordinate
  bool isInScore_ = false;
};

} // namespace cpflex
