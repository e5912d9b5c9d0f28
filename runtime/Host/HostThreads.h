// A fixed set of worker threads that runs numbered tasks. It decides who runs a task, never what the task computes:
// callers keep results independent of the assignment.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cpflex {

/// Worker threads that live as long as this object. One caller at a time.
class HostThreads {
public:
  /// Starts numThreads - 1 workers (the caller of run is the last one); 0 means one thread per hardware thread. When
  /// the system refuses a thread, fewer are used.
  explicit HostThreads(int numThreads);
  ~HostThreads();
  HostThreads(const HostThreads &) = delete;
  HostThreads &operator=(const HostThreads &) = delete;

  /// Number of threads that run tasks, the caller included.
  int numThreads() const { return int(workers_.size()) + 1; }

  /// Calls task(index, thread) once for every index in [0, numTasks), lower indices first, thread in [0, numThreads()),
  /// and returns when all are done. A task must not call run.
  void run(int64_t numTasks, const std::function<void(int64_t index, int thread)> &task);

private:
  void work(int thread);
  void drain(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t, int)> *task_ = nullptr;
  int64_t nextTask_ = 0, numTasks_ = 0;
  int64_t generation_ = 0;
  int numBusy_ = 0;
  bool isStopping_ = false;
};

/// The number of threads that `requested` stands for: itself, or one per hardware thread when it is 0 or less.
int resolvedNumThreads(int requested);

} // namespace cpflex
