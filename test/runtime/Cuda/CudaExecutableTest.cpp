// Programs, bindings and launches against a driver in host memory: what kernels are given, and what is refused.
#include "runtime/Cuda/CudaExecutable.h"

#include "runtime/Cuda/CudaAttention.h"
#include "runtime/contract/CaptureArgument.h"
#include "test/runtime/Cuda/FakeGpu.h"
#include "test/runtime/Cuda/TestFunctors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <unistd.h>

namespace cpflex {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

/// A mask of `rows` x `columns` tiles of 128 with every tile of one class.
BlockMask uniformMask(int64_t qLen, int64_t kvLen, TileClass tileClass) {
  BlockMask mask;
  mask.qLen = qLen, mask.kvLen = kvLen;
  mask.rowSetOf = {0};
  TileRows rows;
  for (int64_t row = 0; row < mask.numQTiles(); ++row) {
    rows.rowBegin.push_back(static_cast<int32_t>(row));
    rows.runs.push_back({0, static_cast<int32_t>(mask.numKVTiles()), tileClass, 0});
  }
  rows.rowBegin.push_back(static_cast<int32_t>(rows.runs.size()));
  mask.rowSets = {rows};
  return mask;
}

/// Memory that serves every call of these tests, full of what an earlier call may have left.
struct alignas(256) Workspace {
  int words[1 << 12];
  Workspace() { std::ranges::fill(words, 77); }
  void *data() { return words; }
};

class CudaExecutableTest : public testing::Test {
protected:
  test::FakeGpu gpu;
  fs::path folder = fs::temp_directory_path() / ("cpflex-executable-" + std::to_string(getpid()));
  std::vector<char> memory = std::vector<char>(16 << 20);
  int64_t used = 0;
  AttentionProblem problem;
  std::shared_ptr<const CudaProgram> program;
  static constexpr cuda::Stream kStream = nullptr;

  void SetUp() override {
    problem.batch = 2, problem.qHeads = 4, problem.kvHeads = 2;
    problem.qLen = 300, problem.kvLen = 200;
    problem.headDim = problem.vHeadDim = 128;
    problem.scale = 0.125f;
  }
  void TearDown() override {
    program.reset();
    fs::remove_all(folder);
  }

