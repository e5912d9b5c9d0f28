// The C interface's bindings: collecting arrays and values, binding them, and looking at what was bound.
#include "lib/API/ArrayViews.h"
#include "lib/API/CHandles.h"
#include "lib/API/DLPackArrays.h"
#include "runtime/BlockMask/PointEvaluator.h"

#include <fmt/format.h>

#include <cstring>

using namespace cpflex;

namespace {

using NamedPointers = std::initializer_list<std::pair<const void *, const char *>>;

Status allRequired(NamedPointers arguments) {
  for (auto [pointer, name] : arguments)
    CPFLEX_RETURN_IF_ERROR(required(pointer, name));
  return Status::ok();
}

void bindView(cpflex_bind_request &request, const char *name, ArrayView view) {
  request.request.arrays.erase(name);
  request.request.views[name] = std::move(view);
}

void bindArray(cpflex_bind_request &request, const char *name, Array array) {
  request.request.views.erase(name);
  request.request.arrays[name] = std::move(array);
}

template <typename Managed> cpflex_error *takeAndBind(cpflex_bind_request *request, const char *name, Managed *tensor) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(tensor, "tensor"));
    StatusOr<ArrayView> view = takeDLPack(tensor);
    CPFLEX_RETURN_IF_ERROR(allRequired({{request, "request"}, {name, "name"}}));
    if (view)
      bindView(*request, name, std::move(*view));
    return view.status();
  });
}

StatusOr<std::vector<int64_t>> cumulativeLengths(const cpflex_array &array, void *stream) {
  StatusOr<ArrayView> view = fromC(array, "cu_seqlens");
  if (!view)
    return view.status();
  if (view->shape.size() != 1 || (view->type != ElementType::I32 && view->type != ElementType::I64))
    return Status::invalid(
        fmt::format("'cu_seqlens' has {} axes and elements of type {}; expected one axis of i32 or i64",
                    view->shape.size(), toString(view->type)));
  CPFLEX_RETURN_IF_ERROR(checkView("cu_seqlens", *view));
  StatusOr<Array> dense = denseCopy(*view, stream);
  if (!dense)
    return dense.status();
  CaptureView elements;
  elements.data = dense->bytes.data();
  elements.type = dense->type;
  std::vector<int64_t> lengths(size_t(dense->shape[0]));
  for (size_t i = 0; i < lengths.size(); ++i)
    lengths[i] = readElement(elements, int64_t(i), ValueType::Int);
  return lengths;
}

Status bindText(cpflex_bind_request *request, const char *name, const std::string &value) {
  CPFLEX_RETURN_IF_ERROR(allRequired({{request, "request"}, {name, "name"}}));
  request->request.params[name] = value;
  return Status::ok();
}

StatusOr<int> captureSlot(const cpflex_binding &binding, const char *name) {
  const std::vector<CaptureDeclaration> &captures = binding.program->signature().captures;
  for (size_t slot = 0; slot < captures.size(); ++slot)
    if (captures[slot].name == name)
      return int(slot);
  return Status::invalid(fmt::format("the program declares no array '{}'", name));
}

// The capture in host memory, keeping the binding alive.
StatusOr<ArrayView> sharedArray(const cpflex_binding &binding, const char *name) {
  StatusOr<int> slot = captureSlot(binding, name);
  if (!slot)
    return slot.status();
  ArrayView view = binding.binding->hostArray(*slot);
  view.owner = binding.binding;
  return view;
}

Status checkRange(const char *name, int64_t begin, int64_t end, int64_t size) {
  if (begin < 0 || end < begin || end > size)
    return Status::invalid(fmt::format("'{}' is {} to {}; expected a range within 0 to {}", name, begin, end, size));
  return Status::ok();
}

} // namespace

extern "C" {

cpflex_error *cpflex_bind_request_create(const cpflex_program *program, cpflex_bind_request **request) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{program, "program"}, {request, "request"}}));
    *request = new cpflex_bind_request{program->program, {}};
    return Status::ok();
  });
}
void cpflex_bind_request_free(cpflex_bind_request *request) { delete request; }

cpflex_error *cpflex_bind_request_stream(cpflex_bind_request *request, void *stream) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(request, "request"));
    request->request.stream = stream;
    return Status::ok();
  });
}

cpflex_error *cpflex_bind_request_array(cpflex_bind_request *request, const char *name, const cpflex_array *array,
                                        cpflex_ownership ownership) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{request, "request"}, {name, "name"}, {array, "array"}}));
    if (ownership != CPFLEX_COPY && ownership != CPFLEX_BORROW)
      return Status::invalid(
          fmt::format("'ownership' is {}; expected {} or {}", ownership, int(CPFLEX_COPY), int(CPFLEX_BORROW)));
    StatusOr<ArrayView> view = fromC(*array, name);
    if (!view)
      return view.status();
    if (ownership == CPFLEX_BORROW) {
      bindView(*request, name, std::move(*view));
      return Status::ok();
    }
    CPFLEX_RETURN_IF_ERROR(checkView(name, *view));
    StatusOr<Array> copy = denseCopy(*view, request->request.stream);
    if (copy)
      bindArray(*request, name, std::move(*copy));
    return copy.status();
  });
}

cpflex_error *cpflex_bind_request_dlpack(cpflex_bind_request *request, const char *name, DLManagedTensor *tensor) {
  return takeAndBind(request, name, tensor);
}
cpflex_error *cpflex_bind_request_dlpack_versioned(cpflex_bind_request *request, const char *name,
                                                   DLManagedTensorVersioned *tensor) {
  return takeAndBind(request, name, tensor);
}

