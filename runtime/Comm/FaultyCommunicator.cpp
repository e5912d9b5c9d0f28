// Applies faults; see FaultyCommunicator.h.
#include "runtime/Comm/FaultyCommunicator.h"

#include <fmt/format.h>
#include <list>
#include <thread>

namespace cpflex {

StatusOr<int64_t> FaultyCommunicator::start(const MessageGroup &group) {
  if (isKilled())
    return killed_;
  MessageGroup changed{group.step, group.purpose, {}, group.receives};
  std::list<std::vector<uint8_t>> damaged;
  auto faultAt = [&](int64_t operation) -> const Fault * {
    for (const Fault &fault : faults_)
      if (fault.rank == rank() && fault.operation == operation)
        return &fault;
    return nullptr;
  };
  auto strike = [&](const Fault *fault) {
    if (fault && fault->kind == FaultKind::Delay)
      std::this_thread::sleep_for(std::chrono::duration<double>(fault->delaySeconds));
    if (fault && fault->kind == FaultKind::Kill)
      killed_ = Status::unavailable(
          fmt::format("rank {} was killed at operation {} in step {}", rank(), fault->operation, group.step));
  };
  for (const SendOperation &send : group.sends) {
    const Fault *fault = faultAt(numOperations_++);
    strike(fault);
    if (isKilled())
      break;
    if (fault && fault->kind == FaultKind::Drop)
      continue;
    SendOperation leaving = send;
    if (fault && fault->kind == FaultKind::Corrupt && send.sizeInBytes > 0) {
      const uint8_t *bytes = static_cast<const uint8_t *>(send.data);
      damaged.emplace_back(bytes, bytes + send.sizeInBytes);
      const uint64_t bit = fault->bit % (uint64_t(send.sizeInBytes) * 8);
      damaged.back()[size_t(bit / 8)] ^= uint8_t(1u << (bit % 8));
      leaving.data = damaged.back().data();
    }
    changed.sends.push_back(leaving);
    if (fault && fault->kind == FaultKind::Duplicate)
      changed.sends.push_back(leaving);
  }
  for (size_t i = 0; i < group.receives.size() && !isKilled(); ++i)
    strike(faultAt(numOperations_++));
  // A rank that dies within a group has sent what stood before.
  if (isKilled())
    changed.receives.clear();
  StatusOr<int64_t> ticket = inner_.start(changed);
  if (isKilled())
    return killed_;
  return ticket;
}

Status FaultyCommunicator::wait(int64_t ticket, Deadline deadline) {
  return isKilled() ? killed_ : inner_.wait(ticket, deadline);
}

void FaultyCommunicator::abort(const Status &reason) {
  if (!isKilled())
    inner_.abort(reason);
}

} // namespace cpflex
