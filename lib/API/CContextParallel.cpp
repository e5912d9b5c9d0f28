// The C interface's plans, communicators and ranks.
#include "lib/API/CHandles.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

using namespace cpflex;

namespace {

constexpr size_t kTransportTextBytes = 512;

/// The value of a word of the command line; none for "auto" or no text.
template <typename Kind>
Status fromWord(const char *text, const char *what, std::optional<Kind> (*parse)(std::string_view),
                const char *expected, std::optional<Kind> &kind) {
  if (!text || std::string_view(text) == "auto")
    return Status::ok();
  kind = parse(text);
  return kind ? Status::ok() : Status::invalid(fmt::format("'{}' is '{}'; expected {}", what, text, expected));
}

StatusOr<ContextParallelOptions> fromC(const cpflex_plan_options &options) {
  ContextParallelOptions result;
  result.worldSize = options.world_size;
  CPFLEX_RETURN_IF_ERROR(fromWord(options.layout, "layout", layoutKindFromString,
                                  "contiguous, head-tail, striped, per-document, ptrr, solved or auto", result.layout));
  CPFLEX_RETURN_IF_ERROR(fromWord(options.rotation, "rotation", rotationFromString,
                                  "ring, all-gather, selective, ulysses or auto", result.rotation));
  if (options.q_layout)
    result.qLayout = options.q_layout->layout;
  if (options.kv_layout)
    result.kvLayout = options.kv_layout->layout;
  result.keyOrder = options.has_ascending_keys ? KeyOrder::Ascending : KeyOrder::Arrival;
  result.tokenCounts = options.has_free_token_counts ? TokenCounts::Free : TokenCounts::Equal;
  result.needPrecision = options.has_exact_needs ? NeedPrecision::Token : NeedPrecision::Tile;
  for (size_t i = 0; i < options.num_other_masks; ++i) {
    CPFLEX_RETURN_IF_ERROR(required(options.other_masks[i], "other_masks"));
    const std::shared_ptr<const BlockMaskResult> &mask = options.other_masks[i]->result;
    result.otherMasks.emplace_back(mask, &mask->mask);
  }
  return result;
}

StatusOr<const Schedule *> scheduleOf(const ContextParallelPlan &plan, cpflex_pass pass) {
  if (pass != CPFLEX_BACKWARD)
    return &plan.forward();
  if (!plan.backward())
    return Status::invalid("the plan has no backward pass; expected an executable loaded with has_backward");
  return plan.backward();
}

/// What a function of the caller returned, as a Status.
Status statusOf(int32_t code, const char *text) {
  constexpr StatusCode kCodes[] = {StatusCode::Ok,          StatusCode::InvalidArgument, StatusCode::Unsupported,
                                   StatusCode::Unavailable, StatusCode::OutOfMemory,     StatusCode::DeadlineExceeded,
                                   StatusCode::DataLoss};
  if (code == 0)
    return Status::ok();
  const bool isKnown = code > 0 && code < int32_t(std::size(kCodes));
  return {isKnown ? kCodes[code] : StatusCode::Unavailable, *text ? text : fmt::format("code {}", code)};
}

CommunicatorCallbacks callbacksOf(const cpflex_transport &transport) {
  CommunicatorCallbacks callbacks;
  callbacks.rank = transport.rank;
  callbacks.worldSize = transport.world_size;
  if (transport.start)
    callbacks.start = [transport](int64_t ticket, const MessageGroup &group) {
      std::vector<cpflex_message> messages;
      for (const SendOperation &send : group.sends)
        messages.push_back({send.peer, 1, const_cast<void *>(send.data), send.sizeInBytes});
      for (const ReceiveOperation &receive : group.receives)
        messages.push_back({receive.peer, 0, receive.data, receive.sizeInBytes});
      char text[kTransportTextBytes] = {};
      const int32_t code = transport.start(transport.user_data, ticket, group.step, group.purpose.c_str(),
                                           messages.data(), messages.size(), text, sizeof(text));
      return statusOf(code, text);
    };
  if (transport.wait)
    callbacks.wait = [transport](int64_t ticket, double seconds) {
      char text[kTransportTextBytes] = {};
      const int32_t code = transport.wait(transport.user_data, ticket, seconds, text, sizeof(text));
      return statusOf(code, text);
    };
  if (transport.abort)
    callbacks.abort = [transport](const Status &reason) {
      transport.abort(transport.user_data, reason.message().c_str());
    };
  return callbacks;
}

double deadlineOrDefault(double seconds) { return seconds == 0 ? RankOptions().deadlineSeconds : seconds; }

template <typename Result> Status giveCommunicator(Result made, cpflex_communicator **out) {
  if (made)
    *out = new cpflex_communicator{*made};
  return made.status();
}

} // namespace