  StatusOr<std::shared_ptr<const CudaProgram>> create(const DeviceFunctions &functions,
                                                      const CudaProgramOptions &options = wide()) {
    auto device = gpu.device();
    return CudaProgram::create(device, test::FakeGpu::toolchain(folder, functions, options, gpu.capability), functions,
                               options);
  }
  /// Head size 128, whose forward tiles are 128 x 128.
  static CudaProgramOptions wide() {
    CudaProgramOptions options;
    options.headDim = options.vHeadDim = 128;
    return options;
  }
  /// Creates `program`, or fails the test.
  void compile(const DeviceFunctions &functions, const CudaProgramOptions &options = wide()) {
    auto created = create(functions, options);
    ASSERT_TRUE(created) << created.status().message();
    program = *created;
  }
  TensorView dense(int64_t b, int64_t h, int64_t s, int64_t d, ElementType type = ElementType::BF16) {
    auto begin = (reinterpret_cast<uintptr_t>(memory.data()) + used + 15) / 16 * 16;
    used = static_cast<int64_t>(begin - reinterpret_cast<uintptr_t>(memory.data())) + b * h * s * d * sizeInBytes(type);
    return {reinterpret_cast<void *>(begin), type, {h * s * d, s * d, d, 1}};
  }
  CudaForwardTensors forwardTensors() {
    used = 0;
    return {dense(2, 4, 300, 128), dense(2, 2, 200, 128), dense(2, 2, 200, 128), dense(2, 4, 300, 128),
            dense(2, 4, 300, 1, ElementType::F32)};
  }
  std::string whyNotBound(const AttentionProblem &wrong) {
    auto executable = CudaExecutable::bind(program, wrong, kStream);
    return executable ? "" : executable.status().message();
  }
};

TEST_F(CudaExecutableTest, ForwardFillsItsArguments) {
  DeviceFunctions functions = test::causal();
  functions.maskReadsBatch = functions.maskReadsHead = false;
  compile(functions);
  BlockMask mask = uniformMask(300, 200, TileClass::Partial);
  problem.mask = &mask;
  problem.batchOffset = 5, problem.headOffset = 8;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  CudaForwardTensors tensors = forwardTensors();
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(tensors, workspace.data(), kStream));
  ASSERT_EQ(gpu.launches.size(), 2u);
  const test::Launch &deciding = gpu.launches[0], &launch = gpu.launches[1];
  EXPECT_EQ(deciding.function, "attention_forward_words");
  EXPECT_EQ(deciding.gridX, 3u) << "rows of tiles";
  EXPECT_EQ(deciding.gridY, 1u) << "the mask is the same for all heads";
  EXPECT_EQ(deciding.blockX, 256u);
  EXPECT_EQ(launch.function, "attention_forward");
  TileConfig tiles = program->kernels()[0].tiles();
  EXPECT_EQ(launch.blockX, static_cast<unsigned>(tiles.threads));
  EXPECT_EQ(launch.sharedBytes, static_cast<unsigned>(tiles.sharedBytes));
  EXPECT_EQ(launch.gridX, 24u) << "3 rows of tiles, 2 batch rows, 4 heads";
  auto arguments = launch.argumentsAs<ForwardArguments>();
  EXPECT_EQ(arguments.q.data, tensors.q.data);
  EXPECT_EQ(arguments.k.strideB, 2 * 200 * 128);
  EXPECT_EQ(arguments.o.strideH, 300 * 128);
  EXPECT_EQ(arguments.lse.strideH, 300);
  EXPECT_EQ(arguments.qLen, 300);
  EXPECT_EQ(arguments.kvLen, 200);
  EXPECT_EQ(arguments.batchOffset, 5);
  EXPECT_EQ(arguments.headOffset, 8);
  EXPECT_EQ(arguments.scale, 0.125f);
  EXPECT_EQ(*arguments.work.counter, 0);
  EXPECT_EQ(arguments.work.numRows, 3);
  EXPECT_EQ(arguments.work.groupHeads % 2, 0) << "query heads of one key head stay together";
  EXPECT_THAT(std::vector<int>(arguments.work.rowOrder, arguments.work.rowOrder + 3), ElementsAre(2, 1, 0));
  EXPECT_EQ(arguments.mask.numRows, 3);
  EXPECT_THAT(std::vector<int>(arguments.mask.rowBegin, arguments.mask.rowBegin + 4), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(arguments.mask.runs[1].end, 2);
  EXPECT_EQ(arguments.mask.runs[1].tileClass, 2);
  EXPECT_EQ(arguments.mask.rowSetOf[7], 0);
}

TEST_F(CudaExecutableTest, ProfilersSeeWhatTheHostDoes) {
  compile(test::causal());
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  Workspace workspace;
  ASSERT_TRUE((*executable)->update(problem, kStream));
  ASSERT_TRUE((*executable)->forward(forwardTensors(), workspace.data(), kStream));
  EXPECT_THAT(gpu.ranges, ElementsAre("cpflex compile", "end", "cpflex bind", "end", "cpflex update", "end",
                                      "cpflex forward", "end"));
}

TEST_F(CudaExecutableTest, TensorMapsCoverTheTensors) {
  compile(test::causal());
  ASSERT_TRUE(takesTensorMaps(program->kernels()[0].spec()));
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  CudaForwardTensors tensors = forwardTensors();
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(tensors, workspace.data(), kStream));
  ASSERT_EQ(gpu.maps.size(), 4u);
  EXPECT_EQ(gpu.maps[0].address, tensors.q.data);
  EXPECT_THAT(gpu.maps[0].sizes, ElementsAre(128, 300, 4, 2));
  EXPECT_THAT(gpu.maps[0].strides, ElementsAre(256, 300 * 256, 4 * 300 * 256));
  EXPECT_THAT(gpu.maps[0].box, ElementsAre(64, 64, 1, 1));
  EXPECT_THAT(gpu.maps[1].sizes, ElementsAre(128, 200, 2, 2));
  EXPECT_THAT(gpu.maps[1].box, ElementsAre(64, 128, 1, 1));
  EXPECT_EQ(gpu.maps[3].address, tensors.o.data);
  EXPECT_THAT(gpu.maps[3].sizes, ElementsAre(128, 300, 4, 2));
  EXPECT_THAT(gpu.maps[3].box, ElementsAre(64, 16, 1, 1)) << "a warp writes its rows alone";
}

TEST_F(CudaExecutableTest, NoKeysStillWritesOutputs) {
  compile(test::causal());
  problem.kvLen = 0;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  CudaForwardTensors tensors = forwardTensors();
  tensors.k = tensors.v = {};
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(tensors, workspace.data(), kStream));
  EXPECT_EQ(gpu.launches.size(), 1u);
}

TEST_F(CudaExecutableTest, NoKeysStillWritesGradients) {
  CudaProgramOptions options = wide();
  options.passes = CudaProgramOptions::Passes::ForwardAndBackward;
  compile(test::causal(), options);
  problem.kvLen = 0;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  CudaForwardTensors forward = forwardTensors();
  CudaBackwardTensors tensors{};
  tensors.q = forward.q, tensors.o = forward.o, tensors.lse = forward.lse;
  tensors.dO = dense(2, 4, 300, 128), tensors.dQ = dense(2, 4, 300, 128);
  Workspace workspace;
  Status status = (*executable)->backward(tensors, workspace.data(), kStream);
  ASSERT_TRUE(status) << status.message();
  ASSERT_EQ(gpu.launches.size(), 2u);
  EXPECT_EQ(gpu.launches[1].function, "attention_backward_kv");
  EXPECT_EQ(gpu.launches[1].gridX, 1u) << "a block writes zeros to dQ";
}

TEST_F(CudaExecutableTest, KernelsDecideTilesWhereThereIsNoMemoryToDecideThemAhead) {
  compile(test::causal());
  BlockMask mask = uniformMask(300, 200, TileClass::Partial);
  problem.mask = &mask;
  gpu.exhaustedAllocation = gpu.numAllocations + 1; // the tables are the first
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(forwardTensors(), workspace.data(), kStream));
  ASSERT_EQ(gpu.launches.size(), 1u);
  EXPECT_EQ(gpu.launches[0].argumentsAs<ForwardArguments>().mask.words, nullptr);
  EXPECT_TRUE((*executable)->update(problem, kStream)) << "and stay with it";
}

