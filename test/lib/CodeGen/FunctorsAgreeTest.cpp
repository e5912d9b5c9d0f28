// Do CUDA functors mean what the operations mean? The text of many random programs is compiled at once as C++ by the
// host compiler and run beside the evaluator.
#include "lib/CodeGen/Cuda/CudaFunctors.h"
#include "lib/Transforms/Passes.h"
#include "runtime/contract/CaptureArgument.h"
#include "test/lib/Jit/BoundArrays.h"
#include "test/lib/Transforms/RandomProgram.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Pass/PassManager.h"

#include <gtest/gtest.h>

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace cpflex::test {
namespace {

constexpr int kNumPrograms = 120;
constexpr int kNumPoints = 60;

/// The bytes of Program::Captures, by the layout that CaptureArgument.h states.
std::vector<char> packCaptures(const BoundArrays &arrays) {
  std::vector<char> bytes;
  auto append = [&](const void *data, size_t size) {
    bytes.insert(bytes.end(), static_cast<const char *>(data), static_cast<const char *>(data) + size);
  };
  for (const CaptureView &view : arrays.views) {
    CaptureArgument argument{view.data, {}, {}};
    for (int axis = 0; axis < view.rank; ++axis) {
      argument.shape[axis] = view.shape[axis];
      argument.strides[axis] = view.strides[axis];
    }
    append(&argument, sizeof(argument));
  }
  if (!arrays.signature.params.empty())
    append(&arrays.bindings.params, sizeof(arrays.bindings.params));
  append(arrays.bindings.dims, arrays.signature.dims.size() * sizeof(int64_t));
  return bytes;
}

using MaskFunction = bool (*)(const void *captures, int b, int h, int q, int kv);

/// A library compiled from `text`, in a folder of its own.
class CompiledText {
public:
  explicit CompiledText(const std::string &text) {
    folder = std::filesystem::temp_directory_path() / ("cpflex-functors-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "functors.cpp") << text;
    std::string command = std::string(CPFLEX_TEST_COMPILER) + " -std=c++17 -O1 -ffp-contract=off -w -shared -fPIC -I " +
                          CPFLEX_TEST_SOURCE_ROOT + " " + (folder / "functors.cpp").string() + " -o " +
                          (folder / "functors.so").string();
    if (std::system(command.c_str()) == 0)
      handle = dlopen((folder / "functors.so").c_str(), RTLD_NOW | RTLD_LOCAL);
  }
  ~CompiledText() {
    if (handle)
      dlclose(handle);
    std::filesystem::remove_all(folder);
  }
  void *find(const std::string &name) const { return handle ? dlsym(handle, name.c_str()) : nullptr; }

private:
  std::filesystem::path folder;
  void *handle = nullptr;
};

void expectSameValues(uint64_t firstSeed, int64_t largestParam, bool isNarrowed) {
  mlir::MLIRContext ctx;
  ctx.loadDialect<mask::MaskDialect>();
  std::string text = "#define __device__\n#define __forceinline__ inline\n"
                     "#include \"runtime/contract/Operations.h\"\n#include \"runtime/contract/CaptureArgument.h\"\n"
                     "#include \"runtime/contract/KernelArguments.h\"\n";
  std::vector<std::unique_ptr<RandomProgram>> programs;
  std::vector<mlir::OwningOpRef<mlir::ModuleOp>> printed;
  for (int i = 0; i < kNumPrograms; ++i) {
    programs.push_back(std::make_unique<RandomProgram>(ctx, firstSeed + i));
    mlir::ModuleOp module = *programs.back()->module;
    mlir::OpBuilder builder(&ctx);
    builder.setInsertionPointToEnd(module.getBody());
    mask::AttentionOp::create(builder, builder.getUnknownLoc(), builder.getStringAttr("main"),
                              mlir::FlatSymbolRefAttr::get(&ctx, "f"), mlir::FlatSymbolRefAttr(),
                              mlir::FlatSymbolRefAttr(), mlir::FloatAttr(), mlir::UnitAttr());
    printed.push_back(module.clone());
    if (isNarrowed) {
      mlir::PassManager passes(&ctx);
      addSimplification(passes);
      NarrowIntegersOptions options;
      options.boundedParams = true;
      addIntegerNarrowing(passes, options);
      ASSERT_TRUE(mlir::succeeded(passes.run(*printed.back())));
    }
    mlir::FailureOr<DeviceFunctions> functions = emitCudaFunctors(*printed.back(), "main");
    ASSERT_TRUE(mlir::succeeded(functions));
    std::string number = std::to_string(i);
    text += "namespace p" + number + " {\n" + functions->text + "}\nextern \"C\" bool mask" + number +
            "(const void *captures, int b, int h, int q, int kv) {\n  return p" + number +
            "::Program::mask(*static_cast<const p" + number + "::Program::Captures *>(captures), b, h, q, kv);\n}\n" +
            "extern \"C\" const unsigned long size" + number + " = sizeof(p" + number + "::Program::Captures);\n";
  }
  CompiledText compiled(text);
  int numTrue = 0;
  for (int i = 0; i < kNumPrograms; ++i) {
    auto mask = reinterpret_cast<MaskFunction>(compiled.find("mask" + std::to_string(i)));
    auto size = static_cast<unsigned long *>(compiled.find("size" + std::to_string(i)));
    ASSERT_TRUE(mask && size);
    Evaluator evaluator = programs[i]->evaluator(largestParam);
    BoundArrays arrays(*printed[i], evaluator);
    std::vector<char> captures = packCaptures(arrays);
    ASSERT_EQ(captures.size(), *size);
    for (int point = 0; point < kNumPoints; ++point) {
      std::vector<ScalarSlot> at = programs[i]->coordinates();
      ScalarSlot expected = evaluator.run(programs[i]->module->lookupSymbol<mask::PredicateOp>("f"), at);
      numTrue += expected;
      if (mask(captures.data(), at[0], at[1], at[2], at[3]) == (expected != 0))
        continue;
      printed[i]->dump();
      FAIL() << "seed " << firstSeed + i << " gives " << !expected << " at " << at[0] << ", " << at[1] << ", " << at[2]
             << ", " << at[3] << "\n"
             << emitCudaFunctors(*printed[i], "main")->text;
    }
  }
  EXPECT_GT(numTrue, kNumPrograms * kNumPoints / 10);
  EXPECT_LT(numTrue, kNumPrograms * kNumPoints * 9 / 10);
}

TEST(FunctorsAgree, in64Bits) { expectSameValues(30001, INT64_MAX, /*isNarrowed=*/false); }
TEST(FunctorsAgree, narrowed) { expectSameValues(40001, int64_t(1) << 30, /*isNarrowed=*/true); }

} // namespace
} // namespace cpflex::test
