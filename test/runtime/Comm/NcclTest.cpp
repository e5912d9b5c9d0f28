// What does the NCCL transport say when the library is missing, a call fails or a peer stays away? NCCL and the driver
// are functions of this file; the real ones are tried by CudaRanksTest.
#include "runtime/Comm/NcclCommunicator.h"
#include "test/runtime/Cuda/FakeGpu.h"

#include <gtest/gtest.h>

using namespace cpflex;

namespace {

/// What the library of this file answers, and what it was asked; one per test, on the test's thread.
struct FakeNccl {
  nccl::Result init = nccl::kSuccess, send = nccl::kSuccess, groupEnd = nccl::kInProgress, state = nccl::kSuccess;
  cuda::Result query = cuda::kSuccess, pool = cuda::kSuccess;
  std::vector<int> readers; ///< GPUs that may read a pool
  int numSends = 0, numReceives = 0, numAborts = 0, numDestroyed = 0;
  test::FakeGpu gpu;

  static FakeNccl *&current() {
    static thread_local FakeNccl *library = nullptr;
    return library;
  }
  FakeNccl() { current() = this; }
  ~FakeNccl() { current() = nullptr; }

  std::shared_ptr<const NcclLibrary> library() const {
    nccl::Functions f;
    f.commInitRankConfig = [](nccl::Comm *comm, int, nccl::UniqueId, int, nccl::Config *) {
      *comm = reinterpret_cast<nccl::Comm>(current());
      return current()->init;
    };
    f.commGetAsyncError = [](nccl::Comm, nccl::Result *state) { return *state = current()->state, nccl::kSuccess; };
    f.commFinalize = [](nccl::Comm) { return nccl::kSuccess; };
    f.commDestroy = [](nccl::Comm) { return ++current()->numDestroyed, nccl::kSuccess; };
    f.commAbort = [](nccl::Comm) { return ++current()->numAborts, nccl::kSuccess; };
    f.commCount = [](nccl::Comm, int *size) { return *size = 4, nccl::kSuccess; };
    f.commUserRank = [](nccl::Comm, int *rank) { return *rank = 3, nccl::kSuccess; };
    f.groupStart = [] { return nccl::kSuccess; };
    f.groupEnd = [] { return current()->groupEnd; };
    f.send = [](const void *, size_t, nccl::ElementKind, int, nccl::Comm, cuda::Stream) {
      return ++current()->numSends, current()->send;
    };
    f.receive = [](void *, size_t, nccl::ElementKind, int, nccl::Comm, cuda::Stream) {
      return ++current()->numReceives, nccl::kSuccess;
    };
    f.getErrorString = [](nccl::Result) { return "a fault of this test"; };
    f.getLastError = [](nccl::Comm) { return "the last words"; };
    return NcclLibrary::fromFunctions(f);
  }

  std::shared_ptr<const CudaDevice> device() const {
    cuda::DriverFunctions functions = *gpu.driver();
    functions.eventCreate = [](cuda::Event *event, unsigned) { return *event = nullptr, cuda::kSuccess; };
    functions.eventRecord = [](cuda::Event, cuda::Stream) { return cuda::kSuccess; };
    functions.eventQuery = [](cuda::Event) { return current()->query; };
    functions.streamCreateWithPriority = [](cuda::Stream *stream, unsigned, int priority) {
      EXPECT_LT(priority, 0) << "messages come before attention";
      return *stream = reinterpret_cast<cuda::Stream>(16), cuda::kSuccess;
    };
    functions.memPoolCreate = [](cuda::MemoryPool *pool, const cuda::MemoryPoolProperties *) {
      return *pool = reinterpret_cast<cuda::MemoryPool>(24), current()->pool;
    };
    functions.memPoolSetAttribute = [](cuda::MemoryPool, cuda::MemoryPoolAttribute, void *) { return cuda::kSuccess; };
    functions.memPoolSetAccess = [](cuda::MemoryPool, const cuda::MemoryAccess *access, size_t) {
      return current()->readers.push_back(access->location.index), cuda::kSuccess;
    };
    functions.memPoolDestroy = [](cuda::MemoryPool) { return cuda::kSuccess; };
    auto device = CudaDevice::open(CudaDriver::fromFunctions(functions, 13000), 0);
    EXPECT_TRUE(device) << device.status().message();
    return *device;
  }
  std::shared_ptr<const CudaPort> port() const {
    auto port = CudaPort::open(device());
    EXPECT_TRUE(port) << port.status().message();
    return *port;
  }

