// The inner loops of CPU attention (see HostKernels.h), written with the compiler's vector extensions. This file is
// compiled once per instruction set with CPFLEX_KERNEL_TABLE naming the table. It calls no inline function of external
// linkage: the linker could keep a copy that was compiled for a larger processor.
#include "runtime/Host/HalfPrecision.h"
#include "runtime/Host/HostKernels.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {
using cpflex::ElementType;
using cpflex::kBlockFloats;
using cpflex::kBlockSize;
using cpflex::kBlockStride;
using cpflex::MatrixView;
using cpflex::Product;
using cpflex::ProductUse;

#if defined(__AVX512F__)
constexpr int kWidth = 16;
constexpr int kMaxRows = 12;
#elif defined(__AVX__)
constexpr int kWidth = 8;
constexpr int kMaxRows = 6;
#else
constexpr int kWidth = 4;
constexpr int kMaxRows = 4;
#endif
constexpr int kVectorBytes = kWidth * 4;
constexpr int kVectorsPerPanel = 2;

typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntVector __attribute__((vector_size(kVectorBytes)));
typedef uint32_t BitVector __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfVector __attribute__((vector_size(kWidth * 2)));
typedef uint8_t ByteVector __attribute__((vector_size(kWidth)));

inline Vector load(const float *from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline void store(float *to, Vector value) { __builtin_memcpy(to, &value, sizeof value); }
inline Vector splat(float value) { return Vector{} + value; }
inline Vector fromBits(BitVector bits) { return (Vector)bits; }
inline BitVector toBits(Vector value) { return (BitVector)value; }

inline IntVector laneNumbers() {
  IntVector lanes;
  for (int i = 0; i < kWidth; ++i)
    lanes[i] = i;
  return lanes;
}

constexpr float kInfinity = __builtin_inff();

inline int smaller(int a, int b) { return a < b ? a : b; }

//===-- Exponential ------------------------------------------------------===//

/// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2. The polynomial is the minimax fit of degree 6 with the
/// first two coefficients fixed at 1 (relative error 3.1e-9); ln 2 is split so that n times its high part is exact.
inline Vector exponentialOf(Vector x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912.0f; // 1.5 * 2^23: adding it leaves the integer in the low bits
  constexpr float kLargest = 88.7228394f, kSmallest = -87.3365402f;
  Vector shifted = x * kLog2E + kRounder;
  Vector n = shifted - kRounder;
  Vector r = x - n * kLn2High;
  r = r - n * kLn2Low;
  Vector p = splat(1.3814584e-3f);
  p = p * r + 8.368724e-3f;
  p = p * r + 4.1668389e-2f;
  p = p * r + 0.16666521f;
  p = p * r + 0.49999994f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  Vector result = fromBits(toBits(p) + (toBits(shifted) << 23));
  result = x > kLargest ? splat(kInfinity) : result;
  result = x < kSmallest ? Vector{} : result;
  return x == x ? result : x;
}

void exponential(float *values, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth)
    store(values + i, exponentialOf(load(values + i)));
  if (i == count)
    return;
  float rest[kWidth] = {};
  for (int64_t j = i; j < count; ++j)
    rest[j - i] = values[j];
  store(rest, exponentialOf(load(rest)));
  for (int64_t j = i; j < count; ++j)
    values[j] = rest[j - i];
}

//===-- Products ---------------------------------------------------------===//

/// How a product reads A and what one step of k is.
enum class Operand { Rows, Columns, Pairs };

/// sum + factor * row; with Pairs both hold two bf16 each, whose two products are added.
template <Operand operand> inline Vector accumulate(Vector sum, float factor, Vector row) {
#if defined(__AVX512BF16__)
  if constexpr (operand == Operand::Pairs)
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(factor), (__m512bh)row);
#endif
  return sum + factor * row;
}

