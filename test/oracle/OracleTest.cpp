// Do random programs mean on every target what the independent oracle says? The oracle is a script over Python's own
// parser and NumPy (random_programs.py); the targets are host code, the point evaluator, the tile classifier, and the
// functors for CUDA, built here as C++ by the host compiler.
#include "dialect/Mask/MaskDialect.h"
#include "lib/API/cpflex.h"
#include "lib/Jit/HostJit.h"
#include "lib/Transforms/Passes.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/contract/CaptureArgument.h"
#include "runtime/contract/NarrowCode.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>

namespace cpflex {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// Times that each operation of the table must occur in 500 programs.
constexpr int kLeastOccurrences = 200;
/// Entry points whose functors are compiled as one C++ file.
constexpr size_t kFunctorsInBatch = 250;
/// Every so many groups one is compiled with all optimisations.
constexpr size_t kVectorisedGroup = 10;

int numPrograms() { return std::getenv("CPFLEX_FULL") ? 10000 : 500; }

/// One group of programs as random_programs.py wrote it, compiled and bound.
struct Group {
  Json description;
  std::shared_ptr<Program> program;
  std::shared_ptr<const Binding> binding;
  std::string expected; ///< the scores given, then the values of each entry point
  TileCoordinates tile;

  int64_t numPairs() const { return tile.qCount * tile.kvCount; }
};

/// What the oracle says of one entry point, at the group's pairs in row order.
struct Expected {
  bool isMask = false;
  const uint8_t *allowed = nullptr;
  std::vector<float> scores, allowances;
};

/// Programs, made once for all tests of this file.
class Oracle : public testing::Test {
protected:
  static void SetUpTestSuite() {
    folder = fs::temp_directory_path() / fmt::format("cpflex-oracle-{}", getpid());
    const std::string command = fmt::format("/usr/bin/python3 {}/test/oracle/random_programs.py {} {} 20261123",
                                            CPFLEX_TEST_SOURCE_ROOT, folder.string(), numPrograms());
    if (std::system(command.c_str()) != 0)
      return;
    std::ifstream stream(folder / "programs.json");
    for (const Json &description : Json::parse(stream))
      groups.push_back(load(description));
  }
  static void TearDownTestSuite() {
    groups.clear();
    fs::remove_all(folder);
  }
  void SetUp() override { ASSERT_EQ(int(groups.size()), (numPrograms() + 24) / 25); }

  static Group load(const Json &description) {
    Group group;
    group.description = description;
    const std::string file = description["file"];
    const std::string stem = file.substr(0, file.find('.'));
    CompileResult compiled = compileFile((folder / file).string());
    for (const Diagnostic &diagnostic : compiled.diagnostics)
      if (diagnostic.severity == Severity::Error)
        ADD_FAILURE() << renderDiagnostic(diagnostic);
    if (!compiled.program)
      return group;
    group.program = compiled.program;
    BindRequest request;
    request.sizes = {2, 3, 3, description["q_len"], description["kv_len"]};
    for (const auto &[name, value] : description["params"].items())
      request.params[name] = value;
    for (const std::string name : description["arrays"])
      request.arrays[name] = *readNpy((folder / (stem + "_" + name + ".npy")).string());
    StatusOr<std::shared_ptr<Binding>> binding = Binding::create(*group.program, request);
    EXPECT_TRUE(binding) << binding.status().message();
    if (binding)
      group.binding = *binding;
    group.expected = *readFile((folder / (stem + ".bin")).string());
    const Json &at = description["at"];
    group.tile = {at["b"], at["h"], at["q"], at["num_q"], 1, at["kv"], at["num_kv"], 1};
    return group;
  }

  static std::vector<float> scoresOf(const Group &group) {
    std::vector<float> scores(group.numPairs());
    std::memcpy(scores.data(), group.expected.data(), scores.size() * sizeof(float));
    return scores;
  }

  /// Calls `check` with each entry point of a group and what is expected of it.
  template <typename Check> static void forEachEntry(const Group &group, Check check) {
    ASSERT_TRUE(group.program && group.binding) << group.description["file"];
    size_t position = group.numPairs() * sizeof(float);
    for (const Json &description : group.description["entries"]) {
      Expected expected;
      expected.isMask = description["kind"] == "mask";
      const char *data = group.expected.data() + position;
      if (expected.isMask) {
        expected.allowed = reinterpret_cast<const uint8_t *>(data);
        position += group.numPairs();
      } else {
        for (std::vector<float> *values : {&expected.scores, &expected.allowances}) {
          values->resize(group.numPairs());
          std::memcpy(values->data(), group.expected.data() + position, values->size() * sizeof(float));
          position += values->size() * sizeof(float);
        }
      }
      const EntryPoint &entry = **group.program->entry(description["name"]);
      check(entry, expected);
      if (testing::Test::HasFailure())
        return;
    }
  }

