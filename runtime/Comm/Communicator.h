// How ranks of a context-parallel group exchange messages, whatever carries them: groups of sends and receives with
// deadlines. Transports implement it; runtime/Executor uses nothing else.
#pragma once

#include "runtime/contract/Status.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace cpflex {

/// The moment after which a wait gives up.
using Deadline = std::chrono::steady_clock::time_point;

/// The deadline that many seconds from here, or decades from here where that is sooner.
Deadline deadlineIn(double seconds);

/// Bytes for `peer`; the memory is the caller's until the group is done.
struct SendOperation {
  int32_t peer = 0;
  const void *data = nullptr;
  int64_t sizeInBytes = 0;
};

/// Room for bytes from `peer`; exactly that many must come.
struct ReceiveOperation {
  int32_t peer = 0;
  void *data = nullptr;
  int64_t sizeInBytes = 0;
};

/// Messages that progress together. Messages between two ranks match in the order in which they were started. `purpose`
/// (a payload's or collective's word) and `step` appear in errors and counters.
struct MessageGroup {
  int32_t step = 0;
  std::string purpose;
  std::vector<SendOperation> sends;
  std::vector<ReceiveOperation> receives;
};

class CudaCommunicator;

/// One rank's end of a group of ranks. One thread uses it. No call waits beyond its deadline, and every error names
/// this rank, the step and the peer.
class Communicator {
public:
  virtual ~Communicator() = default;
  virtual int32_t rank() const = 0;
  virtual int32_t worldSize() const = 0;
  /// The word of the transport: `threads`, `mpi`, `nccl`.
  virtual std::string_view transport() const = 0;
  /// This communicator where its messages lie in GPU memory; null where they lie in host memory.
  virtual const CudaCommunicator *asCuda() const { return nullptr; }

  /// Starts the messages of a group and returns at once. Tickets are waited for in the order in which they were given.
  virtual StatusOr<int64_t> start(const MessageGroup &group) = 0;
  /// Returns when all messages of the group have left and arrived. After an error the communicator is of no more use.
  virtual Status wait(int64_t ticket, Deadline deadline) = 0;
  /// Tells the other ranks that this one gives up, as far as the transport can, so that they need not wait.
  virtual void abort(const Status &reason) = 0;
};

/// Starts a group and waits for it.
Status exchange(Communicator &communicator, const MessageGroup &group, Deadline deadline);

/// Sums `count` f32 values over all ranks, in rank order, and leaves the sums on every rank. `exchange` carries groups
/// of messages that lie in host memory.
Status sumOverRanks(int32_t rank, int32_t worldSize, float *values, int64_t count, const std::string &purpose,
                    const std::function<Status(const MessageGroup &)> &exchange);

} // namespace cpflex
