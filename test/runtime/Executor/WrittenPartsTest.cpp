// Are gradients right where the first contribution to a place is stored and nothing starts as zeros?
#include "runtime/Executor/WrittenParts.h"
#include "RankCase.h"
#include "runtime/Comm/ThreadsCommunicator.h"
#include "runtime/Executor/HostExecutionDevice.h"

#include <cstring>

using namespace cpflex;
using namespace cpflex::test;

namespace {

using Contents = ExecutionDevice::Contents;

constexpr LayoutKind kLayouts[] = {LayoutKind::Contiguous,  LayoutKind::HeadTail, LayoutKind::Striped,
                                   LayoutKind::PerDocument, LayoutKind::Ptrr,     LayoutKind::Solved};
constexpr Rotation kRotations[] = {Rotation::Ring, Rotation::AllGather, Rotation::Selective, Rotation::Ulysses};

Slab rowsOf(int64_t begin, int64_t end) { return {0, {0, 2}, {0, 3}, {begin, end}}; }

/// The start of a buffer of 10 rows for each of 2 batch rows and 3 heads, and how each contribution goes in.
std::pair<Contents, std::vector<GradientWrite>> writesOf(const std::vector<Slab> &parts) {
  WrittenParts written;
  for (const Slab &part : parts)
    written.plan(part);
  const Contents start = written.startOf(2 * 3 * 10);
  std::vector<GradientWrite> writes;
  for (const Slab &part : parts)
    writes.push_back(written.next(part));
  return {start, writes};
}

constexpr GradientWrite kStore = GradientWrite::Overwrite, kAdd = GradientWrite::Add;

TEST(WrittenParts, FirstContributionsAreStoredAndLaterOnesAdded) {
  const auto [start, writes] = writesOf({rowsOf(0, 4), rowsOf(4, 10), rowsOf(1, 3), rowsOf(4, 10)});
  EXPECT_EQ(start, Contents::Undefined);
  EXPECT_EQ(writes, (std::vector{kStore, kStore, kAdd, kAdd}));
}

TEST(WrittenParts, BatchRowsAndHeadsCountToo) {
  const auto [start, writes] = writesOf({{0, {0, 1}, {0, 3}, {0, 10}},
                                         {0, {1, 2}, {0, 2}, {0, 10}},
                                         {0, {1, 2}, {2, 3}, {0, 10}},
                                         {0, {0, 1}, {2, 3}, {5, 6}}});
  EXPECT_EQ(start, Contents::Undefined);
  EXPECT_EQ(writes, (std::vector{kStore, kStore, kStore, kAdd}));
}

TEST(WrittenParts, RowsLeftOutNeedZeros) {
  const auto [start, writes] = writesOf({rowsOf(0, 4), rowsOf(5, 10)});
  EXPECT_EQ(start, Contents::Zero);
  EXPECT_EQ(writes, (std::vector{kAdd, kAdd}));
}

TEST(WrittenParts, OverlapsInPartNeedZeros) {
  for (const auto &parts : {std::vector{rowsOf(0, 6), rowsOf(4, 10)}, std::vector{rowsOf(2, 3), rowsOf(0, 10)},
                            std::vector{rowsOf(0, 5), rowsOf(5, 10), rowsOf(4, 6)}}) {
    const auto [start, writes] = writesOf(parts);
    EXPECT_EQ(start, Contents::Zero);
    EXPECT_EQ(writes, std::vector(parts.size(), kAdd));
  }
}

TEST(WrittenParts, VeryManyPartsNeedZeros) {
  std::vector<Slab> parts;
  for (int64_t batch = 0; batch < 600; ++batch)
    parts.push_back({0, {batch, batch + 1}, {0, 1}, {0, 1}});
  WrittenParts written;
  for (const Slab &part : parts)
    written.plan(part);
  EXPECT_EQ(written.startOf(600), Contents::Zero);
  EXPECT_EQ(written.next(parts[0]), kAdd);
}

/// A CPU whose undefined memory is full of NaN, and which counts.
class PoisonedDevice : public HostExecutionDevice {
public:
  PoisonedDevice() : HostExecutionDevice({.numThreads = 1}) {}
  void *allocate(int64_t sizeInBytes, Contents contents, DeviceQueue queue) override {
    void *memory = HostExecutionDevice::allocate(sizeInBytes, contents, queue);
    if (memory && contents == Contents::Undefined)
      std::memset(memory, 0xff, size_t(sizeInBytes));
    zeroedBytes += contents == Contents::Zero ? sizeInBytes : 0;
    return memory;
  }
  void addRows(const TensorView &from, const TensorView &to, const RowBlock &rows) override {
    addedRows += rows.batch * rows.heads * rows.rows;
    HostExecutionDevice::addRows(from, to, rows);
  }
  Status backward(PreparedCompute &compute, const HostBackwardTensors &tensors) override {
    numAdds += (tensors.queryWrite == kAdd) + (tensors.keyWrite == kAdd);
    return HostExecutionDevice::backward(compute, tensors);
  }
  int64_t zeroedBytes = 0, addedRows = 0;
  int numAdds = 0; ///< sides of backward calls that add
};

Status runPoisoned(RankCase &each, const Schedule &forward, const Schedule *backward,
                   std::vector<PoisonedDevice> &devices) {
  return firstFailure(runRanksInThreads(int32_t(devices.size()), [&](Communicator &communicator) {
    ExecutorOptions options;
    options.device = &devices[size_t(communicator.rank())];
    return runContextParallelThread(forward, backward, each.call, each.tensors(), communicator, options);
  }));
}

TEST(StoredGradients, NothingUndefinedIsRead) {
  for (MaskRule rule : {MaskRule::Causal, MaskRule::Document, MaskRule::Window, MaskRule::PerHead}) {
    const int64_t batch = rule == MaskRule::Document ? 3 : 1;
    RankCase each(rule, shapeOf(batch, 4, 2, 300, 300, ElementType::BF16), /*hasScore=*/false, /*hasSink=*/true);
    each.computeReference();
    for (LayoutKind layout : kLayouts)
      for (Rotation rotation : kRotations)
        for (KeyOrder order : {KeyOrder::Arrival, KeyOrder::Ascending})
          for (int32_t worldSize : {1, 2, 4}) {
            if (order == KeyOrder::Ascending && rotation == Rotation::Ring)
              continue;
            SCOPED_TRACE(std::to_string(int(rule)) + " " + std::string(toString(layout)) + " " +
                         std::string(toString(rotation)) + " " + std::to_string(worldSize));
            PlanRequest request = each.request(worldSize);
            request.layout = layout;
            request.rotation = rotation;
            request.keyOrder = order;
            each.expectRight(request, [&](const Schedule &forward, const Schedule *backward) {
              std::vector<PoisonedDevice> devices(static_cast<size_t>(worldSize));
              return runPoisoned(each, forward, backward, devices);
            });
          }
  }
}

TEST(StoredGradients, AWindowAddsOnlyWhatTwoCallsGive) {
  RankCase each(MaskRule::Window, shapeOf(1, 2, 2, 600, 600));
  for (Rotation rotation : {Rotation::Ring, Rotation::Selective}) {
    PlanRequest request = each.request(2);
    request.layout = LayoutKind::Contiguous;
    request.rotation = rotation;
    Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    std::vector<PoisonedDevice> devices(2);
    Status status = runPoisoned(each, forward, &backward, devices);
    ASSERT_TRUE(status.isOk()) << status.message();
    for (int32_t rank = 0; rank < 2; ++rank) {
      int64_t rowsHome = 0;
      for (const Transfer &transfer : backward.transfers)
        if (transfer.payload == Payload::DKV && transfer.destination == rank)
          for (const Slab &slab : transfer.slabs)
            rowsHome += slab.heads.size() * slab.rows.size();
      EXPECT_GT(rowsHome, 0);
      // dK and dV that come home are added to the own ones; gradients of foreign keys are computed in the message; the
      // second of two calls adds dQ.
      const PoisonedDevice &device = devices[size_t(rank)];
      EXPECT_EQ(device.addedRows, 2 * rowsHome);
      EXPECT_EQ(device.numAdds, 1);
      // Row terms are the only zeros.
      EXPECT_EQ(device.zeroedBytes, 2 * 300 * int64_t(sizeof(float)));
    }
  }
}

} // namespace
