// Does a call at 131,072 tokens need the memory that is stated: the caller's tensors and the workspace, and nothing
// that grows with pairs of tokens? The kernel's account of a child process is the witness.
#include "lib/API/cpflex.h"
#include "runtime/BlockMask/BlockMaskStatistics.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

using namespace cpflex;

namespace {

constexpr int64_t kLength = 131072;
/// Beside the workspace: stacks of threads and what the allocator keeps.
constexpr int64_t kSlackInBytes = int64_t(8) << 20;

/// A line of /proc/self/status in bytes, -1 when it is not there.
int64_t memoryLine(const std::string &name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(name + ":"))
      return std::stoll(line.substr(name.size() + 1)) * 1024;
  return -1;
}

/// Sets the peak back to what is in memory; false where the kernel has no such file.
bool resetPeak() { return bool(std::ofstream("/proc/self/clear_refs") << "5" << std::flush); }

struct Job {
  int64_t headDim;
  CallPasses passes;
};

struct Measured {
  int64_t grownInBytes = -1; ///< peak during the call beyond what was in memory before
  int64_t workspaceInBytes = 0;
  int64_t maskInBytes = 0;
};

/// Runs a job; all of the caller's memory is touched before it is measured.
Measured measure(const Job &job) {
  CompileOptions options;
  options.cacheDir = "";
  const auto program = compileText("test.cpf",
                                   "from cpflex.std import causal\n@mask\ndef near(b, h, q, kv):\n"
                                   "    return q - kv < 256\nattention(\"a\", mask=near & causal)\n",
                                   options)
                           .program;
  const EntryPoint &entry = program->entries()[0];
  const auto binding = Binding::create(*program, {.sizes = {.qLen = kLength}});
  const auto mask = buildBlockMask(*program, entry, **binding, /*tileQ=*/128, /*tileKV=*/128, /*threads=*/1);
  LoadOptions load{.headDim = job.headDim, .passes = job.passes, .numThreads = 2};
  const auto executable =
      Executable::load(program, entry, *binding, std::make_shared<const BlockMask>(mask->mask), load);
  std::vector<float> memory[9];
  auto tensor = [&, next = 0](int64_t columns) mutable {
    std::vector<float> &values = memory[next++];
    values.assign(size_t(kLength * columns), 0.5f);
    return CallTensor{.data = values.data(),
                      .type = ElementType::F32,
                      .shape = {1, 1, kLength, columns},
                      .strides = {kLength * columns, kLength * columns, columns, 1},
                      .device = {}};
  };
  ForwardCallTensors forward;
  for (CallTensor *given : {&forward.q, &forward.k, &forward.v, &forward.out})
    *given = tensor(job.headDim);
  forward.lse = tensor(1);
  BackwardCallTensors backward;
  backward.q = forward.q, backward.k = forward.k, backward.v = forward.v, backward.out = forward.out;
  backward.lse = forward.lse;
  const bool isBackward = job.passes == CallPasses::ForwardAndBackward;
  if (isBackward)
    for (CallTensor *given : {&backward.dOut, &backward.dQ, &backward.dK, &backward.dV})
      *given = tensor(job.headDim);

  if (isBackward && !(*executable)->forward(forward, nullptr, 0))
    return {};
  const int64_t before = memoryLine("VmRSS");
  if (!resetPeak())
    return {};
  const Status status =
      isBackward ? (*executable)->backward(backward, nullptr, 0) : (*executable)->forward(forward, nullptr, 0);
  if (!status)
    return {};
  const auto pass = isBackward ? Executable::Pass::Backward : Executable::Pass::Forward;
  return {memoryLine("VmHWM") - before, (*executable)->workspaceInBytes(pass), sizeInBytes(mask->mask)};
}

/// In a process of its own, so that nothing else is in its account.
Measured measureInChild(const Job &job) {
  int ends[2];
  Measured measured;
  if (pipe(ends) != 0)
    return measured;
  const pid_t child = fork();
  if (child == 0) {
    const Measured seen = measure(job);
    _exit(write(ends[1], &seen, sizeof seen) == ssize_t(sizeof seen) ? 0 : 1);
  }
  close(ends[1]);
  if (read(ends[0], &measured, sizeof measured) != ssize_t(sizeof measured))
    measured = {};
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return measured;
}

TEST(PeakMemory, ForwardNeedsItsWorkspace) {
  const Measured seen = measureInChild({.headDim = 128, .passes = CallPasses::Forward});
  ASSERT_GE(seen.grownInBytes, 0) << "/proc/self/clear_refs cannot be written, or the call failed";
  EXPECT_LE(seen.grownInBytes, seen.workspaceInBytes + kSlackInBytes);
  // docs/api.md states these figures.
  EXPECT_LE(seen.workspaceInBytes, int64_t(2.1 * (1 << 20)));
  EXPECT_LE(seen.maskInBytes, 64 << 10);
}

TEST(PeakMemory, BackwardNeedsItsWorkspace) {
  constexpr int64_t kHeadDim = 16, kMostCopies = 8;
  const Measured seen = measureInChild({.headDim = kHeadDim, .passes = CallPasses::ForwardAndBackward});
  ASSERT_GE(seen.grownInBytes, 0) << "/proc/self/clear_refs cannot be written, or the call failed";
  EXPECT_LE(seen.grownInBytes, seen.workspaceInBytes + kSlackInBytes);
  EXPECT_LE(seen.workspaceInBytes, kMostCopies * kLength * kHeadDim * int64_t(sizeof(float)) + kSlackInBytes);
}

} // namespace