extern "C" {

cpflex_error *cpflex_plan_create(const cpflex_executable *executable, const cpflex_plan_options *options,
                                 cpflex_plan **plan) {
  return guarded([&]() -> Status {
    const std::pair<const void *, const char *> arguments[] = {
        {executable, "executable"}, {options, "options"}, {plan, "plan"}};
    for (auto [pointer, name] : arguments)
      CPFLEX_RETURN_IF_ERROR(required(pointer, name));
    StatusOr<ContextParallelOptions> given = fromC(*options);
    if (!given)
      return given.status();
    auto made = ContextParallelPlan::create(executable->executable, *given);
    if (made)
      *plan = new cpflex_plan{*made};
    return inC(made.status());
  });
}
void cpflex_plan_free(cpflex_plan *plan) { delete plan; }

cpflex_error *cpflex_plan_layout(const cpflex_plan *plan, cpflex_side side, cpflex_layout **layout) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(plan, "plan"));
    CPFLEX_RETURN_IF_ERROR(required(layout, "layout"));
    const Schedule &schedule = plan->plan->forward();
    *layout = new cpflex_layout{side == CPFLEX_SIDE_KV ? schedule.kvLayout : schedule.qLayout};
    return Status::ok();
  });
}

cpflex_error *cpflex_plan_print(const cpflex_plan *plan, cpflex_pass pass, const char *format, cpflex_buffer **text) {
  return guarded([&]() -> Status {
    const std::pair<const void *, const char *> arguments[] = {{plan, "plan"}, {format, "format"}, {text, "text"}};
    for (auto [pointer, name] : arguments)
      CPFLEX_RETURN_IF_ERROR(required(pointer, name));
    StatusOr<const Schedule *> schedule = scheduleOf(*plan->plan, pass);
    if (!schedule)
      return schedule.status();
    const std::string wanted = format;
    if (wanted == "text")
      giveBytes(toText(**schedule), text);
    else if (wanted == "summary")
      giveBytes(toSummary(**schedule), text);
    else if (wanted == "json")
      giveBytes(toJson(**schedule), text);
    else if (wanted == "svg")
      giveBytes(toSvg(**schedule, plan->plan->mask()), text);
    else
      return Status::invalid(fmt::format("format of a plan is '{}'; expected text, summary, json or svg", wanted));
    return Status::ok();
  });
}

cpflex_error *cpflex_plan_numbers_of(const cpflex_plan *plan, cpflex_pass pass, cpflex_plan_numbers *numbers) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(plan, "plan"));
    CPFLEX_RETURN_IF_ERROR(required(numbers, "numbers"));
    StatusOr<const Schedule *> found = scheduleOf(*plan->plan, pass);
    if (!found)
      return found.status();
    const Schedule &schedule = **found;
    const Certificate &certificate = schedule.certificate;
    double total = 0, largest = 0;
    for (const RankLoad &load : certificate.ranks) {
      total += load.work;
      largest = std::max(largest, load.work);
    }
    // The words are literals, so they end with a 0 byte.
    *numbers = {toString(schedule.rotation).data(),
                schedule.worldSize,
                schedule.numSteps,
                int64_t(schedule.transfers.size()),
                largest,
                total / schedule.worldSize,
                certificate.workBound,
                certificate.receivedBound,
                certificate.receivedBoundWorst,
                certificate.predictedSeconds};
    return Status::ok();
  });
}

