// Which expressions have a simpler or more readable form with the same meaning on every input.
#include "dialect/Mask/MaskDialect.h"

using namespace mlir;

namespace cpflex::mask {

void MaskDialect::getCanonicalizationPatterns(RewritePatternSet &patterns) const {}

} // namespace cpflex::mask
