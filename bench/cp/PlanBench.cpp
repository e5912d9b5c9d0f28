// How long does planning take, how even and how quiet are the plans? Packed documents from the length table of a real
// corpus, 8,192 tokens per rank, solved layouts beside equal-count longest-first at 512-row chunks. Simulated: nothing
// is sent. Usage: cpflexPlanBench [packs] [ranks ...]
#include "bench/cp/PackedDocuments.h"
#include "runtime/Plan/Layouts.h"
#include "runtime/Plan/Planner.h"
#include "runtime/Plan/Rotations.h"
#include "runtime/Plan/SolvedLayout.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <numeric>
#include <random>

using namespace cpflex;

namespace {

constexpr int64_t kTokensPerRank = 8192;
constexpr int64_t kTile = 128;
constexpr int64_t kChunk = 512;
constexpr uint32_t kSeed = 42;

/// The causal document mask in runs.
BlockMask documentMask(const std::vector<int64_t> &offsets, int64_t length) {
  BlockMask mask;
  mask.qLen = mask.kvLen = length;
  mask.tileQ = mask.tileKV = kTile;
  mask.rowSetOf = {0};
  TileRows rows;
  rows.rowBegin = {0};
  size_t first = 0;
  for (int64_t tile = 0; tile < mask.numQTiles(); ++tile) {
    while (offsets[first + 1] <= tile * kTile)
      ++first;
    // The keys reach back to the start of the first document in the tile; earlier ones end there.
    int32_t begin = int32_t(offsets[first] / kTile);
    bool startsInside = offsets[first] % kTile != 0;
    bool isWhole = offsets[first + 1] >= (tile + 1) * kTile;
    if (begin < tile) {
      int32_t full = startsInside ? begin + 1 : begin;
      if (!isWhole) {
        rows.runs.push_back({begin, int32_t(tile), TileClass::Partial, 0});
      } else {
        if (startsInside)
          rows.runs.push_back({begin, begin + 1, TileClass::Partial, 0});
        if (full < tile)
          rows.runs.push_back({full, int32_t(tile), TileClass::Full, 0});
      }
    }
    rows.runs.push_back({int32_t(tile), int32_t(tile + 1), TileClass::Partial, 0});
    rows.rowBegin.push_back(int32_t(rows.runs.size()));
  }
  mask.rowSets = {std::move(rows)};
  return mask;
}

/// Equal-count longest-first: chunks by falling work, each to the least loaded rank that has room.
Layout longestFirst(const std::vector<double> &tileWork, int64_t length, int32_t worldSize) {
  const int64_t numChunks = length / kChunk, tilesPerChunk = kChunk / kTile;
  std::vector<double> work(size_t(numChunks), 0.0), load(size_t(worldSize), 0.0);
  for (int64_t i = 0; i < numChunks * tilesPerChunk; ++i)
    work[size_t(i / tilesPerChunk)] += tileWork[size_t(i)];
  std::vector<int64_t> order(static_cast<size_t>(numChunks)), count(size_t(worldSize), 0);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return work[size_t(a)] > work[size_t(b)]; });
  Layout layout{LayoutKind::Custom, length, worldSize, 1, std::vector<PositionMap>(size_t(worldSize))};
  std::vector<std::pair<double, int32_t>> heap;
  for (int32_t rank = 0; rank < worldSize; ++rank)
    heap.push_back({0.0, rank});
  auto isLess = [](const auto &a, const auto &b) { return a > b; };
  for (int64_t chunk : order) {
    std::pop_heap(heap.begin(), heap.end(), isLess);
    auto [sum, rank] = heap.back();
    layout.shards[size_t(rank)].pieces.push_back({chunk * kChunk, kChunk, 1});
    if (++count[size_t(rank)] == numChunks / worldSize) {
      heap.pop_back();
    } else {
      heap.back().first = sum + work[size_t(chunk)];
      std::push_heap(heap.begin(), heap.end(), isLess);
    }
  }
  for (PositionMap &map : layout.shards) {
    std::sort(map.pieces.begin(), map.pieces.end(),
              [](const AffinePiece &a, const AffinePiece &b) { return a.begin < b.begin; });
    map = compacted(std::move(map));
  }
  return layout;
}

/// Processor time of this thread: planning uses one, and other work on the machine does not count.
double threadMilliseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) * 1e3 + double(now.tv_nsec) * 1e-6;
}

