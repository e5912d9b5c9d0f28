// Opens GPUs and compiles kernels once for each Program.
#include "lib/API/CudaPrograms.h"

#include <fmt/format.h>

#include <chrono>

namespace cpflex {

StatusOr<CudaMachine> CudaPrograms::machine(int deviceIndex) {
  std::lock_guard lock(mutex_);
  if (auto found = machines_.find(deviceIndex); found != machines_.end())
    return found->second;
  StatusOr<CudaMachine> opened = CudaMachine::open(deviceIndex);
  if (opened)
    machines_.emplace(deviceIndex, *opened);
  return opened;
}

void CudaPrograms::adopt(CudaMachine machine) {
  std::lock_guard lock(mutex_);
  const int deviceIndex = machine.device->description().index;
  machines_.insert_or_assign(deviceIndex, std::move(machine));
}

StatusOr<std::shared_ptr<const CudaProgram>> CudaPrograms::program(const CudaMachine &machine,
                                                                   const DeviceFunctions &functions,
                                                                   const CudaProgramOptions &options, const Log &log) {
  const Key key(machine.device->description().index, functions.text, options.element, options.headDim, options.vHeadDim,
                options.normalization, options.positions, options.passes);
  std::lock_guard lock(mutex_);
  if (auto found = programs_.find(key); found != programs_.end())
    return found->second;
  const auto begin = std::chrono::steady_clock::now();
  auto created = CudaProgram::create(machine.device, machine.toolchain, functions, options);
  if (!created)
    return created.status();
  const double milliseconds =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  for (const std::string &warning : (*created)->warnings())
    log.write(LogLevel::Warning, [&] { return warning; });
  log.write(LogLevel::Info, [&] {
    return fmt::format("{} kernels for cuda:{} in {:.1f} ms", (*created)->kernels().size(),
                       machine.device->description().index, milliseconds);
  });
  programs_.emplace(key, *created);
  return *created;
}

std::shared_ptr<RankPrograms> CudaPrograms::rankPrograms(const std::string &text) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<RankPrograms> &programs = rankPrograms_[text];
  if (!programs)
    programs = std::make_shared<RankPrograms>();
  return programs;
}

} // namespace cpflex
