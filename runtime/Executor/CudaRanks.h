// Context-parallel attention on GPUs over whole host arrays: ranks as threads of this process, or the rank of this
// process alone. What ContextParallelRun.h is for the CPU.
#pragma once

#include "runtime/Comm/NcclCommunicator.h"
#include "runtime/Executor/ContextParallelRun.h"
#include "runtime/Executor/CudaExecutionDevice.h"

#include <vector>

namespace cpflex {

/// What carries messages between the GPUs of one process.
enum class CudaTransport : uint8_t {
  Copies, ///< copy engines, straight from the sender's memory; several ranks may share a GPU
  Nccl,   ///< NCCL; every rank needs a GPU of its own
};

/// Unavailable where there are fewer GPUs than ranks, of which NCCL wants one each.
Status checkGpuForEachRank(size_t numGpus, int32_t worldSize);

/// Runs all ranks as threads of this process, rank r on machines[r % machines.size()]: forward, then backward when
/// `backward` is not null. With NCCL there must be as many machines as ranks. Reports as in runContextParallelHost.
Status runContextParallelCuda(const Schedule &forward, const Schedule *backward, const RankCall &call,
                              const CudaCall &cudaCall, const WholeTensors &tensors,
                              const std::vector<CudaMachine> &machines, CudaTransport transport,
                              const ExecutorOptions &options = {}, std::vector<RunReport> *reports = nullptr);

/// Runs one rank of a job on this process's GPU, through NCCL: every process calls it with the same whole inputs.
/// Results and reports are complete on rank 0, as in runContextParallelRank.
Status runContextParallelCudaRank(const Schedule &forward, const Schedule *backward, const RankCall &call,
                                  const CudaCall &cudaCall, const WholeTensors &tensors, const CudaMachine &machine,
                                  const NcclPlace &place, const ExecutorOptions &options = {},
                                  std::vector<RunReport> *reports = nullptr);

} // namespace cpflex
