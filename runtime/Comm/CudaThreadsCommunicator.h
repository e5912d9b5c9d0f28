// Ranks as threads of one process whose messages lie in GPU memory: the receiver copies straight from the sender's
// buffer, by copy engines between GPUs and inside one. No multiprocessor takes part.
#pragma once

#include "runtime/Comm/CudaCommunicator.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

namespace cpflex {

/// Where the threads of a group meet. Outlives its communicators; used by all of them at once.
class CudaThreadsHub {
public:
  explicit CudaThreadsHub(int32_t worldSize) : mailboxes_(size_t(worldSize)) {
    for (Mailbox &mailbox : mailboxes_)
      mailbox.from.resize(size_t(worldSize));
  }
  int32_t worldSize() const { return int32_t(mailboxes_.size()); }

private:
  friend class CudaThreadsCommunicator;
  /// One message from its announcement until its bytes were copied.
  struct Offer {
    const void *data = nullptr;
    int64_t sizeInBytes = 0;
    std::shared_ptr<const CudaPort> port; ///< the sender's, whose memory it is
    CudaEvent ready;                      ///< in the sender's stream: the bytes are there
    enum class State : uint8_t { Open, Taken, Copied, Withdrawn } state = State::Open;
    std::shared_ptr<CudaEvent> copied; ///< in the receiver's stream
  };
  struct Mailbox {
    std::vector<std::deque<std::shared_ptr<Offer>>> from; ///< by source
  };
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Mailbox> mailboxes_; ///< by destination
  Status abortReason_;             ///< not ok once a rank has given up
};

/// One thread's end.
class CudaThreadsCommunicator : public CudaCommunicator {
public:
  CudaThreadsCommunicator(CudaThreadsHub &hub, int32_t rank, std::shared_ptr<const CudaPort> port)
      : CudaCommunicator(std::move(port)), hub_(hub), rank_(rank) {}
  int32_t rank() const override { return rank_; }
  int32_t worldSize() const override { return hub_.worldSize(); }
  std::string_view transport() const override { return "threads"; }
  StatusOr<int64_t> start(const MessageGroup &group) override;
  Status wait(int64_t ticket, Deadline deadline) override;
  void abort(const Status &reason) override;

private:
  using Offer = CudaThreadsHub::Offer;
  struct Started {
    int64_t ticket;
    MessageGroup group;
    std::vector<std::shared_ptr<Offer>> offers; ///< one per send
  };
  StatusOr<std::shared_ptr<Offer>> takeOffer(const MessageGroup &group, const ReceiveOperation &receive,
                                             Deadline deadline);
  Status receiveAll(const Started &started, std::vector<std::shared_ptr<Offer>> &taken, Deadline deadline);
  Status waitForCopy(const Started &started, size_t send, Deadline deadline);
  Status waitForEvent(const CudaEvent &event, const MessageGroup &group, int32_t peer, Deadline deadline);
  void withdraw(const Started &started);

  CudaThreadsHub &hub_;
  int32_t rank_;
  int64_t nextTicket_ = 0;
  std::deque<Started> started_;
};

} // namespace cpflex
