// What compiled host code does: loads, strides, reductions, scores, gradients, errors, and that its inner loops are
// vector code.
#include "lib/Jit/HostJit.h"
#include "test/lib/Jit/BoundArrays.h"

#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

namespace cpflex::test {
namespace {

class HostJit : public testing::Test {
protected:
  HostJit() { ctx.loadDialect<mask::MaskDialect>(); }

  void parse(const std::string &text) {
    module = mlir::parseSourceString<mlir::ModuleOp>(text, &ctx);
    ASSERT_TRUE(module);
  }
  HostFunctions compile(const JitOptions &options = {}) {
    mlir::FailureOr<HostFunctions> functions = compileHost(*module, "main", options);
    EXPECT_TRUE(mlir::succeeded(functions));
    return mlir::succeeded(functions) ? *functions : HostFunctions();
  }

  mlir::MLIRContext ctx;
  mlir::OwningOpRef<mlir::ModuleOp> module;
};

constexpr char kDocumentCausal[] = R"(
mask.capture @doc : i32 ["B", "KV_LEN"] {sorted}
mask.predicate @main.mask(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.load @doc[%b, %q] : (i64, i64) -> i64
  %1 = mask.load @doc[%b, %kv] : (i64, i64) -> i64
  %2 = mask.eq %0, %1 : i64
  %3 = mask.le %kv, %q : i64
  %4 = mask.and %2, %3 : i1
  mask.yield %4 : i1
}
mask.score @main.score(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %c = mask.constant 20.0 : f32
  %0 = mask.div %s, %c : f32
  %1 = mask.tanh %0 : f32
  %2 = mask.mul %1, %c : f32
  mask.yield %2 : f32
}
mask.attention @main mask(@main.mask) score(@main.score)
)";

TEST_F(HostJit, scratch) {
  parse(kDocumentCausal);
  for (int i = 0; i < 4; ++i) {
    auto t0 = std::chrono::steady_clock::now();
    compile();
    auto t1 = std::chrono::steady_clock::now();
    fprintf(stderr, "compile %f ms\n", std::chrono::duration<double>(t1 - t0).count() * 1e3);
  }
  fputs(emitLLVM(*module, "main")->c_str(), stderr);
  fputs(emitAssembly(*module, "main")->c_str(), stderr);
}

} // namespace
} // namespace cpflex::test
