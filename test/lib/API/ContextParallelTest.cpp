// Plans and ranks of the C++ interface: shards of ranks against one device, transports of the caller, what a run leaves
// behind, and refusals.
#include "runtime/Comm/CudaThreadsCommunicator.h"
#include "test/lib/API/RankGroup.h"
#include "test/runtime/Cuda/FakeGpu.h"

#include <cstdlib>
#include <filesystem>
#include <malloc.h>

using namespace cpflex;
using namespace cpflex::test;

namespace {

TEST(ContextParallel, ShardsOfRanksAgreeWithOneDevice) {
  RankGroupCase given(333);
  given.compute();
  for (int32_t worldSize : {1, 2, 3, 5})
    for (LayoutKind layout : {LayoutKind::HeadTail, LayoutKind::PerDocument, LayoutKind::Solved}) {
      SCOPED_TRACE(testing::Message() << worldSize << " ranks, " << toString(layout));
      ContextParallelOptions options;
      options.worldSize = worldSize;
      options.layout = layout;
      const auto plan = given.planned(options);
      ASSERT_TRUE(plan);
      std::vector<RunReport> reports;
      expectClose(given.run(plan, &reports), given.whole);
      // What was counted is what the plan says, forward and backward together, apart from sums.
      for (int32_t rank = 0; rank < worldSize; ++rank) {
        int64_t bytes = 0;
        for (const auto &[key, counter] : reports[size_t(rank)].received)
          if (payloadFromString(key.first))
            bytes += counter.bytes;
        EXPECT_EQ(bytes, plan->forward().certificate.ranks[size_t(rank)].bytesReceived +
                             plan->backward()->certificate.ranks[size_t(rank)].bytesReceived);
        EXPECT_EQ(reports[size_t(rank)].rank, rank);
        EXPECT_FALSE(reports[size_t(rank)].events.empty());
      }
    }
}

TEST(ContextParallel, EveryRotationAndALayoutOfTheCaller) {
  RankGroupCase given(200);
  given.compute();
  for (Rotation rotation : {Rotation::Ring, Rotation::AllGather, Rotation::Selective, Rotation::Ulysses}) {
    ContextParallelOptions options;
    options.worldSize = 3;
    options.rotation = rotation;
    Layout own;
    own.kind = LayoutKind::Custom;
    own.length = 200;
    own.worldSize = 3;
    own.shards = {{{{0, 30, 1}, {170, 30, 1}}}, {{{30, 70, 2}}}, {{{31, 70, 2}}}};
    options.qLayout = own;
    const auto plan = given.planned(options);
    ASSERT_TRUE(plan);
    EXPECT_EQ(plan->forward().rotation, rotation);
    EXPECT_EQ(plan->forward().kvLayout, own);
    expectClose(given.run(plan), given.whole);
  }
}

TEST(ContextParallel, AGroupMayBeAPartOfALargerJob) {
  RankGroupCase given(150, {.batch = {1, 2}, .heads = {2, 4}, .q = {}, .kv = {}});
  given.compute();
  ContextParallelOptions options;
  options.worldSize = 2;
  const auto plan = given.planned(options);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->forward().shape.qHeads, 2);
  const CallValues result = given.run(plan);
  expectClose(result, given.whole);
  EXPECT_EQ(result.dSinks[0], 0.0f);
  EXPECT_NE(result.dSinks[3], 0.0f);
}

/// A transport of the caller: here one that passes messages on to threads.
std::shared_ptr<Communicator> passedOn(ThreadsHub &hub, int32_t rank) {
  auto inner = std::make_shared<ThreadsCommunicator>(hub, rank);
  CommunicatorCallbacks callbacks;
  callbacks.rank = rank;
  callbacks.worldSize = hub.worldSize();
  callbacks.start = [inner](int64_t, const MessageGroup &group) { return inner->start(group).status(); };
  callbacks.wait = [inner, next = int64_t(0)](int64_t, double seconds) mutable {
    return inner->wait(next++, deadlineIn(seconds));
  };
  callbacks.abort = [inner](const Status &reason) { inner->abort(reason); };
  return *CallbackCommunicator::create(std::move(callbacks));
}

TEST(ContextParallel, ATransportOfTheCallerGivesTheSameBits) {
  RankGroupCase given(260);
  ContextParallelOptions options;
  options.worldSize = 3;
  const auto plan = given.planned(options);
  ASSERT_TRUE(plan);
  const CallValues threads = given.run(plan), callbacks = given.run(plan, nullptr, passedOn);
  EXPECT_EQ(callbacks.out.data, threads.out.data);
  EXPECT_EQ(callbacks.lse.data, threads.lse.data);
  EXPECT_EQ(callbacks.dQ.data, threads.dQ.data);
  EXPECT_EQ(callbacks.dK.data, threads.dK.data);
  EXPECT_EQ(callbacks.dV.data, threads.dV.data);
  EXPECT_EQ(callbacks.dSlopes, threads.dSlopes);
  EXPECT_EQ(callbacks.dSinks, threads.dSinks);
}

