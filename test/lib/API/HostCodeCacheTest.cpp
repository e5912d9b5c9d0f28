// When is host code compiled, and when does it come from the cache? What the log says is the witness.
#include "lib/API/HostCodeCache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include <sys/mount.h>
#include <unistd.h>

using namespace cpflex;
namespace fs = std::filesystem;

namespace {

constexpr const char *kProgram = "C: const[int] = 2\nW: param[int] = 64\nL: param[int] = 1\n"
                                 "@mask\ndef window(b, h, q, kv):\n    return (q - kv < W) & (q % C == kv % C)\n"
                                 "@score\ndef twice(s, b, h, q, kv):\n    return s * 2.0\n"
                                 "attention(\"main\", mask=window, score=twice)\n";

class HostCodeCacheTest : public testing::Test {
protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("host-code-" + std::to_string(getpid()));
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  struct Job {
    std::string text = kProgram;
    std::map<std::string, std::string> constants = {}, params = {};
    int64_t qLen = 128;
    CallPasses passes = CallPasses::ForwardAndBackward;
    std::string folder = {};
  };
  // What a new program with new code says: 'compiled', 'from the cache', warnings.
  std::vector<std::string> said(const Job &job) {
    CompileOptions options;
    std::vector<std::string> lines;
    options.cacheDir = job.folder.empty() ? folder_.string() : job.folder;
    options.constants = job.constants;
    options.log = {.level = LogLevel::Debug, .function = [&](LogLevel level, const std::string &line) {
                     std::lock_guard lock(mutex_);
                     if (line.find("host code") != std::string::npos || level == LogLevel::Warning)
                       lines.push_back(line.substr(0, line.find(" in ")));
                   }};
    CompileResult compiled = compileText((fs::path(testing::TempDir()) / "test.cpf").string(), job.text, options);
    EXPECT_TRUE(compiled.program);
    auto binding = Binding::create(*compiled.program, {.params = job.params, .sizes = {.qLen = job.qLen}});
    EXPECT_TRUE(binding) << binding.status().message();
    auto functions =
        compiled.program->hostFunctions(compiled.program->entries()[0], (*binding)->bindings(), job.passes);
    EXPECT_TRUE(functions) << functions.status().message();
    // The code does what the text says, wherever it comes from.
    const TileCoordinates tile{0, 0, 3, 1, 1, 1, 3, 1};
    uint8_t bits[3] = {9, 9, 9};
    functions->evaluateTile(&(*binding)->bindings(), &tile, bits, 3);
    const auto constant = job.constants.find("C");
    const bool isEveryKeyAllowed = constant != job.constants.end() && constant->second == "1";
    EXPECT_EQ(bits[0], 1);
    EXPECT_EQ(bits[1], isEveryKeyAllowed);
    EXPECT_EQ(functions->scoreGradient != nullptr, job.passes == CallPasses::ForwardAndBackward);
    return lines;
  }
  using Lines = std::vector<std::string>;
  const Lines compiled_ = {"compiled host code of 'main'"}, cached_ = {"host code of 'main' from the cache"};
  fs::path folder_;
  std::mutex mutex_;
};

TEST_F(HostCodeCacheTest, TheSameTextIsCompiledOnce) {
  EXPECT_EQ(said({}), compiled_);
  EXPECT_EQ(said({}), cached_);
  EXPECT_EQ(HostCodeCache(folder_).list().size(), 1u);
  EXPECT_EQ(HostCodeCache(folder_).list()[0].entry, "main");
}

TEST_F(HostCodeCacheTest, ParamsAndLengthsDoNotRecompile) {
  EXPECT_EQ(said({}), compiled_);
  EXPECT_EQ(said({.params = {{"W", "77"}}, .qLen = 4096}), cached_);
  EXPECT_EQ(said({.constants = {{"W", "77"}, {"C", "2"}}, .params = {{"W", "77"}}}).size(), 1u);
}

TEST_F(HostCodeCacheTest, WhatDecidesTheCodeIsInTheKey) {
  EXPECT_EQ(said({}), compiled_);
  EXPECT_EQ(said({.constants = {{"C", "1"}}}), compiled_);
  EXPECT_EQ(said({.text = std::string(kProgram) + "\n# longer\n"}), compiled_);
  EXPECT_EQ(said({.passes = CallPasses::Forward}), compiled_);
  // Ints of 64 bits, for what 32 do not hold.
  EXPECT_EQ(said({.params = {{"W", "3000000000"}}}), compiled_);
  EXPECT_EQ(HostCodeCache(folder_).list().size(), 5u);
}

TEST_F(HostCodeCacheTest, ImportedTextIsInTheKey) {
  const fs::path imported = fs::path(testing::TempDir()) / "window_part.cpf";
  const auto write = [&](const char *width) {
    std::ofstream(imported) << "def near(q, kv):\n    return q - kv < " << width << "\n";
  };
  const Job job{
      .text = "from window_part import near\n@mask\ndef main(b, h, q, kv):\n"
              "    return near(q, kv) & (q % 2 == kv % 2)\n@score\ndef twice(s, b, h, q, kv):\n    return s * 2.0\n"
              "attention(\"main\", mask=main, score=twice)\n"};
  write("100");
  EXPECT_EQ(said(job), compiled_);
  EXPECT_EQ(said(job), cached_);
  write("200");
  EXPECT_EQ(said(job), compiled_);
  fs::remove(imported);
}

TEST_F(HostCodeCacheTest, DamagedCodeIsReplaced) {
  said({});
  const std::string key = HostCodeCache(folder_).list()[0].key;
  std::ofstream(folder_ / key / "host.o", std::ios::binary) << "torn";
  EXPECT_EQ(said({}), compiled_);
  EXPECT_EQ(said({}), cached_);
  std::ofstream(folder_ / key / "host.json") << "[1]";
  EXPECT_EQ(said({}), compiled_);
  EXPECT_EQ(said({}), cached_);
}

TEST_F(HostCodeCacheTest, AFolderThatCannotBeWrittenIsOneWarning) {
  const Lines lines = said({.folder = "/proc/nowhere"});
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1].find("the cache of compiled code '/proc/nowhere' cannot be written (making a folder"), 0u);
  EXPECT_NE(lines[1].find("code is compiled anew"), std::string::npos);
}

