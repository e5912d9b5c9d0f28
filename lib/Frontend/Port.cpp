// The translation of FlexAttention functions. The body's text is kept as it is, because the
// language reads it; what is made is the head of the file: imports and declarations.
#include "lib/Frontend/Port.h"

#include "lib/Frontend/Importer.h"
#include "lib/Frontend/ImporterState.h"
#include "lib/Frontend/NameUses.h"
#include "lib/Frontend/Parser.h"
#include "lib/Frontend/PortedText.h"
#include "lib/Frontend/PythonScope.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace cpflex {

using namespace ast;

namespace {

/// A function that comes along, and what it becomes.
struct PortedFunction {
  const Stmt *function = nullptr;
  FunctionRole role = FunctionRole::Plain;
};

uint32_t endOf(const Stmt &statement) {
  uint32_t end = statement.range.end;
  for (const StmtRef &inner : statement.body)
    end = std::max(end, endOf(*inner));
  for (const StmtRef &inner : statement.orElse)
    end = std::max(end, endOf(*inner));
  return end;
}

std::string calleeName(const Expr &expr) {
  return expr.kind == ExprKind::Call ? expr.operands[0]->name : std::string();
}
// `n = n - 1`: a name of its own cannot stand for that.
bool mentions(const Expr &expr, const std::string &name) {
  return (expr.kind == ExprKind::Name && expr.name == name) ||
         std::any_of(expr.operands.begin(), expr.operands.end(),
                     [&](const ExprRef &operand) { return mentions(*operand, name); });
}

bool isCombination(const Expr &value) { return calleeName(value) == "and_masks" || calleeName(value) == "or_masks"; }

class Porter {
public:
  Porter(const File &file, DiagnosticList &diagnostics) : file_(file), diagnostics_(diagnostics), text_(file.source) {}

  /// Writes the program for `target`, which `name` is bound to; false after an error.
  bool run(const std::string &name, const PythonBinding &target) {
    name_ = name;
    if (isBuiltinFunction(name))
      renamed_.insert(name);
    const bool isWritten = target.kind == PythonBindingKind::Function ? addMain(target)
                           : calleeName(*target.value) == "partial"   ? addPartial(target)
                           : isCombination(*target.value)             ? addCombination(*target.value, target.around)
                                                                      : refuse(*target.value);
    if (!isWritten)
      return false;
    for (size_t i = 0; i < uses_.names().size(); ++i)
      resolve(std::string(uses_.names()[i]));
    write();
    return true;
  }

  const PortedText &text() const { return text_; }

private:
  // What is asked for.

  bool refuse(const Expr &value) {
    diagnostics_.error(
        file_.source, value.range,
        fmt::format("'{}' is bound to something that is no function; port a function, or partial, and_masks and "
                    "or_masks of functions",
                    name_));
    return false;
  }

  bool addMain(const PythonBinding &target) {
    const Stmt &function = *target.statement;
    const FunctionRole role = roleByParameters(function);
    if (role == FunctionRole::Plain) {
      diagnostics_.error(
          file_.source, function.nameRange.end ? function.nameRange : function.range,
          fmt::format("'{}' has {} parameters; a mask has 4: batch, head, query and key, a score function a "
                      "score before them",
                      name_, function.parameters.size()));
      return false;
    }
    isScore_ = role == FunctionRole::Score;
    addFunction(function, target.around, role);
    return true;
  }

  // `partial(f, value, name=value)`: a function of the parameters that are left, which calls f.
  bool addPartial(const PythonBinding &target) {
    const Expr &call = *target.value;
    const PythonBinding callee = call.operands.size() > 1 && call.operands[1]->kind == ExprKind::Name
                                     ? lookUpPython(file_, target.around, call.operands[1]->name)
                                     : PythonBinding{};
    if (callee.kind != PythonBindingKind::Function)
      return refuse(call);
    std::string given, named, left;
    for (size_t i = 2; i < call.operands.size(); ++i)
      given += slice(*call.operands[i]) + ", ";
    for (const Keyword &keyword : call.keywords)
      named += fmt::format(", {}={}", keyword.name, slice(*keyword.value));
    size_t numLeft = 0;
    const std::vector<Parameter> &parameters = callee.statement->parameters;
    for (size_t i = call.operands.size() - 2; i < parameters.size(); ++i) {
      const bool isNamed = std::any_of(call.keywords.begin(), call.keywords.end(),
                                       [&](const Keyword &keyword) { return keyword.name == parameters[i].name; });
      if (isNamed || parameters[i].defaultValue)
        continue;
      left += fmt::format("{}{}", numLeft++ ? ", " : "", parameters[i].name);
    }
    if (numLeft != 4 && numLeft != 5) {
      diagnostics_.error(file_.source, call.range,
                         fmt::format("{} parameters of '{}' are left; a mask has 4, a score function 5", numLeft,
                                     callee.statement->name));
      return false;
    }
    isScore_ = numLeft == 5;
    made_ = fmt::format("def {}({}):\n    return {}({}{}{})\n", nameOf(name_), left, callee.statement->name, given,
                        left, named);
    addFunction(*callee.statement, callee.around, FunctionRole::Plain);
    for (size_t i = 2; i < call.operands.size(); ++i)
      uses_.addValue(*call.operands[i], target.around, {});
    for (const Keyword &keyword : call.keywords)
      uses_.addValue(*keyword.value, target.around, {});
    return true;
  }

