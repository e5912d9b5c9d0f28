// The certificate of a schedule for people, as comment lines that `cp` text may start with; see ScheduleText.h.
#include "runtime/Plan/Planner.h"
#include "runtime/Plan/ScheduleText.h"

#include <algorithm>
#include <fmt/format.h>
#include <iterator>
#include <numeric>

namespace cpflex {
namespace {

/// Ranks listed one by one at most; the rest is in the text form.
constexpr size_t kMaxListedRanks = 16;

std::string sizeText(double bytes) {
  constexpr const char *kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024.0 && unit + 1 < std::size(kUnits); ++unit)
    bytes /= 1024.0;
  return fmt::format("{:.4g} {}", bytes, kUnits[unit]);
}

} // namespace

std::string toSummary(const Schedule &schedule) {
  const Certificate &certificate = schedule.certificate;
  double total = 0.0, maxWork = 0.0, received = 0.0, needed = 0.0;
  for (const RankLoad &load : certificate.ranks) {
    total += load.work;
    maxWork = std::max(maxWork, load.work);
    received += double(load.bytesReceived);
    needed += double(load.bytesNeeded);
  }
  const double mean = total / double(std::max<size_t>(1, certificate.ranks.size()));
  std::string out;
  auto print = std::back_inserter(out);
  fmt::format_to(print, "// {}: layout {}, rotation {}, {} ranks, {} steps, {} transfers\n", toString(schedule.pass),
                 toString(schedule.qLayout.kind), toString(schedule.rotation), schedule.worldSize, schedule.numSteps,
                 schedule.transfers.size());
  fmt::format_to(print, "// work: max/mean {:.4f}, largest {:.4g} pairs, lower bound {:.4g}\n",
                 mean > 0.0 ? maxWork / mean : 1.0, maxWork, certificate.workBound);
  fmt::format_to(print, "// received: {} in all; exact minimum of this layout {}; lower bound of any layout {}\n",
                 sizeText(received), sizeText(needed), sizeText(double(certificate.receivedBound)));
  fmt::format_to(print, "// predicted: {:.4g} ms by the cost model\n", certificate.predictedSeconds * 1e3);
  std::vector<size_t> order(certificate.ranks.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    int64_t bytesA = certificate.ranks[a].bytesReceived, bytesB = certificate.ranks[b].bytesReceived;
    return bytesA != bytesB ? bytesA > bytesB : a < b;
  });
  fmt::format_to(print, "// {:>6} {:>12} {:>12} {:>12} {:>12} {:>12}   (ranks that receive most first)\n", "rank",
                 "work", "sent", "received", "minimum", "peak");
  for (size_t i = 0; i < std::min(order.size(), kMaxListedRanks); ++i) {
    const RankLoad &load = certificate.ranks[order[i]];
    fmt::format_to(print, "// {:>6} {:>12.4g} {:>12} {:>12} {:>12} {:>12}\n", order[i], load.work,
                   sizeText(double(load.bytesSent)), sizeText(double(load.bytesReceived)),
                   sizeText(double(load.bytesNeeded)), sizeText(double(load.peakBytes)));
  }
  if (order.size() > kMaxListedRanks)
    fmt::format_to(print, "// and {} more ranks\n", order.size() - kMaxListedRanks);
  return out;
}

} // namespace cpflex
