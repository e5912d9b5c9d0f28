// Messages that prove themselves: each carries its number and a checksum, so that lost, repeated, swapped and damaged
// messages become errors, or are put right, instead of wrong results.
#pragma once

#include "runtime/Comm/Communicator.h"

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace cpflex {

/// Wraps a communicator; both ends of a group must be wrapped. A repeated message is skipped; a missing or damaged one
/// is DataLoss.
class CheckedCommunicator : public Communicator {
public:
  explicit CheckedCommunicator(Communicator &inner)
      : inner_(inner), numSent_(size_t(inner.worldSize()), 0), numReceived_(size_t(inner.worldSize()), 0) {}
  int32_t rank() const override { return inner_.rank(); }
  int32_t worldSize() const override { return inner_.worldSize(); }
  std::string_view transport() const override { return inner_.transport(); }
  StatusOr<int64_t> start(const MessageGroup &group) override;
  Status wait(int64_t ticket, Deadline deadline) override;
  void abort(const Status &reason) override { inner_.abort(reason); }

private:
  struct Started {
    int64_t ticket = 0, innerTicket = 0;
    MessageGroup group;
    std::vector<std::vector<uint8_t>> sent;
  };
  Communicator &inner_;
  std::vector<uint64_t> numSent_, numReceived_; ///< by peer
  int64_t nextTicket_ = 0;
  std::deque<Started> started_;
};

} // namespace cpflex