  // `and_masks(f, g)`: the functions become masks.
  bool addCombination(const Expr &call, const std::vector<const Stmt *> &around) {
    open_.insert(&call);
    for (size_t i = 1; i < call.operands.size(); ++i) {
      const Expr &operand = *call.operands[i];
      if (isCombination(operand)) {
        if (!addCombination(operand, around))
          return false;
        continue;
      }
      const PythonBinding binding =
          operand.kind == ExprKind::Name ? lookUpPython(file_, around, operand.name) : PythonBinding{};
      if (binding.kind == PythonBindingKind::Value && isCombination(*binding.value)) {
        if (named_.contains(operand.name))
          continue;
        if (open_.contains(binding.value)) {
          diagnostics_.error(file_.source, operand.range,
                             fmt::format("'{}' combines itself; give the combination a name of its own", operand.name));
          return false;
        }
        if (!addCombination(*binding.value, binding.around))
          return false;
        named_.insert(operand.name);
        aliases_ += fmt::format("{} = {}\n", operand.name, slice(*binding.value));
      } else if (binding.kind == PythonBindingKind::Function) {
        addFunction(*binding.statement, binding.around, FunctionRole::Mask);
      } else if (binding.kind == PythonBindingKind::Import) {
        imports_.insert(slice(binding.statement->range));
      } else {
        diagnostics_.error(
            file_.source, operand.range,
            fmt::format("'{}' is no function of this file; port what it comes from and combine the masks by "
                        "'&' and '|'",
                        slice(operand)));
        return false;
      }
    }
    open_.erase(&call);
    combination_ = slice(call);
    return true;
  }

  void addFunction(const Stmt &function, const std::vector<const Stmt *> &around, FunctionRole role) {
    for (const PortedFunction &other : functions_)
      if (other.function == &function)
        return;
    functions_.push_back({&function, role});
    uses_.addFunction(function, around, role);
  }

  // Declarations.

  static bool isLiteral(const Expr &expr) {
    if (expr.kind == ExprKind::Unary && expr.op == OpKind::Neg)
      return isLiteral(*expr.operands[0]);
    return expr.kind == ExprKind::Int || expr.kind == ExprKind::Float || expr.kind == ExprKind::Bool;
  }

  static const char *literalType(const Expr &expr) {
    const Expr &value = expr.kind == ExprKind::Unary ? *expr.operands[0] : expr;
    return value.kind == ExprKind::Float ? "float" : value.kind == ExprKind::Bool ? "bool" : "int";
  }

  // Whether the language may be able to evaluate a value that Python computes outside the function: arithmetic, sizes
  // of arrays and functions of numbers.
  bool isFormula(const Expr &expr) const {
    const auto areFormulas = [&](size_t first) {
      return std::all_of(expr.operands.begin() + ptrdiff_t(first), expr.operands.end(),
                         [&](const ExprRef &operand) { return isFormula(*operand); });
    };
    switch (expr.kind) {
    case ExprKind::Int:
    case ExprKind::Float:
    case ExprKind::Bool:
    case ExprKind::Name: return true;
    case ExprKind::Unary:
    case ExprKind::Binary:
    case ExprKind::Compare:
    case ExprKind::And:
    case ExprKind::Or:
    case ExprKind::Conditional: return areFormulas(0);
    case ExprKind::Subscript:
      return expr.operands[0]->kind == ExprKind::Attribute && expr.operands[0]->name == "shape" && areFormulas(1);
    case ExprKind::Attribute: { // torch.inf, torch.exp
      const Expr &owner = *expr.operands[0];
      return owner.kind == ExprKind::Name && (owner.name == "torch" || owner.name == "math");
    }
    case ExprKind::Call: {
      const Expr &callee = *expr.operands[0];
      const bool isText =
          callee.name == "float" && expr.operands.size() == 2 && expr.operands[1]->kind == ExprKind::String;
      if (!expr.keywords.empty() || callee.name == "tensor")
        return false;
      if (callee.kind == ExprKind::Attribute && callee.name == "size")
        return callee.operands[0]->kind == ExprKind::Name && areFormulas(1);
      const bool isKnown = callee.kind == ExprKind::Name ? isBuiltinFunction(callee.name) || valueTypeNamed(callee.name)
                                                         : isFormula(callee) && foreignNameMessage(callee.name).empty();
      return isKnown && (isText || areFormulas(1));
    }
    default: return false;
    }
  }

