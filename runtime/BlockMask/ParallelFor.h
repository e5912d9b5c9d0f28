// How is work shared between a few threads? Tasks are taken in order by whoever is free.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace cpflex {

/// Calls task(i) for each i in [0, count), on up to `threads` threads including the caller's;
/// returns when all are done.
template <typename Task> void parallelFor(int64_t count, int threads, const Task &task) {
  std::atomic<int64_t> next = 0;
  auto work = [&] {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1))
      task(i);
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i)
    others.emplace_back(work);
  work();
  for (std::thread &other : others)
    other.join();
}

} // namespace cpflex