  static bool isNear(float actual, float expected, float allowance) {
    if (std::isnan(expected) || std::isinf(expected) || std::isinf(actual))
      return actual == expected || (std::isnan(actual) && std::isnan(expected)) ||
             // The largest finite value lies within the allowance of infinity.
             (allowance > 0 && std::fabs(actual) >= std::numeric_limits<float>::max() / 2 &&
              std::fabs(expected) >= std::numeric_limits<float>::max() / 2 &&
              std::signbit(actual) == std::signbit(expected));
    return std::fabs(double(actual) - double(expected)) <= allowance;
  }

  static std::string place(const Group &group, const EntryPoint &entry, int64_t pair) {
    return fmt::format("{} '{}' at b {}, h {}, q {}, kv {}", group.description["file"].get<std::string>(), entry.name,
                       group.tile.b, group.tile.h, group.tile.qBegin + pair / group.tile.kvCount,
                       group.tile.kvBegin + pair % group.tile.kvCount);
  }

  static void expectScores(const Group &group, const EntryPoint &entry, const Expected &expected,
                           const std::vector<float> &actual) {
    for (int64_t pair = 0; pair < group.numPairs(); ++pair)
      ASSERT_TRUE(isNear(actual[pair], expected.scores[pair], expected.allowances[pair]))
          << place(group, entry, pair) << " gives " << actual[pair] << ", expected " << expected.scores[pair]
          << " within " << expected.allowances[pair];
  }

  static void expectMask(const Group &group, const EntryPoint &entry, const Expected &expected,
                         const std::vector<uint8_t> &actual) {
    for (int64_t pair = 0; pair < group.numPairs(); ++pair)
      ASSERT_EQ(actual[pair], expected.allowed[pair]) << place(group, entry, pair);
  }

