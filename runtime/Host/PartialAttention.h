// How attention over parts of the keys becomes attention over all of them, in f32, and how the result takes its final
// element type. Rules for rows without keys: an empty part weighs nothing, and a row empty in all parts stays empty.
#pragma once

#include "runtime/Host/HostAttention.h"

#include <span>

namespace cpflex {

/// Merges partials over disjoint key sets, in the order given, and adds the sink when `sink` is not null (one logit per
/// global query head; only the last merge of a row passes it). `out` (f32, bf16 or f16) and `lse` (f32, optional) may
/// be the memory of one of the parts when the types agree. Without softmax the outputs are summed. Reads the sizes,
/// heads and normalization of `problem` only; problem.sink is not read. The bits depend on the order of the parts only.
Status mergePartials(const AttentionProblem &problem, std::span<const PartialAttention> parts, const float *sink,
                     const TensorView &out, const TensorView &lse, const HostAttentionOptions &options = {});

/// Fills a partial as if it had seen no keys: out = 0, lse = -inf.
Status clearPartial(const AttentionProblem &problem, const PartialAttention &partial);

/// Copies `from` to `to` element by element, rounding to nearest even; shape [sizes[0], ..., sizes[3]], types f32, bf16
/// or f16.
Status convertTensor(const TensorView &from, const TensorView &to, const int64_t (&sizes)[4]);

} // namespace cpflex
