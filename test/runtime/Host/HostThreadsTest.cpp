// HostThreads runs every task once, whatever the number of threads, again and again.
#include "runtime/Host/HostThreads.h"

#include <atomic>
#include <gtest/gtest.h>

using namespace cpflex;

namespace {

TEST(HostThreads, RunsEveryTaskOnceInEveryRun) {
  for (int numThreads : {1, 2, 5}) {
    HostThreads threads(numThreads);
    EXPECT_EQ(threads.numThreads(), numThreads);
    for (int64_t numTasks : {0, 1, 3, 1000, 7}) {
      std::vector<std::atomic<int>> runs(numTasks);
      std::atomic<bool> isThreadInRange = true;
      threads.run(numTasks, [&](int64_t index, int thread) {
        ++runs[index];
        if (thread < 0 || thread >= numThreads)
          isThreadInRange = false;
      });
      EXPECT_TRUE(isThreadInRange);
      for (std::atomic<int> &count : runs)
        EXPECT_EQ(count, 1);
    }
  }
}

TEST(HostThreads, ZeroMeansOnePerHardwareThread) {
  EXPECT_EQ(resolvedNumThreads(0), std::max(1, int(std::thread::hardware_concurrency())));
  EXPECT_EQ(resolvedNumThreads(3), 3);
}

} // namespace
