// Plans and ranks of the C interface: both passes against attention in double, a transport made of C functions,
// counters, prints and refusals.
#include "test/api/AttentionCase.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

using namespace capi;

namespace {

constexpr const char *kCausal =
    "sinks: tensor[f32, H](grad=True)\n@mask\ndef causal(b, h, q, kv):\n    return q >= kv\n"
    "attention(\"main\", mask=causal, sink=sinks)\n";
constexpr int64_t kLength = 90;

struct Bound {
  AttentionCase given{CaseSizes{.qLen = kLength, .kvLen = kLength}};
  std::vector<float> sinks = {0.5f, -0.5f, 0.25f, 1.0f};
  Program program = compile(kCausal);
  Binding binding;
  Executable executable;
  Meaning meaning;

  Bound() {
    const Request wanted = request(program, given.bindSizes());
    const cpflex_array array = dense(sinks, {4});
    EXPECT_EQ(message(cpflex_bind_request_array(wanted.get(), "sinks", &array, CPFLEX_BORROW)), "");
    binding = bindAll(wanted);
    executable = load(/*has_backward=*/1);
    meaning.mask = [](int64_t, int64_t, int64_t q, int64_t kv) { return q >= kv; };
    meaning.scale = 1 / std::sqrt(double(given.sizes.headDim));
    meaning.sinks = sinks;
  }
  Executable load(int32_t hasBackward) {
    cpflex_load_options options{};
    options.head_dim = given.sizes.headDim;
    options.v_head_dim = given.sizes.vHeadDim;
    options.has_backward = hasBackward;
    options.num_threads = 1;
    cpflex_executable *loaded = nullptr;
    EXPECT_EQ(message(cpflex_load(binding.get(), nullptr, nullptr, &options, &loaded)), "");
    return Executable(loaded);
  }
};

Plan planned(const Executable &executable, const cpflex_plan_options &options) {
  cpflex_plan *plan = nullptr;
  EXPECT_EQ(message(cpflex_plan_create(executable.get(), &options, &plan)), "");
  return Plan(plan);
}

/// Copies between whole tensors [1, heads, length, columns] and a rank's shards.
struct Shards {
  const cpflex_layout *layout;
  int32_t rank;
  std::vector<float> take(std::vector<float> &whole, int64_t heads, int64_t columns) {
    std::vector<float> part(size_t(heads * cpflex_layout_shard_size(layout, rank) * columns));
    const cpflex_array from = dense(whole, {1, heads, kLength, columns}), to = array(part, heads, columns);
    EXPECT_EQ(message(cpflex_layout_shard(layout, rank, 2, &from, &to)), "");
    return part;
  }
  void put(std::vector<float> &part, std::vector<float> &whole, int64_t heads, int64_t columns) {
    const cpflex_array to = dense(whole, {1, heads, kLength, columns}), from = array(part, heads, columns);
    EXPECT_EQ(message(cpflex_layout_unshard(layout, rank, 2, &from, &to)), "");
  }
  cpflex_array array(std::vector<float> &part, int64_t heads, int64_t columns) {
    return dense(part, {1, heads, cpflex_layout_shard_size(layout, rank), columns});
  }
};

/// Both passes of one rank. Gives the rank for its counters.
Rank runRank(Bound &bound, const Plan &plan, const Communicator &communicator, std::vector<float> &dSinks) {
  cpflex_layout *given = nullptr;
  EXPECT_EQ(message(cpflex_plan_layout(plan.get(), CPFLEX_SIDE_Q, &given)), "");
  const Layout layout(given);
  Shards shards{layout.get(), cpflex_communicator_rank(communicator.get())};
  const CaseSizes &s = bound.given.sizes;
  AttentionCase &whole = bound.given;
  std::vector<float> q = shards.take(whole.q, s.heads, s.headDim), k = shards.take(whole.k, s.kvHeads, s.headDim),
                     v = shards.take(whole.v, s.kvHeads, s.vHeadDim),
                     dOut = shards.take(whole.dOut, s.heads, s.vHeadDim), dLse = shards.take(whole.dLse, s.heads, 1),
                     out(dOut.size()), lse(dLse.size()), dQ(q.size()), dK(k.size()), dV(v.size());
  const cpflex_rank_options options{.deadline_seconds = 20, .num_threads = 1, .has_times = 0};
  cpflex_rank *loaded = nullptr;
  EXPECT_EQ(message(cpflex_rank_load(plan.get(), communicator.get(), &options, &loaded)), "");
  Rank rank(loaded);
  cpflex_forward_tensors forward{};
  forward.q = shards.array(q, s.heads, s.headDim), forward.k = shards.array(k, s.kvHeads, s.headDim);
  forward.v = shards.array(v, s.kvHeads, s.vHeadDim), forward.out = shards.array(out, s.heads, s.vHeadDim);
  forward.lse = shards.array(lse, s.heads, 1);
  EXPECT_EQ(message(cpflex_rank_forward(rank.get(), &forward, nullptr)), "");
  cpflex_backward_tensors backward{};
  backward.q = forward.q, backward.k = forward.k, backward.v = forward.v, backward.out = forward.out;
  backward.lse = forward.lse, backward.d_out = shards.array(dOut, s.heads, s.vHeadDim);
  backward.d_lse = shards.array(dLse, s.heads, 1), backward.d_q = shards.array(dQ, s.heads, s.headDim);
  backward.d_k = shards.array(dK, s.kvHeads, s.headDim), backward.d_v = shards.array(dV, s.kvHeads, s.vHeadDim);
  backward.sink_gradient = dSinks.data();
  EXPECT_EQ(message(cpflex_rank_backward(rank.get(), &backward, nullptr)), "");
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  shards.put(out, whole.out, s.heads, s.vHeadDim);
  shards.put(lse, whole.lse, s.heads, 1);
  shards.put(dQ, whole.dQ, s.heads, s.headDim);
  shards.put(dK, whole.dK, s.kvHeads, s.headDim);
  shards.put(dV, whole.dV, s.kvHeads, s.vHeadDim);
  return rank;
}

void runAndCompare(Bound &bound, const Plan &plan, std::vector<Communicator> &communicators, std::vector<Rank> &ranks) {
  std::vector<std::vector<float>> dSinks(communicators.size(), std::vector<float>(4));
  ranks.resize(communicators.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < communicators.size(); ++i)
    threads.emplace_back([&, i] { ranks[i] = runRank(bound, plan, communicators[i], dSinks[i]); });
  for (std::thread &thread : threads)
    thread.join();
  const Answer expected = answer(bound.given, bound.meaning);
  EXPECT_LT(distance(bound.given.out, expected.out), kTolerance);
  EXPECT_LT(distance(bound.given.lse, expected.lse), kTolerance);
  EXPECT_LT(distance(bound.given.dQ, expected.dQ), kTolerance);
  EXPECT_LT(distance(bound.given.dK, expected.dK), kTolerance);
  EXPECT_LT(distance(bound.given.dV, expected.dV), kTolerance);
  for (const std::vector<float> &sums : dSinks)
    EXPECT_LT(distance(sums, expected.dSinks), kTolerance);
}

TEST(ContextParallelC, RanksAsThreadsAgreeWithDouble) {
  Bound bound;
  const Plan plan = planned(bound.executable, {.world_size = 3,
                                               .layout = "head-tail",
                                               .rotation = "selective",
                                               .q_layout = nullptr,
                                               .kv_layout = nullptr,
                                               .has_ascending_keys = 0,
                                               .has_free_token_counts = 0,
                                               .other_masks = nullptr,
                                               .num_other_masks = 0});
  cpflex_thread_group *made = nullptr;
  ASSERT_EQ(message(cpflex_thread_group_create(3, &made)), "");
  ThreadGroup group(made);
  std::vector<Communicator> communicators;
  for (int32_t rank = 0; rank < 3; ++rank) {
    cpflex_communicator *communicator = nullptr;
    ASSERT_EQ(message(cpflex_communicator_of_threads(group.get(), rank, &communicator)), "");
    communicators.emplace_back(communicator);
    EXPECT_EQ(cpflex_communicator_world_size(communicator), 3);
  }
  group.reset(); // communicators hold it
  std::vector<Rank> ranks;
  runAndCompare(bound, plan, communicators, ranks);
  std::vector<const cpflex_rank *> all;
  for (int32_t rank = 0; rank < 3; ++rank) {
    cpflex_rank_numbers forward{}, backward{};
    ASSERT_EQ(message(cpflex_plan_rank_numbers(plan.get(), CPFLEX_FORWARD, rank, &forward)), "");
    ASSERT_EQ(message(cpflex_plan_rank_numbers(plan.get(), CPFLEX_BACKWARD, rank, &backward)), "");
    const cpflex_traffic keys = cpflex_rank_traffic(ranks[size_t(rank)].get(), "kv", -1);
    const cpflex_traffic gradients = cpflex_rank_traffic(ranks[size_t(rank)].get(), "dkv", -1);
    EXPECT_EQ(keys.bytes_received + gradients.bytes_received, forward.bytes_received + backward.bytes_received);
    EXPECT_EQ(forward.bytes_received, forward.bytes_needed);
    EXPECT_GE(cpflex_rank_peak_bytes(ranks[size_t(rank)].get()), forward.peak_bytes);
    all.push_back(ranks[size_t(rank)].get());
  }
  cpflex_buffer *trace = nullptr;
  ASSERT_EQ(message(cpflex_ranks_trace(all.data(), all.size(), &trace)), "");
  EXPECT_NE(std::string(cpflex_buffer_bytes(Buffer(trace).get())).find("\"forward\""), std::string::npos);
}

/// Mailboxes behind a transport of C functions.
struct Post {
  std::mutex mutex;
  std::condition_variable arrived;
  std::map<std::pair<int32_t, int32_t>, std::deque<std::string>> boxes; // by source and destination
};
struct Station {
  Post *post;
  int32_t rank;
  std::map<int64_t, std::vector<cpflex_message>> awaited;
};
int32_t startMessages(void *self, int64_t ticket, int32_t, const char *, const cpflex_message *messages, size_t count,
                      char *, size_t) {
  Station &station = *static_cast<Station *>(self);
  for (size_t i = 0; i < count; ++i) {
    if (!messages[i].is_send) {
      station.awaited[ticket].push_back(messages[i]);
      continue;
    }
    std::lock_guard lock(station.post->mutex);
    station.post->boxes[{station.rank, messages[i].peer}].emplace_back(static_cast<const char *>(messages[i].data),
                                                                       size_t(messages[i].size));
  }
  station.post->arrived.notify_all();
  return 0;
}
int32_t waitForMessages(void *self, int64_t ticket, double seconds, char *text, size_t size) {
  Station &station = *static_cast<Station *>(self);
  for (const cpflex_message &message : station.awaited[ticket]) {
    std::unique_lock lock(station.post->mutex);
    auto &box = station.post->boxes[{message.peer, station.rank}];
    if (!station.post->arrived.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return !box.empty(); })) {
      std::strncpy(text, "the post is late", size - 1);
      return CPFLEX_DEADLINE_EXCEEDED;
    }
    std::memcpy(message.data, box.front().data(), size_t(message.size));
    box.pop_front();
  }
  station.awaited.erase(ticket);
  return 0;
}

