// Lookups in the tree of a Python file.
#include "lib/Frontend/PythonScope.h"

namespace cpflex {

using namespace ast;

namespace {

// The last binding of `name` among statements of one scope; conditional ones count.
PythonBinding lastAmong(const std::vector<StmtRef> &statements, const std::string &name) {
  PythonBinding found;
  for (const StmtRef &statement : statements) {
    if (statement->kind == StmtKind::Function) {
      if (statement->name == name)
        found = {.kind = PythonBindingKind::Function, .statement = statement.get()};
      continue;
    }
    if (statement->kind == StmtKind::Declare && statement->name == name && statement->value)
      found = {.kind = PythonBindingKind::Value, .value = statement->value.get()};
    for (const ExprRef &target : statement->targets)
      if (target->kind == ExprKind::Name && target->name == name)
        found = {.kind = PythonBindingKind::Value, .value = statement->value.get()};
    for (const ImportedName &imported : statement->imports)
      if (imported.alias == name)
        found = {.kind = PythonBindingKind::Import, .statement = statement.get()};
    for (const std::vector<StmtRef> *arm : {&statement->body, &statement->orElse})
      if (PythonBinding inner = lastAmong(*arm, name); inner.kind != PythonBindingKind::None)
        found = std::move(inner);
  }
  return found;
}

// Calls that give a function.
bool makesFunction(const Expr &value) {
  const std::string name = value.kind == ExprKind::Call ? value.operands[0]->name : std::string();
  return name == "partial" || name == "and_masks" || name == "or_masks";
}

PythonBinding findAmong(const std::vector<StmtRef> &statements, std::vector<const Stmt *> &around,
                        const std::string &name) {
  PythonBinding found = lastAmong(statements, name);
  const bool isValue = found.kind == PythonBindingKind::Value && (around.empty() || makesFunction(*found.value));
  if (found.kind == PythonBindingKind::Function || isValue) {
    found.around = around;
    return found;
  }
  for (const StmtRef &statement : statements) {
    const bool isFunction = statement->kind == StmtKind::Function;
    if (isFunction)
      around.push_back(statement.get());
    for (const std::vector<StmtRef> *arm : {&statement->body, &statement->orElse})
      if (found = findAmong(*arm, around, name); found.kind != PythonBindingKind::None)
        return found;
    if (isFunction)
      around.pop_back();
  }
  return {};
}

} // namespace

PythonBinding lookUpPython(const File &file, const std::vector<const Stmt *> &around, const std::string &name) {
  for (size_t i = around.size(); i-- > 0;) {
    PythonBinding found = lastAmong(around[i]->body, name);
    for (const Parameter &parameter : around[i]->parameters)
      if (found.kind == PythonBindingKind::None && parameter.name == name)
        found = {.kind = PythonBindingKind::Parameter, .parameter = &parameter};
    if (found.kind == PythonBindingKind::None)
      continue;
    found.around.assign(around.begin(), around.begin() + ptrdiff_t(i) + 1);
    return found;
  }
  return lastAmong(file.statements, name);
}

PythonBinding findInPython(const File &file, const std::string &name) {
  std::vector<const Stmt *> around;
  return findAmong(file.statements, around, name);
}

PythonBinding returnedByPython(const Stmt &function, const std::vector<const Stmt *> &around) {
  PythonBinding found = lastAmong(function.body, "");
  for (const StmtRef &statement : function.body)
    if (statement->kind == StmtKind::Return && statement->value && statement->value->kind == ExprKind::Name)
      found = lastAmong(function.body, statement->value->name);
  const bool isFunction = found.kind == PythonBindingKind::Function ||
                          (found.kind == PythonBindingKind::Value && makesFunction(*found.value));
  if (!isFunction)
    return {};
  found.around = around;
  found.around.push_back(&function);
  return found;
}

} // namespace cpflex
