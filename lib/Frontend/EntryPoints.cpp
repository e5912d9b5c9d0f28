// Finds a program's entry points: attention(...), or each mask of a file without it.
#include "lib/Frontend/ImporterState.h"

#include "llvm/ADT/StringExtras.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

using namespace ast;

static bool isPlainFunction(const Entity &entity) {
  return entity.kind == EntityKind::Function && entity.function->role == FunctionRole::Plain;
}

bool Importer::readScores(const Entity &entity, SourceRange range, EntryDeclaration &entry) {
  if (entity.kind == EntityKind::Tuple) {
    for (const Entity &element : entity.elements)
      if (!readScores(element, range, entry))
        return false;
    return true;
  }
  if (entity.kind == EntityKind::None)
    return true;
  if (entity.kind != EntityKind::Function || entity.function->role != FunctionRole::Score) {
    const bool isPlain = isPlainFunction(entity);
    Diagnostic &diagnostic = error(range, fmt::format("score= takes a score function or a list of them; this is {}{}",
                                                      describe(entity), isPlain ? ", write '@score' before it" : ""));
    if (isPlain)
      noteMissingDecorator(diagnostic, *entity.function, FunctionRole::Score);
    return false;
  }
  entry.scores.push_back(entity.function);
  return true;
}

std::optional<EntryDeclaration> Importer::readAttention(Module &module, const Expr &call) {
  EntryDeclaration entry;
  entry.range = call.range;
  bool hasFailed = false;
  auto failAt = [&](SourceRange range, std::string message) {
    error(range, std::move(message));
    hasFailed = true;
  };
  if (call.operands.size() != 2 || call.operands[1]->kind != ExprKind::String)
    failAt(call.range, "attention(...) takes the entry point's name as a text, then mask=, score=, "
                       "sink=, scale= or softmax=");
  else
    entry.name = call.operands[1]->name;
  bool isPlain = !entry.name.empty() && entry.name.size() <= 255 &&
                 std::all_of(entry.name.begin(), entry.name.end(),
                             [](char c) { return llvm::isAlnum(c) || c == '_' || c == '-'; });
  if (!isPlain && !hasFailed)
    failAt(call.operands[1]->range, "the name of an entry point is made of letters, digits, '_' and '-'");
  for (const Keyword &keyword : call.keywords) {
    const Expr &expr = *keyword.value;
    if (keyword.name == "scale" || keyword.name == "softmax") {
      std::optional<Constant> value = evaluateConstant(module, expr);
      bool isNumber = value && (value->type == ValueType::Float || value->type == ValueType::Int);
      if (value && keyword.name == "scale" && !isNumber)
        failAt(expr.range, fmt::format("scale= is a number; this is {}", typeName(value->type)));
      else if (value && keyword.name == "softmax" && value->type != ValueType::Bool)
        failAt(expr.range, "softmax= is True or False");
      else if (value && keyword.name == "scale")
        entry.scale = value->type == ValueType::Float ? value->asFloat() : float(value->bits);
      else if (value)
        entry.hasSoftmax = value->bits != 0;
      hasFailed |= !value;
      continue;
    }
    if (keyword.name != "mask" && keyword.name != "score" && keyword.name != "sink") {
      failAt(keyword.nameRange,
             fmt::format("attention(...) has no argument '{}'{}; expected mask=, score=, sink=, "
                         "scale= or softmax=",
                         keyword.name, suggestion(keyword.name, {"mask", "score", "sink", "scale", "softmax"})));
      continue;
    }
    Entity value = evaluate(expr);
    hasFailed |= value.isError();
    if (value.isError() || value.kind == EntityKind::None)
      continue;
    if (keyword.name == "mask") {
      entry.mask = asMask(value);
      if (!entry.mask) {
        const bool isPlain = isPlainFunction(value);
        Diagnostic &diagnostic = error(expr.range, fmt::format("mask= takes a mask; this is {}{}", describe(value),
                                                               isPlain ? ", write '@mask' before it" : ""));
        if (isPlain)
          noteMissingDecorator(diagnostic, *value.function, FunctionRole::Mask);
        hasFailed = true;
      }
    } else if (keyword.name == "score") {
      hasFailed |= !readScores(value, expr.range, entry);
    } else {
      bool isSink = value.kind == EntityKind::Tensor && value.elements.empty() && value.tensor->dims.size() == 1 &&
                    loadedValueType(value.tensor->type) == ValueType::Float;
      if (!isSink)
        failAt(expr.range, fmt::format("sink= takes an array of floats of shape [H], as 'sinks: "
                                       "tensor[f32, H]' declares; this is {}",
                                       describe(value)));
      else
        entry.sink = value.tensor;
    }
  }
  return hasFailed ? std::nullopt : std::optional(std::move(entry));
}

