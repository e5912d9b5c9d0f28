// Which masks must come out with which counts? The counted cases of the mask catalogue as tapes
// with their arrays, and the same predicates as plain C++ for the oracle.
#pragma once

#include "test/runtime/BlockMask/TapeBuilder.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace cpflex::test {

/// Counts of one case in tiles of 128 x 128; made by brute force over all pairs, independently of
/// this project.
struct CatalogueCounts {
  int64_t allowed, empty, full, partial, rowsWithoutKeys, columnsWithoutQueries;
};

/// One mask of the catalogue.
struct CatalogueCase {
  std::string name;
  int64_t qLen = 8192, kvLen = 8192;
  CatalogueCounts counts{};
  std::shared_ptr<TapeBuilder> builder;
  std::function<bool(int64_t q, int64_t kv)> oracle;
};

/// All counted cases.
std::vector<CatalogueCase> catalogue();

} // namespace cpflex::test
