// The C++ interface's block masks as a program that links libcpflex.so uses them: derived, combined, kept and
// exchanged.
#include "lib/API/cpflex.h"
#include "runtime/BlockMask/BlockMaskAlgebra.h"
#include "runtime/BlockMask/BlockMaskFile.h"
#include "runtime/BlockMask/BlockMaskPicture.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"
#include "runtime/BlockMask/IndexLists.h"
#include "runtime/BlockMask/KeepWords.h"
#include "runtime/BlockMask/MaskImports.h"

#include <gtest/gtest.h>

using namespace cpflex;

namespace {

struct Derived {
  std::shared_ptr<Program> program;
  std::shared_ptr<const Binding> binding;
  BlockMask mask;
  const EntryPoint &entry() const { return program->entries()[0]; }
};

Derived derive(const std::string &predicate) {
  CompileOptions options;
  options.cacheDir = "";
  Derived result;
  result.program =
      compileText("test.cpf", "@mask\ndef m(b, h, q, kv):\n    return " + predicate + "\n", options).program;
  result.binding = *Binding::create(*result.program, {.sizes = {.qLen = 256}});
  result.mask = buildBlockMask(*result.program, result.entry(), *result.binding, 16, 16, /*threads=*/1)->mask;
  return result;
}

TEST(Library, MasksAreCombined) {
  const Derived causal = derive("kv <= q"), window = derive("q - kv < 40"), both = derive("kv <= q and q - kv < 40");
  const auto combined = combine(MaskOperation::Intersection, causal.mask, window.mask);
  ASSERT_TRUE(combined) << combined.status().message();
  EXPECT_EQ(combined->unsettled, 0);
  EXPECT_TRUE(isSameMask(combined->mask, both.mask));
  EXPECT_TRUE(isSameMask(complement(complement(causal.mask)), causal.mask));
  EXPECT_TRUE(isSameMask(complement(transpose(causal.mask)), derive("kv < q").mask));
  const auto halves = {*slice(causal.mask, {0, 128}, {0, 256}), *slice(causal.mask, {128, 256}, {0, 256})};
  const std::vector<BlockMask> parts = {halves.begin()[0].mask, halves.begin()[1].mask};
  EXPECT_TRUE(isSameMask(*concatenate(parts, MaskAxis::Q), causal.mask));
  EXPECT_EQ(retile(causal.mask, 32, 32)->unsettled, 0);
  EXPECT_EQ(countTiles(shift(causal.mask, 16, 0)->mask).empty, countTiles(causal.mask).empty + 16);
}

TEST(Library, NumbersOfResidualsAreKeptOnlyWhereTheyStayTrue) {
  const Derived both = derive("kv <= q and q - kv < 40");
  EXPECT_NE(both.mask.residualKey, 0u);
  EXPECT_EQ(blockMaskFromBytes(toBytes(both.mask))->residualKey, both.mask.residualKey);
  EXPECT_EQ(complement(both.mask).residualKey, 0u);
  EXPECT_EQ(combine(MaskOperation::Union, both.mask, both.mask)->mask.residualKey, 0u);
  EXPECT_EQ(shift(both.mask, 16, 0)->mask.residualKey, 0u);
  EXPECT_EQ(derive("kv <= q").mask.residualKey, 0u) << "there are none";
}

TEST(Library, MasksAreExchanged) {
  const Derived causal = derive("kv <= q");
  EXPECT_TRUE(isSameMask(*fromIndexLists(*indexListsFromNpz(toNpz(*toIndexLists(causal.mask)))), causal.mask));
  const MaskShape shape = {.qLen = 256, .kvLen = 256, .tileQ = 16, .tileKV = 16};
  const MaskSlice slice = {.q = {0, 256}, .kv = {0, 256}, .kind = SliceKind::Causal};
  EXPECT_TRUE(isSameMask(*fromSlices(std::span(&slice, 1), shape), causal.mask));
  const std::vector<int32_t> bounds(256, 256);
  EXPECT_TRUE(isSameMask(*fromFlashMask(bounds, 1, FlashMaskTriangle::Causal, shape), causal.mask));
  const auto words = keepWords(causal.mask, causal.entry().tape, causal.binding->bindings(),
                               blockMaskOptions(*causal.program, causal.entry(), *causal.binding, 16, 16, 1), {});
  ASSERT_TRUE(words) << words.status().message();
  EXPECT_EQ(words->parts[0].words.size(), 16u * 8) << "a word for two rows of each tile on the diagonal";
  EXPECT_EQ(drawDifferenceText(causal.mask, derive("kv < q").mask, {})->differingTiles, 0);
}

} // namespace
