// Calls built from a communicator's groups; see Communicator.h.
#include "runtime/Comm/Communicator.h"

#include <algorithm>

namespace cpflex {

Deadline deadlineIn(double seconds) {
  constexpr double kLongestWait = 1e9; // decades; the clock counts to 9e9
  return std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                std::chrono::duration<double>(std::min(seconds, kLongestWait)));
}

Status exchange(Communicator &communicator, const MessageGroup &group, Deadline deadline) {
  StatusOr<int64_t> ticket = communicator.start(group);
  if (!ticket)
    return ticket.status();
  return communicator.wait(*ticket, deadline);
}

Status sumOverRanks(int32_t rank, int32_t worldSize, float *values, int64_t count, const std::string &purpose,
                    const std::function<Status(const MessageGroup &)> &exchange) {
  const int64_t bytes = count * int64_t(sizeof(float));
  if (worldSize == 1 || count == 0)
    return Status::ok();
  if (rank != 0) {
    CPFLEX_RETURN_IF_ERROR(exchange({0, purpose, {{0, values, bytes}}, {}}));
    return exchange({1, purpose, {}, {{0, values, bytes}}});
  }
  std::vector<float> foreign(static_cast<size_t>(count));
  MessageGroup result{1, purpose, {}, {}};
  for (int32_t peer = 1; peer < worldSize; ++peer) {
    CPFLEX_RETURN_IF_ERROR(exchange({0, purpose, {}, {{peer, foreign.data(), bytes}}}));
    for (int64_t i = 0; i < count; ++i)
      values[i] += foreign[size_t(i)];
    result.sends.push_back({peer, values, bytes});
  }
  return exchange(result);
}

} // namespace cpflex
