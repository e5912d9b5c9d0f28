// What a name in a Python file means: Python's rules of scope over the syntax tree, for functions
// that are translated out of the file.
#pragma once

#include "lib/Frontend/ast.h"

#include <string>
#include <vector>

namespace cpflex {

enum class PythonBindingKind : uint8_t { None, Function, Value, Parameter, Import };

/// What a name is bound to. Pointers are into the file's tree.
struct PythonBinding {
  PythonBindingKind kind = PythonBindingKind::None;
  const ast::Stmt *statement = nullptr;       ///< of a Function or Import
  const ast::Expr *value = nullptr;           ///< of a Value
  const ast::Parameter *parameter = nullptr;  ///< of a Parameter
  std::vector<const ast::Stmt *> around = {}; ///< the functions around the binding, the outermost first
};

/// What `name` means inside of the functions `around`, the innermost last, in which it is not local to a further one.
PythonBinding lookUpPython(const ast::File &file, const std::vector<const ast::Stmt *> &around,
                           const std::string &name);

/// The function or value that is bound to `name` at the top level or, else, the function in the first function that has
/// one.
PythonBinding findInPython(const ast::File &file, const std::string &name);

/// The inner function or value whose name `function` returns, or its lambda, which has no name; None where it returns
/// something else.
PythonBinding returnedByPython(const ast::Stmt &function, const std::vector<const ast::Stmt *> &around);

} // namespace cpflex