TEST_F(CudaExecutableTest, DecidedTilesCountInItsSize) {
  compile(test::causal());
  BlockMask full = uniformMask(300, 200, TileClass::Full), partial = uniformMask(300, 200, TileClass::Partial);
  auto sizeOf = [&](const BlockMask &mask) {
    problem.mask = &mask;
    auto executable = CudaExecutable::bind(program, problem, kStream);
    return executable ? (*executable)->sizeInBytes() : -1;
  };
  // Two words of each of 256 threads and a byte of classes, of 3 x 2 tiles for each of 8 (b, h) and as many to come.
  constexpr int64_t kWordsBytes = int64_t(2) * 3 * 2 * 8 * (2 * 256 * 4 + 1);
  EXPECT_GT(sizeOf(full), 0);
  EXPECT_GE(sizeOf(partial), kWordsBytes);
  EXPECT_LT(sizeOf(partial) - kWordsBytes, int64_t(1) << 16) << "tables are small beside them";
}

TEST_F(CudaExecutableTest, PreferredTilesDivideThoseOfAllKernels) {
  auto preferred = [&](int headDim, CudaProgramOptions::Passes passes) {
    AttentionProblem wanted;
    wanted.headDim = wanted.vHeadDim = headDim;
    CudaProgramOptions options = CudaProgramOptions::of(wanted, ElementType::F16);
    options.passes = passes;
    MaskTile tile = preferredMaskTile(options, 90);
    return std::pair(tile.q, tile.kv);
  };
  using Passes = CudaProgramOptions::Passes;
  EXPECT_EQ(preferred(64, Passes::Forward), std::pair(int64_t(192), int64_t(128)));
  EXPECT_EQ(preferred(64, Passes::ForwardAndBackward), std::pair(int64_t(96), int64_t(128)));
  EXPECT_EQ(preferred(128, Passes::ForwardAndBackward), std::pair(int64_t(64), int64_t(128)));
}

TEST_F(CudaExecutableTest, NoQueriesLaunchesNothing) {
  compile(test::causal());
  problem.qLen = 0;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  Workspace workspace;
  CudaForwardTensors tensors = forwardTensors();
  tensors.q = tensors.o = tensors.lse = {};
  ASSERT_TRUE((*executable)->forward(tensors, workspace.data(), kStream));
  EXPECT_TRUE(gpu.launches.empty());
}

TEST_F(CudaExecutableTest, CallsNeitherAllocateNorWait) {
  compile(test::causal());
  BlockMask mask = uniformMask(300, 200, TileClass::Full);
  problem.mask = &mask;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  gpu.numAllocations = gpu.numSynchronizations = 0;
  CudaForwardTensors tensors = forwardTensors();
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(tensors, workspace.data(), kStream));
  EXPECT_EQ(gpu.numAllocations, 0);
  EXPECT_EQ(gpu.numSynchronizations, 0);
}

TEST_F(CudaExecutableTest, CapturesFollowTheirLayout) {
  DeviceFunctions functions = test::large();
  functions.numCaptures = 3;
  functions.numParams = 3;
  compile(functions);
  gpu.captureBytes = program->capturesInBytes();
  EXPECT_EQ(gpu.captureBytes, 3 * sizeof(CaptureArgument) + 6 * 8);
  int doc = 0;
  CaptureView views[3] = {};
  views[1].rank = views[2].rank = 1; // without elements
  views[0] = {.data = &doc, .shape = {2, 200}, .strides = {200, 1}, .type = ElementType::I32, .rank = 2};
  ScalarSlot params[3] = {11, 22, 33};
  Bindings bindings{.captures = views, .params = params, .dims = nullptr};
  problem.bindings = &bindings;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  params[0] = 99; // copied at bind
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(forwardTensors(), workspace.data(), kStream));
  struct Captures {
    CaptureArgument doc, bias, slope;
    const long long *params;
    long long B, H, HKV, Q_LEN, KV_LEN;
  } captures;
  ASSERT_EQ(sizeof(captures), gpu.captureBytes);
  std::memcpy(&captures, gpu.launches[0].captures.data(), sizeof(captures));
  EXPECT_EQ(captures.doc.data, &doc);
  EXPECT_EQ(captures.doc.shape[1], 200);
  EXPECT_EQ(captures.doc.strides[0], 200);
  EXPECT_THAT(std::vector<long long>(captures.params, captures.params + 3), ElementsAre(11, 22, 33));
  EXPECT_EQ(captures.B, 2);
  EXPECT_EQ(captures.H, 4);
  EXPECT_EQ(captures.HKV, 2);
  EXPECT_EQ(captures.Q_LEN, 300);
  EXPECT_EQ(captures.KV_LEN, 200);

  // Other params come to the same place, where the kernels of a graph look.
  ASSERT_TRUE((*executable)->update(problem, kStream));
  EXPECT_EQ(captures.params[0], 99);
}

