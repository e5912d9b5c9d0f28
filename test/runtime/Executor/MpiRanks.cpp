// One rank of an MPI job, run by MpiTest: causal attention forward and backward, compared on rank 0 with threads; or,
// with `silent`, a rank 1 that sends nothing; or, with `killed N`, a rank 1 that dies at its N-th group of messages.
// Rank 0 prints `right`, or the error; exits 0 in both.
#include "../Plan/TestMasks.h"
#include "runtime/Comm/MpiCommunicator.h"
#include "runtime/Executor/ContextParallelRun.h"
#include "runtime/Plan/Planner.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

using namespace cpflex;
using namespace cpflex::test;

namespace {

/// A communicator whose process is killed when it starts its `groupAtWhich`-th group.
class KilledCommunicator : public Communicator {
public:
  KilledCommunicator(Communicator &inner, int groupAtWhich) : inner_(inner), groupsLeft_(groupAtWhich) {}
  int32_t rank() const override { return inner_.rank(); }
  int32_t worldSize() const override { return inner_.worldSize(); }
  std::string_view transport() const override { return inner_.transport(); }
  StatusOr<int64_t> start(const MessageGroup &group) override {
    if (groupsLeft_-- == 0)
      std::raise(SIGKILL);
    return inner_.start(group);
  }
  Status wait(int64_t ticket, Deadline deadline) override { return inner_.wait(ticket, deadline); }
  void abort(const Status &reason) override { inner_.abort(reason); }

private:
  Communicator &inner_;
  int groupsLeft_;
};

Status runJob(Communicator &communicator, double deadlineSeconds) {
  const int64_t length = 301, headDim = 16;
  TestMask mask(MaskRule::Causal, 1, 2, length, length, 32);
  PlanRequest request;
  request.shape = {
      .batch = 1, .qHeads = 2, .kvHeads = 1, .qLen = length, .kvLen = length, .headDim = headDim, .vHeadDim = headDim};
  request.worldSize = communicator.worldSize();
  request.mask = &mask.mask;
  request.layout = LayoutKind::HeadTail;
  std::vector<float> q(size_t(2 * length * headDim)), k(q.size() / 2), v(k.size()), dOut(q.size());
  std::mt19937 random(5);
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
  options.attention.numThreads = 1;
  options.deadlineSeconds = deadlineSeconds;
  for (Rotation rotation : {Rotation::Ring, Rotation::Selective, Rotation::Ulysses}) {
    request.rotation = rotation;
    StatusOr<Schedule> forward = planContextParallel(request);
    if (!forward)
      return forward.status();
    StatusOr<Schedule> backward = planBackward(request, *forward);
    if (!backward)
      return backward.status();
    std::vector<float> results[2][4];
    for (int which : {0, 1}) {
      WholeTensors tensors;
      tensors.q = viewOf(q);
      tensors.k = viewOf(k);
      tensors.v = viewOf(v);
      tensors.dOut = viewOf(dOut);
      TensorView *outputs[4] = {&tensors.out, &tensors.dQ, &tensors.dK, &tensors.dV};
      for (int i = 0; i < 4; ++i) {
        results[which][i].resize(i < 2 ? q.size() : k.size());
        *outputs[i] = viewOf(results[which][i]);
      }
      CPFLEX_RETURN_IF_ERROR(which == 0
                                 ? runContextParallelRank(*forward, &*backward, call, tensors, communicator, options)
                                 : runContextParallelHost(*forward, &*backward, call, tensors, options));
    }
    for (int i = 0; i < 4 && communicator.rank() == 0; ++i)
      if (results[0][i] != results[1][i])
        return Status(StatusCode::DataLoss, "the bits over MPI differ from those of threads");
  }
  return Status::ok();
}

} // namespace

int main(int argc, char **argv) {
  auto communicator = MpiCommunicator::open();
  if (!communicator) {
    std::printf("%s\n", communicator.status().message().c_str());
    return 0;
  }
  Status status;
  if (argc > 1 && !std::strcmp(argv[1], "silent")) {
    int32_t value = 0;
    if ((*communicator)->rank() == 1)
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    else
      status = exchange(**communicator, {4, "kv", {}, {{1, &value, 4}}}, deadlineIn(0.1));
  } else if (argc > 2 && !std::strcmp(argv[1], "killed")) {
    KilledCommunicator mortal(**communicator, (*communicator)->rank() == 1 ? std::atoi(argv[2]) : -1);
    status = runJob(mortal, /*deadlineSeconds=*/1.0);
  } else {
    status = runJob(**communicator, /*deadlineSeconds=*/60.0);
  }
  if ((*communicator)->rank() == 0) {
    std::printf("%s\n", status.isOk() ? "right" : status.message().c_str());
    std::fflush(stdout);
  }
  // A group that has lost a rank cannot be ended together.
  if (!status)
    std::_Exit(0);
  return 0;
}
