// Do schedules hold together, move no more than they must, and say truly what they cost?
#include "runtime/Plan/Planner.h"
#include "TestMasks.h"
#include "runtime/Plan/Certificate.h"
#include "runtime/Plan/Layouts.h"
#include "runtime/Plan/Simulator.h"
#include "runtime/Plan/SolvedLayout.h"
#include "runtime/Plan/VerifySchedule.h"

#include <gtest/gtest.h>
#include <set>

using namespace cpflex;
using namespace cpflex::test;

namespace {

PlanRequest requestFor(const TestMask &mask, int32_t worldSize, int64_t batch = 1) {
  PlanRequest request;
  request.shape.batch = batch;
  request.shape.qHeads = 4;
  request.shape.kvHeads = 2;
  request.shape.qLen = mask.mask.qLen;
  request.shape.kvLen = mask.mask.kvLen;
  request.shape.headDim = 16;
  request.shape.vHeadDim = 8;
  request.worldSize = worldSize;
  request.mask = &mask.mask;
  request.functions = &mask.functions;
  request.bindings = &mask.bindings;
  request.documentOffsets = mask.offsets;
  return request;
}

int64_t count(const Schedule &schedule, Payload payload, int32_t source) {
  return std::count_if(schedule.transfers.begin(), schedule.transfers.end(), [&](const Transfer &transfer) {
    return transfer.payload == payload && transfer.source == source;
  });
}

TEST(Planner, EveryLayoutAndRotationGivesAScheduleThatHoldsTogether) {
  for (MaskRule rule :
       {MaskRule::Causal, MaskRule::Document, MaskRule::Window, MaskRule::PerHead, MaskRule::Holes, MaskRule::Cross}) {
    TestMask mask(rule, 2, 4, 150, rule == MaskRule::Cross ? 211 : 150, 32);
    for (int32_t worldSize : {1, 2, 3, 5, 8})
      for (LayoutKind layout : {LayoutKind::Contiguous, LayoutKind::HeadTail, LayoutKind::Striped,
                                LayoutKind::PerDocument, LayoutKind::Ptrr, LayoutKind::Solved})
        for (Rotation rotation : {Rotation::Ring, Rotation::AllGather, Rotation::Selective, Rotation::Ulysses})
          for (NeedPrecision precision : {NeedPrecision::Tile, NeedPrecision::Token}) {
            PlanRequest request = requestFor(mask, worldSize, 2);
            if (layout == LayoutKind::PerDocument && rule == MaskRule::Cross)
              continue; // documents are those of square masks
            request.layout = layout;
            request.rotation = rotation;
            request.needPrecision = precision;
            StatusOr<Schedule> forward = planContextParallel(request);
            ASSERT_TRUE(forward.isOk()) << forward.status().message();
            StatusOr<Schedule> backward = planBackward(request, *forward);
            ASSERT_TRUE(backward.isOk()) << backward.status().message();
            for (const Schedule *schedule : {&*forward, &*backward}) {
              Status status = verifySchedule(*schedule);
              ASSERT_TRUE(status.isOk()) << status.message();
              std::set<int32_t> used;
              for (const Transfer &transfer : schedule->transfers)
                used.insert(transfer.step);
              for (const Compute &compute : schedule->computes)
                used.insert(compute.step);
              EXPECT_EQ(int32_t(used.size()), schedule->numSteps);
              for (const RankLoad &load : schedule->certificate.ranks) {
                EXPECT_GE(load.work, 0.0);
                if (rotation == Rotation::Selective)
                  EXPECT_EQ(load.bytesReceived, load.bytesNeeded);
                else if (rotation != Rotation::Ulysses)
                  EXPECT_GE(load.bytesReceived, load.bytesNeeded);
              }
            }
          }
  }
}

TEST(Planner, DenseRingExchangesAsOftenAsPyTorch) {
  TestMask mask(MaskRule::Full, 1, 4, 256, 256);
  for (int32_t worldSize : {2, 3, 4, 8}) {
    PlanRequest request = requestFor(mask, worldSize);
    request.layout = LayoutKind::HeadTail;
    request.rotation = Rotation::Ring;
    Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    for (int32_t rank = 0; rank < worldSize; ++rank) {
      EXPECT_EQ(count(forward, Payload::KV, rank), worldSize - 1);
      EXPECT_EQ(count(backward, Payload::KV, rank), worldSize - 1);
      EXPECT_LE(count(backward, Payload::DKV, rank), worldSize);
      EXPECT_GT(count(backward, Payload::DKV, rank), 0);
    }
    EXPECT_EQ(forward.numSteps, worldSize);
  }
}

TEST(Planner, StepsThatNobodyNeedsDoNotExist) {
  TestMask mask(MaskRule::Window, 1, 4, 512, 512);
  PlanRequest request = requestFor(mask, 8);
  request.layout = LayoutKind::Contiguous;
  request.rotation = Rotation::Ring;
  Schedule schedule = *planContextParallel(request);
  EXPECT_EQ(schedule.numSteps, 2);
  EXPECT_EQ(schedule.transfers.size(), 7u);
  // Documents that end at the borders of shards need no transfer at all.
  TestMask documents(MaskRule::Document, 1, 4, 512, 512, 32, 1);
  std::fill(documents.ids.begin() + 256, documents.ids.end(), 1);
  BlockMask blocks = documents.mask;
  TileRows &rows = blocks.rowSets[0];
  rows = {};
  rows.rowBegin = {0};
  for (int32_t tile = 0; tile < 16; ++tile) {
    rows.runs.push_back({tile / 8 * 8, tile + 1, TileClass::Partial, 0});
    rows.rowBegin.push_back(tile + 1);
  }
  request = requestFor(documents, 2);
  request.mask = &blocks;
  request.layout = LayoutKind::Contiguous;
  for (Rotation rotation : {Rotation::Ring, Rotation::Selective, Rotation::AllGather}) {
    request.rotation = rotation;
    Schedule none = *planContextParallel(request);
    EXPECT_EQ(none.numSteps, 1);
    EXPECT_TRUE(none.transfers.empty());
  }
}

TEST(Planner, WithoutQueriesNothingIsSent) {
  TestMask mask(MaskRule::Causal, 1, 4, 0, 64);
  PlanRequest request = requestFor(mask, 5);
  for (Rotation rotation : {Rotation::Ring, Rotation::Selective, Rotation::AllGather, Rotation::Ulysses}) {
    request.rotation = rotation;
    const Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    for (const Schedule *schedule : {&forward, &backward}) {
      EXPECT_TRUE(schedule->transfers.empty()) << toString(rotation);
      EXPECT_TRUE(schedule->computes.empty()) << toString(rotation);
    }
  }
}

TEST(Planner, CausalStepsAreThoseOfPyTorch) {
  // Without balance rank 0 idles in the second step; with head-tail both ranks compute in both.
  TestMask mask(MaskRule::Causal, 1, 4, 128, 128, 16);
  PlanRequest request = requestFor(mask, 2);
  request.rotation = Rotation::Ring;
  request.layout = LayoutKind::Contiguous;
  auto ranksOfStep = [](const Schedule &schedule, int32_t step) {
    std::set<int32_t> ranks;
    for (const Compute &compute : schedule.computes)
      if (compute.step == step)
        ranks.insert(compute.rank);
    return ranks;
  };
  Schedule plain = *planContextParallel(request);
  EXPECT_EQ(ranksOfStep(plain, 0), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(ranksOfStep(plain, 1), (std::set<int32_t>{1}));
  request.layout = LayoutKind::HeadTail;
  Schedule balanced = *planContextParallel(request);
  EXPECT_EQ(ranksOfStep(balanced, 1), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(balanced.certificate.ranks[0].work, balanced.certificate.ranks[1].work);
}

TEST(Planner, SolvedAnswersContiguousForWindowsAndBalancesCausal) {
  TestMask window(MaskRule::Window, 1, 4, 4096, 4096, 128);
  PlanRequest request = requestFor(window, 4);
  request.layout = LayoutKind::Solved;
  EXPECT_EQ(planContextParallel(request)->qLayout.kind, LayoutKind::Contiguous);
  TestMask causal(MaskRule::Causal, 1, 4, 4096, 4096, 128);
  request = requestFor(causal, 4);
  request.layout = LayoutKind::Solved;
  Schedule schedule = *planContextParallel(request);
  double total = 0.0, most = 0.0;
  for (const RankLoad &load : schedule.certificate.ranks) {
    total += load.work;
    most = std::max(most, load.work);
  }
  EXPECT_LE(most * 4 / total, 1.06);
  EXPECT_GE(most, schedule.certificate.workBound);
}

TEST(Planner, FreeTokenCountsAllowUnevenShards) {
  TestMask causal(MaskRule::Causal, 1, 4, 2048, 2048, 64);
  PlanRequest request = requestFor(causal, 4);
  request.layout = LayoutKind::Solved;
  request.tokenCounts = TokenCounts::Free;
  Schedule schedule = *planContextParallel(request);
  EXPECT_TRUE(verifySchedule(schedule).isOk());
  EXPECT_GT(contiguousByWork(tileWork(request, causal.mask)[0], 64, 2048, 4).shardSize(0), 2048 / 4);
}

TEST(Planner, BoundsHoldForEveryLayout) {
  TestMask mask(MaskRule::Document, 1, 4, 640, 640, 32, 3);
  for (LayoutKind layout : {LayoutKind::Contiguous, LayoutKind::HeadTail, LayoutKind::Striped, LayoutKind::PerDocument,
                            LayoutKind::Ptrr, LayoutKind::Solved})
    for (int32_t worldSize : {2, 4, 7}) {
      PlanRequest request = requestFor(mask, worldSize);
      request.layout = layout;
      request.rotation = Rotation::Selective;
      Schedule schedule = *planContextParallel(request);
      int64_t total = 0, worst = 0;
      double most = 0.0;
      for (const RankLoad &load : schedule.certificate.ranks) {
        total += load.bytesReceived;
        worst = std::max(worst, load.bytesReceived);
        most = std::max(most, load.work);
      }
      EXPECT_LE(schedule.certificate.receivedBound, total);
      EXPECT_LE(schedule.certificate.receivedBoundWorst, worst);
      EXPECT_LE(schedule.certificate.workBound, most * 1.000001);
    }
}

TEST(Planner, SeveralMasksShareOneLayout) {
  TestMask causal(MaskRule::Causal, 1, 4, 1024, 1024, 64), window(MaskRule::Window, 1, 4, 1024, 1024, 64);
  PlanRequest request = requestFor(window, 4);
  request.otherMasks = {&causal.mask};
  request.layout = LayoutKind::Solved;
  // Alone the window stays contiguous; beside a causal mask that would be unbalanced.
  EXPECT_NE(planContextParallel(request)->qLayout.kind, LayoutKind::Contiguous);
}

TEST(Planner, SimulatedTimeGrowsWithSlowerLinks) {
  TestMask mask(MaskRule::Full, 1, 4, 256, 256);
  PlanRequest request = requestFor(mask, 4);
  request.rotation = Rotation::Selective;
  Schedule schedule = *planContextParallel(request);
  CostModel slow;
  slow.bytesPerSecond = 1e6;
  Simulation fast = simulate(schedule, CostModel()), late = simulate(schedule, slow);
  EXPECT_LT(fast.seconds, late.seconds);
  EXPECT_EQ(late.events.size(), schedule.transfers.size() + schedule.computes.size());
  EXPECT_GE(late.exposedSeconds[0], fast.exposedSeconds[0]);
}

TEST(Planner, RequestFaultsAreNamed) {
  TestMask mask(MaskRule::Causal, 1, 4, 64, 64);
  auto messageOf = [&](auto &&change) {
    PlanRequest request = requestFor(mask, 2);
    change(request);
    return planContextParallel(request).status().message();
  };
  EXPECT_EQ(messageOf([](PlanRequest &r) { r.worldSize = 0; }), "world size is 0; expected 1 or more");
  EXPECT_EQ(messageOf([](PlanRequest &r) { r.shape.batch = -1; }),
            "batch -1, q length 64 and kv length 64; expected 0 or more");
  EXPECT_EQ(messageOf([](PlanRequest &r) { r.shape.kvHeads = 3; }),
            "4 query heads for 3 kv heads; expected a multiple");
  EXPECT_EQ(messageOf([](PlanRequest &r) { r.shape.headDim = 0; }), "head sizes 0 and 8; expected 1 or more");
  EXPECT_EQ(messageOf([](PlanRequest &r) { r.shape.type = ElementType::I8; }),
            "tensors of type 'i8'; expected f32, bf16 or f16");
  EXPECT_EQ(messageOf([](PlanRequest &r) {
              r.needPrecision = NeedPrecision::Token;
              r.functions = nullptr;
            }),
            "need sets at token precision without 'evaluateTile'; expected the mask's host function");
  EXPECT_EQ(messageOf([](PlanRequest &r) {
              r.keyOrder = KeyOrder::Ascending;
              r.rotation = Rotation::Ring;
            }),
            "key order 'ascending' with rotation 'ring'; expected 'all-gather', 'selective' or 'ulysses'");
  EXPECT_EQ(messageOf([](PlanRequest &r) { r.shape.qLen = 65; }),
            "a mask over 64 x 64 positions for a call over 65 x 64; expected the same lengths");
  BlockMask twoRows = mask.mask;
  twoRows.batch = 2;
  twoRows.rowSetOf = {0, 0};
  EXPECT_EQ(messageOf([&](PlanRequest &r) { r.mask = &twoRows; }),
            "a mask for 2 batch rows and 1 heads in a call with 1 and 4; expected the same or 1");
  TestMask fine(MaskRule::Causal, 1, 4, 64, 64, 16);
  EXPECT_EQ(messageOf([&](PlanRequest &r) { r.otherMasks = {&fine.mask}; }),
            "masks with tiles of 32 and 16 rows share a layout; expected equal tiles");
  EXPECT_EQ(messageOf([](PlanRequest &r) { r.qLayout = contiguousLayout(60, 2); }),
            "'q' layout of 60 tokens on 2 ranks; expected 64 tokens on 2 ranks");
  EXPECT_EQ(messageOf([](PlanRequest &r) {
              r.qLayout = contiguousLayout(64, 2);
              r.qLayout->rows = 2;
            }),
            "'q' layout with 2 batch rows for 1; expected as many, or 1");
  EXPECT_EQ(messageOf([](PlanRequest &r) { r.layout = LayoutKind::Custom; }),
            "layout 'custom' without shards; expected the layout itself in 'qLayout'");
}

} // namespace
