// Frames and checks messages; see CheckedCommunicator.h.
#include "runtime/Comm/CheckedCommunicator.h"

#include <cstring>
#include <fmt/format.h>

namespace cpflex {
namespace {

/// What precedes a checked message.
struct Frame {
  uint64_t number = 0; ///< of the message between these two ranks, from 0
  uint64_t checksum = 0;
};

/// FNV-1a over the number and the bytes.
uint64_t checksumOf(uint64_t number, const uint8_t *bytes, int64_t size) {
  uint64_t hash = 14695981039346656037ull;
  auto add = [&](uint8_t byte) { hash = (hash ^ byte) * 1099511628211ull; };
  for (int shift = 0; shift < 64; shift += 8)
    add(uint8_t(number >> shift));
  for (int64_t i = 0; i < size; ++i)
    add(bytes[i]);
  return hash;
}

} // namespace

StatusOr<int64_t> CheckedCommunicator::start(const MessageGroup &group) {
  Started started{nextTicket_, 0, group, {}};
  MessageGroup framed{group.step, group.purpose, {}, {}};
  for (const SendOperation &send : group.sends) {
    std::vector<uint8_t> message(sizeof(Frame) + size_t(send.sizeInBytes));
    if (send.sizeInBytes > 0)
      std::memcpy(message.data() + sizeof(Frame), send.data, size_t(send.sizeInBytes));
    Frame frame{numSent_[size_t(send.peer)]++, 0};
    frame.checksum = checksumOf(frame.number, message.data() + sizeof(Frame), send.sizeInBytes);
    std::memcpy(message.data(), &frame, sizeof(Frame));
    started.sent.push_back(std::move(message));
    framed.sends.push_back({send.peer, started.sent.back().data(), int64_t(started.sent.back().size())});
  }
  StatusOr<int64_t> inner = inner_.start(framed);
  if (!inner)
    return inner.status();
  started.innerTicket = *inner;
  started_.push_back(std::move(started));
  return nextTicket_++;
}

Status CheckedCommunicator::wait(int64_t ticket, Deadline deadline) {
  if (started_.empty() || started_.front().ticket != ticket)
    return Status::invalid(
        fmt::format("rank {} waits for checked ticket {} out of turn; expected the oldest one", rank(), ticket));
  const Started started = std::move(started_.front());
  started_.pop_front();
  // Receives go one by one, since a repeated message calls for one more.
  CPFLEX_RETURN_IF_ERROR(inner_.wait(started.innerTicket, deadline));
  for (const ReceiveOperation &receive : started.group.receives) {
    std::vector<uint8_t> message(sizeof(Frame) + size_t(receive.sizeInBytes));
    uint64_t &expected = numReceived_[size_t(receive.peer)];
    while (true) {
      MessageGroup one{
          started.group.step, started.group.purpose, {}, {{receive.peer, message.data(), int64_t(message.size())}}};
      CPFLEX_RETURN_IF_ERROR(exchange(inner_, one, deadline));
      Frame frame;
      std::memcpy(&frame, message.data(), sizeof(Frame));
      const std::string place = fmt::format("message from rank {} at rank {} in step {} ({})", receive.peer, rank(),
                                            started.group.step, started.group.purpose);
      if (frame.checksum != checksumOf(frame.number, message.data() + sizeof(Frame), receive.sizeInBytes))
        return Status(StatusCode::DataLoss, place + " is damaged; expected its checksum");
      if (frame.number > expected)
        return Status(StatusCode::DataLoss,
                      fmt::format("{} has number {}; expected {}: a message was lost", place, frame.number, expected));
      if (frame.number == expected)
        break;
    }
    ++expected;
    if (receive.sizeInBytes > 0)
      std::memcpy(receive.data, message.data() + sizeof(Frame), size_t(receive.sizeInBytes));
  }
  return Status::ok();
}

} // namespace cpflex
