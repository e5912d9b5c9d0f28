// Do ranks on a GPU together compute what one device computes? Several ranks share GPU 0; with more GPUs NCCL joins.
// Skipped where there is no GPU, but for what needs none.
#include "RankCase.h"
#include "runtime/Comm/CudaThreadsCommunicator.h"
#include "runtime/Comm/ThreadsCommunicator.h"
#include "runtime/Cuda/CompileKernel.h"
#include "runtime/Executor/CudaRanks.h"
#include "test/runtime/Cuda/TestFunctors.h"

#include <gtest/gtest.h>

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
      : rule == MaskRule::Full && !hasScore ? noFunctor()
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
    functions.text += "  static constexpr int kNumScatters = 1;\n"
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
  return {.batch = batch, .qHeads = qHeads, .kvHeads = kvHeads, .qLen = length, .kvLen = length, .headDim = headDim,
          .vHeadDim = headDim, .type = type};
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
    Status status =
        runContextParallelCuda(forward, &backward, each.call, each.cudaCall, each.tensors(), machines, CudaTransport::Copies);
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
  auto device = CudaExecutionDevice::create(machines[0], each.cudaCall);
  ASSERT_TRUE(device) << device.status().message();
  CudaThreadsHub hub(1);
  CudaThreadsCommunicator communicator(hub, 0, (*device)->device(), (*device)->stream(DeviceQueue::Transfer));
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

TEST(CudaRanks, AMissingPeerIsAnErrorBeforeTheDeadline) {
  CPFLEX_GPUS_OR_SKIP(machines);
  auto stream = CudaStream::create(machines[0].device);
  ASSERT_TRUE(stream);
  CudaThreadsHub hub(2);
  CudaThreadsCommunicator communicator(hub, 0, machines[0].device, stream->get());
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
  auto stream = CudaStream::create(machine.device);
  auto id = (*library)->newId();
  ASSERT_TRUE(stream && id) << id.status().message();
  auto communicator = NcclCommunicator::join(*library, machine.device, stream->get(), {*id, 0, 1}, 60.0);
  ASSERT_TRUE(communicator) << communicator.status().message();
  std::vector<int32_t> values(5000), back(5000);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = int32_t(i * i);
  const int64_t bytes = int64_t(values.size() * sizeof(int32_t));
  auto from = CudaBuffer::allocate(machine.device, bytes), to = CudaBuffer::allocate(machine.device, bytes);
  ASSERT_TRUE(from && to);
  for (int step = 0; step < 3; ++step) {
    values[0] = step;
    ASSERT_TRUE(copyToDevice(*machine.device, from->address(), values.data(), bytes, stream->get()));
    Status status = exchange(**communicator, {step, "kv", {{0, from->data(), bytes}}, {{0, to->data(), bytes}}},
                             deadlineIn(30));
    ASSERT_TRUE(status.isOk()) << status.message();
    ASSERT_TRUE(copyToHost(*machine.device, back.data(), to->address(), bytes, stream->get()));
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
  auto stream = CudaStream::create(machines[0].device);
  auto id = (*library)->newId();
  ASSERT_TRUE(stream && id);
  auto communicator = NcclCommunicator::join(*library, machines[0].device, stream->get(), {*id, 0, 2}, 2.0);
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
