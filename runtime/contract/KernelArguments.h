// What an attention kernel is given at launch, and what the generated mask and score functions look like to it: plain
// structs that host C++ and CUDA C++ under NVRTC read with the same layout. Which kernel is launched with which tiles
// is KernelSpec.h and TileConfig.h.
//
// The functor of one program. The compiler prints it into the kernel's source as `struct Program`; kernels call it with
// global positions, global batch index and global query head. All members are static:
//
//   struct Program {
//     struct Captures { ... };                       // plain data: device pointers, sizes, strides, parameters
//     static constexpr bool kHasMask = true;         // false: every pair of a visited tile attends, mask() is not
//     called static constexpr cpflex::ScoreForm kScoreForm = cpflex::ScoreForm::Identity; // Identity: score() is not
//     called static __device__ __forceinline__ bool mask(const Captures &, int b, int h, int q, int kv); static
//     __device__ __forceinline__ float score(const Captures &, float s, int b, int h, int q, int kv);
//     // The derivative of score() in s at `s`, times `gradient`; called for Scaled and General in backward only.
//     static __device__ __forceinline__ float scoreGradient(const Captures &, float s, float gradient,
//                                                           int b, int h, int q, int kv);
//     // Only where the score reads arrays that take a gradient; each read is one scatter, called by the kernel of the
//     // gradients of captures alone. scatter() calls add(offset, value) for what the pair adds to element `offset` of
//     the
//     // array's gradient (below 0: outside of the array); `gradient` is that of the loss in the value of score().
//     static constexpr int kNumScatters = 1;
//     static constexpr cpflex::ScatterWalk scatterWalk(int scatter);
//     static constexpr int scatterTarget(int scatter); // index in CaptureGradientArguments::targets
//     template <class Add>
//     static __device__ __forceinline__ void scatter(cpflex::ScatterNumber<0>, const Captures &, float s, float
//     gradient,
//                                                    int b, int h, int q, int kv, const Add &add);
//   };
//
// mask() and score() may be called for positions of rows beyond the end of a tensor: they are then given the position
// of the last row, so loads need no other check than the language's own. Results for such pairs are discarded. The
// score of a pair that the mask forbids is computed and discarded too: whatever it is, it never reaches an output.
//
// A kernel function has three parameters, each `const __grid_constant__`: the arguments (ForwardArguments,
// BackwardArguments or CaptureGradientArguments), Program::Captures, and for the wgmma family the tensor maps
// (ForwardTensorMaps or BackwardTensorMaps). The mma_sync family and the other kernels of backward have no third
// parameter.
#pragma once

