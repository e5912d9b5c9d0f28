// How options and files become tensors, an AttentionProblem and a mask.
#include "tools/cpflexc/AttentionCall.h"

#include "runtime/Host/HalfPrecision.h"
#include "runtime/contract/HostMemory.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

namespace cpflex {

namespace {

// 64 well-mixed bits of a counter.
uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Normally distributed, a fixed function of seed, tensor and element.
float randomNormal(uint64_t seed, uint64_t tensor, uint64_t index) {
  const uint64_t bits = mixed(mixed(seed * 16 + tensor) + index);
  const double u = (double(bits >> 32) + 0.5) / 4294967296.0, w = double(bits & 0xffffffffu) / 4294967296.0;
  return float(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * w));
}

Array emptyArray(ElementType type, std::vector<int64_t> shape) {
  Array array{type, std::move(shape), {}};
  array.bytes.resize(array.numElements() * sizeInBytes(type));
  return array;
}

void fillRandom(Array &array, uint64_t seed, uint64_t tensor) {
  for (int64_t i = 0; i < array.numElements(); ++i) {
    const float value = randomNormal(seed, tensor, uint64_t(i));
    if (array.type == ElementType::F32) {
      std::memcpy(&array.bytes[i * 4], &value, 4);
      continue;
    }
    const uint16_t half = array.type == ElementType::BF16 ? narrowToBFloat16(value) : narrowToFloat16(value);
    std::memcpy(&array.bytes[i * 2], &half, 2);
  }
}

TensorView viewOf(Array &array, bool isBshd) {
  const std::vector<int64_t> &shape = array.shape;
  TensorView view{array.bytes.data(), array.type, {}};
  if (shape.size() == 3) { // [b, h, s]
    view.strides[0] = shape[1] * shape[2];
    view.strides[1] = shape[2];
    view.strides[2] = 1;
    view.strides[3] = 1;
    return view;
  }
  view.strides[0] = shape[1] * shape[2] * shape[3];
  view.strides[isBshd ? 2 : 1] = shape[2] * shape[3];
  view.strides[isBshd ? 1 : 2] = shape[3];
  view.strides[3] = 1;
  return view;
}

std::vector<int64_t> shapeOf(bool isBshd, int64_t batch, int64_t heads, int64_t length, int64_t dim) {
  return isBshd ? std::vector<int64_t>{batch, length, heads, dim} : std::vector<int64_t>{batch, heads, length, dim};
}

StatusOr<Array> readTensor(const std::string &path, ElementType type) {
  StatusOr<Array> array = readNpy(path);
  if (!array)
    return asInputFault(array.status());
  if (type == ElementType::BF16 && array->type == ElementType::U16)
    array->type = ElementType::BF16;
  if (array->type != type)
    return Status::invalid(
        fmt::format("'{}' has elements of type {}; expected {}", path, toString(array->type), toString(type)));
  if (array->shape.size() != 4)
    return Status::invalid(fmt::format("'{}' has {} dimensions; expected 4", path, array->shape.size()));
  return array;
}

Status checkShape(const Array &array, const std::vector<int64_t> &expected, const char *name) {
  if (array.shape == expected)
    return Status::ok();
  return Status::invalid(
      fmt::format("{} has shape [{}]; expected [{}]", name, fmt::join(array.shape, ", "), fmt::join(expected, ", ")));
}

// A size that a tensor fixes and an option may repeat.
Status agree(int64_t &size, int64_t seen, const char *what) {
  if (size >= 0 && size != seen)
    return Status::invalid(fmt::format("{} is {} in the arrays and {} in the options", what, seen, size));
  size = seen;
  return Status::ok();
}

Status readTensors(Options &options, const TensorFiles &files, AttentionCall &call) {
  if (files.q.empty() && files.k.empty() && files.v.empty())
    return Status::ok();
  if (files.q.empty() || files.k.empty() || files.v.empty())
    throw CommandLineFault("only some of --q, --k and --v are given; expected all three, or --random");
  for (auto [path, array] : {std::pair(&files.q, &call.q), {&files.k, &call.k}, {&files.v, &call.v}}) {
    StatusOr<Array> tensor = readTensor(*path, call.type);
    if (!tensor)
      return tensor.status();
    *array = std::move(*tensor);
  }
  const int heads = options.isBshd ? 2 : 1, length = options.isBshd ? 1 : 2;
  CPFLEX_RETURN_IF_ERROR(agree(options.sizes.batch, call.q.shape[0], "batch"));
  CPFLEX_RETURN_IF_ERROR(agree(options.sizes.heads, call.q.shape[heads], "heads"));
  CPFLEX_RETURN_IF_ERROR(agree(options.sizes.kvHeads, call.k.shape[heads], "kv-heads"));
  CPFLEX_RETURN_IF_ERROR(agree(options.sizes.qLen, call.q.shape[length], "q-len"));
  CPFLEX_RETURN_IF_ERROR(agree(options.sizes.kvLen, call.k.shape[length], "kv-len"));
  CPFLEX_RETURN_IF_ERROR(agree(options.headDim, call.q.shape[3], "head-dim"));
  return agree(options.vHeadDim, call.v.shape[3], "v-head-dim");
}

// What a call writes: NaN in every element until then, so that nothing it leaves out passes for a 0.
Array outputArray(ElementType type, const std::vector<int64_t> &shape) {
  constexpr char kBitsOfNan = char(0xff);
  Array array = emptyArray(type, shape);
  std::fill(array.bytes.begin(), array.bytes.end(), kBitsOfNan);
  return array;
}

void allocateGradients(AttentionCall &call) {
  call.dQ = outputArray(call.type, call.q.shape);
  call.dK = outputArray(call.type, call.k.shape);
  call.dV = outputArray(call.type, call.v.shape);
  const auto &captures = call.loaded.program->signature().captures;
  call.captureGradients.resize(captures.size());
  call.captureGradientPointers.assign(captures.size(), nullptr);
  for (size_t slot = 0; slot < captures.size(); ++slot) {
    if (!captures[slot].needsGradient || int(slot) == call.loaded.entry->sinkCapture)
      continue;
    call.captureGradients[slot] = outputArray(ElementType::F32, call.binding->shape(int(slot)));
    call.captureGradientPointers[slot] = reinterpret_cast<float *>(call.captureGradients[slot].bytes.data());
  }
  if (call.problem.sink)
    call.sinkGradient.assign(call.problem.qHeads, std::numeric_limits<float>::quiet_NaN());
}

// What prepareTensors allocates at most, apart from the gradients of captures.
double tensorsInBytes(const AttentionCall &call) {
  const AttentionProblem &problem = call.problem;
  const double qRows = double(problem.batch) * double(problem.qHeads) * double(problem.qLen);
  const double kvRows = double(problem.batch) * double(problem.kvHeads) * double(problem.kvLen);
  const double headDim = double(problem.headDim), vHeadDim = double(problem.vHeadDim);
  const double elements = qRows * (headDim + vHeadDim) + kvRows * (headDim + vHeadDim);
  // Backward has a gradient beside each tensor.
  return elements * sizeInBytes(call.type) * (call.isBackward ? 2 : 1) + qRows * sizeof(float);
}

Status prepareTensors(const Options &options, const TensorFiles &files, AttentionCall &call) {
  AttentionProblem &problem = call.problem;
  const auto shape = [&](int64_t heads, int64_t length, int64_t dim) {
    return shapeOf(options.isBshd, problem.batch, heads, length, dim);
  };
  const std::vector<int64_t> qShape = shape(problem.qHeads, problem.qLen, problem.headDim);
  const std::vector<int64_t> kShape = shape(problem.kvHeads, problem.kvLen, problem.headDim);
  const std::vector<int64_t> vShape = shape(problem.kvHeads, problem.kvLen, problem.vHeadDim);
  const std::vector<int64_t> outShape = shape(problem.qHeads, problem.qLen, problem.vHeadDim);
  if (files.q.empty()) {
    call.q = emptyArray(call.type, qShape);
    call.k = emptyArray(call.type, kShape);
    call.v = emptyArray(call.type, vShape);
    fillRandom(call.q, files.seed, 0);
    fillRandom(call.k, files.seed, 1);
    fillRandom(call.v, files.seed, 2);
  }
  CPFLEX_RETURN_IF_ERROR(checkShape(call.q, qShape, "q"));
  CPFLEX_RETURN_IF_ERROR(checkShape(call.k, kShape, "k"));
  CPFLEX_RETURN_IF_ERROR(checkShape(call.v, vShape, "v"));
  call.out = outputArray(call.type, outShape);
  call.lse = outputArray(ElementType::F32, {problem.batch, problem.qHeads, problem.qLen});
  if (call.isBackward) {
    if (files.dOut.empty()) {
      call.dOut = emptyArray(call.type, outShape);
      fillRandom(call.dOut, files.seed, 3);
    } else {
      StatusOr<Array> gradient = readTensor(files.dOut, call.type);
      if (!gradient)
        return gradient.status();
      call.dOut = std::move(*gradient);
    }
    CPFLEX_RETURN_IF_ERROR(checkShape(call.dOut, outShape, "dout"));
    allocateGradients(call);
    call.dOutView = viewOf(call.dOut, options.isBshd);
    call.dQView = viewOf(call.dQ, options.isBshd);
    call.dKView = viewOf(call.dK, options.isBshd);
    call.dVView = viewOf(call.dV, options.isBshd);
  }
  call.qView = viewOf(call.q, options.isBshd);
  call.kView = viewOf(call.k, options.isBshd);
  call.vView = viewOf(call.v, options.isBshd);
  call.outView = viewOf(call.out, options.isBshd);
  if (call.loaded.entry->hasSoftmax)
    call.lseView = viewOf(call.lse, false);
  return Status::ok();
}

} // namespace