TEST(ContextParallel, PlansArePrintedAndShareALayoutWithOtherMasks) {
  RankGroupCase given(512);
  ContextParallelOptions options;
  options.worldSize = 4;
  const auto everything = given.loaded("all");
  auto other = buildBlockMask(*given.program, **given.program->entry("all"), *given.binding, 128, 128, 1);
  ASSERT_TRUE(other);
  options.otherMasks.push_back(std::make_shared<const BlockMask>(other->mask));
  const auto plan = given.planned(options);
  ASSERT_TRUE(plan);
  StatusOr<Schedule> again = fromText(toText(plan->forward()));
  ASSERT_TRUE(again) << again.status().message();
  EXPECT_EQ(*again, plan->forward());
  EXPECT_NE(toSvg(plan->forward(), plan->mask()).find("<svg"), std::string::npos);
  EXPECT_NE(toSummary(plan->forward()).find("rank"), std::string::npos);
  EXPECT_EQ(permutation(plan->forward().qLayout).size(), size_t(512 * plan->forward().qLayout.rows));
}

/// What a process holds: threads, open files, heap.
struct Holdings {
  int64_t threads, files, heap;
};
Holdings holdings() {
  const auto entries = [](const char *folder) {
    const auto begin = std::filesystem::directory_iterator(folder);
    return std::distance(begin, std::filesystem::directory_iterator());
  };
  return {entries("/proc/self/task"), entries("/proc/self/fd"), int64_t(mallinfo2().uordblks)};
}

TEST(ContextParallel, CreatedAndDestroyed100TimesNothingLeaks) {
  RankGroupCase given(96);
  ContextParallelOptions options;
  options.worldSize = 3;
  Holdings before{};
  for (int i = 0; i < 100; ++i) {
    given.executable = given.loaded("main");
    const auto plan = given.planned(options);
    ASSERT_TRUE(plan);
    given.run(plan);
    if (i == 19)
      before = holdings();
  }
  const Holdings after = holdings();
  EXPECT_EQ(after.threads, before.threads);
  EXPECT_EQ(after.files, before.files);
  // A run of it allocates more than this in all; 80 of them left less behind.
  EXPECT_LT(after.heap - before.heap, 200 * 1024);
}

TEST(ContextParallel, AnExitWithWorkInFlightDoesNotHang) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        RankGroupCase given(64);
        ContextParallelOptions options;
        options.worldSize = 2;
        options.rotation = Rotation::AllGather;
        const auto plan = given.planned(options);
        ThreadsHub hub(2);
        // Rank 1 never comes, so rank 0 waits for its keys.
        std::thread([&] {
          auto rank =
              RankExecutable::load(plan, std::make_shared<ThreadsCommunicator>(hub, 0), {.deadlineSeconds = 600});
          CallValues mine = given.shardOf(*plan, 0);
          (void)(*rank)->forward(mine.forward());
        }).detach();
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        std::exit(7);
      },
      testing::ExitedWithCode(7), "");
}

