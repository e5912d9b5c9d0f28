// Do arrays survive a round trip through `.npy` files, and is every damaged file told?
#include "runtime/Files/Npy.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace cpflex;

namespace {

std::string pathOf(const char *name) { return (std::filesystem::temp_directory_path() / name).string(); }

std::string withHeader(const std::string &header, const std::string &data) {
  std::string file("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() & 0xff);
  file += static_cast<char>(header.size() >> 8);
  return file + header + data;
}

void expectMessage(const std::string &contents, const std::string &part) {
  const std::string path = pathOf("cpflex-npy-test.npy");
  ASSERT_TRUE(writeFile(path, contents).isOk());
  StatusOr<Array> array = readNpy(path);
  ASSERT_FALSE(array.isOk());
  EXPECT_NE(array.status().message().find(part), std::string::npos) << array.status().message();
}

TEST(Npy, RoundTrip) {
  Array array{ElementType::I32, {2, 3}, std::vector<char>(24)};
  for (int i = 0; i < 6; ++i)
    std::memcpy(&array.bytes[i * 4], &i, 4);
  const std::string path = pathOf("cpflex-npy-round-trip.npy");
  ASSERT_TRUE(writeNpy(path, array).isOk());
  StatusOr<Array> read = readNpy(path);
  ASSERT_TRUE(read.isOk()) << read.status().message();
  EXPECT_EQ(read->type, ElementType::I32);
  EXPECT_EQ(read->shape, array.shape);
  EXPECT_EQ(read->bytes, array.bytes);
}

TEST(Npy, FortranOrderBecomesCOrder) {
  const std::string path = pathOf("cpflex-npy-fortran.npy");
  ASSERT_TRUE(writeFile(path, withHeader("{'descr': '|i1', 'fortran_order': True, 'shape': (2, 3), }\n",
                                         std::string("\0\3\1\4\2\5", 6)))
                  .isOk());
  StatusOr<Array> read = readNpy(path);
  ASSERT_TRUE(read.isOk()) << read.status().message();
  for (int i = 0; i < 6; ++i)
    EXPECT_EQ(read->bytes[i], i);
}

TEST(Npy, DoubleIsReadAsFloat) {
  const double value = 1.5;
  const std::string path = pathOf("cpflex-npy-double.npy");
  ASSERT_TRUE(writeFile(path, withHeader("{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n",
                                         std::string(reinterpret_cast<const char *>(&value), 8)))
                  .isOk());
  StatusOr<Array> read = readNpy(path);
  ASSERT_TRUE(read.isOk()) << read.status().message();
  float narrow;
  std::memcpy(&narrow, read->bytes.data(), 4);
  EXPECT_EQ(narrow, 1.5f);
  EXPECT_EQ(read->numElements(), 1);
}

TEST(Npy, DamagedFilesAreErrors) {
  expectMessage("hello, world", "it does not begin with the .npy signature");
  expectMessage(std::string("\x93NUMPY\x09\x00\x10\x00\x00\x00\x00\x00", 14), "its version is 9; expected 1, 2 or 3");
  expectMessage(std::string("\x93NUMPY\x01\x00\x10\x00", 10), "it ends inside the header");
  expectMessage(std::string("\x93NUMPY\x02\x00\xff\xff\xff\x7f", 12),
                "its header has 2147483647 bytes; expected at most 1048576");
  expectMessage(withHeader("{'shape': (2,)}", ""), "its header is damaged");
  for (const char *shape : {"(-4,)", "('4',)", "(4.5,)", "(4 5,)"})
    expectMessage(withHeader(std::string("{'descr': '<i4', 'fortran_order': False, 'shape': ") + shape + ", }", ""),
                  "its header is damaged");
  expectMessage(withHeader("{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }", ""),
                "its element type is '<c8'");
  expectMessage(withHeader("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }", "1234"),
                "it holds 4 bytes of data; its shape needs 2 elements of 4 bytes");
  expectMessage(withHeader("{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999,99999999999), }", "1234"),
                "its shape has more elements than memory can hold");
  expectMessage(withHeader("{'descr': '<i4', 'fortran_order': False, 'shape': (281474976710656,16384), }", "1234"),
                "its shape has more elements than memory can hold");
}

TEST(Npy, NothingIsReadBehindTheArray) {
  const std::string path = pathOf("cpflex-npy-pipe.npy");
  std::filesystem::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  ::signal(SIGPIPE, SIG_IGN);
  std::thread writer([&] {
    const int pipe = ::open(path.c_str(), O_WRONLY);
    const std::string begin = withHeader("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }", "12345678");
    while (::write(pipe, begin.data(), begin.size()) > 0) {
    }
    ::close(pipe);
  });
  StatusOr<Array> array = readNpy(path);
  writer.join();
  std::filesystem::remove(path);
  ASSERT_TRUE(array.isOk()) << array.status().message();
  EXPECT_EQ(std::string(array->bytes.begin(), array->bytes.end()), "12345678");
}

TEST(Npy, MissingFileAndFolderAreErrors) {
  EXPECT_NE(readNpy(pathOf("no-such-file.npy")).status().message().find("cannot open"), std::string::npos);
  EXPECT_NE(writeFile(pathOf("no-such-folder/x"), "x").message().find("cannot write"), std::string::npos);
}

} // namespace
