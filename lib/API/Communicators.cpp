// Opens the communicators that are made of libraries or GPUs; see cpflex.h.
#include "lib/API/cpflex.h"

#include "runtime/Comm/CudaThreadsCommunicator.h"
#include "runtime/Comm/MpiCommunicator.h"
#include "runtime/Comm/NcclCommunicator.h"

#include <fmt/format.h>

#include <cstring>

namespace cpflex {

namespace {

StatusOr<std::shared_ptr<const CudaDevice>> openDevice(int32_t index) {
  StatusOr<std::shared_ptr<const CudaDriver>> driver = CudaDriver::load();
  if (!driver)
    return driver.status();
  return CudaDevice::open(*driver, index);
}

StatusOr<std::shared_ptr<const CudaPort>> openPort(int32_t gpu) {
  StatusOr<std::shared_ptr<const CudaDevice>> device = openDevice(gpu);
  if (!device)
    return device.status();
  return CudaPort::open(*device);
}

Status checkDeadline(double seconds) {
  return seconds > 0 ? Status::ok()
                     : Status::invalid(fmt::format("deadline of {} seconds; expected a number above 0", seconds));
}

/// What a communicator over NCCL is made of.
struct NcclAndPort {
  std::shared_ptr<const NcclLibrary> library;
  std::shared_ptr<const CudaPort> port;
};

StatusOr<NcclAndPort> openNccl(int32_t gpu, double deadlineSeconds) {
  CPFLEX_RETURN_IF_ERROR(checkDeadline(deadlineSeconds));
  StatusOr<std::shared_ptr<const NcclLibrary>> library = NcclLibrary::load();
  if (!library)
    return library.status();
  StatusOr<std::shared_ptr<const CudaPort>> port = openPort(gpu);
  if (!port)
    return port.status();
  return NcclAndPort{*library, *port};
}

template <typename Made> StatusOr<std::shared_ptr<Communicator>> shared(StatusOr<std::unique_ptr<Made>> communicator) {
  if (!communicator)
    return communicator.status();
  return std::shared_ptr<Communicator>(std::move(*communicator));
}

} // namespace

StatusOr<std::shared_ptr<Communicator>> openMpiCommunicator(const std::string &path) {
  return shared(MpiCommunicator::open(path));
}

StatusOr<NcclId> newNcclId() {
  StatusOr<std::shared_ptr<const NcclLibrary>> library = NcclLibrary::load();
  if (!library)
    return library.status();
  StatusOr<nccl::UniqueId> made = (*library)->newId();
  if (!made)
    return made.status();
  NcclId id;
  static_assert(sizeof(made->bytes) == sizeof(id));
  std::memcpy(id.data(), made->bytes, id.size());
  return id;
}

StatusOr<std::shared_ptr<Communicator>> openNcclCommunicator(const NcclId &id, int32_t rank, int32_t worldSize,
                                                             int32_t gpu, double deadlineSeconds) {
  if (worldSize < 1 || rank < 0 || rank >= worldSize)
    return Status::invalid(fmt::format("rank {} of {}; expected a rank in [0, {})", rank, worldSize, worldSize));
  StatusOr<NcclAndPort> opened = openNccl(gpu, deadlineSeconds);
  if (!opened)
    return opened.status();
  NcclPlace place{.id = {}, .rank = rank, .worldSize = worldSize};
  std::memcpy(place.id.bytes, id.data(), id.size());
  return shared(NcclCommunicator::join(opened->library, opened->port, place, deadlineSeconds));
}

StatusOr<std::shared_ptr<Communicator>> adoptNcclCommunicator(void *ncclComm, int32_t gpu, double deadlineSeconds) {
  if (!ncclComm)
    return Status::invalid("'ncclComm' is null; expected the caller's ncclComm_t");
  StatusOr<NcclAndPort> opened = openNccl(gpu, deadlineSeconds);
  if (!opened)
    return opened.status();
  return shared(
      NcclCommunicator::adopt(opened->library, opened->port, static_cast<nccl::Comm>(ncclComm), deadlineSeconds));
}

StatusOr<std::vector<std::shared_ptr<Communicator>>> openCudaThreads(int32_t worldSize,
                                                                     const std::vector<int32_t> &gpus) {
  constexpr int32_t kMostThreads = 4096;
  if (worldSize < 1 || worldSize > kMostThreads)
    return Status::invalid(fmt::format("a group of {} threads; expected 1 to {}", worldSize, kMostThreads));
  if (gpus.empty())
    return Status::invalid("'gpus' is empty; expected the index of at least one GPU");
  std::vector<std::shared_ptr<const CudaDevice>> devices;
  for (int32_t gpu : gpus) {
    StatusOr<std::shared_ptr<const CudaDevice>> device = openDevice(gpu);
    if (!device)
      return device.status();
    devices.push_back(*device);
  }
  // Each communicator holds the hub with it.
  struct Member {
    std::shared_ptr<CudaThreadsHub> hub;
    CudaThreadsCommunicator communicator;
  };
  auto hub = std::make_shared<CudaThreadsHub>(worldSize);
  const std::vector<int> peers(gpus.begin(), gpus.end());
  std::vector<std::shared_ptr<Communicator>> communicators;
  for (int32_t rank = 0; rank < worldSize; ++rank) {
    StatusOr<std::shared_ptr<const CudaPort>> port = CudaPort::open(devices[size_t(rank) % devices.size()], peers);
    if (!port)
      return port.status();
    auto member = std::make_shared<Member>(Member{hub, CudaThreadsCommunicator(*hub, rank, *port)});
    communicators.emplace_back(member, &member->communicator);
  }
  return communicators;
}

} // namespace cpflex
