// From the LLVM dialect to machine code in memory: translation, the operations' bitcode, LLVM's pipeline for the host
// CPU, and ORC.
#include "lib/Jit/HostJit.h"

#include "lib/CodeGen/Host/HostCode.h"
#include "lib/Jit/OptimizeModule.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"

#include "llvm/Bitcode/BitcodeReader.h"
#include "llvm/ExecutionEngine/Orc/LLJIT.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/Linker/Linker.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Support/SmallVectorMemoryBuffer.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/TargetParser/Host.h"

#include <mutex>

using namespace mlir;

namespace cpflex {
namespace {

void initializeHostTarget() {
  static std::once_flag once;
  std::call_once(once, [] {
    llvm::InitializeNativeTarget();
    llvm::InitializeNativeTargetAsmPrinter();
  });
}

llvm::orc::JITTargetMachineBuilder hostTarget(int optimizationLevel) {
  initializeHostTarget();
  llvm::orc::JITTargetMachineBuilder builder{llvm::Triple(llvm::sys::getProcessTriple())};
  builder.setCPU(llvm::sys::getHostCPUName().str());
  for (const auto &feature : llvm::sys::getHostCPUFeatures())
    builder.getFeatures().AddFeature(feature.first(), feature.second);
  builder.setRelocationModel(llvm::Reloc::PIC_);
  builder.setCodeModel(llvm::CodeModel::Small);
  builder.setCodeGenOptLevel(optimizationLevel == 0   ? llvm::CodeGenOptLevel::None
                             : optimizationLevel == 1 ? llvm::CodeGenOptLevel::Less
                                                      : llvm::CodeGenOptLevel::Default);
  return builder;
}

/// An LLVM module for the host CPU, with everything that its target machine needs to live.
struct HostModule {
  std::unique_ptr<llvm::TargetMachine> machine;
  std::unique_ptr<llvm::LLVMContext> llvmContext = std::make_unique<llvm::LLVMContext>();
  std::unique_ptr<llvm::Module> module;
};

/// The function of the residual with number index + 1.
std::string residualFunctionName(int index) { return kEvaluateResidualName + std::to_string(index + 1); }

bool isEntryFunction(llvm::StringRef name) {
  return name == kEvaluateTileName || name == kScoreName || name == kScoreGradientName ||
         name.starts_with(kEvaluateResidualName);
}

/// Brings in the operations that `host` calls, as internal functions of the module.
llvm::Error linkOperations(HostModule &host) {
  llvm::MemoryBufferRef buffer(hostOperationsBitcode(), "Operations.cpp");
  llvm::Expected<std::unique_ptr<llvm::Module>> operations =
      llvm::getLazyBitcodeModule(buffer, *host.llvmContext, /*ShouldLazyLoadMetadata=*/true);
  if (!operations)
    return operations.takeError();
  (*operations)->setTargetTriple(host.module->getTargetTriple());
  (*operations)->setDataLayout(host.module->getDataLayout());
  if (llvm::Linker::linkModules(*host.module, std::move(*operations), llvm::Linker::Flags::LinkOnlyNeeded))
    return llvm::createStringError("the operations' bitcode does not link");
  for (llvm::Function &function : *host.module) {
    if (function.isDeclaration())
      continue;
    if (!isEntryFunction(function.getName()))
      function.setLinkage(llvm::GlobalValue::InternalLinkage);
    function.addFnAttr("target-cpu", host.machine->getTargetCPU());
    function.addFnAttr("target-features", host.machine->getTargetFeatureString());
    function.removeFnAttr("tune-cpu");
    function.addFnAttr(llvm::Attribute::NoUnwind);
  }
  return llvm::Error::success();
}

FailureOr<HostModule> optimizedModule(ModuleOp lowered, const JitOptions &options) {
  auto fail = [&](llvm::Error error) -> FailureOr<HostModule> {
    return lowered.emitError() << "host code cannot be compiled: " << llvm::toString(std::move(error));
  };
  HostModule host;
  auto machine = hostTarget(options.optimizationLevel).createTargetMachine();
  if (!machine)
    return fail(machine.takeError());
  host.machine = std::move(*machine);
  MLIRContext *ctx = lowered.getContext();
  registerBuiltinDialectTranslation(*ctx);
  registerLLVMDialectTranslation(*ctx);
  host.module = translateModuleToLLVMIR(lowered, *host.llvmContext, "cpflex");
  if (!host.module)
    return failure();
  host.module->setTargetTriple(host.machine->getTargetTriple());
  host.module->setDataLayout(host.machine->createDataLayout());
  if (llvm::Error error = linkOperations(host))
    return fail(std::move(error));
  optimizeModule(*host.module, host.machine.get(), options.optimizationLevel);
  return host;
}

/// Machine code or assembly of an optimised module.
FailureOr<std::string> emitFile(ModuleOp lowered, HostModule &host, llvm::CodeGenFileType fileType) {
  llvm::SmallVector<char, 0> bytes;
  llvm::raw_svector_ostream stream(bytes);
  llvm::legacy::PassManager passes;
  if (host.machine->addPassesToEmitFile(passes, stream, nullptr, fileType, /*DisableVerify=*/true))
    return lowered.emitError() << "host code cannot be compiled: LLVM cannot write this kind of file";
  passes.run(*host.module);
  return std::string(bytes.begin(), bytes.end());
}

HostGradient gradientChoice(const JitOptions &options) {
  return options.functions == HostFunctionSet::ForwardAndBackward ? HostGradient::Include : HostGradient::Omit;
}

} // namespace

std::string hostTargetName() {
  llvm::orc::JITTargetMachineBuilder target = hostTarget(/*optimizationLevel=*/2);
  return target.getTargetTriple().str() + " " + target.getCPU() + " " + target.getFeatures().getString();
}

FailureOr<std::string> emitLLVM(ModuleOp module, llvm::StringRef entry) {
  FailureOr<OwningOpRef<ModuleOp>> lowered = lowerToHost(module, entry, HostGradient::Include);
  if (failed(lowered))
    return failure();
  std::string text;
  llvm::raw_string_ostream stream(text);
  (*lowered)->print(stream);
  stream << "\n";
  return text;
}

FailureOr<std::string> emitAssembly(ModuleOp module, llvm::StringRef entry, const JitOptions &options) {
  FailureOr<OwningOpRef<ModuleOp>> lowered = lowerToHost(module, entry, gradientChoice(options));
  if (failed(lowered))
    return failure();
  FailureOr<HostModule> host = optimizedModule(**lowered, options);
  if (failed(host))
    return failure();
  return emitFile(**lowered, *host, llvm::CodeGenFileType::AssemblyFile);
}

FailureOr<HostObject> compileHostObject(ModuleOp module, llvm::StringRef entry, const JitOptions &options) {
  FailureOr<OwningOpRef<ModuleOp>> lowered = lowerToHost(module, entry, gradientChoice(options));
  if (failed(lowered))
    return failure();
  HostObject object;
  object.hasEvaluateTile = (*lowered)->lookupSymbol(kEvaluateTileName) != nullptr;
  for (int i = 0; i < kMostResiduals - 1; ++i)
    if ((*lowered)->lookupSymbol(residualFunctionName(i)))
      object.residuals |= 1u << i;
  object.hasScore = (*lowered)->lookupSymbol(kScoreName) != nullptr;
  object.hasScoreGradient = (*lowered)->lookupSymbol(kScoreGradientName) != nullptr;
  if (!object.hasEvaluateTile && !object.hasScore)
    return object;
  FailureOr<HostModule> host = optimizedModule(**lowered, options);
  if (failed(host))
    return failure();
  FailureOr<std::string> bytes = emitFile(**lowered, *host, llvm::CodeGenFileType::ObjectFile);
  if (failed(bytes))
    return failure();
  object.bytes = std::move(*bytes);
  return object;
}

bool loadHostObject(const HostObject &object, HostFunctions &functions, std::string &error) {
  functions = {};
  if (!object.hasEvaluateTile && !object.hasScore)
    return true;
  auto fail = [&](llvm::Error cause) {
    error = "host code cannot be loaded: " + llvm::toString(std::move(cause));
    return false;
  };
  auto created = llvm::orc::LLJITBuilder()
                     .setJITTargetMachineBuilder(hostTarget(/*optimizationLevel=*/0))
                     .setLinkProcessSymbolsByDefault(true)
                     .create();
  if (!created)
    return fail(created.takeError());
  std::shared_ptr<llvm::orc::LLJIT> jit = std::move(*created);
  auto buffer = llvm::MemoryBuffer::getMemBufferCopy(object.bytes, "cpflex");
  if (llvm::Error cause = jit->addObjectFile(std::move(buffer)))
    return fail(std::move(cause));
  HostFunctions found;
  auto resolve = [&](bool isPresent, const char *name, auto &function) -> llvm::Error {
    if (!isPresent)
      return llvm::Error::success();
    llvm::Expected<llvm::orc::ExecutorAddr> address = jit->lookup(name);
    if (!address)
      return address.takeError();
    function = address->toPtr<std::remove_reference_t<decltype(function)>>();
    return llvm::Error::success();
  };
  if (llvm::Error cause = resolve(object.hasEvaluateTile, kEvaluateTileName, found.evaluateTile))
    return fail(std::move(cause));
  for (int i = 0; i < kMostResiduals - 1; ++i)
    if (llvm::Error cause =
            resolve(object.residuals >> i & 1, residualFunctionName(i).c_str(), found.evaluateResidual[i]))
      return fail(std::move(cause));
  if (llvm::Error cause = resolve(object.hasScore, kScoreName, found.score))
    return fail(std::move(cause));
  if (llvm::Error cause = resolve(object.hasScoreGradient, kScoreGradientName, found.scoreGradient))
    return fail(std::move(cause));
  found.owner = std::move(jit);
  functions = std::move(found);
  return true;
}

FailureOr<HostFunctions> compileHost(ModuleOp module, llvm::StringRef entry, const JitOptions &options) {
  FailureOr<HostObject> object = compileHostObject(module, entry, options);
  if (failed(object))
    return failure();
  HostFunctions functions;
  std::string error;
  if (!loadHostObject(*object, functions, error))
    return module.emitError() << error;
  return functions;
}

} // namespace cpflex
