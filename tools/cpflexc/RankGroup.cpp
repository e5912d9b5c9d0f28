// Choosing devices and transports for the ranks of one call; see RankGroup.h.
#include "tools/cpflexc/RankGroup.h"

#include "runtime/Comm/MpiCommunicator.h"
#include "runtime/Comm/Rendezvous.h"
#include "runtime/Comm/ThreadsCommunicator.h"
#include "runtime/Executor/CudaRanks.h"

#include <fmt/format.h>

#include <cstring>
#include <optional>
#include <thread>

namespace cpflex {

namespace {

/// The plans of one call for a number of ranks.
struct RankPlans {
  Schedule forward;
  std::optional<Schedule> backward;
  const Schedule *backwardOrNull() const { return backward ? &*backward : nullptr; }
};

StatusOr<RankPlans> planRanks(const Options &options, const AttentionCall &call, int32_t worldSize) {
  const AttentionProblem &problem = call.problem;
  const CallShape shape = {.batch = problem.batch,
                           .qHeads = problem.qHeads,
                           .kvHeads = problem.kvHeads,
                           .qLen = problem.qLen,
                           .kvLen = problem.kvLen,
                           .headDim = problem.headDim,
                           .vHeadDim = problem.vHeadDim,
                           .type = call.type};
  PlanRequest request = planRequest(options, shape, problem.mask);
  request.worldSize = worldSize;
  RankPlans plans;
  StatusOr<Schedule> forward = planContextParallel(request);
  if (!forward)
    return forward.status();
  plans.forward = std::move(*forward);
  if (!call.isBackward)
    return plans;
  StatusOr<Schedule> backward = planBackward(request, plans.forward);
  if (!backward)
    return backward.status();
  plans.backward = std::move(*backward);
  return plans;
}

ExecutorOptions executorOptions(const Options &options) {
  ExecutorOptions executor;
  executor.deadlineSeconds = options.deadlineSeconds;
  executor.attention.numThreads = 1;
  return executor;
}

StatusOr<CudaCall> cudaCallOf(const AttentionCall &call) {
  StatusOr<DeviceFunctions> functions =
      call.loaded.program->deviceFunctions(*call.loaded.entry, call.binding->bindings());
  if (!functions)
    return functions.status();
  CudaCall result;
  result.functions = *functions;
  result.bindings = &call.binding->bindings();
  result.sink = call.problem.sink;
  result.numSinks = call.problem.qHeads;
  return result;
}

/// The GPUs of this process: the one that the options name, or all.
StatusOr<std::vector<int32_t>> gpusOf(const Options &options) {
  int index = 0;
  isCuda(options, index);
  if (options.device != "cuda")
    return std::vector<int32_t>{index};
  const CudaDeviceList list = listCudaDevices();
  if (list.devices.empty())
    return Status::unavailable(list.whyNone);
  std::vector<int32_t> gpus;
  for (const CudaDeviceDescription &device : list.devices)
    gpus.push_back(device.index);
  return gpus;
}

StatusOr<std::vector<CudaMachine>> machinesOf(const Options &options) {
  StatusOr<std::vector<int32_t>> gpus = gpusOf(options);
  if (!gpus)
    return gpus.status();
  std::vector<CudaMachine> machines;
  for (int32_t each : *gpus) {
    StatusOr<CudaMachine> machine = CudaMachine::open(each);
    if (!machine)
      return machine.status();
    machines.push_back(std::move(*machine));
  }
  return machines;
}

/// Gives all ranks the id of their NCCL group: by the rendezvous that was asked for, or else by MPI where mpirun
/// started the ranks.
Status shareId(const Options &options, const JobPlace &job, nccl::UniqueId &id) {
  std::vector<uint8_t> bytes(sizeof(id.bytes));
  std::memcpy(bytes.data(), id.bytes, sizeof(id.bytes));
  const Deadline deadline = deadlineIn(options.deadlineSeconds);
  if (!options.rendezvous.empty()) {
    StatusOr<Rendezvous> rendezvous = parseRendezvous(options.rendezvous);
    if (!rendezvous)
      return rendezvous.status();
    CPFLEX_RETURN_IF_ERROR(shareBytes(*rendezvous, job.rank, job.worldSize, bytes, deadline));
  } else {
    StatusOr<std::unique_ptr<MpiCommunicator>> mpi = MpiCommunicator::open();
    if (!mpi || (*mpi)->worldSize() != job.worldSize)
      return Status::invalid(
          fmt::format("{} processes and no rendezvous; expected --rendezvous file:PATH or tcp:HOST:PORT, "
                      "or to run under mpirun",
                      job.worldSize));
    MessageGroup group{0, "id", {}, {}};
    const int64_t size = int64_t(bytes.size());
    for (int32_t peer = 1; job.rank == 0 && peer < job.worldSize; ++peer)
      group.sends.push_back({peer, bytes.data(), size});
    if (job.rank != 0)
      group.receives.push_back({0, bytes.data(), size});
    CPFLEX_RETURN_IF_ERROR(exchange(**mpi, group, deadline));
  }
  std::memcpy(id.bytes, bytes.data(), sizeof(id.bytes));
  return Status::ok();
}

/// Throws CommandLineFault when --ranks is not the number of processes that a launcher started.
void checkWorldSize(const Options &options, int32_t worldSize) {
  if (options.ranks >= 0 && options.ranks != worldSize)
    throw CommandLineFault(
        fmt::format("--ranks is {0} and the number of processes is {1}; expected to be started as {0} "
                    "processes (mpirun -n {0}), or no --ranks",
                    options.ranks, worldSize));
}

/// The rank of this process among those that a launcher started, on the GPU that the options name or the launcher
/// implies.
Status runNcclProcess(const Options &options, const JobPlace &job, AttentionCall &call,
                      std::vector<RunReport> *reports) {
  int index = job.localRank;
  if (options.device != "cuda")
    isCuda(options, index);
  StatusOr<CudaMachine> machine = CudaMachine::open(index);
  if (!machine)
    return machine.status();
  StatusOr<std::shared_ptr<const NcclLibrary>> library = NcclLibrary::load();
  if (!library)
    return library.status();
  NcclPlace place{{}, job.rank, job.worldSize};
  if (job.rank == 0) {
    StatusOr<nccl::UniqueId> id = (*library)->newId();
    if (!id)
      return id.status();
    place.id = *id;
  }
  CPFLEX_RETURN_IF_ERROR(shareId(options, job, place.id));
  StatusOr<RankPlans> plans = planRanks(options, call, job.worldSize);
  if (!plans)
    return plans.status();
  StatusOr<CudaCall> cudaCall = cudaCallOf(call);
  if (!cudaCall)
    return cudaCall.status();
  Status status = runContextParallelCudaRank(plans->forward, plans->backwardOrNull(), rankCall(call), *cudaCall,
                                             wholeTensors(call), *machine, place, executorOptions(options), reports);
  if (!options.rendezvous.empty())
    if (StatusOr<Rendezvous> rendezvous = parseRendezvous(options.rendezvous); rendezvous)
      leaveRendezvous(*rendezvous, job.rank);
  return status;
}

Status runOnGpus(const Options &options, AttentionCall &call, std::vector<RunReport> *reports) {
  StatusOr<std::vector<CudaMachine>> machines = machinesOf(options);
  if (!machines)
    return machines.status();
  StatusOr<CudaCall> cudaCall = cudaCallOf(call);
  if (!cudaCall)
    return cudaCall.status();
  StatusOr<RankPlans> plans = planRanks(options, call, rankCount(options));
  if (!plans)
    return plans.status();
  const CudaTransport transport = options.transport == "nccl" ? CudaTransport::Nccl : CudaTransport::Copies;
  return runContextParallelCuda(plans->forward, plans->backwardOrNull(), rankCall(call), *cudaCall, wholeTensors(call),
                                *machines, transport, executorOptions(options), reports);
}

// Ranks on CPUs evaluate residuals; those on GPUs whole masks, so their runs need no numbers.
RankCall hostRankCall(const AttentionCall &call) {
  RankCall rank = rankCall(call);
  rank.residuals = call.loaded.entry->residuals;
  return rank;
}

Status runMpiProcess(const Options &options, AttentionCall &call, bool &isWriter, std::vector<RunReport> *reports) {
  StatusOr<std::unique_ptr<MpiCommunicator>> mpi = MpiCommunicator::open();
  if (!mpi)
    return mpi.status();
  checkWorldSize(options, (*mpi)->worldSize());
  isWriter = (*mpi)->rank() == 0;
  StatusOr<RankPlans> plans = planRanks(options, call, (*mpi)->worldSize());
  if (!plans)
    return plans.status();
  return runContextParallelRank(plans->forward, plans->backwardOrNull(), hostRankCall(call), wholeTensors(call), **mpi,
                                executorOptions(options), reports);
}

} // namespace

StatusOr<std::vector<std::shared_ptr<Communicator>>> openRankGroup(const Options &options, int32_t worldSize) {
  int index = 0;
  std::vector<std::shared_ptr<Communicator>> group(static_cast<size_t>(worldSize));
  if (!isCuda(options, index)) {
    // Each end holds the group with it.
    struct End {
      std::shared_ptr<ThreadsHub> hub;
      ThreadsCommunicator communicator;
    };
    auto hub = std::make_shared<ThreadsHub>(worldSize);
    for (int32_t rank = 0; rank < worldSize; ++rank) {
      auto end = std::make_shared<End>(End{hub, ThreadsCommunicator(*hub, rank)});
      group[size_t(rank)] = {end, &end->communicator};
    }
    return group;
  }
  StatusOr<std::vector<int32_t>> gpus = gpusOf(options);
  if (!gpus)
    return gpus.status();
  if (options.transport != "nccl")
    return openCudaThreads(worldSize, *gpus);
  CPFLEX_RETURN_IF_ERROR(checkGpuForEachRank(gpus->size(), worldSize));
  StatusOr<NcclId> id = newNcclId();
  if (!id)
    return id.status();
  std::vector<Status> statuses(static_cast<size_t>(worldSize));
  std::vector<std::thread> threads; // all ranks join at the same time
  for (int32_t rank = 0; rank < worldSize; ++rank)
    threads.emplace_back([&, rank] {
      auto end = openNcclCommunicator(*id, rank, worldSize, (*gpus)[size_t(rank)], options.deadlineSeconds);
      statuses[size_t(rank)] = end.status();
      if (end)
        group[size_t(rank)] = *end;
    });
  for (std::thread &thread : threads)
    thread.join();
  CPFLEX_RETURN_IF_ERROR(firstFailure(statuses));
  return group;
}

void checkTransport(const Options &options) {
  int index = 0;
  const bool onGpu = isCuda(options, index);
  if (onGpu && options.transport == "mpi")
    throw CommandLineFault("the transport 'mpi' carries host memory; expected 'nccl' or 'threads' on GPUs");
  if (!onGpu && options.transport == "nccl")
    throw CommandLineFault("the transport 'nccl' carries GPU memory; expected --device cuda, or 'mpi' or 'threads'");
  if (options.rendezvous.empty())
    return;
  if (options.transport != "nccl")
    throw CommandLineFault(
        fmt::format("the transport '{}' needs no rendezvous; expected one for 'nccl' only", options.transport));
  if (StatusOr<Rendezvous> rendezvous = parseRendezvous(options.rendezvous); !rendezvous)
    throw CommandLineFault(rendezvous.status().message());
}

Status runRanks(const Options &options, const std::string &trace, AttentionCall &call, bool &isWriter) {
  int index = 0;
  std::vector<RunReport> reports;
  std::vector<RunReport> *wanted = trace.empty() ? nullptr : &reports;
  const std::optional<JobPlace> job = options.transport == "nccl" ? jobPlace() : std::nullopt;
  Status status;
  if (options.transport == "mpi") {
    status = runMpiProcess(options, call, isWriter, wanted);
  } else if (job && job->worldSize > 1) {
    checkWorldSize(options, job->worldSize);
    isWriter = job->rank == 0;
    status = runNcclProcess(options, *job, call, wanted);
  } else if (isCuda(options, index)) {
    status = runOnGpus(options, call, wanted);
  } else {
    StatusOr<RankPlans> plans = planRanks(options, call, rankCount(options));
    status = plans ? runContextParallelHost(plans->forward, plans->backwardOrNull(), hostRankCall(call),
                                            wholeTensors(call), executorOptions(options), wanted)
                   : plans.status();
  }
  CPFLEX_RETURN_IF_ERROR(status);
  return trace.empty() || !isWriter ? Status::ok() : writeFile(trace, toTraceJson(reports));
}

} // namespace cpflex
