// The disk cache under ordinary use, damage, many writers, limits and folders that cannot be written.
#include "runtime/Cuda/KernelCache.h"

#include "runtime/Cuda/Sha256.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace cpflex {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class KernelCacheTest : public testing::Test {
protected:
  fs::path folder = fs::temp_directory_path() / ("cpflex-cache-" + std::to_string(getpid()) +
                                                 testing::UnitTest::GetInstance()->current_test_info()->name());
  void SetUp() override { fs::remove_all(folder); }
  void TearDown() override { fs::remove_all(folder); }

  static KernelSource source() {
    KernelSource source;
    source.text = "// kernel text\n";
    source.key = "source-key";
    return source;
  }
  static KernelImage image(char fill, size_t bytes = 100) {
    KernelImage image;
    image.cubin.assign(bytes, fill);
    image.functionName = "attention_forward";
    image.architecture = "sm_90a";
    image.tiles = {.tileQ = 128,
                   .tileKV = 80,
                   .stages = 2,
                   .threads = 384,
                   .sharedBytes = 4096,
                   .blocksPerProcessor = 1,
                   .spillLimit = 9};
    image.registers = 168;
    image.spillBytes = 8;
    image.stackBytes = 16;
    image.staticSharedBytes = 32;
    image.warnings = {"a warning"};
    image.log = "ptxas info";
    return image;
  }
  int numLeftAside() const {
    int count = 0;
    for (const auto &entry : fs::directory_iterator(folder))
      count += entry.path().filename().string().starts_with(".aside-");
    return count;
  }
};

TEST_F(KernelCacheTest, GivesBackWhatWasStored) {
  KernelCache cache(folder);
  std::string key = sha256("a");
  EXPECT_FALSE(cache.find(key));
  ASSERT_TRUE(cache.store(key, source(), image('x')));
  auto found = cache.find(key);
  ASSERT_TRUE(found);
  KernelImage expected = image('x');
  EXPECT_EQ(found->cubin, expected.cubin);
  EXPECT_EQ(found->functionName, expected.functionName);
  EXPECT_EQ(found->architecture, expected.architecture);
  EXPECT_EQ(found->tiles, expected.tiles);
  EXPECT_EQ(found->registers, 168);
  EXPECT_EQ(found->spillBytes, 8);
  EXPECT_EQ(found->stackBytes, 16);
  EXPECT_EQ(found->staticSharedBytes, 32);
  EXPECT_EQ(found->warnings, expected.warnings);
  EXPECT_EQ(found->log, expected.log);
  EXPECT_TRUE(fs::exists(folder / key / "kernel.cu"));
  EXPECT_EQ(numLeftAside(), 0);
}

TEST_F(KernelCacheTest, DamagedCubinIsMissedAndReplaced) {
  KernelCache cache(folder);
  std::string key = sha256("a");
  ASSERT_TRUE(cache.store(key, source(), image('x')));
  std::ofstream(folder / key / "kernel.cubin", std::ios::binary) << "torn";
  EXPECT_FALSE(cache.find(key));
  ASSERT_TRUE(cache.store(key, source(), image('y')));
  ASSERT_TRUE(cache.find(key));
  EXPECT_EQ(cache.find(key)->cubin, image('y').cubin);
}

TEST_F(KernelCacheTest, LostOrDamagedTextIsMissedAndReplaced) {
  KernelCache cache(folder);
  std::string key = sha256("a");
  const fs::path text = folder / key / "kernel.cu";
  ASSERT_TRUE(cache.store(key, source(), image('x')));
  std::ofstream(text) << "other text\n";
  EXPECT_FALSE(cache.find(key));
  fs::remove(text);
  EXPECT_FALSE(cache.find(key));
  ASSERT_TRUE(cache.store(key, source(), image('x')));
  EXPECT_TRUE(cache.find(key));
  EXPECT_TRUE(fs::exists(text));
}

TEST_F(KernelCacheTest, ReportWithAnotherNumberIsMissed) {
  KernelCache cache(folder);
  std::string key = sha256("a");
  ASSERT_TRUE(cache.store(key, source(), image('x')));
  const fs::path report = folder / key / "resources.json";
  std::stringstream contents;
  contents << std::ifstream(report).rdbuf();
  std::string changed = contents.str();
  const size_t threads = changed.find("\"threads\": 384");
  ASSERT_NE(threads, std::string::npos);
  changed.replace(threads, 14, "\"threads\": 256");
  std::ofstream(report) << changed;
  EXPECT_FALSE(cache.find(key));
}

TEST_F(KernelCacheTest, DamagedReportIsMissed) {
  KernelCache cache(folder);
  std::string key = sha256("a");
  ASSERT_TRUE(cache.store(key, source(), image('x')));
  for (const char *text : {"", "{", "[]", "{\"format\": 1}", "{\"format\": \"x\", \"warnings\": 3}"}) {
    std::ofstream(folder / key / "resources.json") << text;
    EXPECT_FALSE(cache.find(key)) << text;
  }
  fs::remove(folder / key / "resources.json");
  EXPECT_FALSE(cache.find(key));
}

