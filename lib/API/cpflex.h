// The embedded compiler: how a program compiles `.cpf` text, binds arrays, derives block masks and runs attention on
// the CPU or a GPU. No type of LLVM, MLIR, CUDA or MPI appears here. cpflex.c.h is the same in C.
//
// The way through it: compileText -> Program; Binding::create -> Binding; buildBlockMask -> BlockMask; Executable::load
// -> Executable; forward and backward into the caller's arrays. Nothing is printed or thrown, and there is no global
// state.
#pragma once

#include "lib/Frontend/Diagnostic.h"
#include "runtime/BlockMask/BlockMaskBuilder.h"
#include "runtime/Comm/CallbackCommunicator.h"
#include "runtime/Comm/ThreadsCommunicator.h"
#include "runtime/Executor/RunReport.h"
#include "runtime/Files/Npy.h"
#include "runtime/Plan/Planner.h"
#include "runtime/Plan/ScheduleText.h"
#include "runtime/Plan/ShardArrays.h"
#include "runtime/contract/Attention.h"
#include "runtime/contract/DeviceFunctions.h"
#include "runtime/contract/HostFunctions.h"
#include "runtime/contract/Range.h"
#include "runtime/contract/Residual.h"
#include "runtime/contract/Status.h"
#include "runtime/contract/Tape.h"

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace cpflex {

/// How much a log callback is told: its level and all above.
enum class LogLevel {
  None,
  Warning, ///< results are right, but something is slower or missing: a cache that cannot be written
  Info,    ///< what took time: compilations with their milliseconds
  Debug,   ///< what was found in caches
};

/// Where messages of a program and of all that is made from it go. `function` gets one line without its line end; it
/// may be called by any thread that is inside this API, by several at once, and must not call back.
struct Log {
  LogLevel level = LogLevel::None;
  std::function<void(LogLevel level, const std::string &text)> function = {};

  /// Says what `text()` returns, which is called only when somebody listens.
  template <typename Text> void write(LogLevel messageLevel, Text text) const {
    if (function && messageLevel <= level)
      function(messageLevel, text());
  }
};

/// How a program is compiled.
struct CompileOptions {
  std::vector<std::string> includeDirs = {};         ///< searched for imports after the file's own folder
  std::map<std::string, std::string> constants = {}; ///< values of `const` declarations; other names are left alone
  Log log = {};
  std::optional<std::string> cacheDir = {}; ///< folder of compiled code; none: $CPFLEX_CACHE_DIR, else the user's
                                            ///< cache; empty: no cache
};

/// Where `Program::emit` stops.
enum class Stage { Ast, Mask, MaskOpt, MaskGrad, Classifier, Llvm, Assembly, Cuda };

/// One attention entry point of a program.
struct EntryPoint {
  std::string name;
  bool hasMask = false;
  bool hasScore = false;
  int sinkCapture = -1;       ///< slot of the sinks, -1 without
  std::optional<float> scale; ///< none: 1 / sqrt(head size)
  bool hasSoftmax = true;
  Tape tape; ///< of the mask; meaningful when hasMask
  std::vector<Residual> residuals;
  std::vector<std::string> files; ///< per instruction of the tape, the source that its line is of; empty when unknown
};

/// What is computed with a program.
enum class CallPasses { Forward, ForwardAndBackward };

class Program;

/// A program, or null beside the errors that say why. Warnings come with a program too.
struct CompileResult {
  std::shared_ptr<Program> program;
  std::vector<Diagnostic> diagnostics;
  double compileMs = 0; ///< from text to tapes
};

/// Compiles the text of a `.cpf` file; `path` names it in messages and locates its imports. Thread safe.
CompileResult compileText(const std::string &path, const std::string &text, const CompileOptions &options = {});

/// Reads and compiles a `.cpf` file; a file that cannot be read is a diagnostic too.
CompileResult compileFile(const std::string &path, const CompileOptions &options = {});

/// Translates a FlexAttention function of a Python file to `.cpf` text; empty when there is no such function.
std::string portToCpf(const std::string &path, const std::string &text, const std::string &function,
                      std::vector<Diagnostic> &diagnostics);

/// A compiled program. Immutable to its users; calls from several threads are served one after the other.
class Program {
public:
  ~Program();
  const Signature &signature() const;
  const std::vector<EntryPoint> &entries() const;

  /// Whether the program declares a `const` of this name.
  bool hasConstant(const std::string &name) const;

  /// The entry point `name`, or the only one when `name` is empty. InvalidArgument names the choices.
  StatusOr<const EntryPoint *> entry(const std::string &name) const;

  /// The program's text at a stage of the compiler; of one entry point for Llvm, Assembly and Cuda.
  StatusOr<std::string> emit(Stage stage, const EntryPoint &entry) const;

  /// Machine code for this CPU: from this object, from the cache on disk, or compiled and kept in both. `bindings`
  /// decide between 32-bit and 64-bit ints. Without backward there may be no scoreGradient.
  StatusOr<HostFunctions> hostFunctions(const EntryPoint &entry, const Bindings &bindings,
                                        CallPasses passes = CallPasses::ForwardAndBackward) const;

  /// The functor that CUDA kernels call, ints chosen likewise.
  StatusOr<DeviceFunctions> deviceFunctions(const EntryPoint &entry, const Bindings &bindings) const;

  /// Where messages about this program go.
  const Log &log() const;

  struct State;
  explicit Program(std::unique_ptr<State> state);
  State &state() const { return *state_; }

private:
  std::unique_ptr<State> state_;
};

/// Where memory is; DLPack's numbers. Unknown is taken on trust.
enum class DeviceType : int32_t { Unknown = 0, Cpu = 1, Cuda = 2 };
struct DeviceId {
  DeviceType type = DeviceType::Unknown;
  int32_t index = 0;
  friend bool operator==(const DeviceId &, const DeviceId &) = default;
};

/// An array in the memory of somebody else, to be bound without copying. Strides count elements and may be 0 or
/// negative.
struct ArrayView {
  const void *data = nullptr; ///< the element at index 0 of every axis
  ElementType type = ElementType::F32;
  std::vector<int64_t> shape, strides;
  DeviceId device;
  std::shared_ptr<const void> owner; ///< keeps the memory alive; null: the caller does
};

/// The sizes of a call; -1 where not given.
struct CallSizes {
  int64_t batch = -1, heads = -1, kvHeads = -1, qLen = -1, kvLen = -1;
};

/// Arrays and values for what a program declares. A capture is in `arrays` or in `views`.
struct BindRequest {
  std::map<std::string, Array> arrays = {};       ///< copied
  std::map<std::string, ArrayView> views = {};    ///< read in place where type and device allow it
  std::map<std::string, std::string> params = {}; ///< values as text; constants of the program may be among them
  CallSizes sizes = {};
  /// CUDA: where `views` in a GPU's memory are read, which the host waits for; also by Binding::setVersion. It must
  /// wait for whoever writes them. Null: the default stream.
  void *stream = nullptr;
};

/// The document ids of cumulative lengths [0, l0, l0 + l1, ...] (`cu_seqlens`), to be bound to `capture`: one for each
/// of `length` tokens, or of the last cumulative length when `length` is negative. Leading axes of the capture have
/// size 1. InvalidArgument unless the lengths begin with 0 and never decrease.
StatusOr<Array> documentIdArray(const Program &program, const std::string &capture,
                                const std::vector<int64_t> &cumulativeLengths, int64_t length = -1);

/// Bound arrays, params and dimensions of one program. Shared freely between threads, except for setVersion.
class Binding {
public:
  /// Checks shapes, types and stated facts, unifies dimensions and fills in what was not given: batch and heads 1,
  /// kvHeads as heads, kvLen as qLen. Errors name the capture or param. Elements of another type, and elements in CUDA
  /// memory, are copied to the host; others of `views` are read in place.
  static StatusOr<std::shared_ptr<Binding>> create(const Program &program, const BindRequest &request);

  const Bindings &bindings() const { return bindings_; }
  /// What the program declares that it was made for.
  const Signature &signature() const { return signature_; }
  const CallSizes &sizes() const { return sizes_; }
  CaptureSummaries &summaries() const { return *summaries_; }

  /// The capture's own shape, before axes of size 1 are broadcast. An axis with stride 0 has size 1.
  const std::vector<int64_t> &shape(int slot) const { return slots_[slot].shape; }
  /// Where the capture was bound from: the caller's memory of `views`, or this object's.
  const ArrayView &source(int slot) const { return slots_[slot].source; }
  /// The capture's elements in host memory with the declared type, not broadcast. Keeps nothing alive.
  ArrayView hostArray(int slot) const;
  /// The value of a dimension; InvalidArgument when there is none of this name.
  StatusOr<int64_t> dimension(const std::string &name) const;

  /// The version of the contents of `views`, 0 at first.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  /// Says that contents of `views` changed: copies them again where they were copied, verifies the stated facts and
  /// drops summaries. Executables and masks of another version are refused then. Not beside other uses of the binding.
  Status setVersion(uint64_t version);

private:
  struct Slot {
    ArrayView source;
    std::optional<Array> copy; ///< none where the source is read in place
    std::vector<int64_t> shape;
  };
  Binding();
  Status addSlot(const CaptureDeclaration &capture, ArrayView source);
  Status refresh(int slot);

  Signature signature_;
  std::vector<Slot> slots_;
  std::vector<CaptureView> views_;
  std::vector<ScalarSlot> params_;
  std::vector<int64_t> dims_;
  Bindings bindings_;
  CallSizes sizes_;
  void *stream_ = nullptr; ///< of the request
  std::unique_ptr<CaptureSummaries> summaries_;
  std::atomic<uint64_t> version_ = 0;
};

/// A part of the whole problem: captures, masks and scores see global indices. An axis whose end is 0 ends with the
/// problem. Heads are query heads and cover whole groups of kv heads.
struct CallPart {
  Range batch, heads, q, kv;
};

/// The exact BlockMask of an entry point over a binding. `threads` 0: one per hardware thread.
StatusOr<BlockMaskResult> buildBlockMask(const Program &program, const EntryPoint &entry, const Binding &binding,
                                         int64_t tileQ, int64_t tileKV, int threads, const CallPart &part = {});

/// The options that buildBlockMask above uses, for exact counting with countAllowed. `part` lies inside of the problem.
BlockMaskOptions blockMaskOptions(const Program &program, const EntryPoint &entry, const Binding &binding,
                                  int64_t tileQ, int64_t tileKV, int threads, const CallPart &part = {});

/// A tensor in the caller's memory, indexed [b, h, s, d] whatever its order there; strides count elements. LSE-like
/// tensors have d = 1. Null data: not given.
struct CallTensor {
  void *data = nullptr;
  ElementType type = ElementType::F32;
  int64_t shape[4] = {};
  int64_t strides[4] = {};
  DeviceId device = {};
};

/// Tensors of a forward call.
struct ForwardCallTensors {
  CallTensor q;      ///< [batch, heads, qLen, headDim]
  CallTensor k;      ///< [batch, kvHeads, kvLen, headDim]
  CallTensor v;      ///< [batch, kvHeads, kvLen, vHeadDim]
  CallTensor out;    ///< [batch, heads, qLen, vHeadDim]
  CallTensor lse;    ///< optional, f32 [batch, heads, qLen, 1]: natural logarithm, sink included; -inf without keys
  CallTensor rowMax; ///< optional, f32, CPU only: largest score of each row, sink excluded
};

/// Tensors of a backward call. Gradients are overwritten; one with null data is not computed.
struct BackwardCallTensors {
  CallTensor q, k, v, out, lse; ///< as in and from forward; without softmax out and lse are not read
  CallTensor dOut;              ///< gradient of the loss in out
  CallTensor dLse;              ///< optional, f32: gradient of the loss in lse
  CallTensor dQ, dK, dV;        ///< optional on the CPU
  /// One dense f32 array of Binding::shape(slot) per capture, null where not wanted; empty: none are.
  std::vector<float *> captureGradients;
  float *sinkGradient = nullptr; ///< optional, f32 per head of the whole problem; those of the part are written
};

/// What an Executable is loaded for.
struct LoadOptions {
  std::string device = "cpu";      ///< "cpu", "cuda" or "cuda:1"
  std::optional<ElementType> type; ///< of q, k, v and out; none: f32 on the CPU, bf16 on CUDA
  int64_t headDim = 64;
  int64_t vHeadDim = -1;      ///< -1: headDim
  std::optional<float> scale; ///< instead of the entry point's
  CallPasses passes = CallPasses::Forward;
  int numThreads = 0;     ///< of calls on the CPU, 0: one per hardware thread; results do not depend on it
  CallPart part;          ///< as given to buildBlockMask
  void *stream = nullptr; ///< CUDA: where tables are uploaded; calls on other streams must wait for it
};

/// A bound program on a device, ready to run. Several threads may call it at once, each with its own workspace.
class Executable {
public:
  /// Compiles for the device, or takes code from a cache. `mask` may be null: then it is built. Keeps all that it is
  /// given alive. InvalidArgument for a mask of other sizes; Unavailable without the device.
  static StatusOr<std::shared_ptr<Executable>> load(std::shared_ptr<const Program> program, const EntryPoint &entry,
                                                    std::shared_ptr<const Binding> binding,
                                                    std::shared_ptr<const BlockMask> mask, const LoadOptions &options);
  ~Executable();

  /// Takes another binding of the same program and sizes, or the same one at another version, for the calls that
  /// follow; null `mask`: it is built, with the tiles of the one before. Nothing is compiled. On CUDA nothing is
  /// allocated either, and the host waits for no more than the upload of the update before: uploads are queued on
  /// `stream`, behind calls that are queued there with the old binding, and calls on other streams must wait for it.
  /// Graphs of calls see the new binding too, but for addresses and shapes of arrays that are read in place. The new
  /// mask may need twice the memory of the first one, arrays of the host that are copied to the GPU as much as the
  /// first ones. The old binding is kept alive until the update after. On the CPU `stream` is null. InvalidArgument for
  /// what does not fit; the executable is then as it was. Workspaces may have other sizes afterwards where tiles or
  /// shapes of arrays do. Not beside other uses of the executable, and not when a plan was made of it.
  Status update(std::shared_ptr<const Binding> binding, std::shared_ptr<const BlockMask> mask, void *stream = nullptr);

  enum class Pass { Forward, Backward };
  /// Bytes of scratch memory that a pass needs on the executable's device: host memory of any alignment, or CUDA memory
  /// at a multiple of 256. Contents need no preparation.
  int64_t workspaceInBytes(Pass pass) const;
  /// Bytes of device memory that it holds as long as it lives: tables of the mask, decided tiles and the captures that
  /// were copied there. 0 on the CPU.
  int64_t deviceMemoryInBytes() const;

  /// Computes attention. `workspace` is used by one call at a time; null on the CPU: allocated for the call. On CUDA
  /// the work is queued on `stream` and nothing waits; on the CPU `stream` is null. InvalidArgument for wrong shapes,
  /// types, strides or devices, overlapping outputs, a workspace that is too small or in use, a changed binding.
  Status forward(const ForwardCallTensors &tensors, void *workspace, int64_t workspaceInBytes,
                 void *stream = nullptr) const;
  /// Computes gradients by recomputing the scores; otherwise as forward.
  Status backward(const BackwardCallTensors &tensors, void *workspace, int64_t workspaceInBytes,
                  void *stream = nullptr) const;

  /// The problem that is solved: sizes, scale, mask. Pointers in it are valid as long as the Executable.
  const AttentionProblem &problem() const;
  ElementType type() const;

  struct State;
  explicit Executable(std::unique_ptr<State> state);
  const State &state() const;

private:
  std::unique_ptr<State> state_;
};

// How ranks share one attention call. Every rank loads an Executable of the whole call, makes the same plan of it, and
// computes its own shards: Executable::load -> ContextParallelPlan::create -> RankExecutable::load -> forward,
// backward. shard, unshard and permutation (ShardArrays.h) apply the plan's layouts to arrays; a Communicator carries
// messages, and says where the rank computes. On the CPU: ThreadsCommunicator, MPI, or CallbackCommunicator over
// functions of the caller. On GPUs: NCCL, or threads of one process.

/// How ranks share a call. What is left out is chosen by the cost model.
struct ContextParallelOptions {
  int32_t worldSize = 1;
  std::optional<LayoutKind> layout;
  std::optional<Rotation> rotation;
  std::optional<Layout> qLayout;  ///< the caller's own; then `layout` is not read
  std::optional<Layout> kvLayout; ///< none: qLayout when the lengths agree, else contiguous
  KeyOrder keyOrder = KeyOrder::Arrival;
  TokenCounts tokenCounts = TokenCounts::Equal;
  NeedPrecision needPrecision = NeedPrecision::Tile;      ///< Token sends fewer rows and evaluates partial tiles for it
  std::vector<std::vector<int64_t>> documentOffsets = {}; ///< for per-document layouts; empty: read off the mask
  /// Masks of other calls that use the same layout, as layers with and without a window do.
  std::vector<std::shared_ptr<const BlockMask>> otherMasks = {};
  CostModel cost = {};
};

/// Who owns, computes and sends what: the schedules of one call, and all that a rank needs to run them. Immutable,
/// shared freely between threads. A plan is a function of mask, sizes and options, so that ranks that make it alone
/// agree.
class ContextParallelPlan {
public:
  /// Plans the call of `executable`, which is kept alive: its batch rows and heads, all of its queries and keys. The
  /// backward pass is planned when it was loaded for it. InvalidArgument names the option that does not fit.
  static StatusOr<std::shared_ptr<const ContextParallelPlan>> create(std::shared_ptr<const Executable> executable,
                                                                     const ContextParallelOptions &options);
  ~ContextParallelPlan();

  /// Schedules with layouts and certificates. toText, toSummary, toJson and toSvg of ScheduleText.h print them.
  const Schedule &forward() const;
  const Schedule *backward() const; ///< null when the executable was loaded for forward only
  /// The global block mask, for pictures; null when all pairs attend.
  const BlockMask *mask() const;

  struct State;
  explicit ContextParallelPlan(std::unique_ptr<State> state);
  const State &state() const { return *state_; }

private:
  std::unique_ptr<State> state_;
};

/// The communicator of this process in an MPI job, through the plugin `path`, or when empty the one that is found; see
/// MpiCommunicator.h. One per process; MPI is finalised with it.
StatusOr<std::shared_ptr<Communicator>> openMpiCommunicator(const std::string &path = "");

/// Names a group of ranks before it exists: made by one, brought to all by the caller.
using NcclId = std::array<char, 128>;
StatusOr<NcclId> newNcclId();

/// This rank's end of a group of GPUs, one GPU each, in one process or many. Waits until all ranks have joined, at most
/// `deadlineSeconds`; the same limit holds for NCCL to take each step's messages. Unavailable without NCCL or the GPU.
StatusOr<std::shared_ptr<Communicator>> openNcclCommunicator(const NcclId &id, int32_t rank, int32_t worldSize,
                                                             int32_t gpu, double deadlineSeconds = 60);

/// The same over the caller's own ncclComm_t, of the NCCL library that this process has loaded. It stays the caller's,
/// and lives longer than the communicator, unless an error aborts it.
StatusOr<std::shared_ptr<Communicator>> adoptNcclCommunicator(void *ncclComm, int32_t gpu, double deadlineSeconds = 60);

/// The communicators of ranks that are threads of this process, rank r on gpus[r % gpus.size()]; ranks may share a GPU.
/// Copy engines carry the messages.
StatusOr<std::vector<std::shared_ptr<Communicator>>> openCudaThreads(int32_t worldSize,
                                                                     const std::vector<int32_t> &gpus);

/// How one rank runs.
struct RankOptions {
  double deadlineSeconds = 60; ///< for each step's messages
  int numThreads = 1;          ///< of the rank's calls on the CPU; 0: one per hardware thread
  /// Whether passes on a GPU note for report() when they computed and exchanged; the host then waits for the end of
  /// each. On the CPU they always do.
  enum class Times : uint8_t { WhereFree, Always } times = Times::WhereFree;
};

/// One rank of a plan, ready to run where its communicator has its messages: on the CPU, or on a GPU in bf16 or f16.
/// Used by one thread at a time.
class RankExecutable {
public:
  /// Several may share a communicator when their calls come in the same order on every rank. The plan's executable may
  /// be one on the CPU also for ranks on GPUs: planning needs none. InvalidArgument when the plan is for another number
  /// of ranks, for f32 on a GPU, and for an executable on CUDA when the communicator has its messages in host memory.
  static StatusOr<std::shared_ptr<RankExecutable>> load(std::shared_ptr<const ContextParallelPlan> plan,
                                                        std::shared_ptr<Communicator> communicator,
                                                        const RankOptions &options = {});
  ~RankExecutable();

  /// Computes the rank's shards: tensors as of Executable::forward, but with the rows that the layouts give to the
  /// rank, in their order. All ranks call it together. No wait outlasts the deadline; an error names rank, step and
  /// peer, the communicator is of no more use after it, and its `abort` tells the others. `rowMax` is not computed. On
  /// a GPU tensors are in its memory; work waits for that of the caller's `stream` so far, and what follows in `stream`
  /// waits for it. The call waits while messages travel, not for the end of its work.
  Status forward(const ForwardCallTensors &shards, void *stream = nullptr);
  /// Gradients of the rank's shards. Those of captures and sinks are sums over all ranks, in rank order, on every rank,
  /// in arrays in host memory, and complete when the call returns.
  Status backward(const BackwardCallTensors &shards, void *stream = nullptr);

  /// Bytes of device memory that it holds between calls, known after the first: tables of its masks and the captures
  /// that were copied there. 0 on the CPU.
  int64_t deviceMemoryInBytes() const;

  /// Messages and bytes by purpose and peer of all passes so far, the most memory held, and the spans of the last
  /// forward and the last backward pass where their times were noted, which toTraceJson prints.
  RunReport report() const;

  struct State;
  explicit RankExecutable(std::unique_ptr<State> state);

private:
  std::unique_ptr<State> state_;
};

} // namespace cpflex