TEST(ContextParallelC, ATransportOfCFunctionsCarriesTheRanks) {
  Bound bound;
  cpflex_plan_options options{};
  options.world_size = 2;
  const Plan plan = planned(bound.executable, options);
  Post post;
  std::vector<Station> stations = {{&post, 0, {}}, {&post, 1, {}}};
  std::vector<Communicator> communicators;
  for (Station &station : stations) {
    const cpflex_transport transport{.rank = station.rank,
                                     .world_size = 2,
                                     .user_data = &station,
                                     .start = startMessages,
                                     .wait = waitForMessages,
                                     .abort = nullptr};
    cpflex_communicator *communicator = nullptr;
    ASSERT_EQ(message(cpflex_communicator_of_transport(&transport, &communicator)), "");
    communicators.emplace_back(communicator);
  }
  std::vector<Rank> ranks;
  runAndCompare(bound, plan, communicators, ranks);
  cpflex_communicator_abort(communicators[0].get(), "nobody listens");

  // Alone, rank 1 hears nothing.
  const cpflex_rank_options hurried{.deadline_seconds = 0.02, .num_threads = 1, .has_times = 0},
      wrong{.deadline_seconds = 1, .num_threads = -1, .has_times = 0};
  cpflex_rank *loaded = nullptr;
  EXPECT_EQ(message(cpflex_rank_load(plan.get(), communicators[1].get(), &wrong, &loaded)),
            "'num_threads' is -1; expected 0 to 4096");
  ASSERT_EQ(message(cpflex_rank_load(plan.get(), communicators[1].get(), &hurried, &loaded)), "");
  const Rank rank(loaded);
  const CaseSizes &s = bound.given.sizes;
  cpflex_forward_tensors forward{};
  const int64_t rows = kLength / 2;
  forward.q = dense(bound.given.q, {1, s.heads, rows, s.headDim});
  forward.k = dense(bound.given.k, {1, s.kvHeads, rows, s.headDim});
  forward.v = dense(bound.given.v, {1, s.kvHeads, rows, s.vHeadDim});
  forward.out = dense(bound.given.out, {1, s.heads, rows, s.vHeadDim});
  const std::string late = message(cpflex_rank_forward(rank.get(), &forward, nullptr));
  EXPECT_NE(late.find("the caller's transport failed at rank 1 in step 0"), std::string::npos) << late;
  EXPECT_NE(late.find("the post is late"), std::string::npos) << late;
}

