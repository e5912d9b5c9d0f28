// Meeting by a file or a TCP port; see Rendezvous.h.
#include "runtime/Comm/Rendezvous.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <limits>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <utility>

namespace cpflex {
namespace {

namespace fs = std::filesystem;
constexpr std::chrono::milliseconds kPause(5);
/// What a process says when it connects, so that a stranger on the port is told apart.
constexpr uint32_t kGreeting = 0x63706678;
/// How long a connection may take to say which rank it is.
constexpr double kHandshakeSeconds = 2.0;

bool isLate(Deadline deadline) { return std::chrono::steady_clock::now() >= deadline; }

int millisecondsUntil(Deadline deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  return int(std::clamp<int64_t>(left.count(), 0, std::numeric_limits<int>::max()));
}

std::optional<int> toNumber(std::string_view text) {
  int value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

/// A socket, closed with the object.
class Socket {
public:
  explicit Socket(int descriptor = -1) : descriptor_(descriptor) {}
  ~Socket() {
    if (descriptor_ >= 0)
      close(descriptor_);
  }
  Socket(Socket &&other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket &operator=(Socket &&other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  int get() const { return descriptor_; }

  /// Moves all bytes or fails; `events` is POLLIN or POLLOUT.
  bool transfer(void *data, size_t size, short events, Deadline deadline) const {
    auto *bytes = static_cast<char *>(data);
    for (size_t done = 0; done < size;) {
      pollfd wanted{descriptor_, events, 0};
      if (poll(&wanted, 1, millisecondsUntil(deadline)) <= 0)
        return false;
      const ssize_t moved = events == POLLIN ? recv(descriptor_, bytes + done, size - done, 0)
                                             : send(descriptor_, bytes + done, size - done, MSG_NOSIGNAL);
      if (moved <= 0)
        return false;
      done += size_t(moved);
    }
    return true;
  }

private:
  int descriptor_;
};

Status shareByFile(const Rendezvous &rendezvous, int32_t rank, std::vector<uint8_t> &bytes, Deadline deadline) {
  std::error_code error;
  if (rank == 0) {
    if (fs::exists(rendezvous.path, error))
      return Status::invalid(
          fmt::format("'{}' exists; expected a rendezvous file that no other job has used", rendezvous.path));
    // The file appears whole.
    const std::string draft = rendezvous.path + ".draft";
    std::ofstream file(draft, std::ios::binary);
    file.write(reinterpret_cast<const char *>(bytes.data()), std::streamsize(bytes.size()));
    file.close();
    if (file)
      fs::rename(draft, rendezvous.path, error);
    if (!file || error)
      return Status::unavailable(fmt::format("the rendezvous file '{}' cannot be written; expected a folder that all "
                                             "ranks share",
                                             rendezvous.path));
    return Status::ok();
  }
  for (; !fs::exists(rendezvous.path, error); std::this_thread::sleep_for(kPause))
    if (isLate(deadline))
      return Status(StatusCode::DeadlineExceeded,
                    fmt::format("rank {} did not find '{}' before the deadline; expected rank 0 to write it", rank,
                                rendezvous.path));
  std::ifstream file(rendezvous.path, std::ios::binary);
  file.read(reinterpret_cast<char *>(bytes.data()), std::streamsize(bytes.size()));
  if (file.gcount() != std::streamsize(bytes.size()))
    return Status(StatusCode::DataLoss,
                  fmt::format("'{}' holds {} bytes; expected {}", rendezvous.path, file.gcount(), bytes.size()));
  return Status::ok();
}

StatusOr<Socket> opened(const Rendezvous &rendezvous, bool isListener) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = isListener ? AI_PASSIVE : 0;
  const std::string port = std::to_string(rendezvous.port);
  if (int code = getaddrinfo(isListener ? nullptr : rendezvous.host.c_str(), port.c_str(), &hints, &found))
    return Status::unavailable(fmt::format("the host '{}' is not known: {}", rendezvous.host, gai_strerror(code)));
  int reason = 0;
  for (addrinfo *each = found; each; each = each->ai_next) {
    Socket socket(::socket(each->ai_family, each->ai_socktype, each->ai_protocol));
    const int on = 1;
    if (isListener)
      setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (socket.get() >= 0 &&
        (isListener ? bind(socket.get(), each->ai_addr, each->ai_addrlen) == 0 && listen(socket.get(), SOMAXCONN) == 0
                    : connect(socket.get(), each->ai_addr, each->ai_addrlen) == 0)) {
      freeaddrinfo(found);
      return socket;
    }
    reason = errno;
  }
  freeaddrinfo(found);
  return Status::unavailable(fmt::format("{} {}:{}: {}", isListener ? "cannot listen at" : "cannot connect to",
                                         rendezvous.host, rendezvous.port, std::strerror(reason)));
}

/// A connection that has not said yet which rank it is.
struct Visitor {
  Socket socket;
  Deadline deadline;
  uint32_t greeting[2] = {};
  size_t received = 0;
};

/// Reads what has come of a greeting. False when the visitor left.
bool hear(Visitor &visitor) {
  uint8_t *bytes = reinterpret_cast<uint8_t *>(visitor.greeting);
  const ssize_t moved =
      recv(visitor.socket.get(), bytes + visitor.received, sizeof(visitor.greeting) - visitor.received, MSG_DONTWAIT);
  if (moved <= 0)
    return moved < 0 && (errno == EAGAIN || errno == EINTR);
  visitor.received += size_t(moved);
  return true;
}

Status serve(const Rendezvous &rendezvous, int32_t worldSize, std::vector<uint8_t> &bytes, Deadline deadline) {
  StatusOr<Socket> listener = opened(rendezvous, /*isListener=*/true);
  if (!listener)
    return listener.status();
  std::vector<bool> hasMet(size_t(worldSize), false);
  std::vector<Visitor> visitors;
  for (int32_t numMet = 1; numMet < worldSize;) {
    // 1. Wait until somebody comes or speaks, or a visitor's time is over.
    std::vector<pollfd> wanted = {{listener->get(), POLLIN, 0}};
    Deadline next = deadline;
    for (const Visitor &visitor : visitors) {
      wanted.push_back({visitor.socket.get(), POLLIN, 0});
      next = std::min(next, visitor.deadline);
    }
    poll(wanted.data(), wanted.size(), millisecondsUntil(next));
    if (isLate(deadline)) {
      int32_t missing = 1;
      while (missing + 1 < worldSize && hasMet[size_t(missing)])
        ++missing;
      return Status(StatusCode::DeadlineExceeded,
                    fmt::format("rank {} did not come to {}:{} before the deadline; {} of {} ranks came", missing,
                                rendezvous.host, rendezvous.port, numMet, worldSize));
    }
    // 2. Hear the visitors. One that is silent for too long is a stranger, as is one with another greeting.
    std::vector<Visitor> waiting;
    for (size_t i = 0; i < visitors.size(); ++i) {
      Visitor &visitor = visitors[i];
      if (wanted[i + 1].revents && !hear(visitor))
        continue;
      if (visitor.received < sizeof(visitor.greeting)) {
        if (!isLate(visitor.deadline))
          waiting.push_back(std::move(visitor));
        continue;
      }
      const uint32_t rank = visitor.greeting[1];
      const Deadline handshake = std::min(deadline, deadlineIn(kHandshakeSeconds));
      if (visitor.greeting[0] == kGreeting && rank > 0 && rank < uint32_t(worldSize) && !hasMet[rank] &&
          visitor.socket.transfer(bytes.data(), bytes.size(), POLLOUT, handshake)) {
        hasMet[rank] = true;
        ++numMet;
      }
    }
    visitors = std::move(waiting);
    // 3. Let the next one in.
    if (wanted[0].revents & POLLIN)
      if (Socket peer(accept(listener->get(), nullptr, nullptr)); peer.get() >= 0)
        visitors.push_back({std::move(peer), std::min(deadline, deadlineIn(kHandshakeSeconds))});
  }
  return Status::ok();
}

Status ask(const Rendezvous &rendezvous, int32_t rank, std::vector<uint8_t> &bytes, Deadline deadline) {
  for (;; std::this_thread::sleep_for(kPause)) {
    StatusOr<Socket> socket = opened(rendezvous, /*isListener=*/false);
    uint32_t greeting[2] = {kGreeting, uint32_t(rank)};
    if (socket && socket->transfer(greeting, sizeof(greeting), POLLOUT, deadline) &&
        socket->transfer(bytes.data(), bytes.size(), POLLIN, deadline))
      return Status::ok();
    if (isLate(deadline))
      return Status(StatusCode::DeadlineExceeded,
                    fmt::format("rank {} did not reach rank 0 at {}:{} before the deadline{}", rank, rendezvous.host,
                                rendezvous.port, socket ? "" : "; " + socket.status().message()));
  }
}

} // namespace

StatusOr<Rendezvous> parseRendezvous(const std::string &text, const EnvironmentLookup &environment) {
  const Status wrong =
      Status::invalid(fmt::format("rendezvous is '{}'; expected 'file:PATH' or 'tcp:HOST:PORT'", text));
  Rendezvous rendezvous;
  const size_t colon = text.find(':');
  if (colon == std::string::npos)
    return wrong;
  const std::string kind = text.substr(0, colon);
  std::string rest = text.substr(colon + 1);
  if (kind == "tcp" && rest.starts_with("//"))
    rest = rest.substr(2);
  if (kind == "file" && rest.starts_with("//"))
    rest = rest.substr(2);
  if (kind == "file" && !rest.empty()) {
    rendezvous.path = rest;
    return rendezvous;
  }
  const size_t last = rest.rfind(':');
  const std::optional<int> port = last == std::string::npos ? std::nullopt : toNumber(rest.substr(last + 1));
  constexpr int kLargestPort = 65535;
  if (kind != "tcp" || last == 0 || !port || *port < 1 || *port > kLargestPort)
    return wrong;
  rendezvous.kind = Rendezvous::Kind::Tcp;
  rendezvous.host = rest.substr(0, last);
  rendezvous.port = *port;
  if (environment("MASTER_PORT") == rest.substr(last + 1))
    return Status::invalid(
        fmt::format("the rendezvous port {} is the launcher's own (MASTER_PORT); expected another", *port));
  return rendezvous;
}

Status shareBytes(const Rendezvous &rendezvous, int32_t rank, int32_t worldSize, std::vector<uint8_t> &bytes,
                  Deadline deadline) {
  if (worldSize == 1)
    return Status::ok();
  if (rendezvous.kind == Rendezvous::Kind::File)
    return shareByFile(rendezvous, rank, bytes, deadline);
  return rank == 0 ? serve(rendezvous, worldSize, bytes, deadline) : ask(rendezvous, rank, bytes, deadline);
}

void leaveRendezvous(const Rendezvous &rendezvous, int32_t rank) {
  std::error_code error;
  if (rank == 0 && rendezvous.kind == Rendezvous::Kind::File)
    fs::remove(rendezvous.path, error);
}

std::optional<JobPlace> jobPlace(const EnvironmentLookup &environment) {
  constexpr const char *kVariables[][3] = {
      {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
      {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
      {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
  };
  for (const auto &[rankName, sizeName, localName] : kVariables) {
    const std::optional<int> rank = toNumber(environment(rankName)), size = toNumber(environment(sizeName));
    if (!rank || !size || *size < 1 || *rank < 0 || *rank >= *size)
      continue;
    return JobPlace{*rank, *size, toNumber(environment(localName)).value_or(*rank)};
  }
  return std::nullopt;
}

} // namespace cpflex
