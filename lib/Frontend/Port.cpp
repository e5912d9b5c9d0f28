// The translation of FlexAttention functions. The body's text is kept as it is, because the
// language reads it; what is made is the head of the file: imports and declarations.
#include "lib/Frontend/Port.h"

#include "lib/Frontend/Importer.h"
#include "lib/Frontend/ImporterState.h"
#include "lib/Frontend/Parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace cpflex {

using namespace ast;

namespace {

/// How a free name is used; its declaration is guessed from this.
struct Use {
  std::vector<std::string> dims; ///< a dimension per index where it is subscripted
  bool isTensor = false;
  bool isBool = false;  ///< stands where a bool is expected
  bool isIndex = false; ///< stands inside a subscript, is compared, or is divided as ints are
  bool isInScore = false;
  SourceRange range;
};

/// A function with the functions around it, the outermost first.
struct Scoped {
  const Stmt *function = nullptr;
  std::vector<const Stmt *> around;
};

uint32_t endOf(const Stmt &statement) {
  uint32_t end = statement.range.end;
  for (const StmtRef &inner : statement.body)
    end = std::max(end, endOf(*inner));
  for (const StmtRef &inner : statement.orElse)
    end = std::max(end, endOf(*inner));
  return end;
}

bool find(const std::vector<StmtRef> &statements, const std::string &name,
          std::vector<const Stmt *> &around, Scoped &result) {
  for (const StmtRef &statement : statements) {
    if (statement->kind == StmtKind::Function && statement->name == name) {
      result = {statement.get(), around};
      return true;
    }
    bool isFunction = statement->kind == StmtKind::Function;
    if (isFunction)
      around.push_back(statement.get());
    bool isFound = find(statement->body, name, around, result) ||
                   find(statement->orElse, name, around, result);
    if (isFunction)
      around.pop_back();
    if (isFound)
      return true;
  }
  return false;
}

class Porter {
public:
  Porter(const File &file, DiagnosticList &diagnostics) : file_(file), diagnostics_(diagnostics) {}

  std::string run(const Scoped &main) {
    main_ = main;
    addFunction(main, roleOf(*main.function));
    while (!pending_.empty()) {
      std::string name = pending_.back();
      pending_.pop_back();
      resolve(name);
    }
    return text();
  }

  static FunctionRole roleOf(const Stmt &function) {
    return function.parameters.size() == 5   ? FunctionRole::Score
           : function.parameters.size() == 4 ? FunctionRole::Mask
                                             : FunctionRole::Plain;
  }

private:
  // Uses of names.

  void addFunction(const Scoped &scoped, FunctionRole role) {
    functions_.push_back(scoped.function);
    std::set<std::string> bound;
    size_t first = role == FunctionRole::Score ? 1 : 0;
    const char *sizes[] = {"B", "H", "Q_LEN", "KV_LEN"};
    sizeOf_.clear();
    for (size_t i = 0; i < scoped.function->parameters.size(); ++i) {
      bound.insert(scoped.function->parameters[i].name);
      if (role != FunctionRole::Plain && i >= first)
        sizeOf_[scoped.function->parameters[i].name] = sizes[i - first];
    }
    isInScore_ = role == FunctionRole::Score;
    collectBound(scoped.function->body, bound);
    bound_ = std::move(bound);
    visit(scoped.function->body, role == FunctionRole::Mask);
  }

  void collectBound(const std::vector<StmtRef> &statements, std::set<std::string> &bound) {
    for (const StmtRef &statement : statements) {
      for (const ExprRef &target : statement->targets)
        collectTarget(*target, bound);
      collectBound(statement->body, bound);
      collectBound(statement->orElse, bound);
    }
  }

  void collectTarget(const Expr &target, std::set<std::string> &bound) {
    if (target.kind == ExprKind::Name)
      bound.insert(target.name);
    for (const ExprRef &operand : target.operands)
      collectTarget(*operand, bound);
  }

