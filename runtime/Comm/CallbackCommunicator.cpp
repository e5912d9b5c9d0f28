// Checks groups and hands them to the caller; see CallbackCommunicator.h.
#include "runtime/Comm/CallbackCommunicator.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <set>

namespace cpflex {

StatusOr<std::shared_ptr<CallbackCommunicator>> CallbackCommunicator::create(CommunicatorCallbacks callbacks) {
  if (callbacks.rank < 0 || callbacks.rank >= callbacks.worldSize)
    return Status::invalid(fmt::format("rank {} of a transport of {} ranks; expected a rank in [0, {})", callbacks.rank,
                                       callbacks.worldSize, callbacks.worldSize));
  if (!callbacks.start || !callbacks.wait)
    return Status::invalid(fmt::format("the transport has no function '{}'", callbacks.start ? "wait" : "start"));
  return std::shared_ptr<CallbackCommunicator>(new CallbackCommunicator(std::move(callbacks)));
}

Status CallbackCommunicator::named(const Status &status, const MessageGroup &group) const {
  if (status)
    return status;
  std::set<int32_t> peers;
  for (const SendOperation &send : group.sends)
    peers.insert(send.peer);
  for (const ReceiveOperation &receive : group.receives)
    peers.insert(receive.peer);
  return {status.code(),
          fmt::format("the caller's transport failed at rank {} in step {} ({}) with ranks [{}]: {}", callbacks_.rank,
                      group.step, group.purpose, fmt::join(peers, ", "), status.message())};
}

StatusOr<int64_t> CallbackCommunicator::start(const MessageGroup &group) {
  const auto isPeer = [&](const auto &operation) { return operation.peer >= 0 && operation.peer < worldSize(); };
  if (!std::ranges::all_of(group.sends, isPeer) || !std::ranges::all_of(group.receives, isPeer))
    return Status::invalid(
        fmt::format("rank {} exchanges with a rank that is none in step {}; expected ranks in [0, {})", rank(),
                    group.step, worldSize()));
  const int64_t ticket = nextTicket_++;
  if (!group.sends.empty() || !group.receives.empty())
    CPFLEX_RETURN_IF_ERROR(named(callbacks_.start(ticket, group), group));
  started_.push_back({ticket, group});
  return ticket;
}

Status CallbackCommunicator::wait(int64_t ticket, Deadline deadline) {
  if (started_.empty() || started_.front().first != ticket)
    return Status::invalid(fmt::format(
        "rank {} waits for the transport's ticket {} out of turn; expected the oldest one", rank(), ticket));
  const MessageGroup group = std::move(started_.front().second);
  started_.pop_front();
  if (group.sends.empty() && group.receives.empty())
    return Status::ok();
  const double seconds = std::chrono::duration<double>(deadline - std::chrono::steady_clock::now()).count();
  return named(callbacks_.wait(ticket, std::max(0.0, seconds)), group);
}

void CallbackCommunicator::abort(const Status &reason) {
  if (callbacks_.abort)
    callbacks_.abort(reason);
}

} // namespace cpflex
