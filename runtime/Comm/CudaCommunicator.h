// What communicators between GPUs have besides their messages: the GPU, the stream in which messages line up, and
// memory that peers may read.
#pragma once

#include "runtime/Comm/Communicator.h"
#include "runtime/Cuda/CudaDevice.h"

#include <memory>
#include <vector>

namespace cpflex {

/// Where the messages of a rank come from and go to: a stream in which they line up, ahead of other work of the GPU
/// where they need its processors, and a pool of memory in stream order. Immutable, shared by a communicator and by all
/// that compute for it.
class CudaPort {
public:
  /// The GPUs `peers` may read memory of the pool too; the device's own index among them says nothing.
  static StatusOr<std::shared_ptr<const CudaPort>> open(std::shared_ptr<const CudaDevice> device,
                                                        const std::vector<int> &peers = {});
  ~CudaPort();
  CudaPort(const CudaPort &) = delete;

  const std::shared_ptr<const CudaDevice> &device() const { return device_; }
  cuda::Stream stream() const { return stream_; }
  cuda::MemoryPool pool() const { return pool_; }

private:
  explicit CudaPort(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  std::shared_ptr<const CudaDevice> device_;
  cuda::Stream stream_ = nullptr;
  cuda::MemoryPool pool_ = nullptr;
};

/// A communicator whose messages lie in GPU memory and are ready when the work so far in the port's stream is done;
/// received bytes are there when wait() returns.
class CudaCommunicator : public Communicator {
public:
  explicit CudaCommunicator(std::shared_ptr<const CudaPort> port) : port_(std::move(port)) {}
  const std::shared_ptr<const CudaPort> &port() const { return port_; }
  const CudaCommunicator *asCuda() const override { return this; }

protected:
  const CudaDevice &device() const { return *port_->device(); }

private:
  std::shared_ptr<const CudaPort> port_;
};

} // namespace cpflex
