// Reading and writing whole files; see WholeFile.h.
#include "runtime/Files/WholeFile.h"

#include "runtime/contract/HostMemory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace cpflex {

namespace {

namespace fs = std::filesystem;

/// Closes its descriptor, unless it was closed in order to hear of errors.
class OpenFile {
public:
  explicit OpenFile(int descriptor) : descriptor_(descriptor) {}
  OpenFile(const OpenFile &) = delete;
  OpenFile &operator=(const OpenFile &) = delete;
  ~OpenFile() {
    if (descriptor_ >= 0)
      ::close(descriptor_);
  }
  bool isOpen() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }

  bool write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR)
        continue;
      if (count <= 0)
        return false;
      bytes.remove_prefix(size_t(count));
    }
    return true;
  }
  bool close() { return ::close(std::exchange(descriptor_, -1)) == 0; }

private:
  int descriptor_;
};

/// What a path names once its links are followed.
struct Target {
  fs::path path;                    ///< not a link
  std::optional<int> ownDescriptor; ///< the open file of this process that the path stands for
};

// The descriptor N of '/proc/<this process>/fd/N'. Its link must not be followed: it tells the name that the file had
// when it was opened, and a pipe has none.
std::optional<int> ownDescriptorOf(const fs::path &link) {
  std::error_code error;
  const fs::path parent = link.has_parent_path() ? link.parent_path() : fs::path(".");
  if (fs::canonical(parent, error) != fs::path(fmt::format("/proc/{}/fd", ::getpid())))
    return std::nullopt;
  const std::string name = link.filename();
  int descriptor = -1;
  auto [end, code] = std::from_chars(name.data(), name.data() + name.size(), descriptor);
  return code == std::errc() && end == name.data() + name.size() ? std::optional(descriptor) : std::nullopt;
}

// The last link may name a file that is not there yet: it is the one to be made.
Target followLinks(fs::path path) {
  constexpr int kMostLinks = 40; // as many as the kernel follows
  std::error_code error;
  for (int i = 0; i < kMostLinks && fs::is_symlink(fs::symlink_status(path, error)); ++i) {
    if (std::optional<int> descriptor = ownDescriptorOf(path))
      return {path, descriptor};
    const fs::path next = fs::read_symlink(path, error);
    if (error)
      break;
    path = next.is_absolute() ? next : path.parent_path() / next;
  }
  return {path, std::nullopt};
}

using Pieces = std::initializer_list<std::string_view>;

bool writeAll(OpenFile &file, Pieces pieces) {
  for (std::string_view piece : pieces)
    if (!file.write(piece))
      return false;
  return true;
}

// False, with `errno` set, when a step fails.
bool writeStraight(int descriptor, Pieces pieces) {
  OpenFile file(descriptor);
  return file.isOpen() && writeAll(file, pieces) && file.close();
}

// `before` is the regular file of that name, if there is one.
bool writeBeside(const fs::path &path, const struct stat *before, Pieces pieces) {
  // Who may not write the file may not replace it either.
  if (before && ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) != 0)
    return false;
  constexpr mode_t kModeOfNewFiles = 0666, kPermissions = 0777;
  constexpr int kMostTries = 1000; // other threads, and what died processes of this number left
  fs::path aside;
  int descriptor = -1;
  for (int i = 0; i < kMostTries && descriptor < 0; ++i) {
    aside = path.parent_path() / fmt::format(".cpflex-{}-{}.part", ::getpid(), i);
    descriptor = ::open(aside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kModeOfNewFiles);
    if (descriptor < 0 && errno != EEXIST)
      return false;
  }
  OpenFile file(descriptor);
  if (!file.isOpen())
    return false;
  // Only root can keep another owner; everyone else owns what they wrote.
  const bool isOwnerKept = before && ::fchown(descriptor, before->st_uid, before->st_gid) == 0;
  (void)isOwnerKept;
  if ((!before || ::fchmod(descriptor, before->st_mode & kPermissions) == 0) && writeAll(file, pieces) &&
      file.close() && ::rename(aside.c_str(), path.c_str()) == 0)
    return true;
  const int error = errno;
  ::unlink(aside.c_str());
  errno = error;
  return false;
}

bool writePieces(const std::string &path, Pieces pieces) {
  const Target target = followLinks(path);
  if (target.ownDescriptor)
    return writeStraight(::fcntl(*target.ownDescriptor, F_DUPFD_CLOEXEC, 0), pieces);
  struct stat before{};
  const bool exists = ::stat(target.path.c_str(), &before) == 0;
  if (!exists && errno != ENOENT)
    return false;
  if (exists && !S_ISREG(before.st_mode))
    return writeStraight(::open(target.path.c_str(), O_WRONLY | O_CLOEXEC), pieces);
  return writeBeside(target.path, exists ? &before : nullptr, pieces);
}

} // namespace

Status writeFile(const std::string &path, Pieces pieces) {
  return writePieces(path, pieces)
             ? Status::ok()
             : Status::unavailable(fmt::format("cannot write '{}': {}", path, std::strerror(errno)));
}

Status writeFile(const std::string &path, std::string_view contents) { return writeFile(path, {contents}); }

StatusOr<FileReader> FileReader::open(const std::string &path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat file{};
  if (descriptor < 0 || ::fstat(descriptor, &file) != 0)
    return Status::unavailable(fmt::format("cannot open '{}': {}", path, std::strerror(errno)));
  FileReader reader(path, descriptor);
  if (S_ISBLK(file.st_mode) || (S_ISCHR(file.st_mode) && !::isatty(descriptor)))
    return Status::unavailable(fmt::format("'{}' is a device; expected a file or a pipe", path));
  return reader;
}

FileReader::FileReader(FileReader &&other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

FileReader::~FileReader() {
  if (descriptor_ >= 0)
    ::close(descriptor_);
}

template <typename Bytes> Status FileReader::readUpTo(Bytes &contents, size_t size) {
  constexpr size_t kLeastGrowth = 1 << 16;
  size_t count = contents.size();
  ssize_t got = 1;
  while (count < size && got != 0) {
    // What a header promises need not be there: memory grows with what was read, twofold.
    if (count == contents.size()) {
      const size_t grown = std::min(size, count + std::max(count, kLeastGrowth));
      CPFLEX_RETURN_IF_ERROR(checkHostMemory(fmt::format("'{}'", path_), double(grown)));
      contents.resize(grown);
    }
    got = ::read(descriptor_, contents.data() + count, contents.size() - count);
    if (got < 0 && errno != EINTR)
      return Status::unavailable(fmt::format("cannot read '{}': {}", path_, std::strerror(errno)));
    count += size_t(std::max<ssize_t>(got, 0));
  }
  contents.resize(count);
  return Status::ok();
}

template Status FileReader::readUpTo(std::string &contents, size_t size);
template Status FileReader::readUpTo(std::vector<char> &contents, size_t size);

StatusOr<std::string> readFile(const std::string &path, size_t mostBytes) {
  StatusOr<FileReader> reader = FileReader::open(path);
  if (!reader)
    return reader.status();
  std::string contents;
  CPFLEX_RETURN_IF_ERROR(reader->readUpTo(contents, mostBytes));
  return contents;
}

} // namespace cpflex