bool isCuda(const Options &options, int &index) {
  index = options.device.starts_with("cuda:") ? std::atoi(options.device.c_str() + 5) : 0;
  return options.device.starts_with("cuda");
}

std::optional<KernelFamily> kernelFamily(const Options &options) {
  if (options.kernels.empty())
    return {};
  return options.kernels == "wgmma" ? KernelFamily::Wgmma : KernelFamily::MmaSync;
}

// Opens the GPU of a call that one GPU makes.
static Status openMachine(const Options &options, AttentionCall &call) {
  int index = 0;
  if (!isCuda(options, index) || options.ranks > 1 || options.transport != "threads")
    return Status::ok();
  StatusOr<CudaMachine> machine = CudaMachine::open(index);
  if (!machine)
    return machine.status();
  call.machine = std::move(*machine);
  return Status::ok();
}

// The tiles of the block mask: on one GPU those that its kernels prefer. Plans of ranks are cut in tiles of 128.
static MaskTile maskTile(const Options &options, const AttentionCall &call, const LoadOptions &load) {
  if (!call.machine)
    return {};
  AttentionProblem problem;
  problem.headDim = load.headDim;
  problem.vHeadDim = load.vHeadDim >= 0 ? load.vHeadDim : load.headDim;
  CudaProgramOptions kernels = CudaProgramOptions::of(problem, call.type);
  kernels.family = kernelFamily(options);
  if (call.isBackward)
    kernels.passes = CudaProgramOptions::Passes::ForwardAndBackward;
  return preferredMaskTile(kernels, call.machine->device->description().computeCapability);
}

