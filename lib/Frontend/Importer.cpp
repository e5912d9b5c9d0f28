// Drives the import of a program: entry points, the functions of the module, locations and messages.
#include "lib/Frontend/ImporterState.h"

#include "dialect/Mask/MaskDialect.h"

#include "llvm/ADT/StringExtras.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

using namespace ast;

Importer::Importer(mlir::MLIRContext &ctx, const ImportOptions &options, DiagnosticList &diagnostics)
    : ctx_(ctx), options_(options), diagnostics_(diagnostics), builder_(&ctx) {
  ctx.getOrLoadDialect<mask::MaskDialect>();
}

//===----------------------------------------------------------------------===//
// Locations and messages
//===----------------------------------------------------------------------===//

mlir::Location Importer::location(Module &module, SourceRange range) const {
  const SourceText &source = *module.file.source;
  SourcePosition begin = source.position(range.begin), end = source.position(std::max(range.begin, range.end));
  return mlir::FileLineColRange::get(mlir::StringAttr::get(&ctx_, source.path()), unsigned(begin.line), unsigned(begin.column),
                                     unsigned(end.line), unsigned(end.column));
}

mlir::Location Importer::location(SourceRange range) const { return location(*frames_.back()->module, range); }

// Gives the value's operation the user's name for it, unless it has one.
void Importer::nameValue(const Entity &entity, const std::string &name) {
  if (!entity.isScalar() || entity.isConstant())
    return;
  mlir::Location loc = entity.value.getLoc();
  if (llvm::isa<mlir::NameLoc>(loc))
    return;
  mlir::Location named = mlir::NameLoc::get(mlir::StringAttr::get(&ctx_, name), loc);
  if (mlir::Operation *op = entity.value.getDefiningOp())
    op->setLoc(named);
  else
    llvm::cast<mlir::BlockArgument>(entity.value).setLoc(named);
}

Diagnostic &Importer::errorIn(Module &module, SourceRange range, std::string message) {
  if (quiet_ > 0)
    return discarded_ = {};
  return diagnostics_.error(module.file.source, range, std::move(message));
}

Diagnostic &Importer::error(SourceRange range, std::string message) {
  Diagnostic &diagnostic = errorIn(*frame().module, range, std::move(message));
  addCallNotes(diagnostic);
  return diagnostic;
}

Diagnostic &Importer::warning(SourceRange range, std::string message) {
  if (quiet_ > 0)
    return discarded_ = {};
  return diagnostics_.warning(frame().module->file.source, range, std::move(message));
}

// Says from where the function that holds the error was called; the innermost calls are enough.
void Importer::addCallNotes(Diagnostic &diagnostic) {
  constexpr int kMaxCallNotes = 3;
  int numNotes = 0;
  for (size_t i = frames_.size(); i-- > 0 && numNotes < kMaxCallNotes;) {
    const Frame &callee = *frames_[i];
    bool isCall = callee.function && callee.callerModule && callee.callRange.end > 0 && i > 1 && frames_[i - 1]->function;
    if (!isCall)
      continue;
    addNote(diagnostic, callee.callerModule->file.source, callee.callRange, fmt::format("in '{}', called here", callee.function->statement->name));
    ++numNotes;
  }
}

std::string Importer::suggestion(const std::string &name, const std::vector<std::string> &candidates) const {
  constexpr size_t kMaxLength = 40;
  if (name.size() < 2 || name.size() > kMaxLength)
    return {};
  // A third of the letters may differ, two where there are four or more.
  unsigned best = name.size() < 4 ? 2 : unsigned(std::max<size_t>(2, name.size() / 3)) + 1;
  const std::string *found = nullptr;
  for (const std::string &candidate : candidates) {
    if (candidate.size() > kMaxLength || candidate == name)
      continue;
    unsigned distance = llvm::StringRef(name).edit_distance(candidate, /*AllowReplacements=*/true, best);
    if (distance < best) {
      best = distance;
      found = &candidate;
    }
  }
  return found ? fmt::format("; did you mean '{}'?", *found) : std::string();
}

