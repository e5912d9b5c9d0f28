// Ranks that exchange messages by functions of the caller: a process group of another framework, or a network of its
// own.
#pragma once

#include "runtime/Comm/Communicator.h"

#include <deque>
#include <memory>
#include <utility>

namespace cpflex {

/// How the caller carries messages. Called on the thread that uses the communicator, one call at a time.
struct CommunicatorCallbacks {
  int32_t rank = 0, worldSize = 1;
  /// Starts the messages of a group and returns at once. Messages between two ranks match in the order in which they
  /// were started, those of one group in the order listed. The memory is valid until `wait` returns.
  std::function<Status(int64_t ticket, const MessageGroup &group)> start;
  /// Returns when all messages of the group have left and arrived, or after that many seconds with DeadlineExceeded.
  std::function<Status(int64_t ticket, double seconds)> wait;
  /// Optional: tells the other ranks that this one gives up.
  std::function<void(const Status &reason)> abort;
};

/// One rank's end. Adds rank, step and peers to the errors of the callbacks.
class CallbackCommunicator : public Communicator {
public:
  /// InvalidArgument unless `rank` is in [0, worldSize) and both functions are given.
  static StatusOr<std::shared_ptr<CallbackCommunicator>> create(CommunicatorCallbacks callbacks);
  int32_t rank() const override { return callbacks_.rank; }
  int32_t worldSize() const override { return callbacks_.worldSize; }
  std::string_view transport() const override { return "callbacks"; }
  StatusOr<int64_t> start(const MessageGroup &group) override;
  Status wait(int64_t ticket, Deadline deadline) override;
  void abort(const Status &reason) override;

private:
  explicit CallbackCommunicator(CommunicatorCallbacks callbacks) : callbacks_(std::move(callbacks)) {}
  Status named(const Status &status, const MessageGroup &group) const;

  CommunicatorCallbacks callbacks_;
  int64_t nextTicket_ = 0;
  std::deque<std::pair<int64_t, MessageGroup>> started_;
};

} // namespace cpflex