/// numRows x (numVectors * kWidth) elements of C held in registers while k runs.
template <int numRows, int numVectors, Operand operand>
void multiplyPanel(const Product &product, const float *a, const float *b, float *c, const float *rowScale) {
  Vector sums[numRows][numVectors] = {};
  for (int k = 0; k < product.depth; ++k) {
    Vector row[numVectors];
    for (int j = 0; j < numVectors; ++j)
      row[j] = load(b + k * kBlockStride + j * kWidth);
    for (int m = 0; m < numRows; ++m) {
      float factor = operand == Operand::Columns ? a[k * kBlockStride + m] : a[m * kBlockStride + k];
      for (int j = 0; j < numVectors; ++j)
        sums[m][j] = accumulate<operand>(sums[m][j], factor, row[j]);
    }
  }
  // One fused operation per use, so that no instance can choose another one.
  for (int m = 0; m < numRows; ++m)
    for (int j = 0; j < numVectors; ++j) {
      float *element = c + m * product.cStride + j * kWidth;
      switch (product.use) {
      case ProductUse::Replace: store(element, sums[m][j] * product.alpha); break;
      case ProductUse::Add: store(element, sums[m][j] * product.alpha + load(element)); break;
      case ProductUse::ScaleRows: store(element, load(element) * rowScale[m] + sums[m][j]); break;
      }
    }
}

template <int numRows, int numVectors, Operand operand>
void multiplyRows(const Product &product, const float *b, float *c) {
  int m = 0;
  auto rowsFrom = [&](int row) {
    return operand == Operand::Columns ? product.a + row : product.a + int64_t(row) * kBlockStride;
  };
  auto scalesFrom = [&](int row) { return product.rowScale ? product.rowScale + row : nullptr; };
  for (; m + numRows <= product.numRows; m += numRows)
    multiplyPanel<numRows, numVectors, operand>(product, rowsFrom(m), b, c + m * product.cStride, scalesFrom(m));
  if constexpr (numRows > 1) {
    if (m < product.numRows) {
      Product rest = product;
      rest.a = rowsFrom(m);
      rest.numRows = product.numRows - m;
      rest.rowScale = scalesFrom(m);
      multiplyRows<numRows - 1, numVectors, operand>(rest, b, c + m * product.cStride);
    }
  }
}

template <Operand operand> void multiplyColumns(const Product &product) {
  int n = 0;
  constexpr int kPanel = kVectorsPerPanel * kWidth;
  for (; n + kPanel <= product.numColumns; n += kPanel)
    multiplyRows<kMaxRows, kVectorsPerPanel, operand>(product, product.b + n, product.c + n);
  for (; n + kWidth <= product.numColumns; n += kWidth)
    multiplyRows<kMaxRows, 1, operand>(product, product.b + n, product.c + n);
}

void multiply(const Product &product) {
  if (product.isATransposed)
    multiplyColumns<Operand::Columns>(product);
  else
    multiplyColumns<Operand::Rows>(product);
}

#if defined(__AVX512BF16__)
constexpr auto multiplyPairs = multiplyColumns<Operand::Pairs>;
#else
constexpr void (*multiplyPairs)(const Product &) = nullptr;
#endif

//===-- Packing ----------------------------------------------------------===//

inline Vector widenBFloat16(HalfVector value) { return fromBits(__builtin_convertvector(value, BitVector) << 16); }

/// The exponent is rebased by an exact multiplication, which also normalises subnormal numbers; infinities and NaNs get
/// the exponent that f32 uses for them.
inline Vector widenFloat16(HalfVector value) {
  BitVector bits = __builtin_convertvector(value, BitVector);
  BitVector magnitude = (bits & 0x7fffu) << 13;
  Vector scaled = fromBits(magnitude) * 0x1p112f;
  BitVector special = magnitude | 0x7f800000u;
  BitVector isSpecial = (BitVector)((bits & 0x7c00u) == 0x7c00u);
  return fromBits((isSpecial & special) | (~isSpecial & toBits(scaled)) | ((bits & 0x8000u) << 16));
}

