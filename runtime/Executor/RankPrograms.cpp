// Kernels that ranks share; see RankPrograms.h.
#include "runtime/Executor/RankPrograms.h"

#include <algorithm>

namespace cpflex {

StatusOr<std::shared_ptr<const PartialRowKernels>> RankPrograms::rowKernels(const CudaMachine &machine) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<const PartialRowKernels> &kernels = rowKernels_[machine.device->description().index];
  if (kernels)
    return kernels;
  auto created = PartialRowKernels::create(machine);
  if (created)
    kernels = *created;
  return created;
}

StatusOr<std::shared_ptr<const CudaProgram>> RankPrograms::get(const CudaMachine &machine,
                                                               const DeviceFunctions &functions,
                                                               const CudaProgramOptions &options,
                                                               std::vector<std::string> &warnings) {
  const auto isSame = [&](const auto &entry) {
    return entry.first == options && entry.second->device().description().index == machine.device->description().index;
  };
  // Ranks that ask for the same program wait for the first of them.
  std::lock_guard lock(mutex_);
  if (auto found = std::find_if(programs_.begin(), programs_.end(), isSame); found != programs_.end())
    return found->second;
  auto created = CudaProgram::create(machine.device, machine.toolchain, functions, options);
  if (!created)
    return created.status();
  for (const std::string &warning : (*created)->warnings())
    warnings.push_back(warning);
  programs_.push_back({options, *created});
  return *created;
}

} // namespace cpflex