  static fs::path folder;
  static std::vector<Group> groups;
};
fs::path Oracle::folder;
std::vector<Group> Oracle::groups;

TEST_F(Oracle, everyOperationOccursOften) {
  std::map<std::string, int> occurrences;
  const std::regex operation("mask\\.([a-z0-9_]+) ");
  for (const Group &group : groups) {
    ASSERT_TRUE(group.program);
    const std::string text = *group.program->emit(Stage::Mask, group.program->entries().front());
    for (std::sregex_iterator match(text.begin(), text.end(), operation), end; match != end; ++match)
      ++occurrences[(*match)[1]];
  }
#define CPFLEX_OPERATION(Enumerator, mnemonic, function, arity, domains)                                               \
  EXPECT_GE(occurrences[#mnemonic], kLeastOccurrences) << #mnemonic;
#include "runtime/contract/Operations.def"
  EXPECT_GE(occurrences["load"], kLeastOccurrences);
  EXPECT_GE(occurrences["reduce"], kLeastOccurrences);
}

TEST_F(Oracle, pointEvaluatorAgrees) {
  int64_t numAllowed = 0, numPairs = 0;
  for (const Group &group : groups)
    forEachEntry(group, [&](const EntryPoint &entry, const Expected &expected) {
      if (!expected.isMask)
        return;
      PointEvaluator evaluator(entry.tape, group.binding->bindings());
      const TileCoordinates &tile = group.tile;
      std::vector<uint8_t> actual(group.numPairs());
      for (int64_t row = 0; row < tile.qCount; ++row)
        evaluator.evaluateRow(tile.b, tile.h, tile.qBegin + row, tile.kvBegin, 1, tile.kvCount,
                              actual.data() + row * tile.kvCount);
      expectMask(group, entry, expected, actual);
      numAllowed += std::count(actual.begin(), actual.end(), 1);
      numPairs += group.numPairs();
    });
  // Both values must occur often, or the comparison shows nothing.
  EXPECT_GT(numAllowed, numPairs / 10);
  EXPECT_LT(numAllowed, numPairs * 9 / 10);
}

TEST_F(Oracle, classifierAgrees) {
  constexpr int64_t kTile = 4;
  for (const Group &group : groups)
    if (group.description["q_len"] < 1000)
      forEachEntry(group, [&](const EntryPoint &entry, const Expected &expected) {
        if (!expected.isMask)
          return;
        const TileCoordinates &shown = group.tile;
        BlockMaskOptions options = blockMaskOptions(*group.program, entry, *group.binding, kTile, kTile, 1);
        // The rows that the oracle evaluated, as a shard.
        options.batch = options.heads = 1;
        options.batchOffset = shown.b;
        options.headOffset = shown.h;
        options.qLen = shown.qCount;
        options.qPositions.pieces = {{shown.qBegin, shown.qCount, 1}};
        StatusOr<BlockMaskResult> built = buildBlockMask(&entry.tape, group.binding->bindings(), options);
        ASSERT_TRUE(built) << built.status().message();
        const TileRows &rows = built->mask.rows(0, 0);
        for (int64_t row = 0; row < built->mask.numQTiles(); ++row) {
          std::vector<TileClass> classes(built->mask.numKVTiles(), TileClass::Empty);
          for (int32_t i = rows.rowBegin[row]; i < rows.rowBegin[row + 1]; ++i)
            std::fill(classes.begin() + rows.runs[i].begin, classes.begin() + rows.runs[i].end, rows.runs[i].tileClass);
          for (size_t column = 0; column < classes.size(); ++column) {
            int64_t numAllowed = 0, numPairs = 0;
            for (int64_t q = row * kTile; q < std::min((row + 1) * kTile, shown.qCount); ++q)
              for (int64_t kv = column * kTile; kv < std::min<int64_t>((column + 1) * kTile, shown.kvCount);
                   ++kv, ++numPairs)
                numAllowed += expected.allowed[q * shown.kvCount + kv];
            const TileClass right = numAllowed == 0          ? TileClass::Empty
                                    : numAllowed == numPairs ? TileClass::Full
                                                             : TileClass::Partial;
            ASSERT_EQ(int(classes[column]), int(right))
                << place(group, entry, row * kTile * shown.kvCount + column * kTile);
          }
        }
      });
}

TEST_F(Oracle, hostCodeAgrees) {
  const auto expectSame = [](const Group &group, const EntryPoint &entry, const Expected &expected,
                             const HostFunctions &functions) {
    if (expected.isMask) {
      std::vector<uint8_t> actual(group.numPairs());
      functions.evaluateTile(&group.binding->bindings(), &group.tile, actual.data(), group.tile.kvCount);
      return expectMask(group, entry, expected, actual);
    }
    std::vector<float> actual = scoresOf(group);
    functions.score(&group.binding->bindings(), &group.tile, actual.data(), group.tile.kvCount);
    expectScores(group, entry, expected, actual);
  };
  for (size_t i = 0; i < groups.size(); ++i) {
    const Group &group = groups[i];
    ASSERT_TRUE(group.program && group.binding);
    // One group in ten as users get it; the others as fast as code can be had, which gives the same bits.
    if (i % kVectorisedGroup == 0) {
      forEachEntry(group, [&](const EntryPoint &entry, const Expected &expected) {
        StatusOr<HostFunctions> functions = group.program->hostFunctions(entry, group.binding->bindings());
        ASSERT_TRUE(functions) << functions.status().message();
        expectSame(group, entry, expected, *functions);
      });
      continue;
    }
    mlir::MLIRContext ctx(mlir::MLIRContext::Threading::DISABLED);
    ctx.loadDialect<mask::MaskDialect>();
    const std::string text = *group.program->emit(Stage::Mask, group.program->entries().front());
    auto module = mlir::parseSourceString<mlir::ModuleOp>(text, &ctx);
    ASSERT_TRUE(module);
    mlir::PassManager passes(&ctx);
    addSimplification(passes);
    if (mayRunNarrowCode(group.program->signature(), group.binding->bindings()))
      addIntegerNarrowing(passes, {.boundedParams = true});
    ASSERT_TRUE(mlir::succeeded(passes.run(*module)));
    forEachEntry(group, [&](const EntryPoint &entry, const Expected &expected) {
      mlir::FailureOr<HostFunctions> functions =
          compileHost(*module, entry.name, {.optimizationLevel = 0, .functions = HostFunctionSet::Forward});
      ASSERT_TRUE(mlir::succeeded(functions));
      expectSame(group, entry, expected, *functions);
    });
  }
}

/// The bytes of Program::Captures, by the layout that CaptureArgument.h states.
std::vector<char> packCaptures(const Program &program, const Binding &binding) {
  std::vector<char> bytes;
  const auto append = [&](const void *data, size_t size) {
    bytes.insert(bytes.end(), static_cast<const char *>(data), static_cast<const char *>(data) + size);
  };
  const Signature &signature = program.signature();
  for (size_t slot = 0; slot < signature.captures.size(); ++slot) {
    const CaptureView &view = binding.bindings().captures[slot];
    CaptureArgument argument{view.data, {}, {}};
    std::copy(view.shape, view.shape + view.rank, argument.shape);
    std::copy(view.strides, view.strides + view.rank, argument.strides);
    append(&argument, sizeof(argument));
  }
  if (!signature.params.empty())
    append(&binding.bindings().params, sizeof(binding.bindings().params));
  append(binding.bindings().dims, signature.dims.size() * sizeof(int64_t));
  return bytes;
}

using MaskFunction = bool (*)(const void *captures, int b, int h, int q, int kv);
using ScalarScoreFunction = float (*)(const void *captures, float s, int b, int h, int q, int kv);

/// A library compiled from the text of functors.
class CompiledFunctors {
public:
  CompiledFunctors(const fs::path &folder, const std::string &functors) {
    std::ofstream(folder / "functors.cpp")
        << "#define __device__\n#define __forceinline__ inline\n#include \"runtime/contract/Operations.h\"\n"
           "#include \"runtime/contract/CaptureArgument.h\"\n#include \"runtime/contract/KernelArguments.h\"\n"
        << functors;
    const std::string command =
        fmt::format("{} -std=c++17 -O0 -ffp-contract=off -w -shared -fPIC -I {} {}/functors.cpp -o {}/functors.so",
                    CPFLEX_TEST_COMPILER, CPFLEX_TEST_SOURCE_ROOT, folder.string(), folder.string());
    if (std::system(command.c_str()) == 0)
      handle_ = dlopen((folder / "functors.so").c_str(), RTLD_NOW | RTLD_LOCAL);
  }
  ~CompiledFunctors() {
    if (handle_)
      dlclose(handle_);
  }
  CompiledFunctors(const CompiledFunctors &) = delete;
  void *find(const std::string &name) const { return handle_ ? dlsym(handle_, name.c_str()) : nullptr; }

private:
  void *handle_ = nullptr;
};

TEST_F(Oracle, cudaFunctorsAgreeAsHostCode) {
  for (size_t begin = 0; begin < groups.size();) {
    // 1. One C++ file of the functors of some groups.
    std::string text;
    size_t numFunctors = 0, end = begin;
    for (; end < groups.size() && numFunctors < kFunctorsInBatch; ++end)
      forEachEntry(groups[end], [&](const EntryPoint &entry, const Expected &expected) {
        StatusOr<DeviceFunctions> functions =
            groups[end].program->deviceFunctions(entry, groups[end].binding->bindings());
        ASSERT_TRUE(functions) << functions.status().message();
        const std::string id = fmt::format("{}_{}", end, entry.name);
        text += fmt::format("namespace p{} {{\n{}}}\n", id, functions->text);
        text += fmt::format(
            "extern \"C\" {1} f{0}(const void *c, {2}int b, int h, int q, int kv) {{\n  return p{0}::Program::"
            "{3}*static_cast<const p{0}::Program::Captures *>(c), {4}b, h, q, kv);\n}}\n",
            id, expected.isMask ? "bool" : "float", expected.isMask ? "" : "float s, ",
            expected.isMask ? "mask(" : "score(", expected.isMask ? "" : "s, ");
        ++numFunctors;
      });
    CompiledFunctors compiled(folder, text);
    // 2. Every pair of every entry point.
    for (; begin < end; ++begin) {
      const Group &group = groups[begin];
      const TileCoordinates &tile = group.tile;
      const std::vector<char> captures = packCaptures(*group.program, *group.binding);
      const std::vector<float> given = scoresOf(group);
      forEachEntry(group, [&](const EntryPoint &entry, const Expected &expected) {
        void *function = compiled.find(fmt::format("f{}_{}", begin, entry.name));
        ASSERT_TRUE(function) << "the functors of " << group.description["file"] << " do not compile";
        std::vector<uint8_t> allowed(group.numPairs());
        std::vector<float> scores(group.numPairs());
        for (int64_t pair = 0; pair < group.numPairs(); ++pair) {
          const int q = int(tile.qBegin + pair / tile.kvCount), kv = int(tile.kvBegin + pair % tile.kvCount);
          const int b = int(tile.b), h = int(tile.h);
          if (expected.isMask)
            allowed[pair] = reinterpret_cast<MaskFunction>(function)(captures.data(), b, h, q, kv);
          else
            scores[pair] = reinterpret_cast<ScalarScoreFunction>(function)(captures.data(), given[pair], b, h, q, kv);
        }
        if (expected.isMask)
          expectMask(group, entry, expected, allowed);
        else
          expectScores(group, entry, expected, scores);
      });
    }
    if (HasFailure())
      return;
  }
}

} // namespace
} // namespace cpflex