/// A score that reads a table by q and by kv, and a bias of its own for every pair.
DeviceFunctions withGradients() {
  DeviceFunctions functions =
      test::functor("    cpflex::CaptureArgument table, bias;\n", "", "", ScoreForm::Additive, "return s;");
  functions.numCaptures = 2;
  functions.captureNames = {"table", "bias"};
  functions.gradients = {{.capture = 1, .isDense = true}, {.capture = 0, .isDense = false}};
  return functions;
}

class CaptureGradientTest : public CudaExecutableTest {
protected:
  CaptureView views[2] = {};
  Bindings bindings{.captures = views, .params = nullptr, .dims = nullptr};
  Workspace workspace;
  float table[30], bias[4 * 300 * 200];

  void SetUp() override {
    CudaExecutableTest::SetUp();
    // The table is broadcast over a first axis of 2.
    views[0] = {.data = table, .shape = {2, 30}, .strides = {0, 1}, .type = ElementType::F32, .rank = 2};
    views[1] = {.data = bias, .shape = {4, 300, 200}, .strides = {60000, 200, 1}, .type = ElementType::F32, .rank = 3};
    problem.bindings = &bindings;
  }
  CudaBackwardTensors tensors(std::span<float *const> dCaptures) {
    used = 0;
    CudaBackwardTensors tensors{dense(2, 4, 300, 128),
                                dense(2, 2, 200, 128),
                                dense(2, 2, 200, 128),
                                dense(2, 4, 300, 128),
                                dense(2, 4, 300, 1, ElementType::F32),
                                dense(2, 4, 300, 128),
                                {},
                                dense(2, 4, 300, 128),
                                dense(2, 2, 200, 128),
                                dense(2, 2, 200, 128)};
    tensors.dCaptures = dCaptures;
    return tensors;
  }
  static CudaProgramOptions options(CudaProgramOptions::CaptureGradients gradients) {
    CudaProgramOptions options = wide();
    options.passes = CudaProgramOptions::Passes::ForwardAndBackward;
    options.captureGradients = gradients;
    return options;
  }
};

TEST_F(CaptureGradientTest, KernelsOfTheirOwnComputeThem) {
  compile(withGradients(), options(CudaProgramOptions::CaptureGradients::Computed));
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  constexpr int64_t kRowBytes = 2 * 2 * 4 * 512 * 4, kTableBytes = 30 * kAccumulatorWords * 8;
  constexpr int64_t kSumsBytes = 2 * 4 * 5 * sumsPerTile(/*tileQ=*/64, /*headDim=*/128) * 4;
  EXPECT_EQ((*executable)->workspaceInBytes(CudaExecutable::Pass::Backward), 256 + kRowBytes + kSumsBytes + kTableBytes)
      << "delta, LSE, the sums of dQ and the exact sums of the table's own 30 elements";
  std::vector<std::byte> memory(256 + 256 + kRowBytes + kSumsBytes + kTableBytes, std::byte(77));
  auto *aligned = reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256);

  std::vector<float> dTable(30, 5.0f), dBias(4 * 300 * 200, 5.0f);
  float *all[2] = {dTable.data(), dBias.data()}, *tableOnly[2] = {dTable.data(), nullptr}, *none[2] = {};
  ASSERT_TRUE((*executable)->backward(tensors(none), aligned, kStream));
  EXPECT_EQ(gpu.launches.back().function, "attention_backward_kv") << "nothing more where no gradient is wanted";

  ASSERT_TRUE((*executable)->backward(tensors(all), aligned, kStream));
  ASSERT_EQ(gpu.launches.back().function, "attention_backward_capture_sums");
  const test::Launch &launch = gpu.launches[gpu.launches.size() - 2];
  EXPECT_EQ(launch.function, "attention_backward_captures");
  EXPECT_THAT((std::vector{launch.gridX, launch.gridY, launch.gridZ}), ElementsAre(4u, 5u, 1u))
      << "tiles of 64; one block adds up a dense array over batch and heads";
  auto arguments = launch.argumentsAs<CaptureGradientArguments>();
  EXPECT_EQ(arguments.numTargets, 2);
  EXPECT_EQ(arguments.targets[0].gradient, dBias.data());
  EXPECT_TRUE(arguments.targets[0].isDense);
  EXPECT_EQ(arguments.targets[1].gradient, dTable.data());
  EXPECT_EQ(arguments.targets[1].numElements, 30);
  EXPECT_EQ(std::ranges::count(std::span(arguments.accumulators, 30 * kAccumulatorWords), 0), 30 * kAccumulatorWords);
  EXPECT_EQ(std::ranges::count(dBias, 0.0f), 4 * 300 * 200) << "a dense gradient begins at 0";

  ASSERT_TRUE((*executable)->backward(tensors(tableOnly), aligned, kStream));
  EXPECT_EQ(gpu.launches[gpu.launches.size() - 2].gridZ, 8u) << "every batch row and head at once";
}

