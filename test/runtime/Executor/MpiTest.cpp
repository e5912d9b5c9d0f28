// Do ranks as MPI processes compute the bits that threads compute, and is a missing plugin or message one clear
// sentence?
#include "runtime/Comm/MpiCommunicator.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <gtest/gtest.h>
#include <string>

using namespace cpflex;

namespace {

/// What the job prints. CPFLEX_MPI_RANKS is the program beside this one, CPFLEX_MPI_PLUGIN_FILE the plugin.
std::string runJob(int numRanks, const std::string &argument, const std::string &launcherFlags = "") {
  const std::string command = "CPFLEX_MPI_PLUGIN='" CPFLEX_MPI_PLUGIN_FILE "' timeout 60 mpirun --allow-run-as-root "
                              "--oversubscribe " +
                              launcherFlags + " -n " + std::to_string(numRanks) + " '" CPFLEX_MPI_RANKS "' " +
                              argument + " 2>&1";
  std::string output;
  FILE *pipe = popen(command.c_str(), "r");
  char buffer[256];
  while (pipe && std::fgets(buffer, sizeof(buffer), pipe))
    output += buffer;
  if (pipe)
    pclose(pipe);
  return output;
}

class Mpi : public testing::Test {
protected:
  void SetUp() override {
    if (std::system("command -v mpirun > /dev/null 2>&1") != 0)
      GTEST_SKIP() << "mpirun is not installed";
  }
};

TEST_F(Mpi, ComputesTheBitsOfThreads) {
  for (int numRanks : {1, 2, 3})
    EXPECT_EQ(runJob(numRanks, ""), "right\n");
}

TEST_F(Mpi, NamesThePeerThatSentNothing) {
  EXPECT_NE(
      runJob(2, "silent").find("no message from rank 1 at rank 0 in step 4 (kv) before the deadline; expected 4 bytes"),
      std::string::npos);
}

TEST_F(Mpi, AKilledProcessIsAnErrorThatNamesItWithinTheDeadline) {
  // The launcher would end the survivors; this flag lets them live and report.
  for (const char *group : {"0", "1", "3"}) {
    const auto begin = std::chrono::steady_clock::now();
    const std::string output = runJob(3, std::string("killed ") + group, "--enable-recovery");
    EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 30.0);
    EXPECT_EQ(output.find("right\n"), std::string::npos) << output;
    EXPECT_NE(output.find("rank 0"), std::string::npos) << output;
    EXPECT_NE(output.find("in step "), std::string::npos) << output;
  }
}

TEST(MpiPlugin, AMissingPluginIsOneSentence) {
  const std::string message = MpiCommunicator::open("/nowhere/libcpflex_mpi.so").status().message();
  EXPECT_EQ(message.substr(0, 31), "the MPI plugin was not found (/");
  EXPECT_NE(message.find("expected a build with MPI, or its file in CPFLEX_MPI_PLUGIN"), std::string::npos);
}

TEST(MpiPlugin, AnotherLibraryIsRefused) {
  EXPECT_EQ(MpiCommunicator::open("libm.so.6").status().message(),
            "'libm.so.6' is not an MPI plugin of version 1; expected the one of this build");
}

} // namespace
