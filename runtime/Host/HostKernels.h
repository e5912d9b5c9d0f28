// The inner loops of CPU attention as a table of functions over blocks of 128 x 128 floats. AttentionKernels.cpp is
// compiled once per instruction set and fills one table each; everything above them is compiled once.
#pragma once

#include "runtime/contract/Bindings.h"

#include <cstdint>

namespace cpflex {

enum class InstructionSet : uint8_t;

/// Rows and keys of one tile, and columns of one block.
inline constexpr int kBlockSize = 128;
/// Floats between two rows of a block: 9 cache lines, an odd number, so that a column of a block uses every cache set.
inline constexpr int kBlockStride = 144;
/// Floats of one block. A matrix with more than 128 columns is a sequence of blocks, 128 columns each.
inline constexpr int kBlockFloats = kBlockSize * kBlockStride;
/// Column counts of products are padded to this many floats, the widest vector.
inline constexpr int kColumnPadding = 16;

/// What `multiply` does with the product.
enum class ProductUse : uint8_t {
  Replace,   ///< C = alpha A B
  Add,       ///< C = C + alpha A B
  ScaleRows, ///< C[m] = rowScale[m] C[m] + A B[m]
};

/// C[m, n] from sum over k of A(m, k) B[k, n], within one block of each. Each element is one chain of additions in
/// ascending k, so its bits do not depend on the other sizes.
struct Product {
  const float *a; ///< block; A(m, k) = a[m * kBlockStride + k], or a[k * kBlockStride + m] when isATransposed
  bool isATransposed;
  const float *b; ///< block; rows k
  float *c;
  int64_t cStride; ///< floats between rows of C
  int numRows;     ///< m
  int numColumns;  ///< n, a multiple of kColumnPadding
  int depth;       ///< k
  ProductUse use;
  float alpha;           ///< not read by ScaleRows
  const float *rowScale; ///< read by ScaleRows
};

/// A matrix of the caller's, rows by columns, as part of a tensor.
struct MatrixView {
  void *data;
  ElementType type; ///< f32, bf16 or f16
  int64_t rowStride, columnStride;
};

/// One table of inner loops. `rows` and `columns` are at most 128 unless said otherwise; score tiles are one block.
struct HostKernels {
  void (*multiply)(const Product &product);
  /// The same where every element of A (not transposed) and B is a pair of bf16, whose products are added in one step;
  /// null where the processor has no such instruction. Subnormal bf16 count as 0.
  void (*multiplyPairs)(const Product &product);

  /// Widens rows x columns (any number of columns) into blocks; the columns up to the padding become 0. Returns whether
  /// all elements are finite.
  bool (*packRows)(const MatrixView &from, int rows, int columns, float *blocks);
  /// The same transposed: column c of the source becomes row c % 128 of block c / 128.
  bool (*packColumns)(const MatrixView &from, int rows, int columns, float *blocks);
  /// Rounds blocks (rows `stride` floats apart, the next 128 columns `blockStep` floats further) times rowScale[row]
  /// (null: 1) to a matrix; adds to it instead when isAdding, f32 only.
  void (*unpackRows)(const float *blocks, int64_t stride, int64_t blockStep, const float *rowScale, int rows,
                     int columns, bool isAdding, const MatrixView &to);

  /// One step of the online softmax: scores become exp(score - max), forbidden ones (mask byte 0, or -inf) 0. mask has
  /// rows of 128 bytes or is null. rowMax and rowSum are updated; rowScale is what earlier sums and outputs are to be
  /// multiplied by. Where `allowed` is not null it receives 1 for every pair that is not forbidden.
  void (*softmaxStep)(float *scores, int rows, int columns, const uint8_t *mask, float *rowMax, float *rowSum,
                      float *rowScale, uint8_t *allowed);
  /// Backward's probabilities: exp(score - lse[row]), forbidden pairs and rows with lse = -inf 0.
  void (*probabilities)(float *scores, int rows, int columns, const uint8_t *mask, const float *lse, uint8_t *allowed);
  /// Without softmax: forbidden scores become 0.
  void (*plainWeights)(float *scores, int rows, int columns, const uint8_t *mask, uint8_t *allowed);
  /// gradients = weights * (gradients - rowTerm[row]), 0 where weights is 0.
  void (*scoreGradients)(const float *weights, float *gradients, int rows, int columns, const float *rowTerm);
  /// gradients = 0 where allowed is 0; allowed has rows of 128 bytes.
  void (*clearForbidden)(float *gradients, int rows, int columns, const uint8_t *allowed);

  /// values[i] = exp(values[i]), at most 2 ulp; results below the smallest normal number are 0.
  void (*exponential)(float *values, int64_t count);
};

/// The table for an instruction set; null when this build or processor lacks it.
const HostKernels *hostKernels(InstructionSet instructionSet);

} // namespace cpflex
