// A program bound to one problem on a GPU: sizes, block mask, positions, captures. Running it launches kernels on the
// caller's stream; nothing is allocated, nothing waits, and the calls can be captured in a CUDA graph.
#pragma once

#include "runtime/Cuda/CudaDevice.h"
#include "runtime/Cuda/CudaProgram.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/KernelArguments.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace cpflex {

/// Tensors of a forward call in device memory. `o` has the program's output type; `lse` (f32, stride 1 along s) may be
/// null. No output may overlap an input or another output.
struct CudaForwardTensors {
  TensorView q, k, v, o, lse;
};

/// Tensors of a backward call in device memory: what forward read and wrote, the incoming gradients and the outgoing
/// ones. `dLse` (f32) may be null; `dSink` (f32, one per local query head) may be null.
struct CudaBackwardTensors {
  TensorView q, k, v, o, lse, dO, dLse;
  TensorView dQ, dK, dV;
  float *dSink = nullptr;
  /// Device memory for the gradient of each capture of the program, null where not wanted; empty: none. Dense f32 of
  /// the capture's own sizes, an axis that is broadcast having one element; overwritten.
  std::span<float *const> dCaptures = {};
};

/// Bytes of page-locked host memory that go to the GPU before a problem's tables do: arrays that its kernels read.
struct CudaUpload {
  cuda::DeviceAddress to = 0;
  const void *from = nullptr;
  int64_t sizeInBytes = 0;
};

/// One bound problem. forward() and backward() may be called from several threads at once, each with its own workspace.
class CudaExecutable {
public:
  /// Binds `problem`: its mask, positions, sizes and scale are copied; `bindings->captures` and `sink` are device
  /// memory that must stay valid while the executable is used; params and dims are copied from the host. `functions` of
  /// the problem is not looked at. The tables are uploaded and the arrays of the mask are read on `stream`: it must
  /// wait for whoever writes those, and calls on other streams must wait for it. `uploads` are queued first.
  static StatusOr<std::shared_ptr<CudaExecutable>> bind(std::shared_ptr<const CudaProgram> program,
                                                        const AttentionProblem &problem, cuda::Stream stream,
                                                        std::span<const CudaUpload> uploads = {});

  /// Binds another mask, other captures and parameters for the same sizes into the same memory, on `stream`: calls that
  /// follow on that stream see the new ones, and so does the replay of a graph for all but the addresses and sizes of
  /// captures and the scale, which a graph holds by value. The host waits only until the last upload is through.
  /// InvalidArgument when sizes or tiles differ, or when the mask needs more room than bind() reserved (twice what the
  /// first mask needed), and nothing is queued then. Call it, too, when the contents of an array change that the mask
  /// reads: partial tiles are decided here. Not beside forward() or backward() on another thread.
  Status update(const AttentionProblem &problem, cuda::Stream stream, std::span<const CudaUpload> uploads = {});

  /// Waits on the host until what the last bind() or update() uploads has left the host's memory.
  Status waitForUploads() const { return uploaded_.synchronize(); }

  enum class Pass { Forward, Backward };
  /// Bytes of device memory, at a multiple of 256, that a call needs; contents need no preparation.
  int64_t workspaceInBytes(Pass pass) const;
  /// Bytes of device memory that it holds until it goes: tables and decided tiles, with room for masks to come.
  int64_t sizeInBytes() const;

  /// Launches. InvalidArgument when a tensor is misaligned, has the wrong type or strides, lies on another device or
  /// overlaps another; Unavailable with the driver's reason when a launch fails.
  Status forward(const CudaForwardTensors &tensors, void *workspace, cuda::Stream stream) const;
  Status backward(const CudaBackwardTensors &tensors, void *workspace, cuda::Stream stream) const;

  const CudaProgram &program() const { return *program_; }
  const AttentionProblem &problem() const { return problem_; }

private:
  /// The arrays that one kernel walks, on the device, and the scalars beside them.
  struct KernelTables {
    const LoadedKernel *kernel = nullptr;
    MaskArgument mask{};
    MaskArgument turns{}; ///< QuerySumsArgument::mask of a kernel that sharesSums()
    int32_t numWordSets = 0;
    const int32_t *wordPairs = nullptr; ///< see MaskTables
    WorkArgument work{};
    bool walksDown = true; ///< see MaskTables
    PositionArgument qPositions{}, kvPositions{};
  };
  /// One array of the tables: where it lies and how much room it has.
  struct Section {
    int64_t offset = 0;
    int64_t capacityInBytes = 0;
  };
  struct HostTables;
  struct HostKernelTables;
  enum class Upload { First, Again };

