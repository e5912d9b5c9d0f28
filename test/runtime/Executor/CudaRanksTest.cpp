// Do ranks on a GPU together compute what one device computes? Several ranks share GPU 0; with more GPUs NCCL joins.
// Skipped where there is no GPU, but for what needs none.
#include "runtime/Executor/CudaRanks.h"
#include "RankCase.h"
#include "runtime/Comm/CudaThreadsCommunicator.h"
#include "runtime/Comm/ThreadsCommunicator.h"
#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Plan/ShardArrays.h"
#include "test/runtime/Cuda/TestFunctors.h"

#include <gtest/gtest.h>

#include <mutex>
#include <thread>

using namespace cpflex;
using namespace cpflex::test;

namespace {

/// The GPUs of this machine; without any, the test is skipped.
#define CPFLEX_GPUS_OR_SKIP(MACHINES)                                                                                  \
  std::vector<CudaMachine> MACHINES;                                                                                   \
  for (const CudaDeviceDescription &each : listCudaDevices().devices)                                                  \
    if (auto opened = CudaMachine::open(each.index); opened)                                                           \
      MACHINES.push_back(*opened);                                                                                     \
  if (MACHINES.empty())                                                                                                \
  GTEST_SKIP() << listCudaDevices().whyNone

DeviceFunctions deviceFunctions(MaskRule rule, bool hasScore) {
  DeviceFunctions functions =
      rule == MaskRule::Causal && !hasScore ? causal()
      : rule == MaskRule::Full && !hasScore
          ? noFunctor()
          : functor("    cpflex::CaptureArgument doc, slopes;\n", "",
                    rule == MaskRule::Document ? "const int *ids = (const int *)c.doc.data + b * c.doc.strides[0];\n"
                                                 "    return kv <= q && ids[q] == ids[kv];"
                    : rule == MaskRule::Window ? "return kv <= q && q - kv < 40;"
                                               : "return kv <= q;",
                    hasScore ? ScoreForm::Additive : ScoreForm::Identity,
                    hasScore ? "return s + ((const float *)c.slopes.data)[h] * (float)(kv - q);" : "return s;");
  functions.numCaptures = functions.text.find("CaptureArgument doc") == std::string::npos ? 0 : 2;
  if (hasScore) {
    functions.text.resize(functions.text.rfind("};"));
    functions.text +=
        "  static constexpr int kNumScatters = 1;\n"
        "  static constexpr cpflex::ScatterWalk scatterWalk(int) { return cpflex::ScatterWalk::Constant; }\n"
        "  static constexpr int scatterTarget(int) { return 0; }\n"
        "  template <class Add>\n"
        "  static __device__ __forceinline__ void scatter(cpflex::ScatterNumber<0>, const Captures &, "
        "float, float gradient, int, int h, int q, int kv, const Add &add) {\n"
        "    add(h, gradient * (float)(kv - q));\n  }\n};\n";
    functions.gradients = {{.capture = 1, .isDense = false}};
  }
  return functions;
}

/// A case on GPUs.
struct CudaCase : RankCase {
  CudaCase(MaskRule rule, CallShape shape, bool hasScore = false, bool hasSink = false)
      : RankCase(rule, shape, hasScore, hasSink) {
    cudaCall.functions = deviceFunctions(rule, hasScore);
    dims = {shape.batch, shape.qHeads, shape.kvHeads, shape.qLen, shape.kvLen};
    mask.bindings.dims = dims.data();
    cudaCall.bindings = &mask.bindings;
    cudaCall.sink = call.sink;
    cudaCall.numSinks = shape.qHeads;
    computeReference();
  }
  void expectRightOn(const std::vector<CudaMachine> &machines, PlanRequest request,
                     CudaTransport transport = CudaTransport::Copies) {
    expectRight(request, [&](const Schedule &forward, const Schedule *backward) {
      return runContextParallelCuda(forward, backward, call, cudaCall, tensors(), machines, transport);
    });
  }
  CudaCall cudaCall;
  std::vector<int64_t> dims;
};

CallShape gpuShape(int64_t batch, int64_t qHeads, int64_t kvHeads, int64_t length, int64_t headDim,
                   ElementType type = ElementType::BF16) {
  return {.batch = batch,
          .qHeads = qHeads,
          .kvHeads = kvHeads,
          .qLen = length,
          .kvLen = length,
          .headDim = headDim,
          .vHeadDim = headDim,
          .type = type};
}

constexpr Rotation kRotations[] = {Rotation::Ring, Rotation::AllGather, Rotation::Selective, Rotation::Ulysses};

TEST(CudaRanks, RowKernelsCompile) {
  StatusOr<std::shared_ptr<const Nvrtc>> nvrtc = Nvrtc::load();
  if (!nvrtc)
    GTEST_SKIP() << nvrtc.status().message();
  StatusOr<KernelImage> image = compileKernel(PartialRowKernels::source(90), **nvrtc);
  ASSERT_TRUE(image) << image.status().message();
  EXPECT_EQ(image->spillBytes, 0);
  for (const char *name : {"copy_rows", "add_rows", "convert_rows", "merge_partials", "row_terms"})
    EXPECT_NE(image->log.find(name), std::string::npos) << name;
}

TEST(CudaRanks, NcclNeedsAGpuForEachRank) {
  RankCase each(MaskRule::Causal, shapeOf(1, 2, 2, 64, 64));
  Schedule schedule = *planContextParallel(each.request(2));
  EXPECT_EQ(runContextParallelCuda(schedule, nullptr, each.call, {}, each.tensors(), {}, CudaTransport::Nccl).message(),
            "0 GPUs for 2 ranks; NCCL needs a GPU for each, the transport 'threads' lets ranks share one");
}

TEST(CudaRanks, CausalUnderEveryRotationAndLayout) {
  CPFLEX_GPUS_OR_SKIP(machines);
  CudaCase each(MaskRule::Causal, gpuShape(1, 4, 2, 1100, 128));
  for (LayoutKind layout : {LayoutKind::Contiguous, LayoutKind::HeadTail, LayoutKind::Striped})
    for (Rotation rotation : kRotations)
      for (int32_t worldSize : {1, 2, 3, 4}) {
        SCOPED_TRACE(std::string(toString(layout)) + " " + std::string(toString(rotation)) + " " +
                     std::to_string(worldSize));
        PlanRequest request = each.request(worldSize);
        request.layout = layout;
        request.rotation = rotation;
        each.expectRightOn(machines, request);
      }
}

TEST(CudaRanks, DocumentsScoresSinksAndOtherTypes) {
  CPFLEX_GPUS_OR_SKIP(machines);
  struct Variant {
    MaskRule rule;
    CallShape shape;
    bool hasScore, hasSink;
  };
  for (const Variant &variant : {Variant{MaskRule::Document, gpuShape(2, 4, 1, 777, 64), false, false},
                                 Variant{MaskRule::Window, gpuShape(1, 4, 2, 900, 64), true, true},
                                 Variant{MaskRule::Full, gpuShape(1, 2, 2, 515, 64, ElementType::F16), false, true}}) {
    CudaCase each(variant.rule, variant.shape, variant.hasScore, variant.hasSink);
    for (LayoutKind layout : {LayoutKind::PerDocument, LayoutKind::Solved})
      for (Rotation rotation : kRotations) {
        SCOPED_TRACE(std::to_string(int(variant.rule)) + " " + std::string(toString(layout)) + " " +
                     std::string(toString(rotation)));
        PlanRequest request = each.request(3);
        request.layout = layout;
        request.rotation = rotation;
        each.expectRightOn(machines, request);
      }
  }
}

TEST(CudaRanks, EveryRunGivesTheSameBitsAndAscendingKeysThoseOfOneRank) {
  CPFLEX_GPUS_OR_SKIP(machines);
  CudaCase each(MaskRule::Document, gpuShape(1, 4, 2, 1300, 128));
  auto bitsOf = [&](const PlanRequest &request) {
    Schedule forward = *planContextParallel(request), backward = *planBackward(request, forward);
    Status status = runContextParallelCuda(forward, &backward, each.call, each.cudaCall, each.tensors(), machines,
                                           CudaTransport::Copies);
    EXPECT_TRUE(status.isOk()) << status.message();
    return std::vector{each.out.bytes, each.lse.bytes, each.dQ.bytes, each.dK.bytes, each.dV.bytes};
  };
  const auto single = bitsOf(each.request(1));
  for (Rotation rotation : kRotations) {
    SCOPED_TRACE(std::string(toString(rotation)));
    PlanRequest request = each.request(4);
    request.rotation = rotation;
    request.layout = LayoutKind::HeadTail;
    const auto first = bitsOf(request);
    for (int repeat = 0; repeat < 5; ++repeat)
      EXPECT_TRUE(bitsOf(request) == first);
    if (rotation == Rotation::Ring)
      continue;
    request.keyOrder = KeyOrder::Ascending;
    const auto ascending = bitsOf(request);
    EXPECT_TRUE(ascending[0] == single[0]) << "O";
    EXPECT_TRUE(ascending[1] == single[1]) << "LSE";
  }
}

TEST(CudaRanks, PreparedComputesServeLaterRuns) {
  CPFLEX_GPUS_OR_SKIP(machines);
  CudaCase each(MaskRule::Causal, gpuShape(1, 2, 2, 700, 64));
  PlanRequest request = each.request(1);
  Schedule forward = *planContextParallel(request);
  auto port = CudaPort::open(machines[0].device);
  ASSERT_TRUE(port) << port.status().message();
  auto device = CudaExecutionDevice::create(machines[0], each.cudaCall, *port);
  ASSERT_TRUE(device) << device.status().message();
  CudaThreadsHub hub(1);
  CudaThreadsCommunicator communicator(hub, 0, *port);
  PreparedComputes prepared;
  ExecutorOptions options;
  options.device = device->get();
  options.prepared = &prepared;
  for (int run = 0; run < 3; ++run) {
    std::fill(each.out.bytes.begin(), each.out.bytes.end(), uint8_t(0xcd));
    Status status = runContextParallelThread(forward, nullptr, each.call, each.tensors(), communicator, options);
    ASSERT_TRUE(status.isOk()) << status.message();
    EXPECT_LE(relativeError(each.out.view, each.forward.out, each.out.sizes), 1e-2);
    EXPECT_EQ(prepared.computes.size(), 1u);
  }
}

/// One rank's rows of a whole host tensor in GPU memory, brought there and back by work in a stream.
struct DeviceShard {
  DeviceShard(const CudaMachine &machine, TestTensor &whole, const Layout &layout, int32_t rank)
      : device(machine.device), whole(whole), layout(layout), rank(rank),
        host(whole.sizes[0], whole.sizes[1], layout.shardSize(rank), whole.sizes[3], whole.view.type) {
    for (CudaBuffer *buffer : {&memory, &staged}) {
      auto allocated = CudaBuffer::allocate(device, host.sizeInBytes());
      EXPECT_TRUE(allocated) << allocated.status().message();
      *buffer = std::move(*allocated);
    }
    view = host.viewOf(memory.data());
    EXPECT_TRUE(shard(layout, rank, sequence(), whole.bytes.data(), host.bytes.data()));
    EXPECT_TRUE(copyToDevice(*device, staged.address(), host.bytes.data(), host.sizeInBytes(), nullptr));
    set(nullptr, 0xff);
    CurrentContext current(*device);
    EXPECT_EQ(device->driver().streamSynchronize(nullptr), cuda::kSuccess);
  }
  SequenceArrayShape sequence() const {
    return {.batch = whole.sizes[0],
            .outer = whole.sizes[1],
            .inner = whole.sizes[3],
            .elementSizeInBytes = sizeInBytes(whole.view.type)};
  }
  void set(cuda::Stream stream, uint8_t byte) {
    CurrentContext current(*device);
    EXPECT_EQ(device->driver().memsetD8Async(memory.address(), byte, size_t(host.sizeInBytes()), stream),
              cuda::kSuccess);
  }
  /// The values arrive when the work so far in the stream is done.
  void bring(cuda::Stream stream) {
    CurrentContext current(*device);
    EXPECT_EQ(device->driver().memcpyDtoDAsync(memory.address(), staged.address(), size_t(host.sizeInBytes()), stream),
              cuda::kSuccess);
  }
  void takeBack(cuda::Stream stream) {
    EXPECT_TRUE(copyToHost(*device, host.bytes.data(), memory.address(), host.sizeInBytes(), stream));
    EXPECT_TRUE(unshard(layout, rank, sequence(), host.bytes.data(), whole.bytes.data()));
  }