int prepareCall(const Options &given, const TensorFiles &files, AttentionCall &call) {
  Options options = given;
  int index = 0;
  const bool onGpu = isCuda(options, index);
  const std::string dtype = !options.dtype.empty() ? options.dtype : onGpu ? "bf16" : "f32";
  call.type = dtype == "f32" ? ElementType::F32 : dtype == "bf16" ? ElementType::BF16 : ElementType::F16;
  call.isBackward = files.isBackward;
  if (int code = loadProgram(options, call.loaded))
    return code;
  if (Status status = readTensors(options, files, call); !status)
    return reportFailure(status);
  StatusOr<std::shared_ptr<Binding>> binding = bindProgram(options, *call.loaded.program);
  if (!binding)
    return reportFailure(binding.status());
  call.binding = *binding;

  LoadOptions load;
  load.type = call.type;
  load.headDim = options.headDim >= 0 ? options.headDim : 64;
  load.vHeadDim = options.vHeadDim;
  load.passes = call.isBackward ? CallPasses::ForwardAndBackward : CallPasses::Forward;
  load.numThreads = threadCount(options);
  if (Status status = openMachine(options, call); !status)
    return reportFailure(status);
  const MaskTile tile = maskTile(options, call, load);
  const auto begin = std::chrono::steady_clock::now();
  auto mask =
      buildBlockMask(*call.loaded.program, *call.loaded.entry, *call.binding, tile.q, tile.kv, threadCount(options));
  call.maskMs = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  if (!mask)
    return reportFailure(mask.status());
  auto executable = Executable::load(call.loaded.program, *call.loaded.entry, call.binding,
                                     std::make_shared<const BlockMask>(std::move(mask->mask)), load);
  if (!executable)
    return reportFailure(executable.status());
  call.executable = *executable;
  call.problem = call.executable->problem();
  if (Status status = checkHostMemory("the tensors", tensorsInBytes(call)); !status)
    return reportFailure(status);
  Status status = prepareTensors(options, files, call);
  return status ? int(kDone) : reportFailure(status);
}

