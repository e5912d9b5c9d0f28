// Do masks survive files and other systems' forms, and are damaged ones refused?
#include "runtime/BlockMask/BlockMaskAlgebra.h"
#include "runtime/BlockMask/BlockMaskFile.h"
#include "runtime/BlockMask/IndexLists.h"
#include "runtime/BlockMask/MaskImports.h"
#include "test/runtime/BlockMask/SmallMasks.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace cpflex::test {
namespace {

BlockMask twoHeads() {
  BlockMask mask = maskOf(100, 116, 10, 8, somePairs()[3]);
  mask.heads = 2;
  mask.rowSets.push_back(maskOf(100, 116, 10, 8, somePairs()[0]).rowSets[0]);
  mask.rowSetOf = {1, 0};
  return mask;
}

TEST(BlockMaskFile, RoundTripsThroughAFile) {
  std::string path = testing::TempDir() + "cpflex_block_mask_test.bin";
  ASSERT_TRUE(saveBlockMask(twoHeads(), path).isOk());
  auto loaded = loadBlockMask(path);
  ASSERT_TRUE(loaded.isOk()) << loaded.status().message();
  EXPECT_EQ(*loaded, twoHeads());
  std::ofstream(path) << "text";
  EXPECT_EQ(loadBlockMask(path).status().message(),
            "'" + path + "': the block mask is damaged: it does not begin as one");
  std::remove(path.c_str());
}

TEST(BlockMaskFile, EveryChangedOrMissingByteIsNoticed) {
  std::string bytes = toBytes(causalMask(64, 16));
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string changed = bytes;
    changed[i] = static_cast<char>(changed[i] ^ 0x10);
    EXPECT_FALSE(blockMaskFromBytes(changed).isOk()) << i;
    auto cut = blockMaskFromBytes(std::string_view(bytes).substr(0, i));
    ASSERT_FALSE(cut.isOk()) << i;
    EXPECT_EQ(cut.status().code(), StatusCode::DataLoss);
  }
}

TEST(BlockMaskFileErrors, SayWhatIsWrong) {
  std::string bytes = toBytes(causalMask(64, 16));
  EXPECT_EQ(blockMaskFromBytes("nothing").status().message(), "the block mask is damaged: it does not begin as one");
  std::string other = bytes;
  other[8] = 9;
  EXPECT_EQ(blockMaskFromBytes(other).status().message(), "the block mask has version 9; expected 2");
  std::string changed = bytes;
  changed.back() = 7;
  EXPECT_EQ(blockMaskFromBytes(changed).status().message(), "the block mask is damaged: its checksum differs");
  // Written whole, but from a mask that is none.
  BlockMask lying = causalMask(64, 16);
  lying.qLen = int64_t(1) << 50;
  EXPECT_EQ(blockMaskFromBytes(toBytes(lying)).status().message(),
            "the block mask is damaged: its sizes do not fit its length");
  BlockMask broken = causalMask(64, 16);
  broken.rowSets[0].runs[0].end = 77;
  EXPECT_EQ(blockMaskFromBytes(toBytes(broken)).status().message(),
            "the block mask is damaged: not a mask: runs overlap, are empty or leave the mask");
  EXPECT_EQ(loadBlockMask("/nonexistent/mask").status().message(),
            "cannot open '/nonexistent/mask': No such file or directory");
  EXPECT_EQ(saveBlockMask(lying, "/nonexistent/mask").message(),
            "cannot write '/nonexistent/mask': No such file or directory");
}

