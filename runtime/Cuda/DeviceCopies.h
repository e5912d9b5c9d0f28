// What of the host's memory was copied to a GPU for a program: captured arrays and sinks.
#pragma once

#include "runtime/Cuda/CudaDevice.h"
#include "runtime/contract/Bindings.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace cpflex {

/// Copies in the memory of GPUs, freed with the object.
class DeviceCopies {
public:
  /// Copies `sizeInBytes` bytes of the host on `stream`, waits for it, and says where the copy lies.
  StatusOr<void *> add(const std::shared_ptr<const CudaDevice> &device, const void *bytes, int64_t sizeInBytes,
                       cuda::Stream stream);

  /// Copies the elements of a capture, and those between them, and gives the capture over the copy with the same
  /// strides. One without elements stays as it is.
  StatusOr<CaptureView> add(const std::shared_ptr<const CudaDevice> &device, CaptureView view, cuda::Stream stream);

  int64_t sizeInBytes() const;

private:
  std::vector<CudaBuffer> buffers_;
};

} // namespace cpflex
