// The matrix and copy instructions that every GPU from sm_80 on has: asynchronous 16-byte copies into shared memory,
// matrix loads from swizzled panels and the warp-wide product.
#pragma once

#include "runtime/kernels/device.cuh"

namespace cpflex::kernels {

/// Copies 16 bytes to shared memory in the background; writes zeros when `isInside` is false (then `source` is not
/// read).
__device__ __forceinline__ void copyChunk(uint32 destination, const void *source, bool isInside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(isInside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copyCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending> __device__ __forceinline__ void copyWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Starts copying rows [firstRow, firstRow + kRows) of a slice [s, d] into panels; rows from numRows on and columns
/// from kColumns up to the next multiple of 16 become zero.
template <int kRows, int kColumns, int kThreads>
__device__ __forceinline__ void copyRows(unsigned char *panels, const void *slice, long long strideS, int firstRow,
                                         int numRows) {
  constexpr int kChunks = roundUp(kColumns, 16) / 8;
  constexpr int kRowStep = kThreads / kChunks;
  uint32 base = sharedAddress(panels);
  const unsigned short *elements = static_cast<const unsigned short *>(slice);
  if constexpr (kThreads % kChunks == 0 && kRowStep % 8 == 0 && kRows % kRowStep == 0 && kColumns == kChunks * 8) {
    // A thread keeps its columns and so its place in the swizzle: addresses advance by constants.
    int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks * 8;
    uint32 destination = base + swizzledOffset<kRows>(row, column);
    const unsigned short *source = elements + (long long)(firstRow + row) * strideS + column;
    int rowsLeft = numRows - firstRow - row;
    long long step = kRowStep * strideS;
#pragma unroll
    for (int i = 0; i < kRows / kRowStep; ++i, source += step)
      copyChunk(destination + i * kRowStep * 128, i * kRowStep < rowsLeft ? source : elements, i * kRowStep < rowsLeft);
  } else {
#pragma unroll
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
      int row = i / kChunks, column = i % kChunks * 8;
      bool isInside = firstRow + row < numRows && column < kColumns;
      const unsigned short *source = elements + (firstRow + row) * strideS + column;
      copyChunk(base + swizzledOffset<kRows>(row, column), isInside ? source : elements, isInside);
    }
  }
}

/// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void loadMatrices(uint32 (&words)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void loadMatricesTransposed(uint32 (&words)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

/// An A operand (16 rows x 16 contracted columns) of panels, rows from `row`, columns from `column`.
template <int kRows> __device__ __forceinline__ void loadOperandA(uint32 (&a)[4], uint32 panels, int row, int column) {
  int lane = threadIdx.x % kWarpSize;
  loadMatrices(a, panels + swizzledOffset<kRows>(row + lane % 16, column + lane / 16 * 8));
}
/// An A operand whose contracted dimension is the rows: A = panels[rows row.., columns column..] transposed.
template <int kRows>
__device__ __forceinline__ void loadOperandATransposed(uint32 (&a)[4], uint32 panels, int row, int column) {
  int lane = threadIdx.x % kWarpSize;
  loadMatricesTransposed(a, panels + swizzledOffset<kRows>(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
}
/// Two B operands (16 contracted columns x 8 rows each), rows from `row` and from `row + 8`: b[0..1] and b[2..3].
template <int kRows> __device__ __forceinline__ void loadOperandB(uint32 (&b)[4], uint32 panels, int row, int column) {
  int lane = threadIdx.x % kWarpSize;
  loadMatrices(b, panels + swizzledOffset<kRows>(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
}
/// Two B operands whose contracted dimension is the 16 rows from `row`; columns from `column` and from `column + 8`.
template <int kRows>
__device__ __forceinline__ void loadOperandBTransposed(uint32 (&b)[4], uint32 panels, int row, int column) {
  int lane = threadIdx.x % kWarpSize;
  loadMatricesTransposed(b, panels + swizzledOffset<kRows>(row + lane % 16, column + lane / 16 * 8));
}

/// d[16 x 8] += a[16 x 16] b[16 x 8]; d is registers 4g .. 4g + 3 of an accumulator (tiles.cuh).
template <class Element> __device__ __forceinline__ void warpProduct(float *d, const uint32 *a, uint32 b0, uint32 b1) {
  if constexpr (IsSame<Element, BFloat16>::value)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
        " {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
        " {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// d = A B^T for one warp's 16 rows of A from `row`: A has kRowsA rows, B kRowsB rows (the columns of d), both kColumns
/// columns.
template <class Element, int kRowsA, int kRowsB, int kColumns>
__device__ __forceinline__ void multiplyTile(float (&d)[kRowsB / 2], uint32 panelsA, uint32 panelsB, int row) {
#pragma unroll
  for (int i = 0; i < kRowsB / 2; ++i)
    d[i] = 0.0f;
#pragma unroll
  for (int column = 0; column < kColumns; column += 16) {
    uint32 a[4];
    loadOperandA<kRowsA>(a, panelsA, row, column);
#pragma unroll
    for (int rowB = 0; rowB < kRowsB; rowB += 16) {
      uint32 b[4];
      loadOperandB<kRowsB>(b, panelsB, rowB, column);
      warpProduct<Element>(d + rowB / 2, a, b[0], b[1]);
      warpProduct<Element>(d + rowB / 2 + 4, a, b[2], b[3]);
    }
  }
}

/// d += A B for one warp's 16 rows: A packed in registers (16 x kRowsB), B kColumns columns of panels from firstColumn.
template <class Element, int kRowsB, int kColumns>
__device__ __forceinline__ void accumulateTile(float (&d)[kColumns / 2], const uint32 (&a)[kRowsB / 4], uint32 panelsB,
                                               int firstColumn) {
#pragma unroll
  for (int rowB = 0; rowB < kRowsB; rowB += 16)
#pragma unroll
    for (int column = 0; column < kColumns; column += 16) {
      uint32 b[4];
      loadOperandBTransposed<kRowsB>(b, panelsB, rowB, firstColumn + column);
      warpProduct<Element>(d + column / 2, a + rowB / 4, b[0], b[1]);
      warpProduct<Element>(d + column / 2 + 4, a + rowB / 4, b[2], b[3]);
    }
}

/// Takes the next work item for the whole block; `slot` is one int of shared memory. Negative when none is left.
__device__ __forceinline__ int takeItem(int *counter, int *slot, int numItems) {
  __syncthreads();
  if (threadIdx.x == 0)
    *slot = atomicAdd(counter, 1);
  __syncthreads();
  int item = *slot;
  return item < numItems ? item : -1;
}

} // namespace cpflex::kernels
