// The headers that sources working on the `mask` dialect share, compiled once.
#pragma once

#include "dialect/Mask/MaskDialect.h"

#include "mlir/IR/Matchers.h"
#include "mlir/Pass/Pass.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/TypeSwitch.h"

#include <optional>
#include <string>
#include <vector>
