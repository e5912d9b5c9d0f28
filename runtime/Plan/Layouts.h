// How tokens are dealt to ranks by each rule of LayoutKind, and what a valid layout is. Choosing between the rules
// belongs to SolvedLayout.h.
#pragma once

#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Layout.h"
#include "runtime/contract/Range.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <span>
#include <vector>

namespace cpflex {

/// Sizes of pieces when `length` tokens are cut in `count` pieces that differ by at most one, longer ones first.
std::vector<int64_t> evenSizes(int64_t length, int64_t count);

/// Contiguous, head-tail and striped layouts of any length for any number of ranks.
Layout contiguousLayout(int64_t length, int32_t worldSize);
Layout headTailLayout(int64_t length, int32_t worldSize);
Layout stripedLayout(int64_t length, int32_t worldSize);

/// Head-tail inside each document. offsets[b] are the document boundaries of batch row b (0, ..., length, ascending);
/// one entry serves all rows. Every rank owns length / worldSize tokens, rounded: odd document lengths are evened out.
StatusOr<Layout> perDocumentLayout(std::span<const std::vector<int64_t>> offsets, int64_t length, int32_t worldSize);

/// Deals rows in units of `unit` rows by their work (work[b][i] of unit i): sorted descending, dealt round robin with
/// the direction reversed each round; each rank keeps its units in ascending order.
StatusOr<Layout> ptrrLayout(std::span<const std::vector<double>> work, int64_t unit, int64_t length, int32_t worldSize);

/// Document boundaries that the mask itself shows, in whole tiles: positions that no attending tile straddles. One
/// entry per batch row, or one entry when all rows are alike. For square masks.
std::vector<std::vector<int64_t>> documentOffsets(const BlockMask &mask);

/// Ok when every token of every batch row has one owner and ranks own equally many tokens in each row.
Status verifyLayout(const Layout &layout);

/// Sorts nothing, merges adjacent pieces that continue each other.
PositionMap compacted(PositionMap map);

/// The part of a map that holds local rows [rows).
PositionMap slice(const PositionMap &map, Range rows);

} // namespace cpflex
