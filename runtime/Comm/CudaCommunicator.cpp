// Opens the ports of communicators between GPUs; see CudaCommunicator.h.
#include "runtime/Comm/CudaCommunicator.h"

namespace cpflex {

StatusOr<std::shared_ptr<const CudaPort>> CudaPort::open(std::shared_ptr<const CudaDevice> device,
                                                         const std::vector<int> &peers) {
  std::shared_ptr<CudaPort> port(new CudaPort(std::move(device)));
  CurrentContext current(*port->device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = port->device_->driver();
  const int index = port->device_->description().index;
  // Transfers that need processors get them before attention does. Lower is more urgent; the driver clamps.
  constexpr int kUrgent = -100;
  CPFLEX_RETURN_IF_ERROR(
      driver.status(driver.streamCreateWithPriority(&port->stream_, cuda::kStreamNonBlocking, kUrgent),
                    "cuStreamCreateWithPriority"));
  cuda::MemoryPoolProperties properties;
  properties.location.index = index;
  CPFLEX_RETURN_IF_ERROR(driver.status(driver.memPoolCreate(&port->pool_, &properties), "cuMemPoolCreate"));
  uint64_t keepAll = ~uint64_t(0);
  CPFLEX_RETURN_IF_ERROR(driver.status(
      driver.memPoolSetAttribute(port->pool_, cuda::kMemoryPoolReleaseThreshold, &keepAll), "cuMemPoolSetAttribute"));
  for (int peer : peers) {
    if (peer == index)
      continue;
    cuda::MemoryAccess access;
    access.location.index = peer;
    CPFLEX_RETURN_IF_ERROR(driver.status(driver.memPoolSetAccess(port->pool_, &access, 1), "cuMemPoolSetAccess"));
  }
  return std::shared_ptr<const CudaPort>(std::move(port));
}

CudaPort::~CudaPort() {
  CurrentContext current(*device_);
  if (!current.status())
    return;
  const CudaDriver &driver = device_->driver();
  if (stream_) {
    (void)driver.streamSynchronize(stream_);
    (void)driver.streamDestroy(stream_);
  }
  if (pool_)
    (void)driver.memPoolDestroy(pool_);
}

} // namespace cpflex
