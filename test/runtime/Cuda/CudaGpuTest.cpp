// The whole way on a real GPU: compiled functors, launched kernels, results against the reference in double precision.
// Skipped where there is no GPU. Lengths are odd and small; every kernel of both families runs.
#include "runtime/Cuda/CudaAttention.h"
#include "runtime/Cuda/CudaExecutable.h"
#include "runtime/Host/ReferenceAttention.h"
#include "test/runtime/Cuda/HostMirror.h"
#include "test/runtime/Cuda/TestFunctors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace cpflex {
namespace {

struct Case {
  std::string functor;
  int64_t batch = 2, qHeads = 4, kvHeads = 2, qLen = 300, kvLen = 300, headDim = 64, vHeadDim = 64;
  ElementType element = ElementType::BF16;
  std::optional<KernelFamily> family = {};
  enum class Mask { None, Exact } mask = Mask::Exact;
  enum class Sink { None, Given } sink = Sink::None;
  AttentionProblem::Normalization normalization = AttentionProblem::Normalization::Softmax;
  enum class Order { BHSD, BSHD } order = Order::BHSD;
  PositionMap qPositions = {}, kvPositions = {};
  int64_t headOffset = 0, batchOffset = 0;
  std::string label = "";

  std::string name() const {
    std::string text = fmt::format("{}_{}x{}_d{}x{}_{}_{}", functor, qLen, kvLen, headDim, vHeadDim, toString(element),
                                   !family                          ? "table"
                                   : *family == KernelFamily::Wgmma ? "wgmma"
                                                                    : "mma_sync");
    return label.empty() ? text : text + "_" + label;
  }
};

void PrintTo(const Case &c, std::ostream *out) { *out << c.name(); }

uint16_t toElement(float value, ElementType type) {
  if (type == ElementType::F16)
    return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
  auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// Arrays, bindings and the problem of one case on the host.
struct Arrays {
  explicit Arrays(const Case &c) : c(c) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    auto fill = [&](std::vector<uint16_t> &values, int64_t count) {
      for (int64_t i = 0; i < count; ++i)
        values.push_back(toElement(normal(random), c.element));
    };
    fill(q, c.batch * c.qHeads * c.qLen * c.headDim);
    fill(k, c.batch * c.kvHeads * c.kvLen * c.headDim);
    fill(v, c.batch * c.kvHeads * c.kvLen * c.vHeadDim);
    fill(dO, c.batch * c.qHeads * c.qLen * c.vHeadDim);
    // Poison: what is not written stays NaN.
    o.assign(dO.size(), 0xffff), dQ.assign(q.size(), 0xffff), dK.assign(k.size(), 0xffff), dV.assign(v.size(), 0xffff);
    lse.assign(c.batch * c.qHeads * c.qLen, NAN);
    for (int64_t i = 0; i < c.qHeads + c.headOffset; ++i)
      sink.push_back(normal(random));
    dSink.assign(c.qHeads, NAN);

    int64_t positions = 1;
    for (const PositionMap *map : {&c.qPositions, &c.kvPositions})
      for (const AffinePiece &piece : map->pieces)
        positions = std::max(positions, piece.begin + piece.count * piece.step);
    positions = std::max({positions, c.qLen, c.kvLen});
    int64_t batch = c.batch + c.batchOffset, heads = c.qHeads + c.headOffset;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < positions; ++i)
        documents.push_back(static_cast<int32_t>((i + 31 * b) / 97));
    for (int64_t i = 0; i < heads * 63; ++i)
      bias.push_back(0.3f * normal(random));
    for (int64_t h = 0; h < heads; ++h)
      slopes.push_back(std::exp2(-2.0f - static_cast<float>(h)));
    CaptureView document{.data = documents.data(),
                         .shape = {batch, positions},
                         .strides = {positions, 1},
                         .type = ElementType::I32,
                         .rank = 2};
    if (c.functor == "document_causal" || c.functor == "large")
      captures.push_back(document);
    if (c.functor == "large")
      captures.push_back(
          {.data = bias.data(), .shape = {heads, 63}, .strides = {63, 1}, .type = ElementType::F32, .rank = 2});
    if (c.functor == "large" || c.functor == "temperature")
      captures.push_back(
          {.data = slopes.data(), .shape = {heads}, .strides = {1}, .type = ElementType::F32, .rank = 1});
    ScalarSlot cap = std::bit_cast<uint32_t>(5.0f);
    if (c.functor == "large")
      params = {40, 3, cap};
    if (c.functor == "soft_cap")
      params = {cap};
    dims = {c.batch, c.qHeads, c.kvHeads, c.qLen, c.kvLen};
    bindings = {.captures = captures.data(), .params = params.data(), .dims = dims.data()};

    functions = test::hostFunctions(c.functor);
    problem.batch = c.batch, problem.qHeads = c.qHeads, problem.kvHeads = c.kvHeads, problem.qLen = c.qLen,
    problem.kvLen = c.kvLen;
    problem.headDim = c.headDim, problem.vHeadDim = c.vHeadDim;
    problem.scale = 1.0f / std::sqrt(static_cast<float>(c.headDim));
    problem.normalization = c.normalization;
    problem.batchOffset = c.batchOffset, problem.headOffset = c.headOffset;
    problem.qPositions = c.qPositions, problem.kvPositions = c.kvPositions;
    problem.functions = &functions, problem.bindings = &bindings;
    problem.sink = c.sink == Case::Sink::Given ? sink.data() : nullptr;
    mask = test::bruteForceMask(problem, 128, 128);
    problem.mask = &mask;
  }
  TensorView view(std::vector<uint16_t> &values, int64_t heads, int64_t length, int64_t dim) const {
    TensorView result{values.data(), c.element, {heads * length * dim, length * dim, dim, 1}};
    if (c.order == Case::Order::BSHD)
      result.strides[1] = dim, result.strides[2] = heads * dim;
    return result;
  }
  HostAttentionArrays hostArrays(CudaProgramOptions::Passes passes) {
    HostAttentionArrays arrays;
    arrays.q = view(q, c.qHeads, c.qLen, c.headDim), arrays.k = view(k, c.kvHeads, c.kvLen, c.headDim);
    arrays.v = view(v, c.kvHeads, c.kvLen, c.vHeadDim), arrays.o = view(o, c.qHeads, c.qLen, c.vHeadDim);
    if (c.normalization == AttentionProblem::Normalization::Softmax)
      arrays.lse = {lse.data(), ElementType::F32, {c.qHeads * c.qLen, c.qLen, 1, 1}};
    if (passes == CudaProgramOptions::Passes::ForwardAndBackward) {
      arrays.dO = view(dO, c.qHeads, c.qLen, c.vHeadDim), arrays.dQ = view(dQ, c.qHeads, c.qLen, c.headDim);
      arrays.dK = view(dK, c.kvHeads, c.kvLen, c.headDim), arrays.dV = view(dV, c.kvHeads, c.kvLen, c.vHeadDim);
      arrays.dSink = c.sink == Case::Sink::Given ? dSink.data() : nullptr;
    }
    return arrays;
  }
  DeviceFunctions deviceFunctions() const {
    DeviceFunctions functions = c.functor == "none"              ? test::noFunctor()
                                : c.functor == "causal"          ? test::causal()
                                : c.functor == "document_causal" ? test::documentCausal()
                                : c.functor == "soft_cap"        ? test::softCap()
                                : c.functor == "temperature"     ? test::temperature()
                                                                 : test::large();
    functions.numCaptures = static_cast<int>(captures.size());
    functions.numParams = static_cast<int>(params.size());
    return functions;
  }

