// Arrays of the host's memory that kernels read in a GPU's, where others take their place without waiting: captures and
// sinks of a problem that is bound again and again.
#pragma once

#include "runtime/Cuda/CudaDevice.h"
#include "runtime/Cuda/CudaExecutable.h"
#include "runtime/contract/Bindings.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace cpflex {

/// The bytes that the elements of a capture span, from its `data`; empty without elements.
struct ElementSpan {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
ElementSpan elementSpan(const CaptureView &view);

/// Room for each array on the GPU and, in page-locked memory, on the host. Addresses on the GPU stay for its life.
class StagedCopies {
public:
  StagedCopies() = default;
  /// Room for arrays of these sizes in bytes.
  static StatusOr<StagedCopies> reserve(const std::shared_ptr<const CudaDevice> &device,
                                        std::span<const int64_t> sizesInBytes);

  /// Notes that `sizeInBytes` bytes shall be array `index`, copies them to page-locked memory and says where they will
  /// lie on the GPU. Uploads of it must have run. InvalidArgument when they have no room; `name` is the array's in
  /// messages.
  StatusOr<void *> stage(size_t index, const std::string &name, const void *bytes, int64_t sizeInBytes);
  /// The same for the elements of a capture, which keeps its strides. One without elements stays as it is.
  StatusOr<CaptureView> stage(size_t index, const std::string &name, CaptureView view);

  /// What was staged since the last call of this function.
  std::vector<CudaUpload> takeUploads();

  /// Whether there is room for anything.
  bool isEmpty() const { return memory_.sizeInBytes() == 0; }
  /// Bytes on the GPU.
  int64_t sizeInBytes() const { return memory_.sizeInBytes(); }

private:
  struct Place {
    int64_t offset = 0, capacityInBytes = 0;
  };
  std::vector<Place> places_;
  CudaBuffer memory_;
  PinnedBuffer staging_;
  std::vector<CudaUpload> uploads_;
};

} // namespace cpflex
