// Where NVRTC is looked for, and what is said when it is not there.
#include "runtime/Cuda/Nvrtc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <unistd.h>

namespace cpflex {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

/// A folder that is removed at the end of the test.
struct TemporaryFolder {
  fs::path path = fs::temp_directory_path() / ("cpflex-nvrtc-" + std::to_string(getpid()));
  TemporaryFolder() { fs::create_directories(path); }
  ~TemporaryFolder() { fs::remove_all(path); }
};

TEST(Nvrtc, EmptySearchPathIsOneSentence) {
  LibrarySearch search = nvrtcSearch([](std::string_view) { return std::string(); });
  search.candidates.clear();
  auto nvrtc = Nvrtc::load(search);
  ASSERT_FALSE(nvrtc);
  EXPECT_EQ(nvrtc.status().message(),
            "no NVRTC library found; looked for nowhere (the search path is empty); install CUDA or the Python package "
            "'nvidia-cuda-nvrtc', or set CPFLEX_NVRTC to the path of libnvrtc.so");
}

TEST(Nvrtc, NamedPathIsTheOnlyChoice) {
  LibrarySearch search =
      nvrtcSearch([](std::string_view name) { return std::string(name == "CPFLEX_NVRTC" ? "/nowhere/x.so" : ""); });
  EXPECT_THAT(search.candidates, ElementsAre("/nowhere/x.so"));
  auto nvrtc = Nvrtc::load(search);
  ASSERT_FALSE(nvrtc);
  EXPECT_EQ(nvrtc.status().message(),
            "no NVRTC library found; looked for '/nowhere/x.so'; correct or unset CPFLEX_NVRTC");
}

TEST(Nvrtc, NamedFolderIsSearched) {
  TemporaryFolder folder;
  std::ofstream(folder.path / "libnvrtc.so.13") << "x";
  LibrarySearch search =
      nvrtcSearch([&](std::string_view name) { return name == "CPFLEX_NVRTC" ? folder.path.string() : std::string(); });
  EXPECT_THAT(search.candidates, ElementsAre((folder.path / "libnvrtc.so.13").string()));
}

TEST(Nvrtc, WheelsOfTheVirtualEnvironmentAreSearched) {
  TemporaryFolder folder;
  fs::path wheel = folder.path / "lib/python3.12/site-packages/nvidia/cu13/lib";
  fs::create_directories(wheel);
  std::ofstream(wheel / "libnvrtc.so.13") << "x";
  LibrarySearch search =
      nvrtcSearch([&](std::string_view name) { return name == "VIRTUAL_ENV" ? folder.path.string() : std::string(); });
  EXPECT_THAT(search.candidates, Contains((wheel / "libnvrtc.so.13").string()));
}

TEST(Nvrtc, WheelsOfThePythonOnPathAreSearched) {
  TemporaryFolder folder;
  fs::path wheel = folder.path / "lib/python3.11/dist-packages/nvidia/cuda_nvrtc/lib";
  fs::create_directories(wheel);
  fs::create_directories(folder.path / "bin");
  std::ofstream(wheel / "libnvrtc.so.12") << "x";
  std::ofstream(folder.path / "bin/python3") << "x";
  LibrarySearch search = nvrtcSearch([&](std::string_view name) {
    return name == "PATH" ? "/nowhere:" + (folder.path / "bin").string() : std::string();
  });
  EXPECT_THAT(search.candidates, Contains((wheel / "libnvrtc.so.12").string()));
}

TEST(Nvrtc, OtherLibraryIsRefused) {
  auto nvrtc = Nvrtc::load({.libraryName = "NVRTC", .candidates = {"libm.so.6"}, .remedy = "r"});
  ASSERT_FALSE(nvrtc);
  EXPECT_EQ(nvrtc.status().message(), "'libm.so.6' has no function 'nvrtcVersion'; cpflex needs NVRTC 12.3 or newer");
}

TEST(Nvrtc, KnowsItsArchitectures) {
  auto nvrtc = Nvrtc::load();
  if (!nvrtc)
    GTEST_SKIP() << nvrtc.status().message();
  EXPECT_TRUE((*nvrtc)->supports("sm_90a"));
  EXPECT_TRUE((*nvrtc)->supports("sm_80"));
  EXPECT_FALSE((*nvrtc)->supports("sm_20"));
  EXPECT_FALSE((*nvrtc)->supports("gfx90"));
  EXPECT_GE((*nvrtc)->version(), kOldestNvrtc);
  EXPECT_THAT((*nvrtc)->status(nvrtc::kCompilation, "nvrtcCompileProgram").message(),
              HasSubstr("nvrtcCompileProgram failed with NVRTC_ERROR_COMPILATION"));
}

} // namespace
} // namespace cpflex