namespace cpflex {

/// How a score function depends on the score itself; decides what backward must recompute.
enum class ScoreForm : unsigned char {
  Identity, ///< the score stays as it is
  Additive, ///< s + f(b, h, q, kv): the gradient passes unchanged
  Scaled,   ///< s * f(b, h, q, kv): the gradient is multiplied by f
  General,  ///< anything else: the gradient is scoreGradient() at the recomputed score
};

/// How rows of a local tensor map to the global positions that masks and scores see.
enum class PositionMode : unsigned char {
  Identity,      ///< row i is position i
  AffinePerTile, ///< rows of kernel tile t are positions tiles[t].begin + tiles[t].step * (i - t * tile size)
  Array,         ///< row i is position rows[i]
};

/// What one kernel computes.
enum class KernelRole : unsigned char {
  Forward,             ///< O and LSE
  BackwardDelta,       ///< the row sums of backward and LSE in base 2; runs first
  BackwardKV,          ///< dK and dV
  BackwardQ,           ///< dQ
  BackwardSink,        ///< the gradient of the sinks
  BackwardCaptures,    ///< what each pair adds to the gradients of captured arrays
  BackwardCaptureSums, ///< those gradients from their exact sums; runs after BackwardCaptures
  ForwardWords,        ///< MaskArgument::words and classes of Forward, and so on; run once per mask
  BackwardKVWords,
  BackwardQWords,
};

/// Which element of an array the pairs of one (b, h) add to, so over which pairs a tile is summed first.
enum class ScatterWalk : unsigned char {
  Constant, ///< the same for all pairs
  Columns,  ///< depends on kv alone: sums over q
  Rows,     ///< depends on q alone, or on anything: sums over neighbouring kv that add to one element
  Dense,    ///< another one for each pair: f32, added without atomics
};

/// Selects an overload of Program::scatter.
template <int kScatter> struct ScatterNumber {};

/// Rows of a tile that one consumer warpgroup of the wgmma kernels owns.
constexpr int kConsumerRows = 64;
/// And those that each of its warps owns.
constexpr int kRowsPerWarp = 16;

/// Which instructions multiply matrices.
enum class KernelFamily : unsigned char {
  Wgmma,   ///< sm_90a: tensor memory copies, warpgroup products
  MmaSync, ///< sm_80 and newer
};

/// One tensor [b, h, s, d] in device memory. Strides count elements; the stride of d is 1. `data` and every stride are
/// multiples of 16 bytes for Q, K, V, O, dO and their gradients.
struct TensorArgument {
  void *data;
  long long strideB, strideH, strideS;
};

/// One f32 value per row, [b, h, s] with a stride of 1 in s; strides count elements. `data` may be null where stated.
struct RowArgument {
  float *data;
  long long strideB, strideH;
};

/// A run of tiles as in BlockMask.h: kv tiles [begin, end), or q tiles in transposed masks.
struct RunArgument {
  int begin, end;
  unsigned char tileClass; ///< TileClass: 1 full, 2 partial
  /// Where rows run along kv: whether no later kv tile of the mask attends to these q tiles; see QuerySumsArgument.
  unsigned char isLastPart;
  int words; ///< of a partial run: the partial kernel tiles of the row set before it; see MaskArgument::words
};

/// The runs of every row of tiles. Row r of row set w owns runs[rowBegin[w * (numRows + 1) + r] ..
/// rowBegin[w * (numRows + 1) + r + 1]). A null `runs` means that every tile is visited as partial when the program has
/// a mask and as full when it has none.
struct MaskArgument {
  const int *rowBegin;
  const RunArgument *runs;
  const int *rowSetOf;     ///< [batch * qHeads], at b * qHeads + h over local indices; null: row set 0 for all
  int numRows;             ///< rows of tiles in this orientation, counted in mask tiles
  int rowTilesPerMaskTile; ///< mask tile size over kernel tile size along the rows of this orientation, >= 1
  int colTilesPerMaskTile; ///< the same along its columns
  /// The decided pairs of partial kernel tiles, or null, and then kernels ask Program::mask: two keep words (tiles.cuh)
  /// per thread of the consumers, which own 64 rows each. The tile at column `c` of row `r` under a run has number
  /// wordsOf[b * qHeads + h] + run.words + (r % rowTilesPerMaskTile) * columns of the run + c - first column of the
  /// run, all in kernel tiles. Filled on the GPU by the kernel of mask_words.cuh.
  unsigned int *words;
  unsigned char *classes; ///< per such tile two bits for each 64 rows, lowest first: 0 no pair attends, 1 all, 2 some
  const int *wordsOf;     ///< [batch * qHeads], as rowSetOf
};

/// The positions of one tile of rows: begin, begin + step, ...
struct AffineTile {
  int begin, step;
};

/// The position of each row; which member is read is the kernel's PositionMode.
struct PositionArgument {
  const AffineTile *tiles; ///< one per kernel tile of this axis
  const int *rows;         ///< one per row
};

/// The order in which blocks take work. An item is one row of kernel tiles of one (b, h): items count through groups of
/// `groupHeads` consecutive (b, h) pairs (so that their keys stay in cache), in each through rowOrder (longest rows
/// first), and for each row through the pairs of the group. Blocks take items by adding to `counter`.
struct WorkArgument {
  const int *rowOrder; ///< a permutation of the rows of kernel tiles; null: last row first
  int *counter;        ///< zero when the kernel starts
  int numRows;         ///< rows of kernel tiles per (b, h)
  int groupHeads;      ///< >= 1
};

/// Everything the forward kernels read besides captures. Softmax: O = sum exp(s - LSE) V.
struct ForwardArguments {
  TensorArgument q, k, v, o; ///< o has the element type of q, or f32 where the kernel writes partials
  RowArgument lse;           ///< natural logarithm; -inf for rows without keys; null: not written
  const float *sink;         ///< one logit per global query head, or null
  int batch, qHeads, kvHeads, qLen, kvLen;
  int batchOffset, headOffset; ///< global index of batch row 0 and of query head 0
  float scale;
  PositionArgument qPositions, kvPositions;
  MaskArgument mask; ///< rows of tiles along q
  WorkArgument work; ///< rows of tiles along q, pairs (b, query head)
};

/// How the wgmma kernel for BackwardKV adds up dQ where sumsDQ() says that it does: blocks add their parts of a query
/// tile in ascending order of kv, each waiting for its turn, so that the same bits come out in every run. Elsewhere
/// unused. The block whose part is the last writes dQ.
struct QuerySumsArgument {
  float *sums;       ///< workspace: [batch * qHeads, tiles of q] tiles of sumsPerTile(); need not be cleared
  int *turns;        ///< workspace: [batch * qHeads, tiles of q] additions done; zero when BackwardKV starts
  MaskArgument mask; ///< the mask that BackwardKV walks, rows of tiles along q
  int walksDown;     ///< nonzero: query tiles are visited last first; a choice of speed
};

/// Everything the backward kernels read besides captures. The row kernel BackwardDelta runs before the others and fills
/// the two row arrays of workspace, each [batch, qHeads, paddedRows(qLen)].
struct BackwardArguments {
  TensorArgument q, k, v, o, dO; ///< o is what forward wrote
  TensorArgument dQ, dK, dV;     ///< element type of q, or f32 where the kernel writes partials
  RowArgument lse;               ///< what forward wrote; null without softmax, then BackwardDelta is not launched
  RowArgument dLse;              ///< the gradient that arrives through LSE; null: none
  RowArgument delta;             ///< workspace: rowsum(dO * O) - dLSE
  RowArgument lseLog2;           ///< workspace: LSE * log2(e); +inf for rows without keys and beyond qLen
  const float *sink;             ///< as in forward
  float *dSink;                  ///< one per local query head; null: not wanted
  int batch, qHeads, kvHeads, qLen, kvLen;
  int batchOffset, headOffset;
  float scale;
  PositionArgument qPositions, kvPositions; ///< tiles are the tiles of the kernel launched
  MaskArgument mask; ///< BackwardQ: rows of tiles along q; BackwardKV: the transposed mask, rows along kv
  WorkArgument
      work; ///< BackwardQ: pairs (b, query head); BackwardKV: rows along kv, pairs (b, kv head and column part)
  QuerySumsArgument querySums;
};

/// Whether one wgmma kernel computes dK, dV and dQ, so that there is none for BackwardQ. Its items are in ascending
/// order of rows (rowOrder is not read).
constexpr bool sumsDQ(int headDim, int vHeadDim) {
  return headDim <= 64 ? vHeadDim <= 64 : headDim <= 128 && vHeadDim <= 128;
}
/// f32 values of one tile of QuerySumsArgument::sums.
constexpr long long sumsPerTile(int tileQ, int headDim) { return (long long)tileQ * ((headDim + 63) / 64 * 64); }

/// Exact sums: 32-bit digits of value * 2^96, lowest first, each in 64 bits so that carries wait until the end, then a
/// word of bits for what is no number: 1 inf, 2 -inf, 4 NaN. Contributions from 2^112 on count as infinite.
constexpr int kAccumulatorDigits = 7;
constexpr int kAccumulatorWords = kAccumulatorDigits + 1;
constexpr int kAccumulatorScale = 96;

/// One array whose gradient is computed.
struct CaptureGradientTarget {
  float *gradient; ///< dense, with the array's own sizes; null: not wanted
  long long begin; ///< of its elements in the accumulators; unused for Dense
  long long numElements;
  bool isDense; ///< BackwardCaptures adds to `gradient`, zero before
};

/// How many arrays of one score function may take gradients on a GPU.
constexpr int kMaxCaptureGradients = 32;

/// Everything the kernels of captures' gradients read besides captures.
struct CaptureGradientArguments {
  BackwardArguments backward; ///< mask and positions by tiles of this kernel
  CaptureGradientTarget targets[kMaxCaptureGradients];
  long long *accumulators; ///< kAccumulatorWords per element, zero before BackwardCaptures
  int numTargets;
};

/// Rows that one block of BackwardDelta fills; its grid is (paddedRows(qLen) / kRowPadding, qHeads, batch).
constexpr int kRowPadding = 128;
/// Rows per (b, h) of BackwardArguments::delta and lseLog2: kernels copy whole tiles of them, the last of which may
/// begin at the last row.
constexpr int paddedRows(int qLen) { return (qLen + kRowPadding + kRowPadding - 1) / kRowPadding * kRowPadding; }

/// In how many parts of columns the mma_sync kernel for BackwardKV cuts dK and dV; each part of each row is a work
/// item, so its items are work.numRows * batch * kvHeads * this. The wgmma kernels have one part.
constexpr int columnParts(int headDim, int vHeadDim) { return ((headDim > vHeadDim ? headDim : vHeadDim) + 127) / 128; }

/// A CUtensorMap. Each is 4-D {d, s, h, b} over the whole tensor, swizzle 128B, box {64, rows, 1, 1} with the number of
/// rows stated where it is used; elements beyond the tensor read as zero and are not written.
struct alignas(64) TensorMapArgument {
  unsigned long long words[16];
};

/// Boxes: q 64 rows; k and v TileConfig::tileKV rows; o kRowsPerWarp rows, read where O leaves through
/// shared memory.
struct ForwardTensorMaps {
  TensorMapArgument q, k, v, o;
};

/// Boxes: q and dO TileConfig::tileQ rows; k and v TileConfig::tileKV rows.
struct BackwardTensorMaps {
  TensorMapArgument q, dO, k, v;
};

} // namespace cpflex