TEST(ContextParallel, RefusesWhatDoesNotFit) {
  RankGroupCase given(64);
  ContextParallelOptions options;
  options.worldSize = 2;
  const auto plan = given.planned(options);
  ASSERT_TRUE(plan);
  ThreadsHub hub(2), three(3);
  auto communicator = std::make_shared<ThreadsCommunicator>(hub, 0);
  const auto messageOf = [](const auto &result) { return result.status().message(); };
  EXPECT_EQ(messageOf(ContextParallelPlan::create(nullptr, options)),
            "'executable' is null; expected one of the whole call");
  EXPECT_EQ(messageOf(ContextParallelPlan::create(
                given.loaded("main", {.batch = {}, .heads = {}, .q = {0, 8}, .kv = {}}), options)),
            "the executable has queries 0 to 8 and keys 0 to 64; expected all 64 and 64, which the ranks share");
  ContextParallelOptions withNull = options;
  withNull.otherMasks.push_back(nullptr);
  EXPECT_EQ(messageOf(ContextParallelPlan::create(given.executable, withNull)),
            "one of 'otherMasks' is null; expected masks");
  EXPECT_EQ(messageOf(RankExecutable::load(nullptr, communicator)),
            "'plan' is null; a rank needs a plan and a communicator");
  EXPECT_EQ(messageOf(RankExecutable::load(plan, nullptr)),
            "'communicator' is null; a rank needs a plan and a communicator");
  EXPECT_EQ(messageOf(RankExecutable::load(plan, std::make_shared<ThreadsCommunicator>(three, 0))),
            "the plan is for 2 ranks and the communicator has 3; expected as many");
  EXPECT_EQ(messageOf(RankExecutable::load(plan, communicator, {.deadlineSeconds = 0})),
            "deadline of 0 seconds; expected a number above 0");
  EXPECT_NE(messageOf(openMpiCommunicator("/nowhere.so")).find("the MPI plugin was not found"), std::string::npos);

  auto rank = RankExecutable::load(plan, communicator, {.deadlineSeconds = 0.05});
  ASSERT_TRUE(rank) << messageOf(rank);
  CallValues mine = given.shardOf(*plan, 0);
  ForwardCallTensors forward = mine.forward();
  forward.q.shape[2] = 64;
  EXPECT_EQ((*rank)->forward(forward).message(), "'q' has shape 2x4x64x16; expected 2x4x32x16");
  forward = mine.forward();
  forward.k.data = nullptr;
  EXPECT_EQ((*rank)->forward(forward).message(), "data of 'k' is null; expected an array of 2x2x32x16 elements");
  forward = mine.forward();
  forward.rowMax = forward.lse;
  EXPECT_EQ((*rank)->forward(forward).message(), "'rowMax' is given; expected null, since ranks do not compute it");
  const Status lost = (*rank)->backward(mine.backward(given.numSlots()));
  EXPECT_EQ(lost.code(), StatusCode::DeadlineExceeded);
  EXPECT_NE(lost.message().find("from rank 1 at rank 0 in step"), std::string::npos) << lost.message();

  given.executable = given.loaded("linear", {}, CallPasses::Forward);
  const auto forwardOnly = given.planned(options);
  auto linear = RankExecutable::load(forwardOnly, communicator);
  EXPECT_EQ((*linear)->forward(mine.forward()).message(),
            "'lse' is given without softmax; expected null, since it is not defined then");
  EXPECT_EQ((*linear)->backward(mine.backward(given.numSlots())).message(),
            "the executable was loaded for forward only; expected one loaded for backward too");
  int stream = 0;
  EXPECT_EQ((*rank)->forward(mine.forward(), &stream).message(),
            "'stream' is given for a rank on the cpu; expected null");
  ASSERT_TRUE(given.binding->setVersion(1));
  EXPECT_EQ((*rank)->forward(mine.forward()).message(),
            "the binding has version 1 and the plan was made for version 0; plan again");
}

TEST(ContextParallel, RanksOnGpusRefuseWhatDoesNotFit) {
  const auto messageOf = [](const auto &result) { return result.status().message(); };
  EXPECT_EQ(messageOf(openNcclCommunicator({}, 2, 2, 0)), "rank 2 of 2; expected a rank in [0, 2)");
  EXPECT_EQ(messageOf(openNcclCommunicator({}, 0, 1, 0, -1)), "deadline of -1 seconds; expected a number above 0");
  EXPECT_EQ(messageOf(adoptNcclCommunicator(nullptr, 0)), "'ncclComm' is null; expected the caller's ncclComm_t");
  EXPECT_EQ(messageOf(openCudaThreads(0, {0})), "a group of 0 threads; expected 1 to 4096");
  EXPECT_EQ(messageOf(openCudaThreads(2, {})), "'gpus' is empty; expected the index of at least one GPU");
  if (const CudaDeviceList list = listCudaDevices(); list.devices.empty()) {
    EXPECT_EQ(openCudaThreads(2, {0}).status().code(), StatusCode::Unavailable);
    EXPECT_EQ(openNcclCommunicator({}, 0, 2, 0).status().code(), StatusCode::Unavailable);
  }

  FakeGpu gpu;
  cuda::DriverFunctions functions = *gpu.driver();
  functions.streamCreateWithPriority = [](cuda::Stream *stream, unsigned, int) {
    return *stream = nullptr, cuda::kSuccess;
  };
  functions.memPoolCreate = [](cuda::MemoryPool *pool, const cuda::MemoryPoolProperties *) {
    return *pool = nullptr, cuda::kSuccess;
  };
  functions.memPoolSetAttribute = [](cuda::MemoryPool, cuda::MemoryPoolAttribute, void *) { return cuda::kSuccess; };
  auto device = CudaDevice::open(CudaDriver::fromFunctions(functions, 13000), 0);
  ASSERT_TRUE(device) << device.status().message();
  auto port = CudaPort::open(*device);
  ASSERT_TRUE(port) << port.status().message();
  CudaThreadsHub hub(2);
  RankGroupCase given(64);
  ContextParallelOptions options;
  options.worldSize = 2;
  EXPECT_EQ(
      messageOf(RankExecutable::load(given.planned(options), std::make_shared<CudaThreadsCommunicator>(hub, 0, *port))),
      "the plan's executable computes f32; expected bf16 or f16 for ranks on GPUs");
}

} // namespace
