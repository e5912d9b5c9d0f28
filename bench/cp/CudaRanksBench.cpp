// What does it cost on a GPU to cut one causal call into ranks? Ranks share one GPU here: the time of all ranks together,
// against one rank, is the price of smaller calls, merges, packing and copies. With as many GPUs as ranks, each has its own.
// Prints a table; usage: cpflexCudaRanksBench [length]
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/Comm/CudaThreadsCommunicator.h"
#include "runtime/Executor/CudaRanks.h"
#include "runtime/Plan/Planner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

using namespace cpflex;

namespace {

constexpr int64_t kHeads = 16, kHeadDim = 128;
constexpr int kWarmups = 1, kTimed = 3;

/// kv <= q, for the mask and for the GPU.
Tape causalTape() {
  Tape tape;
  tape.name = "causal";
  TapeInstruction q, kv, compare;
  q.operation = kv.operation = Operation::Coordinate;
  q.immediate = 2;
  kv.immediate = 3;
  compare.operation = Operation::Le;
  compare.resultType = ValueType::Bool;
  compare.operands[0] = 0;
  compare.operands[1] = 1;
  tape.instructions = {kv, q, compare};
  tape.result = 2;
  return tape;
}

DeviceFunctions causalFunctions() {
  DeviceFunctions functions;
  functions.hasMask = true;
  functions.text =
      "struct Program {\n  struct Captures {\n    long long B, H, HKV, Q_LEN, KV_LEN;\n  };\n"
      "  static constexpr bool kHasMask = true;\n"
      "  static constexpr cpflex::ScoreForm kScoreForm = cpflex::ScoreForm::Identity;\n"
      "  static __device__ __forceinline__ bool mask(const Captures &, int, int, int q, int kv) { return kv <= q; }\n"
      "  static __device__ __forceinline__ float score(const Captures &, float s, int, int, int, int) { return s; }\n"
      "  static __device__ __forceinline__ float scoreGradient(const Captures &, float, float gradient, int, int, int, "
      "int) { return gradient; }\n};\n";
  return functions;
}

/// Milliseconds of one pass: from the first work to the last of any rank, and what of it a rank did not compute, on
/// average.
struct PassTime {
  double total = 0, idle = 0;
};

PassTime timeOf(const std::vector<RunReport> &reports, const std::string &pass) {
  double begin = 1e300, end = 0, idle = 0;
  for (const RunReport &report : reports)
    for (const TraceEvent &event : report.events)
      if (event.name == pass) {
        begin = std::min(begin, event.beginSeconds);
        end = std::max(end, event.beginSeconds + event.durationSeconds);
      }
  for (const RunReport &report : reports) {
    double busy = 0;
    for (const TraceEvent &event : report.events)
      if (event.name == pass)
        busy += event.durationSeconds;
    idle += (end - begin - busy) / double(reports.size());
  }
  return {(end - begin) * 1e3, idle * 1e3};
}

Status run(int64_t length, int32_t worldSize, Rotation rotation, const std::vector<CudaMachine> &machines,
           CudaCall &cudaCall, const std::vector<uint16_t> &values) {
  const Tape tape = causalTape();
  const int64_t dims[5] = {1, kHeads, kHeads, length, length};
  Bindings bindings;
  bindings.dims = dims;
  BlockMaskOptions maskOptions;
  maskOptions.qLen = maskOptions.kvLen = length;
  StatusOr<BlockMaskResult> mask = buildBlockMask(&tape, bindings, maskOptions);
  if (!mask)
    return mask.status();
  PlanRequest request;
  request.shape = {.batch = 1, .qHeads = kHeads, .kvHeads = kHeads, .qLen = length, .kvLen = length,
                   .headDim = kHeadDim, .vHeadDim = kHeadDim, .type = ElementType::BF16};
  request.worldSize = worldSize;
  request.mask = &mask->mask;
  request.layout = LayoutKind::HeadTail;
  request.rotation = rotation;
  StatusOr<Schedule> forward = planContextParallel(request);
  if (!forward)
    return forward.status();
  StatusOr<Schedule> backward = planBackward(request, *forward);
  if (!backward)
    return backward.status();
  std::vector<uint16_t> outputs[4];
  for (auto &output : outputs)
    output.resize(values.size());
  auto viewOf = [&](const std::vector<uint16_t> &array) {
    return TensorView{const_cast<uint16_t *>(array.data()), ElementType::BF16,
                      {kHeads * length * kHeadDim, length * kHeadDim, kHeadDim, 1}};
  };
  WholeTensors tensors;
  tensors.q = tensors.k = tensors.v = tensors.dOut = viewOf(values);
  tensors.out = viewOf(outputs[0]);
  tensors.dQ = viewOf(outputs[1]);
  tensors.dK = viewOf(outputs[2]);
  tensors.dV = viewOf(outputs[3]);
  RankCall call;
  call.scale = 1.0f / std::sqrt(float(kHeadDim));
  call.tape = &tape;
  call.bindings = &bindings;
  cudaCall.bindings = &bindings;
  std::vector<std::shared_ptr<const CudaPort>> ports;
  std::vector<std::unique_ptr<CudaExecutionDevice>> devices;
  for (int32_t rank = 0; rank < worldSize; ++rank) {
    const CudaMachine &machine = machines[size_t(rank) % machines.size()];
    auto port = CudaPort::open(machine.device);
    if (!port)
      return port.status();
    auto device = CudaExecutionDevice::create(machine, cudaCall, *port);
    if (!device)
      return device.status();
    ports.push_back(*port);
    devices.push_back(std::move(*device));
  }
  std::vector<PreparedComputes> prepared(static_cast<size_t>(worldSize));
  PassTime best[2] = {{1e300, 0}, {1e300, 0}};
  for (int repeat = 0; repeat < kWarmups + kTimed; ++repeat) {
    CudaThreadsHub hub(worldSize);
    std::vector<RunReport> reports(static_cast<size_t>(worldSize));
    std::vector<Status> statuses(static_cast<size_t>(worldSize));
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < worldSize; ++rank)
      threads.emplace_back([&, rank] {
        CudaExecutionDevice &device = *devices[size_t(rank)];
        CudaThreadsCommunicator communicator(hub, rank, ports[size_t(rank)]);
        ExecutorOptions options;
        options.device = &device;
        options.prepared = &prepared[size_t(rank)];
        options.report = &reports[size_t(rank)];
        statuses[size_t(rank)] =
            runContextParallelThread(*forward, &*backward, call, tensors, communicator, options);
        if (!statuses[size_t(rank)])
          communicator.abort(statuses[size_t(rank)]);
      });
    for (std::thread &thread : threads)
      thread.join();
    for (const Status &status : statuses)
      CPFLEX_RETURN_IF_ERROR(status);
    for (int pass = 0; pass < 2 && repeat >= kWarmups; ++pass)
      if (PassTime time = timeOf(reports, pass == 0 ? "forward" : "backward"); time.total < best[pass].total)
        best[pass] = time;
  }
  std::printf("%6d  %-10s %10.2f %10.2f %10.2f %10.2f\n", worldSize, std::string(toString(rotation)).c_str(),
              best[0].total, best[0].idle, best[1].total, best[1].idle);
  std::fflush(stdout);
  return Status::ok();
}

} // namespace

