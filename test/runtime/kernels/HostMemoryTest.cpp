// Is a request that no machine can serve told, and one that every machine can let through?
#include "runtime/contract/HostMemory.h"

#include <gtest/gtest.h>

using namespace cpflex;

TEST(HostMemory, TellsWhatDoesNotFit) {
  EXPECT_TRUE(checkHostMemory("an array", 1 << 25));
  const Status status = checkHostMemory("an array", double(int64_t(1) << 60));
  EXPECT_EQ(status.code(), StatusCode::OutOfMemory);
  EXPECT_EQ(status.message(), "not enough memory for an array: 1152921504606846976 bytes");
  EXPECT_FALSE(checkHostMemory("an array", 1e30));
}