struct Row {
  double imbalance = 0, mean = 0, worst = 0, milliseconds = 0, predicted = 0;
};

} // namespace

int main(int argc, char **argv) {
  const int numPacks = argc > 1 ? std::atoi(argv[1]) : 20;
  std::vector<int32_t> worldSizes;
  for (int i = 2; i < argc; ++i)
    worldSizes.push_back(std::atoi(argv[i]));
  if (worldSizes.empty())
    worldSizes = {8, 16, 32, 64, 128, 256, 512, 1024};
  std::printf(
      "Planning on packed documents, simulated: %d packs, seed %u, documents cut at a quarter of the sequence,\n"
      "%lld tokens per rank, 64:8 heads of 128, bf16, need sets in tiles of %lld. Traffic as a share of a ring's\n"
      "(ranks - 1) / ranks * tokens; bound: of any layout with equal counts and this balance; plan ms: processor time\n"
      "of one thread.\n\n",
      numPacks, kSeed, (long long)kTokensPerRank, (long long)kTile);
  std::printf("%6s  %-14s %9s %9s %9s %9s %9s %11s %9s\n", "ranks", "layout", "max/mean", "worst im.", "traffic",
              "worst", "plan ms", "bound", "pred ms");
  for (int32_t worldSize : worldSizes) {
    const int64_t length = kTokensPerRank * worldSize;
    std::mt19937_64 random(kSeed);
    Row rows[3];
    double worstImbalance[3] = {}, bound[3] = {}, boundWorst = 0;
    for (int pack = 0; pack < numPacks; ++pack) {
      BlockMask mask = documentMask(packedDocuments(length, random), length);
      PlanRequest request;
      request.shape = {.batch = 1,
                       .qHeads = 64,
                       .kvHeads = 8,
                       .qLen = length,
                       .kvLen = length,
                       .headDim = 128,
                       .vHeadDim = 128,
                       .type = ElementType::BF16};
      request.worldSize = worldSize;
      request.mask = &mask;
      request.rotation = Rotation::Selective;
      const Layout longest = longestFirst(tileWork(request, mask)[0], length, worldSize);
      for (int which = 0; which < 3; ++which) {
        PlanRequest each = request;
        if (which == 0)
          each.qLayout = contiguousLayout(length, worldSize);
        else if (which == 1)
          each.qLayout = longest;
        else
          each.layout = LayoutKind::Solved;
        const double begin = threadMilliseconds();
        Schedule schedule = *planContextParallel(each);
        const double end = threadMilliseconds();
        double total = 0, most = 0, received = 0, mostReceived = 0;
        for (const RankLoad &load : schedule.certificate.ranks) {
          total += load.work;
          most = std::max(most, load.work);
          received += double(load.bytesReceived);
          mostReceived = std::max(mostReceived, double(load.bytesReceived));
        }
        const double ring = double(worldSize - 1) / worldSize * double(length) * 8 * 256 * 2;
        rows[which].imbalance += most * worldSize / total / numPacks;
        worstImbalance[which] = std::max(worstImbalance[which], most * worldSize / total);
        rows[which].mean += received / worldSize / ring / numPacks;
        rows[which].worst += mostReceived / ring / numPacks;
        rows[which].milliseconds += (end - begin) / numPacks;
        rows[which].predicted += schedule.certificate.predictedSeconds * 1e3 / numPacks;
        bound[which] += double(schedule.certificate.receivedBound) / worldSize / ring / numPacks;
        if (which == 2)
          boundWorst += double(schedule.certificate.receivedBoundWorst) / ring / numPacks;
      }
    }
    const char *names[] = {"contiguous", "longest-first", "solved"};
    for (int which = 0; which < 3; ++which)
      std::printf("%6d  %-14s %9.3f %9.3f %9.4f %9.4f %9.2f %11.4f %9.3f\n", worldSize, names[which],
                  rows[which].imbalance, worstImbalance[which], rows[which].mean, rows[which].worst,
                  rows[which].milliseconds, bound[which], rows[which].predicted);
    std::printf("%6s  solved / longest-first: traffic %.3f, worst rank %.3f; solved / bound %.3f, worst rank %.3f;\n"
                "%6s  bound of the worst rank / longest-first %.3f\n",
                "", rows[2].mean / rows[1].mean, rows[2].worst / rows[1].worst, rows[2].mean / bound[2],
                rows[2].worst / boundWorst, "", boundWorst / rows[1].worst);
    std::fflush(stdout);
  }
  return 0;
}
