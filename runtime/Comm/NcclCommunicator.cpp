// Groups of NCCL sends and receives with deadlines; see NcclCommunicator.h.
#include "runtime/Comm/NcclCommunicator.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <thread>

namespace cpflex {
namespace {

/// Polls that only yield before the waiting thread starts to sleep.
constexpr int kYieldingPolls = 4000;
constexpr std::chrono::microseconds kPollPause(20);

void pause(int poll) {
  if (poll < kYieldingPolls)
    std::this_thread::yield();
  else
    std::this_thread::sleep_for(kPollPause);
}

std::string peersOf(const MessageGroup &group) {
  std::vector<int32_t> peers;
  for (const SendOperation &send : group.sends)
    peers.push_back(send.peer);
  for (const ReceiveOperation &receive : group.receives)
    peers.push_back(receive.peer);
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  return fmt::format("{} {}", peers.size() == 1 ? "rank" : "ranks", fmt::join(peers, ", "));
}

} // namespace

StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::join(std::shared_ptr<const NcclLibrary> library,
                                                                   std::shared_ptr<const CudaPort> port,
                                                                   const NcclPlace &place, double deadlineSeconds) {
  std::unique_ptr<NcclCommunicator> communicator(
      new NcclCommunicator(std::move(library), std::move(port), deadlineSeconds));
  communicator->rank_ = place.rank;
  communicator->worldSize_ = place.worldSize;
  CurrentContext current(communicator->device());
  CPFLEX_RETURN_IF_ERROR(current.status());
  nccl::Config config;
  const nccl::Result result =
      communicator->library_->commInitRankConfig(&communicator->comm_, place.worldSize, place.id, place.rank, &config);
  CPFLEX_RETURN_IF_ERROR(communicator->library_->status(result, "ncclCommInitRankConfig"));
  CPFLEX_RETURN_IF_ERROR(communicator->settle(fmt::format("rank {} of {} joining the other ranks on GPU {}", place.rank,
                                                          place.worldSize, communicator->device().description().index),
                                              deadlineIn(deadlineSeconds)));
  return communicator;
}

StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::adopt(std::shared_ptr<const NcclLibrary> library,
                                                                    std::shared_ptr<const CudaPort> port,
                                                                    nccl::Comm comm, double deadlineSeconds) {
  std::unique_ptr<NcclCommunicator> communicator(
      new NcclCommunicator(std::move(library), std::move(port), deadlineSeconds));
  communicator->ownership_ = Ownership::Callers;
  communicator->comm_ = comm;
  const NcclLibrary &functions = *communicator->library_;
  CPFLEX_RETURN_IF_ERROR(functions.status(functions.commUserRank(comm, &communicator->rank_), "ncclCommUserRank"));
  CPFLEX_RETURN_IF_ERROR(functions.status(functions.commCount(comm, &communicator->worldSize_), "ncclCommCount"));
  return communicator;
}

NcclCommunicator::~NcclCommunicator() {
  if (!comm_ || ownership_ == Ownership::Callers)
    return;
  CurrentContext current(device());
  (void)library_->commFinalize(comm_);
  if (!settle("the end of the group", deadlineIn(deadlineSeconds_)))
    return;
  (void)library_->commDestroy(comm_);
}

void NcclCommunicator::abortNow() {
  if (!comm_)
    return;
  CurrentContext current(device());
  (void)library_->commAbort(comm_);
  comm_ = nullptr;
}

Status NcclCommunicator::settle(const std::string &where, Deadline deadline) {
  for (int poll = 0;; ++poll) {
    nccl::Result state = nccl::kSuccess;
    const nccl::Result result = library_->commGetAsyncError(comm_, &state);
    const nccl::Result failed = result != nccl::kSuccess ? result : state;
    if (failed == nccl::kSuccess)
      return Status::ok();
    if (failed != nccl::kInProgress) {
      Status status =
          Status::unavailable(fmt::format("NCCL failed at {}: {}", where, library_->describe(failed, comm_)));
      abortNow();
      return status;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      abortNow();
      return Status(StatusCode::DeadlineExceeded, fmt::format("NCCL was not done with {} before the deadline", where));
    }
    pause(poll);
  }
}

Status NcclCommunicator::enqueue(const MessageGroup &group, const std::string &where) {
  const auto check = [&](nccl::Result result) {
    if (result == nccl::kSuccess || result == nccl::kInProgress)
      return Status::ok();
    return Status::unavailable(fmt::format("NCCL failed at {}: {}", where, library_->describe(result, comm_)));
  };
  CPFLEX_RETURN_IF_ERROR(check(library_->groupStart()));
  Status status = Status::ok();
  for (const SendOperation &send : group.sends)
    if (status && send.sizeInBytes > 0)
      status =
          check(library_->send(send.data, size_t(send.sizeInBytes), nccl::kUint8, send.peer, comm_, port()->stream()));
  for (const ReceiveOperation &receive : group.receives)
    if (status && receive.sizeInBytes > 0)
      status = check(library_->receive(receive.data, size_t(receive.sizeInBytes), nccl::kUint8, receive.peer, comm_,
                                       port()->stream()));
  if (Status ended = check(library_->groupEnd()); status)
    status = ended;
  return status;
}

StatusOr<int64_t> NcclCommunicator::start(const MessageGroup &group) {
  for (const SendOperation &send : group.sends)
    if (send.peer < 0 || send.peer >= worldSize_)
      return Status::invalid(fmt::format("rank {} sends to rank {} in step {}; expected a rank in [0, {})", rank_,
                                         send.peer, group.step, worldSize_));
  for (const ReceiveOperation &receive : group.receives)
    if (receive.peer < 0 || receive.peer >= worldSize_)
      return Status::invalid(fmt::format("rank {} receives from rank {} in step {}; expected a rank in [0, {})", rank_,
                                         receive.peer, group.step, worldSize_));
  Started started{nextTicket_,    group.step, group.purpose,
                  peersOf(group), {},         group.sends.empty() && group.receives.empty()};
  const std::string where =
      fmt::format("rank {} with {} in step {} ({})", rank_, started.peers, group.step, group.purpose);
  if (!started.isEmpty) {
    if (!comm_)
      return Status::unavailable(fmt::format("{}: the NCCL group was aborted", where));
    CurrentContext current(device());
    CPFLEX_RETURN_IF_ERROR(current.status());
    if (Status status = enqueue(group, where); !status) {
      abortNow();
      return status;
    }
    CPFLEX_RETURN_IF_ERROR(settle(where, deadlineIn(deadlineSeconds_)));
    StatusOr<CudaEvent> done = CudaEvent::create(port()->device(), CudaEvent::Timing::Off);
    if (!done)
      return done.status();
    started.done = std::move(*done);
    CPFLEX_RETURN_IF_ERROR(started.done.record(port()->stream()));
  }
  started_.push_back(std::move(started));
  return nextTicket_++;
}

Status NcclCommunicator::wait(int64_t ticket, Deadline deadline) {
  if (started_.empty() || started_.front().ticket != ticket)
    return Status::invalid(
        fmt::format("rank {} waits for NCCL ticket {} out of turn; expected the oldest one", rank_, ticket));
  const Started started = std::move(started_.front());
  started_.pop_front();
  if (started.isEmpty)
    return Status::ok();
  const std::string where =
      fmt::format("rank {} with {} in step {} ({})", rank_, started.peers, started.step, started.purpose);
  if (!comm_)
    return Status::unavailable(fmt::format("{}: the NCCL group was aborted", where));
  CurrentContext current(device());
  CPFLEX_RETURN_IF_ERROR(current.status());
  for (int poll = 0;; ++poll) {
    StatusOr<bool> isReached = started.done.isReached();
    if (!isReached) {
      abortNow();
      return Status(isReached.status().code(), fmt::format("{}: {}", where, isReached.status().message()));
    }
    if (*isReached)
      return Status::ok();
    nccl::Result state = nccl::kSuccess;
    const nccl::Result result = library_->commGetAsyncError(comm_, &state);
    if (const nccl::Result failed = result != nccl::kSuccess ? result : state;
        failed != nccl::kSuccess && failed != nccl::kInProgress) {
      Status status =
          Status::unavailable(fmt::format("NCCL failed at {}: {}", where, library_->describe(failed, comm_)));
      abortNow();
      return status;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      abortNow();
      return Status(StatusCode::DeadlineExceeded, fmt::format("NCCL was not done with {} before the deadline", where));
    }
    pause(poll);
  }
}

void NcclCommunicator::abort(const Status &) { abortNow(); }

} // namespace cpflex
