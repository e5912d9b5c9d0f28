// Which pairs of a row attend? Runs a program over many kv positions of one q at once, one loop
// over lanes per node, or over a single pair.
#pragma once

#include "runtime/BlockMask/TapeProgram.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cpflex {

/// Evaluates one program at points. Holds scratch memory: one object per thread. The program must
/// outlive it.
class LaneEvaluator {
public:
  explicit LaneEvaluator(const TapeProgram &program);

  /// out[j] = 1 where (q, kvBegin + j*kvStep) attends, else 0, for j in [0, count).
  void evaluateRow(int64_t q, int64_t kvBegin, int64_t kvStep, int64_t count, uint8_t *out);

  /// Whether one pair attends.
  bool evaluate(int64_t q, int64_t kv);

private:
  static constexpr int64_t kLanes = 256;
  static constexpr int64_t kLaneBytes = kLanes * 8; ///< room for lanes of any type

  std::byte *lanes(int32_t index) { return lanes_.data() + index * kLaneBytes; }
  void evaluateScalars(int32_t begin, int32_t end, int64_t q, int64_t kv);
  void reduceScalars(int32_t index, int64_t q, int64_t kv);
  void evaluateLanes(int32_t begin, int32_t end, int64_t q, int64_t kvBegin, int64_t kvStep, int64_t count);
  void reduceLanes(int32_t index, int64_t q, int64_t kvBegin, int64_t kvStep, int64_t count);
  void loadLanes(int32_t index, int64_t count);
  void spread(int32_t index, int64_t count);

  const TapeProgram *program_;
  std::vector<ScalarSlot> scalars_;
  std::vector<std::byte> lanes_;
  std::vector<bool> isSpread_; ///< nodes outside the kv part that the kv part reads
};

} // namespace cpflex