std::vector<std::string> Importer::visibleNames() const {
  std::vector<std::string> names;
  for (const auto &[name, _] : frames_.back()->locals)
    names.push_back(name);
  for (const auto &[name, _] : frames_.back()->module->symbols)
    names.push_back(name);
  std::vector<std::string> builtins = builtinNames();
  names.insert(names.end(), builtins.begin(), builtins.end());
  return names;
}

bool Importer::enter(SourceRange range) {
  if (isExhausted_)
    return false;
  if (++numEvaluations_ > kMaxEvaluations) {
    isExhausted_ = true;
    quiet_ = 0;
    error(range, fmt::format("the program evaluates more than {} expressions", kMaxEvaluations));
    return false;
  }
  if (depth_ < kMaxInliningDepth) {
    ++depth_;
    return true;
  }
  error(range, fmt::format("calls and expressions nest more than {} levels deep", kMaxInliningDepth));
  return false;
}

//===----------------------------------------------------------------------===//
// Entry points
//===----------------------------------------------------------------------===//

bool Importer::readScores(const Entity &entity, SourceRange range, EntryPoint &entry) {
  if (entity.kind == EntityKind::Tuple) {
    for (const Entity &element : entity.elements)
      if (!readScores(element, range, entry))
        return false;
    return true;
  }
  if (entity.kind == EntityKind::None)
    return true;
  if (entity.kind != EntityKind::Function || entity.function->role != FunctionRole::Score) {
    error(range, fmt::format("score= takes a score function or a list of them; this is {}{}", describe(entity),
                             entity.kind == EntityKind::Function ? ", write '@score' before it" : ""));
    return false;
  }
  entry.scores.push_back(entity.function);
  return true;
}

std::optional<EntryPoint> Importer::readAttention(Module &module, const Expr &call) {
  EntryPoint entry;
  entry.range = call.range;
  bool hasFailed = false;
  auto failAt = [&](SourceRange range, std::string message) {
    error(range, std::move(message));
    hasFailed = true;
  };
  if (call.operands.size() != 2 || call.operands[1]->kind != ExprKind::String)
    failAt(call.range, "attention(...) takes the entry point's name as a text, then mask=, score=, sink=, scale= or softmax=");
  else
    entry.name = call.operands[1]->name;
  bool isPlain = !entry.name.empty() && entry.name.size() <= 255 && std::all_of(entry.name.begin(), entry.name.end(), [](char c) { return llvm::isAlnum(c) || c == '_' || c == '-'; });
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
      failAt(keyword.nameRange, fmt::format("attention(...) has no argument '{}'{}; expected mask=, score=, sink=, scale= or softmax=", keyword.name,
                                            suggestion(keyword.name, {"mask", "score", "sink", "scale", "softmax"})));
      continue;
    }
    Entity value = evaluate(expr);
    hasFailed |= value.isError();
    if (value.isError() || value.kind == EntityKind::None)
      continue;
    if (keyword.name == "mask") {
      entry.mask = asMask(value);
      if (!entry.mask)
        failAt(expr.range, fmt::format("mask= takes a mask; this is {}{}", describe(value), value.kind == EntityKind::Function ? ", write '@mask' before it" : ""));
    } else if (keyword.name == "score") {
      hasFailed |= !readScores(value, expr.range, entry);
    } else {
      bool isSink = value.kind == EntityKind::Tensor && value.elements.empty() && value.tensor->dims.size() == 1 && loadedValueType(value.tensor->type) == ValueType::Float;
      if (!isSink)
        failAt(expr.range, fmt::format("sink= takes an array of floats of shape [H], as 'sinks: tensor[f32, H]' declares; this is {}", describe(value)));
      else
        entry.sink = value.tensor;
    }
  }
  return hasFailed ? std::nullopt : std::optional(std::move(entry));
}

