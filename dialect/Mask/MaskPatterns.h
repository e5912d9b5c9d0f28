// The canonicalisation patterns of the `mask` dialect by subject, for MaskDialect::getCanonicalizationPatterns.
#pragma once

#include "dialect/Mask/MaskDialect.h"

namespace cpflex::mask {

/// Sums, products, quotients and remainders of ints and u32, and reductions over few indices.
void populateArithmeticPatterns(mlir::RewritePatternSet &patterns);

} // namespace cpflex::mask
