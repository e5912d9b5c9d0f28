// Implements HostThreads: workers sleep until a batch of tasks appears and take indices one by one.
#include "runtime/Host/HostThreads.h"

#include <system_error>

namespace cpflex {

int resolvedNumThreads(int requested) {
  if (requested > 0)
    return requested;
  unsigned found = std::thread::hardware_concurrency();
  return found == 0 ? 1 : int(found);
}

HostThreads::HostThreads(int numThreads) {
  int wanted = resolvedNumThreads(numThreads);
  workers_.reserve(wanted - 1);
  for (int thread = 1; thread < wanted; ++thread) {
    // The only exception here is the system's refusal; the threads that exist do all the work.
    try {
      workers_.emplace_back([this, thread] { work(thread); });
    } catch (const std::system_error &) {
      break;
    }
  }
}

HostThreads::~HostThreads() {
  {
    std::lock_guard lock(mutex_);
    isStopping_ = true;
  }
  wake_.notify_all();
  for (std::thread &worker : workers_)
    worker.join();
}

void HostThreads::drain(int thread) {
  while (true) {
    int64_t index;
    {
      std::lock_guard lock(mutex_);
      if (nextTask_ >= numTasks_)
        return;
      index = nextTask_++;
    }
    (*task_)(index, thread);
  }
}

void HostThreads::work(int thread) {
  int64_t seen = 0;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return isStopping_ || generation_ != seen; });
      if (isStopping_)
        return;
      seen = generation_;
    }
    drain(thread);
    std::lock_guard lock(mutex_);
    if (--numBusy_ == 0)
      done_.notify_one();
  }
}

void HostThreads::run(int64_t numTasks, const std::function<void(int64_t, int)> &task) {
  if (workers_.empty() || numTasks <= 1) {
    for (int64_t index = 0; index < numTasks; ++index)
      task(index, /*thread=*/0);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    task_ = &task;
    nextTask_ = 0;
    numTasks_ = numTasks;
    numBusy_ = int(workers_.size());
    ++generation_;
  }
  wake_.notify_all();
  drain(/*thread=*/0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return numBusy_ == 0; });
  task_ = nullptr;
}

} // namespace cpflex
