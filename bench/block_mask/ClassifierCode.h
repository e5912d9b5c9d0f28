// What would the classifier of a mask be as machine code? Compiles `mask.classifier` functions of common operations for
// the comparison with the interpreter; the product interprets them.
#pragma once

#include "runtime/BlockMask/TapeProgram.h"

#include "mlir/IR/BuiltinOps.h"

#include <cstdint>
#include <memory>

namespace cpflex::bench {

/// The TileClass of a tile as a number. `ids` are the elements of the one capture, sorted, `count` of them.
using ClassifyFunction = uint8_t (*)(const PositionBounds *tile, const int32_t *ids, int64_t count);

/// `owner` keeps the code alive.
struct CompiledClassifier {
  ClassifyFunction classify = nullptr;
  std::shared_ptr<void> owner;
};

/// Derives the classifier of predicate `name` of `module` and compiles it for this CPU at -O2. Null where it has an
/// operation that this experiment lacks.
CompiledClassifier compileClassifier(mlir::ModuleOp module, const char *name);

} // namespace cpflex::bench
