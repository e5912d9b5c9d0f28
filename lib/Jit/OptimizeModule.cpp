// LLVM's pipelines for host code; see OptimizeModule.h.
#include "lib/Jit/OptimizeModule.h"

#include "llvm/IR/Module.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Target/TargetMachine.h"

namespace cpflex {

void optimizeModule(llvm::Module &module, llvm::TargetMachine *machine, int optimizationLevel) {
  llvm::PipelineTuningOptions tuning;
  tuning.LoopVectorization = optimizationLevel >= 2;
  tuning.LoopInterleaving = optimizationLevel >= 2;
  tuning.SLPVectorization = false;
  llvm::PassBuilder passBuilder(machine, tuning);
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager callGraph;
  llvm::ModuleAnalysisManager modules;
  passBuilder.registerModuleAnalyses(modules);
  passBuilder.registerCGSCCAnalyses(callGraph);
  passBuilder.registerFunctionAnalyses(functions);
  passBuilder.registerLoopAnalyses(loops);
  passBuilder.crossRegisterProxies(loops, functions, callGraph, modules);
  llvm::ModulePassManager passes =
      optimizationLevel == 0   ? passBuilder.buildO0DefaultPipeline(llvm::OptimizationLevel::O0)
      : optimizationLevel == 1 ? passBuilder.buildPerModuleDefaultPipeline(llvm::OptimizationLevel::O1)
                               : passBuilder.buildPerModuleDefaultPipeline(llvm::OptimizationLevel::O2);
  passes.run(module, modules);
}

} // namespace cpflex