TEST_F(CaptureGradientTest, WrongRequestsAreNamed) {
  compile(withGradients(), options(CudaProgramOptions::CaptureGradients::None));
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  float gradient[30], *given[2] = {gradient, nullptr};
  EXPECT_EQ((*executable)->backward(tensors(given), workspace.data(), kStream).message(),
            "gradients of captures were asked for; the program was created without their kernels");
  compile(withGradients(), options(CudaProgramOptions::CaptureGradients::Computed));
  executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  EXPECT_EQ((*executable)->backward(tensors(std::span<float *const>(given, 1)), workspace.data(), kStream).message(),
            "1 gradients of captures were given; the program has 2 captures");
  gpu.pointersAreOnHost = true;
  EXPECT_THAT(whyNotBound(problem), HasSubstr("array 'table' is not in GPU memory"));
  DeviceFunctions many = withGradients();
  many.gradients.resize(kMaxCaptureGradients + 1);
  EXPECT_THAT(create(many).status().message(),
              HasSubstr("reads 33 arrays that take gradients; on a GPU at most 32 do"));
}

TEST_F(CudaExecutableTest, PositionsBecomeTiles) {
  problem.qPositions.pieces = {{1024, 128, 1}, {4096, 172, 2}};
  problem.kvPositions.pieces = {{0, 200, 1}};
  CudaProgramOptions options = wide();
  EXPECT_EQ(positionMode(problem, test::causal(), options, 90), PositionMode::AffinePerTile);
  options.positions = PositionMode::AffinePerTile;
  compile(test::causal(), options);
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(forwardTensors(), workspace.data(), kStream));
  auto arguments = gpu.launches[0].argumentsAs<ForwardArguments>();
  EXPECT_EQ(arguments.qPositions.tiles[0].begin, 1024);
  EXPECT_EQ(arguments.qPositions.tiles[1].begin, 4096);
  EXPECT_EQ(arguments.qPositions.tiles[2].begin, 4096 + 256);
  EXPECT_EQ(arguments.qPositions.tiles[2].step, 2);
  EXPECT_EQ(arguments.kvPositions.tiles[1].begin, 128);
}

TEST_F(CudaExecutableTest, IrregularPositionsBecomeRows) {
  problem.qPositions.pieces = {{1024, 100, 1}, {4096, 200, 1}};
  CudaProgramOptions options = wide();
  EXPECT_EQ(positionMode(problem, test::causal(), options, 90), PositionMode::Array);
  compile(test::causal(), options);
  EXPECT_EQ(whyNotBound(problem),
            "the positions of the rows are less regular than the program was compiled for; compile it "
            "with the mode that positionMode() gives");
  options.positions = PositionMode::Array;
  compile(test::causal(), options);
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(forwardTensors(), workspace.data(), kStream));
  auto arguments = gpu.launches[0].argumentsAs<ForwardArguments>();
  EXPECT_EQ(arguments.qPositions.rows[99], 1123);
  EXPECT_EQ(arguments.qPositions.rows[100], 4096);
  EXPECT_EQ(arguments.kvPositions.rows[199], 199);
}

TEST_F(CudaExecutableTest, UpdateKeepsAddresses) {
  compile(test::causal());
  BlockMask first = uniformMask(300, 200, TileClass::Partial), second = uniformMask(300, 200, TileClass::Full);
  problem.mask = &first;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  Workspace workspace;
  ASSERT_TRUE((*executable)->forward(forwardTensors(), workspace.data(), kStream));
  gpu.numAllocations = 0;
  problem.mask = &second;
  ASSERT_TRUE((*executable)->update(problem, kStream));
  auto arguments = gpu.launches[0].argumentsAs<ForwardArguments>();
  EXPECT_EQ(arguments.mask.runs[0].tileClass, 1) << "a launch recorded before sees the mask bound after";
  EXPECT_EQ(gpu.numAllocations, 0);
}

TEST_F(CudaExecutableTest, UpdateRefusesWhatDoesNotFit) {
  compile(test::causal());
  problem.kvLen = 12800;
  BlockMask first = uniformMask(300, 12800, TileClass::Partial), second = first, third = first;
  TileRows scattered{.rowBegin = {0, 100, 200, 300}, .runs = {}};
  for (int row = 0; row < 3; ++row)
    for (int tile = 0; tile < 100; ++tile)
      scattered.runs.push_back({tile, tile + 1, tile % 2 ? TileClass::Full : TileClass::Partial, 0});
  second.rowSets = {scattered};
  third.tileKV = 256;
  problem.mask = &first;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  problem.mask = &second;
  EXPECT_THAT((*executable)->update(problem, kStream).message(),
              HasSubstr("bytes where 512 were reserved; make a new executable for it"));
  problem.mask = &third;
  EXPECT_EQ((*executable)->update(problem, kStream).message(),
            "the block mask has other tiles than the one bound first; make a new executable for it");
  problem.mask = nullptr;
  problem.kvLen = 128;
  EXPECT_EQ((*executable)->update(problem, kStream).message(),
            "the problem has other sizes than the one bound first; make a new executable for it");
}

TEST_F(CudaExecutableTest, UpdateRefusesMorePartialTilesThanHaveRoom) {
  compile(test::causal());
  problem.qLen = 1280;
  BlockMask first = uniformMask(1280, 200, TileClass::Full), second = uniformMask(1280, 200, TileClass::Partial);
  problem.mask = &first;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  problem.mask = &second;
  EXPECT_EQ(
      (*executable)->update(problem, kStream).message(),
      "the block mask has more partial tiles than the 64 for which memory was reserved; make a new executable for it");
}

