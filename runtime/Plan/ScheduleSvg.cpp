// Draws a schedule; see ScheduleText.h. Left the mask's tiles by the rank and step that compute them, right the
// simulated run: one lane per rank, computes above, what it receives below.
#include "runtime/Plan/NeedSets.h"
#include "runtime/Plan/ScheduleText.h"
#include "runtime/Plan/Simulator.h"

#include <algorithm>
#include <fmt/format.h>
#include <iterator>
#include <map>

namespace cpflex {
namespace {

constexpr int64_t kMaxCells = 256;
constexpr double kMapSize = 512.0, kMargin = 40.0, kLaneWidth = 720.0, kLaneHeight = 26.0, kBarHeight = 10.0;

/// Ranks differ in hue, steps in lightness.
std::string colour(int32_t rank, int32_t worldSize, int32_t step) {
  return fmt::format("hsl({},65%,{}%)", 360 * rank / std::max(1, worldSize), std::min(80, 42 + 7 * step));
}

/// The owner of each cell's first row.
std::vector<int32_t> ownersOfCells(const Layout &layout, int64_t numCells, int64_t cell) {
  std::vector<int32_t> owners(size_t(numCells), 0);
  OwnerIndex index(layout, 0);
  for (int64_t i = 0; i < numCells; ++i)
    index.visit({i * cell, i * cell + 1}, [&](int32_t owner, Range) { owners[size_t(i)] = owner; });
  return owners;
}

void drawTiles(std::string &out, const Schedule &schedule, const BlockMask &mask) {
  auto print = std::back_inserter(out);
  const int64_t cellQ = ceilDivide(ceilDivide(mask.qLen, kMaxCells), mask.tileQ) * mask.tileQ;
  const int64_t cellKV = ceilDivide(ceilDivide(mask.kvLen, kMaxCells), mask.tileKV) * mask.tileKV;
  if (cellQ == 0 || cellKV == 0)
    return;
  const int64_t numQ = ceilDivide(mask.qLen, cellQ), numKV = ceilDivide(mask.kvLen, cellKV);
  // When does a rank compute on the keys of an owner, and who computes a query row (not its owner, when heads travel)?
  std::map<std::pair<int32_t, int32_t>, int32_t> stepOf;
  std::map<int32_t, int32_t> rankOf;
  for (const Compute &compute : schedule.computes)
    if (compute.batch.begin == 0 && compute.heads.begin == 0) {
      for (const OwnedRows &rows : compute.kv)
        stepOf.try_emplace({compute.rank, rows.owner}, compute.step);
      for (const OwnedRows &rows : compute.q)
        rankOf.try_emplace(rows.owner, compute.rank);
    }
  const std::vector<int32_t> qOwners = ownersOfCells(schedule.qLayout, numQ, cellQ);
  const std::vector<int32_t> kvOwners = ownersOfCells(schedule.kvLayout, numKV, cellKV);
  const double width = kMapSize / double(numKV), height = kMapSize / double(numQ);
  fmt::format_to(print, "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"#f4f4f4\"/>\n", kMargin, kMargin,
                 kMapSize, kMapSize);
  const TileRows &tiles = mask.rows(0, 0);
  for (int64_t q = 0; q < numQ; ++q) {
    std::vector<uint8_t> isAttended(size_t(numKV), 0);
    for (int64_t tile = q * cellQ / mask.tileQ; tile < std::min(mask.numQTiles(), (q + 1) * cellQ / mask.tileQ); ++tile)
      for (int32_t i = tiles.rowBegin[size_t(tile)]; i < tiles.rowBegin[size_t(tile + 1)]; ++i)
        for (int64_t kv = tiles.runs[size_t(i)].begin * mask.tileKV / cellKV;
             kv < ceilDivide(std::min(mask.kvLen, tiles.runs[size_t(i)].end * mask.tileKV), cellKV); ++kv)
          isAttended[size_t(kv)] = 1;
    const int32_t rank = rankOf.count(qOwners[size_t(q)]) ? rankOf[qOwners[size_t(q)]] : qOwners[size_t(q)];
    for (int64_t kv = 0; kv < numKV;) {
      int64_t end = kv + 1;
      if (isAttended[size_t(kv)]) {
        while (end < numKV && isAttended[size_t(end)] && kvOwners[size_t(end)] == kvOwners[size_t(kv)])
          ++end;
        auto step = stepOf.find({rank, kvOwners[size_t(kv)]});
        fmt::format_to(print, "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\"/>\n",
                       kMargin + double(kv) * width, kMargin + double(q) * height, double(end - kv) * width + 0.1,
                       height + 0.1, colour(rank, schedule.worldSize, step == stepOf.end() ? 0 : step->second));
      }
      kv = end;
    }
  }
  fmt::format_to(print,
                 "<text x=\"{}\" y=\"{}\">keys</text><text x=\"{}\" y=\"{}\" transform=\"rotate(-90 {} {})\">"
                 "queries</text>\n",
                 kMargin, kMargin - 8, kMargin - 10, kMargin + 60, kMargin - 10, kMargin + 60);
}

} // namespace

std::string toSvg(const Schedule &schedule, const BlockMask *mask) {
  const Simulation simulation = simulate(schedule, CostModel());
  const double left = mask ? 2 * kMargin + kMapSize : kMargin;
  const double height = std::max(mask ? kMapSize + 2 * kMargin : 0.0, 2 * kMargin + kLaneHeight * schedule.worldSize);
  const double scale = simulation.seconds > 0.0 ? kLaneWidth / simulation.seconds : 0.0;
  std::string out =
      fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
                  "{1}\" font-family=\"sans-serif\" font-size=\"11\">\n",
                  left + kLaneWidth + kMargin + 50, height);
  auto print = std::back_inserter(out);
  if (mask)
    drawTiles(out, schedule, *mask);
  fmt::format_to(print, "<text x=\"{}\" y=\"{}\">{} {} on {} ranks: {} steps, {:.3f} ms simulated</text>\n", left + 50,
                 kMargin - 8, toString(schedule.rotation), toString(schedule.pass), schedule.worldSize,
                 schedule.numSteps, simulation.seconds * 1e3);
  for (int32_t rank = 0; rank < schedule.worldSize; ++rank)
    fmt::format_to(print, "<text x=\"{}\" y=\"{:.1f}\">rank {}</text>\n", left,
                   kMargin + kLaneHeight * rank + kBarHeight, rank);
  for (const SimulatedEvent &event : simulation.events) {
    const double x = left + 50 + event.begin * scale, width = std::max(0.3, (event.end - event.begin) * scale);
    if (event.isTransfer) {
      const Transfer &transfer = schedule.transfers[size_t(event.index)];
      fmt::format_to(
          print,
          "<rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"6\" fill=\"{}\" opacity=\"0.7\"><title>step "
          "{}: {} from rank {} to {}, {} bytes</title></rect>\n",
          x, kMargin + kLaneHeight * transfer.destination + kBarHeight + 2, width,
          colour(transfer.source, schedule.worldSize, 2), transfer.step, toString(transfer.payload), transfer.source,
          transfer.destination, transfer.sizeInBytes);
    } else {
      const Compute &compute = schedule.computes[size_t(event.index)];
      fmt::format_to(
          print,
          "<rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{}\" fill=\"{}\"><title>step {}: rank {} "
          "computes {:.4g} pairs</title></rect>\n",
          x, kMargin + kLaneHeight * compute.rank, width, kBarHeight,
          colour(compute.rank, schedule.worldSize, compute.step), compute.step, compute.rank, compute.work);
    }
  }
  out += "</svg>\n";
  return out;
}

} // namespace cpflex
