// How each kernel is cut: the one table from KernelSpec to tiles, threads and shared memory, and the few lines of CUDA
// C++ that instantiate a kernel with them. Kernels check their own needs against it when they are compiled.
#pragma once

#include "runtime/contract/KernelSpec.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace cpflex {

/// Tiles and resources of one kernel. The BlockMask that a kernel walks has tiles of tileQ x tileKV, or multiples of
/// them (MaskArgument then says how many kernel tiles one mask tile holds in each direction).
struct TileConfig {
  int tileQ = 0, tileKV = 0;
  int stages = 1;             ///< tiles in flight: K and V in forward and dQ, Q and dO in dK/dV
  int threads = 0;            ///< per block
  int sharedBytes = 0;        ///< dynamic shared memory per block
  int blocksPerProcessor = 1; ///< that shared memory and registers allow; grid = min(items, processors * this)
  int spillLimit =
      0; ///< bytes that the compiler may store and load aside, for kernels where that is off the critical path
  friend bool operator==(const TileConfig &, const TileConfig &) = default;
};

/// Shared memory that a block may use, by compute capability (80, 86, 89, 90, 100, 120, ...).
int sharedMemoryLimit(int computeCapability);

/// The family that serves a spec's shapes on an architecture: Wgmma on sm_90 devices where the table has an entry, else
/// MmaSync.
KernelFamily kernelFamily(const KernelSpec &spec, int computeCapability);

/// The table. `spec.family` is taken as given; Unsupported names the member that no kernel serves.
StatusOr<TileConfig> tileConfig(const KernelSpec &spec, int computeCapability);

/// The architecture to compile for: `sm_90a` for the wgmma family, `sm_<capability>` otherwise.
std::string kernelArchitecture(const KernelSpec &spec, int computeCapability);

/// The file of runtime/kernels/ that holds a spec's kernel.
std::string_view kernelFile(const KernelSpec &spec);

/// The name of the kernel function that kernelInstantiation() defines: `attention_forward`, `attention_backward_kv`,
/// ...
std::string_view kernelFunctionName(KernelRole role);

/// The text that follows `struct Program` in a KernelSource: `struct Config`, filled by name, and the kernel function.
std::string kernelInstantiation(const KernelSpec &spec, const TileConfig &tiles);

/// Whether the kernel is the one that QuerySumsArgument describes: BackwardKV that computes dQ, too.
constexpr bool sharesSums(const KernelSpec &spec) {
  return spec.family == KernelFamily::Wgmma && spec.role == KernelRole::BackwardKV &&
         sumsDQ(spec.headDim, spec.vHeadDim);
}

/// Whether the kernel takes tensor maps as its third parameter.
constexpr bool takesTensorMaps(const KernelSpec &spec) {
  return spec.family == KernelFamily::Wgmma && !fillsWords(spec.role);
}

/// Whether the kernel reads MaskArgument::words, which that of wordsRole() fills.
constexpr bool readsWords(const KernelSpec &spec) {
  return spec.family == KernelFamily::Wgmma && spec.hasMask && hasFamilies(spec.role);
}

/// Whether the rows of tiles of a kernel run along kv.
constexpr bool runsAlongKV(KernelRole role) { return role == KernelRole::BackwardKV; }

/// Threads of the kernel that decides the tiles of another: a warp per 16 rows.
constexpr int wordsThreads(const KernelSpec &spec, const TileConfig &tiles) {
  return 2 * (runsAlongKV(spec.role) ? tiles.tileKV : tiles.tileQ);
}

} // namespace cpflex
