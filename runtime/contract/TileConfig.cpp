// The table of tiles and the text of an instantiation.
#include "runtime/contract/TileConfig.h"

#include <fmt/format.h>

#include <algorithm>

namespace cpflex {
namespace {

constexpr int kElementBytes = 2;
constexpr int kPanelColumns = 64; // of a swizzled row of 128 bytes
constexpr int kMaxHeadDim = 256;
constexpr int kBarrierBytes = 1024;   // barriers, messages and the work queue of the wgmma kernels
constexpr int kAlignmentSlack = 1024; // the swizzle pattern repeats every 1024 bytes
// Producers and the code of partial tiles, which few registers are left for beside the accumulators of three consumers
// or of wide heads. Masks that read arrays are decided there only where no memory was left to do it once.
constexpr int kSpillsInRareCode = 512;
// Where the scores of arrays lie and how they are cut lives across the tiles, beside the accumulators: some words of it
// are loaded back for each tile, among some two thousand instructions.
constexpr int kSpillsOfScores = 512;
// A warp of the mma_sync kernels holds all of its rows' accumulators; larger tiles are worth a few bytes.
constexpr int kSpillsOfFullRegisters = 512;
// Enough to decide masks that look into arrays without spills; left to itself the compiler stops at 64.
constexpr int kRegistersToDecide = 128, kRegistersPerProcessor = 64 * 1024;
constexpr int kWarpgroup = 128; // threads; a producer and a consumer per kConsumerRows in the wgmma kernels

int roundUp(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Bytes of `rows` rows of a tensor with `columns` columns in swizzled panels.
int panelBytes(int rows, int columns) { return rows * roundUp(columns, kPanelColumns) * kElementBytes; }

int widestHead(const KernelSpec &spec) { return std::max(spec.headDim, spec.vHeadDim); }

/// Bytes of a tile of `rows` rows of both tensors that are as wide as Q and V.
int pairBytes(int rows, const KernelSpec &spec) {
  return panelBytes(rows, spec.headDim) + panelBytes(rows, spec.vHeadDim);
}

TileConfig forwardWgmma(const KernelSpec &spec) {
  int widest = widestHead(spec);
  TileConfig tiles;
  // Narrow heads are bound by exponentials: a third consumer hides them, where its registers suffice.
  tiles.tileQ = widest <= 64 ? 192 : 128;
  tiles.tileKV = widest <= 128 || (spec.headDim <= 192 && spec.vHeadDim <= 128) ? 128 : widest <= 192 ? 112 : 80;
  tiles.stages = 2;
  tiles.threads = tiles.tileQ / kConsumerRows * kWarpgroup + kWarpgroup;
  const bool mayReadArrays = spec.scoreForm == ScoreForm::Additive || spec.scoreForm == ScoreForm::Scaled;
  tiles.spillLimit = widest <= 64                   ? kSpillsInRareCode
                     : mayReadArrays                ? kSpillsOfScores
                     : widest > 128 && spec.hasMask ? kSpillsInRareCode
                                                    : 0;
  // O leaves through shared memory where there is room.
  int outputBytes = widest <= 128 ? panelBytes(tiles.tileQ, spec.vHeadDim) : 0;
  tiles.sharedBytes = panelBytes(tiles.tileQ, spec.headDim) + tiles.stages * pairBytes(tiles.tileKV, spec) +
                      outputBytes + kBarrierBytes + kAlignmentSlack;
  return tiles;
}

/// dK, dV and dQ in one kernel.
TileConfig backwardFusedWgmma(const KernelSpec &spec) {
  bool isNarrow = widestHead(spec) <= kPanelColumns;
  TileConfig tiles;
  tiles.tileQ = isNarrow ? 96 : 64;
  tiles.tileKV = 128;
  tiles.stages = isNarrow ? 3 : 2;
  tiles.threads = 3 * kWarpgroup;
  constexpr int kFloatBytes = static_cast<int>(sizeof(float)), kExchangeSlots = 2;
  int rowBytes = tiles.tileQ * 2 * kFloatBytes;
  // dS in panels of which each consumer reads all or, of a narrow head, one; dQ on its way out.
  int dSPanels = spec.headDim <= kPanelColumns ? 2 : 1;
  int dSBytes = dSPanels * panelBytes(tiles.tileKV, kPanelColumns);
  int dQBytes = static_cast<int>(sumsPerTile(tiles.tileQ, spec.headDim)) * kFloatBytes;
  tiles.spillLimit = kSpillsInRareCode;
  tiles.sharedBytes = pairBytes(tiles.tileKV, spec) + tiles.stages * (pairBytes(tiles.tileQ, spec) + rowBytes) +
                      kExchangeSlots * (dSBytes + dQBytes) + kBarrierBytes + kAlignmentSlack;
  return tiles;
}

/// dK and dV alone, of the heads that sumsDQ() does not name.
TileConfig backwardKVWgmma(const KernelSpec &spec) {
  TileConfig tiles;
  bool isWide = widestHead(spec) > 128;
  tiles.tileQ = 64;
  tiles.tileKV = isWide ? 64 : 128;
  tiles.stages = 2;
  tiles.threads = 3 * kWarpgroup;
  constexpr int kFloatBytes = static_cast<int>(sizeof(float));
  // Two rows of LSE and delta per query; where the consumers divide a tile, two slots of factors pass between them.
  int rowBytes = tiles.tileQ * 2 * kFloatBytes,
      exchangeBytes = isWide ? 2 * tiles.tileKV * tiles.tileQ * kFloatBytes : 0;
  tiles.spillLimit = isWide ? 0 : kSpillsInRareCode;
  tiles.sharedBytes = pairBytes(tiles.tileKV, spec) + tiles.stages * (pairBytes(tiles.tileQ, spec) + rowBytes) +
                      exchangeBytes + kBarrierBytes + kAlignmentSlack;
  return tiles;
}

TileConfig backwardQWgmma(const KernelSpec &spec) {
  int widest = widestHead(spec);
  TileConfig tiles;
  tiles.tileQ = 128;
  tiles.tileKV = widest <= 128 ? 128 : widest <= 192 ? 64 : 48;
  tiles.stages = 2;
  tiles.threads = 3 * kWarpgroup;
  tiles.spillLimit = spec.hasMask ? kSpillsInRareCode : 0;
  tiles.sharedBytes =
      pairBytes(tiles.tileQ, spec) + tiles.stages * pairBytes(tiles.tileKV, spec) + kBarrierBytes + kAlignmentSlack;
  return tiles;
}

TileConfig forwardMmaSync(const KernelSpec &spec, int sharedLimit) {
  TileConfig tiles;
  int widest = widestHead(spec);
  tiles.tileQ = 128;
  tiles.tileKV = widest <= 64 ? 128 : 64;
  tiles.threads = widest <= 128 ? 128 : 256;
  auto bytes = [&] { return panelBytes(tiles.tileQ, spec.headDim) + pairBytes(tiles.tileKV, spec) + kAlignmentSlack; };
  if (bytes() > sharedLimit) {
    tiles.tileQ = 64;
    tiles.tileKV = 32;
    tiles.threads = 128;
  }
  tiles.sharedBytes = bytes();
  tiles.blocksPerProcessor = widest <= 128 ? 2 : 1;
  tiles.spillLimit = kSpillsOfFullRegisters;
  return tiles;
}

TileConfig backwardMmaSync(const KernelSpec &spec, int sharedLimit) {
  TileConfig tiles;
  int owned = 64, streamed = widestHead(spec) <= 128 ? 64 : 32;
  auto bytes = [&] { return pairBytes(owned + streamed, spec) + kAlignmentSlack; };
  if (bytes() > sharedLimit)
    owned = 32;
  tiles.tileQ = spec.role == KernelRole::BackwardKV ? streamed : owned;
  tiles.tileKV = spec.role == KernelRole::BackwardKV ? owned : streamed;
  tiles.threads = owned / 16 * 32; // a warp owns 16 rows
  tiles.sharedBytes = bytes();
  tiles.blocksPerProcessor = 2;
  tiles.spillLimit = kSpillsOfFullRegisters;
  return tiles;
}

TileConfig backwardCaptures(const KernelSpec &spec) {
  TileConfig tiles;
  tiles.tileQ = tiles.tileKV = 64;
  tiles.threads = 128;
  // Q and K, then dO and V in the same place; beside them a score and a gradient for each pair, a column more for
  // banks.
  int widest = roundUp(widestHead(spec), kPanelColumns), pairBytes = 2 * static_cast<int>(sizeof(float));
  tiles.sharedBytes =
      panelBytes(tiles.tileQ + tiles.tileKV, widest) + tiles.tileQ * (tiles.tileKV + 1) * pairBytes + kAlignmentSlack;
  tiles.blocksPerProcessor = widest <= 128 ? 3 : 2;
  tiles.spillLimit = kSpillsOfFullRegisters;
  return tiles;
}

} // namespace

int sharedMemoryLimit(int computeCapability) {
  switch (computeCapability) {
  case 80:
  case 87: return 163 * 1024;
  case 86:
  case 89:
  case 120:
  case 121: return 99 * 1024;
  default: return 227 * 1024;
  }
}

KernelFamily kernelFamily(const KernelSpec &spec, int computeCapability) {
  KernelSpec wgmma = spec;
  wgmma.family = KernelFamily::Wgmma;
  if (!hasFamilies(spec.role))
    return KernelFamily::MmaSync;
  return tileConfig(wgmma, computeCapability).isOk() ? KernelFamily::Wgmma : KernelFamily::MmaSync;
}

/// The tiles of the kernel for which `spec` fills words, and as many blocks as the registers of a processor take.
static StatusOr<TileConfig> wordsConfig(KernelSpec spec, int computeCapability) {
  spec.role = decidedRole(spec.role);
  StatusOr<TileConfig> tiles = tileConfig(spec, computeCapability);
  if (!tiles)
    return tiles;
  tiles->threads = wordsThreads(spec, *tiles);
  tiles->blocksPerProcessor = kRegistersPerProcessor / (kRegistersToDecide * tiles->threads);
  tiles->stages = tiles->sharedBytes = tiles->spillLimit = 0;
  return tiles;
}

StatusOr<TileConfig> tileConfig(const KernelSpec &spec, int computeCapability) {
  if (computeCapability < 80)
    return Status::unsupported(fmt::format("compute capability is {}.{}; expected 8.0 or newer", computeCapability / 10,
                                           computeCapability % 10));
  if (spec.element != ElementType::BF16 && spec.element != ElementType::F16)
    return Status::unsupported(
        fmt::format("element type is '{}'; GPU kernels exist for 'bf16' and 'f16'", toString(spec.element)));
  for (int dim : {spec.headDim, spec.vHeadDim})
    if (dim < 8 || dim > kMaxHeadDim || dim % 8 != 0)
      return Status::unsupported(
          fmt::format("head size is {}; GPU kernels serve multiples of 8 up to {}", dim, kMaxHeadDim));
  if (fillsWords(spec.role))
    return wordsConfig(spec, computeCapability);
  if (!walksTiles(spec.role)) {
    TileConfig tiles;
    tiles.tileQ = kRowPadding;
    tiles.threads = 128;
    return tiles;
  }
  if (spec.role == KernelRole::BackwardCaptures)
    return backwardCaptures(spec);
  if (spec.family == KernelFamily::Wgmma) {
    if (computeCapability != 90)
      return Status::unsupported(fmt::format("the 'wgmma' kernels need compute capability 9.0; this is {}.{}",
                                             computeCapability / 10, computeCapability % 10));
    if (spec.role == KernelRole::Forward)
      return forwardWgmma(spec);
    if (spec.role == KernelRole::BackwardKV)
      return sharesSums(spec) ? backwardFusedWgmma(spec) : backwardKVWgmma(spec);
    return backwardQWgmma(spec);
  }
  int sharedLimit = sharedMemoryLimit(computeCapability);
  return spec.role == KernelRole::Forward ? forwardMmaSync(spec, sharedLimit) : backwardMmaSync(spec, sharedLimit);
}

std::string kernelArchitecture(const KernelSpec &spec, int computeCapability) {
  return fmt::format("sm_{}{}", computeCapability, spec.family == KernelFamily::Wgmma ? "a" : "");
}

std::string_view kernelFile(const KernelSpec &spec) {
  bool isWgmma = spec.family == KernelFamily::Wgmma;
  switch (spec.role) {
  case KernelRole::Forward: return isWgmma ? "attention_forward_wgmma.cuh" : "attention_forward_mma_sync.cuh";
  case KernelRole::BackwardKV:
    return !isWgmma                  ? "attention_backward_kv_mma_sync.cuh"
           : sharesSums(spec)        ? "attention_backward_fused_wgmma.cuh"
           : widestHead(spec) <= 128 ? "attention_backward_kv_wgmma.cuh"
                                     : "attention_backward_kv_wide_wgmma.cuh";
  case KernelRole::BackwardQ: return isWgmma ? "attention_backward_q_wgmma.cuh" : "attention_backward_q_mma_sync.cuh";
  case KernelRole::BackwardDelta:
  case KernelRole::BackwardSink: return "attention_backward_rows.cuh";
  case KernelRole::BackwardCaptures:
  case KernelRole::BackwardCaptureSums: return "attention_backward_captures.cuh";
  case KernelRole::ForwardWords:
  case KernelRole::BackwardKVWords:
  case KernelRole::BackwardQWords: return "mask_words.cuh";
  }
  return {};
}

std::string_view kernelFunctionName(KernelRole role) {
  switch (role) {
  case KernelRole::Forward: return "attention_forward";
  case KernelRole::BackwardKV: return "attention_backward_kv";
  case KernelRole::BackwardQ: return "attention_backward_q";
  case KernelRole::BackwardDelta: return "attention_backward_delta";
  case KernelRole::BackwardSink: return "attention_backward_sink";
  case KernelRole::BackwardCaptures: return "attention_backward_captures";
  case KernelRole::BackwardCaptureSums: return "attention_backward_capture_sums";
  case KernelRole::ForwardWords: return "attention_forward_words";
  case KernelRole::BackwardKVWords: return "attention_backward_kv_words";
  case KernelRole::BackwardQWords: return "attention_backward_q_words";
  }
  return {};
}

/// The function template of runtime/kernels/ that a spec instantiates.
static std::string_view kernelTemplate(const KernelSpec &spec) {
  bool isWgmma = spec.family == KernelFamily::Wgmma;
  switch (spec.role) {
  case KernelRole::Forward: return isWgmma ? "attentionForwardWgmma" : "attentionForwardMmaSync";
  case KernelRole::BackwardKV:
    return !isWgmma                  ? "attentionBackwardKVMmaSync"
           : sharesSums(spec)        ? "attentionBackwardFusedWgmma"
           : widestHead(spec) <= 128 ? "attentionBackwardKVWgmma"
                                     : "attentionBackwardKVWideWgmma";
  case KernelRole::BackwardQ: return isWgmma ? "attentionBackwardQWgmma" : "attentionBackwardQMmaSync";
  case KernelRole::BackwardDelta: return "attentionBackwardDelta";
  case KernelRole::BackwardSink: return "attentionBackwardSink";
  case KernelRole::BackwardCaptures: return "attentionBackwardCaptures";
  case KernelRole::BackwardCaptureSums: return "attentionBackwardCaptureSums";
  case KernelRole::ForwardWords:
  case KernelRole::BackwardKVWords:
  case KernelRole::BackwardQWords: return "fillMaskWords";
  }
  return {};
}

std::string kernelInstantiation(const KernelSpec &spec, const TileConfig &tiles) {
  static constexpr const char *kPositionModes[] = {"Identity", "AffinePerTile", "Array"};
  bool isForward = spec.role == KernelRole::Forward || spec.role == KernelRole::ForwardWords;
  bool isOfCaptures = spec.role == KernelRole::BackwardCaptures || spec.role == KernelRole::BackwardCaptureSums;
  bool hasMaps = takesTensorMaps(spec);
  std::string text = "struct Config {\n";
  text += fmt::format("  using Element = cpflex::kernels::{};\n",
                      spec.element == ElementType::BF16 ? "BFloat16" : "Float16");
  auto constant = [&](const char *name, int value) {
    text += fmt::format("  static constexpr int {} = {};\n", name, value);
  };
  constant("kHeadDim", spec.headDim);
  constant("kVHeadDim", spec.vHeadDim);
  constant("kTileQ", tiles.tileQ);
  constant("kTileKV", tiles.tileKV);
  constant("kStages", tiles.stages);
  constant("kThreads", tiles.threads);
  constant("kSharedBytes", tiles.sharedBytes);
  text += fmt::format("  static constexpr bool kHasSoftmax = {};\n", spec.hasSoftmax);
  text += fmt::format("  static constexpr bool kOutputIsF32 = {};\n", spec.output == OutputForm::F32);
  text += fmt::format("  static constexpr cpflex::PositionMode kPositions = cpflex::PositionMode::{};\n",
                      kPositionModes[static_cast<int>(spec.positions)]);
  text += "};\n";
  text += fmt::format("extern \"C\" __global__ void __launch_bounds__(Config::kThreads, {}) {}(\n",
                      tiles.blocksPerProcessor, kernelFunctionName(spec.role));
  text += fmt::format("    const __grid_constant__ cpflex::{}Arguments arguments,\n"
                      "    const __grid_constant__ Program::Captures captures",
                      isForward      ? "Forward"
                      : isOfCaptures ? "CaptureGradient"
                                     : "Backward");
  if (fillsWords(spec.role)) {
    text += fmt::format(",\n    const int *pairOf, int numSets) {{\n"
                        "  cpflex::kernels::{}<Config, Program, cpflex::kernels::TileAxes::{}>(\n"
                        "      arguments, captures, pairOf, numSets);\n}}\n",
                        kernelTemplate(spec), runsAlongKV(decidedRole(spec.role)) ? "RowsAreKV" : "RowsAreQ");
    return text;
  }
  if (hasMaps)
    text += fmt::format(",\n    const __grid_constant__ cpflex::{}TensorMaps maps", isForward ? "Forward" : "Backward");
  text += fmt::format(") {{\n  cpflex::kernels::{}<Config, Program>(arguments, captures{});\n}}\n",
                      kernelTemplate(spec), hasMaps ? ", maps" : "");
  return text;
}

} // namespace cpflex
