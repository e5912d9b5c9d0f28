// How `.cpf` text becomes a Program: the stages of the compiler in order, and what is compiled only when asked for.
#include "lib/API/ProgramState.h"

#include "dialect/Mask/MaskDialect.h"
#include "lib/Analysis/ProgramSignature.h"
#include "lib/CodeGen/Cuda/CudaFunctors.h"
#include "lib/Frontend/ImportedFiles.h"
#include "lib/Frontend/Importer.h"
#include "lib/Frontend/Parser.h"
#include "lib/Frontend/Port.h"
#include "lib/Jit/HostJit.h"
#include "lib/Transforms/Passes.h"
#include "lib/Transforms/TapeFromClassifier.h"
#include "runtime/BlockMask/ResidualChoice.h"

#include "mlir/Pass/PassManager.h"
#include "llvm/Support/raw_ostream.h"

#include <fmt/format.h>

#include <chrono>

namespace cpflex {

namespace {

using AddPasses = void (*)(mlir::OpPassManager &);

void addNarrowing(mlir::OpPassManager &passes) { addIntegerNarrowing(passes, {.boundedParams = true}); }

// From the simplified module, whose residuals are those of the tape.
void addWideHostCode(mlir::OpPassManager &passes) {
  passes.addPass(createEnumerateResiduals());
  addScoreDifferentiation(passes);
}

void addNarrowHostCode(mlir::OpPassManager &passes) {
  addWideHostCode(passes);
  addNarrowing(passes);
}

// The module after a pipeline; null when a pass failed, which the context's handler has been told.
mlir::OwningOpRef<mlir::ModuleOp> transformed(mlir::ModuleOp module, AddPasses addPasses) {
  mlir::OwningOpRef<mlir::ModuleOp> result = module.clone();
  mlir::PassManager passes(module.getContext());
  passes.enableVerifier(false);
  addPasses(passes);
  if (mlir::failed(passes.run(*result)))
    return nullptr;
  return result;
}

std::string textOf(mlir::ModuleOp module) {
  std::string text;
  llvm::raw_string_ostream stream(text);
  module.print(stream);
  text += '\n';
  return text;
}

double millisecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

Diagnostic messageOf(std::string message) {
  Diagnostic diagnostic;
  diagnostic.message = std::move(message);
  return diagnostic;
}

// Collects what MLIR reports while it lives.
class DiagnosticCollector {
public:
  explicit DiagnosticCollector(mlir::MLIRContext &ctx)
      : handler_(&ctx, [this](mlir::Diagnostic &diagnostic) {
          if (!text_.empty())
            text_ += '\n';
          llvm::raw_string_ostream stream(text_);
          stream << diagnostic;
          return mlir::success();
        }) {}
  const std::string &text() const { return text_; }

private:
  std::string text_;
  mlir::ScopedDiagnosticHandler handler_;
};

constexpr const char *kFromCache = "took from the cache";

} // namespace

mlir::ModuleOp Program::State::hostModule(bool isNarrow) {
  mlir::OwningOpRef<mlir::ModuleOp> &kept = isNarrow ? hostNarrow : hostWide;
  if (!kept)
    kept = transformed(*simplified, isNarrow ? addNarrowHostCode : addWideHostCode);
  return kept.get();
}

Program::Program(std::unique_ptr<State> state) : state_(std::move(state)) {}
Program::~Program() = default;
const Signature &Program::signature() const { return state_->summary.signature; }
const std::vector<EntryPoint> &Program::entries() const { return state_->summary.entries; }
const Log &Program::log() const { return state_->options.log; }

bool Program::hasConstant(const std::string &name) const { return state_->summary.constants.contains(name); }

StatusOr<const EntryPoint *> Program::entry(const std::string &name) const {
  std::string names;
  for (const EntryPoint &candidate : state_->summary.entries) {
    if (candidate.name == name || (name.empty() && state_->summary.entries.size() == 1))
      return &candidate;
    names += fmt::format("{}'{}'", names.empty() ? "" : ", ", candidate.name);
  }
  if (name.empty())
    return Status::invalid(fmt::format("the program has several entry points; expected the name of one of {}", names));
  return Status::invalid(fmt::format("there is no entry point '{}'; expected one of {}", name, names));
}

// The entry points of a simplified module; what is wrong, if anything is.
static std::optional<std::string> fillEntries(mlir::ModuleOp module, ProgramSummary &summary) {
  const mlir::SymbolTable symbols(module);
  for (auto attention : module.getOps<mask::AttentionOp>()) {
    EntryPoint entry;
    entry.name = attention.getSymName().str();
    entry.hasScore = attention.getScore().has_value();
    entry.hasSoftmax = !attention.getNoSoftmax();
    if (attention.getScale())
      entry.scale = attention.getScale()->convertToFloat();
    if (attention.getSink())
      entry.sinkCapture = captureSlot(summary.signature, *attention.getSink());
    if (attention.getMask()) {
      auto predicate = symbols.lookup<mask::PredicateOp>(*attention.getMask());
      if (!predicate)
        return fmt::format("entry point '{}' names no predicate", entry.name);
      mlir::FailureOr<TapeWithResiduals> tape = tapeWithResiduals(predicate, summary.signature);
      if (mlir::failed(tape))
        return fmt::format("the mask of '{}' has no tape", entry.name);
      entry.hasMask = true;
      entry.tape = std::move(tape->tape);
      entry.residuals = std::move(tape->residuals);
      entry.files = std::move(tape->files);
    }
    summary.entries.push_back(std::move(entry));
  }
  return std::nullopt;
}

std::optional<std::string> Program::State::makeModules(const ast::File &file, DiagnosticList &diagnostics,
                                                       std::vector<std::string> *texts) {
  ctx = std::make_unique<mlir::MLIRContext>(mlir::MLIRContext::Threading::DISABLED);
  ImportOptions importOptions{
      .includeDirs = options.includeDirs, .constants = options.constants, .files = &files, .texts = texts};
  imported = importProgram(file, *ctx, importOptions, diagnostics);
  syntaxLints = diagnostics.lints();
  if (!imported || diagnostics.hasErrors())
    return std::nullopt;
  importedSymbols.emplace(*imported);
  DiagnosticCollector collector(*ctx);
  simplified = transformed(*imported, addSimplification);
  if (simplified)
    differentiated = transformed(*simplified, addScoreDifferentiation);
  if (differentiated)
    narrow = transformed(*differentiated, addNarrowing);
  if (!narrow)
    return "the program cannot be transformed: " + collector.text();
  return std::nullopt;
}

Status Program::State::needModules() {
  std::call_once(modulesOnce, [&] {
    if (narrow)
      return;
    DiagnosticList diagnostics;
    const ast::File file = parseFile(source->path(), std::string(source->text()), diagnostics);
    const std::optional<std::string> problem = makeModules(file, diagnostics, /*texts=*/nullptr);
    if (!narrow)
      modulesStatus = Status::invalid(problem || diagnostics.all().empty() ? problem.value_or("")
                                                                           : diagnostics.all().front().message);
  });
  return modulesStatus;
}

// What is known about a program whose modules were made; what is wrong, if anything is.
static std::optional<std::string> fillSummary(Program::State &state, const std::vector<std::string> &texts) {
  ProgramSummary &summary = state.summary;
  std::map<std::string, std::string> constants; // params may be among the options' too, but do not decide the code
  if (auto declared = (*state.imported)->getAttrOfType<mlir::DictionaryAttr>(kConstantsAttribute))
    for (mlir::NamedAttribute constant : declared) {
      const std::string name = constant.getName().str();
      summary.constants.insert(name);
      if (auto value = state.options.constants.find(name); value != state.options.constants.end())
        constants.insert(*value);
    }
  summary.sourceDigest = sourceDigest(texts, constants);
  summary.signature = signatureOf(*state.simplified);
  DiagnosticCollector collector(*state.ctx);
  std::optional<std::string> problem = fillEntries(*state.simplified, summary);
  if (problem && !collector.text().empty())
    *problem += ": " + collector.text();
  return problem;
}

CompileResult compileText(const std::string &path, const std::string &text, const CompileOptions &options) {
  const auto begin = std::chrono::steady_clock::now();
  CompileResult result;
  auto state = std::make_unique<Program::State>();
  state->options = options;
  DiagnosticList diagnostics;
  ast::File file = parseFile(path, text, diagnostics);
  state->source = file.source;
  state->astText = ast::print(file);
  state->files = findImportedFiles(file, options.includeDirs);
  state->options.cacheDir = options.cacheDir.value_or(KernelCache::defaultFolder());
  const auto succeed = [&](const char *how) {
    result.program = std::make_shared<Program>(std::move(state));
    result.compileMs = millisecondsSince(begin);
    options.log.write(how == kFromCache ? LogLevel::Debug : LogLevel::Info,
                      [&] { return fmt::format("{} '{}' in {:.1f} ms", how, path, result.compileMs); });
    return std::move(result);
  };
  if (!state->options.cacheDir->empty() && !diagnostics.hasErrors()) {
    state->codeCache.emplace(*state->options.cacheDir);
    state->programKey = ProgramCache::key(file, state->files, options);
    if (std::optional<ProgramSummary> summary = ProgramCache(*state->options.cacheDir).find(state->programKey)) {
      state->summary = std::move(*summary);
      state->programKey.clear();
      return succeed(kFromCache);
    }
  }
  std::vector<std::string> texts;
  std::optional<std::string> problem = state->makeModules(file, diagnostics, &texts);
  result.diagnostics = diagnostics.all();
  if (!problem && !state->narrow)
    return result;
  if (!problem)
    problem = fillSummary(*state, texts);
  if (problem) {
    result.diagnostics.push_back(messageOf(*problem));
    return result;
  }
  // Warnings are said each time, so they are found each time.
  if (!result.diagnostics.empty())
    state->programKey.clear();
  return succeed("compiled");
}

CompileResult compileFile(const std::string &path, const CompileOptions &options) {
  // One byte more than a text may have is told from one that is all there.
  StatusOr<std::string> text = readFile(path, kMaxSourceBytes + 1);
  if (text)
    return compileText(path, *text, options);
  CompileResult result;
  result.diagnostics.push_back(messageOf(text.status().message()));
  return result;
}

std::string portToCpf(const std::string &path, const std::string &text, const std::string &function,
                      std::vector<Diagnostic> &diagnostics) {
  mlir::MLIRContext ctx(mlir::MLIRContext::Threading::DISABLED);
  DiagnosticList list;
  std::string ported = portFunction(path, text, function, ctx, list);
  diagnostics = list.all();
  return ported;
}

StatusOr<std::string> Program::emit(Stage stage, const EntryPoint &entry) const {
  State &state = *state_;
  std::lock_guard lock(state.mutex);
  if (stage == Stage::Ast)
    return state.astText;
  CPFLEX_RETURN_IF_ERROR(state.needModules());
  DiagnosticCollector collector(*state.ctx);
  auto orFailure = [&](mlir::FailureOr<std::string> text) -> StatusOr<std::string> {
    if (mlir::succeeded(text))
      return *text;
    return Status::invalid("this stage cannot be printed: " + collector.text());
  };
  switch (stage) {
  case Stage::Ast: break;
  case Stage::Mask: return textOf(*state.imported);
  case Stage::MaskOpt: return textOf(*state.simplified);
  case Stage::MaskGrad: return textOf(*state.differentiated);
  case Stage::Classifier: {
    mlir::OwningOpRef<mlir::ModuleOp> module = transformed(*state.simplified, addClassifierDerivation);
    if (!module)
      return Status::invalid("the classifier cannot be derived: " + collector.text());
    return textOf(*module);
  }
  case Stage::Llvm:
  case Stage::Assembly: {
    mlir::ModuleOp module = state.hostModule(/*isNarrow=*/true);
    if (!module)
      return orFailure(mlir::failure());
    return orFailure(stage == Stage::Llvm ? emitLLVM(module, entry.name) : emitAssembly(module, entry.name));
  }
  case Stage::Cuda: {
    mlir::FailureOr<DeviceFunctions> functions = emitCudaFunctors(*state.narrow, entry.name);
    if (mlir::failed(functions))
      return Status::invalid("this stage cannot be printed: " + collector.text());
    return functions->text;
  }
  }
  return Status::invalid("there is no such stage");
}

// Host code from the cache; nothing when it is not there or does not load.
static std::optional<HostFunctions> cachedFunctions(Program::State &state, const std::string &key,
                                                    const std::string &entry) {
  const auto begin = std::chrono::steady_clock::now();
  std::optional<HostObject> object = state.codeCache ? state.codeCache->find(key) : std::nullopt;
  HostFunctions functions;
  std::string error;
  if (!object || !loadHostObject(*object, functions, error))
    return std::nullopt;
  state.options.log.write(LogLevel::Debug, [&] {
    return fmt::format("host code of '{}' from the cache in {:.1f} ms", entry, millisecondsSince(begin));
  });
  return functions;
}

// The first failure is said, later ones are alike.
static void warnUnlessOk(Program::State &state, const Status &status) {
  if (status || state.hasWarnedOfCache)
    return;
  state.hasWarnedOfCache = true;
  state.options.log.write(LogLevel::Warning, [&] { return status.message(); });
}

StatusOr<HostFunctions> Program::hostFunctions(const EntryPoint &entry, const Bindings &bindings,
                                               CallPasses passes) const {
  State &state = *state_;
  std::lock_guard lock(state.mutex);
  const bool isNarrow = mayRunNarrowCode(state.summary.signature, bindings);
  for (CallPasses kept : {passes, CallPasses::ForwardAndBackward})
    if (auto found = state.hostFunctions.find({entry.name, isNarrow, kept}); found != state.hostFunctions.end())
      return found->second;
  // Without a score function there is no gradient, so both passes share their code.
  const CallPasses compiled = entry.hasScore ? passes : CallPasses::ForwardAndBackward;
  const std::string key =
      state.codeCache ? HostCodeCache::key({state.summary.sourceDigest, entry.name, isNarrow, compiled}) : "";
  std::optional<HostFunctions> functions = cachedFunctions(state, key, entry.name);
  if (!functions) {
    CPFLEX_RETURN_IF_ERROR(state.needModules());
    const auto begin = std::chrono::steady_clock::now();
    DiagnosticCollector collector(*state.ctx);
    JitOptions options;
    options.functions =
        compiled == CallPasses::Forward ? HostFunctionSet::Forward : HostFunctionSet::ForwardAndBackward;
    mlir::ModuleOp module = state.hostModule(isNarrow);
    mlir::FailureOr<HostObject> object = mlir::failure();
    if (module)
      object = compileHostObject(module, entry.name, options);
    if (mlir::failed(object))
      return Status::invalid("host code cannot be compiled: " + collector.text());
    functions.emplace();
    std::string error;
    if (!loadHostObject(*object, *functions, error))
      return Status::invalid(error);
    state.options.log.write(LogLevel::Info, [&] {
      return fmt::format("compiled host code of '{}' in {:.1f} ms", entry.name, millisecondsSince(begin));
    });
    if (state.codeCache)
      warnUnlessOk(state, state.codeCache->store(key, entry.name, *object));
  }
  if (!state.programKey.empty()) {
    warnUnlessOk(state,
                 ProgramCache(*state.options.cacheDir).store(state.programKey, state.source->path(), state.summary));
    state.programKey.clear();
  }
  functions->residualKey = residualKeyOf(entry.tape, entry.residuals);
  state.hostFunctions.emplace(std::make_tuple(entry.name, isNarrow, compiled), *functions);
  return *functions;
}

StatusOr<DeviceFunctions> Program::deviceFunctions(const EntryPoint &entry, const Bindings &bindings) const {
  State &state = *state_;
  std::lock_guard lock(state.mutex);
  const std::pair key(entry.name, mayRunNarrowCode(state.summary.signature, bindings));
  if (auto found = state.deviceFunctions.find(key); found != state.deviceFunctions.end())
    return found->second;
  CPFLEX_RETURN_IF_ERROR(state.needModules());
  DiagnosticCollector collector(*state.ctx);
  mlir::FailureOr<DeviceFunctions> functions = emitCudaFunctors(state.codeModule(bindings), entry.name);
  if (mlir::failed(functions))
    return Status::invalid("device code cannot be printed: " + collector.text());
  return state.deviceFunctions.emplace(key, std::move(*functions)).first->second;
}

} // namespace cpflex
