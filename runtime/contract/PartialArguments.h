// What the kernels of partial_rows.cuh are given at launch: copies, sums and merges of rows between the attention
// kernels of context parallelism. Plain structs that host C++ and CUDA C++ read with the same layout.
#pragma once

#include "runtime/contract/KernelArguments.h"

namespace cpflex {

/// The element types of row kernels.
enum class RowElement : unsigned char { F32, BF16, F16 };

/// Rows [batch, heads, rows] of bytes. Strides count bytes.
struct RowBytesArgument {
  void *data;
  long long strideB, strideH, strideS;
};

/// Copies rows; addresses, strides and row sizes are multiples of `unitBytes`, which is 2, 4, 8 or 16.
struct CopyRowsArguments {
  RowBytesArgument from, to;
  int heads;
  unsigned rows, unitsPerRow;
  int unitBytes;
};

/// to = to + from, or to = factor * from; `from` is f32, rows of `width` elements.
struct CombineRowsArguments {
  RowBytesArgument from, to;
  int heads;
  unsigned rows, width;
  float factor;
  RowElement toElement; ///< f32 where rows are added
};

/// Merges two partials over disjoint keys and, where given, the sink. Strides count elements.
struct MergePartialsArguments {
  TensorArgument first, second; ///< f32, normalised, 0 without keys
  RowArgument firstLse, secondLse;
  TensorArgument out;                 ///< may be `first`, or of another element type
  RowArgument lse;                    ///< may be firstLse
  const float *sink;                  ///< one logit per global query head, or null
  int heads, headOffset, rows, width; ///< width even
  RowElement outElement;
  unsigned char hasSoftmax; ///< 0: sums, no LSE
};

/// rowTerm = rowsum(dOut * out) - dLse. Strides count elements; width even.
struct RowTermArguments {
  TensorArgument out, dOut;
  RowArgument dLse; ///< or null
  RowArgument rowTerm;
  int heads, rows, width;
  RowElement element;
};

} // namespace cpflex
