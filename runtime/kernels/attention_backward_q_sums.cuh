// dQ from the sums that attention_backward_fused_wgmma.cuh left: scaled, converted, written row by row. A query tile
// that no block has added to gets zeros.
#pragma once

#include "runtime/kernels/backward.cuh"

namespace cpflex::kernels {

template <class Config, class Program>
__device__ __forceinline__ void attentionBackwardQSums(const BackwardArguments &arguments,
                                                       const typename Program::Captures &) {
  using Element = typename Config::Element;
  constexpr int kChunks = Config::kHeadDim / kSumsChunk, kRowsAtOnce = Config::kThreads / 8;
  int numTiles = ceilDivide(arguments.qLen, Config::kTileQ);
  int numItems = arguments.batch * arguments.qHeads * numTiles;
  float scale = arguments.scale;
  for (int item = blockIdx.x; item < numItems; item += gridDim.x) {
    int pair = item / numTiles, firstRow = item % numTiles * Config::kTileQ;
    bool hasSums = arguments.querySums.turns[item] != 0;
    const float *sums = arguments.querySums.sums + item * sumsPerTile(Config::kTileQ, Config::kHeadDim);
    void *out = outputSlice<Config::kOutputIsF32>(arguments.dQ, pair / arguments.qHeads, pair % arguments.qHeads);
#pragma unroll 4
    for (int row = threadIdx.x / 8; row < Config::kTileQ; row += kRowsAtOnce)
#pragma unroll
      for (int first = 0; first < kChunks; first += 8) {
        int chunk = first + threadIdx.x % 8;
        if (firstRow + row >= arguments.qLen || chunk >= kChunks)
          continue;
        float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
        if (hasSums) {
          const float4 *words = reinterpret_cast<const float4 *>(
              sums + (first / 8 * Config::kTileQ + row) * kSumsColumns + sumsChunk(row, chunk % 8) * kSumsChunk);
          low = words[0], high = words[1];
        }
        long long offset = (firstRow + row) * arguments.dQ.strideS + chunk * kSumsChunk;
        if constexpr (Config::kOutputIsF32) {
          float4 *words = reinterpret_cast<float4 *>(static_cast<float *>(out) + offset);
          words[0] = make_float4(low.x * scale, low.y * scale, low.z * scale, low.w * scale);
          words[1] = make_float4(high.x * scale, high.y * scale, high.z * scale, high.w * scale);
        } else {
          *reinterpret_cast<uint4 *>(static_cast<unsigned short *>(out) + offset) =
              make_uint4(Element::pack(low.x * scale, low.y * scale), Element::pack(low.z * scale, low.w * scale),
                         Element::pack(high.x * scale, high.y * scale), Element::pack(high.z * scale, high.w * scale));
        }
      }
  }
}

} // namespace cpflex::kernels