  Case c;
  std::vector<uint16_t> q, k, v, dO, o, dQ, dK, dV;
  std::vector<float> lse, sink, dSink, bias, slopes;
  std::vector<int32_t> documents;
  std::vector<CaptureView> captures;
  std::vector<ScalarSlot> params;
  std::vector<int64_t> dims;
  Bindings bindings;
  HostFunctions functions;
  BlockMask mask;
  AttentionProblem problem;
};

class CudaGpuTest : public testing::TestWithParam<Case> {
protected:
  StatusOr<CudaMachine> machine = CudaMachine::open(0);
  void SetUp() override { ASSERT_TRUE(machine) << machine.status().message(); }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaGpuTest);

TEST(CudaGpu, IsThere) {
  StatusOr<CudaMachine> machine = CudaMachine::open(0);
  if (!machine)
    GTEST_SKIP() << machine.status().message();
}

// Rounding to bf16 or f16 once at the end and once for the weights; sums are f32.
double tolerance(ElementType type) { return type == ElementType::BF16 ? 5e-3 : 8e-4; }

/// Whether an LSE is within 1e-5 of the expected one, absolute and relative; infinities are equal.
bool isNear(float actual, double expected) {
  return actual == expected || std::abs(actual - expected) <= 1e-5 * std::max(1.0, std::abs(expected));
}

