// Owning contexts, memory, streams and events of a GPU.
#include "runtime/Cuda/CudaDevice.h"

#include <fmt/format.h>

#include <utility>

namespace cpflex {
namespace {

constexpr int kOldestComputeCapability = 80;

StatusOr<CudaDeviceDescription> describe(const CudaDriver &driver, int index, cuda::Device &device) {
  CudaDeviceDescription description;
  description.index = index;
  CPFLEX_RETURN_IF_ERROR(driver.status(driver.deviceGet(&device, index), "cuDeviceGet"));
  char name[256] = {};
  CPFLEX_RETURN_IF_ERROR(driver.status(driver.deviceGetName(name, sizeof(name) - 1, device), "cuDeviceGetName"));
  description.name = name;
  size_t bytes = 0;
  CPFLEX_RETURN_IF_ERROR(driver.status(driver.deviceTotalMem(&bytes, device), "cuDeviceTotalMem"));
  description.memoryInBytes = static_cast<int64_t>(bytes);
  int major = 0, minor = 0, l2Bytes = 0;
  for (auto [attribute, value] : {std::pair{cuda::kComputeCapabilityMajor, &major},
                                  {cuda::kComputeCapabilityMinor, &minor},
                                  {cuda::kMultiprocessorCount, &description.numProcessors},
                                  {cuda::kL2CacheSize, &l2Bytes}})
    CPFLEX_RETURN_IF_ERROR(driver.status(driver.deviceGetAttribute(value, attribute, device), "cuDeviceGetAttribute"));
  description.l2CacheInBytes = l2Bytes;
  description.computeCapability = major * 10 + minor;
  if (description.computeCapability < kOldestComputeCapability)
    description.whyNotUsable = fmt::format("compute capability {}.{}; expected 8.0 or newer", major, minor);
  return description;
}

} // namespace

CudaDeviceList listCudaDevices(const LibrarySearch &search) {
  CudaDeviceList list;
  StatusOr<std::shared_ptr<const CudaDriver>> driver = CudaDriver::load(search);
  if (!driver) {
    list.whyNone = driver.status().message();
    return list;
  }
  list.driverVersion = (*driver)->version();
  int count = 0;
  if (Status status = (*driver)->status((*driver)->deviceGetCount(&count), "cuDeviceGetCount"); !status) {
    list.whyNone = status.message();
    return list;
  }
  for (int index = 0; index < count; ++index) {
    cuda::Device device = 0;
    StatusOr<CudaDeviceDescription> description = describe(**driver, index, device);
    if (description) {
      list.devices.push_back(*description);
    } else {
      CudaDeviceDescription broken;
      broken.index = index;
      broken.whyNotUsable = description.status().message();
      list.devices.push_back(broken);
    }
  }
  if (list.devices.empty())
    list.whyNone = "the driver finds no GPU; look at CUDA_VISIBLE_DEVICES and at nvidia-smi";
  return list;
}

StatusOr<std::shared_ptr<const CudaDevice>> CudaDevice::open(std::shared_ptr<const CudaDriver> driver, int index) {
  int count = 0;
  CPFLEX_RETURN_IF_ERROR(driver->status(driver->deviceGetCount(&count), "cuDeviceGetCount"));
  if (index < 0 || index >= count)
    return Status::invalid(fmt::format("GPU {} was asked for; this machine has {}", index, count));
  cuda::Device handle = 0;
  StatusOr<CudaDeviceDescription> description = describe(*driver, index, handle);
  if (!description)
    return description.status();
  if (!description->whyNotUsable.empty())
    return Status::unsupported(
        fmt::format("GPU {} '{}' cannot be used: {}", index, description->name, description->whyNotUsable));
  auto device = std::shared_ptr<CudaDevice>(new CudaDevice(driver, *description, handle));
  CPFLEX_RETURN_IF_ERROR(
      driver->status(driver->devicePrimaryCtxRetain(&device->context_, handle), "cuDevicePrimaryCtxRetain"));
  return std::shared_ptr<const CudaDevice>(std::move(device));
}

CudaDevice::~CudaDevice() {
  if (context_)
    driver_->devicePrimaryCtxRelease(device_);
}

CurrentContext::CurrentContext(const CudaDevice &device)
    : device_(device),
      status_(device.driver().status(device.driver().ctxPushCurrent(device.context()), "cuCtxPushCurrent")) {}

CurrentContext::~CurrentContext() {
  cuda::Context popped = nullptr;
  if (status_)
    device_.driver().ctxPopCurrent(&popped);
}

StatusOr<CudaBuffer> CudaBuffer::allocate(std::shared_ptr<const CudaDevice> device, int64_t sizeInBytes) {
  CudaBuffer buffer;
  buffer.device_ = device;
  buffer.sizeInBytes_ = sizeInBytes;
  if (sizeInBytes == 0)
    return buffer;
  CurrentContext current(*device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = device->driver();
  cuda::Result result = driver.memAlloc(&buffer.address_, static_cast<size_t>(sizeInBytes));
  if (result == cuda::kOutOfMemory) {
    size_t free = 0, total = 0;
    (void)driver.memGetInfo(&free, &total);
    return Status(
        StatusCode::OutOfMemory,
        fmt::format("{} bytes of GPU memory were asked for, {} of {} are free; make the problem smaller or free memory",
                    sizeInBytes, free, total));
  }
  CPFLEX_RETURN_IF_ERROR(driver.status(result, "cuMemAlloc"));
  return buffer;
}

CudaBuffer::~CudaBuffer() {
  if (!address_)
    return;
  CurrentContext current(*device_);
  if (current.status())
    (void)device_->driver().memFree(address_);
}

CudaBuffer::CudaBuffer(CudaBuffer &&other) noexcept { *this = std::move(other); }
CudaBuffer &CudaBuffer::operator=(CudaBuffer &&other) noexcept {
  std::swap(device_, other.device_);
  std::swap(address_, other.address_);
  std::swap(sizeInBytes_, other.sizeInBytes_);
  return *this;
}

StatusOr<PinnedBuffer> PinnedBuffer::allocate(std::shared_ptr<const CudaDevice> device, int64_t sizeInBytes) {
  PinnedBuffer buffer;
  buffer.device_ = device;
  buffer.sizeInBytes_ = sizeInBytes;
  if (sizeInBytes == 0)
    return buffer;
  CurrentContext current(*device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  CPFLEX_RETURN_IF_ERROR(device->driver().status(
      device->driver().memAllocHost(&buffer.data_, static_cast<size_t>(sizeInBytes)), "cuMemAllocHost"));
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (!data_)
    return;
  CurrentContext current(*device_);
  if (current.status())
    (void)device_->driver().memFreeHost(data_);
}

PinnedBuffer::PinnedBuffer(PinnedBuffer &&other) noexcept { *this = std::move(other); }
PinnedBuffer &PinnedBuffer::operator=(PinnedBuffer &&other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(sizeInBytes_, other.sizeInBytes_);
  return *this;
}

StatusOr<CudaStream> CudaStream::create(std::shared_ptr<const CudaDevice> device) {
  CurrentContext current(*device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  cuda::Stream stream = nullptr;
  CPFLEX_RETURN_IF_ERROR(
      device->driver().status(device->driver().streamCreate(&stream, cuda::kStreamNonBlocking), "cuStreamCreate"));
  return CudaStream(std::move(device), stream);
}

CudaStream::~CudaStream() {
  if (!stream_)
    return;
  CurrentContext current(*device_);
  if (current.status())
    (void)device_->driver().streamDestroy(stream_);
}

CudaStream::CudaStream(CudaStream &&other) noexcept
    : device_(std::move(other.device_)), stream_(std::exchange(other.stream_, nullptr)) {}

Status CudaStream::synchronize() const {
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  return device_->driver().status(device_->driver().streamSynchronize(stream_), "cuStreamSynchronize");
}

StatusOr<CudaEvent> CudaEvent::create(std::shared_ptr<const CudaDevice> device, Timing timing) {
  CudaEvent event;
  event.device_ = device;
  CurrentContext current(*device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  unsigned flags = timing == Timing::On ? cuda::kEventDefault : cuda::kEventDisableTiming;
  CPFLEX_RETURN_IF_ERROR(device->driver().status(device->driver().eventCreate(&event.event_, flags), "cuEventCreate"));
  return event;
}

CudaEvent::~CudaEvent() {
  if (!event_)
    return;
  CurrentContext current(*device_);
  if (current.status())
    (void)device_->driver().eventDestroy(event_);
}

CudaEvent::CudaEvent(CudaEvent &&other) noexcept { *this = std::move(other); }
CudaEvent &CudaEvent::operator=(CudaEvent &&other) noexcept {
  std::swap(device_, other.device_);
  std::swap(event_, other.event_);
  return *this;
}

Status CudaEvent::record(cuda::Stream stream) const {
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  return device_->driver().status(device_->driver().eventRecord(event_, stream), "cuEventRecord");
}

Status CudaEvent::delay(cuda::Stream stream) const {
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  return device_->driver().status(device_->driver().streamWaitEvent(stream, event_, 0), "cuStreamWaitEvent");
}

StatusOr<bool> CudaEvent::isReached() const {
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  cuda::Result result = device_->driver().eventQuery(event_);
  if (result == cuda::kNotReady)
    return false;
  CPFLEX_RETURN_IF_ERROR(device_->driver().status(result, "cuEventQuery"));
  return true;
}

Status CudaEvent::synchronize() const {
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  return device_->driver().status(device_->driver().eventSynchronize(event_), "cuEventSynchronize");
}

StatusOr<float> CudaEvent::millisecondsSince(const CudaEvent &begin) const {
  CurrentContext current(*device_);
  CPFLEX_RETURN_IF_ERROR(current.status());
  float milliseconds = 0;
  CPFLEX_RETURN_IF_ERROR(device_->driver().status(
      device_->driver().eventElapsedTime(&milliseconds, begin.event_, event_), "cuEventElapsedTime"));
  return milliseconds;
}

Status copyToDevice(const CudaDevice &device, cuda::DeviceAddress to, const void *from, int64_t sizeInBytes,
                    cuda::Stream stream) {
  if (sizeInBytes == 0)
    return Status::ok();
  CurrentContext current(device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = device.driver();
  CPFLEX_RETURN_IF_ERROR(
      driver.status(driver.memcpyHtoDAsync(to, from, static_cast<size_t>(sizeInBytes), stream), "cuMemcpyHtoDAsync"));
  return driver.status(driver.streamSynchronize(stream), "cuStreamSynchronize");
}

Status copyToHost(const CudaDevice &device, void *to, cuda::DeviceAddress from, int64_t sizeInBytes,
                  cuda::Stream stream) {
  if (sizeInBytes == 0)
    return Status::ok();
  CurrentContext current(device);
  CPFLEX_RETURN_IF_ERROR(current.status());
  const CudaDriver &driver = device.driver();
  CPFLEX_RETURN_IF_ERROR(
      driver.status(driver.memcpyDtoHAsync(to, from, static_cast<size_t>(sizeInBytes), stream), "cuMemcpyDtoHAsync"));
  return driver.status(driver.streamSynchronize(stream), "cuStreamSynchronize");
}

} // namespace cpflex