int main(int argc, char **argv) {
  const int64_t length = argc > 1 ? std::atoll(argv[1]) : 32768;
  std::vector<CudaMachine> machines;
  for (const CudaDeviceDescription &each : listCudaDevices().devices)
    if (auto machine = CudaMachine::open(each.index); machine)
      machines.push_back(*machine);
  if (machines.empty()) {
    std::printf("%s\n", listCudaDevices().whyNone.c_str());
    return 3;
  }
  std::printf("Causal, bf16, B=1 H=%d D=%d S=%d, head-tail; %d GPUs of %s; milliseconds, best of %d. Idle: of the time from\n"
              "the first call of any rank to the last, the part in which a rank had no call of its own in flight.\n\n",
              int(kHeads), int(kHeadDim), int(length), int(machines.size()),
              machines[0].device->description().name.c_str(), kTimed);
  std::printf("%6s  %-10s %10s %10s %10s %10s\n", "ranks", "rotation", "forward", "idle", "backward", "idle");
  std::vector<uint16_t> values(size_t(kHeads * length * kHeadDim));
  uint32_t state = 1;
  for (uint16_t &value : values) {
    // Numbers between 0.5 and 1 of both signs: exponents of bf16 around 126.
    state = state * 1664525u + 1013904223u;
    value = uint16_t((state >> 31) << 15 | 126u << 7 | (state >> 20 & 127u));
  }
  CudaCall cudaCall;
  cudaCall.functions = causalFunctions();
  for (auto [worldSize, rotation] : {std::pair(1, Rotation::Selective), std::pair(2, Rotation::Selective),
                                     std::pair(2, Rotation::Ring), std::pair(4, Rotation::Selective),
                                     std::pair(4, Rotation::Ring)})
    if (Status status = run(length, worldSize, rotation, machines, cudaCall, values); !status) {
      std::printf("%s\n", status.message().c_str());
      return 1;
    }
  return 0;
}
