// Do processes that were started apart meet, by file and by TCP, and is every way not to meet one clear sentence?
#include "runtime/Comm/Rendezvous.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <netinet/in.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

using namespace cpflex;

namespace {

EnvironmentLookup environmentOf(std::map<std::string, std::string, std::less<>> values) {
  return [values](std::string_view name) {
    auto found = values.find(name);
    return found == values.end() ? std::string() : found->second;
  };
}

std::string temporaryFile(const std::string &name) {
  const auto path = std::filesystem::temp_directory_path() / (name + std::to_string(getpid()));
  std::filesystem::remove(path);
  return path.string();
}

/// A port that nobody listens on; chosen by process, so that tests beside each other differ.
int freePort(int which) { return 20000 + int(getpid() * 7 + which) % 20000; }

/// Ranks as threads, each with bytes of its own; what each has afterwards.
std::vector<std::vector<uint8_t>> shared(const Rendezvous &rendezvous, int32_t worldSize,
                                         std::vector<Status> &statuses) {
  std::vector<std::vector<uint8_t>> bytes;
  statuses.assign(size_t(worldSize), {});
  for (int32_t rank = 0; rank < worldSize; ++rank)
    bytes.emplace_back(128, uint8_t(rank + 1));
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < worldSize; ++rank)
    threads.emplace_back([&, rank] {
      statuses[size_t(rank)] = shareBytes(rendezvous, rank, worldSize, bytes[size_t(rank)], deadlineIn(20));
    });
  for (std::thread &thread : threads)
    thread.join();
  return bytes;
}

TEST(Rendezvous, AllRanksGetTheBytesOfRankZero) {
  const std::string path = temporaryFile("cpflex-rendezvous");
  for (const std::string &text : {"file:" + path, "tcp:localhost:" + std::to_string(freePort(0)),
                                  "tcp://127.0.0.1:" + std::to_string(freePort(1))}) {
    StatusOr<Rendezvous> rendezvous = parseRendezvous(text, environmentOf({}));
    ASSERT_TRUE(rendezvous) << rendezvous.status().message();
    for (int32_t worldSize : {1, 2, 5}) {
      std::vector<Status> statuses;
      auto bytes = shared(*rendezvous, worldSize, statuses);
      for (int32_t rank = 0; rank < worldSize; ++rank) {
        EXPECT_TRUE(statuses[size_t(rank)].isOk()) << statuses[size_t(rank)].message();
        EXPECT_EQ(bytes[size_t(rank)], std::vector<uint8_t>(128, 1)) << text;
      }
      leaveRendezvous(*rendezvous, 0);
      EXPECT_FALSE(std::filesystem::exists(path));
    }
  }
}

