// Is every kind of file read and written as its owner expects: links and permissions kept, devices and pipes written,
// not replaced, nothing read without end?
#include "runtime/Files/WholeFile.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

using namespace cpflex;
namespace fs = std::filesystem;

namespace {

class WholeFile : public testing::Test {
protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "cpflex-whole-file-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string at(const char *name) const { return (folder_ / name).string(); }
  std::string textOf(const char *name) const {
    StatusOr<std::string> text = readFile(at(name));
    return text ? *text : text.status().message();
  }
  int64_t numFiles() const { return std::distance(fs::directory_iterator(folder_), fs::directory_iterator()); }
  static mode_t modeOf(const std::string &path) {
    struct stat status{};
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_mode & 07777;
  }

  fs::path folder_;
};

TEST_F(WholeFile, AppearsWhole) {
  const Status status = writeFile(at("x"), {"one, ", "two"});
  ASSERT_TRUE(status) << status.message();
  EXPECT_EQ(textOf("x"), "one, two");
  EXPECT_EQ(numFiles(), 1);
}

TEST_F(WholeFile, PermissionsStay) {
  ASSERT_TRUE(writeFile(at("x"), "old"));
  ASSERT_EQ(::chmod(at("x").c_str(), 0640), 0);
  ASSERT_TRUE(writeFile(at("x"), "new"));
  EXPECT_EQ(textOf("x"), "new");
  EXPECT_EQ(modeOf(at("x")), 0640u);
}

TEST_F(WholeFile, LinksStayAndTheirTargetIsWritten) {
  ASSERT_TRUE(fs::create_directory(folder_ / "deep"));
  fs::create_symlink("deep/second", folder_ / "first");
  fs::create_symlink("target", folder_ / "deep" / "second");
  for (const char *contents : {"made by the link", "replaced"}) {
    const Status status = writeFile(at("first"), contents);
    ASSERT_TRUE(status) << status.message();
    EXPECT_TRUE(fs::is_symlink(folder_ / "first"));
    EXPECT_TRUE(fs::is_symlink(folder_ / "deep" / "second"));
    EXPECT_EQ(textOf("deep/target"), contents);
  }
}

TEST_F(WholeFile, RingsOfLinksAreErrors) {
  fs::create_symlink("b", folder_ / "a");
  fs::create_symlink("a", folder_ / "b");
  EXPECT_NE(writeFile(at("a"), "x").message().find("cannot write"), std::string::npos);
  EXPECT_EQ(numFiles(), 2);
}

TEST_F(WholeFile, PipesAreWrittenNotReplaced) {
  ASSERT_EQ(::mkfifo(at("pipe").c_str(), 0600), 0);
  std::string seen;
  std::thread reader([&] { seen = textOf("pipe"); });
  const std::string contents(1 << 18, 'x');
  const Status status = writeFile(at("pipe"), contents);
  reader.join();
  EXPECT_TRUE(status) << status.message();
  EXPECT_EQ(seen, contents);
  EXPECT_TRUE(fs::is_fifo(folder_ / "pipe"));
}

TEST_F(WholeFile, DevicesAreWrittenNotReplaced) {
  // A node of our own of the device that has no room (1, 7). Making one takes a right that containers may lack.
  if (::mknod(at("full").c_str(), S_IFCHR | 0600, makedev(1, 7)) != 0)
    GTEST_SKIP() << "no right to make a device node";
  const Status status = writeFile(at("full"), "x");
  EXPECT_TRUE(fs::is_character_file(folder_ / "full"));
  EXPECT_NE(status.message().find("cannot write '" + at("full") + "': "), std::string::npos) << status.message();
  EXPECT_EQ(numFiles(), 1);
}

TEST_F(WholeFile, OpenDescriptorsAreWrittenWhereTheyStand) {
  const int descriptor = ::open(at("x").c_str(), O_WRONLY | O_CREAT, 0600);
  ASSERT_GE(descriptor, 0);
  ASSERT_EQ(::write(descriptor, "a", 1), 1);
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  fs::create_symlink(link, folder_ / "stdout");
  const Status status = writeFile(at("stdout"), "b");
  ASSERT_EQ(::write(descriptor, "c", 1), 1);
  ::close(descriptor);
  EXPECT_TRUE(status) << status.message();
  EXPECT_EQ(textOf("x"), "abc");
}

TEST_F(WholeFile, FoldersAndReadOnlyFilesAreErrors) {
  EXPECT_NE(writeFile(folder_.string(), "x").message().find("cannot write"), std::string::npos);
  EXPECT_NE(writeFile(at("no-such-folder/x"), "x").message().find("cannot write"), std::string::npos);
  if (::geteuid() == 0)
    GTEST_SKIP() << "root may write files that are read-only";
  ASSERT_TRUE(writeFile(at("x"), "old"));
  ASSERT_EQ(::chmod(at("x").c_str(), 0444), 0);
  EXPECT_NE(writeFile(at("x"), "new").message().find("cannot write"), std::string::npos);
  EXPECT_EQ(textOf("x"), "old");
}

TEST_F(WholeFile, DevicesAreNotRead) {
  EXPECT_EQ(readFile("/dev/zero").status().message(), "'/dev/zero' is a device; expected a file or a pipe");
  EXPECT_NE(readFile(folder_.string()).status().message().find("cannot read"), std::string::npos);
  EXPECT_NE(readFile(at("none")).status().message().find("cannot open"), std::string::npos);
}

TEST_F(WholeFile, AsMuchIsReadAsWasAskedFor) {
  const std::string contents(200000, 'x');
  ASSERT_TRUE(writeFile(at("x"), contents));
  EXPECT_EQ(*readFile(at("x")), contents);
  EXPECT_EQ(*readFile(at("x"), 70000), contents.substr(0, 70000));
  StatusOr<FileReader> reader = FileReader::open(at("x"));
  ASSERT_TRUE(reader);
  std::string parts;
  for (size_t size : {3, 70000, 70000, 300000})
    ASSERT_TRUE(reader->readUpTo(parts, size));
  EXPECT_EQ(parts, contents);
}

} // namespace