  explicit CudaExecutable(std::shared_ptr<const CudaProgram> program) : program_(std::move(program)) {}
  Status checkProblem(const AttentionProblem &problem) const;
  void keep(const AttentionProblem &problem);
  void packCaptures(const AttentionProblem &problem);
  std::string captureName(int slot) const;

  // Of CudaExecutableTables.cpp, in the order of an upload.
  Status upload(const AttentionProblem &problem, cuda::Stream stream, std::span<const CudaUpload> arrays, Upload kind);
  StatusOr<HostTables> hostTables(const AttentionProblem &problem, Upload kind) const;
  Status addMask(HostKernelTables &kernel, size_t kernelIndex, const AttentionProblem &problem, Upload kind) const;
  int64_t mostWordTiles(size_t kernelIndex, Upload kind) const;
  Status reserve(const HostTables &host);
  Status reserveWords(const HostTables &host);
  Status replaceTables(const HostTables &host, Upload kind);
  KernelTables tablesFor(size_t kernelIndex, const HostTables &host) const;
  void setMask(KernelTables &tables, size_t kernelIndex, const HostTables &host) const;
  int groupHeads(const KernelTables &tables, const HostKernelTables &kernel) const;
  std::byte *array(size_t section) const;
  Status copyArrays(std::span<const CudaUpload> arrays, cuda::Stream stream) const;
  Status copyTables(const HostTables &host, cuda::Stream stream);
  Status fillWords(cuda::Stream stream) const;

  const KernelTables *tablesOf(KernelRole role) const;
  /// What ForwardArguments and BackwardArguments say of the problem.
  template <typename Arguments> void fillProblem(Arguments &arguments) const {
    const AttentionProblem &p = problem_;
    arguments.sink = p.sink;
    arguments.batch = static_cast<int>(p.batch), arguments.qHeads = static_cast<int>(p.qHeads);
    arguments.kvHeads = static_cast<int>(p.kvHeads);
    arguments.qLen = static_cast<int>(p.qLen), arguments.kvLen = static_cast<int>(p.kvLen);
    arguments.batchOffset = static_cast<int>(p.batchOffset), arguments.headOffset = static_cast<int>(p.headOffset);
    arguments.scale = p.scale;
  }
  Status launch(const LoadedKernel &kernel, unsigned gridX, unsigned gridY, unsigned gridZ, void *arguments, void *maps,
                cuda::Stream stream) const;
  Status launchTiles(const KernelTables &tables, int64_t numItems, void *arguments, void *maps,
                     cuda::Stream stream) const;
  struct BackwardWorkspace;
  BackwardWorkspace backwardWorkspace() const;
  void fillBackward(BackwardArguments &arguments, const CudaBackwardTensors &tensors, void *workspace) const;
  int64_t captureElements(int slot) const;
  int64_t accumulatorElements() const;
  Status backwardCaptures(const BackwardArguments &backward, const CudaBackwardTensors &tensors,
                          int64_t accumulatorOffset, void *workspace, cuda::Stream stream) const;

  std::shared_ptr<const CudaProgram> program_;
  AttentionProblem
      problem_; ///< sizes, offsets, scale and sink; its pointers to mask, positions and bindings are not kept
  std::vector<long long> captures_;
  std::vector<int32_t> captureRanks_;
  std::vector<KernelTables> tables_; ///< one per kernel that walks tiles
  std::vector<Section> sections_;
  CudaBuffer memory_;
  /// MaskArgument::words and classes of one kernel; empty where it decides partial tiles itself.
  struct Words {
    CudaBuffer memory;
    int64_t capacityInTiles = 0;
  };
  std::vector<Words> words_; ///< one per entry of tables_
  PinnedBuffer staging_;
  CudaEvent uploaded_;
};

} // namespace cpflex
