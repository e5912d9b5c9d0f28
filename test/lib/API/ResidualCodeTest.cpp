// Compiled residual predicates: equal to the whole mask in the tiles that have their number, and without a trace in the
// bits of attention.
#include "lib/API/cpflex.h"

#include <gtest/gtest.h>

#include <random>

using namespace cpflex;

namespace {

constexpr int64_t kLength = 700;

struct ResidualCase {
  const char *name, *text;
};

const ResidualCase kCases[] = {
    {"DocumentsCausal", "return kv <= q and doc[q] == doc[kv]"},
    {"PrefixLm", "return kv <= q or kv < W"},
    {"SinkWindow", "return kv <= q and (kv < 4 or q - kv < W)"},
    {"NotOr", "return not (kv > q or doc[q] != doc[kv] or q - kv >= W)"},
    {"Select", "return kv <= q if doc[q] < 3 else (q - kv < W and kv - q < W)"},
    {"PerHead", "return kv <= q and (doc[q] == doc[kv] if h == 0 else q - kv < W)"},
};

class ResidualCode : public testing::TestWithParam<ResidualCase> {
protected:
  ResidualCode() {
    CompileOptions options;
    options.cacheDir = "";
    program_ = compileText("test.cpf",
                           std::string("doc: tensor[i32, KV_LEN](sorted)\nW: param[int] = 200\n@mask\n"
                                       "def m(b, h, q, kv):\n    ") +
                               GetParam().text + "\n",
                           options)
                   .program;
    for (int64_t i = 0; i < kLength; ++i)
      documents_.push_back(int32_t(i / 150));
    BindRequest request;
    request.views["doc"] = {.data = documents_.data(),
                            .type = ElementType::I32,
                            .shape = {kLength},
                            .strides = {1},
                            .device = {},
                            .owner = nullptr};
    request.sizes = {.heads = 2, .kvHeads = 2, .qLen = kLength, .kvLen = kLength};
    binding_ = *Binding::create(*program_, request);
  }
  const EntryPoint &entry() const { return program_->entries()[0]; }
  BlockMask build(int64_t tileQ, int64_t tileKV) const {
    return buildBlockMask(*program_, entry(), *binding_, tileQ, tileKV, /*threads=*/1)->mask;
  }

  std::vector<int32_t> documents_;
  std::shared_ptr<Program> program_;
  std::shared_ptr<const Binding> binding_;
};

TEST_P(ResidualCode, EqualsTheMaskInTilesOfItsNumber) {
  const HostFunctions functions = *program_->hostFunctions(entry(), binding_->bindings());
  EXPECT_NE(functions.residualKey, 0u);
  int numCompared = 0;
  for (auto [tileQ, tileKV] : {std::pair{128, 128}, {32, 16}, {7, 50}}) {
    const BlockMask mask = build(tileQ, tileKV);
    EXPECT_EQ(mask.residualKey, functions.residualKey);
    std::vector<uint8_t> whole(size_t(tileQ * tileKV)), part(whole.size());
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t row = 0; row < mask.numQTiles(); ++row) {
        const TileRows &rows = mask.rows(0, h);
        for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i) {
          const TileRun run = rows.runs[i];
          if (run.residual == 0 || !functions.evaluateResidual[run.residual - 1])
            continue; // the whole mask decides
          for (int64_t column = run.begin; column < run.end; ++column, ++numCompared) {
            TileCoordinates tile{.h = h, .qBegin = row * tileQ, .kvBegin = column * tileKV};
            tile.qCount = std::min<int64_t>(tileQ, kLength - tile.qBegin);
            tile.kvCount = std::min<int64_t>(tileKV, kLength - tile.kvBegin);
            functions.evaluateTile(&binding_->bindings(), &tile, whole.data(), tileKV);
            functions.evaluateResidual[run.residual - 1](&binding_->bindings(), &tile, part.data(), tileKV);
            ASSERT_EQ(whole, part) << "head " << h << ", tile " << row << ", " << column << ", residual "
                                   << entry().residuals[run.residual - 1].text;
          }
        }
      }
  }
  EXPECT_GT(numCompared, 0);
}

TEST_P(ResidualCode, LeavesEveryBitOfAttentionAsItIs) {
  constexpr int64_t kHeads = 2, kDepth = 16, kElements = kHeads * kLength * kDepth;
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<float> inputs[4]; // q, k, v, dOut
  for (std::vector<float> &input : inputs)
    for (int64_t i = 0; i < kElements; ++i)
      input.push_back(normal(generator));
  auto tensor = [&](std::vector<float> &values, int64_t depth) {
    values.resize(size_t(kHeads * kLength * depth));
    return CallTensor{.data = values.data(),
                      .type = ElementType::F32,
                      .shape = {1, kHeads, kLength, depth},
                      .strides = {kHeads * kLength * depth, kLength * depth, depth, 1},
                      .device = {}};
  };
  // O, LSE, dQ, dK and dV with the residuals, and with the whole mask in every partial tile.
  std::vector<std::vector<float>> results[2];
  for (int isWhole : {0, 1}) {
    BlockMask mask = build(128, 128);
    if (isWhole)
      mask.residualKey = 0;
    LoadOptions options;
    options.headDim = kDepth;
    options.passes = CallPasses::ForwardAndBackward;
    options.numThreads = 1;
    auto executable = Executable::load(program_, entry(), binding_, std::make_shared<BlockMask>(mask), options);
    ASSERT_TRUE(executable) << executable.status().message();
    std::vector<std::vector<float>> &outputs = results[isWhole];
    outputs.resize(5);
    const CallTensor q = tensor(inputs[0], kDepth), k = tensor(inputs[1], kDepth), v = tensor(inputs[2], kDepth);
    const CallTensor out = tensor(outputs[0], kDepth), lse = tensor(outputs[1], 1);
    ASSERT_TRUE((*executable)->forward({.q = q, .k = k, .v = v, .out = out, .lse = lse, .rowMax = {}}, nullptr, 0));
    BackwardCallTensors backward{.q = q, .k = k, .v = v, .out = out, .lse = lse};
    backward.dOut = tensor(inputs[3], kDepth);
    backward.dQ = tensor(outputs[2], kDepth), backward.dK = tensor(outputs[3], kDepth);
    backward.dV = tensor(outputs[4], kDepth);
    ASSERT_TRUE((*executable)->backward(backward, nullptr, 0));
  }
  EXPECT_EQ(results[0], results[1]);
}

INSTANTIATE_TEST_SUITE_P(, ResidualCode, testing::ValuesIn(kCases),
                         [](const auto &info) { return std::string(info.param.name); });

} // namespace
