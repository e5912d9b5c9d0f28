// Do ranks in threads exchange what they mean to, and does a missing message end in an error that says whose it was?
#include "runtime/Comm/ThreadsCommunicator.h"

#include <gtest/gtest.h>

#include <limits>

using namespace cpflex;

namespace {

TEST(ThreadsCommunicator, PassesMessagesAroundARing) {
  std::vector<int32_t> results(5, -1);
  std::vector<Status> statuses = runRanksInThreads(5, [&](Communicator &communicator) {
    int32_t value = communicator.rank(), arrived = 0;
    for (int32_t hop = 0; hop < 4; ++hop) {
      MessageGroup group{
          hop, "ring", {{(communicator.rank() + 1) % 5, &value, 4}}, {{(communicator.rank() + 4) % 5, &arrived, 4}}};
      CPFLEX_RETURN_IF_ERROR(exchange(communicator, group, deadlineIn(10)));
      value = arrived;
    }
    results[size_t(communicator.rank())] = value;
    return Status::ok();
  });
  EXPECT_TRUE(firstFailure(statuses).isOk());
  EXPECT_EQ(results, (std::vector<int32_t>{1, 2, 3, 4, 0}));
}

TEST(ThreadsCommunicator, SumsInRankOrderOnAllRanks) {
  // 1e8 + 1 - 1e8 depends on the order; rank order gives 0.
  const float values[3] = {1e8f, 1.0f, -1e8f};
  std::vector<float> sums(3, -1.0f);
  std::vector<Status> statuses = runRanksInThreads(3, [&](Communicator &communicator) {
    float value = values[communicator.rank()];
    CPFLEX_RETURN_IF_ERROR(
        sumOverRanks(communicator.rank(), communicator.worldSize(), &value, 1, "sum",
                     [&](const MessageGroup &group) { return exchange(communicator, group, deadlineIn(10)); }));
    sums[size_t(communicator.rank())] = value;
    return Status::ok();
  });
  EXPECT_TRUE(firstFailure(statuses).isOk());
  EXPECT_EQ(sums, (std::vector<float>{0.0f, 0.0f, 0.0f}));
}

TEST(ThreadsCommunicator, NamesThePeerThatSentNothing) {
  ThreadsHub hub(2);
  ThreadsCommunicator communicator(hub, 0);
  int32_t value = 0;
  Status status = exchange(communicator, {3, "kv", {}, {{1, &value, 4}}}, deadlineIn(0.01));
  EXPECT_EQ(status.code(), StatusCode::DeadlineExceeded);
  EXPECT_EQ(status.message(), "no message from rank 1 at rank 0 in step 3 (kv) before the deadline; expected 4 bytes");
}

TEST(ThreadsCommunicator, NamesAMessageOfAnotherSize) {
  ThreadsHub hub(2);
  ThreadsCommunicator sender(hub, 1), receiver(hub, 0);
  int32_t value = 0;
  ASSERT_TRUE(exchange(sender, {0, "kv", {{0, &value, 2}}, {}}, deadlineIn(1)).isOk());
  Status status = exchange(receiver, {0, "kv", {}, {{1, &value, 4}}}, deadlineIn(1));
  EXPECT_EQ(status.code(), StatusCode::DataLoss);
  EXPECT_EQ(status.message(), "a message of 2 bytes from rank 1 at rank 0 in step 0 (kv); expected 4 bytes");
}

TEST(ThreadsCommunicator, ARankThatGivesUpEndsTheWaitsOfOthers) {
  std::vector<Status> statuses = runRanksInThreads(3, [&](Communicator &communicator) {
    int32_t value = 0;
    if (communicator.rank() == 2)
      return Status::unavailable("out of paper");
    return exchange(communicator, {1, "kv", {}, {{2, &value, 4}}}, deadlineIn(60));
  });
  EXPECT_EQ(firstFailure(statuses).message(), "out of paper");
  EXPECT_EQ(statuses[0].message(), "rank 0 stopped waiting for rank 2 in step 1 (kv): rank 2 gave up: out of paper");
}

TEST(ThreadsCommunicator, WrongPeersAndTicketsAreNamed) {
  ThreadsHub hub(2);
  ThreadsCommunicator communicator(hub, 0);
  int32_t value = 0;
  EXPECT_EQ(exchange(communicator, {0, "kv", {{2, &value, 4}}, {}}, deadlineIn(1)).message(),
            "rank 0 sends to rank 2 in step 0; expected a rank in [0, 2)");
  EXPECT_EQ(exchange(communicator, {0, "kv", {}, {{-1, &value, 4}}}, deadlineIn(1)).message(),
            "rank 0 receives from rank -1 in step 0; expected a rank in [0, 2)");
  EXPECT_EQ(communicator.wait(7, deadlineIn(1)).message(),
            "rank 0 waits for ticket 7 out of turn; expected the oldest one");
}

TEST(Deadline, IsAheadHoweverLongTheWait) {
  for (double seconds : {60.0, 1e12, 1e300, std::numeric_limits<double>::infinity()})
    EXPECT_GT(deadlineIn(seconds) - std::chrono::steady_clock::now(), std::chrono::seconds(50)) << seconds;
}

TEST(ThreadsCommunicator, IsMadeAndEndedAHundredTimes) {
  for (int round = 0; round < 100; ++round)
    EXPECT_TRUE(firstFailure(runRanksInThreads(4, [](Communicator &) { return Status::ok(); })).isOk());
}

} // namespace
