// The compiled kernels that ranks of one process share: which of them exist, so that each is compiled once.
#pragma once

#include "runtime/Cuda/CudaAttention.h"
#include "runtime/Cuda/CudaExecutable.h"
#include "runtime/contract/DeviceFunctions.h"

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace cpflex {

/// The kernels of partial_rows.cuh on one GPU. Shared freely between threads.
class PartialRowKernels {
public:
  static StatusOr<std::shared_ptr<const PartialRowKernels>> create(const CudaMachine &machine);
  /// The text of the module, for compiling ahead and tests. Needs no GPU.
  static KernelSource source(int computeCapability);
  ~PartialRowKernels();
  PartialRowKernels(const PartialRowKernels &) = delete;

  cuda::Function copyRows = nullptr, addRows = nullptr, convertRows = nullptr, mergePartials = nullptr,
                 rowTerms = nullptr;

private:
  explicit PartialRowKernels(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  std::shared_ptr<const CudaDevice> device_;
  cuda::Module module_ = nullptr;
};

/// The kernels of ranks for one functor, by GPU, kept from call to call and shared by them. Thread safe.
class RankPrograms {
public:
  /// The kernels that move and merge rows, loaded at the first request.
  StatusOr<std::shared_ptr<const PartialRowKernels>> rowKernels(const CudaMachine &machine);
  /// The program with these options, made at the first request. Warnings of its making are added to `warnings`.
  StatusOr<std::shared_ptr<const CudaProgram>> get(const CudaMachine &machine, const DeviceFunctions &functions,
                                                   const CudaProgramOptions &options,
                                                   std::vector<std::string> &warnings);

private:
  std::mutex mutex_;
  std::map<int, std::shared_ptr<const PartialRowKernels>> rowKernels_; ///< by index of the GPU
  std::vector<std::pair<CudaProgramOptions, std::shared_ptr<const CudaProgram>>> programs_;
};

} // namespace cpflex
