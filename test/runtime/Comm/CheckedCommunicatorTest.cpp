// Are repeated messages skipped, and lost and damaged ones found?
#include "runtime/Comm/CheckedCommunicator.h"
#include "runtime/Comm/FaultyCommunicator.h"
#include "runtime/Comm/ThreadsCommunicator.h"

#include <gtest/gtest.h>

using namespace cpflex;

namespace {

/// Sends 1, 2, 3 from rank 1 to rank 0, one fault on the way, and gives rank 0's status; `values` are what arrived.
Status receiveThree(const Fault &fault, std::vector<int32_t> &values) {
  ThreadsHub hub(2);
  ThreadsCommunicator senderInner(hub, 1), receiverInner(hub, 0);
  FaultyCommunicator faulty(senderInner, {fault});
  CheckedCommunicator sender(faulty), receiver(receiverInner);
  for (int32_t value : {1, 2, 3})
    (void)exchange(sender, {value, "kv", {{0, &value, 4}}, {}}, deadlineIn(1));
  for (int32_t i = 0; i < 3; ++i) {
    int32_t value = 0;
    CPFLEX_RETURN_IF_ERROR(exchange(receiver, {i + 1, "kv", {}, {{1, &value, 4}}}, deadlineIn(0.02)));
    values.push_back(value);
  }
  return Status::ok();
}

TEST(CheckedCommunicator, SkipsRepeatedMessages) {
  std::vector<int32_t> values;
  EXPECT_TRUE(receiveThree({FaultKind::Duplicate, 1, 1}, values).isOk());
  EXPECT_EQ(values, (std::vector<int32_t>{1, 2, 3}));
}

TEST(CheckedCommunicator, FindsLostMessages) {
  std::vector<int32_t> values;
  Status status = receiveThree({FaultKind::Drop, 1, 1}, values);
  EXPECT_EQ(status.code(), StatusCode::DataLoss);
  EXPECT_EQ(status.message(),
            "message from rank 1 at rank 0 in step 2 (kv) has number 2; expected 1: a message was lost");
}

TEST(CheckedCommunicator, FindsDamagedMessages) {
  for (uint64_t bit = 0; bit < 160; ++bit) {
    std::vector<int32_t> values;
    Status status = receiveThree({FaultKind::Corrupt, 1, 2, 0.0, bit}, values);
    EXPECT_EQ(status.message(), "message from rank 1 at rank 0 in step 3 (kv) is damaged; expected its checksum");
    EXPECT_EQ(values, (std::vector<int32_t>{1, 2}));
  }
}

TEST(CheckedCommunicator, LateMessagesAreRightAndDeadRanksAreNoticed) {
  std::vector<int32_t> values;
  EXPECT_TRUE(receiveThree({FaultKind::Delay, 1, 0, 0.01}, values).isOk());
  values.clear();
  EXPECT_EQ(receiveThree({FaultKind::Kill, 1, 1}, values).code(), StatusCode::DeadlineExceeded);
  EXPECT_EQ(values, (std::vector<int32_t>{1}));
}

TEST(CheckedCommunicator, WaitsInTurnOnly) {
  ThreadsHub hub(1);
  ThreadsCommunicator inner(hub, 0);
  CheckedCommunicator checked(inner);
  EXPECT_EQ(checked.wait(4, deadlineIn(1)).message(),
            "rank 0 waits for checked ticket 4 out of turn; expected the oldest one");
}

TEST(FaultyCommunicator, AKilledRankStaysDead) {
  ThreadsHub hub(2);
  ThreadsCommunicator inner(hub, 0);
  FaultyCommunicator faulty(inner, {{FaultKind::Kill, 0, 0}});
  int32_t value = 0;
  const std::string expected = "rank 0 was killed at operation 0 in step 5";
  EXPECT_EQ(exchange(faulty, {5, "kv", {{1, &value, 4}}, {}}, deadlineIn(1)).message(), expected);
  EXPECT_EQ(faulty.start({6, "kv", {}, {}}).status().message(), expected);
  EXPECT_TRUE(faulty.isKilled());
}

} // namespace
