// The C interface's executables: loading, workspaces, forward and backward.
#include "lib/API/CHandles.h"
#include "lib/API/CallParts.h"
#include "lib/API/ExecutableState.h"

#include <fmt/format.h>

#include <algorithm>

using namespace cpflex;

namespace {

// A tensor of a call: `rank` axes, or one more of size 1 for rows.
Status toCallTensor(const char *name, const cpflex_array &array, int rank, CallTensor &tensor) {
  if (!array.data)
    return Status::ok();
  StatusOr<ArrayView> view = fromC(array, name);
  if (!view)
    return view.status();
  if (array.rank != rank && array.rank != 4)
    return Status::invalid(fmt::format("'{}' has {} axes; expected {}", name, array.rank, rank));
  tensor.data = array.data;
  tensor.type = view->type;
  tensor.device = view->device;
  std::fill_n(tensor.shape, 4, 1);
  std::fill_n(tensor.strides, 4, 1);
  std::ranges::copy(view->shape, tensor.shape);
  std::ranges::copy(view->strides, tensor.strides);
  return Status::ok();
}

struct Argument {
  const char *name;
  const cpflex_array &array;
  int rank;
  CallTensor &tensor;
};

Status toCallTensors(std::initializer_list<Argument> arguments) {
  for (const Argument &argument : arguments)
    CPFLEX_RETURN_IF_ERROR(toCallTensor(argument.name, argument.array, argument.rank, argument.tensor));
  return Status::ok();
}

// Names of arguments in C where they are others than in C++.
constexpr std::pair<std::string_view, std::string_view> kNamesInC[] = {{"'rowMax'", "'row_max'"},
                                                                       {"'dOut'", "'d_out'"},
                                                                       {"'dLse'", "'d_lse'"},
                                                                       {"'dQ'", "'d_q'"},
                                                                       {"'dK'", "'d_k'"},
                                                                       {"'dV'", "'d_v'"},
                                                                       {"'captureGradients'", "'capture_gradients'"},
                                                                       {"'sinkGradient'", "'sink_gradient'"},
                                                                       {"'type'", "'dtype'"},
                                                                       {"'numThreads'", "'num_threads'"},
                                                                       {"'otherMasks'", "'other_masks'"}};

bool isSamePart(const CallPart &left, const CallPart &right, const CallSizes &sizes) {
  const CallPart a = withEnds(left, sizes), b = withEnds(right, sizes);
  return a.batch == b.batch && a.heads == b.heads && a.q == b.q && a.kv == b.kv;
}

// A mask that knows where it comes from has to come from here; others are compared by their sizes.
Status checkOrigin(const cpflex_block_mask &mask, const cpflex_binding &binding, const EntryPoint &entry,
                   const CallPart &part) {
  if (!mask.binding)
    return Status::ok();
  if (mask.binding != binding.binding)
    return Status::invalid("'mask' was built over another binding; expected one built over 'binding'");
  if (mask.entry->name != entry.name)
    return Status::invalid(
        fmt::format("'mask' is that of entry point '{}'; expected that of '{}'", mask.entry->name, entry.name));
  if (mask.version != binding.binding->version())
    return Status::invalid(fmt::format("'mask' was built for version {} of the binding, which has version {}; build it "
                                       "again",
                                       mask.version, binding.binding->version()));
  if (!isSamePart(mask.part, part, binding.binding->sizes()))
    return Status::invalid("'mask' was built for another part of the problem; expected that of the executable");
  return Status::ok();
}

StatusOr<LoadOptions> fromC(const cpflex_load_options &options) {
  if (options.dtype < CPFLEX_BOOL || options.dtype > CPFLEX_F32)
    return Status::invalid(fmt::format("'dtype' is {}; expected {}, {} or {}", options.dtype, int(CPFLEX_F16),
                                       int(CPFLEX_BF16), int(CPFLEX_F32)));
  LoadOptions result;
  result.device = textOr(options.device, "cpu");
  if (options.dtype != 0)
    result.type = ElementType(options.dtype);
  result.headDim = options.head_dim;
  result.vHeadDim = options.v_head_dim ? options.v_head_dim : -1;
  if (options.has_scale)
    result.scale = options.scale;
  if (options.has_backward)
    result.passes = CallPasses::ForwardAndBackward;
  result.numThreads = options.num_threads;
  result.part = cpflex::fromC(options.part);
  result.stream = options.stream;
  return result;
}

} // namespace