  /// Dense rows of the shard.
  struct Rows {
    Rows(int64_t batch, int64_t heads, int64_t rows, int64_t width, ElementType type)
        : strides{heads * rows * width, rows * width, width, 1}, type(type),
          bytes(size_t(batch * heads * rows * width * cpflex::sizeInBytes(type))) {}
    int64_t sizeInBytes() const { return int64_t(bytes.size()); }
    TensorView viewOf(void *data) const { return {data, type, {strides[0], strides[1], strides[2], strides[3]}}; }
    int64_t strides[4];
    ElementType type;
    std::vector<uint8_t> bytes;
  };
  std::shared_ptr<const CudaDevice> device;
  TestTensor &whole;
  const Layout &layout;
  int32_t rank;
  Rows host;
  CudaBuffer memory, staged;
  TensorView view;
};

/// Two calls of one rank, as of two layers, between the work of a caller's slow stream; nothing else waits.
Status runTwoLayers(CudaCase &each, const CudaMachine &machine, CudaCommunicator &communicator,
                    const Schedule &forward) {
  const int32_t rank = communicator.rank();
  auto stream = CudaStream::create(machine.device);
  auto slow = CudaBuffer::allocate(machine.device, int64_t(1) << 28);
  if (!stream || !slow)
    return stream ? slow.status() : stream.status();
  for (int layer = 0; layer < 2; ++layer) {
    auto device = CudaExecutionDevice::create(machine, each.cudaCall, communicator.port());
    if (!device)
      return device.status();
    DeviceShard q(machine, each.q, forward.qLayout, rank), k(machine, each.k, forward.kvLayout, rank),
        v(machine, each.v, forward.kvLayout, rank), out(machine, each.out, forward.qLayout, rank),
        lse(machine, each.lse, forward.qLayout, rank);
    RunReport report;
    ExecutorOptions options;
    options.device = device->get();
    options.report = &report;
    options.completion = ExecutorOptions::Completion::LinedUp;
    {
      CurrentContext current(*machine.device);
      for (int repeat = 0; repeat < 64; ++repeat)
        EXPECT_EQ(
            machine.device->driver().memsetD8Async(slow->address(), 0, size_t(slow->sizeInBytes()), stream->get()),
            cuda::kSuccess);
    }
    for (DeviceShard *input : {&q, &k, &v})
      input->bring(stream->get());
    CPFLEX_RETURN_IF_ERROR((*device)->startAfter(stream->get()));
    CPFLEX_RETURN_IF_ERROR(
        runForward(forward, each.call, {q.view, k.view, v.view, out.view, lse.view}, communicator, options));
    CPFLEX_RETURN_IF_ERROR((*device)->finishBefore(stream->get()));
    EXPECT_TRUE(report.events.empty());
    EXPECT_GT(report.received.size() + report.sent.size(), 0u);
    static std::mutex mutex;
    std::lock_guard lock(mutex);
    out.takeBack(stream->get());
    lse.takeBack(stream->get());
  }
  return Status::ok();
}

TEST(CudaRanks, LayersShareACommunicatorBetweenWorkOfTheCallersStream) {
  CPFLEX_GPUS_OR_SKIP(machines);
  CudaCase each(MaskRule::Causal, gpuShape(1, 4, 2, 1500, 64));
  PlanRequest request = each.request(2);
  request.layout = LayoutKind::HeadTail;
  const Schedule forward = *planContextParallel(request);
  auto library = NcclLibrary::load();
  for (CudaTransport transport : {CudaTransport::Copies, CudaTransport::Nccl}) {
    if (transport == CudaTransport::Nccl && (machines.size() < 2 || !library))
      continue;
    SCOPED_TRACE(transport == CudaTransport::Nccl ? "nccl" : "copies");
    for (TestTensor *result : {&each.out, &each.lse})
      std::fill(result->bytes.begin(), result->bytes.end(), uint8_t(0xcd));
    CudaThreadsHub hub(2);
    NcclPlace place{.id = {}, .rank = 0, .worldSize = 2};
    if (transport == CudaTransport::Nccl)
      place.id = *(*library)->newId();
    const auto runRank = [&](int32_t rank) -> Status {
      const CudaMachine &machine = machines[size_t(rank) % machines.size()];
      auto port = CudaPort::open(machine.device, {machines[0].device->description().index,
                                                  machines[1 % machines.size()].device->description().index});
      if (!port)
        return port.status();
      if (transport == CudaTransport::Copies) {
        CudaThreadsCommunicator communicator(hub, rank, *port);
        Status status = runTwoLayers(each, machine, communicator, forward);
        if (!status)
          communicator.abort(status);
        return status;
      }
      NcclPlace own = place;
      own.rank = rank;
      auto communicator = NcclCommunicator::join(*library, *port, own, 60.0);
      return communicator ? runTwoLayers(each, machine, **communicator, forward) : communicator.status();
    };
    std::vector<Status> statuses(2);
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < 2; ++rank)
      threads.emplace_back([&, rank] { statuses[size_t(rank)] = runRank(rank); });
    for (std::thread &thread : threads)
      thread.join();
    EXPECT_TRUE(firstFailure(statuses).isOk()) << firstFailure(statuses).message();
    EXPECT_LE(relativeError(each.out.view, each.forward.out, each.out.sizes), toleranceOf(ElementType::BF16));
    EXPECT_LE(relativeError(each.lse.view, each.forward.lse, each.lse.sizes), 2e-6);
  }
}