/// A small file system of its own, while it lives; needs the rights of root.
class MountedFolder {
public:
  MountedFolder(const fs::path &folder, const char *options) : folder_(folder) {
    fs::create_directories(folder_);
    isMounted_ = mount("tmpfs", folder_.c_str(), "tmpfs", 0, options) == 0;
  }
  ~MountedFolder() {
    if (isMounted_)
      umount(folder_.c_str());
  }
  MountedFolder(const MountedFolder &) = delete;
  bool isMounted() const { return isMounted_; }
  bool makeReadOnly() const { return mount("tmpfs", folder_.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr) == 0; }

private:
  fs::path folder_;
  bool isMounted_;
};

TEST_F(HostCodeCacheTest, AFullFolderIsOneWarning) {
  const MountedFolder mounted(folder_, "size=4k,mode=700");
  if (!mounted.isMounted())
    GTEST_SKIP() << "a full file system cannot be made: mounting needs the rights of root";
  const Lines lines = said({});
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0], compiled_[0]);
  EXPECT_EQ(lines[1].find("the cache of compiled code '" + folder_.string() + "' cannot be written (writing an entry"),
            0u)
      << lines[1];
  EXPECT_TRUE(HostCodeCache(folder_).list().empty());
  EXPECT_EQ(said({}).size(), 2u);
}

TEST_F(HostCodeCacheTest, AReadOnlyFolderServesWhatItHas) {
  const MountedFolder mounted(folder_, "size=4m,mode=700");
  if (!mounted.isMounted())
    GTEST_SKIP() << "a read-only file system cannot be made: mounting needs the rights of root";
  EXPECT_EQ(said({}), compiled_);
  ASSERT_TRUE(mounted.makeReadOnly());
  EXPECT_EQ(said({}), cached_);
  const Lines lines = said({.passes = CallPasses::Forward});
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0], compiled_[0]);
  EXPECT_EQ(lines[1].find("the cache of compiled code '" + folder_.string() + "' cannot be written"), 0u) << lines[1];
}

TEST_F(HostCodeCacheTest, AProgramWarnsOnce) {
  CompileOptions options;
  options.cacheDir = "/proc/nowhere";
  int numWarnings = 0;
  options.log = {.level = LogLevel::Warning, .function = [&](LogLevel, const std::string &) { ++numWarnings; }};
  CompileResult compiled = compileText("test.cpf", kProgram, options);
  auto binding = Binding::create(*compiled.program, {.sizes = {.qLen = 16}});
  for (CallPasses passes : {CallPasses::Forward, CallPasses::ForwardAndBackward})
    EXPECT_TRUE(compiled.program->hostFunctions(compiled.program->entries()[0], (*binding)->bindings(), passes));
  EXPECT_EQ(numWarnings, 1);
}

TEST_F(HostCodeCacheTest, AnEmptyFolderNameMeansNoCache) {
  CompileOptions options;
  options.cacheDir = "";
  CompileResult compiled = compileText("test.cpf", kProgram, options);
  auto binding = Binding::create(*compiled.program, {.sizes = {.qLen = 16}});
  ASSERT_TRUE(compiled.program->hostFunctions(compiled.program->entries()[0], (*binding)->bindings()));
  EXPECT_FALSE(fs::exists(folder_));
}

TEST_F(HostCodeCacheTest, ThreadsMayCompileAtOnce) {
  std::vector<std::thread> threads;
  std::vector<Lines> lines(4);
  for (size_t i = 0; i < lines.size(); ++i)
    threads.emplace_back([&, i] { lines[i] = said({}); });
  for (std::thread &thread : threads)
    thread.join();
  EXPECT_EQ(said({}), cached_);
  EXPECT_EQ(HostCodeCache(folder_).list().size(), 1u);
}

} // namespace
