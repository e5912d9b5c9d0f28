// Can another user decide what code is read from the cache's folder?
#include "runtime/Files/DiskCache.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include <sys/stat.h>
#include <unistd.h>

using namespace cpflex;
namespace fs = std::filesystem;

namespace {

constexpr uid_t kOtherUser = 65534;

class DiskCacheTrust : public testing::Test {
protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "cpflex-disk-cache-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    parent_ = name;
    folder_ = (parent_ / "cache").string();
  }
  void TearDown() override { fs::remove_all(parent_); }

  Status store(const std::string &folder) const {
    const DiskCache::File files[] = {{"code", "bytes"}};
    return DiskCache(folder).store(kKey, files, [] { return false; }, "cache of code", "code is compiled anew");
  }
  void expectRefusal(const std::string &folder, const std::string &why) const {
    const std::string message = "the cache of code '" + folder + "' cannot be used: " + why +
                                "; expected a folder to which only user " + std::to_string(::geteuid()) + " may write";
    EXPECT_EQ(store(folder).message(), message + "; code is compiled anew");
    EXPECT_FALSE(DiskCache(folder).read(kKey, "code"));
    EXPECT_EQ(DiskCache(folder).clear("cache of code").status().message(), message);
    EXPECT_TRUE(fs::exists(fs::path(folder) / kKey / "code"));
  }

  const std::string kKey = std::string(64, 'a');
  fs::path parent_;
  std::string folder_;
};

TEST_F(DiskCacheTrust, AFolderIsMadeForItsOwnerAlone) {
  const Status status = store(folder_ + "/");
  ASSERT_TRUE(status) << status.message();
  EXPECT_EQ(fs::status(folder_).permissions(), fs::perms::owner_all);
  EXPECT_EQ(DiskCache(folder_).read(kKey, "code"), "bytes");
}

TEST_F(DiskCacheTrust, OthersMayReadButNotWrite) {
  ASSERT_TRUE(store(folder_));
  for (mode_t mode : {0755, 0500, 0550})
    EXPECT_TRUE(::chmod(folder_.c_str(), mode) == 0 && DiskCache(folder_).read(kKey, "code")) << mode;
  for (mode_t mode : {0770, 0702, 01777}) {
    ASSERT_EQ(::chmod(folder_.c_str(), mode), 0);
    expectRefusal(folder_, "other users may write to it");
  }
}

TEST_F(DiskCacheTrust, AFolderOrLinkOfAnotherUserIsRefused) {
  ASSERT_TRUE(store(folder_));
  const std::string link = (parent_ / "link").string();
  fs::create_symlink(folder_, link);
  EXPECT_TRUE(DiskCache(link).read(kKey, "code"));
  if (::lchown(link.c_str(), kOtherUser, gid_t(-1)) != 0)
    GTEST_SKIP() << "only root gives files away";
  expectRefusal(link, "it belongs to user 65534");
  EXPECT_FALSE(DiskCache(link + "/").read(kKey, "code"));
  ASSERT_EQ(::lchown(folder_.c_str(), kOtherUser, gid_t(-1)), 0);
  expectRefusal(folder_, "it belongs to user 65534");
}

} // namespace
