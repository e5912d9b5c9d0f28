// Do ranks together compute what one device computes, forward and backward, under every layout and rotation?
#include "RankCase.h"
#include "runtime/Comm/ThreadsCommunicator.h"

#include <map>
#include <nlohmann/json.hpp>

using namespace cpflex;
using namespace cpflex::test;

namespace {

constexpr LayoutKind kLayouts[] = {LayoutKind::Contiguous,  LayoutKind::HeadTail, LayoutKind::Striped,
                                   LayoutKind::PerDocument, LayoutKind::Ptrr,     LayoutKind::Solved};
constexpr Rotation kRotations[] = {Rotation::Ring, Rotation::AllGather, Rotation::Selective, Rotation::Ulysses};

TEST(Executor, CausalMasksUnderEveryLayoutAndRotation) {
  RankCase each(MaskRule::Causal, shapeOf(1, 4, 2, 300, 300));
  each.computeReference();
  for (LayoutKind layout : kLayouts)
    for (Rotation rotation : kRotations)
      for (int32_t worldSize : {2, 3}) {
        SCOPED_TRACE(std::string(toString(layout)) + " " + std::string(toString(rotation)));
        PlanRequest request = each.request(worldSize);
        request.layout = layout;
        request.rotation = rotation;
        each.expectRight(request);
      }
}

TEST(Executor, DocumentMasksThatDifferByBatchRow) {
  // The grid of PyTorch's document test, and odd lengths.
  for (int64_t batch : {2, 4, 8})
    for (int64_t length : {512, 259}) {
      RankCase each(MaskRule::Document, shapeOf(batch, 2, 1, length, length));
      each.computeReference();
      for (LayoutKind layout : kLayouts) {
        SCOPED_TRACE(std::string(toString(layout)) + " " + std::to_string(batch) + " " + std::to_string(length));
        PlanRequest request = each.request(2);
        request.layout = layout;
        request.rotation = layout == LayoutKind::HeadTail ? Rotation::Ring : Rotation::Selective;
        each.expectRight(request);
      }
    }
}

TEST(Executor, EveryNumberOfRanks) {
  RankCase each(MaskRule::Document, shapeOf(2, 4, 2, 203, 203), /*hasScore=*/true);
  each.computeReference();
  for (int32_t worldSize = 1; worldSize <= 8; ++worldSize)
    for (Rotation rotation : kRotations) {
      SCOPED_TRACE(worldSize);
      PlanRequest request = each.request(worldSize);
      request.layout = LayoutKind::HeadTail;
      request.rotation = rotation;
      each.expectRight(request);
    }
}

TEST(Executor, MoreRanksThanTokensOrHeads) {
  RankCase each(MaskRule::Causal, shapeOf(1, 2, 1, 5, 5));
  each.computeReference();
  for (Rotation rotation : kRotations) {
    PlanRequest request = each.request(8);
    request.layout = LayoutKind::Contiguous;
    request.rotation = rotation;
    each.expectRight(request);
  }
}

TEST(Executor, OtherMasksTypesAndExtras) {
  struct Variant {
    MaskRule rule;
    CallShape shape;
    bool hasScore, hasSink;
  };
  const Variant variants[] = {
      {MaskRule::Full, shapeOf(1, 4, 4, 190, 190), false, false},
      {MaskRule::Window, shapeOf(2, 4, 2, 301, 301), true, true},
      {MaskRule::Prefix, shapeOf(1, 4, 2, 255, 255, ElementType::BF16), false, false},
      {MaskRule::PerHead, shapeOf(1, 4, 2, 260, 260), true, false},
      {MaskRule::Holes, shapeOf(1, 4, 2, 260, 260), false, false},
      {MaskRule::Holes, shapeOf(1, 3, 1, 260, 260), false, true},
      {MaskRule::Cross, shapeOf(1, 4, 2, 150, 333), false, false},
      {MaskRule::Document, shapeOf(2, 4, 1, 260, 260, ElementType::F16), true, true},
  };
  for (const Variant &variant : variants) {
    RankCase each(variant.rule, variant.shape, variant.hasScore, variant.hasSink);
    each.computeReference();
    for (Rotation rotation : kRotations)
      for (LayoutKind layout : {LayoutKind::Striped, LayoutKind::Solved})
        for (NeedPrecision precision : {NeedPrecision::Tile, NeedPrecision::Token}) {
          SCOPED_TRACE(std::to_string(int(variant.rule)) + " " + std::string(toString(rotation)));
          PlanRequest request = each.request(3);
          request.layout = layout;
          request.rotation = rotation;
          request.needPrecision = precision;
          each.expectRight(request);
        }
  }
}

TEST(Executor, WithoutSoftmax) {
  RankCase each(MaskRule::Causal, shapeOf(1, 2, 1, 140, 140));
  each.call.normalization = AttentionProblem::Normalization::None;
  AttentionProblem problem = each.problem();
  problem.normalization = AttentionProblem::Normalization::None;
  each.forward = *referenceAttentionForward(problem, each.q.view, each.k.view, each.v.view);
  each.backward = *referenceAttentionBackward(problem, each.q.view, each.k.view, each.v.view, each.dOut.view, {});
  for (Rotation rotation : kRotations) {
    PlanRequest request = each.request(3);
    request.rotation = rotation;
    request.layout = LayoutKind::HeadTail;
    Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    WholeTensors tensors = each.tensors();
    tensors.lse = tensors.dLse = {};
    Status status = runContextParallelHost(forward, &backward, each.call, tensors);
    ASSERT_TRUE(status.isOk()) << status.message();
    EXPECT_LE(relativeError(each.out.view, each.forward.out, each.out.sizes), 2e-6);
    EXPECT_LE(relativeError(each.dQ.view, each.backward.dQ, each.dQ.sizes), 2e-6);
    EXPECT_LE(relativeError(each.dK.view, each.backward.dK, each.dK.sizes), 2e-6);
    EXPECT_LE(relativeError(each.dV.view, each.backward.dV, each.dV.sizes), 2e-6);
  }
}

TEST(Executor, AscendingKeysGiveTheBitsOfOneDevice) {
  for (MaskRule rule : {MaskRule::Causal, MaskRule::Document, MaskRule::Window})
    for (ElementType type : {ElementType::F32, ElementType::BF16}) {
      RankCase each(rule, shapeOf(2, 4, 2, 515, 515, type), /*hasScore=*/true, /*hasSink=*/true);
      TestTensor out(type, 2, 4, 515, 24, 0), lse(ElementType::F32, 2, 4, 515, 1, 0);
      HostForwardTensors single;
      single.q = each.q.view;
      single.k = each.k.view;
      single.v = each.v.view;
      single.out = out.view;
      single.lse = lse.view;
      ASSERT_TRUE(hostAttentionForward(each.problem(), single).isOk());
      for (LayoutKind layout : kLayouts)
        for (Rotation rotation : {Rotation::AllGather, Rotation::Selective, Rotation::Ulysses}) {
          SCOPED_TRACE(std::string(toString(layout)) + " " + std::string(toString(rotation)));
          PlanRequest request = each.request(3);
          request.layout = layout;
          request.rotation = rotation;
          request.keyOrder = KeyOrder::Ascending;
          Schedule schedule = *planContextParallel(request);
          Status status = runContextParallelHost(schedule, nullptr, each.call, each.tensors());
          ASSERT_TRUE(status.isOk()) << status.message();
          EXPECT_TRUE(out.bytes == each.out.bytes);
          EXPECT_TRUE(lse.bytes == each.lse.bytes);
        }
    }
}

TEST(Executor, EveryRunOfOnePlanGivesTheSameBits) {
  RankCase each(MaskRule::Document, shapeOf(2, 4, 2, 300, 300, ElementType::BF16), /*hasScore=*/true);
  for (Rotation rotation : kRotations) {
    PlanRequest request = each.request(4);
    request.rotation = rotation;
    Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    std::vector<std::vector<uint8_t>> first;
    for (int repeat = 0; repeat < 3; ++repeat) {
      ASSERT_TRUE(runContextParallelHost(forward, &backward, each.call, each.tensors()).isOk());
      std::vector<std::vector<uint8_t>> results;
      for (TestTensor *tensor : {&each.out, &each.lse, &each.dQ, &each.dK, &each.dV})
        results.push_back(tensor->bytes);
      if (repeat == 0)
        first = results;
      EXPECT_TRUE(results == first);
    }
  }
}

TEST(Executor, MovesTheBytesOfThePlan) {
  RankCase each(MaskRule::Document, shapeOf(2, 4, 2, 400, 400, ElementType::BF16));
  each.computeReference();
  for (Rotation rotation : kRotations)
    for (int32_t worldSize : {2, 5}) {
      PlanRequest request = each.request(worldSize);
      request.layout = LayoutKind::HeadTail;
      request.rotation = rotation;
      Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
      for (const Schedule *schedule : {&forward, &backward}) {
        std::vector<RunReport> reports;
        WholeTensors tensors = each.tensors();
        std::vector<RunReport> both;
        ASSERT_TRUE(
            runContextParallelHost(forward, schedule == &backward ? &backward : nullptr, each.call, tensors, {}, &both)
                .isOk());
        for (const RunReport &report : both) {
          int64_t sent = 0, received = 0;
          for (const auto &[key, counter] : report.sent)
            sent += counter.bytes;
          for (const auto &[key, counter] : report.received)
            received += counter.bytes;
          const RankLoad &load = forward.certificate.ranks[size_t(report.rank)];
          const RankLoad &second = backward.certificate.ranks[size_t(report.rank)];
          const bool isBoth = schedule == &backward;
          EXPECT_EQ(sent, load.bytesSent + (isBoth ? second.bytesSent : 0));
          EXPECT_EQ(received, load.bytesReceived + (isBoth ? second.bytesReceived : 0));
          // Planned memory is what is measured.
          const int64_t planned = std::max(load.peakBytes, isBoth ? second.peakBytes : 0);
          EXPECT_NEAR(double(report.peakBytes), double(planned), 0.05 * double(planned));
        }
      }
    }
}

TEST(Executor, DenseRingSendsAsOftenAsPyTorch) {
  RankCase each(MaskRule::Full, shapeOf(1, 2, 2, 256, 256));
  PlanRequest request = each.request(4);
  request.layout = LayoutKind::HeadTail;
  request.rotation = Rotation::Ring;
  Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
  std::vector<RunReport> reports;
  ASSERT_TRUE(runContextParallelHost(forward, &backward, each.call, each.tensors(), {}, &reports).isOk());
  for (const RunReport &report : reports) {
    int64_t numKeys = 0, numGradients = 0;
    for (const auto &[key, counter] : report.sent)
      (key.first == "kv" ? numKeys : numGradients) += counter.messages;
    EXPECT_EQ(numKeys, 3 + 3);
    EXPECT_EQ(numGradients, 3);
  }
}

TEST(Executor, OffsetsMakeMasksAndScoresSeeTheWholeJob) {
  // Heads 2 and 3 and batch row 1 of a larger call, as a job that splits heads and batch elsewhere has them.
  RankCase whole(MaskRule::Document, shapeOf(2, 4, 4, 200, 200), /*hasScore=*/true);
  whole.computeReference();
  CallShape part = whole.shape;
  part.batch = 1;
  part.qHeads = part.kvHeads = 2;
  PlanRequest request;
  request.shape = part;
  request.worldSize = 3;
  request.layout = LayoutKind::HeadTail;
  request.rotation = Rotation::Selective;
  Schedule schedule = *planContextParallel(request);
  RankCall call = whole.call;
  call.batchOffset = 1;
  call.headOffset = 2;
  auto partOf = [&](const TestTensor &tensor) {
    TensorView view = tensor.view;
    view.data =
        const_cast<uint8_t *>(tensor.bytes.data()) + (view.strides[0] + 2 * view.strides[1]) * sizeInBytes(view.type);
    return view;
  };
  WholeTensors tensors;
  tensors.q = partOf(whole.q);
  tensors.k = partOf(whole.k);
  tensors.v = partOf(whole.v);
  tensors.out = partOf(whole.out);
  Status status = runContextParallelHost(schedule, nullptr, call, tensors);
  ASSERT_TRUE(status.isOk()) << status.message();
  const int64_t rows = 200 * 24;
  std::vector<double> expected(whole.forward.out.begin() + 6 * rows, whole.forward.out.end());
  const int64_t sizes[4] = {1, 2, 200, 24};
  EXPECT_LE(relativeError(partOf(whole.out), expected, sizes), 2e-6);
}

TEST(Executor, MasksFromTapesAreDerivedOnEveryRank) {
  RankCase each(MaskRule::Causal, shapeOf(2, 4, 2, 300, 300));
  each.computeReference();
  Tape tape;
  tape.name = "causal";
  auto coordinate = [](int which) {
    TapeInstruction instruction;
    instruction.operation = Operation::Coordinate;
    instruction.immediate = which;
    return instruction;
  };
  TapeInstruction compare;
  compare.operation = Operation::Le;
  compare.resultType = ValueType::Bool;
  compare.operands[0] = 0;
  compare.operands[1] = 1;
  tape.instructions = {coordinate(3), coordinate(2), compare};
  tape.result = 2;
  each.call.tape = &tape;
  for (LayoutKind layout : {LayoutKind::HeadTail, LayoutKind::Striped})
    for (Rotation rotation : kRotations) {
      PlanRequest request = each.request(3);
      request.layout = layout;
      request.rotation = rotation;
      each.expectRight(request);
    }
}

TEST(Executor, TracesHoldComputesAndTransfersOfEveryRank) {
  RankCase each(MaskRule::Causal, shapeOf(1, 2, 2, 200, 200));
  PlanRequest request = each.request(3);
  request.rotation = Rotation::Ring;
  Schedule forward = *planContextParallel(request);
  std::vector<RunReport> reports;
  ASSERT_TRUE(runContextParallelHost(forward, nullptr, each.call, each.tensors(), {}, &reports).isOk());
  nlohmann::json trace = nlohmann::json::parse(toTraceJson(reports));
  std::map<int, int> computes, transfers;
  for (const auto &event : trace["traceEvents"])
    if (event["ph"] == "X")
      ++(event["tid"] == 0 ? computes : transfers)[event["pid"].get<int>()];
  EXPECT_EQ(computes.size(), 3u);
  EXPECT_EQ(transfers.size(), 3u);
}

TEST(Executor, ReportsOfAllRanksComeToRankZero) {
  RankCase each(MaskRule::Causal, shapeOf(1, 2, 2, 200, 200));
  PlanRequest request = each.request(3);
  request.rotation = Rotation::Ring;
  Schedule forward = *planContextParallel(request);
  std::vector<std::vector<RunReport>> reports(3);
  std::vector<Status> statuses = runRanksInThreads(3, [&](Communicator &communicator) {
    // Ranks write the whole arrays; each has its own.
    RankCase own(MaskRule::Causal, shapeOf(1, 2, 2, 200, 200));
    return runContextParallelRank(forward, nullptr, own.call, own.tensors(), communicator, {},
                                  &reports[size_t(communicator.rank())]);
  });
  ASSERT_TRUE(firstFailure(statuses).isOk()) << firstFailure(statuses).message();
  ASSERT_EQ(reports[0].size(), 3u);
  EXPECT_TRUE(reports[1].empty());
  for (int32_t rank = 0; rank < 3; ++rank) {
    const RunReport &report = reports[0][size_t(rank)];
    EXPECT_EQ(report.rank, rank);
    EXPECT_GT(report.peakBytes, 0);
    EXPECT_FALSE(report.events.empty());
    EXPECT_EQ(report.sent.at({"kv", (rank + 1) % 3}).bytes, forward.certificate.ranks[size_t(rank)].bytesSent);
    StatusOr<RunReport> copy = reportFromBytes(toBytes(report));
    ASSERT_TRUE(copy.isOk());
    EXPECT_EQ(copy->received, report.received);
    EXPECT_EQ(toTraceJson({&*copy, 1}), toTraceJson({&report, 1}));
  }
  for (const char *bytes : {"", "[1, 2]", "[0, 0, [[1, 2, 3, 4]], [], []]", "[0, 0, [], [], [[0]]]"})
    EXPECT_EQ(reportFromBytes(bytes).status().message(),
              "the report of another rank is damaged; expected ranks of one build");
}

TEST(Executor, PreparedComputesSaveTheMasksOfLaterRuns) {
  RankCase each(MaskRule::Document, shapeOf(1, 2, 1, 260, 260));
  each.computeReference();
  PlanRequest request = each.request(1);
  Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
  PreparedComputes prepared;
  ExecutorOptions options;
  options.prepared = &prepared;
  ThreadsHub hub(1);
  ThreadsCommunicator communicator(hub, 0);
  const BlockMask *first = nullptr;
  for (int run = 0; run < 3; ++run) {
    Status status = runContextParallelThread(forward, &backward, each.call, each.tensors(), communicator, options);
    ASSERT_TRUE(status.isOk()) << status.message();
    EXPECT_EQ(prepared.computes.size(), 2u);
    const BlockMask *mask = &prepared.computes.at({Pass::Forward, 0})->mask;
    EXPECT_TRUE(!first || first == mask);
    first = mask;
    EXPECT_LE(relativeError(each.out.view, each.forward.out, each.out.sizes), 2e-6);
    EXPECT_LE(relativeError(each.dK.view, each.backward.dK, each.dK.sizes), 6e-6);
  }
}

TEST(Executor, GradientsComeHomeInRankOrder) {
  // From the rank after the owner on, whatever the rotation: what the executor adds is in rank order from the owner.
  RankCase each(MaskRule::Causal, shapeOf(1, 4, 2, 515, 515));
  for (Rotation rotation : kRotations)
    for (LayoutKind layout : {LayoutKind::HeadTail, LayoutKind::Striped, LayoutKind::Solved})
      for (int32_t maxSteps : {2, 8}) {
        PlanRequest request = each.request(6);
        request.rotation = rotation;
        request.layout = layout;
        request.maxSteps = maxSteps;
        Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
        std::map<int32_t, std::vector<std::pair<int32_t, int32_t>>> arrivals; // by owner: step, distance
        for (const Transfer &transfer : backward.transfers)
          if (transfer.payload == Payload::DKV)
            arrivals[transfer.destination].push_back({transfer.step, (transfer.source - transfer.destination + 6) % 6});
        EXPECT_FALSE(arrivals.empty());
        for (auto &[owner, list] : arrivals) {
          std::sort(list.begin(), list.end());
          for (size_t i = 1; i < list.size(); ++i)
            EXPECT_LT(list[i - 1].second, list[i].second) << "owner " << owner;
        }
      }
}

TEST(Executor, FaultsOfCallersAreNamed) {
  RankCase each(MaskRule::Causal, shapeOf(1, 2, 2, 64, 64));
  PlanRequest request = each.request(2);
  Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
  auto messageOf = [&](auto &&change) {
    WholeTensors tensors = each.tensors();
    change(tensors);
    return runContextParallelHost(forward, &backward, each.call, tensors).message();
  };
  EXPECT_EQ(messageOf([](WholeTensors &t) { t.q.type = ElementType::BF16; }),
            "'q' is missing or of another type; expected f32");
  EXPECT_EQ(messageOf([](WholeTensors &t) { t.dOut.data = nullptr; }),
            "'dOut' is missing or of another type; expected f32");
  PlanRequest other = request;
  other.layout = LayoutKind::Striped;
  Schedule striped = *planContextParallel(other), stripedBackward = *planBackward(other, striped);
  EXPECT_EQ(runContextParallelHost(forward, &stripedBackward, each.call, each.tensors()).message(),
            "forward and backward schedules with different layouts; expected the same");
  EXPECT_EQ(runContextParallelHost(backward, nullptr, each.call, each.tensors()).message(),
            "a backward schedule for a forward pass; expected a forward schedule");
  EXPECT_EQ(runContextParallelHost(forward, &forward, each.call, each.tensors()).message(),
            "a forward schedule for a backward pass; expected a backward schedule");
  RankCall noBindings = each.call;
  Tape tape;
  noBindings.tape = &tape;
  noBindings.bindings = nullptr;
  EXPECT_EQ(runContextParallelHost(forward, nullptr, noBindings, each.tensors()).message(),
            "a mask without bindings; expected the arrays that it reads");
}

} // namespace
