// Which kernels are the rows of the table of tiles, and is what the compiler made of one as the table says? For tests
// that compile without a GPU.
#pragma once

#include "runtime/Cuda/CompileKernel.h"
#include "runtime/contract/TileConfig.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cpflex::test {

/// A family on an architecture that it is written for.
struct MatrixTarget {
  KernelFamily family;
  int computeCapability;
};

/// An architecture for each amount of shared memory that the table knows.
inline std::vector<MatrixTarget> targetsWithRows() {
  return {
      {KernelFamily::Wgmma, 90}, {KernelFamily::MmaSync, 80}, {KernelFamily::MmaSync, 86}, {KernelFamily::MmaSync, 90}};
}

/// Further architectures that the compiler writes other code for: as much shared memory as 90, as much as 86.
inline std::vector<MatrixTarget> furtherTargets() {
  return {{KernelFamily::MmaSync, 100}, {KernelFamily::MmaSync, 120}};
}

/// Head sizes of queries and of values: each that the table cuts in another way, and 96.
inline std::vector<std::pair<int, int>> allHeads() {
  return {{64, 64}, {64, 128}, {96, 96}, {128, 128}, {192, 128}, {192, 192}, {256, 256}};
}

/// What the code of one kernel function holds.
struct MachineCode {
  int numWarpgroupProducts = 0; ///< HGMMA
  int numWarpProducts = 0;      ///< HMMA
  int arrayBytes = 0;           ///< that its instructions store to and load from local memory at computed addresses
};

/// Counts instructions of `.text.<function>` in a cubin for sm_80 to sm_120. An instruction has 16 bytes; which one it
/// is stands in its lowest 9 bits (3 more tell the forms of its operands apart), the register of an address in bits 24
/// to 31, the width of an access in bits 73 to 75. Spills lie at fixed distances from register 1, arrays that are
/// indexed do not. The numbers are not documented; they are those of code whose PTX has the instruction and which
/// reports its spills.
inline MachineCode machineCode(const std::vector<char> &cubin, const std::string &function) {
  constexpr uint64_t kOpcodeMask = 0x1ff, kWarpgroupProduct = 0x1f0, kWarpProduct = 0x3c, kStoreLocal = 0x187,
                     kLoadLocal = 0x183, kStackRegister = 1;
  constexpr int kWidths[] = {1, 1, 2, 2, 4, 8, 16, 0};
  constexpr size_t kInstructionBytes = 16, kSectionBytes = 64;
  auto read = [&](size_t at, size_t bytes) {
    uint64_t value = 0;
    if (at + bytes <= cubin.size())
      std::memcpy(&value, cubin.data() + at, bytes);
    return value;
  };
  const size_t sections = read(0x28, 8), numSections = read(0x3c, 2), names = sections + kSectionBytes * read(0x3e, 2);
  MachineCode code;
  for (size_t section = sections; section < sections + kSectionBytes * numSections; section += kSectionBytes) {
    const size_t name = read(names + 0x18, 8) + read(section, 4);
    if (name >= cubin.size() || ".text." + function != std::string_view(cubin.data() + name))
      continue;
    const size_t begin = read(section + 0x18, 8), end = begin + read(section + 0x20, 8);
    for (size_t at = begin; at < end; at += kInstructionBytes) {
      const uint64_t opcode = read(at, 8) & kOpcodeMask;
      code.numWarpgroupProducts += opcode == kWarpgroupProduct;
      code.numWarpProducts += opcode == kWarpProduct;
      const uint64_t base = read(at, 8) >> 24 & 0xff;
      if ((opcode == kStoreLocal || opcode == kLoadLocal) && base != kStackRegister)
        code.arrayBytes += kWidths[read(at + 8, 8) >> 9 & 7];
    }
  }
  return code;
}

/// Compiles a row of the table and compares with what it promises: spills, no arrays in local memory, wgmma that is not
/// serialised, and products by the instructions of its family. At most `spillLimit` bytes may be spilled.
inline void expectWithinRow(const KernelSource &source, const Nvrtc &nvrtc, int spillLimit) {
  StatusOr<KernelImage> image = compileKernel(source, nvrtc);
  ASSERT_TRUE(image) << image.status().message();
  EXPECT_THAT(image->warnings, testing::Each(testing::Not(testing::HasSubstr("C75")))) << "wgmma was serialised";
  EXPECT_LE(image->spillBytes, spillLimit);
  const MachineCode code = machineCode(image->cubin, source.functionName);
  // Spills are all that goes through local memory.
  EXPECT_EQ(code.arrayBytes, 0) << "a local array";
  if (image->spillBytes == 0)
    EXPECT_EQ(image->stackBytes, 0) << "a local array";
  if (!walksTiles(source.spec.role))
    return;
  if (source.spec.family == KernelFamily::Wgmma) {
    EXPECT_GT(code.numWarpgroupProducts, 0) << "no HGMMA";
    EXPECT_EQ(code.numWarpProducts, 0) << "products by HMMA in a kernel of wgmma";
  } else {
    EXPECT_GT(code.numWarpProducts, 0) << "no HMMA";
  }
  testing::Test::RecordProperty("registers", image->registers);
}

} // namespace cpflex::test
