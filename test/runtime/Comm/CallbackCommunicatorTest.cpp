// Transports made of the caller's functions: what they are called with and what their errors say.
#include "runtime/Comm/CallbackCommunicator.h"

#include <gtest/gtest.h>

using namespace cpflex;

namespace {

/// Functions that succeed and count.
struct Calls {
  int started = 0, waited = 0, aborted = 0;
  double seconds = 0;
  Status next;
  CommunicatorCallbacks callbacks(int32_t rank, int32_t worldSize) {
    return {.rank = rank,
            .worldSize = worldSize,
            .start = [this](int64_t, const MessageGroup &) { return ++started, next; },
            .wait = [this](int64_t, double given) { return ++waited, seconds = given, next; },
            .abort = [this](const Status &) { ++aborted; }};
  }
};

TEST(CallbackCommunicator, EmptyGroupsAreNotPassedOn) {
  Calls calls;
  auto communicator = *CallbackCommunicator::create(calls.callbacks(1, 3));
  EXPECT_EQ(communicator->transport(), "callbacks");
  EXPECT_TRUE(exchange(*communicator, {0, "kv", {}, {}}, deadlineIn(1)));
  EXPECT_EQ(calls.started + calls.waited, 0);
  char byte = 0;
  EXPECT_TRUE(exchange(*communicator, {0, "kv", {{0, &byte, 1}}, {}}, deadlineIn(5)));
  EXPECT_EQ(calls.started, 1);
  EXPECT_EQ(calls.waited, 1);
  EXPECT_NEAR(calls.seconds, 5, 1);
  communicator->abort(Status::invalid("reason"));
  EXPECT_EQ(calls.aborted, 1);
}

TEST(CallbackCommunicator, ErrorsNameRankStepAndPeers) {
  Calls calls;
  auto communicator = *CallbackCommunicator::create(calls.callbacks(1, 3));
  char byte = 0;
  calls.next = Status(StatusCode::DeadlineExceeded, "too late");
  const Status status = exchange(*communicator, {4, "kv", {{0, &byte, 1}}, {{2, &byte, 1}}}, deadlineIn(1));
  EXPECT_EQ(status.code(), StatusCode::DeadlineExceeded);
  EXPECT_EQ(status.message(), "the caller's transport failed at rank 1 in step 4 (kv) with ranks [0, 2]: too late");
  EXPECT_EQ(communicator->start({2, "kv", {{3, &byte, 1}}, {}}).status().message(),
            "rank 1 exchanges with a rank that is none in step 2; expected ranks in [0, 3)");
  EXPECT_EQ(communicator->wait(9, deadlineIn(1)).message(),
            "rank 1 waits for the transport's ticket 9 out of turn; expected the oldest one");
}

TEST(CallbackCommunicator, RefusesRanksAndFunctionsThatAreNone) {
  Calls calls;
  EXPECT_EQ(CallbackCommunicator::create(calls.callbacks(3, 3)).status().message(),
            "rank 3 of a transport of 3 ranks; expected a rank in [0, 3)");
  CommunicatorCallbacks missing = calls.callbacks(0, 3);
  missing.wait = nullptr;
  EXPECT_EQ(CallbackCommunicator::create(missing).status().message(), "the transport has no function 'wait'");
  missing.start = nullptr;
  EXPECT_EQ(CallbackCommunicator::create(missing).status().message(), "the transport has no function 'start'");
}

} // namespace