  std::string slice(SourceRange range) const { return std::string(file_.source->slice(range)); }
  std::string slice(const Expr &expr) const { return slice(expr.range); }
  std::string nameOf(const std::string &name) const { return renamed_.contains(name) ? name + "_" : name; }

  void resolve(const std::string &name) {
    const NameUse use = uses_.of(name);
    const PythonBinding binding = lookUpPython(file_, use.around, name);
    switch (binding.kind) {
    case PythonBindingKind::Import: imports_.insert(slice(binding.statement->range)); return;
    case PythonBindingKind::Function: return addFunction(*binding.statement, binding.around, FunctionRole::Plain);
    case PythonBindingKind::None:
      if (isBuiltinFunction(name) || valueTypeNamed(name) || !foreignNameMessage(name).empty())
        return;
      break;
    case PythonBindingKind::Value:
    case PythonBindingKind::Parameter:
      // `tanh = torch.tanh` is what the name means here, too.
      if (binding.value && binding.value->kind == ExprKind::Attribute && binding.value->name == name &&
          isFormula(*binding.value))
        return;
      if (isBuiltinFunction(name))
        renamed_.insert(name);
      break;
    }
    if (isBuiltinDimension(name))
      renamed_.insert(name);
    const Expr *value = binding.parameter ? binding.parameter->defaultValue.get() : binding.value;
    if (use.numArguments > 0)
      return declareFunction(name, use, value, binding.around);
    if (use.isTensor)
      return declareArray(name, use);
    if (value && isLiteral(*value)) {
      declarations_ += fmt::format("{}: param[{}] = {}\n", nameOf(name), literalType(*value), slice(*value));
      return;
    }
    if (value && isFormula(*value) && !mentions(*value, name)) {
      // Aliases are read in any order.
      aliases_ += fmt::format("{} = {}\n", nameOf(name), slice(*value));
      return uses_.addValue(*value, binding.around, use);
    }
    declareScalar(name, use, binding.parameter);
  }

  void declareArray(const std::string &name, const NameUse &use) {
    const char *type = use.isBool ? "bool" : use.isInScore && !use.isIndex ? "f32" : "i32";
    std::string dims;
    for (const std::string &dim : use.dims)
      dims += ", " + dim;
    declarations_ += fmt::format("{}: tensor[{}{}]\n", nameOf(name), type, dims);
    warn(use, fmt::format("'{}' is taken for an array of {} of {} dimension{}; check its declaration", name, type,
                          use.dims.size(), use.dims.size() == 1 ? "" : "s"));
  }

  void declareScalar(const std::string &name, const NameUse &use, const Parameter *parameter) {
    const std::string annotation = parameter && parameter->annotation && parameter->annotation->kind == ExprKind::Name
                                       ? parameter->annotation->name
                                       : "";
    const bool isAnnotated = annotation == "int" || annotation == "float" || annotation == "bool";
    const std::string type = isAnnotated                     ? annotation
                             : use.isBool                    ? "bool"
                             : use.isInScore && !use.isIndex ? "float"
                                                             : "int";
    declarations_ += fmt::format("{}: param[{}]\n", nameOf(name), type);
    warn(use, fmt::format("'{}' is taken for {} {} argument without a default; check its declaration", name,
                          type == "int" ? "an" : "a", type));
  }

  // A function that the factory's caller chooses.
  void declareFunction(const std::string &name, const NameUse &use, const Expr *value,
                       const std::vector<const Stmt *> &around) {
    if (value && value->kind == ExprKind::Name) {
      const PythonBinding chosen = lookUpPython(file_, around, value->name);
      if (chosen.kind == PythonBindingKind::Function) {
        aliases_ += fmt::format("{} = {}\n", nameOf(name), value->name);
        return addFunction(*chosen.statement, chosen.around, FunctionRole::Plain);
      }
    }
    if (value && isFormula(*value)) {
      aliases_ += fmt::format("{} = {}\n", nameOf(name), slice(*value));
      return uses_.addValue(*value, around, {});
    }
    if (use.numArguments != 4) {
      diagnostics_.error(file_.source, use.range,
                         fmt::format("'{}' is a function that is chosen elsewhere; write its call out", name));
      return;
    }
    imports_.insert("from cpflex.std import causal");
    aliases_ += fmt::format("{} = causal\n", nameOf(name));
    warn(use,
         fmt::format("'{}' is a mask that is chosen elsewhere; 'causal' stands for it, put yours in its place", name));
  }