TEST(IndexLists, AreThoseOfFlexAttention) {
  // Causal over 3 x 3 tiles: partial on the diagonal, full below it.
  auto lists = toIndexLists(causalMask(48, 16));
  ASSERT_TRUE(lists.isOk());
  EXPECT_EQ(lists->byQ.partialCounts, (std::vector<int32_t>{1, 1, 1}));
  EXPECT_EQ(lists->byQ.partialIndices, (std::vector<int32_t>{0, 1, 2, 1, 0, 2, 2, 0, 1}));
  EXPECT_EQ(lists->byQ.fullCounts, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(lists->byQ.fullIndices, (std::vector<int32_t>{0, 1, 2, 0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(lists->byKV.fullCounts, (std::vector<int32_t>{2, 1, 0}));
  EXPECT_EQ(lists->byKV.fullIndices, (std::vector<int32_t>{1, 2, 0, 2, 0, 1, 0, 1, 2}));
}

TEST(IndexLists, RoundTrip) {
  auto lists = toIndexLists(twoHeads());
  ASSERT_TRUE(lists.isOk());
  auto mask = fromIndexLists(*lists);
  ASSERT_TRUE(mask.isOk()) << mask.status().message();
  EXPECT_TRUE(isSameMask(*mask, twoHeads()));
  // The transposed lists are the lists of the transposed mask.
  auto turned = toIndexLists(transpose(twoHeads()));
  ASSERT_TRUE(turned.isOk());
  EXPECT_EQ(turned->byQ, lists->byKV);
}

TEST(IndexListErrors, SayWhichRowIsWrong) {
  IndexLists good = *toIndexLists(causalMask(48, 16));
  auto messageOf = [&](auto &&change) {
    IndexLists bad = good;
    change(bad);
    return fromIndexLists(bad).status().message();
  };
  EXPECT_EQ(messageOf([](IndexLists &l) { l.tileQ = 0; }),
            "index lists have negative sizes; expected 0 or more, and tiles of 1 or more");
  EXPECT_EQ(messageOf([](IndexLists &l) { l.byQ.fullCounts.pop_back(); }),
            "index lists do not have 3 rows of 3 tiles; expected counts of [1, 1, 3] and indices "
            "of [1, 1, 3, 3]");
  EXPECT_EQ(messageOf([](IndexLists &l) { l.byQ.partialCounts[1] = 4; }),
            "row 1 of the index lists has 4 tiles; expected 0 to 3");
  EXPECT_EQ(messageOf([](IndexLists &l) { l.byQ.partialIndices[0] = 3; }),
            "row 0 of the index lists names tile 3; expected less than 3");
  EXPECT_EQ(messageOf([](IndexLists &l) { l.byQ.fullIndices[3] = 1; }),
            "row 1 of the index lists names tile 1 twice; expected each tile once");
  EXPECT_EQ(toIndexLists(causalMask(48, 16), /*maxBytes=*/100).status().message(),
            "index lists of this mask take 144 bytes; expected at most 100");
}

TEST(Npz, HoldsEveryArrayOnceInAZipArchive) {
  std::string npz = toNpz(*toIndexLists(causalMask(48, 16)));
  EXPECT_EQ(npz.substr(0, 4), std::string("PK\x03\x04"));
  for (const char *name : {"kv_num_blocks.npy", "kv_indices.npy", "full_kv_num_blocks.npy", "q_indices.npy",
                           "full_q_indices.npy", "block_size.npy", "seq_lengths.npy"})
    EXPECT_NE(npz.find(name), std::string::npos) << name;
  EXPECT_NE(npz.find("{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 3, 3), }"), std::string::npos);
  // Ten members in the end record.
  EXPECT_EQ(npz[npz.size() - 12], 10);
  // Written for the check with NumPy, where that is asked for.
  if (const char *path = std::getenv("CPFLEX_TEST_NPZ"))
    std::ofstream(path, std::ios::binary) << npz;
}

TEST(Npz, IsReadBack) {
  IndexLists lists = *toIndexLists(maskOf(50, 70, 16, 16, somePairs()[3]));
  auto read = indexListsFromNpz(toNpz(lists));
  ASSERT_TRUE(read.isOk()) << read.status().message();
  EXPECT_EQ(read->byQ, lists.byQ);
  EXPECT_EQ(read->byKV, lists.byKV);
  EXPECT_EQ(*fromIndexLists(*read), *fromIndexLists(lists));
}

TEST(NpzErrors, EveryChangedByteIsNoticedOrHarmless) {
  IndexLists lists = *toIndexLists(causalMask(48, 16));
  const std::string good = toNpz(lists);
  for (size_t size = 0; size < good.size(); size += 7)
    EXPECT_FALSE(indexListsFromNpz(std::string_view(good).substr(0, size))) << size;
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x41);
    if (auto read = indexListsFromNpz(bad)) // dates and the like mean nothing
      EXPECT_EQ(read->byQ, lists.byQ) << i;
  }
}

TEST(NpzErrors, SayWhatIsWrong) {
  const IndexLists lists = *toIndexLists(causalMask(48, 16));
  auto messageOf = [](const std::string &bytes) { return indexListsFromNpz(bytes).status().message(); };
  auto renamed = [&](const std::string &from, const std::string &to) {
    std::string bytes = toNpz(lists);
    for (size_t at = bytes.find(from); at != std::string::npos; at = bytes.find(from, at + to.size()))
      bytes.replace(at, from.size(), to);
    return bytes;
  };
  EXPECT_EQ(messageOf("PK"), "the .npz file is damaged: it is too short");
  EXPECT_EQ(messageOf(std::string(100, 'x')), "the .npz file is damaged: it has no end record");
  EXPECT_EQ(messageOf(renamed("block_size.npy", "block_sise.npy")), "the .npz file has no array 'block_size'");
  EXPECT_EQ(messageOf(renamed("<i4", "<f4")), "the .npz file is damaged: the checksum of a member is wrong");
  std::string good = toNpz(lists);
  size_t directory = good.find("PK\x01\x02");
  auto changed = [&](size_t at, char value) {
    std::string bytes = good;
    bytes[at] = value;
    return bytes;
  };
  EXPECT_EQ(messageOf(changed(directory, 'x')), "the .npz file is damaged: its directory is cut");
  EXPECT_EQ(messageOf(changed(0, 'x')), "the .npz file is damaged: a member is not where the directory says");
  EXPECT_EQ(messageOf(changed(30, 'x')), "the .npz file is damaged: a member has two names");
  EXPECT_EQ(messageOf(changed(directory + 10, 12)),
            "'kv_num_blocks.npy' in the .npz file is packed by method 12; expected stored or deflated");
  EXPECT_EQ(messageOf(changed(directory + 10, 8)), "the .npz file is damaged: a member does not unpack");
  EXPECT_EQ(messageOf(changed(directory + 24, 1)), "the .npz file is damaged: the sizes of a member do not fit");
  EXPECT_EQ(messageOf(changed(directory + 22, 1)), "the .npz file is damaged: a member is cut");
}

TEST(Imports, DocumentIdsFollowCumulativeLengths) {
  auto ids = documentIds(std::vector<int64_t>{0, 2, 2, 5}, 7);
  ASSERT_TRUE(ids.isOk());
  EXPECT_EQ(*ids, (std::vector<int32_t>{0, 0, 2, 2, 2, 3, 3}));
}

TEST(Imports, SlicesEqualTheirPairs) {
  std::vector<MaskSlice> slices = {{{0, 40}, {0, 50}, SliceKind::Causal},
                                   {{20, 60}, {40, 80}, SliceKind::InverseCausal},
                                   {{50, 90}, {10, 70}, SliceKind::BiCausal},
                                   {{70, 100}, {64, 116}, SliceKind::Full},
                                   {{85, 85}, {0, 9}, SliceKind::Full}};
  auto attends = [&](int64_t q, int64_t kv) {
    for (const MaskSlice &slice : slices) {
      bool isInside = slice.q.contains(q) && slice.kv.contains(kv);
      bool isBefore = slice.kv.end - kv >= slice.q.end - q;
      bool isBehind = kv - slice.kv.begin >= q - slice.q.begin;
      bool isAllowed = slice.kind == SliceKind::Full            ? true
                       : slice.kind == SliceKind::Causal        ? isBefore
                       : slice.kind == SliceKind::InverseCausal ? isBehind
                                                                : isBefore && isBehind;
      if (isInside && isAllowed)
        return true;
    }
    return false;
  };
  for (auto [tileQ, tileKV] : {std::pair{10, 8}, {7, 13}, {128, 128}, {1, 1}}) {
    auto mask = fromSlices(slices, {100, 116, tileQ, tileKV});
    ASSERT_TRUE(mask.isOk()) << mask.status().message();
    EXPECT_EQ(*mask, maskOf(100, 116, tileQ, tileKV, attends));
  }
}

TEST(Imports, FlashMaskColumnsEqualTheirPairs) {
  constexpr int64_t kLength = 60;
  for (auto [triangle, numBounds] : {std::pair{FlashMaskTriangle::Causal, 1},
                                     {FlashMaskTriangle::Causal, 2},
                                     {FlashMaskTriangle::Both, 2},
                                     {FlashMaskTriangle::Both, 4}}) {
    std::vector<int32_t> bounds;
    for (int32_t kv = 0; kv < kLength; ++kv)
      for (int32_t i = 0; i < numBounds; ++i)
        bounds.push_back((kv * 17 + i * 23) % 61 / (i == 3 ? 2 : 1));
    auto attends = [&, triangle = triangle, numBounds = numBounds](int64_t q, int64_t kv) {
      const int32_t *bound = bounds.data() + kv * numBounds;
      if (q >= kv) {
        int64_t end = numBounds == 4 || (numBounds == 2 && triangle == FlashMaskTriangle::Causal) ? bound[1] : kLength;
        return !(q >= bound[0] && q < end);
      }
      if (triangle == FlashMaskTriangle::Causal)
        return false;
      return numBounds == 2 ? q >= bound[1] : !(q >= bound[2] && q < bound[3]);
    };
    auto mask = fromFlashMask(bounds, numBounds, triangle, {kLength, kLength, 8, 16});
    ASSERT_TRUE(mask.isOk()) << mask.status().message();
    EXPECT_TRUE(isSameMask(*mask, maskOf(kLength, kLength, 8, 16, attends))) << numBounds;
  }
}

TEST(ImportErrors, SayWhatWasSeenAndExpected) {
  EXPECT_EQ(documentIds(std::vector<int64_t>{1, 2}, 7).status().message(),
            "cumulative lengths do not begin with 0; expected [0, l0, l0 + l1, ...]");
  EXPECT_EQ(documentIds(std::vector<int64_t>{0, 4, 3}, 7).status().message(),
            "cumulative length 2 is 3; expected 4 or more");
  EXPECT_EQ(documentIds(std::vector<int64_t>{0, 9}, 7).status().message(),
            "cumulative lengths end at 9; expected at most 7");
  std::vector<MaskSlice> slices = {{{0, 9}, {0, 5}, SliceKind::Full}};
  EXPECT_EQ(fromSlices(slices, {8, 8, 4, 4}).status().message(),
            "slice 0 covers q 0..9, kv 0..5; expected it inside 8 x 8");
  EXPECT_EQ(fromSlices({}, {8, 8, 0, 4}).status().message(),
            "the imported mask is 8 x 8 in tiles of 0 x 4; expected sizes of 0 or more and tiles "
            "of 1 or more");
  std::vector<int32_t> bounds(8);
  EXPECT_EQ(fromFlashMask(bounds, 3, FlashMaskTriangle::Both, {8, 8, 4, 4}).status().message(),
            "columns have 3 bounds; expected 2 or 4 in other masks");
  EXPECT_EQ(fromFlashMask(bounds, 4, FlashMaskTriangle::Causal, {8, 8, 4, 4}).status().message(),
            "columns have 4 bounds; expected 1 or 2 in a causal mask");
  EXPECT_EQ(fromFlashMask(bounds, 2, FlashMaskTriangle::Causal, {8, 8, 4, 4}).status().message(),
            "columns have 8 bounds in all; expected 2 for each of 8 positions");
}

} // namespace
} // namespace cpflex::test