// The tensor of an array whose axes are b, h, s, d, or b, s, h, d, or b, h, s.
static CallTensor tensorOf(const Array &array, const TensorView &view, bool isBshd) {
  CallTensor tensor{.data = view.data, .type = view.type, .shape = {}, .strides = {}, .device = {DeviceType::Cpu, 0}};
  for (int axis = 0; axis < 4; ++axis) {
    const int source = isBshd && array.shape.size() == 4 && (axis == 1 || axis == 2) ? 3 - axis : axis;
    tensor.shape[axis] = source < int(array.shape.size()) ? array.shape[source] : 1;
    tensor.strides[axis] = view.strides[axis];
  }
  return tensor;
}

Status runOnHost(AttentionCall &call, const Options &options) {
  const auto tensor = [&](const Array &array, const TensorView &view) { return tensorOf(array, view, options.isBshd); };
  ForwardCallTensors forward{.q = tensor(call.q, call.qView),
                             .k = tensor(call.k, call.kView),
                             .v = tensor(call.v, call.vView),
                             .out = tensor(call.out, call.outView),
                             .lse = tensor(call.lse, call.lseView),
                             .rowMax = {}};
  CPFLEX_RETURN_IF_ERROR(call.executable->forward(forward, /*workspace=*/nullptr, /*workspaceInBytes=*/0));
  if (!call.isBackward)
    return Status::ok();
  BackwardCallTensors backward{.q = forward.q,
                               .k = forward.k,
                               .v = forward.v,
                               .out = forward.out,
                               .lse = forward.lse,
                               .dOut = tensor(call.dOut, call.dOutView),
                               .dLse = {},
                               .dQ = tensor(call.dQ, call.dQView),
                               .dK = tensor(call.dK, call.dKView),
                               .dV = tensor(call.dV, call.dVView),
                               .captureGradients = call.captureGradientPointers,
                               .sinkGradient = call.sinkGradient.empty() ? nullptr : call.sinkGradient.data()};
  return call.executable->backward(backward, /*workspace=*/nullptr, /*workspaceInBytes=*/0);
}

RankCall rankCall(const AttentionCall &call) {
  RankCall rank;
  rank.scale = call.problem.scale;
  rank.normalization = call.problem.normalization;
  rank.tape = call.loaded.entry->hasMask ? &call.loaded.entry->tape : nullptr;
  rank.declarations = call.loaded.program->signature().captures;
  rank.functions = call.problem.functions;
  rank.bindings = &call.binding->bindings();
  rank.summaries = &call.binding->summaries();
  rank.sink = call.problem.sink;
  return rank;
}

WholeTensors wholeTensors(const AttentionCall &call) {
  WholeTensors tensors;
  tensors.q = call.qView;
  tensors.k = call.kView;
  tensors.v = call.vView;
  tensors.out = call.outView;
  tensors.lse = call.lseView;
  tensors.dOut = call.dOutView;
  tensors.dQ = call.dQView;
  tensors.dK = call.dKView;
  tensors.dV = call.dVView;
  tensors.captureGradients = call.captureGradientPointers.data();
  tensors.numCaptures = int(call.captureGradientPointers.size());
  tensors.sinkGradient = call.sinkGradient.empty() ? nullptr : const_cast<float *>(call.sinkGradient.data());
  return tensors;
}

PlanRequest planRequest(const Options &options, const CallShape &shape, const BlockMask *mask) {
  PlanRequest request;
  request.shape = shape;
  request.worldSize = rankCount(options);
  request.mask = mask;
  request.layout = layoutKindFromString(options.layout);
  request.rotation = rotationFromString(options.rotate);
  return request;
}

} // namespace cpflex
