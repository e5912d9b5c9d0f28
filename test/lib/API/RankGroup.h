// A small attention call with every kind of input, on one device and shared by ranks that are threads.
#pragma once

#include "lib/API/cpflex.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <thread>

namespace cpflex::test {

inline constexpr const char *kRankProgram =
    "slopes: tensor[f32, H](grad=True)\nsinks: tensor[f32, H](grad=True)\ndoc: tensor[i32, B, KV_LEN]\n"
    "@mask\ndef packed(b, h, q, kv):\n    return (q >= kv) & (doc[b, q] == doc[b, kv])\n"
    "@score\ndef alibi(s, b, h, q, kv):\n    return s + slopes[h] * (kv - q)\n"
    "attention(\"main\", mask=packed, score=alibi, sink=sinks)\n"
    "attention(\"all\")\n"
    "attention(\"linear\", mask=packed, softmax=False)\n";

/// Values [batch, heads, rows, width] in one piece.
struct Values {
  int64_t shape[4] = {};
  std::vector<float> data;

  Values() = default;
  Values(std::initializer_list<int64_t> sizes, uint32_t seed) {
    std::copy(sizes.begin(), sizes.end(), shape);
    data.resize(size_t(shape[0] * shape[1] * shape[2] * shape[3]), 0.0f);
    std::mt19937 random(seed);
    for (float &value : data)
      value = seed ? float(int(random() % 2001) - 1000) * 1e-3f : -7.0f;
  }
  CallTensor tensor() {
    return {.data = data.data(),
            .type = ElementType::F32,
            .shape = {shape[0], shape[1], shape[2], shape[3]},
            .strides = {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1},
            .device = {DeviceType::Cpu, 0}};
  }
  SequenceArrayShape sequence() const {
    return {.batch = shape[0], .outer = shape[1], .inner = shape[3], .elementSizeInBytes = int64_t(sizeof(float))};
  }
  Values shardOf(const Layout &layout, int32_t rank) const {
    Values local({shape[0], shape[1], layout.shardSize(rank), shape[3]}, 0);
    EXPECT_TRUE(shard(layout, rank, sequence(), data.data(), local.data.data()));
    return local;
  }
  void put(const Layout &layout, int32_t rank, const Values &local) {
    EXPECT_TRUE(unshard(layout, rank, sequence(), local.data.data(), data.data()));
  }
};

/// Largest difference in units of the largest value.
inline double distance(const std::vector<float> &a, const std::vector<float> &b) {
  double largest = 1e-30, difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, double(std::abs(b[i])));
    difference = std::max(difference, double(std::abs(a[i] - b[i])));
  }
  return difference / largest;
}

/// Inputs and results of one call.
struct CallValues {
  Values q, k, v, dOut, dLse, out, lse, dQ, dK, dV;
  std::vector<float> dSlopes, dSinks;

  ForwardCallTensors forward() {
    return {.q = q.tensor(), .k = k.tensor(), .v = v.tensor(), .out = out.tensor(), .lse = lse.tensor(), .rowMax = {}};
  }
  /// `slots` captures, the first of them `slopes`.
  BackwardCallTensors backward(size_t slots) {
    BackwardCallTensors tensors{.q = q.tensor(),
                                .k = k.tensor(),
                                .v = v.tensor(),
                                .out = out.tensor(),
                                .lse = lse.tensor(),
                                .dOut = dOut.tensor(),
                                .dLse = dLse.tensor(),
                                .dQ = dQ.tensor(),
                                .dK = dK.tensor(),
                                .dV = dV.tensor(),
                                .captureGradients = {},
                                .sinkGradient = nullptr};
    tensors.captureGradients.assign(slots, nullptr);
    tensors.captureGradients[0] = dSlopes.data();
    tensors.sinkGradient = dSinks.data();
    return tensors;
  }
};