TEST(CudaRanks, AMissingPeerIsAnErrorBeforeTheDeadline) {
  CPFLEX_GPUS_OR_SKIP(machines);
  auto port = CudaPort::open(machines[0].device);
  ASSERT_TRUE(port) << port.status().message();
  CudaThreadsHub hub(2);
  CudaThreadsCommunicator communicator(hub, 0, *port);
  auto memory = CudaBuffer::allocate(machines[0].device, 64);
  ASSERT_TRUE(memory);
  EXPECT_EQ(exchange(communicator, {2, "kv", {}, {{1, memory->data(), 64}}}, deadlineIn(0.01)).message(),
            "no message from rank 1 at rank 0 in step 2 (kv) before the deadline; expected 64 bytes");
  EXPECT_EQ(exchange(communicator, {3, "dkv", {{1, memory->data(), 64}}, {}}, deadlineIn(0.01)).message(),
            "rank 1 did not take a message of rank 0 in step 3 (dkv) before the deadline");
}

/// The library, or why the tests of NCCL are skipped.
StatusOr<std::shared_ptr<const NcclLibrary>> ncclOf(const std::vector<CudaMachine> &machines) {
  if (machines.empty())
    return Status::unavailable("no GPU");
  return NcclLibrary::load();
}

TEST(CudaRanks, OneRankSendsToItselfThroughNccl) {
  CPFLEX_GPUS_OR_SKIP(machines);
  auto library = ncclOf(machines);
  if (!library)
    GTEST_SKIP() << library.status().message();
  const CudaMachine &machine = machines[0];
  auto port = CudaPort::open(machine.device);
  auto id = (*library)->newId();
  ASSERT_TRUE(port && id) << id.status().message();
  auto communicator = NcclCommunicator::join(*library, *port, {*id, 0, 1}, 60.0);
  ASSERT_TRUE(communicator) << communicator.status().message();
  std::vector<int32_t> values(5000), back(5000);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = int32_t(i * i);
  const int64_t bytes = int64_t(values.size() * sizeof(int32_t));
  auto from = CudaBuffer::allocate(machine.device, bytes), to = CudaBuffer::allocate(machine.device, bytes);
  ASSERT_TRUE(from && to);
  for (int step = 0; step < 3; ++step) {
    values[0] = step;
    ASSERT_TRUE(copyToDevice(*machine.device, from->address(), values.data(), bytes, (*port)->stream()));
    Status status =
        exchange(**communicator, {step, "kv", {{0, from->data(), bytes}}, {{0, to->data(), bytes}}}, deadlineIn(30));
    ASSERT_TRUE(status.isOk()) << status.message();
    ASSERT_TRUE(copyToHost(*machine.device, back.data(), to->address(), bytes, (*port)->stream()));
    EXPECT_EQ(back, values);
  }
  EXPECT_TRUE(exchange(**communicator, {3, "nothing", {}, {}}, deadlineIn(1)));
}

