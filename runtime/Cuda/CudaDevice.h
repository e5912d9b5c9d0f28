// One GPU of this machine: whether it is usable, its memory and its streams, each owned by an object that gives it
// back.
#pragma once

#include "runtime/Cuda/CudaDriver.h"
#include "runtime/contract/Status.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace cpflex {

/// What is known of a GPU without using it.
struct CudaDeviceDescription {
  int index = 0;
  std::string name;
  int computeCapability = 0; ///< 90 for 9.0
  int numProcessors = 0;
  int64_t memoryInBytes = 0;
  int64_t l2CacheInBytes = 0;
  std::string whyNotUsable; ///< empty when kernels run on it
};

/// The GPUs of this machine, or the reason why there are none.
struct CudaDeviceList {
  std::vector<CudaDeviceDescription> devices;
  std::string whyNone; ///< a sentence when `devices` is empty
  int driverVersion = 0;
};

/// For `cpflexc devices`. Never fails: what is missing is in the answer.
CudaDeviceList listCudaDevices(const LibrarySearch &search = cudaDriverSearch());

/// A GPU with its primary context held, so that memory and streams of other libraries of the process can be used.
/// Immutable, safe to use from many threads; outlives what is made from it.
class CudaDevice : public std::enable_shared_from_this<CudaDevice> {
public:
  /// InvalidArgument for an index that does not exist, Unsupported for a GPU that is too old.
  static StatusOr<std::shared_ptr<const CudaDevice>> open(std::shared_ptr<const CudaDriver> driver, int index);
  ~CudaDevice();
  CudaDevice(const CudaDevice &) = delete;

  const CudaDriver &driver() const { return *driver_; }
  const CudaDeviceDescription &description() const { return description_; }
  cuda::Context context() const { return context_; }

private:
  CudaDevice(std::shared_ptr<const CudaDriver> driver, CudaDeviceDescription description, cuda::Device device)
      : driver_(std::move(driver)), description_(std::move(description)), device_(device) {}

  std::shared_ptr<const CudaDriver> driver_;
  CudaDeviceDescription description_;
  cuda::Device device_;
  cuda::Context context_ = nullptr;
};

/// Makes a device's context current on this thread for a scope.
class CurrentContext {
public:
  explicit CurrentContext(const CudaDevice &device);
  ~CurrentContext();
  CurrentContext(const CurrentContext &) = delete;
  const Status &status() const { return status_; }

private:
  const CudaDevice &device_;
  Status status_;
};

/// Memory on a GPU, freed with the object (which waits for work that uses it).
class CudaBuffer {
public:
  CudaBuffer() = default;
  /// OutOfMemory says how much was asked for and how much is free. Zero bytes give an empty buffer.
  static StatusOr<CudaBuffer> allocate(std::shared_ptr<const CudaDevice> device, int64_t sizeInBytes);
  ~CudaBuffer();
  CudaBuffer(CudaBuffer &&other) noexcept;
  CudaBuffer &operator=(CudaBuffer &&other) noexcept;

  cuda::DeviceAddress address() const { return address_; }
  void *data() const { return reinterpret_cast<void *>(address_); }
  int64_t sizeInBytes() const { return sizeInBytes_; }

private:
  std::shared_ptr<const CudaDevice> device_;
  cuda::DeviceAddress address_ = 0;
  int64_t sizeInBytes_ = 0;
};

/// Page-locked host memory, from which copies to the GPU run beside the host.
class PinnedBuffer {
public:
  PinnedBuffer() = default;
  static StatusOr<PinnedBuffer> allocate(std::shared_ptr<const CudaDevice> device, int64_t sizeInBytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer &&other) noexcept;
  PinnedBuffer &operator=(PinnedBuffer &&other) noexcept;

  void *data() const { return data_; }
  int64_t sizeInBytes() const { return sizeInBytes_; }

private:
  std::shared_ptr<const CudaDevice> device_;
  void *data_ = nullptr;
  int64_t sizeInBytes_ = 0;
};

/// A stream of its own, for callers that bring none.
class CudaStream {
public:
  static StatusOr<CudaStream> create(std::shared_ptr<const CudaDevice> device);
  ~CudaStream();
  CudaStream(CudaStream &&other) noexcept;
  CudaStream &operator=(CudaStream &&) = delete;

  cuda::Stream get() const { return stream_; }
  /// Waits for everything on the stream; reports what went wrong in it.
  Status synchronize() const;

private:
  CudaStream(std::shared_ptr<const CudaDevice> device, cuda::Stream stream)
      : device_(std::move(device)), stream_(stream) {}
  std::shared_ptr<const CudaDevice> device_;
  cuda::Stream stream_ = nullptr;
};

/// A mark in a stream, for waiting and, where asked for, timing.
class CudaEvent {
public:
  enum class Timing { Off, On };
  CudaEvent() = default;
  static StatusOr<CudaEvent> create(std::shared_ptr<const CudaDevice> device, Timing timing);
  ~CudaEvent();
  CudaEvent(CudaEvent &&other) noexcept;
  CudaEvent &operator=(CudaEvent &&other) noexcept;

  Status record(cuda::Stream stream) const;
  /// Work that follows in `stream` waits for the last record.
  Status delay(cuda::Stream stream) const;
  /// Whether what was recorded is done; never waits.
  StatusOr<bool> isReached() const;
  /// Waits on the host; ok at once when never recorded.
  Status synchronize() const;
  /// Milliseconds from `begin` to this event; both recorded with timing and reached.
  StatusOr<float> millisecondsSince(const CudaEvent &begin) const;

private:
  std::shared_ptr<const CudaDevice> device_;
  cuda::Event event_ = nullptr;
};

/// Copies between host and device memory and waits for the copy.
Status copyToDevice(const CudaDevice &device, cuda::DeviceAddress to, const void *from, int64_t sizeInBytes,
                    cuda::Stream stream);
Status copyToHost(const CudaDevice &device, void *to, cuda::DeviceAddress from, int64_t sizeInBytes,
                  cuda::Stream stream);

} // namespace cpflex
