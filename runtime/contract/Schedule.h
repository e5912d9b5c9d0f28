// Who computes and who sends what in which step of one context-parallel attention pass. Plain data, the same for every
// transport and device; runtime/Plan makes, prints and draws it, runtime/Executor runs it.
#pragma once

#include "runtime/contract/Bindings.h"
#include "runtime/contract/Layout.h"
#include "runtime/contract/Range.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// How keys, values or heads travel between ranks.
enum class Rotation : uint8_t {
  Ring,      ///< shards pass from neighbour to neighbour, less what no later rank needs
  AllGather, ///< every rank receives all other shards, then computes once, keys ascending
  Selective, ///< owners send each rank exactly the rows that it needs
  Ulysses,   ///< ranks exchange sequence shards for head shards, compute whole sequences, exchange back
};

/// Which pass a schedule is of.
enum class Pass : uint8_t { Forward, Backward };

/// The order in which a rank visits the keys it needs.
enum class KeyOrder : uint8_t {
  Arrival,   ///< local keys first, then step by step as planned: communication hides behind compute
  Ascending, ///< everything needed is gathered in whole tiles first, then visited once in ascending position: output
             ///< bits equal those of one device
};

/// What the rows of a transfer hold. Element types: the problem's, unless f32 is said.
enum class Payload : uint8_t {
  KV,        ///< K and V of kv rows
  Q,         ///< Q of q rows
  Out,       ///< final output, and f32 LSE, of q rows
  QGradient, ///< Q, dO, f32 LSE and f32 row term D = rowsum(dO * O) - dLSE of q rows
  DQ,        ///< f32 dQ of q rows
  DKV,       ///< f32 partial dK and dV of kv rows, summed by the owner
};
inline constexpr int kNumPayloads = 6;

/// Rows [rows) of the shard of `owner` (its local row numbers, not positions), for global batch rows [batch) and heads
/// [heads) of the call: kv heads for KV and DKV, query heads else.
struct Slab {
  int32_t owner = 0;
  Range batch, heads, rows;
  friend bool operator==(const Slab &, const Slab &) = default;
};

/// One message. It leaves when its source enters `step` and is there when its destination enters `step` + 1. The slabs
/// are packed one after the other; inside a slab tensor after tensor, each [batch, head, row, element].
struct Transfer {
  int32_t step = 0;
  int32_t source = 0, destination = 0;
  Payload payload = Payload::KV;
  int64_t sizeInBytes = 0;
  std::vector<Slab> slabs;
  friend bool operator==(const Transfer &, const Transfer &) = default;
};

/// Rows [rows) of the shard of `owner`.
struct OwnedRows {
  int32_t owner = 0;
  Range rows;
  friend bool operator==(const OwnedRows &, const OwnedRows &) = default;
};

/// One attention call of `rank` in `step`: query rows `q` against key rows `kv`, in the order listed, of batch rows
/// [batch) and query heads [heads). Calls with the same q, batch and heads continue each other in step order.
struct Compute {
  int32_t step = 0;
  int32_t rank = 0;
  Range batch, heads;
  double work = 0; ///< (q, kv) pairs of the tiles that are not empty, summed over batch and heads
  std::vector<OwnedRows> q, kv;
  friend bool operator==(const Compute &, const Compute &) = default;
};

/// Sizes of the whole call, over all ranks of the group.
struct CallShape {
  int64_t batch = 1, qHeads = 1, kvHeads = 1;
  int64_t qLen = 0, kvLen = 0;
  int64_t headDim = 64, vHeadDim = 64;
  ElementType type = ElementType::F32; ///< of Q, K, V and O: F32, BF16 or F16
  friend bool operator==(const CallShape &, const CallShape &) = default;
};

/// What one rank does in the whole schedule.
struct RankLoad {
  double work = 0; ///< sum of its computes
  int64_t bytesSent = 0, bytesReceived = 0;
  int64_t bytesNeeded = 0; ///< the least it must receive for this layout: each needed foreign row once, and the
                           ///< gradients of its own rows once from each rank that used them
  int64_t peakBytes = 0; ///< shards, receive and send buffers, gathered operands, f32 accumulators; no kernel workspace
  friend bool operator==(const RankLoad &, const RankLoad &) = default;
};

/// What a schedule costs, beside what it must cost.
struct Certificate {
  std::vector<RankLoad> ranks;
  double workBound = 0;           ///< no layout with whole rows has a smaller largest work
  int64_t receivedBound = 0;      ///< no layout with these token counts and this balance receives fewer bytes in total
  int64_t receivedBoundWorst = 0; ///< ... nor fewer bytes on the rank that receives most
  double predictedSeconds = 0;    ///< by the discrete-event simulator with the request's cost model
  friend bool operator==(const Certificate &, const Certificate &) = default;
};

/// One pass. Transfers and computes are sorted by step, then rank (source, destination).
struct Schedule {
  Pass pass = Pass::Forward;
  Rotation rotation = Rotation::Selective;
  KeyOrder keyOrder = KeyOrder::Arrival;
  int32_t worldSize = 1;
  int32_t numSteps = 0; ///< every step has a transfer or a compute
  CallShape shape;
  Layout qLayout, kvLayout;
  std::vector<Transfer> transfers;
  std::vector<Compute> computes;
  Certificate certificate;
  friend bool operator==(const Schedule &, const Schedule &) = default;
};

} // namespace cpflex
