// Loads the plugin and polls its requests; see MpiCommunicator.h.
#include "runtime/Comm/MpiCommunicator.h"

#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>
#include <fmt/format.h>
#include <thread>

namespace cpflex {
namespace {

constexpr const char *kPluginFile = "libcpflex_mpi.so";
/// Polls that only yield before the waiting thread starts to sleep.
constexpr int kYieldingPolls = 2000;
constexpr std::chrono::microseconds kPollPause(50);
constexpr int64_t kDescriptionBytes = 512;

std::vector<std::string> candidates(const std::string &path) {
  if (!path.empty())
    return {path};
  if (const char *named = std::getenv("CPFLEX_MPI_PLUGIN"))
    return {named};
  std::vector<std::string> places;
  std::error_code error;
  const std::filesystem::path executable = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    places.push_back((executable.parent_path() / kPluginFile).string());
    places.push_back((executable.parent_path().parent_path() / "lib" / kPluginFile).string());
    places.push_back((executable.parent_path().parent_path().parent_path() / "lib" / kPluginFile).string());
  }
  // A library that holds this code lies elsewhere than the program.
  Dl_info here{};
  if (dladdr(reinterpret_cast<const void *>(&candidates), &here) && here.dli_fname)
    places.push_back((std::filesystem::path(here.dli_fname).parent_path() / kPluginFile).string());
  places.push_back(kPluginFile);
  return places;
}

} // namespace

StatusOr<std::unique_ptr<MpiCommunicator>> MpiCommunicator::open(const std::string &path) {
  std::string reason;
  for (const std::string &place : candidates(path)) {
    // Global: MPI implementations load components that look for their symbols.
    void *library = dlopen(place.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
      reason = dlerror();
      continue;
    }
    auto entry = reinterpret_cast<decltype(&cpflexMpiTable)>(dlsym(library, "cpflexMpiTable"));
    const CpflexMpiTable *table = entry ? entry(CPFLEX_MPI_PLUGIN_VERSION) : nullptr;
    if (!table) {
      dlclose(library);
      return Status::unavailable(fmt::format("'{}' is not an MPI plugin of version {}; expected the one of this build",
                                             place, CPFLEX_MPI_PLUGIN_VERSION));
    }
    std::unique_ptr<MpiCommunicator> communicator(new MpiCommunicator(table));
    if (int code = table->initialize(&communicator->rank_, &communicator->worldSize_)) {
      char text[kDescriptionBytes];
      table->describe(code, text, kDescriptionBytes);
      return Status::unavailable(fmt::format("MPI did not start: {}; expected to run under mpirun", text));
    }
    return communicator;
  }
  return Status::unavailable(fmt::format("the MPI plugin was not found ({}); expected a build with MPI, or its file in "
                                         "CPFLEX_MPI_PLUGIN",
                                         reason));
}

MpiCommunicator::~MpiCommunicator() {
  if (!isBroken_)
    table_->finalize();
  // The library stays: MPI may have threads and exit handlers in it.
}

Status MpiCommunicator::failure(int code, const Message &message, const Started &started) const {
  char text[kDescriptionBytes];
  table_->describe(code, text, kDescriptionBytes);
  return Status::unavailable(fmt::format("MPI failed at rank {} with rank {} in step {} ({}): {}", rank_, message.peer,
                                         started.step, started.purpose, text));
}

StatusOr<int64_t> MpiCommunicator::start(const MessageGroup &group) {
  Started started{nextTicket_, group.step, group.purpose, {}};
  auto add = [&](Message message, auto &&startMessage) -> Status {
    if (message.peer < 0 || message.peer >= worldSize_)
      return Status::invalid(fmt::format("rank {} exchanges with rank {} in step {}; expected a rank in [0, {})", rank_,
                                         message.peer, group.step, worldSize_));
    if (int code = startMessage(&message.request)) {
      isBroken_ = true;
      return failure(code, message, started);
    }
    started.messages.push_back(message);
    return Status::ok();
  };
  for (const ReceiveOperation &receive : group.receives)
    CPFLEX_RETURN_IF_ERROR(add({nullptr, receive.peer, /*isSend=*/false, receive.sizeInBytes}, [&](void **request) {
      return table_->startReceive(receive.data, receive.sizeInBytes, receive.peer, request);
    }));
  for (const SendOperation &send : group.sends)
    CPFLEX_RETURN_IF_ERROR(add({nullptr, send.peer, /*isSend=*/true, send.sizeInBytes}, [&](void **request) {
      return table_->startSend(send.data, send.sizeInBytes, send.peer, request);
    }));
  started_.push_back(std::move(started));
  return nextTicket_++;
}

Status MpiCommunicator::wait(int64_t ticket, Deadline deadline) {
  if (started_.empty() || started_.front().ticket != ticket)
    return Status::invalid(
        fmt::format("rank {} waits for MPI ticket {} out of turn; expected the oldest one", rank_, ticket));
  Started started = std::move(started_.front());
  started_.pop_front();
  auto giveUp = [&] {
    isBroken_ = true;
    for (Message &message : started.messages)
      if (message.request)
        table_->cancel(&message.request);
  };
  for (int poll = 0;; ++poll) {
    const Message *open = nullptr;
    for (Message &message : started.messages) {
      if (!message.request)
        continue;
      int isDone = 0;
      if (int code = table_->test(&message.request, &isDone)) {
        Status status = failure(code, message, started);
        giveUp();
        return status;
      }
      if (!isDone && !open)
        open = &message;
    }
    if (!open)
      return Status::ok();
    if (std::chrono::steady_clock::now() >= deadline) {
      Status status(StatusCode::DeadlineExceeded,
                    fmt::format("no {} rank {} at rank {} in step {} ({}) before the deadline; expected {} bytes",
                                open->isSend ? "room for a message at" : "message from", open->peer, rank_,
                                started.step, started.purpose, open->sizeInBytes));
      giveUp();
      return status;
    }
    if (poll < kYieldingPolls)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(kPollPause);
  }
}

void MpiCommunicator::abort(const Status &) { table_->abort(/*code=*/3); }

} // namespace cpflex