cpflex_error *cpflex_plan_rank_numbers(const cpflex_plan *plan, cpflex_pass pass, int32_t rank,
                                       cpflex_rank_numbers *numbers) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(plan, "plan"));
    CPFLEX_RETURN_IF_ERROR(required(numbers, "numbers"));
    StatusOr<const Schedule *> schedule = scheduleOf(*plan->plan, pass);
    if (!schedule)
      return schedule.status();
    if (rank < 0 || rank >= (*schedule)->worldSize)
      return Status::invalid(fmt::format("rank is {}; expected 0 to {}", rank, (*schedule)->worldSize - 1));
    const RankLoad &load = (*schedule)->certificate.ranks[size_t(rank)];
    *numbers = {load.work, load.bytesSent, load.bytesReceived, load.bytesNeeded, load.peakBytes};
    return Status::ok();
  });
}

cpflex_error *cpflex_thread_group_create(int32_t world_size, cpflex_thread_group **group) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(group, "group"));
    constexpr int32_t kMostThreads = 4096;
    if (world_size < 1 || world_size > kMostThreads)
      return Status::invalid(fmt::format("a group of {} threads; expected 1 to {}", world_size, kMostThreads));
    *group = new cpflex_thread_group{std::make_shared<ThreadsHub>(world_size)};
    return Status::ok();
  });
}
void cpflex_thread_group_free(cpflex_thread_group *group) { delete group; }

cpflex_error *cpflex_communicator_of_threads(const cpflex_thread_group *group, int32_t rank,
                                             cpflex_communicator **communicator) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(group, "group"));
    CPFLEX_RETURN_IF_ERROR(required(communicator, "communicator"));
    if (rank < 0 || rank >= group->hub->worldSize())
      return Status::invalid(fmt::format("rank is {}; expected 0 to {}", rank, group->hub->worldSize() - 1));
    // The communicator holds the group with it.
    struct Member {
      std::shared_ptr<ThreadsHub> hub;
      ThreadsCommunicator communicator;
    };
    auto member = std::make_shared<Member>(Member{group->hub, ThreadsCommunicator(*group->hub, rank)});
    *communicator = new cpflex_communicator{{member, &member->communicator}};
    return Status::ok();
  });
}

cpflex_error *cpflex_communicator_of_mpi(const char *plugin, cpflex_communicator **communicator) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(communicator, "communicator"));
    return giveCommunicator(openMpiCommunicator(textOr(plugin, "")), communicator);
  });
}

cpflex_error *cpflex_nccl_id(void *id) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(id, "id"));
    StatusOr<NcclId> made = newNcclId();
    if (made)
      std::memcpy(id, made->data(), made->size());
    return made.status();
  });
}

cpflex_error *cpflex_communicator_of_nccl(const void *id, int32_t rank, int32_t world_size, int32_t gpu,
                                          double deadline_seconds, cpflex_communicator **communicator) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(id, "id"));
    CPFLEX_RETURN_IF_ERROR(required(communicator, "communicator"));
    NcclId group;
    static_assert(sizeof(group) == CPFLEX_NCCL_ID_BYTES);
    std::memcpy(group.data(), id, group.size());
    return giveCommunicator(openNcclCommunicator(group, rank, world_size, gpu, deadlineOrDefault(deadline_seconds)),
                            communicator);
  });
}

cpflex_error *cpflex_communicator_of_nccl_comm(void *nccl_comm, int32_t gpu, double deadline_seconds,
                                               cpflex_communicator **communicator) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(nccl_comm, "nccl_comm"));
    CPFLEX_RETURN_IF_ERROR(required(communicator, "communicator"));
    return giveCommunicator(adoptNcclCommunicator(nccl_comm, gpu, deadlineOrDefault(deadline_seconds)), communicator);
  });
}

cpflex_error *cpflex_communicators_of_cuda_threads(int32_t world_size, const int32_t *gpus, size_t num_gpus,
                                                   cpflex_communicator **communicators) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(gpus, "gpus"));
    CPFLEX_RETURN_IF_ERROR(required(communicators, "communicators"));
    auto made = openCudaThreads(world_size, std::vector<int32_t>(gpus, gpus + num_gpus));
    for (size_t rank = 0; made && rank < made->size(); ++rank)
      communicators[rank] = new cpflex_communicator{(*made)[rank]};
    return made.status();
  });
}

