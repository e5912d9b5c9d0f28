// Does the text form come back as the same schedule, and are faults in it located?
#include "runtime/Plan/ScheduleText.h"
#include "TestMasks.h"
#include "runtime/Plan/Planner.h"
#include "runtime/Plan/VerifySchedule.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

using namespace cpflex;
using namespace cpflex::test;

namespace {

Schedule example(const TestMask &mask, Rotation rotation, Pass pass, int32_t worldSize = 2) {
  PlanRequest request;
  request.shape.batch = 2;
  request.shape.qHeads = 4;
  request.shape.kvHeads = 2;
  request.shape.qLen = mask.mask.qLen;
  request.shape.kvLen = mask.mask.kvLen;
  request.shape.type = ElementType::BF16;
  request.worldSize = worldSize;
  request.pass = pass;
  request.mask = &mask.mask;
  request.rotation = rotation;
  request.layout = LayoutKind::HeadTail;
  return *planContextParallel(request);
}

TEST(ScheduleText, ComesBackTheSame) {
  TestMask causal(MaskRule::Causal, 2, 4, 100, 100), documents(MaskRule::Document, 2, 4, 100, 100),
      cross(MaskRule::Cross, 2, 4, 100, 130);
  for (const TestMask *mask : {&causal, &documents, &cross})
    for (Rotation rotation : {Rotation::Ring, Rotation::AllGather, Rotation::Selective, Rotation::Ulysses})
      for (Pass pass : {Pass::Forward, Pass::Backward})
        for (int32_t worldSize : {1, 2, 3, 8}) {
          Schedule schedule = example(*mask, rotation, pass, worldSize);
          StatusOr<Schedule> back = fromText(toSummary(schedule) + toText(schedule));
          ASSERT_TRUE(back.isOk()) << back.status().message();
          EXPECT_EQ(*back, schedule);
        }
}

TEST(ScheduleText, ReadsLikeAListOfOperations) {
  TestMask mask(MaskRule::Causal, 2, 4, 64, 64);
  std::string text = toText(example(mask, Rotation::Ring, Pass::Forward));
  EXPECT_EQ(
      text.substr(0, text.find("cp.certificate")),
      "cp.schedule forward \"ring\" \"arrival\" ranks 2 steps 2 {\n"
      "  cp.call batch 2 q_heads 4 kv_heads 2 q_len 64 kv_len 64 head_dim 64 v_head_dim 64 type bf16\n"
      "  cp.layout q \"head-tail\" length 64 rows 1 {\n"
      "    cp.shard row 0 rank 0 [begin 0 count 16, begin 48 count 16]\n"
      "    cp.shard row 0 rank 1 [begin 16 count 32]\n"
      "  }\n"
      "  cp.layout kv same\n"
      "  cp.transfer step 0 from 0 to 1 \"kv\" bytes 32768 [owner 0 batch 0 to 2 heads 0 to 2 rows 0 to 32]\n"
      "  cp.transfer step 0 from 1 to 0 \"kv\" bytes 32768 [owner 1 batch 0 to 2 heads 0 to 2 rows 0 to 32]\n"
      "  cp.compute step 0 rank 0 batch 0 to 2 heads 0 to 4 work 6144.0 q [owner 0 rows 0 to 32] kv [owner 0 rows 0 "
      "to 16, owner 0 rows 16 to 32]\n"
      "  cp.compute step 0 rank 1 batch 0 to 2 heads 0 to 4 work 6144.0 q [owner 1 rows 0 to 32] kv [owner 1 rows 0 "
      "to 32]\n"
      "  cp.compute step 1 rank 0 batch 0 to 2 heads 0 to 4 work 6144.0 q [owner 0 rows 0 to 32] kv [owner 1 rows 0 "
      "to 32]\n"
      "  cp.compute step 1 rank 1 batch 0 to 2 heads 0 to 4 work 6144.0 q [owner 1 rows 0 to 32] kv [owner 0 rows 0 "
      "to 16, owner 0 rows 16 to 32]\n  ");
}

/// The message for the example's text with one replacement.
std::string messageFor(const std::string &from, const std::string &to) {
  TestMask mask(MaskRule::Causal, 2, 4, 64, 64);
  std::string text = toText(example(mask, Rotation::Ring, Pass::Forward));
  size_t place = text.find(from);
  EXPECT_NE(place, std::string::npos) << from;
  return fromText(text.replace(place, from.size(), to)).status().message();
}

TEST(ScheduleText, FaultsAreLocated) {
  EXPECT_EQ(messageFor("cp.schedule", "cp.plan"), "1:1: 'cp.plan' found; expected 'cp.schedule'");
  EXPECT_EQ(messageFor("forward", "sideways"), "1:13: 'sideways' found; expected 'forward' or 'backward'");
  EXPECT_EQ(messageFor("\"ring\"", "\"rung\""), "1:21: '\"rung\"' found; expected a rotation in quotes");
  EXPECT_EQ(messageFor("\"arrival\"", "arrival"), "1:28: 'arrival' found; expected a key order in quotes");
  EXPECT_EQ(messageFor("ranks 2", "ranks two"), "1:44: 'two' found; expected an integer");
  EXPECT_EQ(messageFor("ranks 2", "ranks -2"), "1:47: -2 found; expected a number of 31 bits");
  EXPECT_EQ(messageFor("type bf16", "type i8"), "2:90: 'i8' found; expected 'f32', 'bf16' or 'f16'");
  EXPECT_EQ(messageFor("row 0 rank 1", "row 0 rank 0"),
            "5:27: shard of row 0 and rank 0 found; expected shards in order of row, then rank");
  EXPECT_EQ(messageFor("work 6144.0", "work much"), "10:59: 'much' found; expected a number");
  EXPECT_EQ(messageFor("cp.load rank 1", "cp.load rank 2"), "16:20: load of rank 2 found; expected rank 1");
  TestMask mask(MaskRule::Causal, 2, 4, 64, 64);
  std::string text = toText(example(mask, Rotation::Ring, Pass::Forward));
  EXPECT_EQ(fromText(text + "more").status().message(), "21:1: 'more' found; expected the end of the text");
  EXPECT_EQ(fromText(text.substr(0, 30)).status().message(), "1:28: '\"ar' found; expected a key order in quotes");
  EXPECT_EQ(fromText("").status().message(), "1:1: end of text found; expected 'cp.schedule'");
}

TEST(ScheduleText, NoPrefixOrByteChangeCrashes) {
  TestMask mask(MaskRule::Document, 2, 4, 64, 64);
  std::string text = toText(example(mask, Rotation::Selective, Pass::Backward));
  for (size_t length = 0; length < text.size() - 2; length += 3)
    EXPECT_FALSE(fromText(text.substr(0, length)).isOk());
  std::mt19937 random(7);
  for (int trial = 0; trial < 2000; ++trial) {
    std::string changed = text;
    changed[random() % changed.size()] = "09 -[]{}\"ax"[random() % 11];
    (void)fromText(changed).isOk();
  }
}

TEST(VerifySchedule, FaultsAreNamed) {
  TestMask mask(MaskRule::Causal, 2, 4, 64, 64);
  const Schedule good = example(mask, Rotation::Ring, Pass::Forward, 3);
  auto messageOf = [&](auto &&change) {
    Schedule schedule = good;
    change(schedule);
    return verifySchedule(schedule).message();
  };
  ASSERT_TRUE(verifySchedule(good).isOk());
  EXPECT_EQ(
      messageOf([](Schedule &s) { s.shape.kvHeads = 3; }),
      "sizes of the call are out of range; expected 1 or more ranks and heads, query heads a multiple of kv heads");
  EXPECT_EQ(messageOf([](Schedule &s) { s.shape.qLen = 63; }),
            "layout of 64 tokens and 1 batch rows; expected 63 tokens and 1 or 2 batch rows");
  EXPECT_EQ(
      messageOf([](Schedule &s) { std::swap(s.transfers[0], s.transfers[1]); }),
      "the transfer of step 0 from rank 0 to rank 1 is out of order; expected transfers by step, source, destination "
      "and payload");
  EXPECT_EQ(messageOf([](Schedule &s) { s.transfers[0].destination = 0; }),
            "the transfer of step 0 from rank 0 to rank 0; expected two ranks in [0, 3)");
  EXPECT_EQ(messageOf([](Schedule &s) { s.transfers[0].sizeInBytes = 1; }).substr(0, 62),
            "the transfer of step 0 from rank 0 to rank 1 has 1 bytes; expe");
  EXPECT_EQ(messageOf([](Schedule &s) { s.transfers[0].slabs[0].owner = 9; }),
            "the transfer of step 0 from rank 0 to rank 1 has rows of rank 9; expected a rank in [0, 3)");
  EXPECT_EQ(messageOf([](Schedule &s) { s.transfers[0].slabs[0].rows.end = 99; }),
            "the transfer of step 0 from rank 0 to rank 1 has rows [0, 99) of rank 0; expected rows in [0, 21)");
  EXPECT_EQ(
      messageOf([](Schedule &s) { s.transfers[0].slabs[0].heads.end = 3; }),
      "the transfer of step 0 from rank 0 to rank 1 has heads [0, 3) and batch rows [0, 2); expected heads in [0, 2) "
      "and batch rows in [0, 2)");
  EXPECT_EQ(messageOf([](Schedule &s) { s.transfers[0].slabs[0].owner = 2; }).substr(0, 76),
            "the transfer of step 0 from rank 0 to rank 1 passes on rows [0, 21) of rank ");
  EXPECT_EQ(
      messageOf([](Schedule &s) {
        s.transfers[0].payload = Payload::DKV;
        s.transfers[0].sizeInBytes *= 2;
      }),
      "the transfer of step 0 from rank 0 to rank 1 returns results of rank 0; expected results of its destination");
  EXPECT_EQ(messageOf([](Schedule &s) { std::swap(s.computes[0], s.computes[1]); }),
            "the compute of step 0 on rank 0 is out of order; expected computes by step, rank, batch and heads");
  EXPECT_EQ(messageOf([](Schedule &s) { s.computes.back().rank = 7; }).substr(0, 32),
            "the compute of step 2 on rank 7;");
  EXPECT_EQ(messageOf([](Schedule &s) { s.computes[0].heads = {0, 3}; }),
            "the compute of step 0 on rank 0 covers heads [0, 3); expected all heads or heads of one kv head");
  EXPECT_EQ(messageOf([](Schedule &s) { s.computes[0].kv[0].owner = 1; }).substr(0, 48),
            "the compute of step 0 on rank 0 reads kv rows [0");
  EXPECT_EQ(messageOf([](Schedule &s) {
              for (Compute &compute : s.computes)
                if (compute.rank == 0)
                  compute.q[0].rows.end = 5;
            }),
            "query rows of rank 0, batch row 0 and head 0 are not all computed; expected 21 rows");
}

TEST(ScheduleJson, HoldsLoadsAndOperations) {
  TestMask mask(MaskRule::Causal, 2, 4, 64, 64);
  Schedule schedule = example(mask, Rotation::Ring, Pass::Forward);
  nlohmann::json json = nlohmann::json::parse(toJson(schedule));
  EXPECT_EQ(json["transfers"].size(), schedule.transfers.size());
  EXPECT_EQ(json["computes"].size(), schedule.computes.size());
  EXPECT_EQ(json["certificate"]["loads"][1]["received"], schedule.certificate.ranks[1].bytesReceived);
  EXPECT_EQ(json["certificate"]["max_over_mean"], 1.0);
}

TEST(ScheduleSvg, DrawsEveryTransferAndCompute) {
  TestMask mask(MaskRule::Causal, 2, 4, 64, 64);
  Schedule schedule = example(mask, Rotation::Ring, Pass::Forward);
  std::string svg = toSvg(schedule, &mask.mask);
  size_t numTitles = 0;
  for (size_t at = svg.find("<title>"); at != std::string::npos; at = svg.find("<title>", at + 1))
    ++numTitles;
  EXPECT_EQ(numTitles, schedule.transfers.size() + schedule.computes.size());
  EXPECT_EQ(svg.substr(0, 4), "<svg");
  EXPECT_NE(svg.find("ring forward on 2 ranks: 2 steps"), std::string::npos);
}

} // namespace
