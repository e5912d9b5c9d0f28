// One bound program on one device: what it is loaded from, what a call must look like, and who runs it.
#include "lib/API/cpflex.h"

#include "lib/API/CallParts.h"
#include "lib/API/CudaCalls.h"
#include "lib/API/ExecutableState.h"
#include "lib/API/TensorChecks.h"
#include "runtime/BlockMask/PointEvaluator.h"
#include "runtime/Host/AttentionChecks.h"
#include "runtime/Host/BackwardBuffers.h"
#include "runtime/Host/HostAttention.h"
#include "runtime/contract/NarrowCode.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <mutex>
#include <tuple>
#include <utility>

namespace cpflex {

namespace {

StatusOr<DeviceId> parseDevice(const std::string &text) {
  if (text == "cpu")
    return DeviceId{DeviceType::Cpu, 0};
  if (text == "cuda")
    return DeviceId{DeviceType::Cuda, 0};
  int32_t index = 0;
  const char *begin = text.data() + 5, *end = text.data() + text.size();
  if (text.starts_with("cuda:") && text.size() > 5)
    if (auto [stop, error] = std::from_chars(begin, end, index); error == std::errc() && stop == end && index >= 0)
      return DeviceId{DeviceType::Cuda, index};
  return Status::invalid(fmt::format("device is '{}'; expected cpu, cuda or cuda:N", text));
}

// The sinks as floats, one per head of the whole problem.
std::vector<float> sinkValues(const CaptureView &view, int64_t heads) {
  std::vector<float> values(heads);
  for (int64_t h = 0; h < heads; ++h) {
    const uint32_t bits = uint32_t(readElement(view, h * view.strides[0], ValueType::Float));
    std::memcpy(&values[h], &bits, sizeof(float));
  }
  return values;
}

Status fillProblem(Executable::State &state, const EntryPoint &entry, const LoadOptions &options) {
  const CallSizes &sizes = state.binding->sizes();
  CPFLEX_RETURN_IF_ERROR(checkPart(options.part, sizes));
  const CallPart part = state.part = withEnds(options.part, sizes);
  if (sizes.heads % sizes.kvHeads != 0)
    return Status::invalid(fmt::format("{} query heads do not divide over {} kv heads", sizes.heads, sizes.kvHeads));
  const int64_t group = sizes.heads / sizes.kvHeads;
  if (part.heads.begin % group != 0 || part.heads.end % group != 0)
    return Status::invalid(
        fmt::format("the part has heads {} to {}; expected multiples of {}, the heads of one kv head", part.heads.begin,
                    part.heads.end, group));
  constexpr int64_t kLargestHead = 4096;
  const int64_t vHeadDim = options.vHeadDim == -1 ? options.headDim : options.vHeadDim;
  if (options.headDim < 1 || options.headDim > kLargestHead || vHeadDim < 1 || vHeadDim > kLargestHead)
    return Status::invalid(
        fmt::format("head sizes are {} and {}; expected 1 to {}", options.headDim, vHeadDim, kLargestHead));
  AttentionProblem &problem = state.problem;
  problem.batch = part.batch.size();
  problem.qHeads = part.heads.size();
  problem.kvHeads = part.heads.size() / group;
  problem.qLen = part.q.size();
  problem.kvLen = part.kv.size();
  problem.headDim = options.headDim;
  problem.vHeadDim = vHeadDim;
  problem.scale = options.scale.value_or(entry.scale.value_or(1.0f / std::sqrt(float(options.headDim))));
  problem.normalization =
      entry.hasSoftmax ? AttentionProblem::Normalization::Softmax : AttentionProblem::Normalization::None;
  problem.batchOffset = part.batch.begin;
  problem.headOffset = part.heads.begin;
  problem.qPositions = positionsOf(part.q, sizes.qLen);
  problem.kvPositions = positionsOf(part.kv, sizes.kvLen);
  problem.bindings = &state.binding->bindings();
  if (entry.sinkCapture >= 0) {
    state.sink = sinkValues(state.binding->bindings().captures[entry.sinkCapture], sizes.heads);
    problem.sink = state.sink.data();
  }
  return Status::ok();
}

// Code and memory of an executable serve bindings of its program, whose ints its code holds.
Status checkBinding(const Executable::State &state, const Binding &binding) {
  if (!(binding.signature() == state.program->signature()))
    return Status::invalid("'binding' was made for another program; expected one made for that of the executable");
  return Status::ok();
}

Status checkUpdate(const Executable::State &state, const Binding &binding) {
  if (state.isPlanned)
    return Status::invalid("the executable is that of a plan for several ranks; expected one that no plan was made of");
  CPFLEX_RETURN_IF_ERROR(checkBinding(state, binding));
  const CallSizes &sizes = binding.sizes(), &before = state.binding->sizes();
  for (const auto &[size, expected, what] : {std::tuple(sizes.batch, before.batch, "batch rows"),
                                             {sizes.heads, before.heads, "query heads"},
                                             {sizes.kvHeads, before.kvHeads, "kv heads"},
                                             {sizes.qLen, before.qLen, "queries"},
                                             {sizes.kvLen, before.kvLen, "keys"}})
    if (size != expected)
      return Status::invalid(
          fmt::format("the binding has {} {}; expected {}, for which the executable was loaded", size, what, expected));
  if (state.hasNarrowInts && !mayRunNarrowCode(state.program->signature(), binding.bindings()))
    return Status::invalid(
        "a param or dimension of the binding is beyond 2^30; expected smaller ones, as those that the "
        "executable was loaded with");
  return Status::ok();
}

// The mask that is given or, where there is none, built with tiles of `tileQ` x `tileKV`; null for an entry without
// mask.
StatusOr<std::shared_ptr<const BlockMask>> maskOf(const Executable::State &state, const Binding &binding,
                                                  std::shared_ptr<const BlockMask> given, MaskTile tile) {
  if (!state.entry.hasMask)
    return std::shared_ptr<const BlockMask>();
  if (given)
    return given;
  StatusOr<BlockMaskResult> built =
      buildBlockMask(*state.program, state.entry, binding, tile.q, tile.kv, state.host.numThreads, state.part);
  if (!built)
    return built.status();
  return std::make_shared<const BlockMask>(std::move(built->mask));
}

// Scratch bytes of a backward call that computes every gradient that there is.
int64_t backwardInBytes(const Executable::State &state) {
  char present = 0;
  const TensorView given{&present, state.type, {}};
  HostBackwardTensors tensors{.q = given, .dQ = given, .dK = given, .dV = given};
  std::vector<float *> gradients;
  float gradient = 0;
  for (const CaptureDeclaration &capture : state.program->signature().captures)
    gradients.push_back(capture.needsGradient ? &gradient : nullptr);
  tensors.captureGradients = gradients.data();
  tensors.numCaptures = int(gradients.size());
  WorkspaceCursor cursor(nullptr);
  BackwardLayout(state.problem, tensors, resolvedNumThreads(state.host.numThreads), cursor);
  return cursor.neededInBytes();
}

void measureWorkspaces(Executable::State &state) {
  const bool isBoth = state.passes == CallPasses::ForwardAndBackward;
  if (state.cuda) {
    state.forwardInBytes = state.cuda->workspaceInBytes(Executable::Pass::Forward);
    state.backwardInBytes = isBoth ? state.cuda->workspaceInBytes(Executable::Pass::Backward) : 0;
    return;
  }
  state.forwardInBytes = hostAttentionForwardWorkspaceInBytes(state.problem, state.host);
  state.backwardInBytes = isBoth ? backwardInBytes(state) : 0;
}

Status loadOnHost(Executable::State &state, const EntryPoint &entry, const LoadOptions &options) {
  if (options.stream)
    return Status::invalid("'stream' is given for the cpu; expected null");
  CPFLEX_RETURN_IF_ERROR(checkOptions(state.host));
  StatusOr<HostFunctions> functions = state.program->hostFunctions(entry, state.binding->bindings(), state.passes);
  if (!functions)
    return functions.status();
  state.functions = *functions;
  state.problem.functions = &state.functions;
  CPFLEX_RETURN_IF_ERROR(checkProblem(state.problem));
  return Status::ok();
}

Status loadOnCuda(Executable::State &state, const EntryPoint &entry, const LoadOptions &options) {
  auto calls =
      CudaCalls::load(*state.program, entry, *state.binding, state.problem, state.type, options, state.device.index);
  if (!calls)
    return calls.status();
  state.cuda = std::move(*calls);
  return Status::ok();
}

// A workspace while a call uses it.
class WorkspaceUse {
public:
  WorkspaceUse(Executable::State &state, void *workspace) : state_(state), workspace_(workspace) {
    std::lock_guard lock(state_.workspacesMutex);
    isTaken_ = workspace && std::ranges::find(state_.workspacesInUse, workspace) != state_.workspacesInUse.end();
    if (!isTaken_)
      state_.workspacesInUse.push_back(workspace);
  }
  ~WorkspaceUse() {
    if (isTaken_)
      return;
    std::lock_guard lock(state_.workspacesMutex);
    state_.workspacesInUse.erase(std::ranges::find(state_.workspacesInUse, workspace_));
  }
  WorkspaceUse(const WorkspaceUse &) = delete;