TEST(ContextParallelC, ARankWithoutTokensNeedsNoMemory) {
  Bound bound;
  cpflex_load_options load{};
  load.dtype = CPFLEX_BF16;
  load.head_dim = bound.given.sizes.headDim;
  load.v_head_dim = bound.given.sizes.vHeadDim;
  load.num_threads = 1;
  load.has_backward = 1;
  cpflex_executable *loaded = nullptr;
  ASSERT_EQ(message(cpflex_load(bound.binding.get(), nullptr, nullptr, &load, &loaded)), "");
  const Executable executable(loaded);
  std::vector<int64_t> positions(kLength);
  for (int64_t i = 0; i < kLength; ++i)
    positions[size_t(i)] = i;
  const int64_t sizes[] = {kLength, 0};
  const cpflex_array owned = dense(positions, {kLength});
  cpflex_layout *layout = nullptr;
  ASSERT_EQ(message(cpflex_layout_from_permutation(&owned, sizes, 2, &layout)), "");
  const Layout own(layout);
  cpflex_plan_options options{};
  options.world_size = 2;
  options.q_layout = own.get();
  const Plan plan = planned(executable, options);
  cpflex_thread_group *made = nullptr;
  ASSERT_EQ(message(cpflex_thread_group_create(2, &made)), "");
  const ThreadGroup group(made);
  cpflex_communicator *communicator = nullptr;
  ASSERT_EQ(message(cpflex_communicator_of_threads(group.get(), 1, &communicator)), "");
  const Communicator second(communicator);
  cpflex_rank *made_rank = nullptr;
  ASSERT_EQ(message(cpflex_rank_load(plan.get(), second.get(), nullptr, &made_rank)), "");
  const Rank rank(made_rank);
  const cpflex_forward_tensors forward{};
  EXPECT_EQ(message(cpflex_rank_forward(rank.get(), &forward, nullptr)), "");
  EXPECT_EQ(cpflex_rank_device_bytes(rank.get()), 0) << "on the CPU";
  const cpflex_backward_tensors backward{};
  EXPECT_EQ(message(cpflex_rank_backward(rank.get(), &backward, nullptr)), "");
}

