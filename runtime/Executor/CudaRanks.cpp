// Devices and transports for ranks on GPUs; see CudaRanks.h.
#include "runtime/Executor/CudaRanks.h"
#include "runtime/Comm/CudaThreadsCommunicator.h"
#include "runtime/Comm/ThreadsCommunicator.h"

#include <fmt/format.h>
#include <thread>

namespace cpflex {
namespace {

/// Runs `rank` with a communicator of its own on its device; a rank that fails tells the others.
Status runOn(CudaExecutionDevice &device, Communicator &communicator, const ExecutorOptions &options,
             const std::function<Status(Communicator &, const ExecutorOptions &)> &rank) {
  ExecutorOptions mine = options;
  mine.device = &device;
  Status status = rank(communicator, mine);
  if (!status)
    communicator.abort(status);
  return status;
}

} // namespace

Status checkGpuForEachRank(size_t numGpus, int32_t worldSize) {
  if (int64_t(numGpus) >= worldSize)
    return Status::ok();
  return Status::unavailable(
      fmt::format("{} GPUs for {} ranks; NCCL needs a GPU for each, the transport 'threads' lets "
                  "ranks share one",
                  numGpus, worldSize));
}

Status runContextParallelCuda(const Schedule &forward, const Schedule *backward, const RankCall &call,
                              const CudaCall &cudaCall, const WholeTensors &tensors,
                              const std::vector<CudaMachine> &machines, CudaTransport transport,
                              const ExecutorOptions &options, std::vector<RunReport> *reports) {
  const int32_t worldSize = forward.worldSize;
  if (machines.empty() || transport == CudaTransport::Nccl)
    CPFLEX_RETURN_IF_ERROR(checkGpuForEachRank(machines.size(), worldSize));
  std::shared_ptr<const NcclLibrary> library;
  NcclPlace place{{}, 0, worldSize};
  if (transport == CudaTransport::Nccl) {
    StatusOr<std::shared_ptr<const NcclLibrary>> loaded = NcclLibrary::load();
    if (!loaded)
      return loaded.status();
    library = *loaded;
    StatusOr<nccl::UniqueId> id = library->newId();
    if (!id)
      return id.status();
    place.id = *id;
  }
  std::vector<int> peers;
  for (const CudaMachine &machine : machines)
    peers.push_back(machine.device->description().index);
  if (reports)
    reports->assign(size_t(worldSize), {});
  CudaThreadsHub hub(worldSize);
  std::vector<Status> statuses(static_cast<size_t>(worldSize));
  // Memory that others may still copy from lives until all ranks are done.
  std::vector<std::unique_ptr<CudaExecutionDevice>> devices(static_cast<size_t>(worldSize));
  const auto runRank = [&](int32_t rank) -> Status {
    const CudaMachine &machine = machines[size_t(rank) % machines.size()];
    StatusOr<std::shared_ptr<const CudaPort>> port = CudaPort::open(machine.device, peers);
    if (!port)
      return port.status();
    StatusOr<std::unique_ptr<CudaExecutionDevice>> device = CudaExecutionDevice::create(machine, cudaCall, *port);
    if (!device)
      return device.status();
    devices[size_t(rank)] = std::move(*device);
    CudaExecutionDevice &mine = *devices[size_t(rank)];
    ExecutorOptions rankOptions = options;
    rankOptions.report = reports ? &(*reports)[size_t(rank)] : nullptr;
    const auto run = [&](Communicator &communicator, const ExecutorOptions &withDevice) {
      return runContextParallelThread(forward, backward, call, tensors, communicator, withDevice);
    };
    if (transport == CudaTransport::Copies) {
      CudaThreadsCommunicator communicator(hub, rank, *port);
      return runOn(mine, communicator, rankOptions, run);
    }
    NcclPlace own = place;
    own.rank = rank;
    auto communicator = NcclCommunicator::join(library, *port, own, options.deadlineSeconds);
    return communicator ? runOn(mine, **communicator, rankOptions, run) : communicator.status();
  };
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < worldSize; ++rank)
    threads.emplace_back([&, rank] {
      statuses[size_t(rank)] = runRank(rank);
      if (!statuses[size_t(rank)])
        CudaThreadsCommunicator(hub, rank, nullptr).abort(statuses[size_t(rank)]);
    });
  for (std::thread &thread : threads)
    thread.join();
  return firstFailure(statuses);
}

Status runContextParallelCudaRank(const Schedule &forward, const Schedule *backward, const RankCall &call,
                                  const CudaCall &cudaCall, const WholeTensors &tensors, const CudaMachine &machine,
                                  const NcclPlace &place, const ExecutorOptions &options,
                                  std::vector<RunReport> *reports) {
  StatusOr<std::shared_ptr<const NcclLibrary>> library = NcclLibrary::load();
  if (!library)
    return library.status();
  StatusOr<std::shared_ptr<const CudaPort>> port = CudaPort::open(machine.device);
  if (!port)
    return port.status();
  StatusOr<std::unique_ptr<CudaExecutionDevice>> device = CudaExecutionDevice::create(machine, cudaCall, *port);
  if (!device)
    return device.status();
  auto communicator = NcclCommunicator::join(*library, *port, place, options.deadlineSeconds);
  if (!communicator)
    return communicator.status();
  return runOn(**device, **communicator, options, [&](Communicator &mine, const ExecutorOptions &withDevice) {
    return runContextParallelRank(forward, backward, call, tensors, mine, withDevice, reports);
  });
}

} // namespace cpflex
