// Drives the import of a program and emits its declarations, functions and entry points.
#include "lib/Frontend/ImporterState.h"

#include "dialect/Mask/MaskDialect.h"

#include "mlir/IR/Verifier.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {

using namespace ast;

Importer::Importer(mlir::MLIRContext &ctx, const ImportOptions &options, DiagnosticList &diagnostics)
    : ctx_(ctx), options_(options), diagnostics_(diagnostics), builder_(&ctx) {
  ctx.getOrLoadDialect<mask::MaskDialect>();
}

void Importer::emitPredicate(const std::string &name, const MaskValue &mask, SourceRange range) {
  mlir::Type integer = dialectType(ctx_, ValueType::Int);
  auto type =
      mlir::FunctionType::get(&ctx_, {integer, integer, integer, integer}, {dialectType(ctx_, ValueType::Bool)});
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
  // The location carries the name of the function that the mask is, for remarks about it.
  if (mask.kind == MaskValueKind::Definition)
    predicate->setLoc(mlir::NameLoc::get(builder_.getStringAttr(mask.definition->statement->name), predicate.getLoc()));
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

void Importer::emitScore(const std::string &name, const EntryDeclaration &entry) {
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

void Importer::emitEntryPoint(const EntryDeclaration &entry) {
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

// The main file's declarations in its order, used or not, then those of other files in the order of
// their first use.
void Importer::emitDeclarations() {
  builder_.setInsertionPointToStart(result_->getBody());
  std::vector<mlir::NamedAttribute> constants;
  auto attributeOf = [&](const Constant &value) -> mlir::TypedAttr {
    mlir::Type type = dialectType(ctx_, value.type);
    if (value.type == ValueType::Float)
      return mlir::FloatAttr::get(type, llvm::APFloat(value.asFloat()));
    return mlir::IntegerAttr::get(type, llvm::APInt(type.getIntOrFloatBitWidth(), uint64_t(value.bits),
                                                    /*isSigned=*/false, /*implicitTrunc=*/true));
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
  const std::set<const Stmt *> inlinedByEntries = inlined_;
  mlir::Block *block = result_->getBody();
  mlir::Operation *last = block->empty() ? nullptr : &block->back();
  for (const StmtRef &statement : module.file.statements) {
    auto symbol = module.symbols.find(statement->name);
    bool isOwn = statement->kind == StmtKind::Function && symbol != module.symbols.end() &&
                 symbol->second.kind == SymbolKind::Function && !symbol->second.isBroken &&
                 symbol->second.function.statement == statement.get() && !inlined_.contains(statement.get());
    if (!isOwn || symbol->second.function.role == FunctionRole::Plain)
      continue;
    Entity entity;
    entity.kind = EntityKind::Function;
    entity.function = &symbol->second.function;
    EntryDeclaration entry;
    entry.range = statement->nameRange;
    entry.scores = {entity.function};
    if (entity.function->role == FunctionRole::Mask)
      emitPredicate(statement->name + ".unused", *asMask(entity), statement->nameRange);
    else
      emitScore(statement->name + ".unused", entry);
  }
  lintUnused(module, inlinedByEntries);
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
  std::vector<EntryDeclaration> entries = collectEntryPoints(*main_);
  std::map<std::string, SourceRange> names;
  for (const auto &[name, symbol] : main_->symbols)
    if (symbol.kind == SymbolKind::Scalar || symbol.kind == SymbolKind::Tensor)
      names[name] = symbol.range;
  for (const EntryDeclaration &entry : entries) {
    auto [other, isNew] = names.try_emplace(entry.name, entry.range);
    if (!isNew) {
      addNote(error(entry.range,
                    fmt::format("'{}' is already defined; an entry point needs a name of its own", entry.name)),
              main_->file.source, other->second, "defined here");
      continue;
    }
    emitEntryPoint(entry);
  }
  auto checkName = [&](const auto *declaration) {
    for (const EntryDeclaration &entry : entries)
      if (declaration->module != main_ && entry.name == declaration->name)
        addNote(error(entry.range,
                      fmt::format("'{}' is already defined; an entry point needs a name of its own", entry.name)),
                declaration->module->file.source, declaration->range, "defined here");
  };
  std::for_each(usedScalars_.begin(), usedScalars_.end(), checkName);
  std::for_each(usedTensors_.begin(), usedTensors_.end(), checkName);
  checkAliases(*main_);
  checkUnusedFunctions(*main_);
  emitDeclarations();
  frames_.pop_back();
  if (!diagnostics_.hasErrors() && mlir::failed(mlir::verify(*result_)))
    errorIn(*main_, {0, 0}, "the program cannot be imported: its operations are not valid");
  if (diagnostics_.hasErrors())
    return {};
  for (const Module *module : loadOrder_)
    if (options_.texts)
      options_.texts->emplace_back(module->file.source->text());
  return std::move(result_);
}

mlir::OwningOpRef<mlir::ModuleOp> importProgram(const ast::File &file, mlir::MLIRContext &ctx,
                                                const ImportOptions &options, DiagnosticList &diagnostics) {
  return Importer(ctx, options, diagnostics).run(file);
}

} // namespace cpflex