TEST(ContextParallelC, APlanIsTold) {
  Bound bound;
  cpflex_plan_options options{};
  options.world_size = 4;
  options.has_ascending_keys = 1;
  options.rotation = "all-gather";
  const Plan plan = planned(bound.executable, options);
  cpflex_plan_numbers numbers{};
  ASSERT_EQ(message(cpflex_plan_numbers_of(plan.get(), CPFLEX_FORWARD, &numbers)), "");
  EXPECT_STREQ(numbers.rotation, "all-gather");
  EXPECT_EQ(numbers.world_size, 4);
  EXPECT_GE(numbers.largest_work, numbers.mean_work);
  EXPECT_GT(numbers.num_transfers, 0);
  for (auto [format, expected] :
       {std::pair("text", "cp.schedule forward"), {"json", "{"}, {"svg", "<svg"}, {"summary", "rank"}}) {
    cpflex_buffer *text = nullptr;
    ASSERT_EQ(message(cpflex_plan_print(plan.get(), CPFLEX_FORWARD, format, &text)), "");
    EXPECT_NE(std::string(cpflex_buffer_bytes(Buffer(text).get())).find(expected), std::string::npos);
  }
  // Another call shares its layout.
  cpflex_layout *layout = nullptr;
  ASSERT_EQ(message(cpflex_plan_layout(plan.get(), CPFLEX_SIDE_KV, &layout)), "");
  const Layout owned(layout);
  options.q_layout = owned.get();
  EXPECT_NE(planned(bound.executable, options), nullptr);
}

