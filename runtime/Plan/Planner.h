// From a mask, a group of ranks and a cost model to a Schedule: the one entry to planning. Everything is computed on
// the host from plain data; nothing is sent.
#pragma once

#include "runtime/contract/Attention.h"
#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Schedule.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace cpflex {

/// What compute and transfers cost, for choices and predictions.
struct CostModel {
  double flopsPerSecond = 550e12;         ///< of attention on full tiles, forward
  double backwardFlopsPerSecond = 430e12; ///< backward, counting 2.5 times the operations of forward
  double bytesPerSecond = 350e9;          ///< in and out of one rank, each way
  double messageSeconds = 8e-6;           ///< fixed cost of a message
  double launchSeconds = 5e-6;            ///< fixed cost of an attention call
};

/// The exactness of need sets.
enum class NeedPrecision : uint8_t {
  Tile,  ///< every kv row of an attending tile
  Token, ///< only kv rows that some query attends to; needs evaluateTile
};

/// Whether ranks must own equally many tokens (rounded) or may own more where work is light.
enum class TokenCounts : uint8_t { Equal, Free };

/// What to plan.
struct PlanRequest {
  CallShape shape;
  int32_t worldSize = 1;
  Pass pass = Pass::Forward;
  const BlockMask *mask =
      nullptr; ///< over global positions, [batch, qHeads] or broadcast from 1; null: all pairs attend
  std::vector<const BlockMask *> otherMasks; ///< share the layout with `mask`; same lengths and tile size

  std::optional<LayoutKind> layout; ///< none: chosen by the cost model
  std::optional<Rotation> rotation; ///< none: chosen by the cost model
  std::optional<Layout> qLayout;    ///< the caller's own; then `layout` is not read
  std::optional<Layout> kvLayout;   ///< for cross-attention; none: qLayout when the lengths agree, else contiguous
  KeyOrder keyOrder = KeyOrder::Arrival;
  TokenCounts tokenCounts = TokenCounts::Equal;
  double balanceTolerance = 0.05; ///< how far the largest work may exceed the mean when traffic is saved, for `solved`
  int32_t maxSteps = 8;           ///< selective: exchanges at most; more overlap against fewer messages
  /// Document boundaries per batch row (or one entry for all) for per-document layouts; empty: read off the mask.
  std::vector<std::vector<int64_t>> documentOffsets;

  NeedPrecision needPrecision = NeedPrecision::Tile;
  const HostFunctions *functions = nullptr; ///< for NeedPrecision::Token
  const Bindings *bindings = nullptr;
  int64_t batchOffset = 0, headOffset = 0;
  CostModel cost;
};

/// Makes the schedule of one pass, certificate included. A backward pass takes the layouts of the forward schedule as
/// qLayout and kvLayout. Errors: InvalidArgument naming the value that does not fit.
StatusOr<Schedule> planContextParallel(const PlanRequest &request);

/// The backward schedule that belongs to `forward`: same layouts, rotation and key order.
StatusOr<Schedule> planBackward(const PlanRequest &request, const Schedule &forward);

/// Layout and rotation words of the command line and the text form: `head-tail`, `all-gather`, ...
std::string_view toString(LayoutKind kind);
std::string_view toString(Rotation rotation);
std::string_view toString(Pass pass);
std::string_view toString(KeyOrder order);
std::string_view toString(Payload payload);
std::optional<LayoutKind> layoutKindFromString(std::string_view word);
std::optional<Rotation> rotationFromString(std::string_view word);
std::optional<Pass> passFromString(std::string_view word);
std::optional<KeyOrder> keyOrderFromString(std::string_view word);
std::optional<Payload> payloadFromString(std::string_view word);

/// Bytes that one row of one head of a payload takes (Q-side payloads per query head, KV and DKV per kv head).
int64_t bytesPerRow(Payload payload, const CallShape &shape);

} // namespace cpflex
