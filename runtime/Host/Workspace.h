// Scratch memory of one call, cut into aligned arrays by the same code that measures it.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace cpflex {

/// Hands out consecutive arrays of a block of memory; with a null block it only counts.
class WorkspaceCursor {
public:
  explicit WorkspaceCursor(void *begin) : begin_(static_cast<char *>(begin)) {}

  /// The next `count` elements, aligned to a cache line. Null while counting.
  template <typename T> T *take(int64_t count) {
    T *array = begin_ ? reinterpret_cast<T *>(begin_ + used_) : nullptr;
    used_ += (count * int64_t(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }

  /// Bytes a caller has to provide for what was taken, whatever the alignment of its memory.
  int64_t neededInBytes() const { return used_ + kAlignment; }

  static constexpr int64_t kAlignment = 64;

private:
  char *begin_;
  int64_t used_ = 0;
};

/// The memory of one call: the caller's, or its own until it goes.
class Workspace {
public:
  /// `given` has neededInBytes bytes or is null, then the memory is allocated.
  Workspace(void *given, int64_t neededInBytes) : own_(given ? nullptr : std::malloc(size_t(neededInBytes))) {
    uintptr_t address = reinterpret_cast<uintptr_t>(given ? given : own_);
    constexpr uintptr_t kMask = WorkspaceCursor::kAlignment - 1;
    begin_ = address ? reinterpret_cast<void *>((address + kMask) & ~kMask) : nullptr;
  }
  ~Workspace() { std::free(own_); }
  Workspace(const Workspace &) = delete;
  Workspace &operator=(const Workspace &) = delete;

  /// The aligned begin; null when the system has no such memory.
  void *begin() const { return begin_; }

private:
  void *own_;
  void *begin_;
};

} // namespace cpflex