// An alias has its meaning where it is used, if it is; its names must be known all the same.
void Importer::checkAliases(Module &module) {
  std::vector<const Expr *> rest;
  for (const StmtRef &statement : module.file.statements)
    if (statement->kind == StmtKind::Assign)
      rest.push_back(statement->value.get());
  while (!rest.empty()) {
    const Expr &expr = *rest.back();
    rest.pop_back();
    if (expr.kind == ExprKind::Generator)
      continue; // binds names of its own
    if (expr.kind == ExprKind::Name && !isKnownName(module, expr.name))
      evaluateName(expr);
    for (const ExprRef &operand : expr.operands)
      if (operand)
        rest.push_back(operand.get());
    for (const Keyword &keyword : expr.keywords)
      rest.push_back(keyword.value.get());
  }
}

// One function with the parameters of a mask or score function probably lacks its decorator.
void Importer::reportNoEntryPoint(Module &module) {
  const Stmt *candidate = nullptr;
  int numCandidates = 0;
  for (const StmtRef &statement : module.file.statements)
    if (statement->kind == StmtKind::Function && roleByParameters(*statement) != FunctionRole::Plain) {
      candidate = statement.get();
      ++numCandidates;
    }
  constexpr std::string_view kMessage = "the file declares no mask and no attention(...); ";
  if (numCandidates != 1) {
    errorIn(module, {0, 0}, fmt::format("{}expected at least one", kMessage));
    return;
  }
  const char *decorator = roleByParameters(*candidate) == FunctionRole::Mask ? "@mask" : "@score";
  Diagnostic &diagnostic = errorIn(module, candidate->nameRange,
                                   fmt::format("{}write '{}' before '{}'", kMessage, decorator, candidate->name));
  setFixIt(diagnostic, module.file.source, {candidate->range.begin, candidate->range.begin},
           fmt::format("{}\n", decorator));
}

std::vector<EntryDeclaration> Importer::collectEntryPoints(Module &module) {
  std::vector<EntryDeclaration> entries;
  bool hasAttention = false;
  for (const StmtRef &statement : module.file.statements) {
    if (statement->kind != StmtKind::Expression || statement->value->kind == ExprKind::String)
      continue;
    const Expr &expr = *statement->value;
    if (expr.kind == ExprKind::Call && expr.operands[0]->kind == ExprKind::Name &&
        expr.operands[0]->name == "attention") {
      hasAttention = true;
      if (std::optional<EntryDeclaration> entry = readAttention(module, expr))
        entries.push_back(std::move(*entry));
      continue;
    }
    Entity value = evaluate(expr);
    if (!value.isError())
      warning(expr.range, "this value is not used");
  }
  if (hasAttention)
    return entries;
  auto addOwn = [&](FunctionRole role) {
    for (const StmtRef &statement : module.file.statements) {
      auto symbol = module.symbols.find(statement->name);
      if (statement->kind != StmtKind::Function || symbol == module.symbols.end() ||
          symbol->second.kind != SymbolKind::Function || symbol->second.isBroken ||
          symbol->second.function.statement != statement.get() || symbol->second.function.role != role)
        continue;
      EntryDeclaration entry;
      entry.name = statement->name;
      entry.range = statement->nameRange;
      Entity entity;
      entity.kind = EntityKind::Function;
      entity.function = &symbol->second.function;
      if (role == FunctionRole::Mask)
        entry.mask = asMask(entity);
      else
        entry.scores = {entity.function};
      entries.push_back(std::move(entry));
    }
  };
  addOwn(FunctionRole::Mask);
  // Masks that are named combinations, such as `packed = same_document & causal`.
  for (const StmtRef &statement : module.file.statements) {
    if (statement->kind != StmtKind::Assign || statement->targets.size() != 1 ||
        statement->targets[0]->kind != ExprKind::Name)
      continue;
    auto symbol = module.symbols.find(statement->targets[0]->name);
    if (symbol == module.symbols.end() || symbol->second.expr != statement->value.get())
      continue;
    Entity value = quietly([&] { return evaluateSymbol(module, symbol->second, statement->range); });
    if (value.kind != EntityKind::Mask)
      continue;
    EntryDeclaration entry;
    entry.name = statement->targets[0]->name;
    entry.range = statement->range;
    entry.mask = value.mask;
    entries.push_back(std::move(entry));
  }
  if (entries.empty())
    addOwn(FunctionRole::Score);
  if (entries.empty() && !diagnostics_.hasErrors())
    reportNoEntryPoint(module);
  return entries;
}

} // namespace cpflex
