// The C interface's version, errors, buffers and arrays.
#include "lib/API/CHandles.h"
#include "lib/API/DLPackArrays.h"

#include <fmt/format.h>

#include <algorithm>

using namespace cpflex;

namespace cpflex {

namespace {

cpflex_code toC(StatusCode code) {
  switch (code) {
  case StatusCode::Ok:
  case StatusCode::InvalidArgument: return CPFLEX_INVALID_ARGUMENT;
  case StatusCode::Unsupported: return CPFLEX_UNSUPPORTED;
  case StatusCode::Unavailable: return CPFLEX_UNAVAILABLE;
  case StatusCode::OutOfMemory: return CPFLEX_OUT_OF_MEMORY;
  case StatusCode::DeadlineExceeded: return CPFLEX_DEADLINE_EXCEEDED;
  case StatusCode::DataLoss: return CPFLEX_DATA_LOSS;
  }
  return CPFLEX_INVALID_ARGUMENT;
}

} // namespace

cpflex_error *toError(const Status &status) { return new cpflex_error{toC(status.code()), status.message(), {}}; }

cpflex_error *toError(const std::vector<Diagnostic> &diagnostics) {
  std::string message;
  for (const Diagnostic &diagnostic : diagnostics)
    message += renderDiagnostic(diagnostic);
  return new cpflex_error{CPFLEX_INVALID_ARGUMENT, std::move(message), withNotes(diagnostics)};
}

std::vector<Diagnostic> withNotes(const std::vector<Diagnostic> &diagnostics) {
  std::vector<Diagnostic> all;
  for (const Diagnostic &diagnostic : diagnostics) {
    all.push_back(diagnostic);
    all.insert(all.end(), diagnostic.notes.begin(), diagnostic.notes.end());
  }
  return all;
}

cpflex_diagnostic toC(const std::vector<Diagnostic> &diagnostics, size_t index) {
  // Nothing of `diagnostics` is referred to here: it may be a temporary.
  if (index >= diagnostics.size())
    return {"", 0, 0, 0, 0, CPFLEX_SEVERITY_ERROR, "", ""};
  const Diagnostic &diagnostic = diagnostics[index];
  const cpflex_severity severity = diagnostic.severity == Severity::Error     ? CPFLEX_SEVERITY_ERROR
                                   : diagnostic.severity == Severity::Warning ? CPFLEX_SEVERITY_WARNING
                                                                              : CPFLEX_SEVERITY_NOTE;
  return {diagnostic.file.c_str(), diagnostic.line, diagnostic.column,          diagnostic.endLine,
          diagnostic.endColumn,    severity,        diagnostic.message.c_str(), diagnostic.sourceLine.c_str()};
}

Status required(const void *pointer, const char *name) {
  return pointer ? Status::ok() : Status::invalid(fmt::format("'{}' is null; expected a value", name));
}

void giveBytes(std::string bytes, cpflex_buffer **out) { *out = new cpflex_buffer{std::move(bytes)}; }

StatusOr<ArrayView> fromC(const cpflex_array &array, const char *name) {
  if (array.rank < 0 || array.rank > kMaxCaptureRank)
    return Status::invalid(fmt::format("'{}' has {} axes; expected 0 to {}", name, array.rank, kMaxCaptureRank));
  if (array.dtype < CPFLEX_BOOL || array.dtype > CPFLEX_F32)
    return Status::invalid(
        fmt::format("'{}' has dtype {}; expected {} to {}", name, array.dtype, int(CPFLEX_BOOL), int(CPFLEX_F32)));
  if (array.device_type < CPFLEX_DEVICE_UNKNOWN || array.device_type > CPFLEX_DEVICE_CUDA)
    return Status::invalid(fmt::format("'{}' has device type {}; expected {} to {}", name, array.device_type,
                                       int(CPFLEX_DEVICE_UNKNOWN), int(CPFLEX_DEVICE_CUDA)));
  return ArrayView{.data = array.data,
                   .type = ElementType(array.dtype),
                   .shape = {array.shape, array.shape + array.rank},
                   .strides = {array.strides, array.strides + array.rank},
                   .device = {DeviceType(array.device_type), array.device_index},
                   .owner = nullptr};
}

cpflex_array toC(const ArrayView &view) {
  cpflex_array array{};
  array.data = const_cast<void *>(view.data);
  array.dtype = cpflex_dtype(view.type);
  array.rank = int32_t(view.shape.size());
  std::ranges::copy(view.shape, array.shape);
  std::ranges::copy(view.strides, array.strides);
  array.device_type = cpflex_device_type(view.device.type);
  array.device_index = view.device.index;
  return array;
}

CallPart fromC(const cpflex_part &part) {
  return {{part.batch_begin, part.batch_end},
          {part.head_begin, part.head_end},
          {part.q_begin, part.q_end},
          {part.kv_begin, part.kv_end}};
}

StatusOr<const EntryPoint *> findEntry(const Program &program, const char *name) {
  return program.entry(textOr(name, ""));
}

} // namespace cpflex

extern "C" {

uint32_t cpflex_abi_version(void) { return CPFLEX_ABI_VERSION; }
const char *cpflex_version(void) { return CPFLEX_VERSION; }

cpflex_code cpflex_error_code(const cpflex_error *error) { return error ? error->code : 0; }
const char *cpflex_error_message(const cpflex_error *error) { return error ? error->message.c_str() : ""; }
size_t cpflex_error_num_diagnostics(const cpflex_error *error) { return error ? error->diagnostics.size() : 0; }
cpflex_diagnostic cpflex_error_diagnostic(const cpflex_error *error, size_t index) {
  return error ? toC(error->diagnostics, index) : toC(std::vector<Diagnostic>(), 0);
}
void cpflex_error_free(cpflex_error *error) { delete error; }

const char *cpflex_buffer_bytes(const cpflex_buffer *buffer) { return buffer ? buffer->bytes.c_str() : ""; }
size_t cpflex_buffer_size(const cpflex_buffer *buffer) { return buffer ? buffer->bytes.size() : 0; }
void cpflex_buffer_free(cpflex_buffer *buffer) { delete buffer; }

cpflex_array cpflex_dense_array(void *data, cpflex_dtype dtype, int32_t rank, const int64_t *shape) {
  cpflex_array array{};
  array.data = data;
  array.dtype = dtype;
  array.rank = rank;
  array.device_type = CPFLEX_DEVICE_CPU;
  int64_t stride = 1;
  for (int32_t axis = std::min(rank, kMaxCaptureRank); axis-- > 0;) {
    array.shape[axis] = shape[axis];
    array.strides[axis] = stride;
    stride *= shape[axis];
  }
  return array;
}

cpflex_error *cpflex_array_from_dlpack(const DLManagedTensor *tensor, cpflex_array *array) {
  return guarded([&]() -> Status {
    CPFLEX_RETURN_IF_ERROR(required(tensor, "tensor"));
    CPFLEX_RETURN_IF_ERROR(required(array, "array"));
    StatusOr<ArrayView> view = viewOfDLTensor(tensor->dl_tensor);
    if (view)
      *array = toC(*view);
    return view.status();
  });
}

} // extern "C"