namespace cpflex {

Status inC(const Status &status) {
  constexpr std::string_view kProgramsOwn = "array "; // what stands before names of the program
  std::string message = status.message();
  for (auto [name, nameInC] : kNamesInC)
    for (size_t at = 0; (at = message.find(name, at)) != std::string::npos; ++at)
      if (!std::string_view(message).substr(0, at).ends_with(kProgramsOwn))
        message.replace(at, name.size(), nameInC);
  return {status.code(), message};
}

Status fromC(const cpflex_forward_tensors &tensors, ForwardCallTensors &call) {
  return toCallTensors({{"q", tensors.q, 4, call.q},
                        {"k", tensors.k, 4, call.k},
                        {"v", tensors.v, 4, call.v},
                        {"out", tensors.out, 4, call.out},
                        {"lse", tensors.lse, 3, call.lse},
                        {"row_max", tensors.row_max, 3, call.rowMax}});
}

Status fromC(const cpflex_backward_tensors &tensors, BackwardCallTensors &call) {
  CPFLEX_RETURN_IF_ERROR(toCallTensors({{"q", tensors.q, 4, call.q},
                                        {"k", tensors.k, 4, call.k},
                                        {"v", tensors.v, 4, call.v},
                                        {"out", tensors.out, 4, call.out},
                                        {"lse", tensors.lse, 3, call.lse},
                                        {"d_out", tensors.d_out, 4, call.dOut},
                                        {"d_lse", tensors.d_lse, 3, call.dLse},
                                        {"d_q", tensors.d_q, 4, call.dQ},
                                        {"d_k", tensors.d_k, 4, call.dK},
                                        {"d_v", tensors.d_v, 4, call.dV}}));
  if (tensors.capture_gradients)
    call.captureGradients.assign(tensors.capture_gradients, tensors.capture_gradients + tensors.num_capture_gradients);
  call.sinkGradient = tensors.sink_gradient;
  return Status::ok();
}

} // namespace cpflex

extern "C" {

cpflex_error *cpflex_load(const cpflex_binding *binding, const char *entry, const cpflex_block_mask *mask,
                          const cpflex_load_options *options, cpflex_executable **executable) {
  return guarded([&]() -> Status {
    const std::pair<const void *, const char *> arguments[] = {
        {binding, "binding"}, {options, "options"}, {executable, "executable"}};
    for (auto [pointer, name] : arguments)
      CPFLEX_RETURN_IF_ERROR(required(pointer, name));
    StatusOr<const EntryPoint *> point = findEntry(*binding->program, entry);
    if (!point)
      return point.status();
    StatusOr<LoadOptions> given = fromC(*options);
    if (!given)
      return given.status();
    std::shared_ptr<const BlockMask> blocks;
    if (mask) {
      CPFLEX_RETURN_IF_ERROR(checkOrigin(*mask, *binding, **point, given->part));
      blocks = {mask->result, &mask->result->mask};
    }
    auto loaded = Executable::load(binding->program, **point, binding->binding, std::move(blocks), *given);
    if (loaded)
      *executable = new cpflex_executable{*loaded};
    return inC(loaded.status());
  });
}

cpflex_error *cpflex_executable_update(cpflex_executable *executable, const cpflex_binding *binding,
                                       const cpflex_block_mask *mask, void *stream) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(executable, "executable"));
    CPFLEX_RETURN_IF_ERROR(required(binding, "binding"));
    const Executable::State &state = executable->executable->state();
    std::shared_ptr<const BlockMask> blocks;
    if (mask) {
      CPFLEX_RETURN_IF_ERROR(checkOrigin(*mask, *binding, state.entry, state.part));
      blocks = {mask->result, &mask->result->mask};
    }
    return inC(executable->executable->update(binding->binding, std::move(blocks), stream));
  });
}
void cpflex_executable_free(cpflex_executable *executable) { delete executable; }

int64_t cpflex_executable_workspace_bytes(const cpflex_executable *executable, cpflex_pass pass) {
  if (!executable)
    return 0;
  return executable->executable->workspaceInBytes(pass == CPFLEX_BACKWARD ? Executable::Pass::Backward
                                                                          : Executable::Pass::Forward);
}

int64_t cpflex_executable_device_bytes(const cpflex_executable *executable) {
  return executable ? executable->executable->deviceMemoryInBytes() : 0;
}

cpflex_error *cpflex_forward(const cpflex_executable *executable, const cpflex_forward_tensors *tensors,
                             void *workspace, int64_t workspace_bytes, void *stream) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(executable, "executable"));
    CPFLEX_RETURN_IF_ERROR(required(tensors, "tensors"));
    ForwardCallTensors call;
    CPFLEX_RETURN_IF_ERROR(fromC(*tensors, call));
    return inC(executable->executable->forward(call, workspace, workspace_bytes, stream));
  });
}

cpflex_error *cpflex_backward(const cpflex_executable *executable, const cpflex_backward_tensors *tensors,
                              void *workspace, int64_t workspace_bytes, void *stream) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(executable, "executable"));
    CPFLEX_RETURN_IF_ERROR(required(tensors, "tensors"));
    BackwardCallTensors call;
    CPFLEX_RETURN_IF_ERROR(fromC(*tensors, call));
    return inC(executable->executable->backward(call, workspace, workspace_bytes, stream));
  });
}

} // extern "C"