/// Connects to a port of this host and says nothing; -1 when nobody listens.
int silentStranger(int port) {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(uint16_t(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(descriptor, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) == 0)
    return descriptor;
  close(descriptor);
  return -1;
}

TEST(Rendezvous, SilentStrangersDoNotHoldTheRanksUp) {
  const int port = freePort(3);
  const Rendezvous here{Rendezvous::Kind::Tcp, "", "127.0.0.1", port};
  std::vector<uint8_t> mine(8, 1), theirs(8, 2);
  Status served;
  std::thread first([&] { served = shareBytes(here, 0, 2, mine, deadlineIn(20)); });
  std::vector<int> strangers;
  while (strangers.size() < 3)
    if (int stranger = silentStranger(port); stranger >= 0)
      strangers.push_back(stranger);
    else
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  // The strangers came before rank 1 and stay.
  EXPECT_TRUE(shareBytes(here, 1, 2, theirs, deadlineIn(20)));
  first.join();
  EXPECT_TRUE(served) << served.message();
  EXPECT_EQ(theirs, mine);
  for (int stranger : strangers)
    close(stranger);
}

TEST(Rendezvous, TextsThatAreNone) {
  for (const char *text : {"", "file:", "tcp:host", "tcp:host:", "tcp::80", "tcp:host:99999", "udp:host:80", "path"})
    EXPECT_EQ(parseRendezvous(text, environmentOf({})).status().message(),
              "rendezvous is '" + std::string(text) + "'; expected 'file:PATH' or 'tcp:HOST:PORT'");
  EXPECT_EQ(parseRendezvous("tcp:host:29500", environmentOf({{"MASTER_PORT", "29500"}})).status().message(),
            "the rendezvous port 29500 is the launcher's own (MASTER_PORT); expected another");
}

TEST(Rendezvous, FilesThatCannotServe) {
  const std::string path = temporaryFile("cpflex-stale");
  std::vector<uint8_t> bytes(8, 7);
  std::ofstream(path) << "old";
  EXPECT_EQ(shareBytes({Rendezvous::Kind::File, path, "", 0}, 0, 2, bytes, deadlineIn(1)).message(),
            "'" + path + "' exists; expected a rendezvous file that no other job has used");
  EXPECT_EQ(shareBytes({Rendezvous::Kind::File, path, "", 0}, 1, 2, bytes, deadlineIn(1)).message(),
            "'" + path + "' holds 3 bytes; expected 8");
  std::filesystem::remove(path);
  EXPECT_EQ(shareBytes({Rendezvous::Kind::File, path, "", 0}, 1, 2, bytes, deadlineIn(0.02)).message(),
            "rank 1 did not find '" + path + "' before the deadline; expected rank 0 to write it");
  EXPECT_EQ(shareBytes({Rendezvous::Kind::File, "/nowhere/meet", "", 0}, 0, 2, bytes, deadlineIn(1)).message(),
            "the rendezvous file '/nowhere/meet' cannot be written; expected a folder that all ranks share");
}

TEST(Rendezvous, RanksThatDoNotCome) {
  std::vector<uint8_t> bytes(8, 7);
  const int port = freePort(2);
  const Rendezvous here{Rendezvous::Kind::Tcp, "", "127.0.0.1", port};
  EXPECT_EQ(shareBytes(here, 0, 3, bytes, deadlineIn(0.02)).message(),
            "rank 1 did not come to 127.0.0.1:" + std::to_string(port) + " before the deadline; 1 of 3 ranks came");
  const std::string message = shareBytes(here, 2, 3, bytes, deadlineIn(0.02)).message();
  EXPECT_EQ(message, "rank 2 did not reach rank 0 at 127.0.0.1:" + std::to_string(port) +
                         " before the deadline; cannot connect to 127.0.0.1:" + std::to_string(port) +
                         ": Connection refused");
  const Rendezvous unknown{Rendezvous::Kind::Tcp, "", "no such host", port};
  EXPECT_NE(shareBytes(unknown, 1, 2, bytes, deadlineIn(0.02)).message().find("the host 'no such host' is not known: "),
            std::string::npos);
  // A port that another job listens on.
  std::thread first([&] {
    std::vector<uint8_t> own(8, 1);
    (void)shareBytes(here, 0, 2, own, deadlineIn(1));
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(shareBytes(here, 0, 2, bytes, deadlineIn(0.02)).message(),
            "cannot listen at 127.0.0.1:" + std::to_string(port) + ": Address already in use");
  first.join();
}

TEST(JobPlace, ReadsWhatLaunchersSay) {
  EXPECT_FALSE(jobPlace(environmentOf({})));
  EXPECT_FALSE(jobPlace(environmentOf({{"RANK", "4"}, {"WORLD_SIZE", "4"}})));
  struct Launcher {
    const char *rank, *size, *local;
  };
  for (const Launcher &each : {Launcher{"RANK", "WORLD_SIZE", "LOCAL_RANK"},
                               Launcher{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
                               Launcher{"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
                               Launcher{"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"}}) {
    auto place = jobPlace(environmentOf({{each.rank, "5"}, {each.size, "8"}, {each.local, "1"}}));
    ASSERT_TRUE(place) << each.rank;
    EXPECT_EQ(place->rank, 5);
    EXPECT_EQ(place->worldSize, 8);
    EXPECT_EQ(place->localRank, 1);
  }
}

} // namespace