/// kWidth elements from `element` on, of which the first `count` exist; the others read as 0.
inline Vector loadElements(const MatrixView &from, int64_t element, int count) {
  const int64_t step = from.columnStride;
  if (from.type == ElementType::F32) {
    const float *data = (const float *)from.data + element;
    if (step == 1 && count >= kWidth)
      return load(data);
    Vector value = {};
    for (int i = 0; i < count && i < kWidth; ++i)
      value[i] = data[i * step];
    return value;
  }
  const uint16_t *data = (const uint16_t *)from.data + element;
  HalfVector value = {};
  if (step == 1 && count >= kWidth)
    __builtin_memcpy(&value, data, sizeof value);
  else
    for (int i = 0; i < count && i < kWidth; ++i)
      value[i] = data[i * step];
  return from.type == ElementType::BF16 ? widenBFloat16(value) : widenFloat16(value);
}

inline bool isAnyNaN(Vector value) {
  IntVector isNaN = (IntVector)(value != value);
  int32_t any = 0;
  for (int i = 0; i < kWidth; ++i)
    any |= isNaN[i];
  return any != 0;
}

inline int paddedColumns(int columns) {
  constexpr int kPadding = cpflex::kColumnPadding;
  return (columns + kPadding - 1) / kPadding * kPadding;
}

bool packRows(const MatrixView &from, int rows, int columns, float *blocks) {
  // 0 * x is NaN exactly when x is not finite, and a sum keeps it. Two sums, to halve the wait for each other.
  Vector poison[2] = {};
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < paddedColumns(columns); c += kWidth) {
      Vector value =
          c < columns ? loadElements(from, r * from.rowStride + c * from.columnStride, columns - c) : Vector{};
      poison[c / kWidth % 2] += value * 0.0f;
      store(blocks + int64_t(c / kBlockSize) * kBlockFloats + r * kBlockStride + c % kBlockSize, value);
    }
  return !isAnyNaN(poison[0] + poison[1]);
}

template <int step, int lane> constexpr int lowSource() { return (lane & step) ? kWidth + lane - step : lane; }
template <int step, int lane> constexpr int highSource() { return (lane & step) ? kWidth + lane : lane + step; }

/// One stage of the transposition of a kWidth x kWidth square: exchanges off-diagonal squares of `step` lanes.
template <int step, int... lanes> inline void exchange(Vector *rows) {
  for (int i = 0; i < kWidth; ++i) {
    if (i & step)
      continue;
    Vector low = __builtin_shufflevector(rows[i], rows[i + step], lowSource<step, lanes>()...);
    Vector high = __builtin_shufflevector(rows[i], rows[i + step], highSource<step, lanes>()...);
    rows[i] = low;
    rows[i + step] = high;
  }
}

template <int... lanes> inline void transposeSquare(Vector *rows) {
  exchange<1, lanes...>(rows);
  exchange<2, lanes...>(rows);
  if constexpr (kWidth > 4)
    exchange<4, lanes...>(rows);
  if constexpr (kWidth > 8)
    exchange<8, lanes...>(rows);
}

inline void transposeSquare(Vector *rows) {
#if defined(__AVX512F__)
  transposeSquare<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(rows);
#elif defined(__AVX__)
  transposeSquare<0, 1, 2, 3, 4, 5, 6, 7>(rows);
#else
  transposeSquare<0, 1, 2, 3>(rows);
#endif
}

bool packColumns(const MatrixView &from, int rows, int columns, float *blocks) {
  Vector poison[2] = {};
  for (int r = 0; r < paddedColumns(rows); r += kWidth)
    for (int c = 0; c < columns; c += kWidth) {
      Vector square[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        square[i] =
            r + i < rows ? loadElements(from, (r + i) * from.rowStride + c * from.columnStride, columns - c) : Vector{};
        poison[i % 2] += square[i] * 0.0f;
      }
      transposeSquare(square);
      float *block = blocks + int64_t(c / kBlockSize) * kBlockFloats + c % kBlockSize * kBlockStride + r;
      for (int i = 0; i < smaller(kWidth, columns - c); ++i)
        store(block + i * kBlockStride, square[i]);
    }
  return !isAnyNaN(poison[0] + poison[1]);
}