TEST_F(CudaExecutableTest, WrongProblemsAreNamed) {
  DeviceFunctions functions = test::noFunctor();
  compile(functions);
  auto with = [&](auto change) {
    AttentionProblem wrong = problem;
    change(wrong);
    return whyNotBound(wrong);
  };
  EXPECT_EQ(with([](auto &p) { p.batch = 0; }), "batch is 0; expected 1 to 65535");
  EXPECT_EQ(with([](auto &p) { p.qHeads = 70000; }), "number of query heads is 70000; expected 1 to 65535");
  EXPECT_EQ(with([](auto &p) { p.kvHeads = 3; }), "4 query heads over 3 key heads; expected a multiple");
  EXPECT_EQ(with([](auto &p) { p.kvLen = int64_t(1) << 31; }),
            "length of 'kv' is 2147483648; expected 0 to 2147482623");
  EXPECT_EQ(with([](auto &p) { p.headDim = 64; }),
            "head sizes are 64 and 128; the program was compiled for 128 and 128");
  EXPECT_EQ(with([](auto &p) { p.normalization = AttentionProblem::Normalization::None; }),
            "the problem and the compiled program differ in whether there is a softmax");
  EXPECT_EQ(with([](auto &p) { p.qPositions.pieces = {{0, 10, 1}}; }), "positions of 'q' cover 10 rows; expected 300");
  EXPECT_EQ(with([](auto &p) { p.kvPositions.pieces = {{-5, 200, 1}}; }),
            "positions of 'kv' begin at -5 and step by 1; expected positions from 0 to 2147482623");
  EXPECT_EQ(with([](auto &p) { p.qLen = 2000000000, p.batch = 100; }),
            "the problem has 6250000000 rows of tiles; expected at most 2147482623");
}

TEST_F(CudaExecutableTest, WrongMasksAreNamed) {
  compile(test::noFunctor());
  BlockMask mask = uniformMask(300, 100, TileClass::Full);
  problem.mask = &mask;
  EXPECT_EQ(whyNotBound(problem), "the block mask is for 300 x 100 rows; expected 300 x 200");
  mask = uniformMask(300, 200, TileClass::Full);
  mask.heads = 3;
  EXPECT_EQ(whyNotBound(problem), "the block mask has batch 1 and 3 heads; expected 1 or 2, and 1 or 4");
  mask = uniformMask(300, 200, TileClass::Partial);
  EXPECT_EQ(whyNotBound(problem), "the block mask has partial tiles, but the program has no mask to decide them");
}

TEST_F(CudaExecutableTest, MissingBindingsAreNamed) {
  DeviceFunctions functions = test::documentCausal();
  functions.numCaptures = 1;
  compile(functions);
  EXPECT_EQ(whyNotBound(problem), "the program has 1 captures and 0 parameters; none are bound");
  int doc = 0;
  CaptureView view{.data = &doc, .shape = {1, 1}, .strides = {1, 1}, .type = ElementType::I32, .rank = 2};
  Bindings bindings{.captures = &view, .params = nullptr, .dims = nullptr};
  problem.bindings = &bindings;
  gpu.pointersAreOnHost = true;
  EXPECT_EQ(whyNotBound(problem), "capture 0 is not in GPU memory");
  view.shape[1] = 0;
  float sink = 0;
  problem.sink = &sink;
  EXPECT_EQ(whyNotBound(problem), "the array of sinks is not in GPU memory");
}

TEST_F(CudaExecutableTest, ProgramWithoutSoftmaxHasNeitherSinkNorLse) {
  CudaProgramOptions options = wide();
  options.normalization = problem.normalization = AttentionProblem::Normalization::None;
  compile(test::causal(), options);
  float sink = 0;
  problem.sink = &sink;
  EXPECT_EQ(whyNotBound(problem), "a sink was given; a program without softmax has none");
  problem.sink = nullptr;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  Workspace workspace;
  EXPECT_EQ((*executable)->forward(forwardTensors(), workspace.data(), kStream).message(),
            "'lse' was given; a program without softmax has none");
}

TEST_F(CudaExecutableTest, WrongPlacesAreNamed) {
  compile(test::causal());
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  Workspace workspace;
  gpu.pointerDevice = 3;
  EXPECT_EQ((*executable)->forward(forwardTensors(), workspace.data(), kStream).message(),
            "'q' is on GPU 3; expected GPU 0");
  gpu.pointersAreOnHost = true;
  EXPECT_EQ((*executable)->forward(forwardTensors(), workspace.data(), kStream).message(), "'q' is not in GPU memory");
  EXPECT_TRUE(gpu.launches.empty());
}

TEST_F(CudaExecutableTest, ForwardOnlyProgramRefusesBackward) {
  compile(test::causal());
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  Workspace workspace;
  EXPECT_EQ((*executable)->backward({}, workspace.data(), kStream).message(),
            "the program was created without backward kernels");
}

