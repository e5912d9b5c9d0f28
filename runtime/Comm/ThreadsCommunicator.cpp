// Mailboxes in memory; see ThreadsCommunicator.h.
#include "runtime/Comm/ThreadsCommunicator.h"

#include <cstring>
#include <fmt/format.h>
#include <thread>

namespace cpflex {

ThreadsHub::ThreadsHub(int32_t worldSize) {
  for (int32_t rank = 0; rank < worldSize; ++rank) {
    mailboxes_.push_back(std::make_unique<Mailbox>());
    mailboxes_.back()->from.resize(size_t(worldSize));
  }
}

StatusOr<int64_t> ThreadsCommunicator::start(const MessageGroup &group) {
  for (const SendOperation &send : group.sends) {
    if (send.peer < 0 || send.peer >= worldSize())
      return Status::invalid(fmt::format("rank {} sends to rank {} in step {}; expected a rank in [0, {})", rank_,
                                         send.peer, group.step, worldSize()));
    const uint8_t *bytes = static_cast<const uint8_t *>(send.data);
    std::vector<uint8_t> message(bytes, bytes + send.sizeInBytes);
    ThreadsHub::Mailbox &mailbox = *hub_.mailboxes_[size_t(send.peer)];
    {
      std::lock_guard lock(mailbox.mutex);
      mailbox.from[size_t(rank_)].push_back(std::move(message));
    }
    mailbox.arrived.notify_all();
  }
  started_.push_back({nextTicket_, {group.step, group.purpose, {}, group.receives}});
  return nextTicket_++;
}

Status ThreadsCommunicator::wait(int64_t ticket, Deadline deadline) {
  if (started_.empty() || started_.front().first != ticket)
    return Status::invalid(
        fmt::format("rank {} waits for ticket {} out of turn; expected the oldest one", rank_, ticket));
  const MessageGroup group = std::move(started_.front().second);
  started_.pop_front();
  ThreadsHub::Mailbox &mailbox = *hub_.mailboxes_[size_t(rank_)];
  for (const ReceiveOperation &receive : group.receives) {
    if (receive.peer < 0 || receive.peer >= worldSize())
      return Status::invalid(fmt::format("rank {} receives from rank {} in step {}; expected a rank in [0, {})", rank_,
                                         receive.peer, group.step, worldSize()));
    std::unique_lock lock(mailbox.mutex);
    auto &queue = mailbox.from[size_t(receive.peer)];
    mailbox.arrived.wait_until(lock, deadline, [&] { return !queue.empty() || !mailbox.abortReason.isOk(); });
    if (queue.empty() && !mailbox.abortReason.isOk())
      return Status(mailbox.abortReason.code(),
                    fmt::format("rank {} stopped waiting for rank {} in step {} ({}): {}", rank_, receive.peer,
                                group.step, group.purpose, mailbox.abortReason.message()));
    if (queue.empty())
      return Status(
          StatusCode::DeadlineExceeded,
          fmt::format("no message from rank {} at rank {} in step {} ({}) before the deadline; expected {} bytes",
                      receive.peer, rank_, group.step, group.purpose, receive.sizeInBytes));
    std::vector<uint8_t> message = std::move(queue.front());
    queue.pop_front();
    lock.unlock();
    if (int64_t(message.size()) != receive.sizeInBytes)
      return Status(StatusCode::DataLoss,
                    fmt::format("a message of {} bytes from rank {} at rank {} in step {} ({}); expected {} bytes",
                                message.size(), receive.peer, rank_, group.step, group.purpose, receive.sizeInBytes));
    if (!message.empty())
      std::memcpy(receive.data, message.data(), message.size());
  }
  return Status::ok();
}

void ThreadsCommunicator::abort(const Status &reason) {
  for (auto &mailbox : hub_.mailboxes_) {
    {
      std::lock_guard lock(mailbox->mutex);
      if (mailbox->abortReason.isOk())
        mailbox->abortReason =
            Status(StatusCode::Unavailable, fmt::format("rank {} gave up: {}", rank_, reason.message()));
    }
    mailbox->arrived.notify_all();
  }
}

std::vector<Status> runRanksInThreads(int32_t worldSize, const RankFunction &function) {
  ThreadsHub hub(worldSize);
  std::vector<Status> statuses(static_cast<size_t>(worldSize));
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < worldSize; ++rank)
    threads.emplace_back([&, rank] {
      ThreadsCommunicator communicator(hub, rank);
      statuses[size_t(rank)] = function(communicator);
      if (!statuses[size_t(rank)].isOk())
        communicator.abort(statuses[size_t(rank)]);
    });
  for (std::thread &thread : threads)
    thread.join();
  return statuses;
}

Status firstFailure(const std::vector<Status> &statuses) {
  for (const Status &status : statuses)
    if (!status.isOk() && status.message().find(" gave up: ") == std::string::npos)
      return status;
  for (const Status &status : statuses)
    if (!status.isOk())
      return status;
  return Status::ok();
}

} // namespace cpflex