//===-- Unpacking --------------------------------------------------------===//

void unpackRows(const float *blocks, int64_t stride, int64_t blockStep, const float *rowScale, int rows, int columns,
                bool isAdding, const MatrixView &to) {
  for (int r = 0; r < rows; ++r) {
    float scale = rowScale ? rowScale[r] : 1.0f;
    for (int begin = 0; begin < columns; begin += kBlockSize) {
      const float *from = blocks + begin / kBlockSize * blockStep + r * stride;
      int count = smaller(kBlockSize, columns - begin);
      int64_t element = r * to.rowStride + begin * to.columnStride;
      if (to.type == ElementType::F32) {
        float *data = (float *)to.data + element;
        if (isAdding)
          for (int c = 0; c < count; ++c)
            data[c * to.columnStride] += from[c] * scale;
        else if (to.columnStride == 1)
          for (int c = 0; c < count; ++c)
            data[c] = from[c] * scale;
        else
          for (int c = 0; c < count; ++c)
            data[c * to.columnStride] = from[c] * scale;
        continue;
      }
      uint16_t *data = (uint16_t *)to.data + element;
      bool isBFloat16 = to.type == ElementType::BF16;
      for (int c = 0; c < count; ++c) {
        float value = from[c] * scale;
        data[c * to.columnStride] = isBFloat16 ? cpflex::narrowToBFloat16(value) : cpflex::narrowToFloat16(value);
      }
    }
  }
}

//===-- Scores -----------------------------------------------------------===//

/// All bits set in the lanes of columns [column, column + kWidth) that are smaller than `columns`, and that the mask
/// allows when there is one.
inline IntVector allowedLanes(int column, int columns, const uint8_t *maskRow) {
  IntVector lanes = (IntVector)(laneNumbers() < columns - column);
  if (!maskRow)
    return lanes;
  ByteVector bytes;
  __builtin_memcpy(&bytes, maskRow + column, sizeof bytes);
  return lanes & (IntVector)(__builtin_convertvector(bytes, IntVector) != 0);
}

inline void storeAllowed(uint8_t *allowedRow, int column, IntVector allowed) {
  for (int i = 0; i < kWidth; ++i)
    allowedRow[column + i] = allowed[i] != 0;
}

inline float largestLane(Vector value) {
  float result = value[0];
  for (int i = 1; i < kWidth; ++i)
    result = value[i] > result ? value[i] : result;
  return result;
}

/// Adds lanes pairwise, always in the same order.
inline float sumOfLanes(Vector value) {
  float lanes[kWidth];
  store(lanes, value);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      lanes[i] += lanes[i + half];
  return lanes[0];
}

/// Replaces what a row may not see by -inf and returns the largest score; a NaN never is it.
template <bool isMasked>
inline float maskedRowMax(float *row, int columns, const uint8_t *maskRow, uint8_t *allowedRow) {
  Vector largest = splat(-kInfinity);
  const int numWhole = isMasked ? 0 : columns / kWidth * kWidth;
  for (int c = 0; c < numWhole; c += kWidth) {
    Vector score = load(row + c);
    largest = score > largest ? score : largest;
  }
  for (int c = numWhole; c < columns; c += kWidth) {
    Vector score = load(row + c);
    score = allowedLanes(c, columns, maskRow) ? score : splat(-kInfinity);
    store(row + c, score);
    largest = score > largest ? score : largest;
  }
  if (allowedRow)
    for (int c = 0; c < columns; c += kWidth)
      storeAllowed(allowedRow, c, (IntVector)(load(row + c) != -kInfinity));
  return largestLane(largest);
}

