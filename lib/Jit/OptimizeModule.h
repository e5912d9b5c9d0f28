// Which passes of LLVM make code for the host CPU fast? Translation before them and machine code behind them are
// others' business.
#pragma once

namespace llvm {
class Module;
class TargetMachine;
} // namespace llvm

namespace cpflex {

/// Runs LLVM's pipeline of `optimizationLevel` (0 to 2; 2 vectorises loops) on `module`. `machine` says what its CPU
/// can do; null: any CPU of its triple.
void optimizeModule(llvm::Module &module, llvm::TargetMachine *machine, int optimizationLevel);

} // namespace cpflex