  void visit(const std::vector<StmtRef> &statements, bool givesBool) {
    for (const StmtRef &statement : statements) {
      if (statement->value)
        visit(*statement->value,
              statement->kind == StmtKind::If || (statement->kind == StmtKind::Return && givesBool),
              /*isIndex=*/false);
      visit(statement->body, givesBool);
      visit(statement->orElse, givesBool);
    }
  }

  Use *useOf(const Expr &name) {
    if (bound_.contains(name.name) || name.kind != ExprKind::Name)
      return nullptr;
    auto [entry, isNew] = uses_.try_emplace(name.name);
    if (isNew) {
      entry->second.range = name.range;
      pending_.push_back(name.name);
    }
    if (isBuiltinDimension(name.name) || name.name == "mask" || name.name == "score")
      renamed_.insert(name.name);
    entry->second.isInScore |= isInScore_;
    return &entry->second;
  }

  // A subscript, `a[i][j]` and `a[i, j]` alike: its array and all indices.
  void visitSubscript(const Expr &expr, bool isBool, bool isIndex) {
    std::vector<const Expr *> indices;
    const Expr *base = &expr;
    for (; base->kind == ExprKind::Subscript; base = base->operands[0].get()) {
      size_t at = 0;
      for (size_t i = 1; i < base->operands.size(); ++i)
        indices.insert(indices.begin() + ptrdiff_t(at++), base->operands[i].get());
    }
    for (const Expr *index : indices)
      visit(*index, /*isBool=*/false, /*isIndex=*/true);
    Use *use = useOf(*base);
    if (!use) {
      visit(*base, false, isIndex);
      return;
    }
    use->isTensor = true;
    use->isBool |= isBool;
    use->isIndex |= isIndex;
    std::vector<std::string> dims;
    for (size_t i = 0; i < indices.size(); ++i) {
      auto size =
          indices[i]->kind == ExprKind::Name ? sizeOf_.find(indices[i]->name) : sizeOf_.end();
      dims.push_back(size != sizeOf_.end() ? size->second
                                           : fmt::format("{}_SIZE{}", upper(base->name), i));
      // An array over queries and keys alike is one over all positions.
      if (use->dims.size() == indices.size() && use->dims[i] == "KV_LEN" && dims[i] == "Q_LEN")
        dims[i] = "KV_LEN";
    }
    if (dims.size() >= use->dims.size())
      use->dims = std::move(dims);
  }

  static std::string upper(std::string name) {
    for (char &c : name)
      c = c >= 'a' && c <= 'z' ? char(c - 'a' + 'A') : c;
    return name;
  }

  void visit(const Expr &expr, bool isBool, bool isIndex) {
    switch (expr.kind) {
    case ExprKind::Name:
      if (Use *use = useOf(expr)) {
        use->isBool |= isBool;
        use->isIndex |= isIndex;
      }
      return;
    case ExprKind::Subscript:
      return visitSubscript(expr, isBool, isIndex);
    case ExprKind::Generator: {
      std::set<std::string> before = bound_;
      for (const Clause &clause : expr.clauses) {
        visit(*clause.iterable, false, true);
        bound_.insert(clause.target);
      }
      visit(*expr.operands[0], isBool, isIndex);
      bound_ = std::move(before);
      return;
    }
    case ExprKind::And:
    case ExprKind::Or:
      isBool = true;
      break;
    case ExprKind::Compare:
      isBool = false;
      isIndex = true; // what is compared are positions and ids
      break;
    case ExprKind::Binary:
      isIndex |= expr.op == OpKind::FloorDiv || expr.op == OpKind::Mod;
      isBool = isBool &&
               (expr.op == OpKind::BitAnd || expr.op == OpKind::BitOr || expr.op == OpKind::BitXor);
      break;
    case ExprKind::Call: {
      const Expr &callee = *expr.operands[0];
      bool takesCondition = callee.name == "where";
      if (callee.kind == ExprKind::Attribute)
        visit(*callee.operands[0], false, isIndex);
      else
        visit(callee, false, false);
      for (size_t i = 1; i < expr.operands.size(); ++i)
        visit(*expr.operands[i], (takesCondition && i == 1) || callee.name.starts_with("logical_"),
              isIndex);
      for (const Keyword &keyword : expr.keywords)
        visit(*keyword.value, false, isIndex);
      return;
    }
    case ExprKind::Conditional:
      visit(*expr.operands[0], /*isBool=*/true, false);
      visit(*expr.operands[1], isBool, isIndex);
      visit(*expr.operands[2], isBool, isIndex);
      return;
    default:
      break;
    }
    for (const ExprRef &operand : expr.operands)
      visit(*operand, isBool, isIndex);
  }

