// Archives whose sizes take 64 bits, without archives of 4 GiB: the writer is told to use them for everything.
#include "runtime/BlockMask/ZipArchive.h"
#include "runtime/BlockMask/IndexLists.h"
#include "test/runtime/BlockMask/SmallMasks.h"

#include <gtest/gtest.h>

namespace cpflex::test {
namespace {

std::string archiveOf(const std::vector<std::pair<std::string, std::string>> &members, uint64_t most) {
  ZipWriter writer(most);
  for (const auto &[name, contents] : members)
    writer.add(name, std::string_view(contents).substr(0, contents.size() / 2),
               std::string_view(contents).substr(contents.size() / 2));
  return writer.finish();
}

const std::vector<std::pair<std::string, std::string>> kMembers = {
    {"first", "some"}, {"empty", ""}, {"second", std::string(300, 'x')}, {"third", "more"}};

TEST(Zip, MembersAreReadBackWhateverNeeds64Bits) {
  // All numbers, the long member and what follows it, the directory alone, none.
  for (uint64_t most : {0, 2, 100, 350, 400, 100000}) {
    const std::string bytes = archiveOf(kMembers, most);
    auto members = zipMembers(bytes);
    ASSERT_TRUE(members.isOk()) << members.status().message();
    EXPECT_EQ(members->size(), kMembers.size());
    for (const auto &[name, contents] : kMembers)
      EXPECT_EQ(members->at(name).contents, contents) << name << " with " << most;
    EXPECT_EQ(bytes.find("PK\x06\x06") != std::string::npos, most < 100000) << most;
  }
}

TEST(Zip, PartsWithoutMemoryAreEmpty) {
  ZipWriter writer;
  writer.add("head", "bytes", {});
  writer.add("rest", {}, "bytes");
  writer.add("neither", {}, {});
  const std::string bytes = writer.finish();
  auto members = zipMembers(bytes);
  ASSERT_TRUE(members.isOk()) << members.status().message();
  EXPECT_EQ(members->at("head").contents, "bytes");
  EXPECT_EQ(members->at("rest").contents, "bytes");
  EXPECT_EQ(members->at("neither").contents, "");
}

TEST(Zip, IndexListsOf64BitArchivesAreReadBack) {
  const IndexLists lists = *toIndexLists(causalMask(48, 16));
  const std::string plain = toNpz(lists);
  auto members = zipMembers(plain);
  ASSERT_TRUE(members.isOk());
  ZipWriter writer(/*most=*/100);
  for (const auto &[name, member] : *members)
    writer.add(name, {}, member.contents);
  auto read = indexListsFromNpz(writer.finish());
  ASSERT_TRUE(read.isOk()) << read.status().message();
  EXPECT_EQ(read->byQ, lists.byQ);
  EXPECT_EQ(read->byKV, lists.byKV);
}

TEST(ZipErrors, EveryChangedOrMissingByteIsNoticedOrHarmless) {
  const std::string good = archiveOf(kMembers, /*most=*/2);
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(zipMembers(std::string_view(good).substr(0, size))) << size;
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x41);
    if (auto members = zipMembers(bad); members && members->contains("second"))
      EXPECT_EQ(members->at("second").contents, kMembers[2].second) << i;
  }
}

TEST(ZipErrors, SayWhatIsWrong) {
  const std::string good = archiveOf(kMembers, /*most=*/2);
  auto messageWith = [&](size_t at, char value) {
    std::string bytes = good;
    bytes[at] = value;
    return zipMembers(bytes).status().message();
  };
  const size_t locator = good.find("PK\x06\x07"), end = good.find("PK\x06\x06"), entry = good.find("PK\x01\x02");
  EXPECT_EQ(messageWith(locator, 'x'), "the .npz file is damaged: it has no end record of 64 bits");
  EXPECT_EQ(messageWith(end, 'x'), "the .npz file is damaged: its end record of 64 bits is not where it says");
  EXPECT_EQ(messageWith(entry + 46 + 5, 7), "the .npz file is damaged: a member lacks its sizes of 64 bits");
}

} // namespace
} // namespace cpflex::test
