// Reads declarations: params, consts and captured arrays with their dimensions and facts.
#include "lib/Frontend/ImporterState.h"

#include "llvm/Support/SaveAndRestore.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

namespace cpflex {

using namespace ast;

namespace {

constexpr std::pair<std::string_view, ElementType> kElementTypes[] = {
    {"bool", ElementType::Bool}, {"i8", ElementType::I8},    {"i16", ElementType::I16},   {"i32", ElementType::I32},
    {"i64", ElementType::I64},   {"u8", ElementType::U8},    {"u16", ElementType::U16},   {"u32", ElementType::U32},
    {"u64", ElementType::U64},   {"f16", ElementType::F16},  {"bf16", ElementType::BF16}, {"f32", ElementType::F32},
    {"int", ElementType::I64},   {"float", ElementType::F32}};

bool isFloat(ElementType type) {
  return type == ElementType::F16 || type == ElementType::BF16 || type == ElementType::F32;
}

// What the type of a declaration may look like; shown when it looks otherwise.
constexpr const char *kExpectedDeclaration =
    "expected param[int], const[int] or tensor[i32, KV_LEN], with int, float, bool or u32 for int";

} // namespace

// An error about two declarations of one name, told at the one in the main file.
void Importer::reportConflict(Module &module, SourceRange range, Module &otherModule, SourceRange otherRange,
                              std::string message) {
  bool isOthersMain = &otherModule == main_;
  Diagnostic &diagnostic =
      isOthersMain ? errorIn(otherModule, otherRange, std::move(message)) : errorIn(module, range, std::move(message));
  addNote(diagnostic, isOthersMain ? module.file.source : otherModule.file.source, isOthersMain ? range : otherRange,
          "declared here");
}

void Importer::resolveDeclarations() {
  for (Module *module : loadOrder_)
    for (const StmtRef &statement : module->file.statements) {
      auto symbol = module->symbols.find(statement->name);
      bool isArray = statement->kind == StmtKind::Declare && symbol != module->symbols.end() &&
                     symbol->second.kind == SymbolKind::Tensor;
      const Expr *shape = isArray ? statement->annotation.get() : nullptr;
      if (shape && shape->kind == ExprKind::Call)
        shape = shape->operands[0].get();
      for (size_t i = 2; shape && shape->kind == ExprKind::Subscript && i < shape->operands.size(); ++i)
        registerDimensions(*module, *shape->operands[i]);
    }
  // Scalars first, because dimensions mention them; the main file first, because its declarations
  // hold for all files.
  for (SymbolKind kind : {SymbolKind::Scalar, SymbolKind::Tensor})
    for (Module *module : loadOrder_)
      for (const StmtRef &statement : module->file.statements) {
        auto symbol = module->symbols.find(statement->name);
        bool isOwn = statement->kind == StmtKind::Declare && symbol != module->symbols.end() &&
                     symbol->second.statement == statement.get() && symbol->second.kind == kind;
        bool isDone = !isOwn || symbol->second.isBroken || symbol->second.scalar || symbol->second.tensor;
        if (!isDone && kind == SymbolKind::Scalar)
          resolveScalar(*module, symbol->second);
        else if (!isDone)
          resolveTensor(*module, symbol->second);
      }
}

void Importer::resolveScalar(Module &module, Symbol &symbol) {
  const Stmt &statement = *symbol.statement;
  const Expr &annotation = *statement.annotation;
  symbol.isBroken = true;
  llvm::SaveAndRestore<bool> open(symbol.isOpen, true);
  bool isForm = annotation.kind == ExprKind::Subscript && annotation.operands.size() == 2 &&
                annotation.operands[0]->kind == ExprKind::Name &&
                (annotation.operands[0]->name == "param" || annotation.operands[0]->name == "const");
  if (!isForm) {
    errorIn(module, annotation.range,
            fmt::format("'{}' is not the type of a declaration; {}",
                        std::string(module.file.source->slice(annotation.range)).substr(0, 60), kExpectedDeclaration));
    return;
  }
  const Expr &typeExpr = *annotation.operands[1];
  std::optional<ValueType> type = typeExpr.kind == ExprKind::Name ? valueTypeNamed(typeExpr.name) : std::nullopt;
  if (!type) {
    errorIn(module, typeExpr.range,
            fmt::format("'{}' is not the type of a scalar; expected int, float, bool or u32",
                        std::string(module.file.source->slice(typeExpr.range)).substr(0, 60)));
    return;
  }
  ScalarDeclaration declaration;
  declaration.name = statement.name;
  declaration.type = *type;
  declaration.isConst = annotation.operands[0]->name == "const";
  declaration.module = &module;
  declaration.range = statement.nameRange;
  if (statement.value) {
    declaration.value = evaluateConstant(module, *statement.value);
    if (!declaration.value)
      return;
    Constant &value = *declaration.value;
    if (value.type == ValueType::Int && *type == ValueType::Float)
      value = Constant::ofFloat(float(value.bits));
    if (value.type == ValueType::Int && *type == ValueType::U32 && value.bits >= 0 && value.bits <= UINT32_MAX)
      value.type = ValueType::U32;
    if (value.type != *type) {
      errorIn(
          module, statement.value->range,
          fmt::format("'{}' is declared {}, its value is {}", statement.name, typeName(*type), typeName(value.type)));
      return;
    }
  }
  // One name is one declaration in all files of a program; that of the importing file counts.
  if (auto other = scalarByName_.find(statement.name); other != scalarByName_.end()) {
    if (other->second->type != declaration.type) {
      reportConflict(module, statement.nameRange, *other->second->module, other->second->range,
                     fmt::format("'{}' is declared {} in one file and {} in another; one name is "
                                 "one declaration in all files",
                                 statement.name, typeName(other->second->type), typeName(declaration.type)));
      return;
    }
    bool isMains = &module == main_ && other->second->module != main_;
    if (!isMains) {
      symbol.scalar = other->second;
      symbol.isBroken = false;
      return;
    }
  }
  if (declaration.isConst) {
    if (auto option = options_.constants.find(statement.name); option != options_.constants.end()) {
      declaration.value = constantFromOption(declaration, option->second);
      if (!declaration.value)
        return;
    } else if (!declaration.value) {
      errorIn(module, statement.nameRange,
              fmt::format("const '{}' has no value; expected one here or from the caller", statement.name));
      return;
    }
  }
  scalars_.push_back(std::move(declaration));
  scalarByName_[statement.name] = &scalars_.back();
  symbol.scalar = &scalars_.back();
  symbol.isBroken = false;
}

std::optional<Constant> Importer::constantFromOption(const ScalarDeclaration &declaration, const std::string &text) {
  char *end = nullptr;
  auto isWhole = [&] { return !text.empty() && *end == '\0'; };
  switch (declaration.type) {
  case ValueType::Bool:
    if (text == "True" || text == "true" || text == "1")
      return Constant::ofBool(true);
    if (text == "False" || text == "false" || text == "0")
      return Constant::ofBool(false);
    break;
  case ValueType::Int:
  case ValueType::U32: {
    errno = 0;
    int64_t value = std::strtoll(text.c_str(), &end, 0);
    bool isInRange = declaration.type == ValueType::Int || (value >= 0 && value <= UINT32_MAX);
    if (isWhole() && errno == 0 && isInRange)
      return Constant{declaration.type, value};
    break;
  }
  case ValueType::Float: {
    float value = std::strtof(text.c_str(), &end);
    if (isWhole() && !std::isnan(value))
      return Constant::ofFloat(value);
    break;
  }
  }
  Diagnostic &diagnostic = diagnostics_.error(fmt::format(
      "value of '{}' is '{}', which is not {}; expected a value of type {}", declaration.name, text.substr(0, 60),
      declaration.type == ValueType::Int ? "an int" : fmt::format("a {}", typeName(declaration.type)),
      typeName(declaration.type)));
  addNote(diagnostic, declaration.module->file.source, declaration.range, "declared here");
  return std::nullopt;
}

void Importer::resolveTensor(Module &module, Symbol &symbol) {
  const Stmt &statement = *symbol.statement;
  symbol.isBroken = true;
  llvm::SaveAndRestore<bool> open(symbol.isOpen, true);
  const Expr *shape = statement.annotation.get();
  const Expr *facts = nullptr;
  if (shape->kind == ExprKind::Call) {
    facts = shape;
    shape = shape->operands[0].get();
  }
  if (shape->kind != ExprKind::Subscript || shape->operands[0]->kind != ExprKind::Name) {
    errorIn(module, statement.annotation->range,
            "an array is declared with its element type and dimensions; expected tensor[i32, KV_LEN]");
    return;
  }
  TensorDeclaration tensor;
  tensor.name = statement.name;
  tensor.module = &module;
  tensor.range = statement.nameRange;
  const Expr &typeExpr = *shape->operands[1];
  auto type = std::find_if(std::begin(kElementTypes), std::end(kElementTypes), [&](const auto &entry) {
    return typeExpr.kind == ExprKind::Name && entry.first == typeExpr.name;
  });
  if (type == std::end(kElementTypes)) {
    std::vector<std::string> names;
    for (const auto &entry : kElementTypes)
      names.emplace_back(entry.first);
    std::string shown(module.file.source->slice(typeExpr.range));
    errorIn(module, typeExpr.range,
            fmt::format("'{}' is not an element type{}; expected bool, i8 to i64, u8 to u64, f16, bf16 or f32",
                        shown.substr(0, 60), suggestion(shown, names)));
    return;
  }
  tensor.type = type->second;
  if (shape->operands.size() - 2 > size_t(kMaxCaptureRank)) {
    errorIn(module, shape->range,
            fmt::format("'{}' has {} dimensions; expected at most {}", statement.name, shape->operands.size() - 2,
                        kMaxCaptureRank));
    return;
  }
  for (size_t i = 2; i < shape->operands.size(); ++i) {
    Dimension dimension;
    if (!resolveDimension(module, *shape->operands[i], dimension))
      return;
    tensor.dims.push_back(std::move(dimension));
  }
  if (statement.value) {
    errorIn(module, statement.value->range,
            fmt::format("array '{}' is bound when the program runs; expected no value here", statement.name));
    return;
  }
  if (facts)
    resolveFacts(module, *facts, tensor);
  if (auto scalar = scalarByName_.find(statement.name); scalar != scalarByName_.end()) {
    reportConflict(module, statement.nameRange, *scalar->second->module, scalar->second->range,
                   fmt::format("'{}' is an array in one file and a number in another; one name is one declaration in "
                               "all files",
                               statement.name));
    return;
  }
  if (auto other = tensorByName_.find(statement.name); other != tensorByName_.end()) {
    bool isSame = loadedValueType(other->second->type) == loadedValueType(tensor.type) &&
                  other->second->dims.size() == tensor.dims.size();
    if (!isSame) {
      reportConflict(module, statement.nameRange, *other->second->module, other->second->range,
                     fmt::format("'{}' is declared with another type or rank in another file; one "
                                 "name is one declaration in all files",
                                 statement.name));
      return;
    }
    if (&module != main_) {
      symbol.tensor = other->second;
      symbol.isBroken = false;
      return;
    }
  }
  tensors_.push_back(std::move(tensor));
  tensorByName_[statement.name] = &tensors_.back();
  symbol.tensor = &tensors_.back();
  symbol.isBroken = false;
}

void Importer::resolveFacts(Module &module, const Expr &call, TensorDeclaration &tensor) {
  for (size_t i = 1; i < call.operands.size(); ++i) {
    const Expr &fact = *call.operands[i];
    if (fact.kind == ExprKind::Name && fact.name == "sorted") {
      tensor.isSorted = true;
      if (tensor.dims.empty())
        errorIn(module, fact.range, fmt::format("'{}' has no axis to be sorted along", tensor.name));
      continue;
    }
    errorIn(module, fact.range,
            fmt::format("'{}' is not a fact about an array; expected sorted, lo=, hi= or grad=True",
                        std::string(module.file.source->slice(fact.range)).substr(0, 60)));
  }
  for (const Keyword &keyword : call.keywords) {
    if (keyword.name != "lo" && keyword.name != "hi" && keyword.name != "grad" && keyword.name != "sorted") {
      errorIn(module, keyword.nameRange,
              fmt::format("'{}' is not a fact about an array{}; expected sorted, lo=, hi= or grad=True", keyword.name,
                          suggestion(keyword.name, {"sorted", "grad"})));
      continue;
    }
    std::optional<Constant> value = evaluateConstant(module, *keyword.value);
    if (!value)
      continue;
    bool isFlag = keyword.name == "grad" || keyword.name == "sorted";
    if (value->type != (isFlag ? ValueType::Bool : ValueType::Int)) {
      errorIn(module, keyword.value->range,
              fmt::format("'{}' is {}; expected {}", keyword.name, typeName(value->type),
                          isFlag ? "True or False" : "an int"));
      continue;
    }
    if (keyword.name == "lo")
      tensor.lo = value->bits;
    else if (keyword.name == "hi")
      tensor.hi = value->bits;
    else if (keyword.name == "sorted")
      tensor.isSorted = value->bits != 0;
    else if (!isFloat(tensor.type) && value->bits != 0)
      errorIn(module, keyword.nameRange,
              fmt::format("'{}' is an array of ints or bools; gradients exist for f16, bf16 and f32", tensor.name));
    else
      tensor.needsGradient = value->bits != 0;
  }
  if ((tensor.lo || tensor.hi) && (isFloat(tensor.type) || tensor.type == ElementType::Bool))
    errorIn(module, call.range, fmt::format("'lo' and 'hi' bound ints; '{}' has none", tensor.name));
  if (tensor.lo && tensor.hi && *tensor.lo >= *tensor.hi)
    errorIn(module, call.range,
            fmt::format("no int is at least {} and below {}; expected lo < hi", *tensor.lo, *tensor.hi));
}

const TensorDeclaration *Importer::use(const TensorDeclaration *tensor) {
  const TensorDeclaration *canonical = tensorByName_.at(tensor->name);
  if (std::find(usedTensors_.begin(), usedTensors_.end(), canonical) == usedTensors_.end())
    usedTensors_.push_back(canonical);
  return canonical;
}

const ScalarDeclaration *Importer::use(const ScalarDeclaration *scalar) {
  const ScalarDeclaration *canonical = scalarByName_.at(scalar->name);
  if (std::find(usedScalars_.begin(), usedScalars_.end(), canonical) == usedScalars_.end())
    usedScalars_.push_back(canonical);
  return canonical;
}

} // namespace cpflex