TEST_F(KernelCacheTest, FirstOfManyProcessesWins) {
  std::string key = sha256("a");
  std::vector<pid_t> children;
  for (int i = 0; i < 8; ++i) {
    pid_t child = fork();
    if (child == 0) {
      KernelCache cache(folder);
      bool isGood = true;
      for (int round = 0; round < 20 && isGood; ++round) {
        isGood = bool(cache.store(key, source(), image('x', 50000)));
        auto found = cache.find(key);
        isGood = isGood && found && found->cubin.size() == 50000;
      }
      _exit(isGood ? 0 : 1);
    }
    children.push_back(child);
  }
  for (pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  EXPECT_EQ(KernelCache(folder).list().size(), 1u);
  EXPECT_EQ(numLeftAside(), 0);
}

TEST_F(KernelCacheTest, RemovesWhatWasNotUsedForLongest) {
  KernelCache cache(folder, /*limitInBytes=*/25000);
  std::string keys[3] = {sha256("0"), sha256("1"), sha256("2")};
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(cache.store(keys[i], source(), image('x', 10000)));
    fs::last_write_time(folder / keys[i], fs::file_time_type::clock::now() - std::chrono::hours(10 - i));
  }
  ASSERT_TRUE(cache.find(keys[0])); // used: now the younger
  ASSERT_TRUE(cache.store(keys[2], source(), image('x', 10000)));
  EXPECT_TRUE(cache.find(keys[0]));
  EXPECT_FALSE(cache.find(keys[1]));
  EXPECT_TRUE(cache.find(keys[2]));
}

TEST_F(KernelCacheTest, EntryLargerThanTheLimitIsKeptForItsOwner) {
  KernelCache cache(folder, /*limitInBytes=*/10);
  ASSERT_TRUE(cache.store(sha256("0"), source(), image('x')));
  EXPECT_TRUE(cache.find(sha256("0")));
}

TEST_F(KernelCacheTest, RemovesWhatDeadWritersLeft) {
  fs::create_directories(folder / ".aside-1-dead");
  fs::create_directories(folder / ".aside-2-live");
  fs::last_write_time(folder / ".aside-1-dead", fs::file_time_type::clock::now() - std::chrono::hours(2));
  ASSERT_TRUE(KernelCache(folder).store(sha256("0"), source(), image('x')));
  EXPECT_FALSE(fs::exists(folder / ".aside-1-dead"));
  EXPECT_TRUE(fs::exists(folder / ".aside-2-live"));
}

TEST_F(KernelCacheTest, FolderThatCannotBeMadeIsOneWarning) {
  fs::create_directories(folder);
  std::ofstream(folder / "file") << "x";
  KernelCache cache((folder / "file" / "cache").string());
  Status stored = cache.store(sha256("0"), source(), image('x'));
  EXPECT_EQ(stored.code(), StatusCode::Unavailable);
  EXPECT_THAT(stored.message(),
              HasSubstr("cannot be written (making a folder: Not a directory); kernels are compiled anew in "
                        "each process until it can"));
  EXPECT_FALSE(cache.find(sha256("0")));
  EXPECT_TRUE(cache.list().empty());
}

TEST_F(KernelCacheTest, FullDiskIsOneWarning) {
  // A name longer than the file system allows fails where a full disk does: while an entry is put in place.
  Status stored = KernelCache(folder).store(std::string(300, 'a'), source(), image('x'));
  EXPECT_THAT(stored.message(), HasSubstr("cannot be written (writing an entry"));
  EXPECT_EQ(numLeftAside(), 0);
}

TEST_F(KernelCacheTest, ListsAndClears) {
  KernelCache cache(folder);
  ASSERT_TRUE(cache.store(sha256("0"), source(), image('x')));
  ASSERT_TRUE(cache.store(sha256("1"), source(), image('y')));
  std::ofstream(folder / "notes.txt") << "the user's own";
  auto entries = cache.list();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].functionName, "attention_forward");
  EXPECT_EQ(entries[0].architecture, "sm_90a");
  EXPECT_EQ(entries[0].registers, 168);
  EXPECT_GT(entries[0].sizeInBytes, 100);
  auto cleared = cache.clear();
  ASSERT_TRUE(cleared);
  EXPECT_EQ(cleared->numEntries, 2);
  EXPECT_GT(cleared->sizeInBytes, 200);
  EXPECT_TRUE(cache.list().empty());
  EXPECT_TRUE(fs::exists(folder / "notes.txt"));
}

TEST_F(KernelCacheTest, EntryThatCannotBeRemovedIsNamed) {
  if (geteuid() == 0)
    GTEST_SKIP() << "root removes from read-only folders";
  KernelCache cache(folder);
  ASSERT_TRUE(cache.store(sha256("0"), source(), image('x')));
  fs::permissions(folder, fs::perms::owner_read | fs::perms::owner_exec);
  auto cleared = cache.clear();
  fs::permissions(folder, fs::perms::owner_all);
  ASSERT_FALSE(cleared);
  EXPECT_THAT(cleared.status().message(), HasSubstr("cannot be removed from the kernel cache"));
}

TEST(KernelCache, DefaultFolderFollowsTheEnvironment) {
  auto folderWith = [](std::string_view name, std::string value) {
    return KernelCache::defaultFolder([=](std::string_view asked) {
      return asked == name ? value : asked == "HOME" ? "/home/u" : "";
    });
  };
  EXPECT_EQ(folderWith("CPFLEX_CACHE_DIR", "/c"), "/c");
  EXPECT_EQ(folderWith("XDG_CACHE_HOME", "/x"), "/x/cpflex");
  EXPECT_EQ(folderWith("OTHER", ""), "/home/u/.cache/cpflex");
  EXPECT_THAT(KernelCache::defaultFolder([](std::string_view) { return std::string(); }),
              HasSubstr("/tmp/cpflex-cache-"));
}

} // namespace
} // namespace cpflex