TEST_P(CudaGpuTest, AgreesWithTheReference) {
  const Case &c = GetParam();
  Arrays host(c);
  AttentionProblem problem = host.problem;
  if (c.mask == Case::Mask::None)
    problem.mask = nullptr;
  HostAttentionArrays arrays = host.hostArrays(CudaProgramOptions::Passes::ForwardAndBackward);
  auto report = runAttentionCuda(*machine, host.deviceFunctions(), problem, arrays,
                                 {.warmups = 0, .timed = 1, .family = c.family});
  ASSERT_TRUE(report) << report.status().message();

  auto forward = referenceAttentionForward(host.problem, arrays.q, arrays.k, arrays.v);
  ASSERT_TRUE(forward) << forward.status().message();
  EXPECT_LT(relativeError(arrays.o, forward->out, {c.batch, c.qHeads, c.qLen, c.vHeadDim}), tolerance(c.element));
  if (arrays.lse.data)
    for (size_t i = 0; i < host.lse.size(); ++i)
      ASSERT_TRUE(isNear(host.lse[i], forward->lse[i])) << host.lse[i] << ", not " << forward->lse[i] << ", at " << i;
  auto backward = referenceAttentionBackward(host.problem, arrays.q, arrays.k, arrays.v, arrays.dO, {});
  ASSERT_TRUE(backward) << backward.status().message();
  EXPECT_LT(relativeError(arrays.dQ, backward->dQ, {c.batch, c.qHeads, c.qLen, c.headDim}), 2 * tolerance(c.element));
  EXPECT_LT(relativeError(arrays.dK, backward->dK, {c.batch, c.kvHeads, c.kvLen, c.headDim}), 2 * tolerance(c.element));
  EXPECT_LT(relativeError(arrays.dV, backward->dV, {c.batch, c.kvHeads, c.kvLen, c.vHeadDim}),
            2 * tolerance(c.element));
  if (arrays.dSink) {
    TensorView dSink{arrays.dSink, ElementType::F32, {c.qHeads, 1, 1, 1}};
    EXPECT_LT(relativeError(dSink, backward->sink, {1, c.qHeads, 1, 1}), 2 * tolerance(c.element));
  }

  // The same bits again, and with every visited tile partial.
  std::vector<uint16_t> o = host.o, dQ = host.dQ, dK = host.dK, dV = host.dV;
  std::vector<float> lse = host.lse;
  BlockMask allPartial = host.mask;
  bool canBePartial = host.deviceFunctions().hasMask && problem.mask;
  if (canBePartial) {
    for (TileRows &rows : allPartial.rowSets)
      for (TileRun &run : rows.runs)
        run.tileClass = TileClass::Partial;
    problem.mask = &allPartial;
  }
  for (std::vector<uint16_t> *output : {&host.o, &host.dQ, &host.dK, &host.dV})
    std::ranges::fill(*output, 0xffff);
  std::ranges::fill(host.lse, NAN);
  report = runAttentionCuda(*machine, host.deviceFunctions(), problem, arrays,
                            {.warmups = 0, .timed = 1, .family = c.family});
  ASSERT_TRUE(report) << report.status().message();
  EXPECT_TRUE(o == host.o) << "bits of O differ";
  EXPECT_TRUE(lse.empty() || !arrays.lse.data ||
              std::memcmp(lse.data(), host.lse.data(), lse.size() * sizeof(float)) == 0)
      << "bits of LSE differ";
  EXPECT_TRUE(dQ == host.dQ && dK == host.dK && dV == host.dV) << "bits of gradients differ";
}