TEST(CudaRanks, OneRankThroughNcclAndManyCommunicatorsInTurn) {
  CPFLEX_GPUS_OR_SKIP(machines);
  auto library = ncclOf(machines);
  if (!library)
    GTEST_SKIP() << library.status().message();
  CudaCase each(MaskRule::Causal, gpuShape(1, 2, 2, 300, 64));
  for (int repeat = 0; repeat < 3; ++repeat)
    each.expectRightOn({machines[0]}, each.request(1), CudaTransport::Nccl);
}

TEST(CudaRanks, NcclNamesThePeerThatDoesNotCome) {
  CPFLEX_GPUS_OR_SKIP(machines);
  auto library = ncclOf(machines);
  if (!library)
    GTEST_SKIP() << library.status().message();
  auto port = CudaPort::open(machines[0].device);
  auto id = (*library)->newId();
  ASSERT_TRUE(port && id);
  auto communicator = NcclCommunicator::join(*library, *port, {*id, 0, 2}, 2.0);
  ASSERT_FALSE(communicator);
  EXPECT_EQ(communicator.status().message(),
            "NCCL was not done with rank 0 of 2 joining the other ranks on GPU 0 before the deadline");
}

TEST(CudaRanks, EveryRotationThroughNccl) {
  CPFLEX_GPUS_OR_SKIP(machines);
  auto library = ncclOf(machines);
  if (!library)
    GTEST_SKIP() << library.status().message();
  if (machines.size() < 2)
    GTEST_SKIP() << "one GPU; NCCL between ranks needs two";
  CudaCase each(MaskRule::Document, gpuShape(2, 4, 2, 1100, 128));
  for (CudaTransport transport : {CudaTransport::Nccl, CudaTransport::Copies})
    for (Rotation rotation : kRotations) {
      SCOPED_TRACE(std::string(toString(rotation)));
      PlanRequest request = each.request(2);
      request.rotation = rotation;
      request.layout = LayoutKind::HeadTail;
      each.expectRightOn({machines[0], machines[1]}, request, transport);
    }
}

} // namespace
