// Chooses the compiled variant of the inner loops that this processor can run.
#include "runtime/Host/HostAttention.h"
#include "runtime/Host/HostKernels.h"

namespace cpflex {

extern const HostKernels baselineKernels;
#if defined(CPFLEX_HOST_HAS_X86_VARIANTS)
extern const HostKernels avx2Kernels;
extern const HostKernels avx512Kernels;
extern const HostKernels avx512BFloat16Kernels;

static bool hasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool hasAvx512() {
  return hasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool hasAvx512BFloat16() { return hasAvx512() && __builtin_cpu_supports("avx512bf16"); }
#else
static bool hasAvx2() { return false; }
static bool hasAvx512() { return false; }
static bool hasAvx512BFloat16() { return false; }
#endif

static InstructionSet resolved(InstructionSet instructionSet) {
  if (instructionSet != InstructionSet::Native)
    return instructionSet;
  if (hasAvx512BFloat16())
    return InstructionSet::Avx512BFloat16;
  return hasAvx512() ? InstructionSet::Avx512 : hasAvx2() ? InstructionSet::Avx2 : InstructionSet::Baseline;
}

const HostKernels *hostKernels(InstructionSet instructionSet) {
  switch (resolved(instructionSet)) {
#if defined(CPFLEX_HOST_HAS_X86_VARIANTS)
  case InstructionSet::Avx512BFloat16: return hasAvx512BFloat16() ? &avx512BFloat16Kernels : nullptr;
  case InstructionSet::Avx512: return hasAvx512() ? &avx512Kernels : nullptr;
  case InstructionSet::Avx2: return hasAvx2() ? &avx2Kernels : nullptr;
#endif
  case InstructionSet::Baseline: return &baselineKernels;
  default: return nullptr;
  }
}

bool isSupported(InstructionSet instructionSet) { return hostKernels(instructionSet) != nullptr; }

const char *toString(InstructionSet instructionSet) {
  switch (resolved(instructionSet)) {
  case InstructionSet::Native: break;
  case InstructionSet::Baseline: return "baseline";
  case InstructionSet::Avx2: return "avx2";
  case InstructionSet::Avx512: return "avx512";
  case InstructionSet::Avx512BFloat16: return "avx512-bf16";
  }
  return "unknown";
}

} // namespace cpflex