TEST_F(CudaExecutableTest, BackwardOnlyProgramDecidesNoTilesForForwardAndRefusesIt) {
  CudaProgramOptions options = wide();
  options.passes = CudaProgramOptions::Passes::Backward;
  compile(test::causal(), options);
  EXPECT_EQ(program->kernel(KernelRole::Forward), nullptr);
  BlockMask mask = uniformMask(300, 200, TileClass::Partial);
  problem.mask = &mask;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  std::vector<std::string> launched;
  for (const test::Launch &launch : gpu.launches)
    launched.push_back(launch.function);
  EXPECT_THAT(launched, ElementsAre("attention_backward_kv_words"));
  Workspace workspace;
  EXPECT_EQ((*executable)->forward(forwardTensors(), workspace.data(), kStream).message(),
            "the program was created without a forward kernel");
}

TEST_F(CudaExecutableTest, MisalignedWorkspaceIsNamed) {
  compile(test::causal());
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  EXPECT_EQ((*executable)->forward(forwardTensors(), nullptr, kStream).message(),
            "the workspace is at 0x0; expected device memory at a multiple of 256 bytes");
  EXPECT_EQ((*executable)->workspaceInBytes(CudaExecutable::Pass::Forward), 256);
}

TEST_F(CudaExecutableTest, FailedLaunchIsNamedAndTheNextWorks) {
  compile(test::causal());
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable);
  Workspace workspace;
  gpu.nextLaunch = cuda::kLaunchOutOfResources;
  EXPECT_EQ((*executable)->forward(forwardTensors(), workspace.data(), kStream).message(),
            "cuLaunchKernel of 'attention_forward' failed with CUDA_ERROR_FAKE");
  gpu.nextLaunch = cuda::kSuccess;
  EXPECT_TRUE((*executable)->forward(forwardTensors(), workspace.data(), kStream));
}

TEST_F(CudaExecutableTest, TooLittleMemorySaysHowMuch) {
  compile(test::causal());
  BlockMask mask = uniformMask(300, 200, TileClass::Full);
  problem.mask = &mask;
  gpu.nextAllocation = cuda::kOutOfMemory;
  EXPECT_THAT(whyNotBound(problem),
              HasSubstr("bytes of GPU memory were asked for, 1000 of 2000 are free; make the problem "
                        "smaller or free memory"));
}

TEST_F(CudaExecutableTest, DevicesThatCannotServeAreNamed) {
  auto open = [&](int index) { return CudaDevice::open(gpu.driver(), index); };
  EXPECT_EQ(open(1).status().message(), "GPU 1 was asked for; this machine has 1");
  gpu.capability = 75;
  EXPECT_EQ(open(0).status().message(),
            "GPU 0 'Fake GPU' cannot be used: compute capability 7.5; expected 8.0 or newer");
}

TEST_F(CudaExecutableTest, DriverOlderThanNvrtcIsNamed) {
  gpu.version = 12040;
  auto nvrtc = Nvrtc::load();
  if (!nvrtc || (*nvrtc)->version() < 13000)
    GTEST_SKIP() << "needs NVRTC 13";
  auto created = CudaProgram::create(gpu.device(), {.nvrtc = *nvrtc, .cache = {}}, test::causal(), {});
  EXPECT_THAT(created.status().message(), HasSubstr("the driver serves CUDA 12.4, but NVRTC is 13"));
  EXPECT_THAT(created.status().message(), HasSubstr("update the driver, or set CPFLEX_NVRTC to a libnvrtc of CUDA 12"));
}

TEST_F(CudaExecutableTest, ImageThatTheDriverRefusesIsNamed) {
  gpu.nextModule = cuda::kNoBinaryForGpu;
  auto created = create(test::causal());
  EXPECT_EQ(created.status().message(),
            "cuModuleLoadData failed with CUDA_ERROR_FAKE; the driver is too old for the compiled "
            "kernel; update it, or name an older NVRTC in CPFLEX_NVRTC");
}

TEST_F(CudaExecutableTest, TooManyCapturesAreRefused) {
  DeviceFunctions functions = test::causal();
  functions.numCaptures = 500;
  auto created = create(functions);
  EXPECT_THAT(created.status().message(), HasSubstr("the program has 500 captures, 0 parameters and 5 dimensions"));
  EXPECT_THAT(created.status().message(), HasSubstr("bytes of kernel parameters; a GPU takes 32764"));
}

