// Whatever goes wrong with one operation of one rank, does every rank end within its deadline, with the right result or
// an error that names rank, step and peer?
#include "../Plan/TestMasks.h"
#include "runtime/Comm/CheckedCommunicator.h"
#include "runtime/Comm/FaultyCommunicator.h"
#include "runtime/Comm/ThreadsCommunicator.h"
#include "runtime/Executor/ContextParallelRun.h"
#include "runtime/Plan/Planner.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <gtest/gtest.h>
#include <regex>

using namespace cpflex;
using namespace cpflex::test;

namespace {

constexpr double kDeadlineSeconds = 0.05;
/// Far beyond any sum of deadlines of a run: a rank that needs longer hangs.
constexpr double kHangSeconds = 20.0;

TEST(Faults, EveryTrialEndsRightOrWithANamedError) {
  const int numTrials = std::getenv("CPFLEX_FULL") ? 10000 : 1000;
  const int64_t length = 60, headDim = 4;
  const int32_t worldSize = 3;
  TestMask mask(MaskRule::Causal, 1, 2, length, length, 16);
  PlanRequest request;
  request.shape = {
      .batch = 1, .qHeads = 2, .kvHeads = 1, .qLen = length, .kvLen = length, .headDim = headDim, .vHeadDim = headDim};
  request.worldSize = worldSize;
  request.mask = &mask.mask;
  request.layout = LayoutKind::HeadTail;
  std::vector<float> q(size_t(2 * length * headDim)), k(q.size() / 2), v(k.size()), dOut(q.size());
  std::mt19937_64 random(20261123);
  for (auto *array : {&q, &k, &v, &dOut})
    for (float &value : *array)
      value = float(int(random() % 201) - 100) * 0.01f;
  auto viewOf = [&](std::vector<float> &array) {
    return TensorView{array.data(), ElementType::F32, {int64_t(array.size()), length * headDim, headDim, 1}};
  };
  RankCall call;
  call.functions = &mask.functions;
  call.bindings = &mask.bindings;
  ExecutorOptions options;
  options.deadlineSeconds = kDeadlineSeconds;
  options.attention.numThreads = 1;

  // A rank that was killed knows no peer; every other names the one that it heard nothing good from.
  const std::regex named(
      "rank [0-9]+ was killed at operation [0-9]+ in step [0-9]+|.*rank [0-9]+ .*rank [0-9]+ in step [0-9]+.*");
  int numRight = 0, numErrors = 0;
  for (Rotation rotation : {Rotation::Ring, Rotation::Selective, Rotation::Ulysses}) {
    request.rotation = rotation;
    const Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    // What every rank must get, and how many operations there are to strike at.
    struct Results {
      std::vector<float> out, dQ, dK, dV;
      bool operator==(const Results &) const = default;
    };
    auto run = [&](const std::vector<Fault> &faults, std::vector<int64_t> &numOperations, Results &results,
                   std::vector<Status> &statuses) {
      results = {std::vector<float>(q.size()), std::vector<float>(q.size()), std::vector<float>(k.size()),
                 std::vector<float>(k.size())};
      WholeTensors tensors;
      tensors.q = viewOf(q);
      tensors.k = viewOf(k);
      tensors.v = viewOf(v);
      tensors.dOut = viewOf(dOut);
      tensors.out = viewOf(results.out);
      tensors.dQ = viewOf(results.dQ);
      tensors.dK = viewOf(results.dK);
      tensors.dV = viewOf(results.dV);
      numOperations.assign(size_t(worldSize), 0);
      // Results of other ranks land in the arrays of this process: give each rank its own.
      std::vector<Results> each(size_t(worldSize), results);
      statuses = runRanksInThreads(worldSize, [&](Communicator &inner) {
        Results &mine = each[size_t(inner.rank())];
        WholeTensors local = tensors;
        local.out.data = mine.out.data();
        local.dQ.data = mine.dQ.data();
        local.dK.data = mine.dK.data();
        local.dV.data = mine.dV.data();
        FaultyCommunicator faulty(inner, faults);
        CheckedCommunicator checked(faulty);
        Status status = runContextParallelRank(forward, &backward, call, local, checked, options);
        numOperations[size_t(inner.rank())] = faulty.numOperations();
        return status;
      });
      results = std::move(each[0]);
    };
    Results expected;
    std::vector<int64_t> numOperations, ignored;
    std::vector<Status> statuses;
    run({}, numOperations, expected, statuses);
    ASSERT_TRUE(firstFailure(statuses).isOk()) << firstFailure(statuses).message();
    for (int trial = 0; trial < (numTrials + 2) / 3; ++trial) {
      Fault fault;
      fault.kind = FaultKind(random() % kNumFaultKinds);
      fault.rank = int32_t(random() % uint64_t(worldSize));
      fault.operation = int64_t(random() % uint64_t(numOperations[size_t(fault.rank)]));
      fault.delaySeconds = 0.001 * double(random() % 20);
      fault.bit = random();
      SCOPED_TRACE("rotation " + std::string(toString(rotation)) + ", trial " + std::to_string(trial));
      Results results;
      const auto begin = std::chrono::steady_clock::now();
      run({fault}, ignored, results, statuses);
      EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), kHangSeconds);
      if (statuses[0].isOk()) {
        ++numRight;
        EXPECT_TRUE(results == expected);
      } else {
        ++numErrors;
      }
      for (const Status &status : statuses)
        if (!status.isOk())
          EXPECT_TRUE(std::regex_match(status.message(), named)) << status.message();
    }
  }
  EXPECT_GT(numRight, 0);
  EXPECT_GT(numErrors, 0);
}

} // namespace