std::vector<EntryPoint> Importer::collectEntryPoints(Module &module) {
  std::vector<EntryPoint> entries;
  bool hasAttention = false;
  for (const StmtRef &statement : module.file.statements) {
    if (statement->kind != StmtKind::Expression || statement->value->kind == ExprKind::String)
      continue;
    const Expr &expr = *statement->value;
    if (expr.kind == ExprKind::Call && expr.operands[0]->kind == ExprKind::Name && expr.operands[0]->name == "attention") {
      hasAttention = true;
      if (std::optional<EntryPoint> entry = readAttention(module, expr))
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
      if (statement->kind != StmtKind::Function || symbol == module.symbols.end() || symbol->second.kind != SymbolKind::Function || symbol->second.isBroken ||
          symbol->second.function.statement != statement.get() || symbol->second.function.role != role)
        continue;
      EntryPoint entry;
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
    if (statement->kind != StmtKind::Assign || statement->targets.size() != 1 || statement->targets[0]->kind != ExprKind::Name)
      continue;
    auto symbol = module.symbols.find(statement->targets[0]->name);
    if (symbol == module.symbols.end() || symbol->second.expr != statement->value.get())
      continue;
    Entity value = quietly([&] { return evaluateSymbol(module, symbol->second, statement->range); });
    if (value.kind != EntityKind::Mask)
      continue;
    EntryPoint entry;
    entry.name = statement->targets[0]->name;
    entry.range = statement->range;
    entry.mask = value.mask;
    entries.push_back(std::move(entry));
  }
  if (entries.empty())
    addOwn(FunctionRole::Score);
  if (entries.empty() && !diagnostics_.hasErrors())
    errorIn(module, {0, 0}, "the file declares no mask and no attention(...); expected at least one");
  return entries;
}

//===----------------------------------------------------------------------===//
// The module
//===----------------------------------------------------------------------===//

void Importer::emitPredicate(const std::string &name, const MaskValue &mask, SourceRange range) {
  mlir::Type integer = dialectType(ctx_, ValueType::Int);
  auto type = mlir::FunctionType::get(&ctx_, {integer, integer, integer, integer}, {dialectType(ctx_, ValueType::Bool)});
  builder_.setInsertionPointToEnd(result_->getBody());
  auto predicate = mask::PredicateOp::create(builder_, location(range), name, type);
  mlir::Block &body = predicate.getBody().front();
  builder_.setInsertionPointToEnd(&body);
  Coordinates at;
  Entity *coordinates[] = {&at.b, &at.h, &at.q, &at.kv};
  const char *names[] = {"b", "h", "q", "kv"};
  for (unsigned i = 0; i < 4; ++i) {
    coordinates[i]->kind = EntityKind::Scalar;
    coordinates[i]->type = ValueType::Int;
    coordinates[i]->value = body.getArgument(i);
    bool isDefinition = mask.kind == MaskValueKind::Definition;
    nameValue(*coordinates[i], isDefinition ? mask.definition->statement->parameters[i].name : names[i]);
  }
  hasBody_ = isInMask_ = true;
  Entity value = evaluateMask(mask, at, range);
  hasBody_ = isInMask_ = false;
  if (value.isError())
    return;
  builder_.setInsertionPointToEnd(&body);
  mlir::OperationState yield(location(range), "mask.yield");
  yield.addOperands(materialize(value, range));
  builder_.create(yield);
}

void Importer::emitScore(const std::string &name, const EntryPoint &entry) {
  mlir::Type integer = dialectType(ctx_, ValueType::Int), real = dialectType(ctx_, ValueType::Float);
  auto type = mlir::FunctionType::get(&ctx_, {real, integer, integer, integer, integer}, {real});
  builder_.setInsertionPointToEnd(result_->getBody());
  auto score = mask::ScoreOp::create(builder_, location(entry.range), name, type);
  mlir::Block &body = score.getBody().front();
  builder_.setInsertionPointToEnd(&body);
  Arguments arguments;
  arguments.range = entry.range;
  arguments.callee = name;
  for (unsigned i = 0; i < 5; ++i) {
    Entity coordinate;
    coordinate.kind = EntityKind::Scalar;
    coordinate.type = i == 0 ? ValueType::Float : ValueType::Int;
    coordinate.value = body.getArgument(i);
    nameValue(coordinate, entry.scores[0]->statement->parameters[i].name);
    arguments.positional.push_back(coordinate);
    arguments.ranges.push_back(entry.range);
  }
  hasBody_ = true;
  Entity value = arguments.positional[0];
  for (const FunctionDefinition *definition : entry.scores) {
    arguments.positional[0] = value;
    value = callFunction(*definition, arguments);
    if (value.isError())
      break;
  }
  if (!value.isError()) {
    mlir::OperationState yield(location(entry.range), "mask.yield");
    yield.addOperands(materialize(value, entry.range));
    builder_.create(yield);
  }
  hasBody_ = false;
}

void Importer::emitEntryPoint(const EntryPoint &entry) {
  mlir::OperationState state(location(entry.range), "mask.attention");
  state.addAttribute("sym_name", builder_.getStringAttr(entry.name));
  if (entry.mask) {
    emitPredicate(entry.name + ".mask", *entry.mask, entry.range);
    state.addAttribute("mask", mlir::FlatSymbolRefAttr::get(&ctx_, entry.name + ".mask"));
  }
  if (!entry.scores.empty()) {
    emitScore(entry.name + ".score", entry);
    state.addAttribute("score", mlir::FlatSymbolRefAttr::get(&ctx_, entry.name + ".score"));
  }
  if (entry.sink)
    state.addAttribute("sink", mlir::FlatSymbolRefAttr::get(&ctx_, use(entry.sink)->name));
  if (entry.scale)
    state.addAttribute("scale", builder_.getF32FloatAttr(*entry.scale));
  if (!entry.hasSoftmax)
    state.addAttribute("no_softmax", builder_.getUnitAttr());
  builder_.setInsertionPointToEnd(result_->getBody());
  builder_.create(state);
}

// The main file's declarations in its order, used or not, then those of other files in the order of their first use.
void Importer::emitDeclarations() {
  builder_.setInsertionPointToStart(result_->getBody());
  std::vector<mlir::NamedAttribute> constants;
  auto attributeOf = [&](const Constant &value) -> mlir::TypedAttr {
    mlir::Type type = dialectType(ctx_, value.type);
    if (value.type == ValueType::Float)
      return mlir::FloatAttr::get(type, llvm::APFloat(value.asFloat()));
    return mlir::IntegerAttr::get(type, llvm::APInt(type.getIntOrFloatBitWidth(), uint64_t(value.bits), /*isSigned=*/false, /*implicitTrunc=*/true));
  };
  auto emitScalar = [&](const ScalarDeclaration &scalar) {
    if (scalar.isConst) {
      constants.push_back(builder_.getNamedAttr(scalar.name, attributeOf(*scalar.value)));
      return;
    }
    mlir::OperationState state(location(*scalar.module, scalar.range), "mask.param");
    state.addAttribute("sym_name", builder_.getStringAttr(scalar.name));
    state.addAttribute("type", mlir::TypeAttr::get(dialectType(ctx_, scalar.type)));
    if (scalar.value)
      state.addAttribute("default_value", attributeOf(*scalar.value));
    builder_.create(state);
  };
  auto emitTensor = [&](const TensorDeclaration &tensor) {
    mlir::OperationState state(location(*tensor.module, tensor.range), "mask.capture");
    state.addAttribute("sym_name", builder_.getStringAttr(tensor.name));
    state.addAttribute("element_type", mlir::TypeAttr::get(mask::toType(&ctx_, tensor.type)));
    std::vector<llvm::StringRef> dims;
    for (const Dimension &dimension : tensor.dims)
      dims.push_back(dimension.text);
    state.addAttribute("dims", builder_.getStrArrayAttr(dims));
    if (tensor.isSorted)
      state.addAttribute("sorted", builder_.getUnitAttr());
    if (tensor.lo)
      state.addAttribute("lo", builder_.getI64IntegerAttr(*tensor.lo));
    if (tensor.hi)
      state.addAttribute("hi", builder_.getI64IntegerAttr(*tensor.hi));
    if (tensor.needsGradient)
      state.addAttribute("grad", builder_.getUnitAttr());
    builder_.create(state);
  };
  for (const StmtRef &statement : main_->file.statements) {
    auto symbol = main_->symbols.find(statement->name);
    if (statement->kind != StmtKind::Declare || symbol == main_->symbols.end())
      continue;
    if (symbol->second.scalar)
      emitScalar(*symbol->second.scalar);
    if (symbol->second.tensor)
      emitTensor(*symbol->second.tensor);
  }
  for (const ScalarDeclaration *scalar : usedScalars_)
    if (scalar->module != main_)
      emitScalar(*scalar);
  for (const TensorDeclaration *tensor : usedTensors_)
    if (tensor->module != main_)
      emitTensor(*tensor);
  if (!constants.empty())
    (*result_)->setAttr(kConstantsAttribute, builder_.getDictionaryAttr(constants));
}

// Type-checks what no entry point uses, so that its mistakes are found all the same.
void Importer::checkUnusedFunctions(Module &module) {
  auto saved = std::pair(usedScalars_, usedTensors_);
  mlir::Block *block = result_->getBody();
  mlir::Operation *last = block->empty() ? nullptr : &block->back();
  for (const StmtRef &statement : module.file.statements) {
    auto symbol = module.symbols.find(statement->name);
    bool isOwn = statement->kind == StmtKind::Function && symbol != module.symbols.end() && symbol->second.kind == SymbolKind::Function && !symbol->second.isBroken &&
                 symbol->second.function.statement == statement.get() && !inlined_.contains(statement.get());
    if (!isOwn || symbol->second.function.role == FunctionRole::Plain)
      continue;
    Entity entity;
    entity.kind = EntityKind::Function;
    entity.function = &symbol->second.function;
    EntryPoint entry;
    entry.range = statement->nameRange;
    entry.scores = {entity.function};
    if (entity.function->role == FunctionRole::Mask)
      emitPredicate(statement->name + ".unused", *asMask(entity), statement->nameRange);
    else
      emitScore(statement->name + ".unused", entry);
  }
  while (!block->empty() && &block->back() != last)
    block->back().erase();
  std::tie(usedScalars_, usedTensors_) = saved;
}

mlir::OwningOpRef<mlir::ModuleOp> Importer::run(const File &file) {
  Frame base;
  frames_.push_back(&base);
  Module empty;
  empty.file.source = file.source;
  base.module = &empty;
  base.module = loadMain(file);
  result_ = mlir::ModuleOp::create(location(*main_, {0, 0}));
  std::vector<EntryPoint> entries = collectEntryPoints(*main_);
  std::map<std::string, SourceRange> names;
  for (const auto &[name, symbol] : main_->symbols)
    if (symbol.kind == SymbolKind::Scalar || symbol.kind == SymbolKind::Tensor)
      names[name] = symbol.range;
  for (const EntryPoint &entry : entries) {
    auto [other, isNew] = names.try_emplace(entry.name, entry.range);
    if (!isNew) {
      addNote(error(entry.range, fmt::format("'{}' is already defined; an entry point needs a name of its own", entry.name)), main_->file.source, other->second, "defined here");
      continue;
    }
    emitEntryPoint(entry);
  }
  checkUnusedFunctions(*main_);
  emitDeclarations();
  frames_.pop_back();
  if (diagnostics_.hasErrors())
    return {};
  return std::move(result_);
}

mlir::OwningOpRef<mlir::ModuleOp> importProgram(const ast::File &file, mlir::MLIRContext &ctx, const ImportOptions &options, DiagnosticList &diagnostics) {
  return Importer(ctx, options, diagnostics).run(file);
}

} // namespace cpflex