TEST(ContextParallelC, RefusesWhatDoesNotFit) {
  Bound bound;
  cpflex_plan_options options{};
  options.world_size = 2;
  cpflex_plan *made = nullptr;
  options.layout = "zigzag";
  EXPECT_EQ(message(cpflex_plan_create(bound.executable.get(), &options, &made)),
            "'layout' is 'zigzag'; expected contiguous, head-tail, striped, per-document, ptrr, solved or auto");
  options.layout = nullptr;
  options.rotation = "spin";
  EXPECT_EQ(message(cpflex_plan_create(bound.executable.get(), &options, &made)),
            "'rotation' is 'spin'; expected ring, all-gather, selective, ulysses or auto");
  options.rotation = nullptr;
  EXPECT_EQ(message(cpflex_plan_create(nullptr, &options, &made)), "'executable' is null; expected a value");
  const Executable forwardOnly = bound.load(/*has_backward=*/0);
  const Plan plan = planned(forwardOnly, options);
  cpflex_plan_numbers numbers{};
  EXPECT_EQ(message(cpflex_plan_numbers_of(plan.get(), CPFLEX_BACKWARD, &numbers)),
            "the plan has no backward pass; expected an executable loaded with has_backward");
  cpflex_rank_numbers rankNumbers{};
  EXPECT_EQ(message(cpflex_plan_rank_numbers(plan.get(), CPFLEX_FORWARD, 2, &rankNumbers)),
            "rank is 2; expected 0 to 1");
  cpflex_buffer *text = nullptr;
  EXPECT_EQ(message(cpflex_plan_print(plan.get(), CPFLEX_FORWARD, "pdf", &text)),
            "format of a plan is 'pdf'; expected text, summary, json or svg");
  cpflex_thread_group *group = nullptr;
  EXPECT_EQ(message(cpflex_thread_group_create(0, &group)), "a group of 0 threads; expected 1 to 4096");
  ASSERT_EQ(message(cpflex_thread_group_create(2, &group)), "");
  const ThreadGroup owned(group);
  cpflex_communicator *communicator = nullptr;
  EXPECT_EQ(message(cpflex_communicator_of_threads(group, 2, &communicator)), "rank is 2; expected 0 to 1");
  const cpflex_transport none{};
  EXPECT_EQ(message(cpflex_communicator_of_transport(&none, &communicator)),
            "rank 0 of a transport of 0 ranks; expected a rank in [0, 0)");
  cpflex_rank *rank = nullptr;
  EXPECT_EQ(message(cpflex_rank_load(plan.get(), nullptr, nullptr, &rank)), "'communicator' is null; expected a value");
  EXPECT_EQ(message(cpflex_nccl_id(nullptr)), "'id' is null; expected a value");
  const uint8_t id[CPFLEX_NCCL_ID_BYTES] = {};
  EXPECT_EQ(message(cpflex_communicator_of_nccl(id, 3, 2, 0, 0, &communicator)),
            "rank 3 of 2; expected a rank in [0, 2)");
  EXPECT_EQ(message(cpflex_communicator_of_nccl(id, 0, 2, 0, -1, &communicator)),
            "deadline of -1 seconds; expected a number above 0");
  EXPECT_EQ(message(cpflex_communicator_of_nccl_comm(nullptr, 0, 0, &communicator)),
            "'nccl_comm' is null; expected a value");
  const int32_t gpus[] = {0};
  cpflex_communicator *communicators[2] = {};
  EXPECT_EQ(message(cpflex_communicators_of_cuda_threads(2, gpus, 0, communicators)),
            "'gpus' is empty; expected the index of at least one GPU");
}

} // namespace
