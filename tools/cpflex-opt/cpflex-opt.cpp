// Runs each pass of the compiler alone on modules in the project's dialects, for tests and for reading.
#include "dialect/Mask/MaskDialect.h"
#include "lib/Transforms/Passes.h"

#include "mlir/IR/DialectRegistry.h"
#include "mlir/Tools/mlir-opt/MlirOptMain.h"
#include "mlir/Transforms/Passes.h"

int main(int argc, char **argv) {
  mlir::DialectRegistry registry;
  registry.insert<cpflex::mask::MaskDialect>();
  mlir::registerCanonicalizerPass();
  mlir::registerCSEPass();
  cpflex::registerMaskPasses();
  return mlir::asMainReturnCode(mlir::MlirOptMain(argc, argv, "cpflex pass driver\n", registry));
}