  StatusOr<std::unique_ptr<NcclCommunicator>> join() const {
    return NcclCommunicator::join(library(), port(), {{}, 1, 3}, 0.01);
  }
};

MessageGroup groupOf(int64_t sizeInBytes) {
  static uint8_t bytes[8] = {};
  return {7, "kv", {{0, bytes, sizeInBytes}, {2, bytes, sizeInBytes}}, {{2, bytes, sizeInBytes}}};
}

TEST(Nccl, AMissingLibraryIsOneSentence) {
  LibrarySearch search = ncclSearch([](std::string_view name) {
    return name == "CPFLEX_NCCL" ? std::string("/nowhere/libnccl.so.2") : std::string();
  });
  EXPECT_EQ(NcclLibrary::load(search).status().message(),
            "no NCCL library found; looked for '/nowhere/libnccl.so.2'; correct or unset CPFLEX_NCCL");
  EXPECT_STREQ(std::getenv("NCCL_NVLS_ENABLE"), "0");
  search.candidates = {"libm.so.6"};
  EXPECT_EQ(NcclLibrary::load(search).status().message(),
            "'libm.so.6' has no function 'ncclGetVersion'; cpflex needs NCCL 2.18 or newer");
}

TEST(Nccl, GroupsAreSentAndEmptyMessagesAreNot) {
  FakeNccl fake;
  {
    auto communicator = fake.join();
    ASSERT_TRUE(communicator) << communicator.status().message();
    EXPECT_TRUE(exchange(**communicator, groupOf(8), deadlineIn(1)));
    EXPECT_EQ(fake.numSends, 2);
    EXPECT_EQ(fake.numReceives, 1);
    EXPECT_TRUE(exchange(**communicator, groupOf(0), deadlineIn(1)));
    EXPECT_EQ(fake.numSends, 2);
    EXPECT_EQ((*communicator)->wait(9, deadlineIn(1)).message(),
              "rank 1 waits for NCCL ticket 9 out of turn; expected the oldest one");
    EXPECT_EQ((*communicator)->start({2, "kv", {{3, nullptr, 4}}, {}}).status().message(),
              "rank 1 sends to rank 3 in step 2; expected a rank in [0, 3)");
    EXPECT_EQ((*communicator)->start({2, "kv", {}, {{-1, nullptr, 4}}}).status().message(),
              "rank 1 receives from rank -1 in step 2; expected a rank in [0, 3)");
  }
  EXPECT_EQ(fake.numDestroyed, 1);
  EXPECT_EQ(fake.numAborts, 0);
}

TEST(Nccl, JoiningFailsOrLasts) {
  FakeNccl fake;
  fake.init = nccl::kSystemError;
  EXPECT_EQ(fake.join().status().message(), "ncclCommInitRankConfig failed: a fault of this test (the last words)");
  fake.init = nccl::kInProgress;
  fake.state = nccl::kInProgress;
  EXPECT_EQ(fake.join().status().message(),
            "NCCL was not done with rank 1 of 3 joining the other ranks on GPU 0 before the deadline");
  EXPECT_EQ(fake.numAborts, 1);
}

TEST(Nccl, FaultsNameRankStepAndPeers) {
  FakeNccl fake;
  const std::string who = "rank 1 with ranks 0, 2 in step 7 (kv)";
  {
    auto communicator = fake.join();
    fake.send = nccl::kUnhandledCudaError;
    EXPECT_EQ((*communicator)->start(groupOf(8)).status().message(),
              "NCCL failed at " + who + ": a fault of this test (the last words)");
    fake.send = nccl::kSuccess;
    EXPECT_EQ((*communicator)->start(groupOf(8)).status().message(), who + ": the NCCL group was aborted");
  }
  {
    auto communicator = fake.join();
    auto ticket = (*communicator)->start(groupOf(8));
    ASSERT_TRUE(ticket);
    fake.query = cuda::kNotReady;
    EXPECT_EQ((*communicator)->wait(*ticket, deadlineIn(0.01)).message(),
              "NCCL was not done with " + who + " before the deadline");
  }
  {
    auto communicator = fake.join();
    auto ticket = (*communicator)->start(groupOf(8));
    fake.state = nccl::kRemoteError;
    EXPECT_EQ((*communicator)->wait(*ticket, deadlineIn(10)).message(),
              "NCCL failed at " + who + ": a fault of this test (the last words)");
    fake.state = nccl::kSuccess;
  }
  {
    auto communicator = fake.join();
    auto ticket = (*communicator)->start(groupOf(8));
    fake.query = cuda::kIllegalAddress;
    const std::string message = (*communicator)->wait(*ticket, deadlineIn(10)).message();
    EXPECT_EQ(message.substr(0, who.size() + 2), who + ": ") << message;
    fake.query = cuda::kSuccess;
  }
  EXPECT_EQ(fake.numAborts, 4);
}

TEST(Nccl, APortIsReadByOtherGpusAndSaysWhatFailed) {
  FakeNccl fake;
  const auto device = fake.device();
  ASSERT_TRUE(CudaPort::open(device, {0, 2, 1}));
  EXPECT_EQ(fake.readers, (std::vector{2, 1}));
  fake.pool = cuda::kOutOfMemory;
  const std::string message = CudaPort::open(device).status().message();
  EXPECT_NE(message.find("cuMemPoolCreate"), std::string::npos) << message;
}

TEST(Nccl, ACommunicatorOfTheCallerStaysTheCallers) {
  FakeNccl fake;
  {
    auto communicator = NcclCommunicator::adopt(fake.library(), fake.port(), reinterpret_cast<nccl::Comm>(&fake), 1.0);
    ASSERT_TRUE(communicator);
    EXPECT_EQ((*communicator)->rank(), 3);
    EXPECT_EQ((*communicator)->worldSize(), 4);
  }
  EXPECT_EQ(fake.numDestroyed, 0);
  EXPECT_EQ(fake.numAborts, 0);
}

} // namespace