TEST_F(CudaExecutableTest, BackwardLaunchesItsKernelsInOrder) {
  CudaProgramOptions options = wide();
  options.passes = CudaProgramOptions::Passes::ForwardAndBackward;
  if (auto sources = kernelSources(test::causal(), options, gpu.capability); !sources)
    GTEST_SKIP() << sources.status().message();
  compile(test::causal(), options);
  BlockMask mask = uniformMask(300, 200, TileClass::Partial);
  problem.mask = &mask;
  float sinks[4] = {}, dSinks[4] = {};
  problem.sink = sinks;
  auto executable = CudaExecutable::bind(program, problem, kStream);
  ASSERT_TRUE(executable) << executable.status().message();
  CudaForwardTensors forward = forwardTensors();
  CudaBackwardTensors tensors{forward.q,
                              forward.k,
                              forward.v,
                              forward.o,
                              forward.lse,
                              dense(2, 4, 300, 128),
                              {},
                              dense(2, 4, 300, 128),
                              dense(2, 2, 200, 128),
                              dense(2, 2, 200, 128),
                              dSinks};
  Workspace workspace;
  ASSERT_TRUE((*executable)->backward(tensors, workspace.data(), kStream));
  std::vector<std::string> names;
  for (const test::Launch &launch : gpu.launches)
    names.push_back(launch.function);
  EXPECT_THAT(names, ElementsAre("attention_forward_words", "attention_backward_kv_words", "attention_backward_delta",
                                 "attention_backward_kv", "attention_backward_sink"));
  EXPECT_EQ(gpu.launches[2].gridX, unsigned(paddedRows(300) / kRowPadding));
  EXPECT_EQ(gpu.launches[2].gridY, 4u);
  EXPECT_EQ(gpu.launches[2].gridZ, 2u);
  auto kv = gpu.launches[3].argumentsAs<BackwardArguments>();
  auto decided = gpu.launches[1].argumentsAs<BackwardArguments>();
  EXPECT_EQ(kv.mask.words, decided.mask.words);
  EXPECT_EQ(kv.mask.classes, decided.mask.classes);
  EXPECT_EQ(kv.mask.numRows * kv.mask.rowTilesPerMaskTile >= kv.work.numRows, true);
  EXPECT_EQ(
      kv.mask.runs[0].end * kv.mask.colTilesPerMaskTile * program->kernel(KernelRole::BackwardKV)->tiles().tileQ >= 300,
      true);
  EXPECT_EQ(kv.lseLog2.data, kv.delta.data + 2 * 4 * paddedRows(300));
  EXPECT_EQ(kv.delta.strideB, 4 * paddedRows(300));
  ASSERT_TRUE(sharesSums(program->kernel(KernelRole::BackwardKV)->spec()));
  EXPECT_EQ(kv.querySums.mask.numRows * kv.querySums.mask.rowTilesPerMaskTile *
                    program->kernel(KernelRole::BackwardKV)->tiles().tileQ >=
                300,
            true)
      << "the turns are read off the mask along q";
  int numTurns = 2 * 4 * ceilDivide(300, program->kernel(KernelRole::BackwardKV)->tiles().tileQ);
  EXPECT_TRUE(std::all_of(kv.querySums.turns, kv.querySums.turns + numTurns, [](int turn) { return turn == 0; }));
  EXPECT_GE(reinterpret_cast<std::byte *>(kv.delta.data), reinterpret_cast<std::byte *>(kv.querySums.turns + numTurns));
  EXPECT_EQ(gpu.launches[4].gridX, 4u);
  tensors.dK.data = tensors.dV.data;
  EXPECT_EQ((*executable)->backward(tensors, workspace.data(), kStream).message(), "output 'dK' overlaps 'dV'");
  problem.sink = nullptr;
  ASSERT_TRUE((*executable)->update(problem, kStream));
  tensors.dK = dense(2, 2, 200, 128);
  EXPECT_EQ((*executable)->backward(tensors, workspace.data(), kStream).message(),
            "'dSink' was given; the problem has no sink");
}

TEST_F(CudaExecutableTest, HostArraysTravelBothWays) {
  DeviceFunctions functions = test::causal();
  CudaMachine machine{.device = gpu.device(),
                      .toolchain = test::FakeGpu::toolchain(folder, functions, wide(), gpu.capability)};
  CudaForwardTensors tensors = forwardTensors();
  HostAttentionArrays arrays;
  arrays.q = tensors.q, arrays.k = tensors.k, arrays.v = tensors.v, arrays.o = tensors.o, arrays.lse = tensors.lse;
  auto report = runAttentionCuda(machine, functions, problem, arrays, {.warmups = 1, .timed = 3});
  ASSERT_TRUE(report) << report.status().message();
  EXPECT_EQ(gpu.launches.size(), 4u);
  EXPECT_THAT(report->forwardMs, ElementsAre(1.5f, 1.5f, 1.5f));
  EXPECT_EQ(report->program->kernels().size(), 2u);
  machine = {};
  report->program.reset();
  EXPECT_EQ(gpu.numLive, 0) << "everything was given back";
}

TEST_F(CudaExecutableTest, HostArraysThatCannotTravelAreNamed) {
  DeviceFunctions functions = test::causal();
  CudaMachine machine{.device = gpu.device(),
                      .toolchain = test::FakeGpu::toolchain(folder, functions, wide(), gpu.capability)};
  CudaForwardTensors tensors = forwardTensors();
  HostAttentionArrays arrays;
  arrays.q = tensors.q, arrays.k = tensors.k, arrays.v = tensors.v, arrays.o = tensors.o;
  arrays.k.strides[2] = -64;
  EXPECT_EQ(runAttentionCuda(machine, functions, problem, arrays).status().message(),
            "array 'k' has a negative stride; expected 0 or more");
  arrays.o.type = ElementType::F32;
  arrays.dO = tensors.q;
  EXPECT_EQ(runAttentionCuda(machine, functions, problem, arrays).status().message(),
            "'o' is f32 and 'dO' was given; backward reads 'o' in the type of 'q'");
}

TEST(CudaDevices, MachineWithoutDriverSaysWhy) {
  CudaDeviceList list = listCudaDevices({.libraryName = "CUDA driver", .candidates = {}, .remedy = "r"});
  EXPECT_TRUE(list.devices.empty());
  EXPECT_THAT(list.whyNone, HasSubstr("no CUDA driver library found"));
}

} // namespace
} // namespace cpflex