  Status status() const {
    return isTaken_ ? Status::invalid(
                          "'workspace' is in use by another call; expected one workspace for each call at a time")
                    : Status::ok();
  }

private:
  Executable::State &state_;
  void *workspace_;
  bool isTaken_ = false;
};

// The executable's workers while a call uses them; none while another one does.
class ThreadsUse {
public:
  explicit ThreadsUse(Executable::State &state) : lock_(state.threadsMutex, std::try_to_lock) {
    if (!lock_)
      return;
    if (!state.threads)
      state.threads = std::make_unique<HostThreads>(state.host.numThreads);
    threads_ = state.threads.get();
  }
  HostThreads *get() const { return threads_; }

private:
  std::unique_lock<std::mutex> lock_;
  HostThreads *threads_ = nullptr;
};

Status checkCall(const Executable::State &state, void *workspace, int64_t workspaceInBytes, int64_t neededInBytes,
                 void *stream) {
  if (const uint64_t version = state.binding->version(); version != state.version)
    return Status::invalid(
        fmt::format("the binding has version {} and the executable was loaded for version {}; load it "
                    "again",
                    version, state.version));
  if (!state.cuda && stream)
    return Status::invalid("'stream' is given for the cpu; expected null");
  if ((workspace || state.cuda) && workspaceInBytes < neededInBytes)
    return Status::invalid(
        fmt::format("'workspace' holds {} bytes; expected at least {}", workspaceInBytes, neededInBytes));
  return Status::ok();
}

} // namespace

Executable::Executable(std::unique_ptr<State> state) : state_(std::move(state)) {}
Executable::~Executable() = default;
const AttentionProblem &Executable::problem() const { return state_->problem; }
const Executable::State &Executable::state() const { return *state_; }
ElementType Executable::type() const { return state_->type; }

int64_t Executable::workspaceInBytes(Pass pass) const {
  return pass == Pass::Forward ? state_->forwardInBytes : state_->backwardInBytes;
}

int64_t Executable::deviceMemoryInBytes() const { return state_->cuda ? state_->cuda->sizeInBytes() : 0; }

StatusOr<std::shared_ptr<Executable>> Executable::load(std::shared_ptr<const Program> program, const EntryPoint &entry,
                                                       std::shared_ptr<const Binding> binding,
                                                       std::shared_ptr<const BlockMask> mask,
                                                       const LoadOptions &options) {
  if (!program || !binding)
    return Status::invalid(fmt::format("'{}' is null", program ? "binding" : "program"));
  auto state = std::make_unique<State>();
  state->program = std::move(program);
  state->binding = std::move(binding);
  state->entry = entry;
  state->version = state->binding->version();
  CPFLEX_RETURN_IF_ERROR(checkBinding(*state, *state->binding));
  state->hasNarrowInts = mayRunNarrowCode(state->program->signature(), state->binding->bindings());
  state->host.numThreads = options.numThreads;
  StatusOr<DeviceId> device = parseDevice(options.device);
  if (!device)
    return device.status();
  state->device = *device;
  const bool isCuda = device->type == DeviceType::Cuda;
  state->type = options.type.value_or(isCuda ? ElementType::BF16 : ElementType::F32);
  if (state->type != ElementType::F32 && state->type != ElementType::BF16 && state->type != ElementType::F16)
    return Status::invalid(fmt::format("'type' is {}; expected f32, bf16 or f16", toString(state->type)));
  state->passes = options.passes;
  CPFLEX_RETURN_IF_ERROR(fillProblem(*state, entry, options));
  MaskTile tile{128, 128};
  if (isCuda && !mask && entry.hasMask) {
    StatusOr<MaskTile> preferred =
        CudaCalls::maskTile(*state->program, state->problem, state->type, options, device->index);
    if (!preferred)
      return preferred.status();
    tile = *preferred;
  }
  auto blocks = maskOf(*state, *state->binding, std::move(mask), tile);
  if (!blocks)
    return blocks.status();
  state->mask = std::move(*blocks);
  state->problem.mask = state->mask.get();
  CPFLEX_RETURN_IF_ERROR(isCuda ? loadOnCuda(*state, entry, options) : loadOnHost(*state, entry, options));
  measureWorkspaces(*state);
  return std::make_shared<Executable>(std::move(state));
}

Status Executable::update(std::shared_ptr<const Binding> binding, std::shared_ptr<const BlockMask> mask, void *stream) {
  State &state = *state_;
  if (!binding)
    return Status::invalid("'binding' is null");
  if (!state.cuda && stream)
    return Status::invalid("'stream' is given for the cpu; expected null");
  CPFLEX_RETURN_IF_ERROR(checkUpdate(state, *binding));
  const uint64_t version = binding->version();
  const MaskTile tile = state.mask ? MaskTile{state.mask->tileQ, state.mask->tileKV} : MaskTile{};
  auto blocks = maskOf(state, *binding, std::move(mask), tile);
  if (!blocks)
    return blocks.status();
  AttentionProblem problem = state.problem;
  problem.bindings = &binding->bindings();
  problem.mask = blocks->get();
  std::vector<float> sink;
  if (state.entry.sinkCapture >= 0) {
    sink = sinkValues(binding->bindings().captures[state.entry.sinkCapture], binding->sizes().heads);
    problem.sink = sink.data();
  }
  CPFLEX_RETURN_IF_ERROR(state.cuda ? state.cuda->update(*state.program, *binding, problem, stream)
                                    : checkProblem(problem));
  state.problem = std::move(problem);
  state.sink = std::move(sink);
  state.mask = std::move(*blocks);
  state.version = version;
  state.bindingBefore = std::exchange(state.binding, std::move(binding));
  measureWorkspaces(state);
  return Status::ok();
}

Status Executable::forward(const ForwardCallTensors &tensors, void *workspace, int64_t workspaceInBytes,
                           void *stream) const {
  State &state = *state_;
  CPFLEX_RETURN_IF_ERROR(checkCall(state, workspace, workspaceInBytes, state.forwardInBytes, stream));
  const AttentionShapes shapes(state.problem);
  for (const NamedTensor &argument : {NamedTensor{"q", tensors.q, shapes.q},
                                      {"k", tensors.k, shapes.k},
                                      {"v", tensors.v, shapes.v},
                                      {"out", tensors.out, shapes.out},
                                      {"lse", tensors.lse, shapes.row},
                                      {"rowMax", tensors.rowMax, shapes.row}})
    CPFLEX_RETURN_IF_ERROR(checkTensor(argument, state.device));
  for (auto [name, tensor] : {std::pair("q", &tensors.q), {"k", &tensors.k}, {"v", &tensors.v}, {"out", &tensors.out}})
    CPFLEX_RETURN_IF_ERROR(checkType(name, *tensor, state.type));
  const WorkspaceUse use(state, workspace);
  CPFLEX_RETURN_IF_ERROR(use.status());
  if (state.cuda)
    return state.cuda->forward(tensors, workspace, stream);
  const ThreadsUse threads(state);
  HostAttentionOptions options = state.host;
  options.threads = threads.get();
  options.workspace = workspace;
  options.workspaceInBytes = workspaceInBytes;
  return hostAttentionForward(state.problem,
                              {.q = toTensorView(tensors.q),
                               .k = toTensorView(tensors.k),
                               .v = toTensorView(tensors.v),
                               .out = toTensorView(tensors.out),
                               .lse = toTensorView(tensors.lse),
                               .rowMax = toTensorView(tensors.rowMax)},
                              options);
}

Status Executable::backward(const BackwardCallTensors &tensors, void *workspace, int64_t workspaceInBytes,
                            void *stream) const {
  State &state = *state_;
  if (state.passes == CallPasses::Forward)
    return Status::invalid("the executable was loaded for forward only; expected one loaded for backward too");
  CPFLEX_RETURN_IF_ERROR(checkCall(state, workspace, workspaceInBytes, state.backwardInBytes, stream));
  const AttentionShapes shapes(state.problem);
  for (const NamedTensor &argument : {NamedTensor{"q", tensors.q, shapes.q},
                                      {"k", tensors.k, shapes.k},
                                      {"v", tensors.v, shapes.v},
                                      {"out", tensors.out, shapes.out},
                                      {"lse", tensors.lse, shapes.row},
                                      {"dOut", tensors.dOut, shapes.out},
                                      {"dLse", tensors.dLse, shapes.row},
                                      {"dQ", tensors.dQ, shapes.q},
                                      {"dK", tensors.dK, shapes.k},
                                      {"dV", tensors.dV, shapes.v}})
    CPFLEX_RETURN_IF_ERROR(checkTensor(argument, state.device));
  for (auto [name, tensor] : {std::pair("q", &tensors.q), {"k", &tensors.k}, {"v", &tensors.v}})
    CPFLEX_RETURN_IF_ERROR(checkType(name, *tensor, state.type));
  CPFLEX_RETURN_IF_ERROR(checkCaptureGradients(*state.program, tensors));
  const WorkspaceUse use(state, workspace);
  CPFLEX_RETURN_IF_ERROR(use.status());
  if (state.cuda)
    return state.cuda->backward(tensors, workspace, stream);
  const ThreadsUse threads(state);
  HostAttentionOptions options = state.host;
  options.threads = threads.get();
  options.workspace = workspace;
  options.workspaceInBytes = workspaceInBytes;
  HostBackwardTensors views{.q = toTensorView(tensors.q),
                            .k = toTensorView(tensors.k),
                            .v = toTensorView(tensors.v),
                            .out = toTensorView(tensors.out),
                            .lse = toTensorView(tensors.lse),
                            .dOut = toTensorView(tensors.dOut),
                            .dLse = toTensorView(tensors.dLse),
                            .dQ = toTensorView(tensors.dQ),
                            .dK = toTensorView(tensors.dK),
                            .dV = toTensorView(tensors.dV)};
  if (!tensors.captureGradients.empty()) {
    views.captureGradients = tensors.captureGradients.data();
    views.numCaptures = int(tensors.captureGradients.size());
  }
  views.sinkGradient = tensors.sinkGradient;
  return hostAttentionBackward(state.problem, views, options);
}

} // namespace cpflex
