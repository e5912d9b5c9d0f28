// Packs of documents for benches: lengths drawn from the table of a real corpus, packed in order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

/// Cumulative shares of documents by length (13.46 million documents; lengths are uniform within a bin).
struct LengthBin {
  int64_t length;
  double share;
};
inline constexpr LengthBin kLengths[] = {{200, 0.186},   {500, 0.467},     {1024, 0.714},  {2048, 0.870},
                                         {4096, 0.944},  {8192, 0.974},    {16384, 0.987}, {32768, 0.996},
                                         {65536, 0.997}, {131072, 0.9986}, {196608, 1.0}};

/// One pack: lengths drawn and packed in order, each cut at a quarter of the sequence.
inline std::vector<int64_t> packedDocuments(int64_t length, std::mt19937_64 &random) {
  std::vector<int64_t> offsets = {0};
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  while (offsets.back() < length) {
    double draw = uniform(random);
    size_t bin = 0;
    while (draw > kLengths[bin].share)
      ++bin;
    int64_t low = bin == 0 ? 1 : kLengths[bin - 1].length;
    int64_t size = low + int64_t(uniform(random) * double(kLengths[bin].length - low));
    offsets.push_back(std::min({length, offsets.back() + size, offsets.back() + length / 4}));
  }
  return offsets;
}
