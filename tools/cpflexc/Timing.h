// How do the benches of cpflexc measure? By the median of wall-clock times.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace cpflex {

using Clock = std::chrono::steady_clock;

inline double millisecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

/// The upper one of the two in the middle where their number is even; 0 of none.
template <typename T> double median(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : double(values[values.size() / 2]);
}

} // namespace cpflex