  void warn(const NameUse &use, std::string message) {
    diagnostics_.warning(file_.source, use.range, std::move(message));
  }

  // Text.

  // From 'def' to the last line that is indented more, also when the parser left lines out.
  SourceRange linesOf(const Stmt &function) const {
    const int margin = file_.source->position(function.range.begin).column - 1;
    int last = file_.source->position(endOf(function)).line;
    for (int line = last + 1; file_.source->lineBegin(line) < file_.source->text().size(); ++line) {
      const size_t indentation = file_.source->line(line).find_first_not_of(" \t");
      if (indentation == std::string_view::npos)
        continue;
      if (int(indentation) <= margin)
        break;
      last = line;
    }
    return {function.range.begin, file_.source->lineBegin(last) + uint32_t(file_.source->line(last).size())};
  }

  void writeFunction(const PortedFunction &ported) {
    const Stmt &function = *ported.function;
    text_.add("\n\n");
    if (ported.role != FunctionRole::Plain)
      text_.add(ported.role == FunctionRole::Score ? "@score\n" : "@mask\n");
    if (slice(function.range).starts_with("def"))
      return text_.addCopy(linesOf(function), renamed_);
    std::string parameters; // a lambda
    for (const Parameter &parameter : function.parameters)
      parameters += fmt::format("{}{}{}", parameters.empty() ? "" : ", ", parameter.name,
                                parameter.defaultValue ? "=" + slice(*parameter.defaultValue) : "");
    const std::string name = function.name.empty() ? name_ : function.name;
    text_.add(withRenamed(
        fmt::format("def {}({}):\n    return ({})\n", name, parameters, slice(*function.body[0]->value)), renamed_));
  }

  void write() {
    text_.add(fmt::format("\"\"\"{}, ported from {}.\"\"\"\n", name_, file_.source->path()));
    for (const std::string &line : imports_)
      text_.add(line + "\n");
    if (!declarations_.empty())
      text_.add("\n" + declarations_);
    if (!aliases_.empty() && combination_.empty())
      text_.add(withRenamed(aliases_, renamed_));
    for (size_t i = functions_.size(); i-- > 0;)
      writeFunction(functions_[i]);
    if (!made_.empty())
      text_.add(fmt::format("\n\n{}{}", isScore_ ? "@score\n" : "@mask\n", made_));
    if (!combination_.empty())
      text_.add(fmt::format("\n\n{}{} = {}\n", aliases_, nameOf(name_), combination_));
    text_.add(fmt::format("\n\nattention(\"{}\", {}={})\n", name_, isScore_ ? "score" : "mask", nameOf(name_)));
  }

  const File &file_;
  DiagnosticList &diagnostics_;
  PortedText text_;
  std::string name_;
  std::vector<PortedFunction> functions_; ///< each before those that it calls
  NameUses uses_;
  std::set<std::string> renamed_, imports_;
  std::set<std::string> named_; ///< combinations that have an alias
  std::set<const Expr *> open_; ///< combinations of which not all functions were seen
  std::string declarations_, aliases_, combination_, made_;
  bool isScore_ = false;
};

// What a factory gives, followed through factories of factories.
std::pair<std::string, PythonBinding> unwrapped(std::string name, PythonBinding binding) {
  constexpr int kMostFactories = 8;
  for (int i = 0; i < kMostFactories && binding.kind == PythonBindingKind::Function; ++i) {
    PythonBinding inner = returnedByPython(*binding.statement, binding.around);
    if (inner.kind == PythonBindingKind::None)
      break;
    for (const StmtRef &statement : binding.statement->body)
      if (statement->kind == StmtKind::Return && statement->value && statement->value->kind == ExprKind::Name)
        name = statement->value->name;
    binding = std::move(inner);
  }
  return {std::move(name), std::move(binding)};
}

} // namespace

std::string portFunction(const std::string &path, const std::string &text, const std::string &function,
                         mlir::MLIRContext &ctx, DiagnosticList &diagnostics) {
  // Most of a Python file is outside the language and of no interest here: its errors are dropped.
  DiagnosticList ignored(/*maxErrors=*/SIZE_MAX);
  File file = parseFile(path, text, ignored);
  const auto [name, target] = unwrapped(function, findInPython(file, function));
  if (target.kind == PythonBindingKind::None) {
    diagnostics.error(fmt::format("'{}' has no function '{}' outside classes", path, function));
    return {};
  }
  Porter porter(file, diagnostics);
  if (!porter.run(name, target))
    return {};
  DiagnosticList found;
  ast::File ported = parseFile(name + ".cpf", porter.text().text(), found);
  importProgram(ported, ctx, {}, found);
  porter.text().transfer(found, ported.source, diagnostics);
  return porter.text().text();
}

} // namespace cpflex