  // Declarations.

  // The value that `name` is bound to around the function or at the top level; null when it is
  // bound elsewhere.
  const Expr *valueOf(const std::string &name) const {
    auto among = [&](const std::vector<StmtRef> &statements) -> const Expr * {
      for (const StmtRef &statement : statements)
        for (const ExprRef &target : statement->targets)
          if (target->kind == ExprKind::Name && target->name == name)
            return statement->value.get();
      return nullptr;
    };
    for (size_t i = main_.around.size(); i-- > 0;) {
      for (const Parameter &parameter : main_.around[i]->parameters)
        if (parameter.name == name)
          return parameter.defaultValue.get();
      if (const Expr *value = among(main_.around[i]->body))
        return value;
    }
    return among(file_.statements);
  }

  static bool isLiteral(const Expr &expr) {
    if (expr.kind == ExprKind::Unary && expr.op == OpKind::Neg)
      return isLiteral(*expr.operands[0]);
    return expr.kind == ExprKind::Int || expr.kind == ExprKind::Float ||
           expr.kind == ExprKind::Bool;
  }

  static const char *literalType(const Expr &expr) {
    const Expr &value = expr.kind == ExprKind::Unary ? *expr.operands[0] : expr;
    return value.kind == ExprKind::Float ? "float" : value.kind == ExprKind::Bool ? "bool" : "int";
  }

  std::string slice(const Expr &expr) const { return std::string(file_.source->slice(expr.range)); }
  std::string nameOf(const std::string &name) const {
    return renamed_.contains(name) ? name + "_" : name;
  }

  void resolve(const std::string &name) {
    for (const StmtRef &statement : file_.statements)
      if (statement->kind == StmtKind::Import)
        for (const ImportedName &imported : statement->imports)
          if (imported.alias == name) {
            imports_.insert(std::string(file_.source->slice(statement->range)));
            return;
          }
    Scoped helper;
    std::vector<const Stmt *> around;
    if (find(file_.statements, name, around, helper)) {
      if (std::find(functions_.begin(), functions_.end(), helper.function) == functions_.end())
        addFunction(helper, FunctionRole::Plain);
      return;
    }
    if (isBuiltinFunction(name) || valueTypeNamed(name) || !foreignNameMessage(name).empty())
      return;
    const Use use = uses_[name];
    const Expr *value = valueOf(name);
    if (use.isTensor) {
      const char *type = use.isBool ? "bool" : use.isInScore && !use.isIndex ? "f32" : "i32";
      std::string dims;
      for (const std::string &dim : use.dims)
        dims += ", " + dim;
      declarations_ += fmt::format("{}: tensor[{}{}]\n", nameOf(name), type, dims);
      warn(use,
           fmt::format("'{}' is taken for an array of {} of {} dimension{}; check its declaration",
                       name, type, use.dims.size(), use.dims.size() == 1 ? "" : "s"));
      return;
    }
    if (value && isLiteral(*value)) {
      declarations_ +=
          fmt::format("{}: param[{}] = {}\n", nameOf(name), literalType(*value), slice(*value));
      return;
    }
    if (value && (value->kind == ExprKind::Binary || value->kind == ExprKind::Unary)) {
      isInScore_ = use.isInScore;
      bound_.clear();
      visit(*value, use.isBool, use.isIndex);
      aliases_ = fmt::format("{} = {}\n", nameOf(name), slice(*value)) + aliases_;
      return;
    }
    const char *type = use.isBool ? "bool" : use.isInScore && !use.isIndex ? "float" : "int";
    declarations_ += fmt::format("{}: param[{}]\n", nameOf(name), type);
    warn(use,
         fmt::format("'{}' is taken for {} {} argument without a default; check its declaration",
                     name, *type == 'i' ? "an" : "a", type));
  }