/// The cases where there is a GPU to run them; one skipped test says that there is none.
std::vector<Case> cases() {
  std::vector<Case> cases;
  if (!CudaMachine::open(0))
    return cases;
  auto add = [&](Case c) { cases.push_back(std::move(c)); };
  for (std::optional<KernelFamily> family : {std::optional<KernelFamily>(), std::optional(KernelFamily::MmaSync)}) {
    for (const char *functor : {"none", "causal", "document_causal", "soft_cap", "temperature", "large"})
      add({.functor = functor, .family = family});
    for (auto [d, dv] : {std::pair<int64_t, int64_t>{128, 128}, {192, 128}, {256, 256}, {40, 72}})
      add({.functor = "document_causal", .headDim = d, .vHeadDim = dv, .family = family});
    add({.functor = "causal", .headDim = 128, .vHeadDim = 128, .element = ElementType::F16, .family = family});
    add({.functor = "causal",
         .qLen = 1,
         .kvLen = 517,
         .family = family,
         .qPositions = {{{400, 1, 1}}},
         .label = "one_query"});
    // A sink, so that weights are not 1 and gradients not 0.
    add({.functor = "causal",
         .qLen = 517,
         .kvLen = 1,
         .family = family,
         .sink = Case::Sink::Given,
         .label = "one_key"});
    add({.functor = "causal",
         .qHeads = 6,
         .kvHeads = 1,
         .family = family,
         .sink = Case::Sink::Given,
         .headOffset = 3,
         .label = "sink"});
    add({.functor = "document_causal", .family = family, .mask = Case::Mask::None, .label = "no_block_mask"});
    add({.functor = "soft_cap",
         .family = family,
         .normalization = AttentionProblem::Normalization::None,
         .label = "no_softmax"});
    add({.functor = "document_causal",
         .family = family,
         .order = Case::Order::BSHD,
         .batchOffset = 1,
         .label = "bshd"});
    add({.functor = "large",
         .qLen = 256,
         .kvLen = 384,
         .family = family,
         .qPositions = {{{0, 128, 1}, {640, 128, 1}}},
         .kvPositions = {{{0, 128, 1}, {256, 256, 2}}},
         .label = "affine"});
    add({.functor = "document_causal",
         .qLen = 200,
         .kvLen = 300,
         .family = family,
         .qPositions = {{{10, 100, 3}, {400, 100, 1}}},
         .kvPositions = {{{0, 100, 1}, {300, 200, 1}}},
         .label = "array"});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaGpuTest, testing::ValuesIn(cases()),
                         [](const testing::TestParamInfo<Case> &info) { return info.param.name(); });

/// The functions of the driver that record and replay graphs; only this test calls them.
struct Graphs {
  SharedLibrary library;
  template <typename... Parameters> cuda::Result call(const char *symbol, Parameters... parameters) const {
    auto function = reinterpret_cast<cuda::Result (*)(Parameters...)>(library.symbol(symbol));
    return function ? function(parameters...) : cuda::kNotInitialized;
  }
};

TEST(CudaGpu, ReplayedGraphSeesNewDocumentsMaskAndParams) {
  StatusOr<CudaMachine> machine = CudaMachine::open(0);
  if (!machine)
    GTEST_SKIP() << machine.status().message();
  Arrays host({.functor = "large"});
  const Case &c = host.c;
  AttentionProblem problem = host.problem;
  constexpr auto kPasses = CudaProgramOptions::Passes::ForwardAndBackward;
  CudaProgramOptions options;
  options.passes = kPasses;
  auto program = CudaProgram::create(machine->device, machine->toolchain, host.deviceFunctions(), options);
  auto stream = CudaStream::create(machine->device);
  ASSERT_TRUE(program && stream) << program.status().message();

  HostAttentionArrays arrays = host.hostArrays(kPasses);
  std::vector<CudaBuffer> buffers;
  auto upload = [&](const void *bytes, size_t size) {
    buffers.push_back(std::move(*CudaBuffer::allocate(machine->device, static_cast<int64_t>(size))));
    EXPECT_TRUE(
        copyToDevice(*machine->device, buffers.back().address(), bytes, static_cast<int64_t>(size), stream->get()));
    return buffers.back().data();
  };
  auto onGpu = [&](TensorView view, auto &values) {
    view.data = upload(values.data(), values.size() * sizeof(values[0]));
    return view;
  };
  CudaForwardTensors tensors{onGpu(arrays.q, host.q), onGpu(arrays.k, host.k), onGpu(arrays.v, host.v),
                             onGpu(arrays.o, host.o), onGpu(arrays.lse, host.lse)};
  CudaBackwardTensors gradients;
  gradients.q = tensors.q, gradients.k = tensors.k, gradients.v = tensors.v;
  gradients.o = tensors.o, gradients.lse = tensors.lse;
  gradients.dO = onGpu(arrays.dO, host.dO), gradients.dQ = onGpu(arrays.dQ, host.dQ);
  gradients.dK = onGpu(arrays.dK, host.dK), gradients.dV = onGpu(arrays.dV, host.dV);
  std::vector<CaptureView> captures = host.captures;
  void *documents = upload(host.documents.data(), host.documents.size() * 4);
  captures[0].data = documents;
  captures[1].data = upload(host.bias.data(), host.bias.size() * 4);
  captures[2].data = upload(host.slopes.data(), host.slopes.size() * 4);
  Bindings onDevice = host.bindings;
  onDevice.captures = captures.data();
  problem.bindings = &onDevice;
  auto executable = CudaExecutable::bind(*program, problem, stream->get());
  ASSERT_TRUE(executable) << executable.status().message();
  using Pass = CudaExecutable::Pass;
  auto workspace = CudaBuffer::allocate(machine->device, (*executable)->workspaceInBytes(Pass::Forward));
  auto backwardWorkspace = CudaBuffer::allocate(machine->device, (*executable)->workspaceInBytes(Pass::Backward));
  ASSERT_TRUE(workspace && backwardWorkspace);

  CurrentContext current(*machine->device);
  Graphs graphs{*SharedLibrary::open(cudaDriverSearch())};
  void *graph = nullptr, *replay = nullptr;
  constexpr int kThreadLocalCapture = 1;
  ASSERT_EQ(graphs.call("cuStreamBeginCapture_v2", stream->get(), kThreadLocalCapture), cuda::kSuccess);
  ASSERT_TRUE((*executable)->forward(tensors, workspace->data(), stream->get()));
  ASSERT_TRUE((*executable)->backward(gradients, backwardWorkspace->data(), stream->get()));
  ASSERT_EQ(graphs.call("cuStreamEndCapture", stream->get(), &graph), cuda::kSuccess);
  ASSERT_EQ(graphs.call("cuGraphInstantiateWithFlags", &replay, graph, 0ull), cuda::kSuccess);

  for (int32_t length : {97, 61, 150}) {
    for (size_t i = 0; i < host.documents.size(); ++i)
      host.documents[i] = static_cast<int32_t>(i) % 300 / length;
    // The window follows the documents, the soft cap as well.
    host.params = {length / 2, 3, std::bit_cast<uint32_t>(static_cast<float>(length) / 20.0f)};
    host.mask = test::bruteForceMask(host.problem, 128, 128);
    problem.mask = &host.mask;
    ASSERT_TRUE(copyToDevice(*machine->device, reinterpret_cast<cuda::DeviceAddress>(documents), host.documents.data(),
                             static_cast<int64_t>(host.documents.size() * 4), stream->get()));
    ASSERT_TRUE((*executable)->update(problem, stream->get()));
    ASSERT_EQ(graphs.call("cuGraphLaunch", replay, stream->get()), cuda::kSuccess);
    auto fetch = [&](std::vector<uint16_t> &values, const TensorView &from) {
      EXPECT_TRUE(copyToHost(*machine->device, values.data(), reinterpret_cast<cuda::DeviceAddress>(from.data),
                             static_cast<int64_t>(values.size() * 2), stream->get()));
    };
    fetch(host.o, tensors.o), fetch(host.dQ, gradients.dQ), fetch(host.dK, gradients.dK), fetch(host.dV, gradients.dV);
    auto expected = referenceAttentionForward(host.problem, arrays.q, arrays.k, arrays.v);
    auto backward = referenceAttentionBackward(host.problem, arrays.q, arrays.k, arrays.v, arrays.dO, {});
    ASSERT_TRUE(expected && backward);
    double limit = tolerance(c.element);
    EXPECT_LT(relativeError(arrays.o, expected->out, {c.batch, c.qHeads, c.qLen, c.vHeadDim}), limit) << length;
    EXPECT_LT(relativeError(arrays.dQ, backward->dQ, {c.batch, c.qHeads, c.qLen, c.headDim}), 2 * limit) << length;
    EXPECT_LT(relativeError(arrays.dK, backward->dK, {c.batch, c.kvHeads, c.kvLen, c.headDim}), 2 * limit) << length;
    EXPECT_LT(relativeError(arrays.dV, backward->dV, {c.batch, c.kvHeads, c.kvLen, c.vHeadDim}), 2 * limit) << length;
  }
}

TEST(CudaGpu, HostMemoryIsRefusedAndTheNextCallWorks) {
  StatusOr<CudaMachine> machine = CudaMachine::open(0);
  if (!machine)
    GTEST_SKIP() << machine.status().message();
  Arrays host({.functor = "causal"});
  auto program = CudaProgram::create(machine->device, machine->toolchain, host.deviceFunctions(), {});
  ASSERT_TRUE(program) << program.status().message();
  auto executable = CudaExecutable::bind(*program, host.problem, nullptr);
  ASSERT_TRUE(executable) << executable.status().message();
  HostAttentionArrays arrays = host.hostArrays(CudaProgramOptions::Passes::Forward);
  EXPECT_EQ((*executable)->forward({arrays.q, arrays.k, arrays.v, arrays.o, arrays.lse}, nullptr, nullptr).message(),
            "'q' is not in GPU memory");
  EXPECT_THAT(CudaBuffer::allocate(machine->device, int64_t(1) << 45).status().message(),
              testing::HasSubstr("bytes of GPU memory were asked for"));
  auto report = runAttentionCuda(*machine, host.deviceFunctions(), host.problem, arrays);
  EXPECT_TRUE(report) << report.status().message();
}

} // namespace
} // namespace cpflex
