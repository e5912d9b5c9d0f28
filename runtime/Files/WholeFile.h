// How a file's bytes are read and written as a whole, whatever its path names: a regular file, a link, a pipe or a
// device.
#pragma once

#include "runtime/contract/Status.h"

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cpflex {

/// Writes pieces one after the other to `path`. A regular file, or one that is not there yet, appears whole: the bytes
/// go to a file beside it, which then takes the name, and the permissions of a file that was there. A symbolic link
/// stays, and its target is written. What is not a regular file (a device, a pipe, what /dev/stdout or /dev/fd/N stand
/// for) is opened and written straight; a named pipe waits for its reader. Unavailable, with the reason, when a byte
/// cannot be written.
Status writeFile(const std::string &path, std::initializer_list<std::string_view> pieces);
Status writeFile(const std::string &path, std::string_view contents);

/// Reads a file from its beginning: a regular file, a pipe, a socket or a terminal. Other devices are refused, since
/// many never end. One thread at a time.
class FileReader {
public:
  /// Unavailable, with the reason, when there is no such file or it is a device.
  static StatusOr<FileReader> open(const std::string &path);
  FileReader(FileReader &&other) noexcept;
  ~FileReader();

  /// Appends to `contents` until it has `size` bytes or the file ends. Unavailable when a byte cannot be read,
  /// OutOfMemory when the machine cannot hold them.
  template <typename Bytes> Status readUpTo(Bytes &contents, size_t size);

private:
  FileReader(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
};

extern template Status FileReader::readUpTo(std::string &contents, size_t size);
extern template Status FileReader::readUpTo(std::vector<char> &contents, size_t size);

/// Reads a whole file as FileReader does, or its first `mostBytes`.
StatusOr<std::string> readFile(const std::string &path, size_t mostBytes = std::string::npos);

} // namespace cpflex