/// The call over [2, 4, length, 16] with 2 kv heads and documents that differ between batch rows.
struct RankGroupCase {
  static constexpr int64_t kBatch = 2, kHeads = 4, kKVHeads = 2, kColumns = 16;
  int64_t length;
  std::shared_ptr<Program> program;
  std::vector<float> slopes, sinks;
  std::vector<int32_t> documents;
  std::shared_ptr<Binding> binding;
  std::shared_ptr<const Executable> executable;
  CallValues whole;

  explicit RankGroupCase(int64_t length, const CallPart &part = {}) : length(length) {
    CompileOptions compileOptions;
    compileOptions.cacheDir = "";
    program = compileText("ranks.cpf", kRankProgram, compileOptions).program;
    for (int h = 0; h < kHeads; ++h) {
      slopes.push_back(0.01f * float(h + 1));
      sinks.push_back(0.5f * float(h) - 1);
    }
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t i = 0; i < length; ++i)
        documents.push_back(int32_t(i * (b + 2) / length));
    BindRequest request;
    request.views["slopes"] = view(slopes.data(), ElementType::F32, {kHeads});
    request.views["sinks"] = view(sinks.data(), ElementType::F32, {kHeads});
    request.views["doc"] = view(documents.data(), ElementType::I32, {kBatch, length});
    request.sizes = {.batch = kBatch, .heads = kHeads, .kvHeads = kKVHeads, .qLen = length, .kvLen = length};
    auto bound = Binding::create(*program, request);
    EXPECT_TRUE(bound) << bound.status().message();
    binding = *bound;
    executable = loaded("main", part);
    const int64_t batch = (part.batch.end ? part.batch : Range{0, kBatch}).size();
    const int64_t heads = (part.heads.end ? part.heads : Range{0, kHeads}).size(), kvHeads = heads * kKVHeads / kHeads;
    whole = {.q = {{batch, heads, length, kColumns}, 1},
             .k = {{batch, kvHeads, length, kColumns}, 2},
             .v = {{batch, kvHeads, length, kColumns}, 3},
             .dOut = {{batch, heads, length, kColumns}, 4},
             .dLse = {{batch, heads, length, 1}, 5},
             .out = {{batch, heads, length, kColumns}, 0},
             .lse = {{batch, heads, length, 1}, 0},
             .dQ = {{batch, heads, length, kColumns}, 0},
             .dK = {{batch, kvHeads, length, kColumns}, 0},
             .dV = {{batch, kvHeads, length, kColumns}, 0},
             .dSlopes = std::vector<float>(kHeads),
             .dSinks = std::vector<float>(kHeads)};
  }

  static ArrayView view(const void *data, ElementType type, std::vector<int64_t> shape) {
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t axis = shape.size() - 1; axis-- > 0;)
      strides[axis] = strides[axis + 1] * shape[axis + 1];
    return {.data = data, .type = type, .shape = shape, .strides = strides, .device = {}, .owner = nullptr};
  }

  std::shared_ptr<const Executable> loaded(const std::string &entry, const CallPart &part = {},
                                           CallPasses passes = CallPasses::ForwardAndBackward) {
    LoadOptions options;
    options.headDim = kColumns;
    options.passes = passes;
    options.numThreads = 1;
    options.part = part;
    auto result = Executable::load(program, **program->entry(entry), binding, nullptr, options);
    EXPECT_TRUE(result) << result.status().message();
    return *result;
  }

  size_t numSlots() const { return program->signature().captures.size(); }

  std::shared_ptr<const ContextParallelPlan> planned(const ContextParallelOptions &options) {
    auto plan = ContextParallelPlan::create(executable, options);
    EXPECT_TRUE(plan) << plan.status().message();
    return plan ? *plan : nullptr;
  }

  /// One device.
  void compute() {
    const ForwardCallTensors forward = whole.forward();
    EXPECT_TRUE(executable->forward(forward, nullptr, 0));
    const BackwardCallTensors backward = whole.backward(numSlots());
    EXPECT_TRUE(executable->backward(backward, nullptr, 0));
  }

  CallValues shardOf(const ContextParallelPlan &plan, int32_t rank) const {
    const Layout &q = plan.forward().qLayout, &kv = plan.forward().kvLayout;
    return {.q = whole.q.shardOf(q, rank),
            .k = whole.k.shardOf(kv, rank),
            .v = whole.v.shardOf(kv, rank),
            .dOut = whole.dOut.shardOf(q, rank),
            .dLse = whole.dLse.shardOf(q, rank),
            .out = whole.out.shardOf(q, rank),
            .lse = whole.lse.shardOf(q, rank),
            .dQ = whole.dQ.shardOf(q, rank),
            .dK = whole.dK.shardOf(kv, rank),
            .dV = whole.dV.shardOf(kv, rank),
            .dSlopes = std::vector<float>(kHeads),
            .dSinks = std::vector<float>(kHeads)};
  }

  /// Runs both passes of all ranks as threads and puts the shards together; `reports` gets one entry per rank.
  CallValues run(
      std::shared_ptr<const ContextParallelPlan> plan, std::vector<RunReport> *reports = nullptr,
      const std::function<std::shared_ptr<Communicator>(ThreadsHub &, int32_t)> &communicatorOf =
          [](ThreadsHub &hub, int32_t rank) { return std::make_shared<ThreadsCommunicator>(hub, rank); }) {
    const int32_t worldSize = plan->forward().worldSize;
    ThreadsHub hub(worldSize);
    std::vector<CallValues> shards;
    for (int32_t rank = 0; rank < worldSize; ++rank)
      shards.push_back(shardOf(*plan, rank));
    if (reports)
      reports->resize(size_t(worldSize));
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < worldSize; ++rank)
      threads.emplace_back([&, rank] {
        const std::shared_ptr<Communicator> communicator = communicatorOf(hub, rank);
        auto executable = RankExecutable::load(plan, communicator, {.deadlineSeconds = 20});
        ASSERT_TRUE(executable) << executable.status().message();
        CallValues &mine = shards[size_t(rank)];
        for (const Status &status :
             {(*executable)->forward(mine.forward()), (*executable)->backward(mine.backward(numSlots()))})
          if (!status) {
            ADD_FAILURE() << "rank " << rank << ": " << status.message();
            communicator->abort(status);
            return;
          }
        if (reports)
          (*reports)[size_t(rank)] = (*executable)->report();
      });
    for (std::thread &thread : threads)
      thread.join();
    CallValues result = whole;
    const Layout &q = plan->forward().qLayout, &kv = plan->forward().kvLayout;
    for (int32_t rank = 0; rank < worldSize; ++rank) {
      CallValues &mine = shards[size_t(rank)];
      result.out.put(q, rank, mine.out);
      result.lse.put(q, rank, mine.lse);
      result.dQ.put(q, rank, mine.dQ);
      result.dK.put(kv, rank, mine.dK);
      result.dV.put(kv, rank, mine.dV);
      EXPECT_EQ(mine.dSlopes, shards[0].dSlopes);
      EXPECT_EQ(mine.dSinks, shards[0].dSinks);
    }
    result.dSlopes = shards[0].dSlopes;
    result.dSinks = shards[0].dSinks;
    return result;
  }
};

inline void expectClose(const CallValues &actual, const CallValues &expected) {
  EXPECT_LT(distance(actual.out.data, expected.out.data), 2e-6);
  EXPECT_LT(distance(actual.lse.data, expected.lse.data), 2e-6);
  EXPECT_LT(distance(actual.dQ.data, expected.dQ.data), 5e-6);
  EXPECT_LT(distance(actual.dK.data, expected.dK.data), 5e-6);
  EXPECT_LT(distance(actual.dV.data, expected.dV.data), 5e-6);
  EXPECT_LT(distance(actual.dSlopes, expected.dSlopes), 2e-5);
  EXPECT_LT(distance(actual.dSinks, expected.dSinks), 2e-5);
}

} // namespace cpflex::test