cpflex_error *cpflex_bind_request_segments(cpflex_bind_request *request, const char *name,
                                           const cpflex_array *cu_seqlens, int64_t length) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{request, "request"}, {name, "name"}, {cu_seqlens, "cu_seqlens"}}));
    StatusOr<std::vector<int64_t>> lengths = cumulativeLengths(*cu_seqlens, request->request.stream);
    if (!lengths)
      return lengths.status();
    StatusOr<Array> ids = documentIdArray(*request->program, name, *lengths, length);
    if (ids)
      bindArray(*request, name, std::move(*ids));
    return ids.status();
  });
}

cpflex_error *cpflex_bind_request_text(cpflex_bind_request *request, const char *name, const char *value) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(value, "value"));
    return bindText(request, name, value);
  });
}
cpflex_error *cpflex_bind_request_int(cpflex_bind_request *request, const char *name, int64_t value) {
  return guarded([&] { return bindText(request, name, std::to_string(value)); });
}
cpflex_error *cpflex_bind_request_float(cpflex_bind_request *request, const char *name, double value) {
  return guarded([&] { return bindText(request, name, fmt::format("{}", value)); });
}

cpflex_error *cpflex_bind_request_sizes(cpflex_bind_request *request, const cpflex_sizes *sizes) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{request, "request"}, {sizes, "sizes"}}));
    request->request.sizes = {sizes->batch, sizes->heads, sizes->kv_heads, sizes->q_len, sizes->kv_len};
    return Status::ok();
  });
}

cpflex_error *cpflex_bind(const cpflex_bind_request *request, cpflex_binding **binding) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{request, "request"}, {binding, "binding"}}));
    StatusOr<std::shared_ptr<Binding>> bound = Binding::create(*request->program, request->request);
    if (bound)
      *binding = new cpflex_binding{request->program, *bound};
    return bound.status();
  });
}
void cpflex_binding_free(cpflex_binding *binding) { delete binding; }

cpflex_sizes cpflex_binding_sizes(const cpflex_binding *binding) {
  if (!binding)
    return {-1, -1, -1, -1, -1};
  const CallSizes &sizes = binding->binding->sizes();
  return {sizes.batch, sizes.heads, sizes.kvHeads, sizes.qLen, sizes.kvLen};
}

cpflex_error *cpflex_binding_dim(const cpflex_binding *binding, const char *name, int64_t *value) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{binding, "binding"}, {name, "name"}, {value, "value"}}));
    StatusOr<int64_t> found = binding->binding->dimension(name);
    if (found)
      *value = *found;
    return found.status();
  });
}

uint64_t cpflex_binding_version(const cpflex_binding *binding) { return binding ? binding->binding->version() : 0; }
cpflex_error *cpflex_binding_set_version(cpflex_binding *binding, uint64_t version) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(binding, "binding"));
    return binding->binding->setVersion(version);
  });
}

cpflex_error *cpflex_binding_array(const cpflex_binding *binding, const char *name, cpflex_array *array) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{binding, "binding"}, {name, "name"}, {array, "array"}}));
    StatusOr<ArrayView> view = sharedArray(*binding, name);
    if (view)
      *array = toC(*view);
    return view.status();
  });
}
cpflex_error *cpflex_binding_dlpack(const cpflex_binding *binding, const char *name, DLManagedTensor **tensor) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{binding, "binding"}, {name, "name"}, {tensor, "tensor"}}));
    StatusOr<ArrayView> view = sharedArray(*binding, name);
    if (view)
      *tensor = toDLPack(*view);
    return view.status();
  });
}
cpflex_error *cpflex_binding_dlpack_versioned(const cpflex_binding *binding, const char *name,
                                              DLManagedTensorVersioned **tensor) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{binding, "binding"}, {name, "name"}, {tensor, "tensor"}}));
    StatusOr<ArrayView> view = sharedArray(*binding, name);
    if (view)
      *tensor = toDLPackVersioned(*view);
    return view.status();
  });
}

cpflex_error *cpflex_binding_evaluate_mask(const cpflex_binding *binding, const char *entry, int64_t b, int64_t h,
                                           int64_t q_begin, int64_t q_end, int64_t kv_begin, int64_t kv_end,
                                           uint8_t *out, int64_t row_stride) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(allRequired({{binding, "binding"}, {out, "out"}}));
    const CallSizes &sizes = binding->binding->sizes();
    CPFLEX_RETURN_IF_ERROR(checkRange("b", b, b + 1, sizes.batch));
    CPFLEX_RETURN_IF_ERROR(checkRange("h", h, h + 1, sizes.heads));
    CPFLEX_RETURN_IF_ERROR(checkRange("q", q_begin, q_end, sizes.qLen));
    CPFLEX_RETURN_IF_ERROR(checkRange("kv", kv_begin, kv_end, sizes.kvLen));
    StatusOr<const EntryPoint *> point = findEntry(*binding->program, entry);
    if (!point)
      return point.status();
    StatusOr<HostFunctions> functions =
        binding->program->hostFunctions(**point, binding->binding->bindings(), CallPasses::Forward);
    if (!functions)
      return functions.status();
    if (functions->evaluateTile) {
      const TileCoordinates tile{b, h, q_begin, q_end - q_begin, 1, kv_begin, kv_end - kv_begin, 1};
      functions->evaluateTile(&binding->binding->bindings(), &tile, out, row_stride);
      return Status::ok();
    }
    for (int64_t i = 0; i < q_end - q_begin; ++i)
      std::memset(out + i * row_stride, 1, size_t(kv_end - kv_begin));
    return Status::ok();
  });
}

} // extern "C"
