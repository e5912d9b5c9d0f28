// Attention on the CPU, forward and backward, over tensors in host memory. Block-sparse: empty tiles of the mask cost
// nothing, full ones are never evaluated. Merging of partial results is in PartialAttention.h.
#pragma once

#include "runtime/Host/HostThreads.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/Status.h"

#include <cstdint>

namespace cpflex {

/// Which compiled variant of the inner loops runs. Results differ in rounding between variants, never within one.
enum class InstructionSet : uint8_t {
  Native,         ///< the best that this processor has
  Baseline,       ///< what the build assumes of every processor
  Avx2,           ///< AVX2 and FMA
  Avx512,         ///< AVX-512 F, BW, DQ, VL
  Avx512BFloat16, ///< the same and products of bf16, used where q, k and v are bf16
};

/// The name used in messages and tables: `baseline`, `avx2`, `avx512`, `avx512-bf16`; Native gives the name of what it
/// stands for.
const char *toString(InstructionSet instructionSet);

/// True when this processor and this build can run the variant.
bool isSupported(InstructionSet instructionSet);

/// How a call uses the machine; none of it changes a bit of the result, except instructionSet.
struct HostAttentionOptions {
  int numThreads = 0;             ///< 0: one per hardware thread; not read when `threads` is given
  HostThreads *threads = nullptr; ///< borrowed workers, not used by two calls at once; null: started for the call
  void *workspace = nullptr;      ///< scratch memory, any alignment; null: allocated for the call
  int64_t workspaceInBytes = 0;   ///< size of `workspace`; see the functions that say how much is needed
  InstructionSet instructionSet = InstructionSet::Native;
};

/// Output and log-sum-exp over part of the keys, both f32: out [b, h, q, vHeadDim] normalised, lse [b, h, q, 1] without
/// the sink. A row without keys in this part has out = 0, lse = -inf. Without softmax lse is not used.
struct PartialAttention {
  TensorView out;
  TensorView lse;
};

/// The tensors of a forward call. Inputs and outputs are f32, bf16 or f16, q, k and v alike. A view with null data that
/// is marked optional is not read or written.
struct HostForwardTensors {
  TensorView q = {};   ///< [batch, qHeads, qLen, headDim]
  TensorView k = {};   ///< [batch, kvHeads, kvLen, headDim]
  TensorView v = {};   ///< [batch, kvHeads, kvLen, vHeadDim]
  TensorView out = {}; ///< [batch, qHeads, qLen, vHeadDim]; f32 where partials are kept
  TensorView lse =
      {}; ///< optional, f32, [batch, qHeads, qLen, 1]; natural logarithm, sink included; null without softmax
  TensorView rowMax = {}; ///< optional, like lse: largest score of each row, sink excluded; -inf without keys
  PartialAttention initial =
      {}; ///< optional: the call continues from this partial; it may be the same memory as out and lse
};

/// Computes attention. Query heads h use kv head h / (qHeads / kvHeads). Accumulates in f32 over tiles of 128 rows by
/// 128 keys, keys ascending, so that the bits depend neither on threads nor on how the mask is cut into full and
/// partial tiles. Any size may be 0 except head sizes and, where there is work, kvHeads. Errors name the argument.
Status hostAttentionForward(const AttentionProblem &problem, const HostForwardTensors &tensors,
                            const HostAttentionOptions &options = {});

/// Scratch bytes that hostAttentionForward needs with these options; grows with threads and head sizes, and with 16
/// bytes for each (b, h, tile of rows), never with qLen * kvLen. 0 for a problem that the call would reject.
int64_t hostAttentionForwardWorkspaceInBytes(const AttentionProblem &problem, const HostAttentionOptions &options = {});

/// Whether a backward call replaces or adds to its gradients.
enum class GradientWrite : uint8_t { Overwrite, Add };

/// The tensors of a backward call.
struct HostBackwardTensors {
  TensorView q = {}, k = {}, v = {}; ///< as in forward
  TensorView out = {};               ///< forward's output; not read when rowTerm is given or without softmax
  TensorView lse = {};  ///< f32 [batch, qHeads, qLen, 1]: over all keys and the sink, even when the call sees a part of
                        ///< the keys; not read without softmax
  TensorView dOut = {}; ///< [batch, qHeads, qLen, vHeadDim], gradient of the loss in out; f32, bf16 or f16
  TensorView dLse = {}; ///< optional, f32 [batch, qHeads, qLen, 1], gradient in lse; not read when rowTerm is given
  TensorView rowTerm =
      {}; ///< optional, f32 [batch, qHeads, qLen, 1]: dot(dOut, out) - dLse, as hostAttentionRowTerm gives it

  TensorView dQ = {}; ///< optional, like q in shape; f32, bf16 or f16
  TensorView dK = {}; ///< optional, like k in shape, summed over the query heads of a kv head
  TensorView dV = {}; ///< optional, like v in shape
  GradientWrite queryWrite = GradientWrite::Overwrite; ///< of dQ; Add needs f32
  GradientWrite keyWrite = GradientWrite::Overwrite;   ///< of dK and dV; Add needs f32
  GradientWrite arrayWrite = GradientWrite::Overwrite; ///< of the arrays below

  float *const *captureGradients = nullptr; ///< null, or one dense f32 array (or null) per capture, see HostFunctions.h
  int numCaptures = 0;                      ///< entries of captureGradients and of Bindings::captures
  float *sinkGradient = nullptr; ///< null, or f32 per global query head; only this problem's heads are written
};

/// Computes gradients by recomputing the scores. f32 accumulation in a fixed order: the bits do not depend on threads.
/// Where |lse| is 32 or more and the call sees all keys of the row, the rounding of lse is made up for (see
/// WeightScale.h). Rows without keys give and receive zero. Errors name the argument.
Status hostAttentionBackward(const AttentionProblem &problem, const HostBackwardTensors &tensors,
                             const HostAttentionOptions &options = {});

/// Scratch bytes that hostAttentionBackward needs: f32 copies of dQ (at most 8, 1 when batch * kvHeads is 32 or more),
/// copies of the capture gradients that are asked for (at most 16 and at most 256 MiB beyond the first), two f32 per
/// row, tile lists and buffers per thread; never qLen * kvLen elements. 0 for arguments that the call would reject.
int64_t hostAttentionBackwardWorkspaceInBytes(const AttentionProblem &problem, const HostBackwardTensors &tensors,
                                              const HostAttentionOptions &options = {});

/// Writes rowTerm[b, h, q] = dot(dOut, out) - dLse (f32 views of shape [batch, qHeads, qLen, 1]; dLse may have null
/// data). What travels between ranks instead of out.
Status hostAttentionRowTerm(const AttentionProblem &problem, const TensorView &out, const TensorView &dOut,
                            const TensorView &dLse, const TensorView &rowTerm,
                            const HostAttentionOptions &options = {});

} // namespace cpflex