cpflex_error *cpflex_communicator_of_transport(const cpflex_transport *transport, cpflex_communicator **communicator) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(transport, "transport"));
    CPFLEX_RETURN_IF_ERROR(required(communicator, "communicator"));
    return giveCommunicator(CallbackCommunicator::create(callbacksOf(*transport)), communicator);
  });
}

int32_t cpflex_communicator_rank(const cpflex_communicator *communicator) {
  return communicator ? communicator->communicator->rank() : -1;
}
int32_t cpflex_communicator_world_size(const cpflex_communicator *communicator) {
  return communicator ? communicator->communicator->worldSize() : 0;
}
void cpflex_communicator_abort(cpflex_communicator *communicator, const char *reason) {
  if (communicator)
    communicator->communicator->abort(Status::unavailable(textOr(reason, "no reason")));
}
void cpflex_communicator_free(cpflex_communicator *communicator) { delete communicator; }

cpflex_error *cpflex_rank_load(const cpflex_plan *plan, const cpflex_communicator *communicator,
                               const cpflex_rank_options *options, cpflex_rank **rank) {
  return guarded([&]() -> Status {
    const std::pair<const void *, const char *> arguments[] = {
        {plan, "plan"}, {communicator, "communicator"}, {rank, "rank"}};
    for (auto [pointer, name] : arguments)
      CPFLEX_RETURN_IF_ERROR(required(pointer, name));
    RankOptions given{.numThreads = options ? options->num_threads : 0};
    given.deadlineSeconds = deadlineOrDefault(options ? options->deadline_seconds : 0);
    if (options && options->has_times)
      given.times = RankOptions::Times::Always;
    auto loaded = RankExecutable::load(plan->plan, communicator->communicator, given);
    if (loaded)
      *rank = new cpflex_rank{*loaded};
    return inC(loaded.status());
  });
}
void cpflex_rank_free(cpflex_rank *rank) { delete rank; }

cpflex_error *cpflex_rank_forward(cpflex_rank *rank, const cpflex_forward_tensors *shards, void *stream) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(rank, "rank"));
    CPFLEX_RETURN_IF_ERROR(required(shards, "shards"));
    ForwardCallTensors call;
    CPFLEX_RETURN_IF_ERROR(cpflex::fromC(*shards, call));
    return inC(rank->rank->forward(call, stream));
  });
}

cpflex_error *cpflex_rank_backward(cpflex_rank *rank, const cpflex_backward_tensors *shards, void *stream) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(rank, "rank"));
    CPFLEX_RETURN_IF_ERROR(required(shards, "shards"));
    BackwardCallTensors call;
    CPFLEX_RETURN_IF_ERROR(cpflex::fromC(*shards, call));
    return inC(rank->rank->backward(call, stream));
  });
}

int64_t cpflex_rank_device_bytes(const cpflex_rank *rank) { return rank ? rank->rank->deviceMemoryInBytes() : 0; }

cpflex_traffic cpflex_rank_traffic(const cpflex_rank *rank, const char *purpose, int32_t peer) {
  cpflex_traffic traffic{};
  if (!rank)
    return traffic;
  const RunReport report = rank->rank->report();
  const auto isWanted = [&](const auto &entry) {
    return (!purpose || entry.first.first == purpose) && (peer < 0 || entry.first.second == peer);
  };
  for (const auto &entry : report.sent)
    if (isWanted(entry)) {
      traffic.messages_sent += entry.second.messages;
      traffic.bytes_sent += entry.second.bytes;
    }
  for (const auto &entry : report.received)
    if (isWanted(entry)) {
      traffic.messages_received += entry.second.messages;
      traffic.bytes_received += entry.second.bytes;
    }
  return traffic;
}

int64_t cpflex_rank_peak_bytes(const cpflex_rank *rank) { return rank ? rank->rank->report().peakBytes : 0; }

cpflex_error *cpflex_ranks_trace(const cpflex_rank *const *ranks, size_t num_ranks, cpflex_buffer **json) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(json, "json"));
    std::vector<RunReport> reports;
    for (size_t i = 0; i < num_ranks; ++i) {
      CPFLEX_RETURN_IF_ERROR(required(ranks[i], "ranks"));
      reports.push_back(ranks[i]->rank->report());
    }
    giveBytes(toTraceJson(reports), json);
    return Status::ok();
  });
}

} // extern "C"