void softmaxStep(float *scores, int rows, int columns, const uint8_t *mask, float *rowMax, float *rowSum,
                 float *rowScale, uint8_t *allowed) {
  // 1. The largest score so far; a row that has seen no key subtracts 0, so that exp(-inf - max) is 0.
  float base[kBlockSize + kWidth];
  for (int r = 0; r < rows; ++r) {
    float *row = scores + r * kBlockStride;
    uint8_t *allowedRow = allowed ? allowed + r * kBlockSize : nullptr;
    float largest = mask ? maskedRowMax<true>(row, columns, mask + r * kBlockSize, allowedRow)
                         : maskedRowMax<false>(row, columns, nullptr, allowedRow);
    largest = largest > rowMax[r] ? largest : rowMax[r];
    base[r] = largest == -kInfinity ? 0.0f : largest;
    rowScale[r] = rowMax[r] - base[r];
    rowMax[r] = largest;
  }
  // 2. What the earlier sums shrink by.
  exponential(rowScale, rows);
  // 3. The exponentials and their sums. Four chains, chosen by column.
  for (int r = 0; r < rows; ++r) {
    float *row = scores + r * kBlockStride;
    Vector sums[4] = {};
    for (int c = 0; c < columns; c += kWidth) {
      Vector weight = exponentialOf(load(row + c) - base[r]);
      store(row + c, weight);
      sums[c / kWidth % 4] += weight;
    }
    rowSum[r] = rowSum[r] * rowScale[r] + sumOfLanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

void probabilities(float *scores, int rows, int columns, const uint8_t *mask, const float *lse, uint8_t *allowed) {
  for (int r = 0; r < rows; ++r) {
    float *row = scores + r * kBlockStride;
    bool hasKeys = lse[r] != -kInfinity;
    for (int c = 0; c < columns; c += kWidth) {
      IntVector lanes = allowedLanes(c, columns, mask ? mask + r * kBlockSize : nullptr);
      Vector score = hasKeys ? load(row + c) : splat(-kInfinity);
      score = lanes ? score : splat(-kInfinity);
      Vector weight = score == -kInfinity ? Vector{} : exponentialOf(score - lse[r]);
      store(row + c, weight);
      if (allowed)
        storeAllowed(allowed + r * kBlockSize, c, (IntVector)(score != -kInfinity));
    }
  }
}

void plainWeights(float *scores, int rows, int columns, const uint8_t *mask, uint8_t *allowed) {
  for (int r = 0; r < rows; ++r) {
    float *row = scores + r * kBlockStride;
    for (int c = 0; c < columns; c += kWidth) {
      Vector score = load(row + c);
      IntVector lanes = allowedLanes(c, columns, mask ? mask + r * kBlockSize : nullptr);
      lanes = lanes & (IntVector)(score != -kInfinity);
      store(row + c, lanes ? score : Vector{});
      if (allowed)
        storeAllowed(allowed + r * kBlockSize, c, lanes);
    }
  }
}

void scoreGradients(const float *weights, float *gradients, int rows, int columns, const float *rowTerm) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; c += kWidth) {
      Vector weight = load(weights + r * kBlockStride + c);
      float *element = gradients + r * kBlockStride + c;
      Vector gradient = weight * (load(element) - rowTerm[r]);
      store(element, weight == 0.0f ? Vector{} : gradient);
    }
}

void clearForbidden(float *gradients, int rows, int columns, const uint8_t *allowed) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; c += kWidth) {
      float *element = gradients + r * kBlockStride + c;
      store(element, allowedLanes(c, columns, allowed + r * kBlockSize) ? load(element) : Vector{});
    }
}

} // namespace

namespace cpflex {
extern const HostKernels CPFLEX_KERNEL_TABLE;
const HostKernels CPFLEX_KERNEL_TABLE = {multiply,       multiplyPairs,  packRows,      packColumns,
                                         unpackRows,     softmaxStep,    probabilities, plainWeights,
                                         scoreGradients, clearForbidden, exponential};
} // namespace cpflex
