// The GPUs that a Program was loaded for and the kernels that were compiled for them, kept for the next Executable.
#pragma once

#include "lib/API/cpflex.h"
#include "runtime/Cuda/CudaAttention.h"
#include "runtime/Cuda/CudaProgram.h"
#include "runtime/Executor/RankPrograms.h"

#include <map>
#include <mutex>
#include <tuple>

namespace cpflex {

/// Thread safe. Kernels stay loaded as long as this object.
class CudaPrograms {
public:
  /// The GPU and its compiler, opened on first use.
  StatusOr<CudaMachine> machine(int deviceIndex);

  /// Has machine() give a GPU that the caller has opened.
  void adopt(CudaMachine machine);

  /// The kernels of a functor with these options, compiled on first use. What the compiler and its cache warn of goes
  /// to `log`.
  StatusOr<std::shared_ptr<const CudaProgram>> program(const CudaMachine &machine, const DeviceFunctions &functions,
                                                       const CudaProgramOptions &options, const Log &log);

  /// Those of context-parallel ranks for a functor of this text.
  std::shared_ptr<RankPrograms> rankPrograms(const std::string &text);

private:
  /// Device, functor and everything of the options that decides the kernels.
  using Key = std::tuple<int, std::string, ElementType, int, int, AttentionProblem::Normalization, PositionMode,
                         CudaProgramOptions::Passes>;
  std::mutex mutex_;
  std::map<int, CudaMachine> machines_;
  std::map<Key, std::shared_ptr<const CudaProgram>> programs_;
  std::map<std::string, std::shared_ptr<RankPrograms>> rankPrograms_; ///< by functor
};

} // namespace cpflex
