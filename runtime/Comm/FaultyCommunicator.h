// What happens when messages are late, lost, repeated or damaged, or a rank dies? A wrapper that does it to one rank at
// a chosen operation.
#pragma once

#include "runtime/Comm/Communicator.h"

#include <cstdint>
#include <vector>

namespace cpflex {

/// What goes wrong.
enum class FaultKind : uint8_t {
  Delay,     ///< the message leaves or is awaited later
  Drop,      ///< the message does not leave
  Duplicate, ///< the message leaves twice
  Corrupt,   ///< one bit is turned
  Kill,      ///< the rank stops for good: every later call fails, nothing more leaves
};
inline constexpr int kNumFaultKinds = 5;

/// A fault at one operation of a rank: its sends and receives counted from 0 in the order they are started. Drop,
/// Duplicate and Corrupt at a receive do nothing.
struct Fault {
  FaultKind kind = FaultKind::Delay;
  int32_t rank = 0;
  int64_t operation = 0;
  double delaySeconds = 0.0;
  uint64_t bit = 0; ///< which bit Corrupt turns, modulo the size
};

/// Wraps one rank's communicator and applies the faults that name it.
class FaultyCommunicator : public Communicator {
public:
  FaultyCommunicator(Communicator &inner, std::vector<Fault> faults) : inner_(inner), faults_(std::move(faults)) {}
  int32_t rank() const override { return inner_.rank(); }
  int32_t worldSize() const override { return inner_.worldSize(); }
  std::string_view transport() const override { return inner_.transport(); }
  StatusOr<int64_t> start(const MessageGroup &group) override;
  Status wait(int64_t ticket, Deadline deadline) override;
  /// A killed rank cannot tell anyone.
  void abort(const Status &reason) override;

  /// Operations so far: what Fault::operation counts.
  int64_t numOperations() const { return numOperations_; }
  bool isKilled() const { return !killed_.isOk(); }

private:
  Communicator &inner_;
  std::vector<Fault> faults_;
  int64_t numOperations_ = 0;
  Status killed_;
};

} // namespace cpflex
