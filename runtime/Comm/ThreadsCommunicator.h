// Ranks as threads of one process: messages are copied through mailboxes in memory. The default transport, and the
// bench on which faults are tried.
#pragma once

#include "runtime/Comm/Communicator.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace cpflex {

/// The mailboxes of a group of threads. Outlives its communicators; used by all of them at once.
class ThreadsHub {
public:
  explicit ThreadsHub(int32_t worldSize);
  int32_t worldSize() const { return int32_t(mailboxes_.size()); }

private:
  friend class ThreadsCommunicator;
  struct Mailbox {
    std::mutex mutex;
    std::condition_variable arrived;
    std::vector<std::deque<std::vector<uint8_t>>> from; ///< by source
    Status abortReason;                                 ///< not ok once a rank has given up
  };
  std::vector<std::unique_ptr<Mailbox>> mailboxes_; ///< by destination
};

/// One thread's end. Sends never wait.
class ThreadsCommunicator : public Communicator {
public:
  ThreadsCommunicator(ThreadsHub &hub, int32_t rank) : hub_(hub), rank_(rank) {}
  int32_t rank() const override { return rank_; }
  int32_t worldSize() const override { return hub_.worldSize(); }
  std::string_view transport() const override { return "threads"; }
  StatusOr<int64_t> start(const MessageGroup &group) override;
  Status wait(int64_t ticket, Deadline deadline) override;
  void abort(const Status &reason) override;

private:
  ThreadsHub &hub_;
  int32_t rank_;
  int64_t nextTicket_ = 0;
  std::deque<std::pair<int64_t, MessageGroup>> started_; ///< receives not yet waited for
};

/// What one rank does with its communicator.
using RankFunction = std::function<Status(Communicator &communicator)>;

/// Runs `function` on worldSize threads, each with its communicator, and returns every rank's status when all are done.
/// A rank that fails tells the others.
std::vector<Status> runRanksInThreads(int32_t worldSize, const RankFunction &function);

/// The status of the lowest rank that failed by itself; of the lowest that failed at all when none did; else ok.
Status firstFailure(const std::vector<Status> &statuses);

} // namespace cpflex
