// Copies between the GPU memory of threads; see CudaThreadsCommunicator.h.
#include "runtime/Comm/CudaThreadsCommunicator.h"

#include <algorithm>
#include <fmt/format.h>
#include <thread>

namespace cpflex {
namespace {

/// Polls of an event that only yield before the thread starts to sleep.
constexpr int kYieldingPolls = 4000;
constexpr std::chrono::microseconds kPollPause(20);

} // namespace

StatusOr<int64_t> CudaThreadsCommunicator::start(const MessageGroup &group) {
  Started started{nextTicket_, group, {}};
  for (const SendOperation &send : group.sends)
    if (send.peer < 0 || send.peer >= worldSize())
      return Status::invalid(fmt::format("rank {} sends to rank {} in step {}; expected a rank in [0, {})", rank_,
                                         send.peer, group.step, worldSize()));
  for (const SendOperation &send : group.sends) {
    auto offer = std::make_shared<Offer>();
    offer->data = send.data;
    offer->sizeInBytes = send.sizeInBytes;
    offer->port = port();
    StatusOr<CudaEvent> ready = CudaEvent::create(port()->device(), CudaEvent::Timing::Off);
    if (!ready)
      return ready.status();
    offer->ready = std::move(*ready);
    CPFLEX_RETURN_IF_ERROR(offer->ready.record(port()->stream()));
    started.offers.push_back(offer);
    std::lock_guard lock(hub_.mutex_);
    hub_.mailboxes_[size_t(send.peer)].from[size_t(rank_)].push_back(std::move(offer));
  }
  hub_.changed_.notify_all();
  started_.push_back(std::move(started));
  return nextTicket_++;
}

StatusOr<std::shared_ptr<CudaThreadsCommunicator::Offer>>
CudaThreadsCommunicator::takeOffer(const MessageGroup &group, const ReceiveOperation &receive, Deadline deadline) {
  if (receive.peer < 0 || receive.peer >= worldSize())
    return Status::invalid(fmt::format("rank {} receives from rank {} in step {}; expected a rank in [0, {})", rank_,
                                       receive.peer, group.step, worldSize()));
  std::unique_lock lock(hub_.mutex_);
  auto &queue = hub_.mailboxes_[size_t(rank_)].from[size_t(receive.peer)];
  hub_.changed_.wait_until(lock, deadline, [&] { return !queue.empty() || !hub_.abortReason_.isOk(); });
  if (queue.empty() && !hub_.abortReason_.isOk())
    return Status(hub_.abortReason_.code(),
                  fmt::format("rank {} stopped waiting for rank {} in step {} ({}): {}", rank_, receive.peer,
                              group.step, group.purpose, hub_.abortReason_.message()));
  if (queue.empty())
    return Status(
        StatusCode::DeadlineExceeded,
        fmt::format("no message from rank {} at rank {} in step {} ({}) before the deadline; expected {} bytes",
                    receive.peer, rank_, group.step, group.purpose, receive.sizeInBytes));
  std::shared_ptr<Offer> offer = std::move(queue.front());
  queue.pop_front();
  if (offer->sizeInBytes != receive.sizeInBytes)
    return Status(StatusCode::DataLoss,
                  fmt::format("a message of {} bytes from rank {} at rank {} in step {} ({}); expected {} bytes",
                              offer->sizeInBytes, receive.peer, rank_, group.step, group.purpose, receive.sizeInBytes));
  offer->state = Offer::State::Taken;
  return offer;
}

Status CudaThreadsCommunicator::receiveAll(const Started &started, std::vector<std::shared_ptr<Offer>> &taken,
                                           Deadline deadline) {
  const CudaDriver &driver = device().driver();
  const cuda::Stream stream = port()->stream();
  for (const ReceiveOperation &receive : started.group.receives) {
    StatusOr<std::shared_ptr<Offer>> offer = takeOffer(started.group, receive, deadline);
    if (!offer)
      return offer.status();
    taken.push_back(*offer);
    if (receive.sizeInBytes == 0)
      continue;
    CPFLEX_RETURN_IF_ERROR((*offer)->ready.delay(stream));
    CurrentContext current(device());
    CPFLEX_RETURN_IF_ERROR(current.status());
    const auto to = reinterpret_cast<cuda::DeviceAddress>(receive.data);
    const auto from = reinterpret_cast<cuda::DeviceAddress>((*offer)->data);
    const auto bytes = size_t(receive.sizeInBytes);
    CPFLEX_RETURN_IF_ERROR(
        (*offer)->port->device() == port()->device()
            ? driver.status(driver.memcpyDtoDAsync(to, from, bytes, stream), "cuMemcpyDtoDAsync")
            : driver.status(driver.memcpyPeerAsync(to, device().context(), from, (*offer)->port->device()->context(),
                                                   bytes, stream),
                            "cuMemcpyPeerAsync"));
  }
  return Status::ok();
}

Status CudaThreadsCommunicator::waitForEvent(const CudaEvent &event, const MessageGroup &group, int32_t peer,
                                             Deadline deadline) {
  for (int poll = 0;; ++poll) {
    StatusOr<bool> isReached = event.isReached();
    if (!isReached)
      return Status(isReached.status().code(), fmt::format("rank {} with rank {} in step {} ({}): {}", rank_, peer,
                                                           group.step, group.purpose, isReached.status().message()));
    if (*isReached)
      return Status::ok();
    if (std::chrono::steady_clock::now() >= deadline)
      return Status(StatusCode::DeadlineExceeded,
                    fmt::format("a copy between rank {} and rank {} in step {} ({}) was not done before the deadline",
                                rank_, peer, group.step, group.purpose));
    if (poll < kYieldingPolls)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(kPollPause);
  }
}

Status CudaThreadsCommunicator::waitForCopy(const Started &started, size_t send, Deadline deadline) {
  const Offer &offer = *started.offers[send];
  const int32_t peer = started.group.sends[send].peer;
  std::unique_lock lock(hub_.mutex_);
  hub_.changed_.wait_until(lock, deadline, [&] {
    return offer.state == Offer::State::Copied || (offer.state == Offer::State::Open && !hub_.abortReason_.isOk());
  });
  if (offer.state == Offer::State::Copied) {
    std::shared_ptr<CudaEvent> copied = offer.copied;
    lock.unlock();
    return waitForEvent(*copied, started.group, peer, deadline);
  }
  if (!hub_.abortReason_.isOk())
    return Status(hub_.abortReason_.code(),
                  fmt::format("rank {} stopped waiting for rank {} in step {} ({}): {}", rank_, peer,
                              started.group.step, started.group.purpose, hub_.abortReason_.message()));
  return Status(StatusCode::DeadlineExceeded,
                fmt::format("rank {} did not take a message of rank {} in step {} ({}) before the deadline", peer,
                            rank_, started.group.step, started.group.purpose));
}

void CudaThreadsCommunicator::withdraw(const Started &started) {
  std::lock_guard lock(hub_.mutex_);
  for (size_t send = 0; send < started.offers.size(); ++send) {
    auto &queue = hub_.mailboxes_[size_t(started.group.sends[send].peer)].from[size_t(rank_)];
    queue.erase(std::remove(queue.begin(), queue.end(), started.offers[send]), queue.end());
    if (started.offers[send]->state == Offer::State::Open)
      started.offers[send]->state = Offer::State::Withdrawn;
  }
}

Status CudaThreadsCommunicator::wait(int64_t ticket, Deadline deadline) {
  if (started_.empty() || started_.front().ticket != ticket)
    return Status::invalid(
        fmt::format("rank {} waits for ticket {} out of turn; expected the oldest one", rank_, ticket));
  const Started started = std::move(started_.front());
  started_.pop_front();
  // 1. Copies line up behind the senders' events; 2. the senders learn what to wait for; 3. both sides wait.
  std::vector<std::shared_ptr<Offer>> taken;
  Status status = receiveAll(started, taken, deadline);
  auto copied = std::make_shared<CudaEvent>();
  if (StatusOr<CudaEvent> event = CudaEvent::create(port()->device(), CudaEvent::Timing::Off); event) {
    *copied = std::move(*event);
    if (Status recorded = copied->record(port()->stream()); status && !recorded)
      status = recorded;
  } else if (status) {
    status = event.status();
  }
  {
    std::lock_guard lock(hub_.mutex_);
    for (const std::shared_ptr<Offer> &offer : taken) {
      offer->copied = copied;
      offer->state = Offer::State::Copied;
    }
  }
  hub_.changed_.notify_all();
  if (status && !started.group.receives.empty())
    status = waitForEvent(*copied, started.group, started.group.receives.front().peer, deadline);
  for (size_t send = 0; status && send < started.offers.size(); ++send)
    status = waitForCopy(started, send, deadline);
  if (!status) {
    withdraw(started);
    // Copies that lined up use this rank's memory: give them their time before it is freed.
    (void)copied->synchronize();
  }
  return status;
}

void CudaThreadsCommunicator::abort(const Status &reason) {
  {
    std::lock_guard lock(hub_.mutex_);
    if (hub_.abortReason_.isOk())
      hub_.abortReason_ = Status(StatusCode::Unavailable, fmt::format("rank {} gave up: {}", rank_, reason.message()));
  }
  hub_.changed_.notify_all();
}

} // namespace cpflex