  void warn(const Use &use, std::string message) {
    diagnostics_.warning(file_.source, use.range, std::move(message));
  }

  // Text.

  // The function's own lines, moved to the left margin.
  std::string functionText(const Stmt &function) const {
    uint32_t end = endOf(function);
    std::string_view all = file_.source->text();
    uint32_t margin = uint32_t(file_.source->position(function.range.begin).column - 1);
    size_t lineEnd = all.find('\n', end);
    std::string result;
    size_t at = function.range.begin - margin;
    size_t stop = lineEnd == std::string_view::npos ? all.size() : lineEnd;
    while (at < stop) {
      size_t next = std::min(all.find('\n', at), stop);
      std::string_view line = all.substr(at, next - at);
      size_t spaces =
          std::min<size_t>(margin, std::min(line.find_first_not_of(" \t"), line.size()));
      result += rename(std::string(line.substr(spaces))) + "\n";
      at = next + 1;
    }
    return result;
  }

  // Gives names that mean something else here a new one.
  std::string rename(std::string line) const {
    auto isNamePart = [](char c) {
      return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    };
    for (const std::string &name : renamed_)
      for (size_t at = line.find(name); at != std::string::npos;
           at = line.find(name, at + name.size())) {
        bool isWhole = (at == 0 || (!isNamePart(line[at - 1]) && line[at - 1] != '.')) &&
                       (at + name.size() == line.size() || !isNamePart(line[at + name.size()]));
        if (isWhole)
          line.insert(at + name.size(), "_");
      }
    return line;
  }

  std::string text() const {
    const Stmt &main = *main_.function;
    FunctionRole role = roleOf(main);
    std::string result =
        fmt::format("\"\"\"{}, ported from {}.\"\"\"\n", main.name, file_.source->path());
    for (const std::string &line : imports_)
      result += line + "\n";
    if (!declarations_.empty())
      result += "\n" + declarations_;
    if (!aliases_.empty())
      result += rename(aliases_);
    for (size_t i = functions_.size(); i-- > 0;)
      result += fmt::format("\n\n{}{}",
                            i == 0 ? (role == FunctionRole::Score ? "@score\n" : "@mask\n") : "",
                            functionText(*functions_[i]));
    return result + fmt::format("\n\nattention(\"{0}\", {1}={0})\n", main.name,
                                role == FunctionRole::Score ? "score" : "mask");
  }

  const File &file_;
  DiagnosticList &diagnostics_;
  Scoped main_;
  std::vector<const Stmt *> functions_; ///< the main one first
  std::map<std::string, Use> uses_;
  std::vector<std::string> pending_;
  std::set<std::string> bound_, renamed_, imports_;
  std::map<std::string, std::string> sizeOf_; ///< the size that bounds a coordinate
  std::string declarations_, aliases_;
  bool isInScore_ = false;
};

} // namespace

std::string portFunction(const std::string &path, const std::string &text,
                         const std::string &function, mlir::MLIRContext &ctx,
                         DiagnosticList &diagnostics) {
  // Most of a Python file is outside the language and of no interest here: its errors are dropped.
  DiagnosticList ignored(/*maxErrors=*/SIZE_MAX);
  File file = parseFile(path, text, ignored);
  Scoped scoped;
  std::vector<const Stmt *> around;
  if (!find(file.statements, function, around, scoped)) {
    diagnostics.error(fmt::format("'{}' has no function '{}' outside classes", path, function));
    return {};
  }
  if (Porter::roleOf(*scoped.function) == FunctionRole::Plain) {
    diagnostics.error(file.source, scoped.function->nameRange,
                      fmt::format("'{}' has {} parameters; a mask has 4: batch, head, query and "
                                  "key, a score function a score before them",
                                  function, scoped.function->parameters.size()));
    return {};
  }
  std::string result = Porter(file, diagnostics).run(scoped);
  ast::File ported = parseFile(function + ".cpf", result, diagnostics);
  importProgram(ported, ctx, {}, diagnostics);
  return result;
}

} // namespace cpflex
